"""The synthetic walkway: same seed same set, labels that are the masks, and no cheap way to win."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from sfn_rt.baselines import Baselines, from_length
from sfn_rt.metrics import roc_auc
from sfn_rt.scores import OBSERVED, moving_average
from sfn_train.data.synthetic import PLAN, make_scene, make_walkway

SIZE = (96, 144)


def tiny(root: Path, seed: int = 0) -> Path:
    return make_walkway(
        root, seed=seed, n_train=1, n_test=6, train_frames=6, test_frames=12, size=SIZE
    )


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 25
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)  # (T, H, W, 3)


@pytest.fixture(scope="module")
def walkway(tmp_path_factory) -> Path:
    return tiny(tmp_path_factory.mktemp("walkway"))


def test_layout_and_lengths(walkway):
    names = sorted(str(p.relative_to(walkway)) for p in walkway.rglob("*") if p.is_file())
    assert names == [
        "anomalies.json",
        "frame_labels.npz",
        "pixel_masks.npz",
        *(f"testing/videos/{i:02d}.mp4" for i in range(1, 7)),
        "training/videos/01.mp4",
    ]
    assert decoded(walkway / "training/videos/01.mp4").shape == (6, *SIZE, 3)
    labels, masks = np.load(walkway / "frame_labels.npz"), np.load(walkway / "pixel_masks.npz")
    assert labels.files == masks.files == [f"{i:02d}" for i in range(1, 7)]
    for name in labels:
        assert labels[name].shape == (12,)
        assert labels[name].dtype == np.uint8
        assert len(decoded(walkway / f"testing/videos/{name}.mp4")) == 12


def test_a_frame_is_abnormal_where_its_mask_has_a_pixel(walkway):
    labels, masks = np.load(walkway / "frame_labels.npz"), np.load(walkway / "pixel_masks.npz")
    for name in labels:
        mask = np.unpackbits(masks[name], axis=-1)[..., : SIZE[1]]  # (T, H, W)
        assert mask.shape == (12, *SIZE)
        np.testing.assert_array_equal(mask.any(axis=(1, 2)), labels[name])
    assert any(labels[name].any() for name in labels)


def test_anomalies_json_names_each_abnormal_run(walkway):
    labels = np.load(walkway / "frame_labels.npz")
    story = json.loads((walkway / "anomalies.json").read_text())
    for name in labels:
        covered = np.zeros(12, np.uint8)
        for event in story[name]:
            covered[event["start_frame"] : event["end_frame"] + 1] = 1
        np.testing.assert_array_equal(covered, labels[name])


def test_the_seed_decides_everything(walkway, tmp_path):
    same, other = tiny(tmp_path / "same"), tiny(tmp_path / "other", seed=1)
    for path in walkway.rglob("*.mp4"):
        where = path.relative_to(walkway)
        np.testing.assert_array_equal(decoded(path), decoded(same / where))
        assert (decoded(path) != decoded(other / where)).any()
    for file in ("frame_labels.npz", "pixel_masks.npz"):
        first, again = np.load(walkway / file), np.load(same / file)
        for name in first:
            np.testing.assert_array_equal(first[name], again[name])


def test_normal_scenes_hold_nothing_abnormal():
    for seed in range(5):
        scene = make_scene(np.random.default_rng(seed), 100, 360.0)
        for t in range(0, 100, 20):
            assert not any(figure.odd for actor in scene.actors if (figure := actor(t)))


@pytest.mark.parametrize(("kind", "at"), [entry for plan in PLAN for entry in plan])
def test_each_anomaly_begins_and_ends_or_lasts(kind, at):
    scene = make_scene(np.random.default_rng(0), 200, 360.0, ((kind, at),))
    odd = [
        any(figure.odd for actor in scene.actors if (figure := actor(t)))
        for t in range(-300, 600, 5)
    ]
    assert any(odd[60:100]), "not seen in the video"
    assert not odd[0]
    assert not odd[-1]


def test_odd_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two even numbers"):
        make_walkway(tmp_path, size=(95, 144))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_model_wins_on_the_full_set(tmp_path):
    """The bound of docs: every baseline's causal AUC stays below 90."""
    root = make_walkway(tmp_path)
    train = [decoded(path) for path in sorted((root / "training/videos").iterdir())]
    baselines = Baselines.fit(lambda: train)
    assert sum(map(len, train)) == 1500
    labels = np.load(root / "frame_labels.npz")
    scores: dict[str, list[np.ndarray]] = {}
    for name in labels:
        baselines.reset()
        rows = [baselines.update(frame) for frame in decoded(root / f"testing/videos/{name}.mp4")]
        columns = {key: np.array([row[key] for row in rows]) for key in baselines.names}
        for key, values in (from_length(len(rows)) | columns).items():
            scores.setdefault(key, []).append(moving_average(values[OBSERVED:]))
    truth = np.concatenate([labels[name][OBSERVED:] for name in labels])
    assert len(truth) == 1200 - 6 * OBSERVED
    assert 0.3 < truth.mean() < 0.7
    auc = {key: roc_auc(np.concatenate(value), truth) for key, value in scores.items()}
    assert max(auc.values()) < 0.9, auc
