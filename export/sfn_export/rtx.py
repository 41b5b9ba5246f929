"""Would TensorRT take these graphs? TensorRT-RTX parses and builds them ahead of time on the CPU.

It is the same parser and the same kinds of refusal as TensorRT's, needs no GPU, and takes seconds:
a gate for every graph that is exported. An int4 variant of a VLM's language model is made for
ONNX Runtime, of operators that TensorRT does not know, and is refused here.

A language model with a key-value cache is used in two ways that no one range of sizes serves: it
reads a whole prompt behind nothing (prefill), then a token at a time behind all that was said
(decode). It gets an optimisation profile for each.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfn_export.exceptions import RtxError

TARGETS = ("SM86", "SM89", "SM120")  # Ampere, Ada and Blackwell cards
Range = tuple[int, int, int]  # smallest, usual, largest
AXES: dict[str, Range] = {"batch": (1, 1, 8), "tokens": (2, 16, 128)}
# Four frames of 256 tokens and a question make about 1100; a caption is cut at 1024 more.
PREFILL: dict[str, Range] = {"sequence": (1, 1100, 2048), "past": (0, 0, 0)}
DECODE: dict[str, Range] = {"sequence": (1, 1, 1), "past": (1, 1200, 4096)}
PLACES = {0: "batch", 1: "tokens"}  # what a dynamic axis without a name is


@dataclass(frozen=True)
class RtxBuild:
    """One graph that built."""

    path: Path
    layers: int
    seconds: float
    megabytes: float  # of the engine for all targets
    profiles: int  # 0: no axis is dynamic


def check_rtx(path: Path, targets: tuple[str, ...] = TARGETS) -> RtxBuild:
    """Parse and build one graph; an RtxError names the operator and node that was refused."""
    trt = _tensorrt_rtx()
    start = time.perf_counter()
    logger = _collector(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RtxError(f"{path}: TensorRT-RTX cannot parse {_refusals(path, parser, logger)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, target), i)
    _add_profiles(builder, config, network, path)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RtxError(f"{path}: TensorRT-RTX cannot build {_refusals(path, parser, logger)}")
    seconds = time.perf_counter() - start
    megabytes = engine.nbytes / 1e6
    return RtxBuild(path, network.num_layers, seconds, megabytes, config.num_optimization_profiles)


def graphs_in(paths: Iterable[Path]) -> list[Path]:
    """The ONNX files among `paths` and in the folders among them."""
    found = [
        g for path in paths for g in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])
    ]
    if absent := [path for path in found if not path.is_file()]:
        raise RtxError(f"{absent[0]} does not exist; give ONNX files or a bundle folder")
    if not found:
        raise RtxError("no ONNX file there; give ONNX files or a bundle folder")
    return found


def foreign_operators(path: Path) -> list[str]:
    """Whose operators a graph uses that are not ONNX's: no TensorRT is asked to build those."""
    import onnx

    used = onnx.load(path, load_external_data=False).graph.node
    return sorted({node.domain for node in used} - {"", "ai.onnx"})


def _tensorrt_rtx() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise RtxError(
            f"tensorrt_rtx cannot be imported ({error}); install it with "
            f"`pip install 'sfn-rt[rtx]'` (Linux x86-64 and Windows)"
        ) from error
    return tensorrt_rtx


def _collector(trt: Any) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc]
        """Keeps what went wrong; TensorRT would print it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Collector()


def _add_profiles(builder: Any, config: Any, network: Any, path: Path) -> None:
    """Give every dynamic axis its range: one profile, or two where there is a past."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    axes = {tensor.name: _axes(tensor) for tensor in tensors}
    named = {axis for shape in axes.values() for axis in shape if isinstance(axis, str)}
    if not named:
        return
    for ranges in (AXES | PREFILL, AXES | DECODE) if "past" in named else (AXES,):
        if unknown := sorted(named - ranges.keys()):
            raise RtxError(
                f"{path}: the axis {unknown[0]!r} has no range of sizes; name it one of "
                f"{sorted(AXES | PREFILL)}"
            )
        profile = builder.create_optimization_profile()
        for name, shape in axes.items():
            sizes = [ranges[axis] if isinstance(axis, str) else (axis,) * 3 for axis in shape]
            if any(isinstance(axis, str) for axis in shape):
                profile.set_shape(name, *zip(*sizes, strict=True))
        if config.add_optimization_profile(profile) < 0:
            used = {axis: ranges[axis] for axis in sorted(named)}
            raise RtxError(f"{path}: TensorRT-RTX refuses the ranges {used} of its dynamic axes")


def _axes(tensor: Any) -> tuple[int | str, ...]:
    """Sizes of a network's input, names where they are dynamic."""
    return tuple(
        (tensor.get_dimension_name(i) or PLACES.get(i, f"axis {i}")) if size == -1 else size
        for i, size in enumerate(tensor.shape)
    )


def _refusals(path: Path, parser: Any, logger: Any) -> str:
    """operator 'node': reason, for everything that the parser or the builder said."""
    named = [_refusal(path, parser.get_error(i)) for i in range(parser.num_errors)]
    said = named or logger.errors or ["the graph, and says no reason"]
    return "; ".join(" ".join(line.split()) for line in dict.fromkeys(said))


def _refusal(path: Path, error: Any) -> str:
    # Some importers leave node and operator out, and only their own name tells the operator.
    operator = error.node_operator() or error.func().removeprefix("import")
    node = error.node_name()
    if not node:
        import onnx

        nodes = onnx.load(path, load_external_data=False).graph.node
        candidates = [n.name for n in nodes if n.op_type == operator]
        node = " or ".join(candidates[:3]) + (" or others" if len(candidates) > 3 else "")
    return f"{operator} {node!r}: {error.desc()}"
