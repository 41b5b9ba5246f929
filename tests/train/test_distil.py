"""Teaching the student: clips that are as fast as they say, the device's own error, one network."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from sfn_rt.datasets import open_dataset
from sfn_rt.evidence import BLOCK, EvidenceStream
from sfn_rt.frames import open_source
from sfn_rt.normal import NormalFootage, SceneModel
from sfn_rt.pipeline import grouped
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.semantics.captioner import Clip
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_rt.semantics.scene import Scene, Thing
from sfn_train import distil, loop
from sfn_train.checkpoint import CONFIG, Run, load_run
from sfn_train.cli import app
from sfn_train.config import Config, parse_config
from sfn_train.data.hastened import Box, HastenedClips, hastened
from sfn_train.data.prepare import Prepared, prepare
from sfn_train.data.split import Span
from sfn_train.distil import Sentences, Teacher, correlations, ranks, teach
from sfn_train.model import SFN
from sfn_train.statistics import open_perception
from sfn_train.text import TextModel

QUICK = (
    "model.student=8",
    "distil.steps=40",
    "distil.batch=4",
    "distil.learning_rate=0.01",
)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips to measure a student on: a good estimate is not what these tests ask for."""
    monkeypatch.setattr(distil, "HELD_OUT", 32)


@pytest.fixture(scope="module")
def settings(tiny_yaml: str) -> Config:
    return parse_config(tiny_yaml, "tiny", QUICK)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, footage: Path, settings: Config) -> Prepared:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(open_dataset(footage), settings, cache, say=lambda text: None, progress=False)


@pytest.fixture(scope="module")
def text() -> TextModel:
    return TextModel()


def network(config: Config) -> SFN:
    torch.manual_seed(0)
    return SFN(config.sfn).eval()


# ------------------------------------------------------------------------------- faster clips


def numbered(prepared: Prepared) -> Prepared:
    """Footage whose every pixel says which frame of which video it is of."""
    videos = []
    for i, video in enumerate(prepared.videos):
        numbers = 100 * i + np.arange(video.n_frames, dtype=np.float16)
        pixels = np.broadcast_to(numbers[:, None, None, None], video.pixels.shape)
        videos.append(replace(video, pixels=pixels))
    return replace(prepared, videos=tuple(videos))


def draws(clips: HastenedClips, n: int = 200) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    random = np.random.default_rng(0)
    for _ in range(n):
        drawn = clips.draw(random)
        yield drawn.frames, drawn.captions


def test_a_clip_made_faster_is_of_every_sth_frame_of_one_span(
    prepared: Prepared, settings: Config
) -> None:
    config = replace(settings, distil=replace(settings.distil, alone=0.0))
    spans = (Span(0, 3, 30), Span(1, 10, 22))
    clips = HastenedClips(numbered(prepared), config, spans)
    seen: dict[tuple[int, int], int] = {}
    for frames, _ in draws(clips, 600):
        assert (frames == frames[:, :1, :1, :1]).all()
        video, first = divmod(int(frames[0, 0, 0, 0]), 100)
        steps = np.diff(frames[:, 0, 0, 0])
        assert (steps == steps[0]).all()
        last = first + 3 * int(steps[0])
        assert spans[video].start <= first
        assert last + 1 < spans[video].stop, "a frame is predicted from it"
        seen[video, int(steps[0])] = seen.get((video, int(steps[0])), 0) + 1
    assert {speed for _, speed in seen} == {1, 2, 3, 4, 5}
    assert {video for video, _ in seen} == {0, 1}
    assert (1, 5) not in seen, "12 frames hold no clip of every 5th"
    assert sum(n for (_, speed), n in seen.items() if speed == 5) > 80, "speeds are alike often"


def test_around_one_thing_alone_the_clip_is_faster(prepared: Prepared, settings: Config) -> None:
    config = replace(settings, distil=replace(settings.distil, alone=1.0, speeds=(1, 4)))
    clips = HastenedClips(numbered(prepared), config, prepared.split.train)
    mixed = 0
    for frames, _ in draws(clips):
        last = frames[-1, 0]
        assert (last == last[0, 0]).all(), "both clips end in one picture"
        ago = last[0, 0] - frames[0, 0]  # (h, w) frames
        assert set(np.unique(ago)) <= {3, 12}
        mixed += len(np.unique(ago)) == 2
    assert mixed > 50


def thing(x: float, y: float, vx: float = 0.0, vy: float = 0.0) -> Thing:
    return Thing(x, y, 8, 10, 60, float(np.hypot(vx, vy)), vx, vy)


def test_the_things_inside_are_that_much_faster_and_no_others() -> None:
    runner, walker = thing(40, 20, vx=2), thing(70, 20, vx=1)
    scene = Scene(96, 64, (runner, walker))
    around = Box.swept(runner, 3 * 4)
    faster = hastened(scene, 4, around)
    assert faster.things == (replace(runner, speed=8, vx=8), walker)
    assert hastened(scene, 4, None).things[1] == replace(walker, speed=4, vx=4)
    assert hastened(scene, 1, None) is scene


@pytest.mark.parametrize(("vx", "vy"), [(2, 0), (-2, 0), (0, 1.5), (-1, -1)])
def test_the_box_holds_where_the_thing_came_from(vx: float, vy: float) -> None:
    at = thing(40, 20, vx, vy)
    box = Box.swept(at, 12)
    for ago in range(13):
        x, y = at.x - ago * vx, at.y - ago * vy
        assert box.x0 < x
        assert x + at.w < box.x1
        assert box.y0 < y
        assert y + at.h < box.y1
    rows, columns = box.cells(Scene(96, 64, ()), 16, 24)
    assert 0 <= rows.start < rows.stop <= 16
    assert 0 <= columns.start < columns.stop <= 24


def test_captions_are_those_of_the_last_picture_made_faster(
    prepared: Prepared, settings: Config
) -> None:
    config = replace(settings, distil=replace(settings.distil, alone=0.0))
    captioner = SceneCaptioner(prepared.attributes)
    scenes = {100 * i + t: s for i, v in enumerate(prepared.videos) for t, s in enumerate(v.scenes)}
    clips = HastenedClips(numbered(prepared), config, prepared.split.train)
    said = {1: set(), 5: set()}  # type: dict[int, set[str]]
    for frames, captions in draws(clips):
        last, speed = int(frames[-1, 0, 0, 0]), int(frames[1, 0, 0, 0] - frames[0, 0, 0, 0])
        scene = hastened(scenes[last], speed, None)
        assert captions == (captioner.caption(Clip(last % 100, (), (scene,))),)
        said.setdefault(speed, set()).add(captions[0])
    assert said[5] - said[1], "what is five times as fast is told in other words"


def test_a_longer_window_is_told_at_the_same_speed(prepared: Prepared, settings: Config) -> None:
    windows = replace(settings.sfn, windows=(4, 8))
    config = replace(settings, model=windows, distil=replace(settings.distil, alone=0.0))
    captioner = SceneCaptioner(prepared.attributes)
    clips = HastenedClips(numbered(prepared), config, prepared.split.train)
    for frames, captions in draws(clips, 40):
        video, last = divmod(int(frames[-1, 0, 0, 0]), 100)
        speed = int(frames[1, 0, 0, 0] - frames[0, 0, 0, 0])
        scenes = prepared.videos[video].scenes
        seen = [hastened(scenes[t], speed, None) for t in range(last, -1, -speed)][:8][::-1]
        assert captions[1] == captioner.caption(Clip(last, (), seen, longer=True))


def test_captions_made_elsewhere_are_of_the_footage_as_it_is(
    prepared: Prepared, settings: Config
) -> None:
    semantics = replace(settings.semantics, captioner="cached", captions="elsewhere")
    clips = HastenedClips(
        numbered(prepared), replace(settings, semantics=semantics), prepared.split.train
    )
    assert clips.speeds == (1,)
    for frames, captions in draws(clips, 40):
        video, last = divmod(int(frames[-1, 0, 0, 0]), 100)
        assert last - int(frames[0, 0, 0, 0]) % 100 == 3
        (number,) = prepared.videos[video].caption_ids[last + 1]
        assert captions == (prepared.sentences[number],)


# ------------------------------------------------------------------------- teacher and student


def test_the_teachers_error_and_the_students_are_those_of_the_device(
    prepared: Prepared, settings: Config, text: TextModel
) -> None:
    model, video = network(settings), prepared.videos[0]
    every = replace(settings, semantics=replace(settings.semantics, stride=1))
    scene = SceneModel(prepared.attributes, prepared.background, prepared.thumbnails)
    visual = VisualConfig(grid_height=2, grid_width=3)
    with open_perception(Run(Path(), every, model, {}, {}), scene, visual, text) as perception:
        stream = EvidenceStream(perception)
        with open_source(video.path) as source:
            rows = [row for b in grouped(source, BLOCK) for row in stream.predict(stream.look(b))]
    teacher = Teacher(model, Sentences(prepared, text))
    for end in (3, 11, 20):
        (span,) = [Span(0, end - 3, end + 2)]
        clip = HastenedClips(prepared, settings, (span,)).draw(np.random.default_rng(0), speed=1)
        encoded, error = teacher.pairs([clip])
        assert model.decoder.student is not None
        with torch.no_grad():
            guessed = model.decoder.student(encoded.appearance, encoded.motion)
        row = rows[end + 1]
        # Prepared frames are float16.
        assert float(error[0]) == pytest.approx(row.terms["semantic"], abs=2e-3)
        assert float(guessed[0]) == pytest.approx(row.signals["distilled"], rel=2e-2)


def test_only_the_student_learns_and_always_the_same(
    prepared: Prepared, settings: Config, text: TextModel
) -> None:
    taught = []
    for seed in (0, 0, 1):
        config = replace(settings, train=replace(settings.train, seed=seed))
        model = network(config)
        before = {name: x.clone() for name, x in model.state_dict().items()}
        torch.manual_seed(len(taught))  # whatever was drawn before
        run = teach(Run(Path(), config, model, {}, {"a": 1}), prepared, text=text, progress=False)
        after = run.model.state_dict()
        changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
        assert changed
        assert {name.rpartition("student")[0] for name in changed} == {"decoder."}
        assert run.info["a"] == 1
        assert run.info["student"]["speeds"] == [1, 2, 3, 4, 5]
        taught.append((after, run.info["student"]["held_out"]))
    assert taught[0][1] == taught[1][1] != taught[2][1]
    assert all(torch.equal(x, taught[1][0][name]) for name, x in taught[0][0].items())


def test_it_comes_to_know_errors_of_this_size(
    prepared: Prepared, settings: Config, text: TextModel
) -> None:
    model = network(settings)
    teacher = Teacher(model, Sentences(prepared, text))
    clips = HastenedClips(prepared, settings, prepared.split.held_out)
    random = np.random.default_rng(5)
    encoded, real = teacher.pairs([clips.draw(random) for _ in range(24)])

    def off() -> float:
        assert model.decoder.student is not None
        with torch.no_grad():
            guessed = model.decoder.student(encoded.appearance, encoded.motion)
        return float((guessed.log() - real.log()).abs().mean())

    before = off()
    teach(Run(Path(), settings, model, {}, {}), prepared, text=text, progress=False)
    assert off() < before / 3


def test_correlations_are_those_of_scipy() -> None:
    from scipy.stats import pearsonr, rankdata, spearmanr

    random = np.random.default_rng(0)
    one = random.integers(0, 20, 200).astype(np.float64)
    other = one**3 + random.normal(0, 500, 200)
    found = correlations(one, other)
    assert found["pearson"] == pytest.approx(pearsonr(one, other).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(one, other).statistic)
    np.testing.assert_array_equal(ranks(one), rankdata(one) - 1)
    assert correlations(one, np.ones(200)) == {"pearson": 0.0, "spearman": 0.0}


# -------------------------------------------------------------------------------- the commands


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, footage: Path, tiny_yaml: str) -> Path:
    """A run from before there were students."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(tiny_yaml, encoding="utf-8")
    out = folder / "run"
    done = invoke(
        "train", footage, "--config", folder / "tiny.yaml", "--out", out, "--set", "train.steps=2"
    )
    assert done.exit_code == 0, done.output
    raw = yaml.safe_load((out / CONFIG).read_text("utf-8"))
    del raw["model"]["student"], raw["distil"]
    (out / CONFIG).write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def quicken(run: Path) -> None:
    raw = yaml.safe_load((run / CONFIG).read_text("utf-8"))
    raw["distil"] = {"steps": 2, "batch": 2}
    (run / CONFIG).write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def test_an_old_run_gets_a_student_and_nothing_else_of_it_changes(run: Path) -> None:
    old = load_run(run)
    assert old.config.sfn.student == 0
    quicken(run)
    done = invoke("distil", run, "--width", 8)
    assert done.exit_code == 0, done.output
    assert "learned  2 steps" in done.stdout
    assert "student  pearson" in done.stdout
    assert done.stdout.endswith(f"next     make export RUN={run}\n")
    new = load_run(run)
    assert new.config.sfn.student == 8
    assert new.info["config_sha256"] == new.config.fingerprint()
    weights = new.model.state_dict()
    assert all(torch.equal(weights[name], x) for name, x in old.model.state_dict().items())
    before, after = (NormalFootage.from_arrays(r.normal) for r in (old, new))
    assert set(after.signals) == {"appearance", "motion", "distilled"}
    assert set(before.signals) == {"appearance", "motion"}
    assert after.thresholds == before.thresholds

    again = invoke("distil", run)
    assert again.exit_code == 0, again.output
    assert load_run(run).config.sfn.student == 8, "the width is the run's own"
    assert all(torch.equal(load_run(run).model.state_dict()[n], x) for n, x in weights.items())


def test_other_footage_than_the_runs_is_refused(run: Path, tmp_path: Path, footage: Path) -> None:
    other = Path(shutil.copytree(footage, tmp_path / "other"))
    shutil.rmtree(other / "training" / "frames" / "01")
    done = invoke("distil", run, "--data", other)
    assert done.exit_code == 2
    assert "is not what" in done.stderr
    assert "name the footage it was trained on with --data" in done.stderr
    info = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps({**info, "data": str(tmp_path / "gone")}), "utf-8")
    gone = invoke("distil", run)
    assert gone.exit_code == 2
    assert "which it was trained on, is gone; name it with --data" in gone.stderr


def test_a_model_without_captions_has_nothing_to_distil(
    footage: Path, tiny_yaml: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_yaml, encoding="utf-8")
    out = tmp_path / "run"
    changes = ("train.steps=1", "model.use_text=false", "model.student=8")
    sets = [part for change in changes for part in ("--set", change)]
    made = invoke("train", footage, "--config", tmp_path / "tiny.yaml", "--out", out, *sets)
    assert made.exit_code == 0, made.output
    assert "student" not in made.stdout
    done = invoke("distil", out)
    assert done.exit_code == 2
    assert "predicts no captions, so there is no error to distil" in done.stderr


def test_training_ends_with_teaching_the_student(
    prepared: Prepared, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fit_statistics", lambda run, prepared: run)
    config = replace(settings, train=replace(settings.train, steps=1))
    summary = loop.fit(prepared, config, tmp_path / "run")
    assert summary is not None
    assert "student  pearson" in summary.text()
    info = load_run(tmp_path / "run").info
    assert info["student"]["steps"] == 40
    assert info["student"]["held_out"] == summary.student


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distil.speeds=[2, 3]", r"distil: speeds must be 1 and whole numbers above, got \[2, 3\]"),
        ("distil.speeds=[0, 1]", "distil: speeds must be 1"),
        ("distil.steps=0", "distil: steps must be at least 1, got 0"),
        ("distil.alone=1.5", "distil: alone must be a share"),
        ("distil.learning_rate=0", "distil: learning_rate must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_yaml: str, change: str, message: str) -> None:
    from sfn_train.exceptions import ConfigError

    with pytest.raises(ConfigError, match=message):
        parse_config(tiny_yaml, "tiny", [change])
