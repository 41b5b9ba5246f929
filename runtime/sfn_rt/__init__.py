"""SFN-VAD runtime: scores video for anomalies from an exported bundle, without torch."""

import os

__version__ = "0.1.0"

# Since 1.29 ONNX Runtime reports on its use to its maker unless told otherwise before it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
