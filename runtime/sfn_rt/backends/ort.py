"""ONNX Runtime: on the CPU with the host's arrays, and on a device's buffers by IO binding.

`OrtBackend` is what a device without a GPU scores with. `OrtDevice` runs the same graphs where a
`Memory` lies: CUDA for a GPU's (the second route beside TensorRT), the CPU for `HostMemory`. Which
provider runs is read from the session, since the library falls back to the CPU without an error
and lists CUDA as available where no GPU is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from sfn_rt.backends.base import Arrays, CheckedBackend, PartSpec, TensorSpec
from sfn_rt.backends.device import Buffer, DeviceBackend, HostMemory, Memory
from sfn_rt.bundle import FULL, Bundle
from sfn_rt.exceptions import BackendError, BundleError

PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
Provider = Literal["cpu", "cuda"]
BINDINGS = 64  # kept: what is bound is the same at every step of a stream
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}


class OrtBackend(CheckedBackend):
    """One session a part, opened at once and closed together."""

    name = "ort"

    def __init__(self, graphs: Mapping[str, Path], *, threads: int | None = None) -> None:
        """Open part -> ONNX file. `threads` is for each operator; None lets the library choose."""
        self._sessions = {part: _open(path, threads) for part, path in graphs.items()}
        self.parts: Mapping[str, PartSpec] = {
            part: _spec(session) for part, session in self._sessions.items()
        }

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        threads: int | None = None,
        variants: Mapping[str, str] | None = None,
    ) -> Self:
        """Open a bundle's parts; `variants` picks other files than the manifest's defaults."""
        parts = bundle.manifest.parts
        chosen = {part: (variants or {}).get(part, entry.default) for part, entry in parts.items()}
        graphs = {part: bundle.graph(part, variant) for part, variant in chosen.items()}
        backend = cls(graphs, threads=threads)
        _check_specs(backend.parts, {part: entry.spec for part, entry in parts.items()}, graphs)
        return backend

    def __exit__(self, *exc_info: object) -> None:
        self._sessions.clear()

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """What the session of `part` says."""
        if part not in self._sessions:
            raise BackendError("ort: the backend is closed; use it inside its `with` block")
        results = self._sessions[part].run(list(names), dict(feeds))
        return dict(zip(names, results, strict=True))


class OrtDevice(DeviceBackend):
    """Sessions that read and write a memory's buffers, on the provider that this memory is for."""

    records = False  # a session allocates while it runs, which cannot be part of a recording

    def __init__(
        self, graphs: Mapping[str, Path], memory: Memory, *, threads: int | None = None
    ) -> None:
        """Open part -> ONNX file where `memory` lies."""
        super().__init__(memory)
        kind, _ = memory.device
        self.name = f"ort-{kind}"
        providers = [_provider(memory)]
        self._sessions = {part: _open(path, threads, providers) for part, path in graphs.items()}
        self.parts: Mapping[str, PartSpec] = {
            part: _spec(session) for part, session in self._sessions.items()
        }
        self._bindings: dict[object, Any] = {}

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        provider: Provider = "cuda",
        precision: str = FULL,
        device: int = 0,
        threads: int | None = None,
    ) -> Self:
        """Open a bundle's parts and those that keep a stream on the device."""
        manifest = bundle.manifest
        entries = {**manifest.parts, **manifest.device}
        graphs = {**bundle.graphs(precision), **bundle.device_graphs()}
        memory = open_memory(provider, device)
        try:
            backend = cls(graphs, memory, threads=threads)
            specs = {part: entry.spec for part, entry in entries.items()}
            _check_specs(backend.parts, specs, graphs)
        except BaseException:
            memory.close()
            raise
        return backend

    def __exit__(self, *exc_info: object) -> None:
        self._bindings.clear()
        self._sessions.clear()
        super().__exit__(*exc_info)

    def run(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Bound to the buffers; the session waits for nothing that is in the same stream."""
        if part not in self._sessions:
            raise BackendError(f"{self.name}: the backend is closed; use it inside its `with`")
        key = (part, *sorted(feeds.items()), *sorted(outputs.items()))
        if key not in self._bindings:
            if len(self._bindings) >= BINDINGS:
                self._bindings.clear()
            self._bindings[key] = self._bind(part, feeds, outputs)
        self._sessions[part].run_with_iobinding(self._bindings[key], _in_stream_order())

    def _bind(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Any:
        binding = self._sessions[part].io_binding()
        where = self.memory.device
        for name, buffer in feeds.items():
            binding.bind_input(name, *where, buffer.dtype, buffer.shape, buffer.pointer)
        for name, buffer in outputs.items():
            binding.bind_output(name, *where, buffer.dtype, buffer.shape, buffer.pointer)
        return binding


def open_memory(provider: Provider, device: int = 0) -> Memory:
    """The memory that a provider computes in; BackendError where the library has no such one."""
    if provider == "cpu":
        return HostMemory()
    ort = _onnxruntime("gpu")
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise BackendError(
            f"onnxruntime {ort.__version__} is the build without CUDA; "
            f"`pip uninstall onnxruntime` and then `pip install 'sfn-rt[gpu]'` (both own one "
            f"import name, so one must go first), or use --backend cpu"
        )
    from sfn_rt.backends.cuda import CudaMemory

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's libraries where pip put them
    return CudaMemory(device)


def _provider(memory: Memory) -> str | tuple[str, dict[str, str]]:
    kind, number = memory.device
    if kind == "cpu":
        return PROVIDER
    return CUDA_PROVIDER, {
        "device_id": str(number),
        "user_compute_stream": str(memory.stream),
        # fp32 is fp32: by default products are of 10 bits, which the evidence and the router see.
        "use_tf32": "0",
        # By default every kernel is tried at each new shape, and the fastest then differs by run.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _in_stream_order() -> Any:
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _check_specs(
    found: Mapping[str, PartSpec], said: Mapping[str, PartSpec], graphs: Mapping[str, Path]
) -> None:
    for part, spec in said.items():
        if found[part] != spec:
            raise BundleError(
                f"{graphs[part]}: the graph has {found[part]}, the manifest says {spec}; "
                f"export the model again"
            )


def _onnxruntime(extra: str) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({error}); install it with "
            f"`pip install 'sfn-rt[{extra}]'` (`sfn-rt doctor` shows what is there)"
        ) from error
    return ort


def _open(path: Path, threads: int | None, providers: Sequence[Any] = (PROVIDER,)) -> Any:
    asked = providers[0] if isinstance(providers[0], str) else providers[0][0]
    extra = "cpu" if asked == PROVIDER else "gpu"
    ort = _onnxruntime(extra)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # By default a session's threads spin after their work is done, and there is a session a part
    # and a thread that looks ahead: on two busy cores a frame took 49 ms with spinning, 24 without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise BackendError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load this graph: {error}; "
            f"install a newer onnxruntime or export the model again"
        ) from error
    _check_provider(path, session.get_providers(), asked, extra)
    return session


def _check_provider(path: Path, found: Sequence[str], asked: str, extra: str) -> None:
    """A session that runs elsewhere than it was asked to is an error."""
    # A session on CUDA names the CPU too: small arithmetic on shapes is done there.
    if found[0] == asked and (asked != PROVIDER or len(found) == 1):
        return
    way_out = f"reinstall with `pip install --force-reinstall 'sfn-rt[{extra}]'`"
    if asked == CUDA_PROVIDER:
        way_out += "; it needs an NVIDIA GPU, and its driver and CUDA libraries must fit"
    raise BackendError(
        f"{path}: asked for {asked}, the session runs on {list(found)}; {way_out}"
        f" (`sfn-rt doctor` shows what is there)"
    )


def _spec(session: Any) -> PartSpec:
    return PartSpec(
        tuple(_tensor(value) for value in session.get_inputs()),
        tuple(_tensor(value) for value in session.get_outputs()),
    )


def _tensor(value: Any) -> TensorSpec:
    return TensorSpec(value.name, DTYPES.get(value.type, value.type), tuple(value.shape))
