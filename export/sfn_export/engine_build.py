"""One graph to one engine through Polygraphy: parsed, strongly typed, built, and looked into.

Polygraphy is the workshop's: it drives `tensorrt` and `tensorrt_rtx` alike and runs what it built
beside ONNX Runtime. The device builds with sfn_rt.engines, which needs nothing but TensorRT; both
use its flavours, profiles and reports. TF32 is off in both: fp32 is fp32.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfn_export.exceptions import EngineError
from sfn_rt.backends.base import PartSpec
from sfn_rt.engines.build import build
from sfn_rt.engines.flavour import Flavour
from sfn_rt.engines.onnx_file import read_onnx
from sfn_rt.engines.profiles import Ranges, stream_profiles
from sfn_rt.engines.report import EngineReport, report_of_inspector, report_of_log

MAX_FRAME = (1080, 1920)  # pixels of a camera
# TensorRT's names of the types that a strongly typed network is made of.
DTYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


@dataclass(frozen=True)
class PartEngine:
    """One engine, and what is known of it without running it."""

    plan: bytes
    report: EngineReport  # what was built: layers and what they fused
    types: Mapping[str, str]  # node -> type of what it gives, as the network was parsed
    profiles: int
    seconds: float


def build_part(
    graph: Path,
    spec: PartSpec,
    flavour: Flavour,
    *,
    targets: Sequence[str] | None,
    max_batch: int,
) -> PartEngine:
    """Build a part's graph; without `targets` for the GPU here."""
    start = time.perf_counter()
    trt, messages = flavour.module, flavour.messages()
    with polygraphy(flavour, messages) as loaders:
        flags = trt.NetworkDefinitionCreationFlag  # TensorRT 11 has no other networks, and no flag
        typed = True if hasattr(flags, "STRONGLY_TYPED") else None
        try:
            network = loaders.network_from_onnx_path(str(graph), strongly_typed=typed)
            types = node_types(network[1], {node.name for node in read_onnx(graph).nodes})
            config = make_config(loaders, spec, targets, max_batch, flavour)
            plan = bytes(loaders.engine_bytes_from_network(network, config=config))
        except loaders.PolygraphyException as error:
            build(graph, flavour, targets=targets)  # says operator, node and reason, and stops
            raise EngineError(f"{graph}: {flavour.title} cannot build it: {error}") from error
        report = layers_of(plan, flavour, messages, graph, loaders)
    n_profiles = len(shapes_of(spec, max_batch))
    return PartEngine(plan, report, types, n_profiles, time.perf_counter() - start)


def node_types(network: Any, nodes: set[str]) -> dict[str, str]:
    """What every node of the graph gives; a strongly typed network is built in these types."""
    found = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.name in nodes and layer.num_outputs:
            name = str(layer.get_output(0).dtype).rpartition(".")[2]
            found[layer.name] = DTYPES.get(name, name.lower())
    return found


def make_config(
    loaders: Any, spec: PartSpec, targets: Sequence[str] | None, max_batch: int, flavour: Flavour
) -> Any:
    """Polygraphy's configuration: profiles, details for the report, and what it is built for."""
    profiles = []
    for shapes in shapes_of(spec, max_batch):
        profile = loaders.Profile()
        for name, sizes in shapes.items():
            profile.add(name, *sizes)
        profiles.append(profile)
    settings: dict[str, Any] = {
        "profiles": profiles,
        "profiling_verbosity": flavour.module.ProfilingVerbosity.DETAILED,
    }
    if not flavour.ahead_of_time:
        return loaders.CreateConfig(**settings)
    if targets is None:
        config = loaders.CreateConfigRTX(use_gpu=True, **settings)
    else:
        numbers = [divmod(int(target.removeprefix("SM")), 10) for target in targets]
        config = loaders.CreateConfigRTX(compute_capabilities=numbers, **settings)

    def without_tf32(builder: Any, network: Any, config: Any) -> None:
        config.clear_flag(flavour.module.BuilderFlag.TF32)

    return loaders.PostprocessConfig(config, without_tf32)


def shapes_of(spec: PartSpec, max_batch: int) -> list[dict[str, list[tuple[int, ...]]]]:
    """For each profile, of each input with a dynamic axis: smallest, usual and largest shape."""
    profiles: list[dict[str, list[tuple[int, ...]]]] = []
    for ranges in stream_profiles(max_batch, MAX_FRAME):
        shapes = {
            tensor.name: _sizes(tensor.shape, ranges)
            for tensor in spec.inputs
            if any(isinstance(axis, str) for axis in tensor.shape)
        }
        if shapes and shapes not in profiles:
            profiles.append(shapes)
    return profiles


def _sizes(shape: tuple[int | str, ...], ranges: Ranges) -> list[tuple[int, ...]]:
    return [
        tuple(ranges[axis][end] if isinstance(axis, str) else axis for axis in shape)
        for end in range(3)
    ]


def layers_of(
    plan: bytes, flavour: Flavour, messages: Any, graph: Path, loaders: Any
) -> EngineReport:
    """From the builder's log where it tells, else from the engine's inspector, on a GPU."""
    nodes = read_onnx(graph).nodes
    if messages.layers or flavour.ahead_of_time:
        return report_of_log(messages.layers, nodes)
    engine = loaders.engine_from_bytes(plan)
    wanted = flavour.module.LayerInformationFormat.JSON
    text = engine.create_engine_inspector().get_engine_information(wanted)
    return report_of_inspector(text, nodes)


@contextlib.contextmanager
def polygraphy(flavour: Flavour, messages: Any) -> Iterator[Any]:
    """Polygraphy's loaders for a flavour; what TensorRT says goes to `messages`, not the screen."""
    import polygraphy.config

    # Which TensorRT Polygraphy drives is one setting of the process, read at its first import.
    polygraphy.config.USE_TENSORRT_RTX = flavour.ahead_of_time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it sets a timing cache, a no-op now
        from polygraphy.backend import tensorrt_rtx, trt
        from polygraphy.backend.trt import util
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        if str(util.trt.__name__) != flavour.module.__name__:
            raise EngineError(
                f"Polygraphy drives {util.trt.__name__} already in this process; build with "
                f"{flavour.module.__name__} in another one"
            )
        before, util.TRT_LOGGER = util.TRT_LOGGER, messages
        try:
            with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
                yield _Loaders(trt, tensorrt_rtx, PolygraphyException)
        finally:
            util.TRT_LOGGER = before


class _Loaders:
    """What is used of Polygraphy, under one name."""

    def __init__(self, trt: Any, rtx: Any, error: type[Exception]) -> None:
        self.PolygraphyException = error
        self.Profile, self.CreateConfig = trt.Profile, trt.CreateConfig
        self.PostprocessConfig = trt.PostprocessConfig
        self.CreateConfigRTX = rtx.CreateConfigRTX
        self.network_from_onnx_path = trt.network_from_onnx_path
        self.engine_bytes_from_network = trt.engine_bytes_from_network
        self.engine_from_bytes = trt.engine_from_bytes
        self.TrtRunner = trt.TrtRunner
