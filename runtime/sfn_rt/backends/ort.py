"""ONNX Runtime on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from sfn_rt.backends.base import Arrays, CheckedBackend, PartSpec, TensorSpec
from sfn_rt.bundle import Bundle
from sfn_rt.exceptions import BackendError, BundleError

PROVIDER = "CPUExecutionProvider"
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
        for part, entry in parts.items():
            if (found := backend.parts[part]) != entry.spec:
                raise BundleError(
                    f"{graphs[part]}: the graph has {found}, the manifest says {entry.spec}; "
                    f"export the model again"
                )
        return backend

    def __exit__(self, *exc_info: object) -> None:
        self._sessions.clear()

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """What the session of `part` says."""
        if part not in self._sessions:
            raise BackendError("ort: the backend is closed; use it inside its `with` block")
        results = self._sessions[part].run(list(names), dict(feeds))
        return dict(zip(names, results, strict=True))


def _open(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({error}); install it with "
            f"`pip install 'sfn-rt[cpu]'` (`sfn-rt doctor` shows what is there)"
        ) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # By default a session's threads spin after their work is done, and there is a session a part
    # and a thread that looks ahead: on two busy cores a frame took 49 ms with spinning, 24 without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(path, options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise BackendError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load this graph: {error}; "
            f"install a newer onnxruntime or export the model again"
        ) from error
    if session.get_providers() != [PROVIDER]:
        raise BackendError(
            f"{path}: asked for {PROVIDER}, the session runs on {session.get_providers()}; "
            f"reinstall with `pip install --force-reinstall 'sfn-rt[cpu]'`"
        )
    return session


def _spec(session: Any) -> PartSpec:
    return PartSpec(
        tuple(_tensor(value) for value in session.get_inputs()),
        tuple(_tensor(value) for value in session.get_outputs()),
    )


def _tensor(value: Any) -> TensorSpec:
    return TensorSpec(value.name, DTYPES.get(value.type, value.type), tuple(value.shape))
