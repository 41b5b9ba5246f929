"""The model in eager PyTorch behind the runtime's Backend protocol.

The runtime's own pipeline then fits the statistics of normal footage with it, so training and the
device share every step, and the exported graphs are compared with it part by part.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sfn_rt.backends.base import Arrays, CheckedBackend, PartSpec, Shapes, TensorSpec
from sfn_train.model import SFN, ModelConfig
from sfn_train.text import TextModel

DECODER_INPUTS = ("appearance", "motion", "text", "skip", "last_frame")  # in forward's order


def vision_spec(size: tuple[int, int], patches: int, width: int) -> PartSpec:
    """A vision tower for frames of `size`: of the model, of the VLM, or of both at once."""
    seen = {"hidden": ("batch", 1 + patches, width), "embedded": ("batch", patches, width)}
    return PartSpec.of({"frame": ("batch", 3, *size)}, seen)


def part_specs(c: ModelConfig, *, text: bool) -> dict[str, PartSpec]:
    """What the parts of one model take and give; a branch that is off is absent."""
    n = c.n_patches
    n_tokens = c.use_text + (1 + n if c.has_picture else 0)
    image = ("batch", 3, c.frame_height, c.frame_width)
    parts: dict[str, PartSpec] = {}
    feeds: dict[str, tuple[int | str, ...]] = {}
    if c.use_appearance:
        tokens, skip = ("batch", 1 + n, c.dim), ("batch", n, c.dim)
        given: Shapes = {"frame": image}
        if c.tower is not None:
            parts["vision"] = vision_spec((c.frame_height, c.frame_width), n, c.appearance_dim)
            given = {tensor.name: tensor.shape for tensor in parts["vision"].outputs}
        parts["appearance"] = PartSpec.of(given, {"tokens": tokens, "skip": skip})
        feeds["appearance"] = ("batch", c.observed, 1 + n, c.dim)
    if c.use_motion:
        parts["motion"] = PartSpec.of(
            {"difference": image}, {"tokens": ("batch", 1 + n, c.motion_dim)}
        )
        feeds["motion"] = ("batch", c.observed - 1, 1 + n, c.motion_dim)
    if c.use_text:
        feeds["text"] = ("batch", c.text_width)
    if c.use_appearance:
        feeds["skip"] = ("batch", n, c.dim)
    predicted: dict[str, tuple[int | str, ...]] = {}
    if c.has_picture:
        predicted["next_frame"] = image
        if c.predict == "change":
            feeds["last_frame"] = image
    if c.use_text:
        predicted["semantic"] = ("batch", c.text_width)
    if c.has_student:
        predicted["distilled"] = ("batch",)
    decoder = PartSpec.of(feeds, predicted)
    if c.filter == "sffm":
        routing = TensorSpec("routing", "int64", ("batch", c.decoder_depth, n_tokens, c.n_active))
        decoder = PartSpec(decoder.inputs, (*decoder.outputs, routing))
    parts["decoder"] = decoder
    if c.use_text and text:
        ids = ("batch", "tokens")
        parts["text"] = PartSpec.of(
            {"input_ids": ids, "attention_mask": ids},
            {"sentence_embedding": ("batch", c.text_dim)},
            "int64",
        )
    return parts


class TorchBackend(CheckedBackend):
    """Runs an SFN's parts in fp32 on the device its weights are on; the parity reference."""

    name = "torch"

    def __init__(self, model: SFN, text: TextModel | None) -> None:
        self.parts: Mapping[str, PartSpec] = part_specs(model.config, text=text is not None)
        self._model = model
        self._device = next(model.parameters()).device
        self._text: nn.Module | None = text.module() if text and "text" in self.parts else None

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """On the device of the model; sentences on the CPU."""
        with torch.inference_mode():
            device = "cpu" if part == "text" else self._device
            inputs = {name: torch.tensor(array, device=device) for name, array in feeds.items()}
            computed = self._run(part, inputs, set(names))
            return {name: computed[name].cpu().numpy() for name in names}

    def _run(self, part: str, inputs: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
        if part == "vision" and self._model.appearance is not None:
            hidden, embedded = self._model.appearance.vit(inputs["frame"])
            return {"hidden": hidden, "embedded": embedded}
        if part == "appearance" and self._model.appearance is not None:
            encode = self._model.appearance
            seen = (inputs[tensor.name] for tensor in self.parts[part].inputs)
            tokens, skip = encode.projected(*seen) if "vision" in self.parts else encode(*seen)
            return {"tokens": tokens, "skip": skip}
        if part == "motion" and self._model.motion is not None:
            return {"tokens": self._model.motion(inputs["difference"])}
        if part == "text" and self._text is not None:
            return {"sentence_embedding": self._text(**inputs)}
        prediction = self._model.decoder(*(inputs.get(name) for name in DECODER_INPUTS))
        predicted = {
            name: getattr(prediction, name) for name in ("next_frame", "semantic", "distilled")
        }
        computed = {name: tensor for name, tensor in predicted.items() if tensor is not None}
        if "routing" in names:
            chosen = [routing.chosen for routing in prediction.routings]  # (B, n_tokens, K) each
            computed["routing"] = torch.stack(chosen, dim=1)  # (B, layers, n_tokens, K)
        return computed
