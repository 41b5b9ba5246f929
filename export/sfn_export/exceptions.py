"""What exporting raises beside the runtime's errors; each stops the export with exit code 2."""

from sfn_rt.exceptions import SfnError


class ExportError(SfnError):
    """A part cannot be exported."""


class ParityError(SfnError):
    """An exported part does not compute what PyTorch computes."""


class RtxError(SfnError):
    """TensorRT-RTX refuses a graph, or cannot be used."""


class EngineError(SfnError):
    """An engine cannot be built, or cannot be compared."""
