"""SFN-VAD runtime: scores video for anomalies from an exported bundle, without torch."""

__version__ = "0.1.0"
