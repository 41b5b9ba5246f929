"""TensorRT engines: built from a bundle, kept in a folder, refused where they do not fit."""
