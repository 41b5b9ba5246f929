"""Finding videos, labels and masks in data folders, and refusing what does not fit."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from sfn_rt.datasets import Dataset, Video, check_length, fingerprint, open_dataset
from sfn_rt.exceptions import DataError
from sfn_rt.frames import FPS_ASSUMED

H, W = 20, 30  # a width that does not fill its last byte of bits
LENGTHS = {"01": 6, "02": 8}
LABELS = {
    "01": np.array([0, 0, 1, 1, 0, 0], dtype=np.uint8),
    "02": np.array([1, 0, 0, 0, 0, 0, 1, 1], dtype=np.uint8),
}


def frames_folder(folder: Path, n_frames: int) -> Path:
    folder.mkdir(parents=True)
    for index in range(n_frames):
        assert cv2.imwrite(str(folder / f"{index}.png"), np.full((H, W, 3), index, np.uint8))
    return folder


def video_file(path: Path, n_frames: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for index in range(n_frames):
            image = np.full((H, W, 3), 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return path


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """The benchmarks' layout: one training and two test videos as folders of frames."""
    root = tmp_path / "walkway"
    frames_folder(root / "training" / "frames" / "01", 5)
    for name, n_frames in LENGTHS.items():
        frames_folder(root / "testing" / "frames" / name, n_frames)
    return root


def masks_for(labels: np.ndarray) -> np.ndarray:
    masks = np.zeros((len(labels), H, W), dtype=bool)
    masks[labels == 1, 2:5, 25:29] = True
    return masks


def save_mat(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("scipy.io").savemat(str(path), dict(content))


def cell(items: list[np.ndarray]) -> np.ndarray:
    array = np.empty((1, len(items)), dtype=object)
    for index, item in enumerate(items):
        array[0, index] = item
    return array


def assert_labels(dataset: Dataset, expected: Mapping[str, np.ndarray]) -> None:
    assert [video.name for video in dataset.test] == list(expected)
    for video in dataset.test:
        assert video.labels is not None
        assert video.labels.dtype == np.uint8
        np.testing.assert_array_equal(video.labels, expected[video.name])


# ---------------------------------------------------------------------------- layouts


def test_benchmark_layout(benchmark):
    np.savez(benchmark / "frame_labels.npz", **LABELS)
    dataset = open_dataset(benchmark)
    assert [(v.name, v.path) for v in dataset.train] == [("01", benchmark / "training/frames/01")]
    assert [v.path for v in dataset.test] == [benchmark / "testing/frames" / n for n in LENGTHS]
    assert dataset.train[0].labels is None
    assert_labels(dataset, LABELS)
    assert FPS_ASSUMED in dataset.notes
    assert dataset.fps is None
    assert dataset.published is None


def test_given_fps_is_kept_and_nothing_assumed(benchmark):
    dataset = open_dataset(benchmark, fps=10.0)
    assert dataset.fps == 10.0
    assert FPS_ASSUMED not in dataset.notes


@pytest.mark.parametrize(
    ("train", "test"),
    [("training/videos", "testing/videos"), ("training", "testing"), ("train", "test"),
     ("normal", "test"), ("Train", "Test"), ("training_videos", "testing_videos")],
)  # fmt: skip
def test_layouts_of_video_files(tmp_path, train, test):
    video_file(tmp_path / train / "a10.mp4", 3)
    video_file(tmp_path / train / "a9.avi", 3)
    video_file(tmp_path / test / "b.mkv", 3)
    (tmp_path / train / "notes.txt").write_text("not a video")
    dataset = open_dataset(tmp_path)
    assert [video.name for video in dataset.train] == ["a9", "a10"]
    assert [video.name for video in dataset.test] == ["b"]
    assert "no labels: test videos can be scored, not evaluated" in dataset.notes
    assert FPS_ASSUMED not in dataset.notes
    assert dataset.fingerprint is None


def test_folders_of_frames_without_a_frames_folder(tmp_path):
    frames_folder(tmp_path / "Train" / "Train001", 3)
    frames_folder(tmp_path / "Test" / "Test001", 3)
    frames_folder(tmp_path / "Test" / "Test001_gt", 3)
    dataset = open_dataset(tmp_path)
    assert [video.name for video in dataset.train] == ["Train001"]
    assert [video.name for video in dataset.test] == ["Test001"]


def test_plain_folder_is_all_normal_footage(tmp_path):
    video_file(tmp_path / "day2.mp4", 3)
    video_file(tmp_path / "day10.mp4", 3)
    video_file(tmp_path / "night" / "day2.mp4", 3)
    (tmp_path / ".hidden.mp4").write_bytes(b"macOS leaves such files")
    dataset = open_dataset(tmp_path)
    assert [video.name for video in dataset.train] == ["day2", "day10", "night_day2"]
    assert dataset.test == ()
    assert dataset.notes == ("no test videos: there is nothing to evaluate",)


def test_a_folder_of_frames_is_one_video(tmp_path):
    frames_folder(tmp_path / "walk", 4)
    dataset = open_dataset(tmp_path / "walk")
    assert [(video.name, video.path) for video in dataset.train] == [("walk", tmp_path / "walk")]


def test_frames_win_over_videos_and_it_is_said(tmp_path):
    video_file(tmp_path / "training/videos/01.avi", 3)
    frames_folder(tmp_path / "training/frames/01", 3)
    dataset = open_dataset(tmp_path)
    assert dataset.train[0].path == tmp_path / "training/frames/01"
    assert "training: both frames and videos; frames are read" in dataset.notes


def test_two_videos_of_one_name_are_refused(tmp_path):
    video_file(tmp_path / "a.mp4", 3)
    video_file(tmp_path / "a.avi", 3)
    with pytest.raises(DataError, match="both named a; rename one"):
        open_dataset(tmp_path)


def test_folders_without_videos_are_refused(tmp_path):
    with pytest.raises(DataError, match="a folder without videos; give one with video files"):
        open_dataset(tmp_path)
    (tmp_path / "training").mkdir()
    with pytest.raises(DataError, match="a folder without videos"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="does not exist; give a folder"):
        open_dataset(tmp_path / "gone")
    video_file(tmp_path / "one.mp4", 3)
    with pytest.raises(DataError, match=r"one\.mp4 is a file; give a folder"):
        open_dataset(tmp_path / "one.mp4")


def test_folder_of_data_sets_names_one_to_give(benchmark):
    with pytest.raises(DataError, match=r"give one of them, such as .*walkway"):
        open_dataset(benchmark.parent)


# ---------------------------------------------------------------------------- labels


@pytest.mark.parametrize("place", [".", "testing"])
@pytest.mark.parametrize("name", ["frame_labels.npz", "labels.npz"])
def test_labels_in_npz(benchmark, place, name):
    np.savez(benchmark / place / name, **LABELS)
    dataset = open_dataset(benchmark)
    assert_labels(dataset, LABELS)
    assert f"labels of 2 of 2 test videos from {name}" in dataset.notes


@pytest.mark.parametrize("folder", ["labels", "testing/test_frame_mask"])
def test_labels_in_a_folder_of_npy(benchmark, folder):
    (benchmark / folder).mkdir()
    for name, labels in LABELS.items():
        np.save(benchmark / folder / f"{name}.npy", labels.astype(bool))
    assert_labels(open_dataset(benchmark), LABELS)


@pytest.mark.parametrize("name", ["frame_labels.npy", "frame_labels_ped2.npy"])
@pytest.mark.parametrize("shape", [(-1,), (1, -1)])
def test_labels_of_all_videos_in_one_npy(benchmark, name, shape):
    joined = np.concatenate(list(LABELS.values())).astype(np.float64)
    np.save(benchmark / name, joined.reshape(shape))
    assert_labels(open_dataset(benchmark), LABELS)


def test_joined_labels_are_cut_by_the_frames_of_video_files(tmp_path):
    for name, n_frames in LENGTHS.items():
        video_file(tmp_path / "test" / f"{name}.mp4", n_frames)
    np.save(tmp_path / "frame_labels.npy", np.concatenate(list(LABELS.values())))
    assert_labels(open_dataset(tmp_path), LABELS)


def test_labels_as_ranges_in_mat(benchmark):
    # First and last frames counted from 1: a column an event, nothing where all is normal.
    gt = cell([np.array([[3], [4]]), np.array([[1, 7], [1, 8]])])
    save_mat(benchmark / "testing" / "ped2.mat", {"gt": gt})
    assert_labels(open_dataset(benchmark), LABELS)


def test_mat_video_without_events_is_normal(benchmark):
    gt = cell([np.array([3, 4]), np.zeros((0, 0))])
    save_mat(benchmark / "ped2.mat", {"gt": gt})
    assert_labels(open_dataset(benchmark), {"01": LABELS["01"], "02": np.zeros(8, np.uint8)})


@pytest.mark.parametrize("stacked", [False, True], ids=["cell", "volume"])
def test_labels_and_masks_from_vol_label(benchmark, stacked):
    for number, labels in enumerate(LABELS.values(), start=1):
        masks = masks_for(labels).astype(np.uint8)
        volume = np.moveaxis(masks, 0, -1) if stacked else cell(list(masks))
        save_mat(benchmark / f"testing_label_mask/{number}_label.mat", {"volLabel": volume})
    dataset = open_dataset(benchmark)
    assert_labels(dataset, LABELS)
    assert dataset.labels_from == "volLabel masks (testing_label_mask/)"
    assert f"labels of 2 of 2 test videos from {dataset.labels_from}" in dataset.notes
    assert dataset.test[1].masks is not None
    np.testing.assert_array_equal(dataset.test[1].masks.frame(6), masks_for(LABELS["02"])[6])


def test_mat_needs_no_scipy(benchmark, monkeypatch):
    save_mat(benchmark / "ped2.mat", {"gt": cell([np.array([3, 4]), np.array([1, 2])])})
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert open_dataset(benchmark).labels_from == "ped2.mat"


def test_archive_and_array_under_the_others_name_are_refused(benchmark):
    np.savez(benchmark / "real.npz", **LABELS)
    (benchmark / "real.npz").rename(benchmark / "frame_labels.npy")
    with pytest.raises(DataError, match=r"an archive of arrays; rename it to \.npz"):
        open_dataset(benchmark)
    np.save(benchmark / "real.npy", LABELS["01"])
    (benchmark / "real.npy").rename(benchmark / "labels.npz")
    with pytest.raises(DataError, match=r"a single array; rename it to \.npy"):
        open_dataset(benchmark)


def test_some_videos_may_lack_labels(benchmark):
    np.savez(benchmark / "labels.npz", **{"02": LABELS["02"]})
    dataset = open_dataset(benchmark)
    assert dataset.test[0].labels is None
    assert dataset.test[1].labels is not None
    assert "labels of 1 of 2 test videos from labels.npz; none for 01" in dataset.notes


@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_labels_of_another_length_are_refused(benchmark, change):
    wrong = np.zeros(8 + change, dtype=np.uint8)
    np.savez(benchmark / "labels.npz", **{**LABELS, "02": wrong})
    message = f"02: labels for {8 + change} frames, but the video has 8; give labels made for"
    with pytest.raises(DataError, match=message):
        open_dataset(benchmark)


def test_length_of_a_video_file_is_checked_by_whoever_decodes_it(tmp_path):
    video_file(tmp_path / "test" / "v.mp4", 8)
    np.savez(tmp_path / "labels.npz", v=np.zeros(7, dtype=np.uint8))
    (video,) = open_dataset(tmp_path).test
    check_length(video, 7)
    with pytest.raises(DataError, match="v: labels for 7 frames, but the video has 8"):
        check_length(video, 8)
    check_length(Video("v", video.path), 8)  # nothing known, nothing to refuse


def test_joined_labels_of_another_length_are_refused(benchmark):
    np.save(benchmark / "frame_labels.npy", np.zeros(13, dtype=np.uint8))
    with pytest.raises(DataError, match="labels for 13 frames, but the 2 test videos have 14"):
        open_dataset(benchmark)


def test_labels_under_other_names_are_refused(benchmark):
    np.savez(benchmark / "labels.npz", first=LABELS["01"], second=LABELS["02"])
    with pytest.raises(DataError, match="holds first, second, none of the test videos 01, 02"):
        open_dataset(benchmark)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0, 0, 2, 2, 0, 0]), "with values up to 2"),
        (np.array([0, 0.5, 1, 1, 0, 0]), "must be one 0"),
        (np.array([0, np.nan, 1, 1, 0, 0]), "must be one 0"),
        (np.zeros((6, 4)), r"got float64\[6, 4\]"),
        (np.array(["normal"] * 6), "must be one 0"),
        (np.zeros(0), "must be one 0"),
    ],
    ids=["classes", "soft", "nan", "matrix", "words", "empty"],
)
def test_values_that_are_no_labels_are_refused(benchmark, values, message):
    np.savez(benchmark / "labels.npz", **{**LABELS, "01": values})
    with pytest.raises(DataError, match=message):
        open_dataset(benchmark)


class Explosive:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a label file was unpickled",))


@pytest.mark.parametrize("name", ["labels.npz", "frame_labels.npy"])
def test_pickles_are_never_opened(benchmark, name):
    objects = np.array([Explosive()], dtype=object)
    if name.endswith("npz"):
        np.savez(benchmark / name, **{"01": objects})
    else:
        np.save(benchmark / name, objects)
    with pytest.raises(DataError, match="not a readable"):
        open_dataset(benchmark)


@pytest.mark.parametrize("name", ["labels.npz", "frame_labels.npy", "pixel_masks.npz", "gt.mat"])
@pytest.mark.parametrize("content", [b"", b"plain text, not an array", b"PK\x03\x04 half"])
def test_broken_label_files_are_refused(benchmark, name, content):
    (benchmark / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: not a readable"):
        open_dataset(benchmark)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"truth": np.zeros(3)}, r"holds \['truth'\], not gt"),
        ({"gt": cell([np.array([1, 2])])}, "1 cells in gt for 2 test videos"),
        ({"gt": np.zeros((1, 2))}, "gt must be a cell of ranges a video, got float64"),
        ({"gt": cell([np.array([3, 7]), np.array([1, 2])])}, "from frame 3 to 7.* has 6 frames"),
        ({"gt": cell([np.array([0, 2]), np.array([1, 2])])}, "from frame 0 to 2"),
        ({"gt": cell([np.array([4, 3]), np.array([1, 2])])}, "from frame 4 to 3"),
        ({"gt": cell([np.ones((3, 2)), np.array([1, 2])])}, r"\[2, events\], got float64\[3, 2\]"),
    ],
    ids=["key", "count", "no-cell", "beyond", "zero", "backwards", "shape"],
)
def test_ranges_that_do_not_fit_are_refused(benchmark, content, message):
    save_mat(benchmark / "gt.mat", content)
    with pytest.raises(DataError, match=message):
        open_dataset(benchmark)


def test_vol_label_files_must_be_one_a_video(benchmark):
    save_mat(benchmark / "testing_label_mask/1_label.mat", {"volLabel": np.zeros((H, W, 6))})
    with pytest.raises(DataError, match="1 label files for 2 test videos"):
        open_dataset(benchmark)


# ---------------------------------------------------------------------------- masks


@pytest.mark.parametrize("packed", [True, False])
def test_pixel_masks_in_npz(benchmark, packed):
    masks = {name: masks_for(labels) for name, labels in LABELS.items()}
    stored = {n: np.packbits(m, axis=-1) if packed else m for n, m in masks.items()}
    np.savez(benchmark / "pixel_masks.npz", **stored)
    dataset = open_dataset(benchmark)
    assert_labels(dataset, LABELS)  # any mask pixel makes a frame abnormal
    for video in dataset.test:
        assert video.masks is not None
        assert len(video.masks) == LENGTHS[video.name]
        for index, expected in enumerate(masks[video.name]):
            mask = video.masks.frame(index)
            assert mask.dtype == np.bool_
            np.testing.assert_array_equal(mask, expected)


def test_pixel_masks_in_a_folder_of_npy(benchmark):
    (benchmark / "testing/test_pixel_mask").mkdir()
    for name, labels in LABELS.items():
        np.save(benchmark / f"testing/test_pixel_mask/{name}.npy", masks_for(labels))
    dataset = open_dataset(benchmark)
    assert dataset.test[0].masks is not None
    np.testing.assert_array_equal(dataset.test[0].masks.frame(2), masks_for(LABELS["01"])[2])


def test_labels_and_masks_that_disagree_are_mentioned(benchmark):
    np.savez(benchmark / "labels.npz", **LABELS)
    wider = LABELS["01"] | np.array([0, 1, 0, 0, 1, 0], dtype=np.uint8)
    np.savez(benchmark / "pixel_masks.npz", **{"01": masks_for(wider)})
    dataset = open_dataset(benchmark)
    assert_labels(dataset, LABELS)
    assert (
        "labels.npz and pixel masks pixel_masks.npz disagree on 2 of 6 frames (33.3%; 01: 2); "
        "labels.npz is used, --labels masks takes the other"
    ) in dataset.notes


def test_masks_of_another_size_or_length_are_refused(benchmark):
    np.savez(benchmark / "pixel_masks.npz", **{"01": np.zeros((6, H, W + 1), dtype=bool)})
    with pytest.raises(DataError, match=rf"must be masks \[n, {H}, {W}\].* got bool\[6, 20, 31\]"):
        open_dataset(benchmark)
    np.savez(benchmark / "pixel_masks.npz", **{"01": np.zeros((5, H, W), dtype=bool)})
    with pytest.raises(DataError, match=r"01: .* for 5 frames, but the video has 6"):
        open_dataset(benchmark)


# ---------------------------------------------------------------------------- fingerprint


def test_fingerprint_follows_names_and_labels_alone():
    videos = [Video(name, Path(name), labels) for name, labels in LABELS.items()]
    mark = fingerprint(videos)
    assert mark is not None
    assert len(mark) == 16
    moved = [Video(v.name, Path("elsewhere"), v.labels) for v in reversed(videos)]
    assert fingerprint(moved) == mark
    assert fingerprint([*videos, Video("unlabelled", Path("u"))]) == mark
    flipped = LABELS["01"].copy()
    flipped[0] = 1
    assert fingerprint([Video("01", Path("01"), flipped), videos[1]]) != mark
    renamed = [Video("03", Path("01"), LABELS["01"]), videos[1]]
    assert fingerprint(renamed) != mark
    assert fingerprint([Video("u", Path("u"))]) is None


def test_ped2_is_recognised_by_its_labels():
    root = os.environ.get("SFN_DATA")
    if root is None or not Path(root, "ped2").is_dir():
        pytest.skip("SFN_DATA is unset, or lacks ped2")
    dataset = open_dataset(Path(root, "ped2"))
    assert (len(dataset.train), len(dataset.test)) == (16, 12)
    assert dataset.published == "ped2"
    labels = [video.labels for video in dataset.test if video.labels is not None]
    assert sum(map(len, labels)) == 2010
    assert sum(int(values.sum()) for values in labels) == 1648
    assert not any("disagree" in note for note in dataset.notes)
    masks = dataset.test[0].masks
    assert masks is not None
    assert masks.frame(100).shape == (240, 360)
    np.testing.assert_array_equal(masks.any(), labels[0])
