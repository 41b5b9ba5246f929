"""What users do by mistake, through the real command line: one clear line, nothing half-written.

Exit 2: a mistake to repair. Exit 3: a video that breaks off, scored as far as it goes. What only
looks like a mistake works, with a warning where a user would want one. Ctrl-C is in
test_pipeline.py.
"""

import ctypes
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from sfn_rt.cli import app
from sfn_rt.sinks.files import ScoreTable, read_scores

Edit = Callable[[Path], object]
HEIGHT, WIDTH = 120, 180
NO_PYC = {"PYTHONDONTWRITEBYTECODE": "1"}  # a file cut short by a limit would stay in the cache


def pictures(n: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """A textured square walks over a textured ground."""
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(60, 140, (9, 13, 3), dtype=np.uint8), (width, height))
    square = rng.integers(150, 250, (height // 4, width // 6, 3), dtype=np.uint8)
    made = []
    for i in range(n):
        image = ground.copy()
        x = (3 * i) % (width - square.shape[1])
        image[height // 2 : height // 2 + square.shape[0], x : x + square.shape[1]] = square
        made.append(image)
    return made


def write_video(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    source_format: str = "rgb24",
    times_ms: Sequence[int] | None = None,
    turn: float | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            stream.set_display_rotation(turn)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format=source_format)
            frame.time_base = Fraction(1, 25 if times_ms is None else 1000)
            frame.pts = index if times_ms is None else times_ms[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_images(folder: Path, images: Sequence[np.ndarray], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{index:03d}{suffix}"), image[..., ::-1])
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def score(video: Path, bundle: Path, out: Path, *more: object) -> Result:
    return run("score", video, "--bundle", bundle, "--out", out, "--threads", 1, *more)


def assert_refused(done: Result, out: Path, *words: str) -> None:
    """Exit 2, one line that begins with `error:` and holds `words`, and no trace of a result."""
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("bundle: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


def assert_scored(done: Result, out: Path, n_frames: int, *, code: int = 0) -> ScoreTable:
    """A complete result without a NaN in it, but for the first four frames."""
    assert done.exit_code == code, done.output
    table = read_scores(out / "scores.csv")
    assert len(table.causal) == n_frames
    for values in (*table.terms.values(), table.paper, table.causal):
        assert np.isfinite(values[4:]).all()
    assert (out / "report.html").stat().st_size > 1000
    events = (out / "events.json").read_text("utf-8")
    assert "NaN" not in events
    return table


# ------------------------------------------------------------------------------- the video


def no_such_file(tmp_path: Path) -> Path:
    return tmp_path / "nothing.mp4"


def empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def folder_of_videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", pictures(6))
    return tmp_path / "videos"


def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.mp4"
    path.write_text("bread, milk, eggs\n" * 40)
    return path


def empty_file(tmp_path: Path) -> Path:
    path = tmp_path / "void.mp4"
    path.touch()
    return path


def zero_frames(tmp_path: Path) -> Path:
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        container.start_encoding()
    return tmp_path / "none.mkv"


def four_frames(tmp_path: Path) -> Path:
    return write_video(tmp_path / "short.mp4", pictures(4))


def one_image(tmp_path: Path) -> Path:
    return write_images(tmp_path / "single", pictures(1))


def size_changes(tmp_path: Path) -> Path:
    return write_images(tmp_path / "mixed", [*pictures(12), *pictures(4, 60, 90)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_such_file, ["nothing.mp4 does not exist", "give a video file or a folder"]),
        (empty_folder, ["empty", "without frame images"]),
        (folder_of_videos, ["a folder of videos", "give one of them, such as a.mp4"]),
        (text_file, ["notes.mp4", "not a video"]),
        (empty_file, ["void.mp4", "the file is empty"]),
        (zero_frames, ["none.mkv", "not a video", "convert it"]),
        (four_frames, ["4 frames are too few; sfn-vad needs at least 5"]),
        (one_image, ["1 frames are too few; sfn-vad needs at least 5"]),
        (size_changes, ["frame size changes from 180x120 to 90x60", "as separate videos"]),
    ],
)
def test_videos_that_cannot_be_scored(
    tmp_path: Path, walkway_bundle: Path, make: Callable[[Path], Path], words: list[str]
) -> None:
    out = tmp_path / "results" / "out"
    assert_refused(score(make(tmp_path), walkway_bundle, out), out, *words)


def test_a_truncated_mp4_is_scored_as_far_as_it_goes(tmp_path: Path, walkway_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(40)]
    path = write_video(tmp_path / "cut.mp4", noisy, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    out = tmp_path / "out"
    done = score(path, walkway_bundle, out)
    n_frames = len(read_scores(out / "scores.csv").causal)
    assert 5 < n_frames < 40
    assert_scored(done, out, n_frames, code=3)
    assert f"decoded {n_frames} of about 40 frames: the file is cut short" in done.stderr


# ------------------------------------------------------------------------------- what works


@pytest.mark.parametrize("level", [0, 128, 255])
def test_one_grey_colour_throughout(tmp_path: Path, walkway_bundle: Path, level: int) -> None:
    flat = [np.full((HEIGHT, WIDTH, 3), level, np.uint8)] * 12
    done = score(write_images(tmp_path / "grey", flat), walkway_bundle, tmp_path / "out")
    assert_scored(done, tmp_path / "out", 12)
    assert "does not look like the scene" in done.stdout


def test_16_bit_frames(tmp_path: Path, walkway_bundle: Path) -> None:
    deep = [image.astype(np.uint16) * 257 for image in pictures(10)]
    done = score(write_images(tmp_path / "deep", deep), walkway_bundle, tmp_path / "deep_out")
    deep_table = assert_scored(done, tmp_path / "deep_out", 10)
    assert "warning: 16-bit samples, scaled to 8 bits" in done.stdout
    done = score(
        write_images(tmp_path / "plain", pictures(10)), walkway_bundle, tmp_path / "plain_out"
    )
    plain_table = assert_scored(done, tmp_path / "plain_out", 10)
    np.testing.assert_array_equal(deep_table.causal, plain_table.causal)


@pytest.mark.parametrize(("height", "width"), [(121, 183), (37, 53), (9, 200)])
def test_odd_sized_frames(tmp_path: Path, walkway_bundle: Path, height: int, width: int) -> None:
    folder = write_images(tmp_path / "odd", pictures(10, height, width))
    assert_scored(score(folder, walkway_bundle, tmp_path / "out"), tmp_path / "out", 10)


def test_odd_sized_video(tmp_path: Path, walkway_bundle: Path) -> None:
    video = write_video(
        tmp_path / "odd.mkv", pictures(10, 121, 183), codec="ffv1", pix_fmt="yuv444p"
    )
    assert_scored(score(video, walkway_bundle, tmp_path / "out"), tmp_path / "out", 10)


def test_variable_frame_rate(tmp_path: Path, walkway_bundle: Path) -> None:
    times = [0, 40, 80, 200, 240, 380, 420, 460, 600, 640, 780, 820]
    video = write_video(tmp_path / "vfr.mkv", pictures(12), times_ms=times)
    done = score(video, walkway_bundle, tmp_path / "out")
    table = assert_scored(done, tmp_path / "out", 12)
    np.testing.assert_allclose(table.time_s, np.array(times) / 1000, atol=2e-3)
    assert "warning: the frame rate varies" in done.stdout


def test_a_rotated_video_is_scored_upright(tmp_path: Path, walkway_bundle: Path) -> None:
    upright = pictures(12)
    lying = [np.ascontiguousarray(np.rot90(image, -1)) for image in upright]
    turned = write_video(tmp_path / "turned.mp4", lying, turn=90)
    plain = write_video(tmp_path / "plain.mp4", upright)
    tables = []
    for video in (turned, plain):
        out = tmp_path / f"out_{video.stem}"
        tables.append(assert_scored(score(video, walkway_bundle, out), out, 12))
    a, b = (table.terms["visual"][4:] for table in tables)
    np.testing.assert_allclose(a, b, rtol=0.2)  # compressed lying down, so not to the bit
    assert tables[0].terms["attribute"][4:].any()


def test_raw_dib(tmp_path: Path, walkway_bundle: Path, smoke: Path) -> None:
    out = tmp_path / "out"
    done = score(smoke / "raw_dib_48x48.avi", walkway_bundle, out)
    assert_scored(done, out, len(read_scores(out / "scores.csv").causal))


# ------------------------------------------------------------------------------- the labels


def test_labels_shorter_than_the_video(tmp_path: Path, walkway: Path, walkway_bundle: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(walkway, data)
    with np.load(data / "frame_labels.npz", allow_pickle=False) as arrays:
        labels = dict(arrays)
    np.savez(data / "frame_labels.npz", **{"02": labels["02"][:-7]})
    (data / "pixel_masks.npz").unlink()
    (data / "testing" / "videos" / "01.mp4").unlink()
    out = tmp_path / "out"
    done = run("eval", data, "--bundle", walkway_bundle, "--out", out, "--threads", 1)
    assert_refused(done, out, "02", "83", "90")


def test_data_without_videos(tmp_path: Path, walkway_bundle: Path) -> None:
    (tmp_path / "data").mkdir()
    out = tmp_path / "out"
    done = run("eval", tmp_path / "data", "--bundle", walkway_bundle, "--out", out)
    assert_refused(done, out, str(tmp_path / "data"))


def test_data_without_labels(tmp_path: Path, walkway: Path, walkway_bundle: Path) -> None:
    shutil.copytree(walkway / "testing", tmp_path / "data" / "testing")
    out = tmp_path / "out"
    done = run("eval", tmp_path / "data", "--bundle", walkway_bundle, "--out", out)
    assert_refused(done, out, "no labels", "use `sfn-rt score`")


def test_labels_that_are_not_there(tmp_path: Path, walkway: Path, walkway_bundle: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--bundle", walkway_bundle, "--out", out, "--labels", "mnad.npy")
    done = run("eval", walkway, *arguments)
    assert_refused(done, out, "mnad.npy", "frame_labels.npz, masks")


# ------------------------------------------------------------------------------- the bundle


def edited(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(bundle: Path) -> None:
        path = bundle / "manifest.json"
        raw = json.loads(path.read_text("utf-8"))
        change(raw)
        path.write_text(json.dumps(raw), "utf-8")

    return edit


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def lead_outside(raw: dict[str, Any]) -> None:
    raw["parts"]["motion"]["files"]["fp32"] = "../motion.onnx"
    raw["files"]["../motion.onnx"] = raw["files"].pop("motion.onnx")


def link_outside(bundle: Path) -> None:
    target = bundle.parent / "elsewhere.onnx"
    (bundle / "motion.onnx").rename(target)
    (bundle / "motion.onnx").symlink_to(target)


BROKEN: dict[str, tuple[Edit, list[str]]] = {
    "missing file": (lambda b: (b / "motion.onnx").unlink(), ["motion.onnx"]),
    "altered file": (lambda b: flip_last_byte(b / "motion.onnx"), ["motion.onnx", "was altered"]),
    "unknown file": (lambda b: (b / "notes.txt").write_text("hello"), ["notes.txt"]),
    "unknown key": (edited(lambda raw: raw.update(colour=1)), ["unknown keys ['colour']"]),
    "missing key": (edited(lambda raw: raw.pop("observed")), ["missing keys ['observed']"]),
    "unknown setting": (
        edited(lambda raw: raw["visual"].update(colour=1)), ["manifest.json", "colour"],
    ),
    "newer schema": (
        edited(lambda raw: raw.update(schema_version=99)), ["schema_version is 99", "export"],
    ),
    "leads outside": (edited(lead_outside), ["../motion.onnx", "outside the bundle folder"]),
    "links outside": (link_outside, ["motion.onnx", "outside the bundle folder"]),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), ["manifest.json"]),
    "manifest is no JSON": (lambda b: (b / "manifest.json").write_text("{"), ["manifest.json"]),
}  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN)
def test_bundles_that_cannot_be_trusted(
    tmp_path: Path, walkway: Path, walkway_bundle: Path, damage: str
) -> None:
    edit, words = BROKEN[damage]
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    bundle.mkdir()
    for file in walkway_bundle.iterdir():
        if file.name == "text.onnx":  # 90 MB, and none of these touches it
            os.link(file, bundle / file.name)
        else:
            shutil.copy(file, bundle / file.name)
    edit(bundle)
    done = score(walkway / "testing" / "videos" / "01.mp4", bundle, out)
    assert_refused(done, out, *words)


def test_no_such_bundle(tmp_path: Path, walkway: Path) -> None:
    out = tmp_path / "out"
    done = score(walkway / "testing" / "videos" / "01.mp4", tmp_path / "nowhere", out)
    assert_refused(done, out, "nowhere")


# ------------------------------------------------------------------------------- the checkpoint


def run_export(*arguments: object) -> Result:
    from sfn_export.cli import app as export

    return CliRunner().invoke(export, [str(a) for a in arguments], catch_exceptions=False)


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "the pickle ran")


def test_a_checkpoint_that_is_a_pickle_is_not_loaded(tmp_path: Path, walkway_run: Path) -> None:
    run_folder, out, sprung = tmp_path / "run", tmp_path / "bundle", tmp_path / "sprung"
    shutil.copytree(walkway_run, run_folder)
    trap = pickle.dumps(Trap(sprung))
    (run_folder / "model.safetensors").write_bytes(trap)
    done = run_export("bundle", run_folder, "--out", out)
    assert_refused(done, out, "is a pickle", "safetensors")
    (tmp_path / "model.pt").write_bytes(trap)
    done = run_export("bundle", tmp_path / "model.pt", "--out", out)
    assert_refused(done, out, "is a pickle", "give a run folder")
    assert not sprung.exists()


def test_training_does_not_resume_from_a_pickle(
    tmp_path: Path, walkway: Path, walkway_run: Path
) -> None:
    from sfn_train.cli import app as train

    run_folder, sprung = tmp_path / "run", tmp_path / "sprung"
    shutil.copytree(walkway_run, run_folder)
    (run_folder / "checkpoints" / "last.ckpt").write_bytes(pickle.dumps(Trap(sprung)))
    arguments = ["train", str(walkway), "--out", str(run_folder), "--resume"]
    done = CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert done.exit_code == 2, done.output
    assert "last.ckpt cannot be resumed from" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not sprung.exists()


# ------------------------------------------------------------------------------- the output


def process(
    repository: Path, arguments: Sequence[object], before: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """`sfn-rt` in a process of its own, in which `before` has taken something away."""
    environment = {"PYTHONPATH": str(repository / "runtime"), "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(
        [sys.executable, "-m", "sfn_rt.cli", *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=before,
        env=environment | NO_PYC,
    )


def assert_cannot_write(done: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("bundle: ")]
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    for word in ("error: cannot write", "choose another --out", *words):
        assert word in lines[0]


def obey_permissions() -> None:
    """Root may write anywhere; give that up, for this process and what it runs."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(sys.platform != "linux", reason="root gives up its rights by Linux's prctl")
@pytest.mark.parametrize("exists", [True, False], ids=["out exists", "out is new"])
def test_a_read_only_output_folder(
    tmp_path: Path, repository: Path, walkway: Path, walkway_bundle: Path, exists: bool
) -> None:
    place = tmp_path / "place"
    out = place / "out"
    place.mkdir()
    if exists:
        out.mkdir(mode=0o555)
    place.chmod(0o555)
    video = walkway / "testing" / "videos" / "01.mp4"
    arguments = ["score", video, "--bundle", walkway_bundle, "--out", out, "--threads", 1]
    done = process(repository, arguments, obey_permissions)
    place.chmod(0o755)
    assert_cannot_write(done, "no permission")
    assert [file.name for file in place.rglob("*")] == (["out"] if exists else [])


def small_disk(limit: int) -> Callable[[], None]:
    """No file may grow beyond `limit`; writing then fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("limit", [0, 2000, 6000, 20000])
def test_a_full_output_folder(
    tmp_path: Path, repository: Path, walkway: Path, walkway_bundle: Path, limit: int
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    video = walkway / "testing" / "videos" / "01.mp4"
    arguments = ["score", video, "--bundle", walkway_bundle, "--out", place / "out"]
    done = process(repository, [*arguments, "--threads", 1], small_disk(limit))
    assert_cannot_write(done, "no space left")
    assert list(place.iterdir()) == []


def test_an_output_folder_that_is_a_file(
    tmp_path: Path, walkway: Path, walkway_bundle: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    done = score(walkway / "testing" / "videos" / "01.mp4", walkway_bundle, out)
    assert done.exit_code == 2
    assert "is a file; --out names a folder" in done.stderr
    assert out.read_text() == "mine"


def test_files_that_are_not_ours_are_left_alone(
    tmp_path: Path, walkway: Path, walkway_bundle: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    done = score(walkway / "testing" / "videos" / "01.mp4", walkway_bundle, out)
    assert done.exit_code == 2
    assert "thesis.txt" in done.stderr
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


# ------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, ["cannot read captions"]), ("{", ["captions must be JSON"]), ("{}", ["an object"])],
    ids=["missing", "no JSON", "empty"],
)
def test_captions_that_cannot_be_read(
    tmp_path: Path, walkway: Path, walkway_bundle: Path, content: str | None, words: list[str]
) -> None:
    file, out = tmp_path / "captions.json", tmp_path / "out"
    if content is not None:
        file.write_text(content)
    video = walkway / "testing" / "videos" / "01.mp4"
    assert_refused(score(video, walkway_bundle, out, "--captions", file), out, *words)


def test_terms_that_do_not_exist(tmp_path: Path, walkway: Path, walkway_bundle: Path) -> None:
    out = tmp_path / "out"
    video = walkway / "testing" / "videos" / "01.mp4"
    done = score(video, walkway_bundle, out, "--terms", "visual,smell")
    assert_refused(done, out, "unknown smell; choose from visual, semantic, attribute")
