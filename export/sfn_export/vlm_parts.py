"""A vision-language model in the parts that a device runs, and in PyTorch to compare them with.

    projector  hidden (B, 1 + N, C) -> image (B, n, D): no class token, pixel shuffle, two layers
    language   inputs_embeds (B, L, D), a cache of P positions -> logits (B, 1, V) of the last one,
               and the cache of P + L

Positions are P, P + 1, ..., P + L - 1, and each sees itself and all before it: whoever drives the
graph feeds no mask, so all prompts of a batch are of one length. The tower is the part `vision`
(sfn_train/model/tower.py), traced as a model's own is.

Axes: B clips or frames, L new positions, P cached ones, N patches, n vectors of a picture,
C width of the tower, D of the language model, V its vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfn_export.exceptions import ExportError
from sfn_rt.backends.base import Arrays, CheckedBackend, PartSpec, TensorSpec

STEADY_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not change with length
DYNAMIC_ROPE = "dynamic"  # the default's up to max_position_embeddings, which is all we allow


class ProjectorPart(nn.Module):
    """What the tower saw of a frame, as vectors that stand in the prompt like words."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        side = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
        self.side, self.ratio = side, config.downsample_ratio
        self.shuffle = model.model.pixel_shuffle
        self.project = model.model.multi_modal_projector

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(B, 1 + N, C) to (B, n, D)."""
        (hidden,) = tensors
        grid = hidden[:, 1:].unflatten(1, (self.side, self.side))  # (B, side, side, C)
        return (self.project(self.shuffle(grid, scale_factor=self.ratio).flatten(1, 2)),)


class Rotary(nn.Module):
    """Qwen2's rotary positions without transformers' test of the length, which cannot be traced."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.inv_freq, self.scaling = rotary.inv_freq, rotary.attention_scaling

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(1, L) to cosines and sines (1, L, head)."""
        angle = position_ids[..., None].float() * self.inv_freq  # (1, L, head / 2)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos() * self.scaling, angle.sin() * self.scaling


class LanguagePart(nn.Module):
    """One step of Qwen2: a prompt (P = 0), or the token said last (L = 1)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        own = model.model.language_model
        self.language: Any = copy.copy(own)  # the weights themselves, with other positions
        self.language._modules = {**own._modules, "rotary_emb": Rotary(own.rotary_emb)}
        self.head = model.lm_head

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Embeddings, then keys and values a layer; logits, then all keys and values a layer."""
        from transformers import DynamicCache

        embeds, *past = tensors
        cache: Any = DynamicCache(config=self.language.config)
        for i in range(len(past) // 2):
            cache.update(past[2 * i], past[2 * i + 1], i)
        length, before = embeds.shape[1], past[0].shape[2]
        position = torch.arange(length) + before  # (L,)
        seen = torch.arange(before + length) <= position[:, None]  # (L, P + L)
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
        done = self.language(
            inputs_embeds=embeds,
            position_ids=position[None],
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=True,
        )
        kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (self.head(done.last_hidden_state[:, -1:]), *kept)


def projector_spec(model: Any, hidden: TensorSpec) -> PartSpec:
    """What the projector takes and gives; `hidden` is the tower's output."""
    image = ("batch", model.config.image_seq_length, model.config.text_config.hidden_size)
    return PartSpec((hidden,), (TensorSpec("image", "float32", image),))


def language_spec(model: Any) -> PartSpec:
    """What the language model takes and gives."""
    text = model.config.text_config
    heads, head = text.num_key_value_heads, _head_width(text)
    names = [f"{i}.{kind}" for i in range(text.num_hidden_layers) for kind in ("key", "value")]
    embeds = TensorSpec("inputs_embeds", "float32", ("batch", "sequence", text.hidden_size))
    logits = TensorSpec("logits", "float32", ("batch", 1, text.vocab_size))
    past, total = ("batch", heads, "past", head), ("batch", heads, "total", head)
    return PartSpec(
        (embeds, *(TensorSpec(f"past_key_values.{name}", "float32", past) for name in names)),
        (logits, *(TensorSpec(f"present.{name}", "float32", total) for name in names)),
    )


def check_exportable(config: Any, folder: object) -> None:
    """Refuse what the exported parts would compute otherwise than transformers does."""
    text = config.text_config
    rope = text.rope_parameters["rope_type"]
    for place, value, known in (
        ("vision_feature_layer", config.vision_feature_layer, (-1,)),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, ("default",)),
        ("text_config.model_type", text.model_type, ("qwen2",)),
        ("text_config.rope_parameters.rope_type", rope, (*STEADY_ROPE, DYNAMIC_ROPE)),
        ("text_config.layer_types", {*text.layer_types}, ({"full_attention"},)),
    ):
        if value not in known:
            raise ExportError(
                f"{folder}: its config.json says {place} {value!r}, only "
                f"{' or '.join(map(repr, known))} can be exported; take InternVL2.5-1B or "
                f"InternVL3-1B"
            )


class TorchVlm(CheckedBackend):
    """The parts behind the runtime's Backend protocol, computed by transformers' own classes."""

    name = "torch"

    def __init__(self, model: Any, specs: Mapping[str, PartSpec]) -> None:
        self._model, self.parts = model, specs

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """All outputs of a part."""
        spec = self.parts[part]
        given = [torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs]
        with torch.inference_mode():
            computed = getattr(self, f"_{part}")(*given)
        return {t.name: v.numpy() for t, v in zip(spec.outputs, computed, strict=True)}

    def _vision(self, frame: Tensor) -> tuple[Tensor, ...]:
        tower = self._model.model.vision_tower
        return tower(frame).last_hidden_state, tower.embeddings(frame)[:, 1:]

    def _projector(self, hidden: Tensor) -> tuple[Tensor, ...]:
        class Seen(nn.Module):  # transformers computes from pictures on; let it begin at `hidden`
            def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
                from transformers.modeling_outputs import BaseModelOutputWithPooling

                return BaseModelOutputWithPooling(last_hidden_state=pixel_values)

        whole = copy.copy(self._model.model)
        whole._modules = {**whole._modules, "vision_tower": Seen()}
        return (whole.get_image_features(hidden, return_dict=True).pooler_output,)

    def _language(self, embeds: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self._model.config.text_config)
        if past[0].shape[2]:
            for i in range(len(past) // 2):
                cache.update(past[2 * i], past[2 * i + 1], i)
        done = self._model(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (done.logits, *kept)


def _head_width(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
