"""Who describes the frames of a model's videos, and when: what was asked for against what there is.

    scene     what moves, told in words; at once
    file      captions from a file; at once
    vlm       the bundle's vision-language model, in a process of its own
    student   nobody: the semantic term is what the student in the decoder expects
    none      the lane is off; there is no semantic term

Only captions like those that a model was trained on say anything about its semantic term. Others
explain events and do not count.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from sfn_rt.bundle import Bundle, Manifest, Semantics
from sfn_rt.evidence import Perception
from sfn_rt.exceptions import BundleError, InputError
from sfn_rt.normal import NormalFootage
from sfn_rt.options import LaneOptions
from sfn_rt.semantics.cached import CachedCaptioner
from sfn_rt.semantics.describe import SceneCaptioner
from sfn_rt.semantics.lane import LaneSettings, Policy, parse_policy
from sfn_rt.semantics.levels import NormalLevels
from sfn_rt.semantics.narrator import check_windows

Who = Literal["scene", "file", "vlm", "student", "none"]
QUEUE = 1  # captions that may wait: an older one would be stale before it is made
VLM_LATENCY = 25  # frames, where nobody says: a second of most videos
# What moves is soon another thing; what a VLM tells of a scene is taken to last for seconds.
HALF_LIFE, VLM_HALF_LIFE = 8.0, 50.0  # frames


@dataclass(frozen=True, kw_only=True)
class Captioning:
    """The decision, for people and programs."""

    who: Who
    counts: bool  # whether the captions have a part in the semantic term
    student: bool  # whether the student has
    as_trained: bool  # whether the model was trained on captions of this kind
    settings: LaneSettings

    @property
    def semantic_on(self) -> bool:
        """Whether anything tells the semantic term."""
        told = self.counts and self.settings.policy.kind != "off"
        return self.who != "none" and (told or self.student)

    def note(self, terms: Sequence[str]) -> str | None:
        """What a reader of scores with these terms should know."""
        scored = "semantic" in terms
        if self.who == "none":
            return "the lane is off: no captions, and no semantic term"
        if self.who == "student":
            told = "the semantic term is the student's estimate" if scored else ""
            return ": ".join(filter(None, ("no captions are made", told)))
        if self.counts and self.who == "file" and not self.as_trained:
            return (
                "the model was not trained on captions from files: where they are worded otherwise "
                "than its own, that alone looks abnormal"
            )
        if self.counts:
            return None
        rest = ", and the semantic term is the student's estimate" if scored else ""
        return f"the model was not trained on captions like these: they explain events{rest}"


def decide(
    bundle: Bundle, captions: Path | None, asked: LaneOptions, *, student: bool
) -> Captioning:
    """Who and when, from what is asked for; refuses what the bundle cannot do.

    `student` says whether the bundle has one, with the statistics that it needs.
    """
    manifest, semantics = bundle.manifest, bundle.manifest.semantics
    assert semantics is not None
    policy = parse_policy(asked.policy) if asked.policy is not None else None
    who = _who(bundle, captions, asked, student)
    if policy is not None and policy.kind == "off" and who != "student":
        who = "none"
    settings = LaneSettings(
        policy=_policy(who, policy, semantics),
        observed=manifest.observed,
        stride=semantics.stride,
        latency=_latency(who, asked),
        queue=QUEUE,
        half_life=VLM_HALF_LIFE if who == "vlm" else HALF_LIFE,
        clock=asked.clock,
    )
    as_trained = {
        "scene": semantics.captioner == "scene",
        "file": semantics.captioner == "cached",  # of another origin are refused when read
        "vlm": manifest.vlm is not None and semantics.captions == manifest.vlm.origin,
    }.get(who, False)
    return Captioning(
        who=who,
        counts=as_trained or who == "file",  # who gives a file means it
        student=student,
        as_trained=as_trained,
        settings=settings,
    )


@contextmanager
def captioned(
    perception: Perception,
    bundle: Bundle,
    normal: NormalFootage,
    captions: Path | None,
    asked: LaneOptions,
    threads: int | None,
) -> Iterator[tuple[Perception, Captioning]]:
    """The perception with who describes for it; a VLM's process ends with the block."""
    semantics = bundle.manifest.semantics
    assert semantics is not None
    given = {tensor.name for tensor in perception.backend.parts["decoder"].outputs}
    student = "distilled" in given and "distilled" in normal.signals and semantics.text is not None
    chosen = decide(bundle, captions, asked, student=student)
    levels = NormalLevels.of(normal, len(semantics.windows))
    _check_levels(bundle, chosen, levels)
    perception = replace(
        perception,
        lane=chosen.settings,
        counts=chosen.counts,
        semantic_on=chosen.semantic_on,
        levels=levels,
    )
    if chosen.who == "scene":
        captioner = SceneCaptioner(perception.scene.attributes)
        yield replace(perception, captioner=captioner), chosen
    elif chosen.who == "file" and captions is not None and not captions.is_dir():
        cached = CachedCaptioner(captions)
        check_windows(cached, semantics.windows)
        yield replace(perception, captioner=cached), chosen
    elif chosen.who == "vlm":
        if len(semantics.windows) > 1 and chosen.counts:
            raise BundleError(
                f"{bundle.folder}: a VLM tells of one window of frames, this model reads "
                f"{len(semantics.windows)}; train with model.windows=[]"
            )
        from sfn_rt.semantics.vlm import open_describer
        from sfn_rt.semantics.worker_process import ProcessWorker

        opening = partial(open_describer, bundle.folder, threads)
        with ProcessWorker(opening, threads=threads) as worker:
            yield replace(perception, worker=worker), chosen
    else:  # a folder of captions waits for its video
        yield perception, chosen


def _who(bundle: Bundle, captions: Path | None, asked: LaneOptions, student: bool) -> Who:
    manifest, semantics = bundle.manifest, bundle.manifest.semantics
    assert semantics is not None
    if captions is not None:
        if asked.captioner is not None:
            raise InputError(
                f"--captions and --captioner {asked.captioner} are two answers to who describes "
                f"the video; leave one of them out"
            )
        return "file"
    if asked.captioner == "vlm" and manifest.vlm is None:
        raise BundleError(
            f"{bundle.folder} holds no VLM; add one with `python -m sfn_export vlm WEIGHTS "
            f"--bundle {bundle.folder}`, or leave --captioner vlm out"
        )
    if asked.captioner == "student" and not student:
        raise BundleError(
            f"{bundle.folder}: its model was trained without a student; `python -m sfn_train "
            f"distil RUN` adds one, then export the run again"
        )
    if asked.captioner is not None:
        return asked.captioner
    return _by_default(manifest, semantics, student)


def _by_default(manifest: Manifest, semantics: Semantics, student: bool) -> Who:
    if semantics.captioner == "scene" or semantics.text is None:
        return "scene"
    if manifest.vlm is not None and manifest.vlm.origin == semantics.captions:
        return "vlm"
    if student:
        return "student"
    return "file"  # which it will be told that it needs


def _policy(who: Who, asked: Policy | None, semantics: Semantics) -> Policy:
    if who in ("student", "none"):
        return Policy("off")
    if asked is not None:
        return asked
    return Policy("change") if who == "vlm" else Policy("every", semantics.stride)


def _latency(who: Who, asked: LaneOptions) -> int:
    if asked.latency is not None:
        return asked.latency
    return VLM_LATENCY if who == "vlm" else 0


def _check_levels(bundle: Bundle, chosen: Captioning, levels: NormalLevels) -> None:
    """A bundle of an earlier training lacks what the lane reads of normal footage."""
    kind = chosen.settings.policy.kind
    if kind == "suspicion" and levels.suspicious is None:
        raise InputError("--lane suspicion needs the visual term, which this bundle has not")
    needs = kind == "change" and not levels.changed
    always = chosen.counts and kind == "every" and not chosen.settings.latency
    # The decoder reads a caption whatever is scored; where there is none yet, the usual one.
    reads = bundle.manifest.semantics is not None and bundle.manifest.semantics.text is not None
    if needs or (reads and not always and levels.usual is None):
        raise BundleError(
            f"{bundle.folder}: its statistics of normal footage lack what captions now and then "
            f"are judged by; `python -m sfn_train distil RUN` adds it, then export the run again"
        )
