"""TensorRT engines: built from a bundle's graphs, kept in a folder, refused where they do not fit."""
