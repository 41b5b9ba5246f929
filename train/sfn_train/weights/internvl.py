"""InternVL's two layouts: transformers' native one, and its own, which is code beside weights.

    InternVL2_5-1B's own                              native
    vision_model.embeddings.class_embedding           vision_tower.embeddings.cls_token
    vision_model.embeddings.position_embedding        vision_tower.embeddings.position_embeddings
    vision_model.embeddings.patch_embedding.*         …embeddings.patch_embeddings.projection.*
    vision_model.encoder.layers.i.attn.qkv.*          …encoder.layer.i.attention.{q,k,v}_proj.*
    vision_model.encoder.layers.i.attn.proj.*         …attention.projection_layer.*
    vision_model.encoder.layers.i.norm1, norm2        …layernorm_before, layernorm_after
    vision_model.encoder.layers.i.ls1, ls2            …lambda_1, lambda_2
    vision_model.encoder.layers.i.mlp.fc1, fc2        …mlp.fc1, fc2
    mlp1.0, mlp1.1, mlp1.3                            multi_modal_projector.layer_norm, linear_1, _2
    language_model.*                                  the same: transformers' Qwen2

qkv holds queries, keys and values one below the other. No final LayerNorm follows the last block.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from sfn_rt.exceptions import DataError
from sfn_train.weights.folder import CONFIG, Entry

IMAGE_TOKEN = "<IMG_CONTEXT>"  # stands for each of a picture's vectors in a prompt
PARTS = ("vision_tower.", "multi_modal_projector.", "language_model.")

LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
IN_LAYER = {
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "attn.proj": "attention.projection_layer",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
OWN, NATIVE = "vision_model.embeddings", "vision_tower.embeddings"
AROUND = {
    f"{OWN}.class_embedding": f"{NATIVE}.cls_token",
    f"{OWN}.position_embedding": f"{NATIVE}.position_embeddings",
    f"{OWN}.patch_embedding": f"{NATIVE}.patch_embeddings.projection",
    "mlp1.0": "multi_modal_projector.layer_norm",
    "mlp1.1": "multi_modal_projector.linear_1",
    "mlp1.3": "multi_modal_projector.linear_2",
}
QKV = re.compile(r"attn\.qkv\.(weight|bias)")

VISION_AS_IT_IS = (
    "hidden_act",
    "hidden_size",
    "image_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "norm_type",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
)
VISION_RENAMED = {
    "attention_bias": "qkv_bias",
    "use_qk_norm": "qk_normalization",
    "attention_dropout": "attention_dropout",
}
TEXT_AS_IT_IS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)


@dataclass(frozen=True)
class Source:
    """Which rows of which stored tensor a native tensor is."""

    name: str
    rows: tuple[int, int] | None = None  # none: all of it


def map_remote(entries: Mapping[str, Entry], folder: Path) -> dict[str, Source]:
    """Native names and where each one's values lie; refuses a name it does not know."""
    found: dict[str, Source] = {}
    for name, entry in entries.items():
        if layer := LAYER.fullmatch(name):
            at, rest = f"vision_tower.encoder.layer.{layer[1]}.", layer[2]
            if qkv := QKV.fullmatch(rest):
                width = entry.shape[0] // 3
                for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
                    rows = (i * width, (i + 1) * width)
                    found[f"{at}attention.{part}.{qkv[1]}"] = Source(name, rows)
                continue
            native = _renamed(rest, IN_LAYER)
            if native is not None:
                found[at + native] = Source(name)
                continue
        elif name.startswith("language_model."):
            found[name] = Source(name)
            continue
        native = _renamed(name, AROUND)
        if native is None:
            raise DataError(
                f"{folder} holds a tensor this conversion does not know: {name}; it knows the "
                f"layout of InternVL2_5-1B"
            )
        found[native] = Source(name)
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    if name in names:
        return names[name]
    stem, _, kind = name.rpartition(".")
    return f"{names[stem]}.{kind}" if stem in names and kind in ("weight", "bias") else None


def native_config(raw: Mapping[str, Any], image_token_id: int, folder: Path) -> InternVLConfig:
    """InternVL's own config.json as transformers' class; refuses what that cannot express."""
    vision, text = raw.get("vision_config"), raw.get("llm_config")
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        raise DataError(f"{folder / CONFIG} lacks vision_config or llm_config; download it again")
    for place, name, value, known in (
        ("", "select_layer", raw.get("select_layer", -1), [-1]),
        ("", "ps_version", raw.get("ps_version"), ["v2"]),
        ("vision_config.", "model_type", vision.get("model_type"), ["intern_vit_6b"]),
        ("vision_config.", "norm_type", vision.get("norm_type"), ["layer_norm", "rms_norm"]),
        ("llm_config.", "architectures", text.get("architectures"), [["Qwen2ForCausalLM"]]),
    ):
        if value not in known:
            raise DataError(
                f"{folder / CONFIG}: {place}{name} is {value!r}, expected {known[0]!r} as in "
                f"InternVL2_5-1B; look for a folder in transformers' native layout instead"
            )
    size, patch = int(vision["image_size"]), int(vision["patch_size"])
    ratio = float(raw.get("downsample_ratio", 0.5))
    return build_config(
        {
            "architectures": ["InternVLForConditionalGeneration"],
            "dtype": raw.get("torch_dtype", "bfloat16"),
            "vision_config": {name: vision[name] for name in VISION_AS_IT_IS if name in vision}
            | {new: vision[old] for new, old in VISION_RENAMED.items() if old in vision},
            "text_config": {"model_type": "qwen2"}
            | {name: text[name] for name in TEXT_AS_IT_IS if text.get(name) is not None},
            "downsample_ratio": ratio,
            "image_token_id": image_token_id,
            "image_seq_length": int(size // patch * ratio) ** 2,
            "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        },
        folder,
    )


def build_config(values: Mapping[str, Any], folder: Path) -> InternVLConfig:
    """transformers' config class, its complaints in one line."""
    try:
        return InternVLConfig(**values)
    except Exception as error:  # transformers raises kinds of its own for each sort of nonsense
        reason = " ".join(str(error).split())
        raise DataError(f"{folder / CONFIG} cannot be used ({reason})") from None


def expected_shapes(config: InternVLConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Names, as the hub's folders have them, and shapes of the whole model of a config."""
    try:
        with torch.device("meta"):
            model = InternVLForConditionalGeneration(config)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{folder / CONFIG} describes no model that can be built ({reason})"
        ) from None
    return {stored_name(name): tuple(t.shape) for name, t in model.state_dict().items()}


def drop_tied(
    expected: Mapping[str, tuple[int, ...]], found: Iterable[str], config: InternVLConfig
) -> dict[str, tuple[int, ...]]:
    """Without the output embeddings where they are the input's and are not stored twice."""
    head = "language_model.lm_head.weight"
    tied = bool(config.tie_word_embeddings) and head not in found
    return {name: shape for name, shape in expected.items() if not (tied and name == head)}


def stored_name(name: str) -> str:
    """One name for what transformers' versions and the hub call a tensor of the native layout."""
    name = name.removeprefix("model.") if name.startswith("model.") else name
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    rest = name.removeprefix("language_model.")
    if rest != name and not rest.startswith(("model.", "lm_head.")):
        return f"language_model.model.{rest}"
    return name
