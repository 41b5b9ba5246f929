"""Reading video: times, rotation, odd formats, and every way a file can be broken."""

import os
import socket
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from sfn_rt.exceptions import VideoError
from sfn_rt.frames import FrameSource, natural_key, open_source

RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 200, 30), (30, 30, 220), (128, 128, 128)
FASTSTART = {"movflags": "faststart"}


def corners(height: int, width: int) -> np.ndarray:
    """Top left red, top right green, bottom left blue, bottom right grey: turning shows."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    h, w = height // 2, width // 2
    image[:h, :w], image[:h, w:], image[h:, :w], image[h:, w:] = RED, GREEN, BLUE, GREY
    return image


def textured(height: int, width: int, seed: int) -> np.ndarray:
    """A picture that does not compress away, so that half a file is half the video."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_video(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    times_ms: Sequence[int] | None = None,
    turn: tuple[float, bool, bool] | None = None,
    options: dict[str, str] | None = None,
    source_format: str = "rgb24",
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        gop = {"g": "5", "sc_threshold": "0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=gop)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1  # the same bytes every time
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format=source_format)
            frame.time_base = Fraction(1, rate if times_ms is None else 1000)
            frame.pts = index if times_ms is None else times_ms[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_images(folder: Path, images: Sequence[np.ndarray], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{index}{suffix}"), image[..., ::-1])
    return folder


def corner_colours(image: np.ndarray) -> list[tuple[int, ...]]:
    height, width = image.shape[:2]
    places = [(h, w) for h in (height // 4, 3 * height // 4) for w in (width // 4, 3 * width // 4)]
    return [tuple(image[place].tolist()) for place in places]


def assert_corners(image: np.ndarray, expected: Sequence[tuple[int, int, int]]) -> None:
    np.testing.assert_allclose(corner_colours(image), expected, atol=12)  # video is lossy


def read(path: Path, **options: float) -> tuple[FrameSource, list[float]]:
    with open_source(path, **options) as source:
        return source, [frame.time_s for frame in source]


# ---------------------------------------------------------------------------- what works


def test_video_frames_arrive_in_order_with_times_and_colours(tmp_path):
    levels = [0, 40, 80, 120, 160, 200, 240]
    images = [np.full((48, 64, 3), level, dtype=np.uint8) for level in levels]
    path = write_video(tmp_path / "clip.mp4", images, rate=10)
    with open_source(path) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(7))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(7) / 10, atol=1e-9)
    np.testing.assert_allclose([frame.image.mean() for frame in frames], levels, atol=3)
    assert {(frame.image.shape, frame.image.dtype) for frame in frames} == {
        ((48, 64, 3), np.dtype(np.uint8))
    }
    assert (source.name, source.fps, source.fps_known, source.n_frames) == ("clip", 10.0, True, 7)
    assert (source.height, source.width) == (48, 64)
    assert source.warnings == []
    assert source.problem is None


def test_video_is_rgb_not_bgr(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [corners(48, 64)] * 3)
    with open_source(path) as source:
        assert_corners(next(iter(source)).image, [RED, GREEN, BLUE, GREY])


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix_is_honoured(tmp_path, degrees, hflip, vflip):
    path = write_video(tmp_path / "c.mp4", [corners(48, 64)] * 3, turn=(degrees, hflip, vflip))
    upright = np.rot90(corners(48, 64), degrees // 90)  # counter-clockwise, as FFmpeg counts
    upright = upright[:, ::-1] if hflip else upright
    upright = upright[::-1] if vflip else upright
    with open_source(path) as source:
        frames = list(source)
    assert (source.height, source.width) == upright.shape[:2]
    assert source.warnings == []
    for frame in frames:
        assert frame.image.shape == upright.shape
        assert frame.image.flags.c_contiguous
        assert_corners(frame.image, corner_colours(upright))


def test_phone_turned_to_portrait_comes_out_upright(tmp_path):
    """A file whose header holds the matrix every phone writes for 90 degrees clockwise."""
    path = write_video(tmp_path / "phone.mp4", [corners(48, 64)] * 3)
    data = bytearray(path.read_bytes())
    unity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    portrait = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30], dtype=">i4")
    place = data.find(unity, data.find(b"tkhd"))
    assert place > 0
    data[place : place + len(unity)] = portrait.tobytes()
    path.write_bytes(data)
    with open_source(path) as source:
        frame = next(iter(source))
    assert (source.height, source.width) == (64, 48)
    assert_corners(frame.image, [BLUE, RED, GREY, GREEN])  # clockwise


def test_variable_frame_rate_keeps_the_files_timestamps(tmp_path):
    times_ms = [500, 540, 640, 650, 900, 940, 1100, 1110, 1200, 1300]
    images = [textured(48, 64, seed) for seed in range(len(times_ms))]
    path = write_video(tmp_path / "vfr.mkv", images, times_ms=times_ms)
    source, times = read(path)
    np.testing.assert_allclose(times, (np.array(times_ms) - 500) / 1000, atol=1e-6)
    assert any("frame rate varies" in warning for warning in source.warnings)
    assert source.problem is None


def test_a_pause_in_the_recording_is_kept_and_mentioned(tmp_path):
    times_ms = [0, 40, 80, 5080, 5120, 5160]
    path = write_video(tmp_path / "p.mkv", [textured(48, 64, 1)] * 6, times_ms=times_ms)
    source, times = read(path)
    np.testing.assert_allclose(times, np.array(times_ms) / 1000, atol=1e-6)
    assert any("gaps in the timestamps: 1" in warning for warning in source.warnings)


def test_given_fps_replaces_the_files(tmp_path):
    path = write_video(tmp_path / "clip.mp4", [corners(48, 64)] * 4, rate=25)
    source, times = read(path, fps=5.0)
    assert source.fps == 5.0
    np.testing.assert_allclose(times, [0.0, 0.2, 0.4, 0.6])


def test_clock_that_starts_again_keeps_counting(tmp_path):
    parts = []
    for number in range(2):
        part = tmp_path / f"{number}.ts"
        write_video(part, [textured(48, 64, seed) for seed in range(30)])
        parts.append(part.read_bytes())
    whole = tmp_path / "whole.ts"
    whole.write_bytes(b"".join(parts))
    source, times = read(whole)
    assert len(times) == 60
    assert np.diff(times).min() > 0
    assert times[-1] == pytest.approx(59 / 25, abs=0.2)
    assert any("out of order, corrected: 1" in warning for warning in source.warnings)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.avi", "mpeg4", "yuv420p"),
        ("b.mkv", "ffv1", "yuv420p"),
        ("c.mp4", "libx264", "yuv444p"),
        ("d.avi", "mjpeg", "yuvj420p"),
    ],
)
def test_odd_sizes(tmp_path, name, codec, pix_fmt):
    path = write_video(tmp_path / name, [corners(37, 53)] * 5, codec=codec, pix_fmt=pix_fmt)
    with open_source(path) as source:
        frames = list(source)
    assert len(frames) == 5
    assert frames[0].image.shape == (37, 53, 3) == (source.height, source.width, 3)
    assert frames[0].image.flags.c_contiguous
    assert_corners(frames[-1].image, [RED, GREEN, BLUE, GREY])


def test_raw_stream_without_timestamps_or_rate(tmp_path):
    path = write_video(tmp_path / "raw.h264", [corners(48, 64)] * 6)
    source, times = read(path, fps=12.5)
    np.testing.assert_allclose(times, np.arange(6) / 12.5)
    source, times = read(path)
    np.testing.assert_allclose(times, np.arange(6) / source.fps)
    assert source.warnings == []


def test_sixteen_bit_video_is_scaled_not_wrapped(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))  # (H, W)
    path = write_video(
        tmp_path / "deep.mkv",
        [ramp] * 3,
        codec="ffv1",
        pix_fmt="gray16le",
        source_format="gray16le",
    )
    with open_source(path) as source:
        image = next(iter(source)).image
    np.testing.assert_allclose(image[..., 1], ramp / 257, atol=2)
    assert source.warnings == ["16-bit samples, scaled to 8 bits"]


def test_one_grey_colour_throughout(tmp_path):
    path = write_video(tmp_path / "grey.mp4", [np.full((48, 64, 3), 128, np.uint8)] * 6)
    with open_source(path) as source:
        images = [frame.image for frame in source]
    assert len(images) == 6
    np.testing.assert_allclose(np.stack(images), 128, atol=2)
    assert source.problem is None


def test_raw_dib_avi_that_aborts_opencv():
    root = os.environ.get("SFN_DATA")
    path = Path(root or "", "smoke", "raw_dib_48x48.avi")
    if root is None or not path.exists():
        pytest.skip("SFN_DATA is unset, or lacks smoke/raw_dib_48x48.avi")
    source, times = read(path)
    assert len(times) == 51
    assert (source.height, source.width, source.fps) == (48, 48, 15.0)
    np.testing.assert_allclose(times, np.arange(51) / 15)
    assert source.problem is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's memory counter")
def test_memory_does_not_grow_with_the_video(tmp_path):
    path = write_video(tmp_path / "long.mp4", [corners(480, 640)] * 250)

    def resident_mb() -> float:  # frames live in FFmpeg's buffers, which tracemalloc cannot see
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    used = []
    with open_source(path) as source:
        for _ in source:
            used.append(resident_mb())
    assert len(used) == 250
    assert used[-1] - used[49] < 40  # the 200 frames between are 176 MB


def test_a_source_is_read_once(tmp_path):
    with open_source(write_video(tmp_path / "clip.mp4", [corners(48, 64)] * 3)) as source:
        list(source)
        with pytest.raises(RuntimeError, match="read once"):
            iter(source)


# ---------------------------------------------------------------------------- broken videos


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cut.mp4", FASTSTART),
        ("cut.mov", FASTSTART),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("cut.mkv", {}),
        ("cut.avi", {}),
    ],
)
def test_truncated_video_yields_what_decodes_and_says_so(tmp_path, name, options):
    images = [textured(64, 96, seed) for seed in range(60)]
    path = cut(write_video(tmp_path / name, images, options=options), 0.6)
    source, times = read(path)
    assert 25 <= len(times) <= 40
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=2e-3)
    assert source.problem is not None
    assert source.problem.startswith(f"decoded {len(times)}")
    assert "cut short" in source.problem
    if name == "cut.mp4":
        assert "of about 60 frames" in source.problem


@pytest.mark.parametrize("n_bytes", [3, 7, 8, 20, 45, 80, 120, None])
def test_fragments_cut_within_a_header_yield_the_whole_ones(tmp_path, n_bytes):
    path = tmp_path / "fragments.mp4"
    images = [textured(64, 96, seed) for seed in range(30)]
    write_video(path, images, options={"movflags": "frag_keyframe+empty_moov"})
    data = path.read_bytes()
    last = data.rfind(b"moof") - 4  # a box starts with its size
    whole = int.from_bytes(data[last : last + 4], "big")  # a header without its samples
    path.write_bytes(data[: last + (n_bytes or whole)])
    source, times = read(path)
    assert len(times) == 25  # five fragments of five
    assert source.problem is not None
    assert "the file is cut short" in source.problem


@pytest.mark.parametrize(
    "name", ["whole.mp4", "fragments.mp4", "whole.mkv", "whole.avi", "whole.mov", "whole.ts"]
)
def test_whole_video_has_no_problem(tmp_path, name):
    fragments = {"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else {}
    images = [textured(64, 96, seed) for seed in range(60)]
    path = write_video(tmp_path / name, images, options=fragments)
    source, times = read(path)
    assert len(times) == 60
    np.testing.assert_allclose(times, np.arange(60) / 25, atol=2e-3)
    assert source.problem is None
    assert source.warnings == []


def test_damage_in_the_middle_is_stepped_over(tmp_path):
    images = [textured(64, 96, seed) for seed in range(60)]
    path = write_video(tmp_path / "hit.mp4", images, options=FASTSTART)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(data)
    source, times = read(path)
    assert 30 < len(times) < 60
    assert np.diff(times).min() > 0
    assert times[-1] == pytest.approx(59 / 25)  # the end is reached, at its own time
    assert source.problem is not None
    assert "damaged data left out" in source.problem


def test_recording_cut_off_before_its_index_is_an_error(tmp_path):
    path = cut(write_video(tmp_path / "no_moov.mp4", [textured(64, 96, i) for i in range(30)]), 0.5)
    with pytest.raises(VideoError, match=r"no_moov\.mp4: the index .*moov.* cut off"):
        open_source(path)


def test_text_named_mp4_is_an_error(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("these are the minutes of our meeting\n" * 200)
    with pytest.raises(VideoError, match=r"notes\.mp4: not a video"):
        open_source(path)


def test_text_that_ffmpeg_would_animate_is_an_error(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are the minutes of our meeting\n" * 200)
    with pytest.raises(VideoError, match="a text file, not a video"):
        open_source(path)


def test_playlist_does_not_reach_the_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        path = tmp_path / "list.m3u8"
        path.write_text(
            "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
            f"http://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
        )
        with pytest.raises(VideoError, match=r"list\.m3u8"):
            open_source(path)
        with pytest.raises(TimeoutError):
            server.accept()


def test_reading_error_midway_keeps_what_was_read(tmp_path, monkeypatch):
    """As when a network drive goes away: the demuxer raises, the decoder still holds frames."""
    path = write_video(tmp_path / "clip.mp4", [textured(48, 64, seed) for seed in range(30)])
    source = open_source(path)
    whole = source._container

    class Failing:
        def __init__(self) -> None:
            self.left = 20

        def __getattr__(self, name: str) -> object:
            return getattr(whole, name)

        def demux(self) -> Iterator[object]:
            for packet in whole.demux():
                if not self.left:
                    raise av.error.OSError(5, "Input/output error")
                self.left -= 1
                yield packet

    whole.seek(0)
    monkeypatch.setattr(source, "_container", Failing())
    source._decoding = source._decode()
    source._first = next(source._decoding)
    times = [frame.time_s for frame in source]
    assert len(times) == 20
    assert source.problem == "decoded 20 of about 30 frames: the file is cut short"
    source.close()


def test_empty_file_is_an_error(tmp_path):
    path = tmp_path / "nothing.mp4"
    path.touch()
    with pytest.raises(VideoError, match="the file is empty"):
        open_source(path)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4 does not exist; give a video"):
        open_source(tmp_path / "gone.mp4")


def test_sound_without_video_is_an_error(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", layout="mono")
        sound.sample_rate = 48000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video in it"):
        open_source(path)


def test_video_without_frames_is_an_error(tmp_path):
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    with pytest.raises(VideoError, match=r"none\.avi: no frame can be decoded"):
        open_source(path)


def test_nothing_decodable_is_an_error(tmp_path):
    path = write_video(tmp_path / "noise.mp4", [textured(64, 96, 0)] * 5, options=FASTSTART)
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"no frame can be decoded: .*damaged"):
        open_source(path)


def test_frame_size_changing_midway_is_an_error(tmp_path):
    small = write_video(tmp_path / "a.ts", [textured(48, 64, seed) for seed in range(20)])
    large = write_video(tmp_path / "b.ts", [textured(96, 128, seed) for seed in range(20)])
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with open_source(path) as source:
        frames = iter(source)
        assert [next(frames).image.shape for _ in range(20)] == [(48, 64, 3)] * 20
        with pytest.raises(VideoError, match="size changes from 64x48 to 128x96 at frame 20"):
            next(frames)


@pytest.mark.parametrize("fps", [0.0, -25.0, float("nan"), float("inf")])
def test_impossible_fps_is_an_error(tmp_path, fps):
    with pytest.raises(VideoError, match="--fps must be a positive number"):
        open_source(tmp_path, fps=fps)


# ---------------------------------------------------------------------------- folders


def test_folder_is_read_in_natural_order(tmp_path):
    folder = tmp_path / "cam.1"
    write_images(folder, [np.full((30, 40, 3), 10 * i, np.uint8) for i in range(12)])
    (folder / ".hidden.png").write_bytes(b"macOS leaves such files")
    (folder / "readme.txt").write_text("not a frame")
    with open_source(folder) as source:
        frames = list(source)
    assert [int(frame.image.mean()) for frame in frames] == [10 * i for i in range(12)]
    assert [frame.time_s for frame in frames] == [i / 25 for i in range(12)]
    assert (source.name, source.n_frames, source.fps, source.fps_known) == (
        "cam.1",
        12,
        25.0,
        False,
    )
    assert source.warnings == ["frames a second not stated, 25 assumed; pass --fps"]
    assert source.problem is None


def test_folder_with_given_fps(tmp_path):
    source, times = read(write_images(tmp_path / "f", [corners(30, 40)] * 3), fps=10.0)
    assert times == [0.0, 0.1, 0.2]
    assert source.fps_known
    assert source.warnings == []


def test_natural_order():
    names = ["b1", "a10", "a2", "a02", "A1", "a", "10", "9"]
    ordered = [path.name for path in sorted(map(Path, names), key=natural_key)]
    assert ordered == ["9", "10", "a", "A1", "a02", "a2", "a10", "b1"]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".PNG"])
def test_folder_of_each_kind_of_image(tmp_path, suffix):
    folder = write_images(tmp_path / "f", [corners(37, 53)] * 2, suffix)
    with open_source(folder) as source:
        frames = list(source)
    assert len(frames) == 2
    assert frames[0].image.shape == (37, 53, 3)
    assert_corners(frames[1].image, [RED, GREEN, BLUE, GREY])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_images_are_scaled_by_their_range_not_their_content(tmp_path, suffix, channels):
    ramp = np.tile(np.linspace(0, 6553, 40).astype(np.uint16), (30, 1))  # (H, W), a dark picture
    deep = ramp if channels == 1 else np.repeat(ramp[..., None], 3, axis=2)
    for index in range(2):
        assert cv2.imwrite(str(tmp_path / f"{index}{suffix}"), deep)
    with open_source(tmp_path, fps=25) as source:
        frames = list(source)
    np.testing.assert_allclose(frames[1].image[..., 0], ramp / 257, atol=0.51)
    assert source.warnings == ["16-bit samples, scaled to 8 bits"]


def test_float_images_are_an_error(tmp_path):
    assert cv2.imwrite(str(tmp_path / "0.tif"), np.zeros((30, 40, 3), np.float32))
    with pytest.raises(VideoError, match=r"0\.tif: samples are float32; save it with 8 or 16"):
        open_source(tmp_path)


def test_exif_rotation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(corners(48, 64)).save(tmp_path / "0.jpg", exif=exif, quality=95)
    with open_source(tmp_path) as source:
        image = next(iter(source)).image
    assert image.shape == (64, 48, 3)
    assert_corners(image, [BLUE, RED, GREY, GREEN])


def test_folder_with_two_sizes_is_an_error(tmp_path):
    write_images(tmp_path, [corners(30, 40), corners(30, 40), corners(60, 80)])
    message = r"size changes from 40x30 to 80x60 at 2\.png"
    with open_source(tmp_path) as source, pytest.raises(VideoError, match=message):
        list(source)


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(VideoError, match="a folder without frame images"):
        open_source(tmp_path)


def test_folder_of_videos_names_one_to_give(tmp_path):
    write_video(tmp_path / "one.mp4", [corners(48, 64)] * 3)
    with pytest.raises(VideoError, match=r"a folder of videos, not of frames; .* one\.mp4"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable image"),
        (b"plain text", "a JPEG cut short"),
        (None, "a JPEG cut short"),
    ],
    ids=["empty", "text", "half"],
)
def test_unreadable_first_image_is_an_error(tmp_path, content, message):
    write_images(tmp_path, [textured(48, 64, 0)] * 2, ".jpg")
    first = tmp_path / "0.jpg"
    if content is None:
        content = first.read_bytes()[: first.stat().st_size // 2]
    first.write_bytes(content)
    suffix = ".png" if not content else ".jpg"
    first.rename(first.with_suffix(suffix))
    with pytest.raises(VideoError, match=message):
        open_source(tmp_path)


def test_unreadable_image_midway_ends_the_video(tmp_path):
    write_images(tmp_path, [textured(48, 64, seed) for seed in range(6)], ".png")
    (tmp_path / "4.png").write_bytes(b"not a picture")
    source, times = read(tmp_path)
    assert len(times) == 4
    assert source.problem is not None
    assert source.problem.startswith("decoded 4 of about 6 frames: ")
    assert "4.png: not a readable image" in source.problem
