"""The published data sets in the layouts their owners and others ship them in, in small."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from sfn_rt.datasets import Dataset, open_dataset
from sfn_rt.datasets.known import AVENUE, BENCHMARKS, differences, recognise
from sfn_rt.exceptions import DataError

H, W = 20, 30
LABELS = (
    np.array([0, 0, 1, 1, 0, 0], dtype=np.uint8),
    np.array([1, 0, 0, 0, 0, 0, 1, 1], dtype=np.uint8),
)
PED2_M = """\
% Example of how to read ground truth: gt_frame = [1:2];
TestVideoFile = {};
TestVideoFile{end+1}.gt_frame = [61:180];
TestVideoFile{end+1}.gt_frame = [95:180];
TestVideoFile{end+1}.gt_frame = [1:146];
TestVideoFile{end+1}.gt_frame = [31:180];
TestVideoFile{end+1}.gt_frame = [1:129];
TestVideoFile{end+1}.gt_frame = [1:159];
TestVideoFile{end+1}.gt_frame = [46:180];
TestVideoFile{end+1}.gt_frame = [1:180];
TestVideoFile{end+1}.gt_frame = [1:120];
TestVideoFile{end+1}.gt_frame = [1:150];
TestVideoFile{end+1}.gt_frame = [1:180];
TestVideoFile{end+1}.gt_frame = [88:180];
"""
SMALL_M = """\
TestVideoFile = {};\r
TestVideoFile{end+1}.gt_frame = [3:4];\r
TestVideoFile{end+1}.gt_frame = [1, 7:8];  % twice\r
"""


def pictures(folder: Path, n: int, suffix: str = ".tif", value: int = 90) -> Path:
    folder.mkdir(parents=True)
    for index in range(1, n + 1):
        image = np.full((H, W), value, np.uint8)
        assert cv2.imwrite(str(folder / f"{index:03}{suffix}"), image)
    return folder


def film(path: Path, n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuvj420p"
        for index in range(n):
            image = np.full((H, W, 3), 9 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


def masks(labels: np.ndarray) -> np.ndarray:
    marked = np.zeros((len(labels), H, W), dtype=np.uint8)
    marked[labels == 1, 2:5, 25:29] = 1
    return marked


def mask_pictures(folder: Path, labels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, mask in enumerate(masks(labels), start=1):
        assert cv2.imwrite(str(folder / f"{index:03}.bmp"), 255 * mask)


def vol_label(path: Path, labels: np.ndarray) -> None:
    volume = np.empty((1, len(labels)), dtype=object)
    for index, mask in enumerate(masks(labels)):
        volume[0, index] = mask
    save_mat(path, volLabel=volume)


def save_mat(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("scipy.io").savemat(str(path), content)


# ---------------------------------------------------------------------------- every layout


def ucsd(root: Path) -> Path:
    """UCSD_Anomaly_Dataset.v1p2/UCSDped1, with what macOS and Windows left in it."""
    inner = root / "UCSDped1"
    pictures(inner / "Train" / "Train001", 5)
    for number, labels in enumerate(LABELS, start=1):
        folder = pictures(inner / "Test" / f"Test{number:03}", len(labels))
        (folder / "._001.tif").write_bytes(b"\0\5\x16\7")
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    mask_pictures(inner / "Test" / "Test001_gt", LABELS[0])
    (inner / "Test" / "UCSDped1.m").write_text(SMALL_M, newline="")
    (inner / "Test" / "._Test001").write_bytes(b"\0")
    return inner


def ucsd_masks_alone(root: Path) -> Path:
    inner = ucsd(root)
    (inner / "Test" / "UCSDped1.m").unlink()
    mask_pictures(inner / "Test" / "Test002_gt", LABELS[1])
    return inner


def avenue(root: Path) -> Path:
    """Avenue_Dataset.zip and ground_truth_demo.zip unpacked side by side."""
    film(root / "Avenue Dataset" / "training_videos" / "01.avi", 5)
    for number, labels in enumerate(LABELS, start=1):
        film(root / "Avenue Dataset" / "testing_videos" / f"{number:02}.avi", len(labels))
        truth = root / "ground_truth_demo" / "testing_label_mask"
        vol_label(truth / f"{number}_label.mat", labels)
    save_mat(root / "Avenue Dataset" / "testing_vol" / "vol01.mat", vol=np.zeros((3, 3)))
    (root / "ground_truth_demo" / "demo.m").write_text("imshow(volLabel{1});\n")
    return root


def avenue_archive(root: Path) -> Path:
    return avenue(root) / "Avenue Dataset"


def shanghaitech(root: Path) -> Path:
    film(root / "training" / "videos" / "01_001.avi", 5)
    for scene, labels in zip(("01_0014", "12_0151"), LABELS, strict=True):
        pictures(root / "testing" / "frames" / scene, len(labels), ".jpg")
        for kind, array in (("frame", labels.astype(np.int64)), ("pixel", masks(labels))):
            folder = root / "testing" / f"test_{kind}_mask"
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{scene}.npy", array)
    return root


def frames_layout(root: Path) -> Path:
    pictures(root / "training" / "frames" / "01", 5, ".jpg")
    for number, labels in enumerate(LABELS, start=1):
        pictures(root / "testing" / "frames" / f"{number:02}", len(labels), ".jpg")
    return root


def joined_npy(root: Path) -> Path:
    np.save(frames_layout(root) / "frame_labels_ped2.npy", np.concatenate(LABELS)[None])
    return root


def ground_truth_mat(root: Path) -> Path:
    gt = np.empty((1, 2), dtype=object)
    gt[0, 0], gt[0, 1] = np.array([[3], [4]]), np.array([[1, 7], [1, 8]])
    save_mat(frames_layout(root) / "ground_truth.mat", gt=gt)
    return root


def mask_folders(root: Path) -> Path:
    frames_layout(root)
    for number, labels in enumerate(LABELS, start=1):
        mask_pictures(root / "pixel_masks" / f"{number:02}", labels)
    return root


Layout = Callable[[Path], Path]


@pytest.mark.parametrize(
    ("make", "source", "n_masked"),
    [
        (ucsd, "UCSDped1.m", 1),
        (ucsd_masks_alone, "pixel masks *_gt/", 2),
        (avenue, "volLabel masks (testing_label_mask/)", 2),
        (avenue_archive, "volLabel masks (testing_label_mask/)", 2),
        (shanghaitech, "test_frame_mask/", 2),
        (joined_npy, "frame_labels_ped2.npy", 0),
        (ground_truth_mat, "ground_truth.mat", 0),
        (mask_folders, "pixel masks pixel_masks/", 2),
    ],
)
def test_every_layout_is_read_to_the_same_labels(
    tmp_path: Path, make: Layout, source: str, n_masked: int
) -> None:
    dataset = open_dataset(make(tmp_path))
    assert [len(dataset.train), len(dataset.test)] == [1, 2]
    for video, expected in zip(dataset.test, LABELS, strict=True):
        assert video.labels is not None
        np.testing.assert_array_equal(video.labels, expected)
        if video.masks is not None:
            shown = [video.masks.frame(index) for index in range(len(video.masks))]
            np.testing.assert_array_equal(shown, masks(expected).astype(bool))
    assert sum(video.masks is not None for video in dataset.test) == n_masked
    assert dataset.labels_from == source
    assert f"labels of 2 of 2 test videos from {source}" in dataset.notes
    assert dataset.published is None
    assert dataset.unmatched == ()


def test_the_archive_around_both_ucsd_sets_names_one_to_give(tmp_path: Path) -> None:
    ucsd(tmp_path)
    with pytest.raises(DataError, match=r"give one of them, such as .*UCSDped1"):
        open_dataset(tmp_path)


def test_linked_folders_are_read_and_circles_are_not(tmp_path: Path) -> None:
    root = frames_layout(tmp_path / "here")
    elsewhere = pictures(tmp_path / "disk" / "02", 7, ".jpg")
    (root / "training" / "frames" / "02").symlink_to(elsewhere, target_is_directory=True)
    (root / "training" / "frames" / "again").symlink_to(root / "training")
    (root / "training" / "frames" / "gone").symlink_to(tmp_path / "gone")
    dataset = open_dataset(root)
    assert [video.name for video in dataset.train] == ["01", "02"]
    (tmp_path / "linked").symlink_to(root, target_is_directory=True)
    assert [video.name for video in open_dataset(tmp_path / "linked").train] == ["01", "02"]


def test_test_videos_may_differ_in_size(tmp_path: Path) -> None:
    root = mask_folders(tmp_path)
    for folder in (root / "testing" / "frames" / "02", root / "pixel_masks" / "02"):
        for file in folder.iterdir():
            image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(file), cv2.resize(image, (50, 40), interpolation=cv2.INTER_NEAREST))
    sizes = [video.masks.frame(0).shape for video in open_dataset(root).test if video.masks]
    assert sizes == [(H, W), (40, 50)]


# ---------------------------------------------------------------------------- several label sets


@pytest.fixture
def two_sets(tmp_path: Path) -> Path:
    """Avenue as frames, with its masks and a label file that is off by two frames."""
    root = frames_layout(tmp_path)
    for number, labels in enumerate(LABELS, start=1):
        vol_label(root / "testing_label_mask" / f"{number}_label.mat", labels)
    other = np.concatenate(LABELS)
    other[[4, 12]] = 1, 0
    np.save(root / "frame_labels_avenue.npy", other)
    return root


def first_labels(dataset: Dataset) -> list[int]:
    labels = dataset.test[0].labels
    assert labels is not None
    return labels.tolist()


def test_vol_label_masks_decide_and_the_difference_is_told(two_sets: Path) -> None:
    dataset = open_dataset(two_sets)
    assert first_labels(dataset) == [0, 0, 1, 1, 0, 0]
    assert (
        "frame_labels_avenue.npy and volLabel masks (testing_label_mask/) disagree on 2 of 14 "
        "frames (14.3%; 01: 1, 02: 1); volLabel masks (testing_label_mask/) is used, --labels "
        "frames takes the other"
    ) in dataset.notes
    assert open_dataset(two_sets, labels="masks").fingerprint == dataset.fingerprint


def test_frame_labels_can_be_chosen_by_kind_and_by_name(two_sets: Path) -> None:
    for choice in ("frames", "frame_labels_avenue.npy"):
        dataset = open_dataset(two_sets, labels=choice)
        assert first_labels(dataset) == [0, 0, 1, 1, 1, 0]
        assert dataset.labels_from == "frame_labels_avenue.npy"
        assert dataset.masks_from == "volLabel masks (testing_label_mask/)"
    gt = np.empty((1, 2), dtype=object)
    gt[0, 0], gt[0, 1] = np.array([[1], [6]]), np.zeros((0, 0))
    save_mat(two_sets / "avenue.mat", gt=gt)
    dataset = open_dataset(two_sets, labels="avenue.mat")
    assert first_labels(dataset) == [1] * 6
    assert "also there, not read: frame labels frame_labels_avenue.npy; --labels NAME takes them " \
        "instead" in dataset.notes  # fmt: skip


@pytest.mark.parametrize("choice", ["masks", "mnad.npy"])
def test_a_choice_that_is_not_there_lists_what_is(tmp_path: Path, choice: str) -> None:
    with pytest.raises(DataError, match=f"no labels '{choice}' .*there is frame_labels_ped2.npy"):
        open_dataset(joined_npy(tmp_path), labels=choice)


def test_a_pickle_under_a_json_name_is_told_and_never_opened(tmp_path: Path) -> None:
    root = frames_layout(tmp_path)
    (root / "ground_truth_demo").mkdir()
    (root / "ground_truth_demo" / "gt_label.json").write_bytes(b"\x80\x04cos\nsystem\n")
    dataset = open_dataset(root)
    assert any("gt_label.json is a Python pickle, which is never opened" in note
               for note in dataset.notes)  # fmt: skip
    assert dataset.labels_from is None


# ---------------------------------------------------------------------------- what does not fit


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data)


def remove(*names: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        for name in names:
            path = root / name
            for file in path.iterdir() if path.is_dir() else ():
                file.unlink()
            path.rmdir() if path.is_dir() else path.unlink()

    return change


GT = "TestVideoFile{end+1}.gt_frame = "
TRUTH = "ground_truth_demo/testing_label_mask"


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (ucsd, write("Test/UCSDped1.m", "hello"), r"UCSDped1\.m: no line TestVideoFile"),
        (ucsd, write("Test/UCSDped1.m", GT + "[3:4];\n"), "1 lines of gt_frame for 2 test"),
        (ucsd, write("Test/UCSDped1.m", 2 * (GT + "[a:4];\n")), "line 1 must be .*got 'Test"),
        (ucsd, write("Test/UCSDped1.m", 2 * (GT + "[1:2:4];\n")), "line 1 must be"),
        (ucsd, write("Test/UCSDped1.m", 2 * (GT + "[3:4\n")), "line 1 must be"),
        (ucsd, write("Test/UCSDped1.m", 2 * (GT + "[3:7];\n")), "Test001.* to 7, .* has 6 frames"),
        (ucsd, remove("Test/Test001"), r"2 lines .* for 1 test .*numbers jump over 01"),
        (ucsd, remove("Test/Test001_gt/002.bmp"), "5 masks, but Test001 has 6 frames, none for 00"),
        (ucsd, write("Test/Test001_gt/002.bmp", b"BM"), r"002\.bmp: not a readable picture"),
        (avenue, remove(f"{TRUTH}/2_label.mat"), "1 label files for 2 test videos, none for 02"),
        (avenue, remove("Avenue Dataset/testing_videos/01.avi"), "1_label.mat belong to no test"),
        (avenue, write(f"{TRUTH}/1_label.mat", b"MATLAB 5.0"), r"1_label\.mat: not a readable"),
        (avenue, lambda root: save_mat(root / TRUTH / "1_label.mat", gt=np.ones(3)),
         r"holds \['gt'\], not volLabel"),
        (avenue, lambda root: save_mat(root / TRUTH / "1_label.mat", volLabel=np.ones((9, 9, 6))),
         rf"mask 1 must be a mask \[{H}, {W}\].* got float64\[9, 9\]"),
        (shanghaitech, remove("testing/test_frame_mask/12_0151.npy"),
         r"test_frame_mask: no 12_0151\.npy for a test video"),
        (shanghaitech, remove("testing/frames/12_0151"),
         "labels of 12_0151, but no test videos of that name"),
        (shanghaitech, write("testing/test_pixel_mask/12_0151.npy", b"\x93NUMPY\1\0v\0{"),
         r"12_0151\.npy: not a readable \.npy"),
        (joined_npy, remove("testing/frames/01"), r"14 frames, but the 1 test videos have 8 "
         r"\(the videos' numbers jump over 01\)"),
        (ground_truth_mat, remove("testing/frames/01"), "2 cells in gt for 1 test .* over 01"),
        (mask_folders, remove("pixel_masks/02/008.bmp"), "02: 7 masks, but 02 has 8 frames, none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, make: Layout, change: Callable[[Path], object], message: str
) -> None:
    root = make(tmp_path)
    change(root)
    with pytest.raises(DataError, match=message):
        open_dataset(root)


@pytest.mark.parametrize("folder", ["test_frame_mask", "test_pixel_mask"])
def test_pickled_arrays_are_refused(tmp_path: Path, folder: str) -> None:
    root = shanghaitech(tmp_path)
    np.save(root / "testing" / folder / "01_0014.npy", np.array([print, 1], dtype=object))
    with pytest.raises(DataError, match=r"01_0014\.npy: not a readable \.npy of a plain array"):
        open_dataset(root)


def test_masks_of_a_folder_without_a_video_are_told(tmp_path: Path) -> None:
    root = ucsd(tmp_path)
    mask_pictures(root / "Test" / "Test009_gt", LABELS[0])
    assert open_dataset(root).unmatched == ("Test009_gt",)


# ---------------------------------------------------------------------------- recognition


def linked_frames(root: Path, counts: Sequence[int], name: str = "{:02}") -> Path:
    """Test videos of so many frames, all of them the same picture."""
    picture = pictures(root / "one", 1, ".jpg") / "001.jpg"
    for number, count in enumerate(counts, start=1):
        folder = root / "data" / "testing" / "frames" / name.format(number)
        folder.mkdir(parents=True)
        for index in range(count):
            os.symlink(picture, folder / f"{index}.jpg")
    return root / "data"


def test_avenue_is_recognised_by_its_test_videos(tmp_path: Path) -> None:
    known = next(known for known in BENCHMARKS if known.key == "avenue")
    assert sum(known.test_frames) == known.frames[1] == 15324
    root = linked_frames(tmp_path, known.test_frames)
    np.save(root / "frame_labels_avenue.npy", np.arange(15324) % 2)
    dataset = open_dataset(root)
    assert dataset.published == "avenue"
    assert dataset.benchmark is known
    assert known.owners == AVENUE
    (root / "testing" / "frames" / "08" / "0.jpg").unlink()
    np.save(root / "frame_labels_avenue.npy", np.arange(15323) % 2)
    changed = open_dataset(root)
    assert changed.published is None
    note = "looks like CUHK Avenue, but test video 08 has 35 frames, not 36: no figure of it"
    assert any(text.startswith(note) for text in changed.notes)


def test_shanghaitech_is_recognised_by_its_names(tmp_path: Path) -> None:
    root = linked_frames(tmp_path, [1] * 107, "01_{:04}")
    test = open_dataset(root).test
    known = recognise(test)
    assert known is not None
    assert known.key == "shanghaitech"
    assert differences(known, test) == ["107 frames of test videos, not 40791"]
    assert differences(known, test[1:]) == ["106 test videos, not 107"]
    assert recognise(test[:40]) is None


def test_ped1_needs_its_size_too(tmp_path: Path) -> None:
    root = linked_frames(tmp_path, [200] * 36, "Test{:03}")
    assert recognise(open_dataset(root).test) is None
    cv2.imwrite(str(tmp_path / "one" / "001.jpg"), np.zeros((158, 238), np.uint8))
    known = recognise(open_dataset(root).test)
    assert known is not None
    assert known.key == "ped1"


def test_ped2_in_the_owners_layout_is_the_same_data(tmp_path: Path, ped2: Path) -> None:
    expected = open_dataset(ped2)
    for part, videos in (("Train", expected.train), ("Test", expected.test)):
        (tmp_path / part).mkdir()
        for video in videos:
            (tmp_path / part / f"{part}0{video.name}").symlink_to(video.path)
    (tmp_path / "Test" / "UCSDped2.m").write_text(PED2_M)
    dataset = open_dataset(tmp_path)
    for video, same in zip(dataset.test, expected.test, strict=True):
        assert video.labels is not None
        np.testing.assert_array_equal(video.labels, same.labels)
    assert dataset.published == expected.published == "ped2"
    assert dataset.benchmark is not None
    assert differences(dataset.benchmark, dataset.test) == []
    (tmp_path / "Test" / "Test007").unlink()
    with pytest.raises(DataError, match=r"12 lines of gt_frame for 11 test videos .*jump over 07"):
        open_dataset(tmp_path)
