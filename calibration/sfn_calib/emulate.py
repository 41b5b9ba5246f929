"""Runs graphs of any precision on a CPU, for parity and for the gate."""

from collections.abc import Mapping
from pathlib import Path

from sfn_rt.backends.base import Backend


def open_variant(
    graphs: Mapping[str, Path], precisions: Mapping[str, str], *, threads: int | None = None
) -> Backend:
    """part -> ONNX file, part -> precision; the backend's name says what is emulated."""
    raise NotImplementedError
