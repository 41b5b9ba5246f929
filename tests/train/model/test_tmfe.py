"""What each branch adds to the fused sequence, and that one switched off is gone."""

from dataclasses import replace

import pytest
import torch

from sfn_train.model import ModelConfig
from sfn_train.model.tmfe import AppearanceEncoder, Fusion, MotionEncoder


def features(c: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = 1 + c.n_patches
    return (
        torch.randn(2, c.observed, tokens, c.dim, generator=generator),
        torch.randn(2, c.observed - 1, tokens, c.motion_dim, generator=generator),
        torch.randn(2, c.text_dim, generator=generator),
    )


def test_encoders_take_one_frame_and_one_difference(tiny: ModelConfig) -> None:
    image = torch.randn(2, 3, tiny.frame_height, tiny.frame_width)
    tokens, skip = AppearanceEncoder(tiny)(image)
    assert tokens.shape == (2, 1 + tiny.n_patches, tiny.dim)
    assert skip.shape == (2, tiny.n_patches, tiny.dim)
    assert MotionEncoder(tiny)(image).shape == (2, 1 + tiny.n_patches, tiny.motion_dim)


def test_the_text_token_leads(tiny: ModelConfig) -> None:
    fusion = Fusion(tiny)
    appearance, motion, text = features(tiny)
    x = fusion(appearance, motion, text)
    assert x.shape == (2, 2 + tiny.n_patches, tiny.dim)
    torch.testing.assert_close(x[:, 0], fusion.text(text))
    other = fusion(appearance, motion, text + 1)
    assert not torch.allclose(x[:, 0], other[:, 0])
    torch.testing.assert_close(x[:, 1:], other[:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize("branch", ["appearance", "motion"])
def test_every_moment_of_a_clip_counts_and_so_does_their_order(
    tiny: ModelConfig, branch: str
) -> None:
    fusion = Fusion(tiny)
    parts = dict(zip(("appearance", "motion", "text"), features(tiny), strict=True))
    x = fusion(**parts)
    turned = fusion(**(parts | {branch: parts[branch].flip(1)}))
    assert not torch.allclose(x, turned, atol=1e-4)
    for i in range(parts[branch].shape[1]):
        changed = parts[branch].clone()
        changed[:, i] += 1
        assert not torch.allclose(x, fusion(**(parts | {branch: changed})), atol=1e-4)


@pytest.mark.parametrize("branch", ["appearance", "motion", "text"])
def test_a_branch_that_is_off_has_no_weights(tiny: ModelConfig, branch: str) -> None:
    config = replace(tiny, **{f"use_{branch}": False})
    fusion = Fusion(config)
    names = {name.partition(".")[0] for name, _ in fusion.named_parameters()}
    assert names == {"appearance", "motion", "text", "mix"} - {branch}
    parts = dict(zip(("appearance", "motion", "text"), features(config), strict=True))
    x = fusion(**(parts | {branch: None}))
    assert x.shape[1] == (1 if branch == "text" else 2) + config.n_patches
