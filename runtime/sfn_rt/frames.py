"""Turns a video file or a folder of frame images into upright 8-bit RGB frames with times.

    source = open_source(path)          # reads the first frame, so a bad file fails here
    for frame in source: ...            # once, in order, one frame in memory at a time

A file that breaks midway still yields what decodes; `FrameSource.problem` then says what is
missing. Times are the container's own timestamps counted from the first frame.

Video is decoded by PyAV alone: OpenCV's reader aborts the whole process on some AVI files.

Axes: H, W frame height and width in pixels, after rotation.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from sfn_rt.exceptions import VideoError

Image = NDArray[np.uint8]  # (H, W, 3), RGB

ASSUMED_FPS = 25.0
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset(
    {
        *(".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg"),
        *(".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob"),
        *(".webm", ".wmv", ".y4m"),
    }
)

GAP_S = 0.25  # a longer pause between two frames is more than an uneven rate
RESTART_S = 1.0  # a timestamp this far back is a new clock, not two frames out of order

FPS_ASSUMED = f"frames a second not stated, {ASSUMED_FPS:g} assumed; pass --fps"

# FFmpeg reads these text formats as animations or as lists of other files to open.
TEXT_FORMATS = frozenset({"tty", "concat", "hls", "dash", "imf"})


@dataclass(frozen=True)
class Frame:
    """One upright picture and where it belongs in its video."""

    index: int  # 0-based
    time_s: float  # since the first frame
    image: Image  # (H, W, 3)


class FrameSource(ABC):
    """A video being read: what is known of it beforehand, its frames once, what went wrong."""

    path: Path
    name: str
    fps: float  # the average, where the rate varies
    fps_known: bool  # False: ASSUMED_FPS
    n_frames: int | None  # an estimate, for progress only
    height: int
    width: int
    warnings: list[str]  # grows while reading
    problem: str | None  # set when decoding ended early or left frames out

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem if path.is_file() else path.resolve().name
        self.warnings = []
        self.problem = None
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        if self._started:
            raise RuntimeError(f"{self.path}: a frame source is read once; open it again")
        self._started = True
        return self._read()

    @abstractmethod
    def _read(self) -> Iterator[Frame]: ...

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; safe to call twice."""

    def _check_size(self, height: int, width: int, where: str) -> None:
        if (height, width) != (self.height, self.width):
            raise VideoError(
                f"{self.path}: frame size changes from {self.width}x{self.height} to "
                f"{width}x{height} at {where}; score the parts as separate videos"
            )

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _decoded(self, n_decoded: int, reason: str) -> str:
        total = f" of about {self.n_frames}" if self.n_frames else ""
        return f"decoded {n_decoded}{total} frames: {reason}"


def open_source(path: Path, *, fps: float | None = None, threads: int = 0) -> FrameSource:
    """Open a video file, or a folder of frame images in natural order, at its first frame.

    `fps` replaces what the file states; `threads` is the decoder's, 0 for its own choice.
    """
    if fps is not None and not 0.0 < fps < float("inf"):
        raise VideoError(f"--fps must be a positive number of frames a second, got {fps}")
    if path.is_dir():
        return FrameFolder(path, fps=fps)
    if not path.exists():
        raise VideoError(f"{path} does not exist; give a video file or a folder of frame images")
    return VideoFile(path, fps=fps, threads=threads)


def count_frames(path: Path) -> int:
    """Frames of a folder or a video file without decoding: its images, or its packets."""
    if path.is_dir():
        return len(frame_files(path))
    container = _open_container(path)
    try:
        stream = _video_stream(container, path)
        return sum(1 for packet in container.demux(stream) if packet.size)
    except FFmpegError as error:
        raise VideoError(f"{path}: its frames cannot be counted ({_reason(error)})") from None
    finally:
        container.close()


# ---------------------------------------------------------------------------- video files


class VideoFile(FrameSource):
    """Frames of a video file, through FFmpeg."""

    def __init__(self, path: Path, *, fps: float | None = None, threads: int = 0) -> None:
        super().__init__(path)
        self._container = _open_container(path)
        try:
            self._stream = _video_stream(self._container, path)
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.thread_count = threads
            self._set_rate(fps)
            self._fps_given = fps is not None
            # Joined transport streams mark whole packets as corrupt; there the decoder decides.
            self._is_transport = "mpegts" in self._container.format.name
            self._cut_short = False
            self._n_packets = 0
            self._n_damaged = 0
            self._reached_s = 0.0  # where the last packet of any stream ends
            self._decoding = self._decode()
            self._start()
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        self._container.close()

    def _set_rate(self, given: float | None) -> None:
        stated = self._stream.average_rate or self._stream.guessed_rate
        known = stated is not None and 0 < stated <= 1000  # clock rates are no frame rates
        self.fps = given or (float(stated) if stated is not None and known else ASSUMED_FPS)
        self.fps_known = given is not None or known
        if not self.fps_known:
            self._warn(FPS_ASSUMED)
        self.n_frames = self._stream.frames or None
        if self.n_frames is None and self._container.duration is not None and known:
            assert stated is not None
            self.n_frames = round(self._container.duration / av.time_base * float(stated)) or None

    def _start(self) -> None:
        """Read the first frame, which alone tells the rotation and the size."""
        self._first = next(self._decoding, None)
        if self._first is None:
            why = self._damage() or "it holds no frames"
            raise VideoError(f"{self.path}: no frame can be decoded: {why}")
        self._matrix = _display_matrix(self._first)
        if self._matrix is not None and abs(self._first.rotation) % 90:
            self._warn(f"rotated by {self._first.rotation} degrees; taken as the nearest 90")
        bits = max(component.bits for component in self._first.format.components)
        if bits > 8:
            self._warn(f"{bits}-bit samples, scaled to 8 bits")
        turned = self._matrix is not None and _swaps_axes(self._matrix)
        self._coded = (self._first.height, self._first.width)
        self.height, self.width = self._coded[::-1] if turned else self._coded

    def _read(self) -> Iterator[Frame]:
        clock = _Clock(self.fps, self._stream, ignore_stamps=self._fps_given)
        # AVI holds no presentation times: FFmpeg's guess is wrong wherever frames are reordered.
        in_decoding_order = "avi" in self._container.format.name
        frame = self._first
        self._first = None
        index = 0
        while frame is not None:
            time_s = clock.time_s(frame.dts if in_decoding_order else frame.pts, index)
            if (frame.height, frame.width) != self._coded:
                turned = self._coded != (self.height, self.width)
                size = (frame.width, frame.height) if turned else (frame.height, frame.width)
                self._check_size(size[0], size[1], where=f"frame {index} ({time_s:.2f} s)")
            # One thread: swscale would start its own for every single frame, at twice the time.
            image = frame.to_ndarray(format="rgb24", threads=1)
            image = np.ascontiguousarray(image, dtype=np.uint8)  # FFmpeg pads rows
            image = image if self._matrix is None else _turn(image, self._matrix)
            yield Frame(index, time_s, image)
            index += 1
            frame = next(self._decoding, None)
        self.warnings.extend(clock.remarks())
        if damage := self._damage():
            self.problem = self._decoded(index, damage)

    def _decode(self) -> Iterator[VideoFrame]:
        """Yield every intact frame, stepping over what the decoder refuses."""
        for packet in self._packets():
            if packet.is_corrupt and not self._is_transport:
                self._n_damaged += 1  # a decoder that refuses it loses frames before it, too
                continue
            try:
                frames = packet.decode()
            except FFmpegError:
                self._n_damaged += 1
                continue
            for frame in frames:
                assert isinstance(frame, VideoFrame)
                if frame.is_corrupt:
                    self._n_damaged += 1
                else:
                    yield frame

    def _packets(self) -> "Iterator[Packet[Any]]":
        """Yield the video stream's packets, an empty one to drain the decoder last."""
        try:
            for packet in self._container.demux():
                if packet.size:
                    self._note(packet)
                if packet.stream.index == self._stream.index:
                    yield packet
        except FFmpegError:
            self._cut_short = True
            drain: Packet[Any] = Packet()
            drain.stream = self._stream
            yield drain

    def _note(self, packet: "Packet[Any]") -> None:
        self._n_packets += packet.stream.index == self._stream.index
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None and packet.time_base is not None:
            end = float((stamp + (packet.duration or 0)) * packet.time_base)
            self._reached_s = max(self._reached_s, end)

    def _damage(self) -> str | None:
        """Say what is missing, once everything has been read."""
        reasons = []
        if self._cut_short or self._ends_early():
            reasons.append("the file is cut short")
        if self._n_damaged > bool(reasons):  # one broken packet is where the cut went through
            reasons.append("damaged data left out")
        return " and ".join(reasons) or None

    def _ends_early(self) -> bool:
        """Whether far less was found than the header states; some headers are a little off."""
        if "mp4" in self._container.format.name:
            return _whole_boxes(self.path) < self.path.stat().st_size
        stated = self._stream.frames
        if stated:
            return stated - self._n_packets > max(2, 0.02 * stated)
        if "matroska" in self._container.format.name and self._container.duration is not None:
            stated_s = self._container.duration / av.time_base
            return stated_s - self._reached_s > max(0.5, 0.02 * stated_s)
        return False


class _Clock:
    """Times from timestamps, and from the frame rate where a timestamp cannot be right."""

    def __init__(self, fps: float, stream: VideoStream, *, ignore_stamps: bool) -> None:
        self._step_s = 1.0 / fps
        self._tick_s = float(stream.time_base or 0)
        self._ignore = ignore_stamps or not self._tick_s
        self._zero_s: float | None = None  # the timestamp that counts as time 0
        self._last_s = -self._step_s
        self._n_uneven = 0
        self._n_gaps = 0
        self._n_repaired = 0

    def time_s(self, stamp: int | None, index: int) -> float:
        """Seconds since the first frame, always later than the frame before."""
        if self._ignore:
            return index * self._step_s
        expected_s = self._last_s + self._step_s
        time_s = expected_s
        if stamp is not None:
            stamp_s = stamp * self._tick_s
            if self._zero_s is None:
                self._zero_s = stamp_s - expected_s
            time_s = stamp_s - self._zero_s
            if time_s <= self._last_s - RESTART_S:  # a clock that wrapped or started again
                self._zero_s = stamp_s - expected_s
                time_s = expected_s
                self._n_repaired += 1
            elif time_s <= self._last_s:
                time_s = self._last_s + 0.01 * self._step_s
                self._n_repaired += 1
            elif time_s - expected_s > max(GAP_S, 5 * self._step_s):
                self._n_gaps += 1
            elif abs(time_s - expected_s) > max(0.25 * self._step_s, 1.5 * self._tick_s):
                self._n_uneven += 1
        self._last_s = time_s
        return time_s

    def remarks(self) -> Iterator[str]:
        if self._n_uneven >= 3:  # one or two are dropped frames
            yield "the frame rate varies; times are the file's own timestamps"
        if self._n_gaps:
            yield f"gaps in the timestamps: {self._n_gaps}; recording paused, or data was lost"
        if self._n_repaired:
            yield f"timestamps out of order, corrected: {self._n_repaired}"


def _open_container(path: Path) -> InputContainer:
    try:
        container = _open_url(f"file:{path.resolve()}")
    except (FFmpegError, OSError) as error:
        whole = _whole_boxes(path) if _is_mp4(path) else 0
        try:
            if not whole:
                raise error
            # FFmpeg refuses fragments whose last header is cut; those before it are intact.
            container = _open_url(f"subfile,,start,0,end,{whole},,:{path.resolve()}")
        except (FFmpegError, OSError):
            raise VideoError(f"{path}: {_why_unreadable(path, error)}") from None
    if set(container.format.name.split(",")) & TEXT_FORMATS:
        container.close()
        raise VideoError(f"{path}: a text file, not a video; give a video or a folder of frames")
    return container


def _open_url(url: str) -> InputContainer:
    # The protocol and the whitelist keep odd names and playlists from reaching anything else.
    return av.open(url, options={"protocol_whitelist": "file,subfile"})


def _is_mp4(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "may not be read; change its permissions"
    if path.stat().st_size == 0:
        return "the file is empty; copy or record it again"
    if _is_mp4(path):
        return (
            "the index of this mp4 (moov) is missing or damaged, as when a recording was cut "
            "off; repair it from a whole recording of the same camera, or record mkv"
        )
    return f"not a video that FFmpeg can read ({_reason(error)}); convert it to mp4 or mkv"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # a music file's cover
            return stream
    raise VideoError(f"{path}: no video in it; give a video file or a folder of frame images")


def _whole_boxes(path: Path) -> int:
    """Where the last whole box of an mp4 ends; each is headed by its size and kind.

    A fragment's header (moof) without its samples (mdat) does not count as whole.
    """
    file_size = path.stat().st_size
    start = whole = 0
    with path.open("rb") as file:
        while start < file_size:
            file.seek(start)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            if len(header) >= 8 and (size == 0 or not kind.isalnum()):
                return file_size  # a box up to the end; or padding behind the last one
            start += max(size, 8)
            if start <= file_size and kind != b"moof":
                whole = start
    return whole


# ---------------------------------------------------------------------------- rotation


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """The (a, b, c, d) of x' = a x + c y, y' = b x + d y; None where nothing turns."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype=np.int32).tolist()
    upright = a > 0 and d > 0 and not _swaps_axes((a, b, c, d))
    return None if upright else (a, b, c, d)


def _swaps_axes(matrix: tuple[int, int, int, int]) -> bool:
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def _turn(image: Image, matrix: tuple[int, int, int, int]) -> Image:
    """Apply the quarter turn and mirroring that a display matrix asks for."""
    a, b, c, d = matrix
    mirror_x, mirror_y = (c < 0, b < 0) if _swaps_axes(matrix) else (a < 0, d < 0)
    turned: Any = cv2.transpose(image) if _swaps_axes(matrix) else image
    if mirror_x and mirror_y:
        turned = cv2.flip(turned, -1)
    elif mirror_x or mirror_y:
        turned = cv2.flip(turned, 1 if mirror_x else 0)
    return np.asarray(turned, dtype=np.uint8)


# ---------------------------------------------------------------------------- folders


class FrameFolder(FrameSource):
    """Frames from a folder of images, in the natural order of their names."""

    def __init__(self, path: Path, *, fps: float | None = None) -> None:
        super().__init__(path)
        self._files = frame_files(path)
        if not self._files:
            raise VideoError(f"{path}: {_why_no_frames(path)}")
        self.fps = fps or ASSUMED_FPS
        self.fps_known = fps is not None
        if fps is None:
            self._warn(FPS_ASSUMED)
        self.n_frames = len(self._files)
        self._first: Image | None = self._load(self._files[0])
        self.height, self.width = self._first.shape[:2]

    def close(self) -> None:
        self._first = None

    def _read(self) -> Iterator[Frame]:
        for index, file in enumerate(self._files):
            try:
                image = self._load(file) if index or self._first is None else self._first
            except VideoError as error:
                self.problem = self._decoded(index, str(error))
                return
            self._first = None
            self._check_size(image.shape[0], image.shape[1], where=file.name)
            yield Frame(index, index / self.fps, image)

    def _load(self, file: Path) -> Image:
        """Read one picture as 8-bit RGB, turned as its EXIF says."""
        try:
            coded = np.fromfile(file, dtype=np.uint8)  # cv2.imread cannot open every name
        except OSError as error:
            raise VideoError(f"{file}: cannot be read ({_reason(error)})") from None
        if file.suffix.lower() in {".jpg", ".jpeg"} and b"\xff\xd9" not in coded.tobytes():
            # OpenCV fills what is missing with grey and says nothing.
            raise VideoError(f"{file}: a JPEG cut short; copy it again or remove it")
        image: Any = None
        if coded.size:
            image = cv2.imdecode(coded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if image is None:
            raise VideoError(
                f"{file}: not a readable image of 8 or 16 bits; replace it or remove it"
            )
        if image.dtype == np.uint16:
            self._warn("16-bit samples, scaled to 8 bits")
            image = cv2.convertScaleAbs(image, alpha=1 / 257)  # 65535 -> 255
        if image.dtype != np.uint8:
            raise VideoError(f"{file}: samples are {image.dtype}; save it with 8 or 16 bits")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def frame_files(folder: Path) -> list[Path]:
    """The frame images of a folder in natural order: 2.jpg before 10.jpg."""
    return files_with_suffix(folder, IMAGE_SUFFIXES)


def files_with_suffix(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The visible files of a folder with one of these suffixes, in natural order."""
    found = (
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in suffixes and not entry.name.startswith(".") and entry.is_file()
    )
    return sorted(found, key=natural_key)


def natural_key(path: Path) -> tuple[tuple[str | int, ...], str]:
    """Order for names with numbers in them: a2 before a10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    # Splitting on a group alternates text and digits, so like is always compared with like.
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), path.name


def _why_no_frames(folder: Path) -> str:
    videos = files_with_suffix(folder, VIDEO_SUFFIXES)
    if videos:
        return f"a folder of videos, not of frames; give one of them, such as {videos[0].name}"
    return f"a folder without frame images ({' '.join(sorted(IMAGE_SUFFIXES))})"
