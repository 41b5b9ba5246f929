"""What a step brings from the host, in one upload: pictures and the captions' embeddings.

    | captions (b S, K S') float32 | pictures of one size (b, S_1, H_1, W_1, 3) | another's ...

They are written side by side into pinned memory and cross in one piece. Two such places take turns,
so the next step can be written while the device works on this one. Captions that are on the device
already are left out.

Cameras may differ in size, and a camera may change its own: pictures of one size are resized
together, with matrices that are uploaded once for each size.

Axes: S streams, b frames of a block, H and W a camera's height and width, K captions of S' numbers.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from sfn_rt.backends.base import Array
from sfn_rt.backends.device import ALIGNMENT, Buffer, Memory
from sfn_rt.preprocess import Preprocessing, resize_matrix
from sfn_rt.ring import frames_first

SIZES = 8  # of cameras, at least, whose matrices are kept


@dataclass(frozen=True)
class Group:
    """Pictures of one size."""

    size: tuple[int, int]  # H, W
    streams: tuple[int, ...]
    offset: int  # bytes, from the first picture


@dataclass(frozen=True)
class Staged:
    """A block that waits in pinned memory."""

    b: int
    groups: tuple[Group, ...]
    nbytes: int  # of the pictures
    place: int  # which of the two pinned places


class Arrivals:
    """The way in for S streams."""

    def __init__(
        self, memory: Memory, spec: Preprocessing, *, streams: int, block: int, text_width: int
    ) -> None:
        self._memory, self._spec, self._streams, self._block = memory, spec, streams, block
        self._text_shape = (block * streams, text_width)
        self._before = _aligned(4 * prod(self._text_shape))  # bytes that captions take
        self._places: list[Array] = []
        self._device: Buffer | None = None
        self._next = 0
        self._text: Array | None = None  # as it is on the device
        self._matrices: OrderedDict[tuple[int, int], tuple[Buffer, Buffer]] = OrderedDict()

    @property
    def buffers(self) -> list[Buffer]:
        """To give back."""
        held = [] if self._device is None else [self._device]
        return held + [buffer for pair in self._matrices.values() for buffer in pair]

    def stage(self, images: Sequence[Array]) -> Staged:
        """Write a block's pictures, (b, H, W, 3) of each stream, where the device takes them."""
        b = self._check(images)
        groups, nbytes = _grouped(images)
        most, _ = _grouped(images, frames=self._block)
        self._fit(most[-1].offset + _group_bytes(most[-1], self._block))
        place, self._next = self._next, 1 - self._next
        pictures = self._places[place][self._before :]
        for group in groups:
            shape = (b, len(group.streams), *group.size, 3)
            target = pictures[group.offset : group.offset + prod(shape)].reshape(shape)
            for j, stream in enumerate(group.streams):
                target[:, j] = images[stream]
        return Staged(b, groups, nbytes, place)

    def upload(self, staged: Staged, text: Array | None = None, *, pictures: bool = True) -> None:
        """Send what is new of the pictures and captions (S, b, K S'): one upload, or none."""
        host, device = self._places[staged.place], self._device
        assert device is not None
        first = self._before
        if text is not None and (self._text is None or not np.array_equal(text, self._text)):
            rows = frames_first(np.asarray(text, np.float32))  # (b S, K S')
            if rows.shape != (staged.b * self._streams, self._text_shape[1]):
                raise ValueError(f"{self._streams} x {staged.b} captions expected: {text.shape}")
            host[: rows.nbytes] = rows.reshape(-1).view(np.uint8)
            self._text, first = np.array(text), 0
        last = self._before + staged.nbytes if pictures else self._before
        if last > first:
            self._memory.upload(host[first:last], device.rows(first, last))

    def text(self, b: int) -> Buffer:
        """(b S, K S') of the captions."""
        assert self._device is not None
        shape = (b * self._streams, self._text_shape[1])
        return Buffer(self._device.pointer, shape, "float32")

    def pictures(self, staged: Staged, group: Group) -> Buffer:
        """(b S_g, H, W, 3)."""
        assert self._device is not None
        shape = (staged.b * len(group.streams), *group.size, 3)
        return Buffer(self._device.pointer + self._before + group.offset, shape, "uint8")

    def matrices(self, size: tuple[int, int]) -> tuple[Buffer, Buffer]:
        """(h, H) and (w, W), which resize a camera's pictures; uploaded when first asked for."""
        if size not in self._matrices:
            if len(self._matrices) >= max(SIZES, self._streams):
                _, old = self._matrices.popitem(last=False)
                self._give_back(*old)
            self._matrices[size] = self._upload_matrices(size)
        self._matrices.move_to_end(size)
        return self._matrices[size]

    def _upload_matrices(self, size: tuple[int, int]) -> tuple[Buffer, Buffer]:
        targets = (self._spec.height, self._spec.width)
        pair = []
        for n_in, n_out in zip(size, targets, strict=True):
            matrix = resize_matrix(n_in, n_out, self._spec.resize)
            pair.append(self._memory.empty(matrix.shape, "float32"))
            self._memory.upload(matrix, pair[-1])
        return pair[0], pair[1]

    def _check(self, images: Sequence[Array]) -> int:
        if len(images) != self._streams:
            raise ValueError(f"{self._streams} streams expected, got {len(images)}")
        b = len(images[0])
        if not 1 <= b <= self._block:
            raise ValueError(f"a block has 1 to {self._block} frames, got {b}")
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 4 or image.shape[::3] != (b, 3):
                raise ValueError(
                    f"pictures must be uint8[{b}, height, width, 3], got "
                    f"{image.dtype}{list(image.shape)}"
                )
        return b

    def _fit(self, pictures: int) -> None:
        """Room for so many bytes of pictures, now and for the other of the two places."""
        needed = self._before + pictures
        if self._device is not None:
            if needed <= self._device.nbytes:
                return
            needed = max(needed, 2 * self._device.nbytes)  # so that little pinned memory is left
            self._give_back(self._device)
        self._device = self._memory.empty((needed,), "uint8")
        self._places = [self._memory.pinned(needed) for _ in range(2)]
        self._text = None

    def _give_back(self, *buffers: Buffer) -> None:
        self._memory.synchronize()
        self._memory.forget()
        for buffer in buffers:
            self._memory.free(buffer)


def _grouped(images: Sequence[Array], frames: int | None = None) -> tuple[tuple[Group, ...], int]:
    """The streams of each size, and the bytes of all, for blocks of `frames` (None: as given)."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for stream, image in enumerate(images):
        sizes.setdefault((image.shape[1], image.shape[2]), []).append(stream)
    groups, offset, end = [], 0, 0
    for size, streams in sizes.items():
        groups.append(Group(size, tuple(streams), offset))
        end = offset + _group_bytes(groups[-1], frames or len(images[0]))
        offset = _aligned(end)
    return tuple(groups), end


def _group_bytes(group: Group, b: int) -> int:
    return b * len(group.streams) * prod(group.size) * 3


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
