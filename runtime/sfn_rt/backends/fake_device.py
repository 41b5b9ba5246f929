"""A device without a GPU or a library: any backend's parts on this processor's buffers.

The device parts are the numpy functions that they stand for. Work is recorded and replayed with the
addresses of the recording, as CUDA graphs do, so tests see what a GPU would do with a buffer that
has moved or an array that begins where it may not.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import partial

import numpy as np

from sfn_rt.backends.base import Array, Arrays, CheckedBackend, PartSpec, TensorSpec
from sfn_rt.backends.device import ALIGNMENT, Buffer, DeviceBackend, HostMemory
from sfn_rt.features import OUTPUTS
from sfn_rt.measured import layout_width, measured_layout
from sfn_rt.networks import NetworkSettings
from sfn_rt.prediction_error import absolute_error, measure_error, semantic_error

Work = Callable[[], None]


class RecordingMemory(HostMemory):
    """Host memory that is late and records, as a GPU's is and does.

    Work waits until somebody looks: an upload reads its host array then, not when it is called. Of
    a key, the first work is done, the second recorded, and from then on the recording is replayed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[Work] = []
        self._tapes: dict[Hashable, list[Work] | None] = {}  # None: was done, not recorded yet
        self._tape: list[Work] | None = None  # that is being recorded

    def do(self, work: Work) -> None:
        """In stream order, or whenever what is being recorded is replayed."""
        (self._waiting if self._tape is None else self._tape).append(work)

    def synchronize(self) -> None:
        """Do what waits."""
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A new array; never while recording."""
        assert self._tape is None, "memory is taken while work is recorded"
        return super().empty(shape, dtype)

    def free(self, buffer: Buffer) -> None:
        """Give an array of `empty` back."""
        self.synchronize()
        super().free(buffer)

    def zero(self, buffer: Buffer) -> None:
        """Set all bytes to 0."""
        self.do(partial(super().zero, buffer))

    def copy(self, source: int, to: int, **how: int) -> None:
        """Copy rows of bytes."""
        self.do(partial(super().copy, source, to, **how))

    def upload(self, host: Array, to: Buffer) -> None:
        """Copy in; never while recording."""
        assert self._tape is None, "an upload is recorded"
        self.do(partial(super().upload, host, to))

    def download(self, buffer: Buffer) -> Array:
        """Copy out; never while recording."""
        assert self._tape is None, "a download is recorded"
        self.synchronize()
        return super().download(buffer)

    def replay(self, key: Hashable, record: Work) -> None:
        """Do, record, replay."""
        if key not in self._tapes:
            self._tapes[key] = None
            record()
            return
        tape = self._tapes[key]
        if tape is None:
            tape = self._recorded(record)
            self._tapes[key] = tape
            self.counts.captures += 1
        self._waiting.extend(tape)
        self.counts.replays += 1

    def forget(self) -> None:
        """Drop what was recorded."""
        self._tapes.clear()

    def _recorded(self, record: Work) -> list[Work]:
        self._tape = []
        try:
            record()
            return self._tape
        finally:
            self._tape = None


class OnHost(DeviceBackend):
    """The parts of a backend, and the device parts of a model with these settings."""

    memory: RecordingMemory

    def __init__(
        self, backend: CheckedBackend, settings: NetworkSettings, max_batch: int | None = None
    ) -> None:
        super().__init__(RecordingMemory())
        self.name = f"{backend.name} on host"
        self.max_batch = max_batch
        self._backend = backend
        self._device = _Device(backend.parts["decoder"], settings)
        self.parts = {**backend.parts, **self._device.parts}

    def run(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Put one batch through a part."""
        for name, buffer in (*feeds.items(), *outputs.items()):
            assert buffer.pointer % ALIGNMENT == 0, f"{part}: {name} begins at {buffer.pointer}"
        self.memory.do(partial(self._run, part, dict(feeds), dict(outputs)))

    def _run(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        arrays = {name: self.memory.array(buffer) for name, buffer in feeds.items()}
        owner = self._device if part in self._device.parts else self._backend
        n = max(buffer.shape[0] for buffer in outputs.values())
        assert self.max_batch is None or n <= self.max_batch, f"{part}: a batch of {n}"
        for name, array in owner.infer(part, arrays, list(outputs)).items():
            self.memory.array(outputs[name])[:] = array


class _Device(CheckedBackend):
    """prepare, difference and measure by numpy."""

    name = "numpy"

    def __init__(self, decoder: PartSpec, settings: NetworkSettings) -> None:
        self._settings = settings
        given = {spec.name: spec for spec in decoder.outputs if spec.name in OUTPUTS}
        self._layout = measured_layout(given, settings.visual)
        p = settings.preprocessing
        frame = TensorSpec("frame", "float32", ("batch", 3, p.height, p.width))
        taken = list(given.values())
        if "next_frame" in given:
            taken.append(frame)
        if "semantic" in given:
            taken.append(TensorSpec("text", "float32", given["semantic"].shape))
        width = layout_width(self._layout)
        self.parts = {
            "prepare": PartSpec(
                (
                    TensorSpec("image", "uint8", ("batch", "height", "width", 3)),
                    TensorSpec("rows", "float32", (p.height, "height")),
                    TensorSpec("columns", "float32", (p.width, "width")),
                ),
                (frame,),
            ),
            "difference": PartSpec.of(
                {"frame": frame.shape, "previous": frame.shape}, {"difference": frame.shape}
            ),
            "measure": PartSpec(
                tuple(taken), (TensorSpec("measured", "float32", ("batch", width)),)
            ),
        }

    def compute(self, part: str, feeds: Arrays, names: object) -> Arrays:
        """As the host does."""
        if part == "prepare":
            planes = feeds["image"].transpose(0, 3, 1, 2).astype(np.float32)  # (B, 3, H, W)
            p = self._settings.preprocessing
            mean, std = (np.array(x, np.float32)[:, None, None] for x in (p.mean, p.std))
            resized = feeds["rows"] @ planes @ feeds["columns"].T
            return {"frame": (resized / np.float32(255) - mean) / std}
        if part == "difference":
            return {"difference": feeds["frame"] - feeds["previous"]}
        return {"measured": self._measure(feeds)}

    def _measure(self, feeds: Arrays) -> Array:
        n = len(next(iter(feeds.values())))
        measured = np.zeros((n, layout_width(self._layout)), np.float32)
        if "semantic" in feeds:
            errors = semantic_error(feeds["semantic"], feeds["text"], self._settings.n_windows)
            measured[:, self._layout["semantic"].start] = errors
        if "distilled" in feeds:
            measured[:, self._layout["distilled"].start] = feeds["distilled"]
        if "next_frame" not in feeds:
            return measured
        width = self._settings.preprocessing.width
        across = width - min(self._settings.visual.box_width, width) + 1
        for row, error in zip(
            measured, absolute_error(feeds["next_frame"], feeds["frame"]), strict=True
        ):
            found = measure_error(error, self._settings.visual)
            x, y = round(found.box[0] * width), round(found.box[1] * error.shape[0])
            row[self._layout["visual"]], row[self._layout["box"]] = found.evidence, y * across + x
            row[self._layout["heat"]] = found.heat.ravel()
        return measured
