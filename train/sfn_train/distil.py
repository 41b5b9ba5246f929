"""Teaching the student: what a clip looks like, to the semantic error its caption would show.

    teacher   the frozen model itself, with a caption:   e = 1 - cos(s^, s)      paper Eq. (13)
    loss      Huber of log(e^ + c) - log(e + c):  factors count, on usual and on odd clips alike

The clips are of normal training footage alone. As it is, it would teach that every caption is
predicted well; so most clips are made faster (data/hastened.py), where words are needed that the
teacher has rarely or never heard.

Axes: B clips, K captions of one, S text width.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sfn_rt.datasets import open_dataset
from sfn_rt.prediction_error import semantic_error
from sfn_rt.progress import Progress
from sfn_rt.semantics.narrator import SentenceEncoder, embed
from sfn_train.captions.known import open_text, read_captions
from sfn_train.checkpoint import Run, load_run, save_run
from sfn_train.config import Config, DistilConfig
from sfn_train.data.hastened import Array, Drawn, HastenedClips
from sfn_train.data.prepare import Prepared, Say, prepare
from sfn_train.devices import device_name
from sfn_train.exceptions import RunError
from sfn_train.model import SFN
from sfn_train.model.sfn import Encoded
from sfn_train.model.student import Student
from sfn_train.run_folder import sole_training
from sfn_train.statistics import fit_statistics

LEAST = 0.01  # c: errors below are all small
USUAL_BATCHES = 4  # of normal clips, that tell the scale of features
HELD_OUT = 256  # clips that the student is measured on
WARMUP = 20  # steps
BATCH = 16  # of those
WIDTH = 64  # of a student that a run has no setting of


class Sentences:
    """Embeds sentences, each once; those of the prepared footage are known."""

    def __init__(self, prepared: Prepared, text: SentenceEncoder) -> None:
        self._text = text
        self._rows = dict(zip(prepared.sentences, prepared.embeddings, strict=True))

    def encode(self, sentences: Sequence[str]) -> Array:
        """n sentences to (n, S)."""
        if unknown := [s for s in dict.fromkeys(sentences) if s not in self._rows]:
            self._rows |= zip(unknown, self._text.encode(unknown), strict=True)
        return np.stack([self._rows[sentence] for sentence in sentences])


@dataclass(frozen=True)
class Teacher:
    """The frozen model, which sees captions."""

    model: SFN
    sentences: Sentences

    def pairs(self, drawn: Sequence[Drawn]) -> tuple[Encoded, Tensor]:
        """What the student sees of each clip, and the error (B,) that the captions show."""
        device = next(self.model.parameters()).device
        text = embed(self.sentences, [clip.captions for clip in drawn])  # (B, K S)
        with torch.no_grad():
            encoded = self.encode(drawn)
            said = torch.from_numpy(text).to(device)
            semantic = self.model.decoder(
                encoded.appearance, encoded.motion, said, encoded.skip, encoded.last_frame
            ).semantic
            found = semantic.float().cpu().numpy()
        error = semantic_error(found, text, self.model.config.n_windows)  # (B,)
        return encoded, torch.from_numpy(error).float().to(device)

    def encode(self, drawn: Sequence[Drawn]) -> Encoded:
        """What the student sees of each clip."""
        device = next(self.model.parameters()).device
        frames = torch.from_numpy(np.stack([clip.frames for clip in drawn])).to(device)
        features = None
        if (first := drawn[0].features) is not None:
            kept = [clip.features or first for clip in drawn]
            hidden, embedded = (torch.stack(x).to(device) for x in zip(*kept, strict=True))
            features = hidden, embedded
        with torch.no_grad():
            return self.model.encode(frames, features)


def distil(
    path: Path,
    data: Path | None = None,
    *,
    width: int | None = None,
    cache: Path | None = None,
    fps: float | None = None,
    say: Say,
) -> str:
    """Give the run in `path` a student, or teach its own anew, and fit its statistics again.

    `data` is what the run was trained on, None: where it was then. Says what came of it.
    """
    run = load_run(path)
    model = run.config.sfn
    if not (model.use_text and model.has_picture and run.config.train.loss.text > 0):
        raise RunError(f"{path}: the model predicts no captions, so there is no error to distil")
    model = replace(model, student=width or model.student or WIDTH)
    config = replace(run.config, model=model)
    where = data or Path(str(run.info.get("data", "")))
    if data is None and not where.is_dir():
        raise RunError(f"{path}: {where}, which it was trained on, is gone; name it with --data")
    dataset = open_dataset(where, fps=fps)
    prepared = prepare(dataset, config, cache or path.parent / "cache", say=say)
    if (found := prepared.describe_split()) != (trained := run.info.get("split", found)):
        raise RunError(
            f"{where} is not what {path} was trained on: {_frames(found)}, expected "
            f"{_frames(trained)}; name the footage it was trained on with --data"
        )
    network = run.model.to(device_name(config.train))
    assert isinstance(network, SFN)
    network.config = model
    info = {**run.info, "config_sha256": config.fingerprint()}
    with sole_training(path):
        taught = teach(replace(run, config=config, model=network, info=info), prepared)
        save_run(fit_statistics(taught, prepared))
    learned = taught.info["student"]
    return (
        f"run      {path}\n"
        f"learned  {learned['steps']} steps in {learned['minutes']:.1f} min\n"
        f"{student_text(learned['held_out'])}"
        f"next     make export RUN={path}"
    )


def _frames(split: Mapping[str, Sequence[Mapping[str, int]]]) -> str:
    counts = {
        part: sum(span["stop"] - span["start"] for span in spans) for part, spans in split.items()
    }
    return " and ".join(f"{n} frames {part.replace('_', ' ')}" for part, n in counts.items())


def student_text(held_out: Mapping[str, float]) -> str:
    """A line for people; nothing where there is nothing to say."""
    if not held_out:
        return ""
    found = "  ".join(f"{name} {value:.3f}" for name, value in held_out.items())
    return f"student  {found}  of its errors with the real ones, held-out clips, some made faster\n"


def has_lessons(config: Config) -> bool:
    """Whether a student is there, and a semantic error that means anything."""
    return config.system == "sfn-vad" and config.sfn.has_student and config.train.loss.text > 0


def teach(
    run: Run, prepared: Prepared, *, text: SentenceEncoder | None = None, progress: bool = True
) -> Run:
    """The run with its student taught from the beginning, and with what it has come to.

    Nothing else of the network changes. The same footage, settings and weights give the same.
    """
    config, model, start = run.config, run.model, time.monotonic()
    assert isinstance(model, SFN), "only a model that sees captions has a student"
    if text is None:
        text, _ = open_text(config, read_captions(prepared.dataset.train, config).values())
    model.eval()
    device = next(model.parameters()).device
    student = model.decoder.student = Student(config.sfn).to(device)
    teacher = Teacher(model, Sentences(prepared, text))
    clips = HastenedClips(prepared, config, prepared.split.train)
    random = np.random.default_rng([config.train.seed, 0])
    _learn(student, teacher, clips, config.distil, random, progress)
    student.requires_grad_(False)
    held_out = HastenedClips(prepared, config, prepared.split.held_out)
    found = {
        "steps": config.distil.steps,
        "minutes": round((time.monotonic() - start) / 60, 3),
        "speeds": list(clips.speeds),
        "held_out": measure(student, teacher, held_out),
    }
    return replace(run, info={**run.info, "student": found})


def _learn(
    student: Student,
    teacher: Teacher,
    clips: HastenedClips,
    c: DistilConfig,
    random: np.random.Generator,
    progress: bool,
) -> None:
    usual = [clips.draw(random, speed=1) for _ in range(USUAL_BATCHES * c.batch)]
    seen = teacher.encode(usual)
    student.calibrate(seen.appearance, seen.motion)
    student.requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), c.learning_rate)
    with Progress("student", c.steps, enabled=progress) as bar:
        for step in range(c.steps):
            rate = min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / c.steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = c.learning_rate * rate
            encoded, real = teacher.pairs([clips.draw(random) for _ in range(c.batch)])
            with torch.enable_grad():
                guessed = student(encoded.appearance, encoded.motion)  # (B,)
                loss = F.huber_loss((guessed + LEAST).log(), (real + LEAST).log())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.advance()


def measure(student: Student, teacher: Teacher, clips: HastenedClips) -> Mapping[str, float]:
    """How the student's errors go with the real ones, on normal clips, some of them made faster."""
    if not clips.speeds:
        return {}
    random = np.random.default_rng(0)
    guessed: list[NDArray[np.float64]] = []
    real: list[NDArray[np.float64]] = []
    for _ in range(0, HELD_OUT, BATCH):
        encoded, error = teacher.pairs([clips.draw(random) for _ in range(BATCH)])
        with torch.no_grad():
            guessed.append(student(encoded.appearance, encoded.motion).double().cpu().numpy())
        real.append(error.double().cpu().numpy())
    return correlations(np.concatenate(guessed), np.concatenate(real))


def correlations(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """Pearson's, and Spearman's, which compares ranks; 0 where one of the two never changes."""
    found = {}
    for name, pair in (("pearson", (one, other)), ("spearman", (ranks(one), ranks(other)))):
        a, b = (x - x.mean() for x in pair)
        length = float(np.sqrt((a @ a) * (b @ b)))
        found[name] = float(a @ b) / length if length > 0 else 0.0
    return found


def ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of (n,) from 0; equal values share the mean of theirs."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return np.asarray((first + (counts - 1) / 2)[place], dtype=np.float64)
