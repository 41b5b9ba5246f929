"""Which ways to the GPU work on this machine, and why the others do not.

    python benchmarks/gpu_routes.py [BUNDLE]

With a bundle, ONNX Runtime's CUDA provider is asked with a session of its own: where its libraries
do not fit it falls back without an error. Ends with one line of JSON.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sfn_rt.backends.base import PartSpec
from sfn_rt.backends.device import DeviceBackend
from sfn_rt.bundle import FULL, Bundle, load_bundle
from sfn_rt.engines.cache import EngineCache
from sfn_rt.exceptions import SfnError

ROUTES = ("tensorrt", "tensorrt-rtx", "cuda")
ON_CPU = "cpu"  # the same code on this processor: for tests of the benchmark


def main() -> None:
    bundle = load_bundle(Path(sys.argv[1])) if len(sys.argv) > 1 else None
    print(json.dumps({name: ask(name, bundle) for name in ROUTES}))


def ask(name: str, bundle: Bundle | None) -> dict[str, Any]:
    """{"works", "version", "why"} of one route."""
    try:
        version = ask_cuda(bundle) if name == "cuda" else ask_tensorrt(name)
    except SfnError as error:
        return {"works": False, "version": None, "why": str(error)}
    return {"works": True, "version": version, "why": None}


def ask_tensorrt(name: str) -> str:
    """The version; SfnError where it is not installed or does not know this GPU."""
    from sfn_rt.backends.cuda import find_gpu
    from sfn_rt.engines.flavour import load_flavour

    flavour, gpu = load_flavour(name), find_gpu()
    target = gpu.architecture.replace("sm_", "SM")
    if flavour.ahead_of_time and target not in flavour.targets:
        raise SfnError(
            f"{flavour.title} knows no {target}, which {gpu.name} is; it has "
            f"{', '.join(flavour.targets)}"
        )
    return flavour.version


def ask_cuda(bundle: Bundle | None) -> str:
    """The version of ONNX Runtime; SfnError where a session does not run on the GPU."""
    from sfn_rt.backends.ort import OrtDevice, open_memory

    memory = open_memory("cuda")
    graphs = bundle.graphs() if bundle is not None else {}
    one = {part: path for part, path in graphs.items() if part == "motion"}
    with OrtDevice(one, memory):
        import onnxruntime

        return str(onnxruntime.__version__)


def open_route(
    stack: ExitStack, name: str, bundle: Bundle, precision: str = FULL, engines: Path | None = None
) -> DeviceBackend:
    """A bundle's parts on a route; closed with `stack`."""
    from sfn_rt.backends.choose import open_backend
    from sfn_rt.backends.ort import OrtDevice
    from sfn_rt.options import BackendOptions

    if name == ON_CPU:
        return stack.enter_context(
            OrtDevice.from_bundle(bundle, provider="cpu", precision=precision)
        )
    folder = engines if name.startswith("tensorrt") else None
    options = BackendOptions(name=name, precision=precision, engines=folder)  # type: ignore[arg-type]
    backend = stack.enter_context(open_backend(bundle, options))
    assert isinstance(backend, DeviceBackend)
    return backend


def open_graph(
    stack: ExitStack, route: str, graph: Path, spec: PartSpec, engines: Path | None = None
) -> DeviceBackend:
    """One graph that is in no bundle; its engine is built if it has to be."""
    from sfn_rt.backends.ort import OrtDevice, open_memory

    if route in ("cuda", ON_CPU):
        memory = open_memory("cpu" if route == ON_CPU else "cuda")
        return stack.enter_context(OrtDevice({graph.stem: graph}, memory))
    return stack.enter_context(_engine_of(graph, spec, route, EngineCache.at(engines)))


def _engine_of(graph: Path, spec: PartSpec, route: str, cache: EngineCache) -> DeviceBackend:
    from sfn_rt.backends.cuda import CudaMemory
    from sfn_rt.backends.trt import TrtBackend
    from sfn_rt.engines.build import EngineOptions, build
    from sfn_rt.engines.flavour import load_flavour
    from sfn_rt.engines.onnx_file import read_onnx
    from sfn_rt.engines.opened import OpenEngine
    from sfn_rt.engines.parts import EnginePart, targets_here

    library, memory = load_flavour(route), CudaMemory()
    part = EnginePart(graph.stem, FULL, spec, read_onnx(graph))
    try:
        wanted = part.wanted(library, memory.gpu)
        record = cache.find(wanted)
        if isinstance(record, str):
            options = EngineOptions(max_batch=16)
            targets = targets_here(library, memory.gpu)
            built = build(part.graph, library, targets=targets, options=options)
            record = cache.put(wanted, options, built)
        messages = library.messages()
        engine = OpenEngine.load(part.name, spec, record, graph, library, messages)
        again = f"`rm {record.path}` and this benchmark"
        return TrtBackend(route, memory, {part.name: engine}, messages, lambda **how: again)
    except BaseException:
        memory.close()
        raise


if __name__ == "__main__":
    main()
