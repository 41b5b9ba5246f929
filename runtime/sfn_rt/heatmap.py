"""The source video with the error drawn over it: where in the frame, and when in the video.

The colours have a fixed meaning. `heat_scale` is what 999 of 1000 cells of normal footage stay
below: under half of it nothing is drawn, at twice of it the colour is full. Scaling each frame
to its own maximum would paint something red in every frame of an empty corridor.

Axes: T frames; H, W source pixels; gh, gw cells of the heat grid.
"""

from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from sfn_rt.events import Box, Event
from sfn_rt.plots import decimate
from sfn_rt.scores import VideoScores
from sfn_rt.sinks.files import output_errors

Image = NDArray[np.uint8]  # (H, W, 3), RGB
HeatArray = NDArray[np.floating]  # (T, gh, gw) or (gh, gw)

VISIBLE, FULL = 0.5, 2.0  # times heat_scale: where colour starts, where it is full
OPACITY = 0.6  # of full colour: what lies underneath stays recognisable
LONG_SIDE = (640, 1280)  # pixels: small video is enlarged so that boxes and text can be read
TIME_BASE = Fraction(1, 10_000)  # real timestamps; MPEG-4 allows no denominator above 65535

RED = (232, 48, 60)
PALE = (235, 238, 242)
STRIP_BACK, STRIP_LINE, STRIP_PLAYED, STRIP_TEXT = (
    (17, 21, 27),
    (78, 92, 108),
    (92, 179, 240),
    (196, 205, 214),
)


def _colour_table() -> tuple[Image, NDArray[np.uint8]]:
    """For 256 steps of heat: colour to add (256, 1, 3), share of the picture to keep (256,)."""
    t = np.linspace(0.0, 1.0, 256)
    stops = np.array([(255, 221, 87), (255, 140, 26), (226, 24, 54)], dtype=np.float64)
    colour = np.stack([np.interp(t, (0, 0.45, 1), stops[:, c]) for c in range(3)], axis=-1)
    opacity = OPACITY * t**0.7  # faint heat must still be seen
    added = (colour * opacity[:, None]).round().astype(np.uint8)[:, None]
    return added, (255 * (1 - opacity)).round().astype(np.uint8)


ADDED, KEPT = _colour_table()


def overlay(image: Image, heat: HeatArray, heat_scale: float) -> Image:
    """`image` (H, W, 3) with `heat` (gh, gw) laid over it; NaN cells are not drawn."""
    relative = np.nan_to_num(heat.astype(np.float32) / heat_scale, nan=0.0, posinf=FULL)
    level = np.clip((relative - VISIBLE) / (FULL - VISIBLE), 0.0, 1.0)  # (gh, gw)
    if not level.any():
        return image
    steps = (level * 255).round().astype(np.uint8)
    # In 8 bits throughout: this runs for every pixel of every frame.
    smooth = cv2.resize(steps, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)  # (H, W)
    kept = cv2.multiply(image, cv2.merge([cv2.LUT(smooth, KEPT)] * 3), scale=1 / 255)
    return np.asarray(cv2.add(kept, cv2.LUT(cv2.merge([smooth] * 3), ADDED)), dtype=np.uint8)


def draw_box(image: Image, box: Box, *, scale: float = 1.0, strong: bool = True) -> None:
    """Draw `box` (source pixels, times `scale`) into `image`: red, or faint if not `strong`."""
    height, width = image.shape[:2]
    x, y, w, h = (value * scale for value in box)
    x0, x1 = (int(np.clip(round(v), 1, width - 2)) for v in (x, x + w))
    y0, y1 = (int(np.clip(round(v), 1, height - 2)) for v in (y, y + h))
    if strong:
        cv2.rectangle(image, (x0 - 1, y0 - 1), (x1 + 1, y1 + 1), (0, 0, 0), 4)
        cv2.rectangle(image, (x0, y0), (x1, y1), RED, 2)
        return
    corner = max(3, min(x1 - x0, y1 - y0) // 5)
    for cx, dx in ((x0, corner), (x1, -corner)):
        for cy, dy in ((y0, corner), (y1, -corner)):
            cv2.line(image, (cx, cy), (cx + dx, cy), PALE, 1)
            cv2.line(image, (cx, cy), (cx, cy + dy), PALE, 1)


def usable_box(row: Sequence[float] | NDArray[np.floating] | None) -> Box | None:
    """A box that can be drawn, or None: NaN stands for none."""
    if row is None:
        return None
    x, y, w, h = (float(value) for value in row)
    return (x, y, w, h) if np.isfinite((x, y, w, h)).all() and w > 0 and h > 0 else None


def even(value: float) -> int:
    """The nearest even number of pixels: H.264 stores colour at half the size."""
    return max(2, 2 * round(value / 2))


class ScoreStrip:
    """The causal score under the picture: what has been played is bright, events are shaded."""

    def __init__(
        self, result: VideoScores, events: Sequence[Event], threshold: float, width: int
    ) -> None:
        self.height = 92
        self._head, self._pad = 30, 12  # pixels: the line of text, the margin
        self._width = width
        self._result = result
        self._threshold = threshold
        self._event_at = np.zeros(result.n_frames, dtype=np.int32)  # 0: none
        for number, event in enumerate(events, start=1):
            self._event_at[event.start_frame : event.end_frame + 1] = number
        self._font = cv2.FontFace("sans")
        self._dim = self._curve(STRIP_LINE)
        self._bright = self._curve(STRIP_PLAYED)

    def event_at(self, frame: int) -> int:
        """The number of the event that `frame` belongs to, 0 for none."""
        return int(self._event_at[frame])

    def draw(self, frame: int) -> Image:
        """The strip (height, W, 3) at `frame`."""
        x = self._x(frame)
        strip = self._dim.copy()
        strip[:, :x] = self._bright[:, :x]
        cv2.line(strip, (x, self._head), (x, self.height - 5), PALE, 1)
        score = float(self._result.causal[frame])
        says = f"score {score:.2f}" if np.isfinite(score) else "not scored"
        tenths = int(self._result.time_s[frame] * 10 + 1e-6)
        after = self._write(
            strip, f"{tenths // 600}:{tenths % 600 / 10:04.1f}   {says}", self._pad, STRIP_TEXT
        )
        if number := self.event_at(frame):
            self._write(strip, f"event {number}", after + 22, RED, bold=True)
        limit = f"threshold {self._threshold:.2f}"
        self._write(strip, limit, self._width - self._pad - self._measure(limit), STRIP_LINE)
        return strip

    def _x(self, frame: float) -> int:
        room = self._width - 1 - 2 * self._pad
        return self._pad + round(frame / max(1, self._result.n_frames - 1) * room)

    def _curve(self, colour: tuple[int, int, int]) -> Image:
        strip = np.full((self.height, self._width, 3), STRIP_BACK, dtype=np.uint8)
        top, bottom = self._head + 2, self.height - 7
        score = self._result.causal
        scored = np.flatnonzero(np.isfinite(score))
        highest = max(float(score[scored].max()) if len(scored) else 0.0, self._threshold) * 1.05

        for start, end in _stretches(self._event_at):
            x0, x1 = self._x(start), max(self._x(end - 1), self._x(start) + 1)
            part = strip[top : bottom + 1, x0 : x1 + 1]
            part[:] = (part * 0.65 + np.array(RED) * 0.35).astype(np.uint8)
        level = round(bottom - self._threshold / highest * (bottom - top))
        for x in range(self._pad, self._width - self._pad, 9):
            cv2.line(strip, (x, level), (min(x + 4, self._width - self._pad), level), RED, 1)
        if len(scored):
            frames, scores = decimate(
                scored.astype(np.float64), score[scored], self._width - 2 * self._pad
            )
            y = bottom - np.clip(scores / highest, 0, 1) * (bottom - top)
            points = np.stack([[self._x(f) for f in frames], y.round()], axis=-1).astype(np.int32)
            cv2.polylines(strip, [points], False, colour, 1, cv2.LINE_AA)
        return strip

    def _write(
        self, strip: Image, text: str, x: int, colour: tuple[int, int, int], bold: bool = False
    ) -> int:
        after, _ = cv2.putText(strip, text, (x, 20), colour, self._font, 15, 700 if bold else 400)
        return int(after[0])

    def _measure(self, text: str) -> int:
        _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), self._font, 15, 400)
        return int(width)


class HeatMapVideo:
    """Writes heatmap.mp4 a frame at a time: the picture with its heat, the score strip below."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        result: VideoScores,
        events: Sequence[Event],
        *,
        threshold: float,
        heat_scale: float,
    ) -> None:
        height, width = size
        self.scale = min(max(1.0, LONG_SIDE[0] / max(size)), LONG_SIDE[1] / max(size))
        self._size = (even(width * self.scale), even(height * self.scale))
        self._path = path
        self._result = result
        self._heat_scale = heat_scale
        # A very narrow picture still needs room for the strip's text: bars at its sides.
        self._canvas_width = max(self._size[0], 480)
        self._strip = ScoreStrip(result, events, threshold, self._canvas_width)
        self._last_stamp = -1
        with output_errors(path):
            self._container: OutputContainer = av.open(
                str(path), "w", format="mp4", options={"movflags": "+faststart"}
            )
            try:
                self._stream = self._open_stream()
            except BaseException:
                self._container.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with output_errors(self._path):
                self._container.mux(self._stream.encode(None))
                self._container.close()
            return
        with suppress(OSError):  # the error under way is the one to report
            self._container.close()

    def write(self, frame: int, image: Image, heat: HeatArray) -> None:
        """Add one frame: source pixels (H, W, 3) and its heat (gh, gw)."""
        box = usable_box(self._result.box[frame])
        how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        resized = np.asarray(cv2.resize(image, self._size, interpolation=how), dtype=np.uint8)
        picture = overlay(resized, heat, self._heat_scale)
        if box is not None:
            draw_box(picture, box, scale=self.scale, strong=self._strip.event_at(frame) > 0)
        bar = (self._canvas_width - self._size[0]) // 2
        if bar:
            rest = self._canvas_width - self._size[0] - bar
            picture = np.pad(picture, ((0, 0), (bar, rest), (0, 0)))
        canvas: Image = np.concatenate((picture, self._strip.draw(frame)))
        video_frame = av.VideoFrame.from_ndarray(canvas, format="rgb24")
        video_frame.pts = self._stamp(frame)
        video_frame.time_base = TIME_BASE
        with output_errors(self._path):
            self._container.mux(self._stream.encode(video_frame))

    def _stamp(self, frame: int) -> int:
        seconds = self._result.time_s[frame] - self._result.time_s[0]
        self._last_stamp = max(self._last_stamp + 1, round(float(seconds / TIME_BASE)))
        return self._last_stamp

    def _open_stream(self) -> VideoStream:
        h264 = "libx264" in av.codecs_available
        rate = Fraction(self._result.fps).limit_denominator(1001)
        stream = self._container.add_stream("libx264" if h264 else "mpeg4", rate=rate)
        stream.width, stream.height = self._canvas_width, self._size[1] + self._strip.height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        if h264:
            stream.options = {"preset": "veryfast", "crf": "23"}
        else:
            stream.bit_rate = 4_000_000
        return stream


def _stretches(numbers: NDArray[np.int32]) -> list[tuple[int, int]]:
    """[start, end) of every stretch of one number other than 0."""
    edges = np.flatnonzero(np.diff(numbers, prepend=0, append=0))
    return [(int(a), int(b)) for a, b in pairwise(edges) if numbers[a] != 0]
