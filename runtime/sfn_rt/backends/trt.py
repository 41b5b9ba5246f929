"""TensorRT engines on a GPU: `tensorrt` 10 and 11 and TensorRT-RTX by one code path.

Engines come from the cache of `sfn-rt build`; what does not fit this GPU, this TensorRT or this
bundle is refused with the reason and the command that builds what does. All parts run in the
memory's one stream and share one piece of scratch memory.

A context's inner state follows the shapes it was last given, and a recorded CUDA graph refers to
that state. So a recording gets contexts of its own, and they live as long as it does.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from sfn_rt.backends.base import check_feeds, find_part
from sfn_rt.backends.cuda import MEGABYTE, CudaMemory
from sfn_rt.backends.device import Buffer, DeviceBackend
from sfn_rt.bundle import FULL, Bundle
from sfn_rt.engines.cache import EngineCache
from sfn_rt.engines.flavour import load_flavour
from sfn_rt.engines.opened import OpenEngine, Profile, Shapes
from sfn_rt.engines.parts import build_command, engine_parts
from sfn_rt.exceptions import BackendError, InputError


class TrtBackend(DeviceBackend):
    """One engine a part, opened at once and closed together."""

    def __init__(
        self,
        name: str,
        memory: CudaMemory,
        engines: Mapping[str, OpenEngine],
        messages: Any,
        rebuild: Callable[..., str],
    ) -> None:
        """Engines that are on the GPU already; `rebuild` says by which command others are made."""
        super().__init__(memory)
        self.name = name
        self._gpu, self._messages, self._rebuild = memory, messages, rebuild
        self._engines = dict(engines)
        self.parts = {part: engine.spec for part, engine in engines.items()}
        self.max_batch = min(
            (engine.max_batch for engine in engines.values() if engine.max_batch), default=None
        )
        self._contexts: dict[tuple[str, int], Any] = {}  # (part, profile) -> for single runs
        self._scratch_at = self._scratch_memory()

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        flavour: str = "tensorrt",
        precision: str = FULL,
        cache: Path | None = None,
        max_batch: int | None = None,
        device: int = 0,
    ) -> Self:
        """Open the engines of a bundle; `max_batch` asks for some that take as many frames."""
        library = load_flavour(flavour)
        parts = list(engine_parts(bundle, precision))
        folder = EngineCache.at(cache)
        rebuild = partial(build_command, bundle.folder, flavour, precision, engines=cache)
        memory = CudaMemory(device)
        try:
            messages, engines = library.messages(), {}
            for part in parts:
                found = folder.find(part.wanted(library, memory.gpu, max_batch))
                if isinstance(found, str):
                    raise BackendError(
                        f"{folder.folder}: no engine for {part.name} in {part.precision} on "
                        f"{memory.gpu.name}: {found}; build it with "
                        f"{rebuild(max_batch=max_batch)}"
                    )
                path = part.graph.path
                engines[part.name] = OpenEngine.load(
                    part.name, part.spec, found, path, library, messages
                )
            return cls(flavour, memory, engines, messages, rebuild)
        except BaseException:
            memory.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[:1] == (None,):
            for engine in self._engines.values():
                engine.save_kernels()
        super().__exit__(*exc_info)  # waits for what is under way
        self._contexts.clear()
        self._engines.clear()

    def run(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Put one batch through a part's engine into the stream."""
        spec = find_part(self.name, self.parts, part)
        if part not in self._engines:
            raise BackendError(f"{self.name}: the backend is closed; use it inside its `with`")
        check_feeds(self.name, part, spec.inputs, feeds)  # type: ignore[arg-type]
        context = self._context(part, {name: buffer.shape for name, buffer in feeds.items()})
        for name, buffer in feeds.items():
            self._expect(context.set_input_shape(name, buffer.shape), part, f"shape of {name!r}")
            self._place(context, part, name, buffer)
        for tensor in spec.outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            buffer = outputs.get(tensor.name) or self._unasked(part, tensor.name, shape)
            if buffer.shape != shape or buffer.dtype != tensor.dtype:
                raise InputError(
                    f"{self.name}: {part}: output {tensor.name!r} is {tensor.dtype}{list(shape)}, "
                    f"the buffer for it {buffer.dtype}{list(buffer.shape)}"
                )
            self._place(context, part, tensor.name, buffer)
        if self._gpu.recording is not None:
            self._check_recordable(context, part)
        self._expect(context.execute_async_v3(self.memory.stream), part, "run")

    def _place(self, context: Any, part: str, name: str, buffer: Buffer) -> None:
        placed = context.set_tensor_address(name, buffer.pointer)
        self._expect(placed, part, f"address {buffer.pointer:#x} of {name!r}")

    def _context(self, part: str, shapes: Shapes) -> Any:
        engine = self._engines[part]
        profile = engine.profile_for(shapes)
        if profile is None:
            raise InputError(self._too_large(engine, shapes))
        recording = self._gpu.recording
        if recording is None:
            return self._kept_context(self._contexts, (part, profile.index), engine, profile)
        key = (part, *sorted(shapes.items()))
        return self._kept_context(recording.kept, key, engine, profile)

    def _check_recordable(self, context: Any, part: str) -> None:
        # TensorRT cannot be asked, and what has no loops of its own, as here, can be recorded.
        asks = getattr(context, "is_stream_capturable", None)
        if asks is not None and not asks(self.memory.stream):
            raise BackendError(
                f"{self.name}: {part} cannot be part of a CUDA graph; build it again with "
                f"{self._rebuild()}"
            )

    def _too_large(self, engine: OpenEngine, shapes: Shapes) -> str:
        sizes = {
            axis: size
            for tensor in engine.spec.inputs
            for axis, size in zip(tensor.shape, shapes[tensor.name], strict=True)
        }
        batch, height, width = (sizes.get(axis) for axis in ("batch", "height", "width"))
        larger = self._rebuild(
            max_batch=batch if batch is not None and batch > (self.max_batch or batch) else None,
            max_frame=(height, width) if height is not None and width is not None else None,
        )
        largest = {name: list(shape) for name, shape in engine.profiles[-1].largest.items()}
        arrived = {name: list(shape) for name, shape in shapes.items()}
        return (
            f"{self.name}: {engine.part}: the engine takes up to {largest}, got {arrived}; build a "
            f"larger one with {larger}"
        )

    def _kept_context(
        self, kept: dict[Any, Any], key: object, engine: OpenEngine, profile: Profile
    ) -> Any:
        if key not in kept:
            kept[key] = engine.context(profile, self.memory.stream, self._scratch_at)
        return kept[key]

    def _unasked(self, part: str, name: str, shape: tuple[int, ...]) -> Buffer:
        """Where an output goes that nobody wants: an engine writes all that it has."""
        dtype = self.parts[part].output(name).dtype
        return self._scratch((part, f"{name}, unasked"), shape, dtype)

    def _expect(self, done: bool, part: str, what: str) -> None:
        if not done:
            raise BackendError(
                f"{self.name}: {part} refuses the {what}: {self._messages.said()}; if it stays, "
                f"build the engine again with {self._rebuild()}"
            )

    def _scratch_memory(self) -> tuple[int, int]:
        """One piece for all engines, or a BackendError that says what batch would fit."""
        needed = max((e.scratch_bytes() for e in self._engines.values()), default=0)
        free, total = self._gpu.free_bytes()
        if needed > free:
            fits = self._batch_that_fits(free)
            way = (
                f"a max batch of about {fits} fits: {self._rebuild(max_batch=fits)}"
                if fits
                else "not even a batch of 1 fits; take a lower --precision or another GPU"
            )
            raise BackendError(
                f"{self._gpu.name}: engines for {self.max_batch} frames at once need "
                f"{needed / MEGABYTE:.0f} MB beside their weights, {free / MEGABYTE:.0f} of "
                f"{total / MEGABYTE:.0f} MB are free; {way}"
            )
        return self.memory.empty((max(1, needed),), "uint8").pointer, needed

    def _batch_that_fits(self, free: int) -> int:
        """About how many frames at once the scratch memory would do for; 0: none."""
        engines, low, high = list(self._engines.values()), 0, self.max_batch or 1
        while low < high:
            batch = (low + high + 1) // 2
            need = max(engine.scratch_bytes_at(batch) for engine in engines)
            low, high = (batch, high) if need <= free else (low, batch - 1)
        return low
