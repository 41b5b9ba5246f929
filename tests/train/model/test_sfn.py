"""The whole network: runs equal clips, and switched-off branches are gone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sfn_train.model import SFN, ModelConfig
from sfn_train.model.sfn import clips_of

LENGTH = 8


def make(config: ModelConfig) -> SFN:
    torch.manual_seed(0)
    model = SFN(config).eval()
    with torch.no_grad():  # what starts at 0 hides mistakes
        for name, parameter in model.named_parameters():
            if "gain" in name or "refine" in name:
                parameter.add_(torch.randn_like(parameter))
    return model


def run(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = (config.frame_height, config.frame_width)
    frames = torch.randn(2, LENGTH, 3, *size, generator=generator)
    n_clips = LENGTH - config.observed
    return frames, torch.randn(2, n_clips, config.text_width, generator=generator)


VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no appearance": {"use_appearance": False},
    "no motion": {"use_motion": False},
    "no text": {"use_text": False},
    "no filter": {"filter": "none"},
    "one bottleneck": {"filter": "bottleneck"},
    "standard MLP": {"filter": "mlp"},
    "no shared filter": {"n_shared": 0},
    "wide bottlenecks": {"bottleneck": 30},
    "memory": {"filter": "none", "memory": "input", "memory_slots": 8},
    "memory in every layer": {"filter": "none", "memory": "every_layer", "memory_slots": 8},
    "joint attention": {"joint_attention": 2},
    "joint attention to text alone": {"joint_attention": 1, "use_motion": False},
    "appearance alone": {"use_motion": False, "use_text": False},
    "text alone": {"use_appearance": False, "use_motion": False},
    "three windows": {"windows": (4, 8, 16)},
    "no norm behind motion": {"motion_norm": False},
    "whole frame": {"predict": "frame"},
    "three observed": {"observed": 3},
    "a student": {"student": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_equals_its_clips_one_by_one(tiny: ModelConfig, variant: str) -> None:
    config = replace(tiny, **VARIANTS[variant])
    model, (frames, text) = make(config), run(config)
    observed, n_clips = config.observed, LENGTH - config.observed
    with torch.inference_mode():
        whole = model(frames, text)
        for b in range(2):
            for i in range(n_clips):
                clip = frames[b : b + 1, i : i + observed + 1]
                one = model(clip, text[b : b + 1, i : i + 1])
                at = b * n_clips + i
                names = ("next_frame", "semantic", "distilled")
                pairs = [(getattr(whole, name), getattr(one, name)) for name in names]
                there = (config.has_picture, config.use_text, config.has_student)
                for (ours, alone), expected in zip(pairs, there, strict=True):
                    assert (ours is not None) == (alone is not None) == expected
                    if ours is not None:
                        torch.testing.assert_close(ours[at], alone[0], rtol=1e-4, atol=1e-4)


def test_the_frame_to_predict_is_never_looked_at(tiny: ModelConfig) -> None:
    model, (frames, text) = make(tiny), run(tiny)
    changed = frames.clone()
    changed[:, -1] += 5
    with torch.inference_mode():
        assert torch.equal(model(frames, text).next_frame, model(changed, text).next_frame)
        changed[:, -2] += 5
        assert not torch.equal(model(frames, text).next_frame, model(changed, text).next_frame)


@pytest.mark.parametrize("branch", ["appearance", "motion", "text"])
def test_a_branch_that_is_off_is_no_part_and_no_input(tiny: ModelConfig, branch: str) -> None:
    config = replace(tiny, **{f"use_{branch}": False})
    model, (frames, text) = make(config), run(config)
    if branch == "text":
        assert model(frames, None).semantic is None
    else:
        assert getattr(model, branch) is None
        assert model(frames, text).semantic is not None
    assert not any(name.startswith(f"{branch}.") for name, _ in model.named_parameters())


def test_with_text_off_a_given_sentence_is_not_read(tiny: ModelConfig) -> None:
    model, (frames, text) = make(replace(tiny, use_text=False)), run(tiny)
    with torch.inference_mode():
        assert torch.equal(model(frames, text).next_frame, model(frames, None).next_frame)


def test_the_caption_of_a_clip_changes_that_clip_alone(tiny: ModelConfig) -> None:
    model, (frames, text) = make(tiny), run(tiny)
    other = text.clone()
    other[0, 1] += 1
    with torch.inference_mode():
        a, b = model(frames, text), model(frames, other)
    assert a.semantic is not None
    assert b.semantic is not None
    differs = (a.semantic != b.semantic).any(dim=1).tolist()
    assert differs == [False, True, *[False] * (len(differs) - 2)]


def test_clips_are_sliding_windows() -> None:
    numbers = torch.arange(10).reshape(2, 5, 1)
    windows = clips_of(numbers, 3)
    assert windows.shape == (2, 3, 3, 1)
    assert windows[1, 2, :, 0].tolist() == [7, 8, 9]


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_weights_learn(tiny: ModelConfig, variant: str) -> None:
    config = replace(tiny, **VARIANTS[variant])
    model, (frames, text) = make(config), run(config)
    prediction = model(frames, text)
    routed = sum(r.probability.square().sum() for r in prediction.routings)
    read = [tensor for tensor in prediction[:2] if tensor is not None]
    (sum(tensor.square().sum() for tensor in read) + routed).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("decoder.student.") for name in idle), "it learns afterwards"
    assert bool(idle) == config.has_student


def test_features_stand_for_the_encoder_that_made_them(tiny: ModelConfig) -> None:
    model, (frames, text) = make(tiny), run(tiny)
    assert model.appearance is not None
    with torch.inference_mode():
        hidden, embedded = model.appearance.vit(frames.flatten(0, 1))
        shape = frames.shape[:2]
        cached = hidden.unflatten(0, shape), embedded.unflatten(0, shape)
        whole, from_cache = model(frames, text), model(frames, text, cached)
        torch.testing.assert_close(whole.next_frame, from_cache.next_frame, rtol=0, atol=1e-6)
        other = model(frames, text, (cached[0] + 1, cached[1]))
    assert not torch.allclose(whole.next_frame, other.next_frame, atol=1e-3)


def test_joint_attention_starts_as_the_model_without(tiny: ModelConfig) -> None:
    frames, text = run(tiny)
    torch.manual_seed(0)
    joint = SFN(replace(tiny, joint_attention=2, predict="frame")).eval()
    plain = SFN(replace(tiny, predict="frame")).eval()
    plain.load_state_dict(joint.state_dict(), strict=False)
    with torch.inference_mode():
        a, b = joint(frames, text).next_frame, plain(frames, text).next_frame
    torch.testing.assert_close(a, b, rtol=0, atol=0)
