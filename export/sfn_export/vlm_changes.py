"""What a lower precision changes in the captions: the same clips, described by both.

A caption is a chain of choices, so two that once choose differently go on differently: how far they
agree says more than how many words they share, and whether they still mean the same is said by the
embeddings, which are all that the scores see of a caption.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sfn_export.exceptions import ExportError
from sfn_export.path_parity import clips_of
from sfn_rt.backends.base import Array
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import Bundle
from sfn_rt.frames import Image, open_source
from sfn_rt.printable import printable
from sfn_rt.semantics.captioner import Said
from sfn_rt.semantics.text_encoder import TextEncoder
from sfn_rt.semantics.vlm import Vlm, vlm_settings
from sfn_train.data.synthetic import make_walkway

PART, REFERENCE = "language", "fp32"
CLIPS = 8
TOKENS = 128  # at which the captions compared are cut: longer ones have parted long before
APART = 12  # frames from one clip to the next, of a video that does not state its length
EXAMPLES = 3
SHOWN = 200  # letters of one that is printed


@dataclass(frozen=True, kw_only=True)
class Example:
    """Two captions of one clip."""

    clip: int
    reference: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How the captions of one variant differ from those of fp32."""

    variant: str
    clips: int
    identical: float  # share of captions that are the same to the last token
    agreed: float  # share of fp32's tokens before the first that differs
    tokens_until: float  # the first difference: median; a whole caption where there is none
    tokens_until_least: int
    cosine: float | None  # of the embeddings: mean; None: no sentence encoder in the bundle
    cosine_least: float | None
    cut: int  # captions of the variant that had not ended
    seconds: float  # a caption, all clips in batches, by the variant
    seconds_reference: float
    examples: tuple[Example, ...]  # that differ

    def row(self) -> str:
        """For people, under `HEADER`."""
        cosine = "       -       -"
        if self.cosine is not None:
            cosine = f"{self.cosine:8.4f}{self.cosine_least:8.4f}"
        return (
            f"{self.variant:<9}{self.clips:6}{100 * self.identical:10.0f} %"
            f"{self.tokens_until:9.0f}{self.tokens_until_least:7}{cosine}"
            f"{self.seconds:9.2f}{self.seconds_reference:9.2f}"
        )


HEADER = (
    f"{'against':<9}{'':6}{'identical':>12}{'tokens until':>16}{'cosine':>16}"
    f"{'s a caption':>18}\n"
    f"{REFERENCE:<9}{'clips':>6}{'captions':>12}{'apart':>9}{'least':>7}"
    f"{'mean':>8}{'least':>8}{'':9}{REFERENCE:>9}"
)


def compare_variants(
    bundle: Bundle,
    variants: Sequence[str],
    *,
    clips: Path | None = None,
    fps: float | None = None,
    threads: int | None = None,
) -> list[Changes]:
    """Describe clips, of a data set or drawn ones, by fp32 and by every variant."""
    frames = read_clips(bundle, clips, fps)
    hidden: list[Array] = []
    with Vlm(bundle, threads=threads, variants={PART: REFERENCE}, max_tokens=_cap(bundle)) as vlm:
        for clip in frames:
            hidden.append(vlm.see(clip))  # (T, 1 + N, C)
        said, seconds = _describe(vlm, hidden)
    found = []
    for variant in variants:  # one at a time in memory: each is a gigabyte
        with Vlm(bundle, threads=threads, variants={PART: variant}, max_tokens=_cap(bundle)) as vlm:
            other, took = _describe(vlm, hidden)
        found.append(_changes(bundle, variant, said, other, (seconds, took)))
    return found


def table(changes: Sequence[Changes]) -> str:
    """For people: the figures, and an example of each that differs."""
    lines = [HEADER, *(each.row() for each in changes)]
    for each in changes:
        for example in each.examples[:1]:
            lines.append(f"{REFERENCE}: {printable(example.reference, limit=SHOWN)}")
            lines.append(f"{each.variant}: {printable(example.variant, limit=SHOWN)}")
        if each.identical < 1:
            lines.append(
                f"note: {each.variant} says other things, and its captions count like those of "
                f"{REFERENCE}: see that they mean the same (more examples: vlm/variants.json)"
            )
    return "\n".join(lines)


def to_json(changes: Sequence[Changes]) -> list[dict[str, object]]:
    """For programs."""
    return [asdict(each) for each in changes]


def agreement(one: Said, two: Said) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(one.tokens, two.tokens, strict=False))
    shorter = min(len(one.tokens), len(two.tokens))
    return next((i for i, (a, b) in pairs if a != b), shorter)


def read_clips(bundle: Bundle, data: Path | None, fps: float | None = None) -> list[list[Image]]:
    """Consecutive frames, `CLIPS` times, out of a data set's test videos or of a drawn one."""
    length = vlm_settings(bundle).frames
    if data is not None:
        found = _spread(data, length, fps)
        if not found:
            raise ExportError(f"{data}: no video of {length} frames to caption; give other --clips")
        return found
    with tempfile.TemporaryDirectory(prefix="sfn-clips-") as folder:
        # One of each kind of anomaly, so that there are different things to say.
        drawn = make_walkway(Path(folder) / "data", n_train=0, n_test=3, test_frames=3 * APART)
        return _spread(drawn, length, None)


def _spread(data: Path, length: int, fps: float | None) -> list[list[Image]]:
    videos = clips_of(data, fps)
    each = -(-CLIPS // len(videos))
    found: list[list[Image]] = []
    for video in videos:
        with open_source(video.path, fps=fps) as source:
            step = max(length, (source.n_frames or each * APART) // each)
            images: list[Image] = []
            for frame in source:
                if frame.index % step < length:
                    images.append(frame.image)
                if len(images) == each * length:
                    break
        whole = len(images) // length * length
        found += [images[i : i + length] for i in range(0, whole, length)]
    return found[:CLIPS]


def _describe(vlm: Vlm, hidden: Sequence[Array]) -> tuple[list[Said], float]:
    begin = time.perf_counter()
    said = vlm.describe(hidden)
    return said, (time.perf_counter() - begin) / len(said)


def _changes(
    bundle: Bundle,
    variant: str,
    before: Sequence[Said],
    after: Sequence[Said],
    seconds: tuple[float, float],
) -> Changes:
    agree = [agreement(one, two) for one, two in zip(before, after, strict=True)]
    same = [one.tokens == two.tokens for one, two in zip(before, after, strict=True)]
    cosine = _cosine(bundle, [said.text for said in before], [said.text for said in after])
    return Changes(
        variant=variant,
        clips=len(before),
        identical=float(np.mean(same)),
        agreed=sum(agree) / sum(len(said.tokens) for said in before),
        tokens_until=float(np.median(agree)),
        tokens_until_least=min(agree),
        cosine=None if cosine is None else float(cosine.mean()),
        cosine_least=None if cosine is None else float(cosine.min()),
        cut=sum(said.cut for said in after),
        seconds_reference=round(seconds[0], 3),
        seconds=round(seconds[1], 3),
        examples=tuple(
            Example(clip=i, reference=before[i].text, variant=after[i].text)
            for i in [i for i, equal in enumerate(same) if not equal][:EXAMPLES]
        ),
    )


def _cosine(bundle: Bundle, one: list[str], two: list[str]) -> Array | None:
    """Of the captions' embeddings, pair by pair; None without a sentence encoder."""
    semantics = bundle.manifest.semantics
    text = semantics.text if semantics is not None else None
    if text is None:
        return None
    with OrtBackend({"text": bundle.graph("text")}) as backend:
        encoder = TextEncoder(backend, bundle.path(text.tokenizer), text.max_tokens)
        cosine: Array = (encoder.encode(one) * encoder.encode(two)).sum(axis=1)  # (clips,)
    return cosine


def _cap(bundle: Bundle) -> int:
    return min(TOKENS, vlm_settings(bundle).max_tokens)
