"""Bundles with the sizes of `edge` and of the paper's model, for speed only: nobody trained them.

    python scripts/sample_bundles.py PROFILE OUT

A device that only measures needs graphs of the right size and not what they have learned. All
weights are one short run of random numbers again and again, each time scaled as training begins:
the arithmetic is the same, and 1.8 GB of them compress to next to nothing.

OUT gets bundle/, and sffm/, one SFFM of the model alone in both of its exported forms. Of `edge`
also step/, all graphs of a step fused into one in each precision: the weights of the paper's size
twice would be too much to carry.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("runtime", "train", "export", "calibration")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from sfn_calib.convert import convert  # noqa: E402
from sfn_calib.ranges import measure_ranges  # noqa: E402
from sfn_calib.recipe import Recipe  # noqa: E402
from sfn_export.build import device_graphs, trace  # noqa: E402
from sfn_export.dispatch import exported_sffm  # noqa: E402
from sfn_export.fuse import fuse  # noqa: E402
from sfn_export.pack import pack  # noqa: E402
from sfn_export.trace import export_onnx  # noqa: E402
from sfn_rt.backends.base import PartSpec, TensorSpec  # noqa: E402
from sfn_rt.bundle import (  # noqa: E402
    Manifest,
    PartEntry,
    Precision,
    load_bundle,
    write_manifest,
)
from sfn_rt.normal import NormalFootage, SceneModel, term_subsets  # noqa: E402
from sfn_rt.prediction_error import VisualConfig  # noqa: E402
from sfn_rt.scores import Tail  # noqa: E402
from sfn_rt.threshold import Threshold  # noqa: E402
from sfn_train.checkpoint import Run, save_run  # noqa: E402
from sfn_train.config import Config, read_config  # noqa: E402
from sfn_train.model import SFN  # noqa: E402
from sfn_train.model.sffm import SFFM  # noqa: E402
from sfn_train.text import TextModel, default_folder  # noqa: E402

PROFILES = {"edge": "edge", "paper": "paper_ped2"}
PRECISIONS = ("fp16", "bf16", "int8", "fp8")
PERIOD = 4093  # a prime: no two rows of a matrix are the same numbers in the same place
SHIFT = 97
TOWER = {  # InternViT-300M-448px, as InternVL2.5-1B has it
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "image_size": [448, 448], "patch_size": [14, 14],
    "attention_bias": True, "layer_norm_eps": 1e-6,
}  # fmt: skip
LANGUAGE = {  # the tower does not need it, the folder's layout does
    "model_type": "qwen2", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", choices=sorted(PROFILES))
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.out) as work:
        config = settings(asked.profile, Path(work))
        make_bundle(config, asked.out / "bundle", Path(work))
        make_sffm(config, asked.out / "sffm")
    if asked.profile == "edge":
        make_steps(asked.out / "bundle", asked.out / "step")
    (asked.out / "model.json").write_text(
        json.dumps({"profile": config.profile, "model": vars(config.sfn)}, indent=1) + "\n"
    )


def settings(profile: str, work: Path) -> Config:
    """The profile; what it takes from outside is made here, at full size."""
    if profile == "edge":
        return read_config("edge")
    changes = {
        "model.tower": make_tower(work / "tower"), "semantics.text": make_bert(work / "bert"),
        "semantics.captioner": "scene", "semantics.captions": "null",
    }  # fmt: skip
    return read_config(PROFILES[profile], [f"{name}={value}" for name, value in changes.items()])


def make_tower(folder: Path) -> Path:
    """An InternVL folder whose tower has its full size."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.utils import logging

    quiet: Any = logging.disable_progress_bar  # untyped
    quiet()
    model: Any = InternVLForConditionalGeneration(
        InternVLConfig(vision_config=TOWER, text_config=LANGUAGE, image_token_id=0)
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_bert(folder: Path) -> Path:
    """A BERT of base size, which shares its vocabulary with the encoder that this project has."""
    from transformers import BertConfig, BertModel

    model: Any = BertModel(BertConfig())
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(default_folder() / name, folder / name)
    return folder


def make_bundle(config: Config, out: Path, work: Path) -> None:
    """A bundle as export packs it; nothing is compared with PyTorch, as nothing was learned."""
    model = SFN(config.sfn).eval()
    text = TextModel.of(config.semantics)
    for module in (model, text.module()):
        repeat_weights(module)
    run = Run(work / "run", config, model, normal_footage().to_arrays(), run_info())
    save_run(run)
    shutil.rmtree(out, ignore_errors=True)
    partial = work / "bundle"
    partial.mkdir()
    specs = trace(run, text, partial, "fastest", print)
    device, _ = device_graphs(run, partial, specs, None)
    manifest = pack(partial, run, text, specs, device)
    for precision in PRECISIONS:
        print(f"converting to {precision}", flush=True)
        manifest = with_precision(partial, manifest, precision)
    write_manifest(partial, manifest)
    load_bundle(partial)
    partial.rename(out)


def with_precision(folder: Path, manifest: Manifest, precision: str) -> Manifest:
    """The manifest with a lower precision, whose graphs are now there. No gate holds for noise."""
    recipe = Recipe.load(precision)
    parts = dict(manifest.parts)
    for part, entry in manifest.parts.items():
        if part == "text" or part in recipe.leave:
            continue  # a sentence is embedded once, and its tokens are no noise
        name = f"{part}.{precision}.onnx"
        source = folder / entry.files["fp32"]
        ranges = measure_ranges(source, recipe, [noise(entry)]) if recipe.needs_ranges else None
        convert(source, folder / name, recipe, ranges)
        parts[part] = replace(entry, files={**entry.files, precision: name})
    chosen = {part: precision if precision in e.files else "fp32" for part, e in parts.items()}
    report, picture = f"{precision}.json", f"{precision}.png"
    (folder / report).write_text('{"gate": "none: random weights, for speed only"}\n')
    cv2.imwrite(str(folder / picture), np.zeros((1, 1), np.uint8))
    added = Precision(parts=chosen, recipe=recipe.name, gate={}, report=report, picture=picture)
    return replace(manifest, parts=parts, precisions={**manifest.precisions, precision: added})


def noise(entry: PartEntry) -> dict[str, np.ndarray[Any, Any]]:
    """One of a batch of ordinary values."""
    random = np.random.default_rng(0)
    return {
        tensor.name: random.standard_normal(
            [1 if isinstance(axis, str) else axis for axis in tensor.shape], np.float32
        )
        for tensor in entry.inputs
    }


def repeat_weights(module: nn.Module) -> None:
    """One run of random numbers in every matrix; what is a vector stays as it begins."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(PERIOD, generator=random)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            if parameter.dim() > 1:  # each begins elsewhere: equal ones would be kept once
                parameter.copy_(repeated(values.roll(SHIFT * i), parameter))


def repeated(values: Tensor, like: Tensor) -> Tensor:
    """`values` again and again in the shape of `like`, as large as training begins with."""
    count = like.numel()
    whole = values.repeat(-(-count // PERIOD))[:count].view(like.shape)
    return whole.mul((count / like.shape[0]) ** -0.5)


def normal_footage() -> NormalFootage:
    """Statistics made up for a model that nobody trained."""
    random = np.random.default_rng(0)
    terms = ("visual", "semantic")
    return NormalFootage(
        scene=SceneModel(None, None, random.standard_normal((1, 16, 24)).astype(np.float32)),
        tails={term: Tail.fit(np.abs(random.standard_normal(200))) for term in terms},
        thresholds={t: Threshold(3.0, "made up", 1.0) for t in term_subsets(terms)},
        heat_scale=1.0,
    )


def run_info() -> dict[str, Any]:
    """What a run says of itself."""
    visual = dict(vars(VisualConfig()))
    return {"data": "none: random weights", "n_videos": 0, "n_frames": 0, "visual": visual}


def make_sffm(config: Config, out: Path) -> None:
    """dense.onnx and dispatch.onnx: tokens in, tokens out."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    c = config.sfn
    n_tokens = c.n_patches + 1 + c.use_text
    sffm = SFFM(c.dim, c.rank, c.n_filters, c.n_active, c.gate).eval()
    repeat_weights(sffm)
    shape = ("batch", n_tokens, c.dim)
    spec = PartSpec((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),))
    for form in ("dense", "dispatch"):
        export_onnx(TokensOnly(exported_sffm(sffm, form)), spec, out / f"{form}.onnx")
    size = {"tokens": n_tokens, "dim": c.dim, "rank": c.rank, "filters": c.n_filters,
            "active": c.n_active, "shared": c.n_shared}  # fmt: skip
    (out / "size.json").write_text(json.dumps(size) + "\n")


def make_steps(bundle: Path, out: Path) -> None:
    """PRECISION.onnx of each precision, and step.json: what they take and give."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    opened = load_bundle(bundle)
    for precision in ("fp32", *PRECISIONS):
        spec = fuse(opened, out / f"{precision}.onnx", precision)
    (out / "step.json").write_text(json.dumps(asdict(spec)) + "\n")


class TokensOnly(nn.Module):
    """One SFFM whose routing nobody asks for, as in production."""

    def __init__(self, sffm: nn.Module) -> None:
        super().__init__()
        self.sffm = sffm

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.sffm(inputs[0])[0],)


if __name__ == "__main__":
    main()
