"""A bundle, opened for scoring: what makes the evidence, and what turns it into a score."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sfn_rt.backends.choose import open_backend
from sfn_rt.bundle import MANIFEST, Bundle, Semantics, load_bundle
from sfn_rt.evidence import Perception
from sfn_rt.exceptions import BundleError, InputError
from sfn_rt.normal import NormalFootage
from sfn_rt.options import BackendOptions, LaneOptions
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.scores import Tail
from sfn_rt.semantics.cached import CachedCaptioner, CaptionFile, Part, find_captions
from sfn_rt.semantics.captioning import Captioning, captioned
from sfn_rt.semantics.narrator import check_windows
from sfn_rt.semantics.scene import SceneConfig
from sfn_rt.semantics.text_encoder import TextEncoder
from sfn_rt.threshold import Threshold


@dataclass(frozen=True, eq=False)
class Model:
    """Everything a video is scored with; the same for every video."""

    bundle: Bundle
    sha256: str  # of the manifest, which lists the sha256 of every other file
    perception: Perception
    normal: NormalFootage
    tails: dict[str, Tail]  # of the terms that are on
    threshold: Threshold  # for the terms that are on
    captioning: Captioning | None  # None: a system that takes no captions
    computed: BackendOptions = field(default_factory=BackendOptions)  # by what, how precisely

    @property
    def alpha(self) -> float:
        """Weight of the newest frame in the causal score."""
        return self.bundle.manifest.score.ema_alpha


@contextmanager
def open_model(
    path: Path,
    *,
    threads: int | None = None,
    terms: tuple[str, ...] | None = None,
    captions: Path | None = None,
    lane: LaneOptions | None = None,
    backend: BackendOptions | None = None,
) -> Iterator[Model]:
    """Load a bundle, on the CPU in fp32; what is given replaces what it would do."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    normal = NormalFootage.from_arrays(bundle.normal())
    with ExitStack() as stack:
        computed = backend or BackendOptions()
        opened = open_backend(bundle, computed, threads=threads)
        perception = Perception(
            backend=stack.enter_context(opened),
            system=manifest.system,
            observed=manifest.observed,
            lag=manifest.lag,
            preprocessing=manifest.preprocessing,
            visual=_settings(VisualConfig, manifest.visual, path),
            scene=normal.scene,
            terms=(),
        )
        captioning = None
        if manifest.semantics is not None:
            perception = _with_semantics(perception, bundle, manifest.semantics)
            asked = lane or LaneOptions()
            perception, captioning = stack.enter_context(
                captioned(perception, bundle, normal, captions, asked, threads)
            )
        elif captions is not None or lane not in (None, LaneOptions()):
            raise InputError(
                f"--captions, --captioner, --lane: {manifest.system} takes none; leave them out"
            )
        chosen = choose_terms(
            terms, perception.available_terms, tuple(normal.tails),
            told=captioning is None or captioning.semantic_on,
        )  # fmt: skip
        perception = replace(perception, terms=chosen)
        sha256 = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
        tails = {term: normal.tails[term] for term in chosen}
        threshold = normal.thresholds[chosen]
        yield Model(bundle, sha256, perception, normal, tails, threshold, captioning, computed)


def _with_semantics(perception: Perception, bundle: Bundle, semantics: Semantics) -> Perception:
    text = None
    if semantics.text is not None:
        tokenizer = bundle.path(semantics.text.tokenizer)
        text = TextEncoder(perception.backend, tokenizer, semantics.text.max_tokens)
    return replace(
        perception,
        scene_config=_settings(SceneConfig, semantics.scene, bundle.folder),
        text=text,
        stride=semantics.stride,
        windows=semantics.windows,
    )


def choose_terms(
    asked: tuple[str, ...] | None,
    available: tuple[str, ...],
    fitted: tuple[str, ...],
    *,
    told: bool = True,
) -> tuple[str, ...]:
    """The terms to score with: those asked for, or all that the bundle carries."""
    there = tuple(term for term in available if term in fitted)
    if asked is None:
        return there
    if missing := [term for term in asked if term not in there]:
        if missing[0] == "semantic" and not told:
            raise InputError(
                "--terms: no captions are made that tell the semantic term; leave --lane off or "
                "--captioner out, or let the student tell it: --captioner student"
            )
        raise InputError(
            f"--terms: this bundle has no {missing[0]!r} term; it has {', '.join(there)}"
        )
    return tuple(term for term in there if term in asked)  # thresholds are kept in this order


def with_captions(
    model: Model, captions: Path | None, video: Path, name: str, part: Part | None = None
) -> Model:
    """The model as it describes one video, where `captions` is a file or a folder of them."""
    semantics = model.bundle.manifest.semantics
    if semantics is None:
        return model
    if captions is None:
        if model.captioning is not None and model.captioning.who == "file":
            raise InputError(
                f"{model.bundle.folder}: trained on captions from files, so it needs those of "
                f"{video} too; give --captions FOLDER (`python -m sfn_train captions` makes them), "
                f"or score without captions: --lane off"
            )
        return model
    file = CaptionFile.read(find_captions(captions, name, part))
    captioner = CachedCaptioner(file)
    check_windows(captioner, semantics.windows)
    file.check(video, frames=semantics.windows[0], stride=semantics.stride)
    if semantics.captions is not None:
        file.check_origin(semantics.captions.model, semantics.captions.prompt)
    return replace(model, perception=replace(model.perception, captioner=captioner))


def _settings(kind: type[Any], raw: dict[str, Any], path: Path) -> Any:
    try:
        return kind(**raw)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST}: {error}; export the model again") from None
