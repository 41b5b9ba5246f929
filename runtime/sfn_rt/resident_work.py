"""What a step of resident.py does on the device: parts run on buffers, one after the other.

All of it may be recorded and replayed, so nothing here uploads, downloads or takes an address that
is not the same the next time. Only what a step finds out about its shapes the first time, which is
not recorded, may take memory: where an array has to be moved to begin at a multiple of ALIGNMENT.

Axes: S streams, b frames of a block, h and w the model's frame size.
"""

from collections.abc import Mapping

from sfn_rt.arrivals import Arrivals, Group, Staged
from sfn_rt.backends.device import ALIGNMENT, BATCH, Buffer, DeviceBackend
from sfn_rt.features import OUTPUTS
from sfn_rt.measured import layout_width, measured_layout
from sfn_rt.networks import NetworkSettings
from sfn_rt.ring import Ring


class Work:
    """The parts of a model, the ring they read and write, and what one leaves for the next."""

    def __init__(
        self,
        backend: DeviceBackend,
        settings: NetworkSettings,
        arrivals: Arrivals,
        *,
        streams: int,
        block: int,
    ) -> None:
        self._backend, self._memory = backend, backend.memory
        self._settings, self._arrivals, self._streams = settings, arrivals, streams
        self._most = block * streams  # frames at once
        decoder = backend.parts["decoder"]
        self._inputs = {spec.name: spec.shape for spec in decoder.inputs}
        self._outputs = [spec.name for spec in decoder.outputs if spec.name in OUTPUTS]
        self.layout = measured_layout(self._outputs, settings.visual)
        self.ring = Ring(
            self._memory, self._features(), observed=settings.observed, streams=streams, block=block
        )
        self._buffers = {
            name: self._memory.empty((self._most, *shape), "float32")
            for name, shape in self._between().items()
        }

    @property
    def buffers(self) -> list[Buffer]:
        """To give back."""
        return [*self.ring.buffers, *self._buffers.values()]

    @property
    def has_tokens(self) -> bool:
        """Whether the model has an appearance branch."""
        return "appearance" in self._inputs

    def buffer(self, name: str, b: int) -> Buffer:
        """(b S, ...) of what a part left: "measured", "vision/hidden", ..."""
        return self._buffers[name].rows(0, b * self._streams)

    def encode(self, staged: Staged) -> None:
        """Pictures to the features of the ring."""
        b, ring = staged.b, self.ring
        frame = ring.block("frame", b)
        for group in staged.groups:
            self._prepare(staged, group, frame)
        if "motion" in self._inputs:
            difference = self.difference(frame, ring.block("frame", b, back=1))
            self._run("motion", {"difference": difference}, {"tokens": ring.block("motion", b)})
        if not self.has_tokens:
            return
        seen = {"frame": frame}
        if "vision" in self._backend.parts:
            seen = {name: self.buffer(f"vision/{name}", b) for name in ("hidden", "embedded")}
            self._run("vision", {"frame": frame}, seen)
        encoded = {name: ring.block(name, b) for name in ("tokens", "skip")}
        self._run("appearance", seen, encoded)

    def difference(self, frame: Buffer, previous: Buffer) -> Buffer:
        """frame - previous."""
        to = self._buffers["difference"].rows(0, frame.shape[0])
        self._run("difference", {"frame": frame, "previous": previous}, {"difference": to})
        return to

    def decode(self, b: int) -> None:
        """Windows, decoder, measure; then the ring moves on."""
        ring = self.ring
        feeds = {}
        if self.has_tokens:
            feeds["appearance"] = ring.windows("tokens", b, self._buffers["windows/appearance"])
            feeds["skip"] = ring.block("skip", b, back=1)
        if "motion" in self._inputs:
            feeds["motion"] = ring.windows("motion", b, self._buffers["windows/motion"])
        if "last_frame" in self._inputs:
            feeds["last_frame"] = ring.block("frame", b, back=1)
        there = {"frame": ring.block("frame", b)}
        if "text" in self._inputs:
            feeds["text"] = there["text"] = self._arrivals.text(b)
        predicted = {name: self.buffer(name, b) for name in self._outputs}
        self._run("decoder", feeds, predicted)
        there |= predicted
        wanted = {s.name: there[s.name] for s in self._backend.parts["measure"].inputs}
        self._run("measure", wanted, {"measured": self.buffer("measured", b)})
        ring.advance(b)

    def _prepare(self, staged: Staged, group: Group, frame: Buffer) -> None:
        """Resize and normalise pictures of one size into their streams' places of `frame`."""
        n_streams, row = len(group.streams), frame.row_bytes
        alone = n_streams == self._streams
        to = frame if alone else self._buffers["prepared"].rows(0, staged.b * n_streams)
        rows, columns = self._arrivals.matrices(group.size)
        image = self._arrivals.pictures(staged, group)
        self._run("prepare", {"image": image, "rows": rows, "columns": columns}, {"frame": to})
        if alone:
            return
        for j, stream in enumerate(group.streams):
            self._memory.copy(
                to.pointer + j * row,
                frame.pointer + stream * row,
                width=row,
                rows=staged.b,
                source_pitch=n_streams * row,
                to_pitch=self._streams * row,
            )

    def _run(self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run a part, in pieces where the backend takes no more at once."""
        n = next(iter(outputs.values())).shape[0]
        most = min(n, self._backend.max_batch or n)
        cut = {s.name for s in self._backend.parts[part].inputs if s.shape[0] == BATCH}
        for at in range(0, n, most):
            to = min(n, at + most)
            self._run_aligned(
                part,
                {k: v.rows(at, to) if k in cut else v for k, v in feeds.items()},
                {k: v.rows(at, to) for k, v in outputs.items()},
            )

    def _run_aligned(
        self, part: str, feeds: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
    ) -> None:
        """Run a part, by way of other memory for arrays that begin where it takes none."""
        near = {name: self._aligned(part, name, buffer) for name, buffer in feeds.items()}
        for name, buffer in feeds.items():
            self._copy(buffer, near[name])
        gives = {name: self._aligned(part, name, buffer) for name, buffer in outputs.items()}
        self._backend.run(part, near, gives)
        for name, buffer in outputs.items():
            self._copy(gives[name], buffer)

    def _aligned(self, part: str, name: str, buffer: Buffer) -> Buffer:
        """The buffer itself, or as much memory that begins at a multiple of ALIGNMENT."""
        if buffer.pointer % ALIGNMENT == 0:
            return buffer
        key = f"{part}/{name}/aligned/{buffer.shape[1:]}"
        if key not in self._buffers:
            most = (self._most, *buffer.shape[1:])
            self._buffers[key] = self._memory.empty(most, buffer.dtype)
        return Buffer(self._buffers[key].pointer, buffer.shape, buffer.dtype)

    def _copy(self, source: Buffer, to: Buffer) -> None:
        if source.pointer != to.pointer:
            self._memory.copy(source.pointer, to.pointer, width=source.nbytes)

    def _features(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what the ring keeps of a frame."""
        shapes: dict[str, tuple[int, ...]] = {"frame": self._frame}
        if self.has_tokens:
            shapes |= {name: self._shape("appearance", name) for name in ("tokens", "skip")}
        if "motion" in self._inputs:
            shapes["motion"] = self._shape("motion", "tokens")
        return shapes

    def _between(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what one part leaves for the next within a step."""
        shapes: dict[str, tuple[int, ...]] = {"difference": self._frame}
        shapes["measured"] = (layout_width(self.layout),)
        if self._streams > 1:
            shapes["prepared"] = self._frame
        for name in ("appearance", "motion"):
            if name in self._inputs:
                shapes[f"windows/{name}"] = _fixed(self._inputs[name])
        if "vision" in self._backend.parts:
            for name in ("hidden", "embedded"):
                shapes[f"vision/{name}"] = self._shape("vision", name)
        return shapes | {name: self._shape("decoder", name) for name in self._outputs}

    @property
    def _frame(self) -> tuple[int, ...]:
        return (3, self._settings.preprocessing.height, self._settings.preprocessing.width)

    def _shape(self, part: str, output: str) -> tuple[int, ...]:
        return _fixed(self._backend.parts[part].output(output).shape)


def _fixed(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    """A declared shape without its first axis, the batch."""
    sizes = tuple(axis for axis in shape[1:] if isinstance(axis, int))
    assert len(sizes) == len(shape) - 1, shape
    return sizes
