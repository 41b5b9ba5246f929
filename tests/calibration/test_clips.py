"""Calibration and gate take normal videos only, never share footage, and say what they took."""

import shutil
from pathlib import Path

import pytest

from footage import scene_of, walk, write_data, write_video
from sfn_calib.clips import Clips, HeldOut, choose_clips, known_held_out, spread_runs
from sfn_calib.exceptions import CalibrationError
from sfn_rt.bundle import Provenance
from sfn_rt.datasets import open_dataset
from sfn_rt.exceptions import DataError
from sfn_rt.semantics.cached import video_sha256
from sfn_train.data.split import split_footage

SCENE = scene_of(walk(1, 0)[0])
SIX = {f"{n:02}": 60 for n in range(1, 7)}


def choose(
    root: Path, held_out: HeldOut | None = None, *, clips: int = 16, gate_frames: int = 200
) -> Clips:
    return choose_clips(
        open_dataset(root), SCENE, held_out, observed=4, clips=clips, gate_frames=gate_frames
    )


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("six") / "data", SIX, {"01": 40})


def test_videos_of_their_own_identified_by_content(six: Path) -> None:
    chosen = choose(six)
    ours, theirs = ({s.video for s in part} for part in (chosen.calibration, chosen.gate))
    assert ours
    assert theirs
    assert not ours & theirs
    for stretch in (*chosen.calibration, *chosen.gate):
        assert stretch.sha256 == video_sha256(six / "training" / "frames" / stretch.video)
        assert 0 <= stretch.start < stretch.stop <= 60
    assert sum(len(s) - 4 for s in chosen.calibration) == 16
    assert chosen.gate_frames >= 200
    assert chosen == choose(six)
    assert str(six) not in str(chosen.to_json())  # a report names no machine


def test_the_gate_prefers_what_the_model_was_not_trained_on(six: Path) -> None:
    chosen = choose(
        six, HeldOut({"02": (0, 60), "05": (0, 60)}, "as its run says"), gate_frames=100
    )
    assert {s.video for s in chosen.gate} == {"02", "05"}
    assert any("as its run says" in note for note in chosen.notes)
    assert any("--run" in note for note in choose(six).notes)


def test_what_was_held_out_is_known_by_default_only_for_the_very_footage(six: Path) -> None:
    dataset = open_dataset(six)

    def provenance(n_frames: int) -> Provenance:
        return Provenance(
            data="data", n_videos=6, n_frames=n_frames, seed=0, config_sha256="", licences={}
        )

    held_out = known_held_out(dataset, provenance(360), None)
    split = split_footage([60] * 6, 0.2, 8)
    assert held_out is not None
    assert held_out.spans == {f"{s.video + 1:02}": (s.start, s.stop) for s in split.held_out}
    assert known_held_out(dataset, provenance(361), None) is None


def test_few_videos_are_cut_in_time_and_that_is_said(tmp_path: Path) -> None:
    chosen = choose(write_data(tmp_path / "data", {"01": 160}))
    assert any("only 1 normal video" in note for note in chosen.notes)
    assert max(s.stop for s in chosen.calibration) <= min(s.start for s in chosen.gate)


@pytest.mark.parametrize("folder", ["testing", "testing/frames"])
def test_a_test_part_given_as_data_is_refused(tmp_path: Path, folder: str) -> None:
    root = write_data(tmp_path / "data", {}, {"01": 60, "02": 60, "03": 60})
    with pytest.raises(CalibrationError, match="test part"):
        choose(root / folder)


def test_a_folder_with_labels_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_video(root / "01", walk(60, 0))
    (root / "frame_labels.npz").write_bytes(b"labels")
    with pytest.raises(CalibrationError, match="holds labels"):
        choose(root)


def test_a_published_test_part_is_known_under_any_name(tmp_path: Path) -> None:
    lengths = (180, 180, 150, 180, 150, 180, 180, 180, 120, 150, 180, 180)
    root = tmp_path / "street"
    for number, n in enumerate(lengths, start=1):
        folder = root / f"{number:02}"
        folder.mkdir(parents=True)
        for i in range(n):  # recognised by what is counted, before any picture is opened
            (folder / f"{i:03}.png").write_bytes(b"")
    with pytest.raises(CalibrationError, match="test videos of UCSD Ped2"):
        choose(root)


def test_copies_of_test_videos_are_refused_even_with_renamed_frames(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", SIX, {"01": 60})
    frames = sorted((root / "testing" / "frames" / "01").iterdir())
    copy = root / "training" / "frames" / "07"
    copy.mkdir()
    for i, frame in enumerate(frames[10:40]):
        shutil.copyfile(frame, copy / f"other_{i}.png")
    with pytest.raises(CalibrationError, match="07 has the content of the test video 01"):
        choose(root)


def test_a_video_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", SIX)
    frames = root / "training" / "frames"
    shutil.copytree(frames / "01", frames / "09")
    chosen = choose(root)
    assert any(note.startswith("09 is left out") for note in chosen.notes)
    used = {(s.video, s.sha256) for s in (*chosen.calibration, *chosen.gate)}
    assert len({sha for _, sha in used}) == len({video for video, _ in used})


def test_another_scene_is_refused(six: Path) -> None:
    upside_down = scene_of(walk(1, 0)[0][::-1].copy())
    with pytest.raises(CalibrationError, match="none of its 6 normal videos shows the scene"):
        choose_clips(open_dataset(six), upside_down, None, observed=4, clips=16, gate_frames=200)


def test_too_little_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no normal videos"):
        choose(write_data(tmp_path / "test_only", {}, {"01": 40}) / ".." / "test_only")
    short = write_data(tmp_path / "short", {"01": 30, "02": 30, "03": 30})
    with pytest.raises(CalibrationError, match="room for 16 calibration clips, 64 are wanted"):
        choose(short, clips=64)
    with pytest.raises(CalibrationError, match="60 normal frames are left for the gate"):
        choose(short, clips=16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without videos"):
        choose(tmp_path / "empty")


def test_runs_are_spread_and_give_the_clips_asked_for() -> None:
    runs = spread_runs([("a", 0, 60), ("b", 0, 60)], 4, 20)
    assert sum(stop - start - 4 for _, start, stop in runs) == 20
    assert {name for name, _, _ in runs} == {"a", "b"}
    assert spread_runs([("a", 0, 8)], 4, 20) == []
