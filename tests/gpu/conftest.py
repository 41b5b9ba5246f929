"""What runs on a GPU, on every way to it that works there.

On a device scripts/gpu_check.py names the bundles ($SFN_GPU_BUNDLES, as PATH lists folders); in the
workshop a tiny one is exported. A route that this machine lacks skips with the reason.
SFN_GPU_ROUTES=cpu runs the tests that need no engine on this processor: do they themselves work?
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfn_rt.backends.base import Array, PartSpec
from sfn_rt.backends.device import DeviceBackend
from sfn_rt.bundle import FULL, Bundle, load_bundle
from sfn_rt.exceptions import SfnError
from sfn_rt.networks import NetworkSettings
from sfn_rt.prediction_error import VisualConfig

ROUTES = ("tensorrt", "tensorrt-rtx", "cuda")
PRECISIONS = (FULL, "fp16", "bf16", "int8", "fp8")
NAMED = [Path(p) for p in os.environ.get("SFN_GPU_BUNDLES", "").split(os.pathsep) if p]
ASKED = tuple(os.environ.get("SFN_GPU_ROUTES", ",".join(ROUTES)).split(","))
SIZES = {"tokens": 7, "height": 40, "width": 60}  # of dynamic axes besides the batch
Open = Callable[..., AbstractContextManager[DeviceBackend]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a bundle, a route and a precision, named after them."""
    if "bundle_path" in metafunc.fixturenames:
        samples = [(p.parent / "model.json").is_file() for p in NAMED]
        names = [p.parent.name if s else p.name for p, s in zip(NAMED, samples, strict=True)]
        names = names or ["tiny"]
        metafunc.parametrize("bundle_path", NAMED or [None], ids=names, indirect=True)
    if "engine_route" in metafunc.fixturenames:
        routes = [route for route in ASKED if route.startswith("tensorrt")]
        metafunc.parametrize("engine_route", routes or ["none"], scope="session")
    elif "route" in metafunc.fixturenames:
        metafunc.parametrize("route", ASKED, scope="session")
    if "precision" in metafunc.fixturenames:
        metafunc.parametrize("precision", PRECISIONS)


@pytest.fixture(scope="session")
def any_route() -> None:
    """Skip before anything is exported where no route works at all."""
    reasons = {route: why_not(route) for route in ASKED}
    if all(reasons.values()):
        pytest.skip("; ".join(f"{route}: {reason}" for route, reason in reasons.items()))


@pytest.fixture(scope="session")
def bundle_path(request: pytest.FixtureRequest, any_route: None) -> Path:
    """A folder that was named, else the tiny bundle."""
    return request.param or request.getfixturevalue("tiny_bundle")


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    """Opened, every file checked."""
    opened = load_bundle(bundle_path)
    if not opened.manifest.device:
        pytest.skip(f"{bundle_path} keeps no stream on a device")
    return opened


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where engines are kept: $SFN_ENGINES, so that what was built before is used."""
    named = os.environ.get("SFN_ENGINES")
    return Path(named) if named else tmp_path_factory.mktemp("engines")


@pytest.fixture
def open_backend(bundle: Bundle, engines: Path) -> Open:
    """Open the bundle on a route; its engines are built where there are none."""

    @contextmanager
    def opened(route: str, precision: str = FULL) -> Iterator[DeviceBackend]:
        if precision not in (FULL, *bundle.manifest.precisions):
            pytest.skip(f"the bundle has no {precision}")
        usable(route)
        if route.startswith("tensorrt"):
            build(bundle, route, precision, engines)
        with on_route(bundle, route, precision, engines) as backend:
            yield backend

    return opened


@pytest.fixture
def settings(bundle: Bundle) -> NetworkSettings:
    """As scoring makes them of the manifest."""
    manifest = bundle.manifest
    return NetworkSettings(
        observed=manifest.observed,
        preprocessing=manifest.preprocessing,
        visual=VisualConfig(**manifest.visual),  # type: ignore[arg-type]
        n_windows=len(manifest.semantics.windows) if manifest.semantics else 1,
    )


def usable(route: str) -> None:
    """Skip where this machine has no GPU or not this library, saying which."""
    if (reason := why_not(route)) is not None:
        pytest.skip(reason)


@cache
def why_not(route: str) -> str | None:
    """Why a route cannot be used here, None where it can."""
    if route == "cpu":
        return None
    if route == "none":
        return "SFN_GPU_ROUTES names no route with engines"
    try:
        if route == "cuda":
            from sfn_rt.backends.ort import open_memory

            open_memory("cuda").close()
        else:
            from sfn_rt.backends.cuda import find_gpu
            from sfn_rt.engines.flavour import load_flavour
            from sfn_rt.engines.parts import targets_here

            targets_here(load_flavour(route), find_gpu())
    except SfnError as error:
        return str(error)
    return None


def build(bundle: Bundle, route: str, precision: str, engines: Path, **how: Any) -> Any:
    """What `sfn-rt build` does."""
    from sfn_rt.engines.command import BuildOptions, build_engines

    options = BuildOptions(backend=route, precision=precision, engines=engines, **how)
    return build_engines(bundle.folder, options)


def on_route(bundle: Bundle, route: str, precision: str, engines: Path) -> DeviceBackend:
    """A backend, nothing built."""
    if route in ("cpu", "cuda"):
        from sfn_rt.backends.ort import OrtDevice

        if precision in ("bf16", "fp8"):
            pytest.skip(f"ONNX Runtime has no {precision} kernels for these graphs")
        provider: Any = route
        return OrtDevice.from_bundle(bundle, provider=provider, precision=precision)
    from sfn_rt.backends.trt import TrtBackend

    return TrtBackend.from_bundle(bundle, flavour=route, precision=precision, cache=engines)


def random_feeds(spec: PartSpec, batch: int, seed: int = 0) -> dict[str, Array]:
    """Ordinary values without zeros, which would tie the router's scores."""
    random = np.random.default_rng(seed)
    feeds = {}
    for tensor in spec.inputs:
        shape = [
            ({"batch": batch} | SIZES)[axis] if isinstance(axis, str) else axis
            for axis in tensor.shape
        ]
        whole = tensor.dtype in ("int64", "uint8")
        values = random.integers(1, 5, shape) if whole else random.standard_normal(shape)
        feeds[tensor.name] = values.astype(tensor.dtype)
    return feeds


def random_text(backend: DeviceBackend, streams: int, block: int) -> Array | None:
    """Captions' embeddings, None for a model without."""
    widths = [s.shape[1] for s in backend.parts["decoder"].inputs if s.name == "text"]
    if not widths:
        return None
    random = np.random.default_rng(1)
    return random.standard_normal((streams, block, int(widths[0]))).astype(np.float32)


@pytest.fixture
def feeds() -> Callable[..., dict[str, Array]]:
    """Inputs of a part."""
    return random_feeds


@pytest.fixture
def text() -> Callable[..., Array | None]:
    """Captions of a block."""
    return random_text


@pytest.fixture
def builder() -> Callable[..., Any]:
    """Builds engines as `sfn-rt build` does."""
    return build


@pytest.fixture
def opener() -> Callable[..., DeviceBackend]:
    """Opens a route without building."""
    return on_route
