"""The eager backend gives, part by part, what the network gives in one piece."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfn_rt.backends.base import Backend
from sfn_rt.exceptions import InputError
from sfn_train.model import SFN, ModelConfig
from sfn_train.torch_backend import TorchBackend


def clip(c: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, c.observed + 1, 3, c.frame_height, c.frame_width, generator=generator)
    return frames, torch.randn(2, 1, c.text_dim, generator=generator)


def decode(backend: Backend, frames: torch.Tensor, text: torch.Tensor) -> dict[str, np.ndarray]:
    """A clip through the parts, one frame and one difference at a time, as the device does it."""
    observed = frames[:, :-1].numpy()  # (B, T, 3, H, W)
    feeds = {"text": text[:, 0].numpy(), "last_frame": observed[:, -1].copy()}
    if "appearance" in backend.parts:
        encoded = [backend.infer("appearance", {"frame": observed[:, i].copy()}) for i in range(4)]
        feeds["appearance"] = np.stack([e["tokens"] for e in encoded], axis=1)
        feeds["skip"] = encoded[-1]["skip"]
    if "motion" in backend.parts:
        difference = observed[:, 1:] - observed[:, :-1]
        pairs = [
            backend.infer("motion", {"difference": difference[:, i].copy()})["tokens"]
            for i in range(3)
        ]
        feeds["motion"] = np.stack(pairs, axis=1)
    wanted = [spec.name for spec in backend.parts["decoder"].inputs]
    return backend.infer("decoder", {name: feeds[name] for name in wanted})


VARIANTS = {
    "everything": {},
    "appearance off": {"use_appearance": False},
    "motion off": {"use_motion": False},
    "text off": {"use_text": False},
    "filter off": {"filter": "none"},
    "whole frame": {"predict": "frame"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_equal_the_whole(tiny: ModelConfig, variant: str) -> None:
    config = replace(tiny, **VARIANTS[variant])
    torch.manual_seed(0)
    model = SFN(config)
    torch.nn.init.normal_(model.decoder.mjad.frame_head.refine[-1].weight)  # it may start at 0
    frames, text = clip(config)
    with torch.inference_mode():
        expected = model(frames, text)
    with TorchBackend(model, None) as backend:
        actual = decode(backend, frames, text)
    np.testing.assert_allclose(actual["next_frame"], expected.next_frame, atol=1e-5)
    assert ("semantic" in actual) == config.use_text
    if config.use_text:
        np.testing.assert_allclose(actual["semantic"], expected.semantic, atol=1e-5)
    assert ("routing" in actual) == (config.filter == "sffm")
    if config.filter == "sffm":
        chosen = torch.stack([r.chosen for r in expected.routings], dim=1).numpy()
        np.testing.assert_array_equal(actual["routing"], chosen)
        assert actual["routing"].shape[1:] == backend.parts["decoder"].output("routing").shape[1:]


def test_only_the_outputs_asked_for_come_back(model: SFN, tiny: ModelConfig) -> None:
    backend = TorchBackend(model, None)
    frame = np.zeros((1, 3, tiny.frame_height, tiny.frame_width), np.float32)
    assert list(backend.infer("appearance", {"frame": frame}, ["skip"])) == ["skip"]


def test_wrong_feeds_are_refused_in_the_shared_wording(model: SFN) -> None:
    backend = TorchBackend(model, None)
    with pytest.raises(InputError, match=r"torch: appearance: input 'frame' must be float32\["):
        backend.infer("appearance", {"frame": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(InputError, match="no part 'text'"):
        backend.infer("text", {})
