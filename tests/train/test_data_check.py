"""`data check`: what it says of a folder, and what it refuses to call usable."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sfn_train.cli import app

H, W = 20, 30
LABELS = {"01": [0, 0, 1, 1, 0, 0], "02": [1, 0, 0, 0, 0, 0, 1, 1], "03": [0, 1, 0]}


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def said(result: Result) -> str:
    return " ".join(result.stdout.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "yard"
    for part, name, n in [("training", "01", 5)] + [
        ("testing", name, len(labels)) for name, labels in LABELS.items()
    ]:
        frames = root / part / "frames" / name
        frames.mkdir(parents=True)
        for index in range(n):
            cv2.imwrite(
                str(frames / f"{index:03}.tif"), np.full((H, W), 40 * index % 255, np.uint8)
            )
    np.savez(root / "labels.npz", **{k: np.array(v, np.uint8) for k, v in LABELS.items()})
    return root


def test_ped2_is_reported_whole(ped2: Path) -> None:
    result = check(ped2, "--quick")
    assert result.exit_code == 0
    assert result.stderr == ""
    text = said(result)
    assert text.startswith(f"{ped2}: UCSD Ped2 ")
    for line in (
        "training 16 videos, 2550 frames of 360x240 folders of .jpg, training/frames/01 to 16",
        "test 12 videos, 2010 frames of 360x240 folders of .jpg, testing/frames/01 to 12",
        "labels frame_labels.npz, 12 of 12 test videos",
        "1648 of 2010 frames abnormal, 18.0% normal; 4 videos abnormal throughout",
        "fingerprint 5aa29fedb448da1e; constants the paper's for ped2",
        "masks pixel_masks.npz, 12 of 12 test videos",
        "expected 16 + 12 videos, 2550 + 2010 frames in the owners' archive; all here",
        "usable for training, scoring, evaluation",
    ):
        assert line in text


def test_ped2_without_a_video_says_which_and_where_to_get_it(ped2: Path, tmp_path: Path) -> None:
    root = tmp_path / "ped2"
    for part in ("training", "testing"):
        (root / part / "frames").mkdir(parents=True)
        for video in (ped2 / part / "frames").iterdir():
            if video.name != "07":
                (root / part / "frames" / video.name).symlink_to(video)
    shutil.copy(ped2 / "frame_labels.npz", root)
    result = check(root, "--quick")
    assert result.exit_code == 2
    errors = result.stderr.splitlines()
    assert len(errors) == 3
    assert "labels or masks of 07, but no test video of that name" in errors[0]
    assert "UCSD Ped2, but test video 07 is missing; copy it from the owners'" in errors[1]
    assert "UCSD Ped2, but 15 training videos, not 16" in errors[2]
    assert "offered UCSD Ped2: http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm" in said(
        result
    )
    assert "usable not as it is" in said(result)
    assert "constants default, none published" in said(result)


@pytest.mark.parametrize("flag", [(), ("--quick",)])
def test_own_videos_are_counted(folder: Path, flag: tuple[str, ...]) -> None:
    result = check(folder, *flag)
    assert result.exit_code == 0, result.stderr
    text = said(result)
    assert "no published data set that is known here" in text
    assert f"test 3 videos, 17 frames of {W}x{H} folders of .tif" in text
    assert "6 of 17 frames abnormal, 64.7% normal; 0 videos abnormal throughout" in text
    assert "frames a second not stated, 25 assumed; pass --fps" in text
    assert "masks none: no localisation figures" in text
    assert "fps 12, as given" in said(check(folder, "--fps", 12))


def test_training_footage_alone_is_usable_for_training(folder: Path) -> None:
    shutil.rmtree(folder / "testing")
    (folder / "labels.npz").unlink()
    result = check(folder)
    assert result.exit_code == 0
    assert "test no videos" in said(result)
    assert result.stdout.endswith("for training\n")


def test_test_videos_without_labels_can_be_scored(folder: Path) -> None:
    (folder / "labels.npz").unlink()
    result = check(folder)
    assert result.exit_code == 0
    assert "labels none" in said(result)
    assert result.stdout.endswith("for training, scoring\n")


def labels(**arrays: list[int]) -> Callable[[Path], object]:
    return lambda root: np.savez(root / "labels.npz", **{k: np.array(v) for k, v in arrays.items()})


def unreadable(root: Path) -> None:
    (root / "testing" / "frames" / "02" / "004.tif").write_bytes(b"II*\0")


def two_of_one_name(root: Path) -> None:
    frames = root / "testing" / "frames"
    shutil.move(frames / "03", frames / "a" / "b")
    shutil.copytree(frames / "a" / "b", frames / "a_b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (labels(**{"01": LABELS["01"]}), "no labels for 02, 03, so evaluation leaves them out"),
        (labels(**(LABELS | {"04": [1]})), "labels or masks of 04, but no test video of that name"),
        (labels(**(LABELS | {"02": [1, 0, 1]})), "02: labels for 3 frames, but the video has 8"),
        (labels(**{name: [0] * len(x) for name, x in LABELS.items()}), "AUC needs both classes"),
        (lambda root: (root / "labels.npz").write_bytes(b"PK"), "labels.npz: not a readable .npz"),
        (unreadable, "004.tif: not a readable image of 8 or 16 bits; replace it or remove it; a "
         "copy of the frame before it keeps labels in step"),
        (two_of_one_name, "both named a_b; rename one"),
        (shutil.rmtree, "does not exist; give a folder of videos"),
    ],
)  # fmt: skip
def test_what_is_missing_or_contradicts_is_named(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    result = check(folder)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_labels_of_a_video_file_are_held_against_its_decoded_frames(
    folder: Path, smoke: Path
) -> None:
    shutil.rmtree(folder / "testing")
    (folder / "testing").mkdir()
    shutil.copy(smoke / "raw_dib_48x48.avi", folder / "testing" / "01.avi")
    np.savez(folder / "labels.npz", **{"01": np.arange(50) % 2})
    result = check(folder)
    assert result.exit_code == 2
    assert "01: labels for 50 frames, but the video has 51; give labels made for" in result.stderr


def test_a_folder_without_videos_names_every_owner(tmp_path: Path) -> None:
    result = check(tmp_path)
    assert result.exit_code == 2
    assert "a folder without videos" in result.stderr
    for page in ("svcl.ucsd.edu", "cse.cuhk.edu.hk", "svip-lab.github.io"):
        assert page in result.stdout


def test_the_labels_to_check_can_be_chosen(folder: Path) -> None:
    joined = np.concatenate([np.array(values) for values in LABELS.values()])
    np.save(folder / "frame_labels_yard.npy", 1 - joined)
    first = said(check(folder))
    assert "labels labels.npz, 3 of 3" in first
    assert "note also there, not read: frame labels frame_labels_yard.npy" in first
    other = check(folder, "--labels", "frame_labels_yard.npy")
    assert other.exit_code == 0
    assert "labels frame_labels_yard.npy, 3 of 3" in said(other)
    missing = check(folder, "--labels", "masks")
    assert missing.exit_code == 2
    assert "there is labels.npz, frame_labels_yard.npy" in missing.stderr
