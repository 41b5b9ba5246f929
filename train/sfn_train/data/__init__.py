"""Normal footage for training: prepared once, cached, cut into runs of consecutive frames."""
