"""Puts graphs, tokenizer and statistics of normal footage into a bundle, whole or not at all."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfn_export.exceptions import ExportError
from sfn_rt import __version__
from sfn_rt.backends.base import PartSpec
from sfn_rt.bundle import (
    FULL,
    SCHEMA_VERSION,
    CaptionOrigin,
    Manifest,
    PartEntry,
    Provenance,
    ScoreSettings,
    Semantics,
    TextSettings,
    write_manifest,
)
from sfn_rt.normal import NormalFootage
from sfn_rt.scores import EMA_ALPHA, TERMS
from sfn_rt.semantics.text_encoder import load_tokenizer
from sfn_train.checkpoint import NORMAL, Run
from sfn_train.sources import tower_of
from sfn_train.text import TextModel

if TYPE_CHECKING:
    from sfn_train.model.tower import VisionTower

TOKENIZER = "tokenizer.json"
TRAINED = "trained by the bundle's maker; the training data's terms apply"


def pack(
    folder: Path,
    run: Run,
    text: TextModel | None,
    specs: Mapping[str, PartSpec],
    device: Mapping[str, PartSpec],
) -> Manifest:
    """Complete a folder that holds PART.onnx for all of `specs` and `device`; manifest last."""
    shutil.copyfile(run.path / NORMAL, folder / NORMAL)
    settings = None
    if text is not None:
        # With padding and truncation as the device uses them, so that the file says all of it.
        load_tokenizer(text.tokenizer_json, text.max_tokens).save(str(folder / TOKENIZER))
        settings = TextSettings(
            model=text.name,
            width=text.width,
            max_tokens=text.max_tokens,
            tokenizer=TOKENIZER,
        )
    config = run.config
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        system=config.system,
        profile=config.profile,
        sfn_version=__version__,
        observed=config.model.observed,
        lag=getattr(config.model, "lag", 0),  # a model that predicts has none
        preprocessing=config.preprocessing,
        parts=entries(specs),
        semantics=semantics_of(run, settings),
        vlm=None,
        visual=dict(_info(run, "visual")),
        score=score_settings(run),
        normal=NORMAL,
        device=entries(device),
        precisions={},
        provenance=Provenance(
            data=Path(str(_info(run, "data"))).name,  # not where it lay on this machine
            n_videos=_info(run, "n_videos"),
            n_frames=_info(run, "n_frames"),
            seed=config.train.seed,
            config_sha256=config.fingerprint(),
            licences=licences(specs, text, tower_of(run.model)),
        ),
    )
    return write_manifest(folder, manifest)


def entries(specs: Mapping[str, PartSpec]) -> dict[str, PartEntry]:
    """PART.onnx of every part, in full precision."""
    return {
        part: PartEntry(
            files={FULL: f"{part}.onnx"}, default=FULL, inputs=spec.inputs, outputs=spec.outputs
        )
        for part, spec in specs.items()
    }


def semantics_of(run: Run, text: TextSettings | None) -> Semantics | None:
    """How the device describes clips; None for a system that knows pictures only."""
    config, origin = run.config, run.info.get("captions")
    if config.system != "sfn-vad":
        return None
    return Semantics(
        captioner=config.semantics.captioner,
        stride=config.semantics.stride,
        windows=config.sfn.caption_windows,
        captions=CaptionOrigin(**origin) if origin else None,
        scene=vars(config.semantics.scene).copy(),
        text=text,
    )


def score_settings(run: Run) -> ScoreSettings:
    """Terms and threshold as they were fitted on normal footage, every term on."""
    normal = NormalFootage.from_arrays(run.normal)
    terms = tuple(term for term in TERMS if term in normal.tails)
    threshold = normal.thresholds[terms]
    return ScoreSettings(
        ema_alpha=EMA_ALPHA,
        threshold=threshold.value,
        rule=threshold.rule,
        false_alarms_per_hour=threshold.false_alarms_per_hour,
        terms=terms,
    )


def licences(
    specs: Mapping[str, PartSpec], text: TextModel | None, tower: "VisionTower | None"
) -> dict[str, str]:
    """Licence of everything a bundle redistributes."""
    found = {part: TRAINED for part in specs if part != "text"}
    if tower is not None:
        folder = Path(tower.name)
        found["vision"] = f"vision tower {folder.name}: {stated_licence(folder)}"
    if text is not None:
        found["text"] = found["tokenizer"] = f"{text.name}: {stated_licence(text.folder)}"
    return found


def stated_licence(folder: Path) -> str:
    """The licence that a folder of weights states on its model card."""
    card = folder / "README.md"
    stated = None
    if card.is_file():
        stated = re.search(r"^license:\s*(\S+)\s*$", card.read_text("utf-8"), re.MULTILINE)
    return stated[1] if stated else f"not stated in {folder.name}"


def _info(run: Run, key: str) -> Any:
    if key not in run.info:
        raise ExportError(f"{run.path / 'run.json'} lacks {key!r}; train again into this folder")
    return run.info[key]
