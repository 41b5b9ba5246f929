"""The one place where a bundle's system decides how its videos become evidence."""

from sfn_rt.evidence import EvidenceStream, Perception, Stream
from sfn_rt.reconstruction import ReconstructionStream


def open_stream(perception: Perception) -> Stream:
    """A stream for one video."""
    if perception.system == "dual-memory":
        return ReconstructionStream(perception)
    return EvidenceStream(perception)
