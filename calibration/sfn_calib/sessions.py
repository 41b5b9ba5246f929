"""ONNX Runtime on the CPU for graphs that are in memory or in a precision of their own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnx import ModelProto

from sfn_calib.exceptions import ConversionError
from sfn_calib.graph import write_graph

PROVIDER = "CPUExecutionProvider"
ERRORS_ONLY = 3  # the library warns of constants that it folds


def open_session(path: Path, *, threads: int | None = None, optimised: bool = True) -> Any:
    """A graph ready to run as it is written, or as the library would rewrite it to be faster."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(path, options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise ConversionError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load this graph: {error}"
        ) from error


@contextmanager
def session_of(
    model: ModelProto, *, threads: int | None = None, optimised: bool = True
) -> Iterator[Any]:
    """A session of a graph in memory; large weights are mapped from a temporary file."""
    with tempfile.TemporaryDirectory(prefix="sfn-calib-") as folder:
        path = Path(folder) / "graph.onnx"
        write_graph(model, path)
        yield open_session(path, threads=threads, optimised=optimised)
