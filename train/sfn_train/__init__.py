"""Trains SFN-VAD and the systems it is compared with; the workshop half of the project."""
