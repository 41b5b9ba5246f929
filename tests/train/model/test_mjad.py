"""The decoder: what it reads out, and from where."""

from dataclasses import replace

import pytest
import torch

from sfn_train.model import ModelConfig
from sfn_train.model.mjad import MJAD, FrameHead


def inputs(c: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    n = c.n_patches
    return (
        torch.randn(2, 1 + c.use_text + n, c.dim, generator=generator),
        torch.randn(2, n, c.dim, generator=generator),
        torch.randn(2, 3, c.frame_height, c.frame_width, generator=generator),
    )


def test_shapes_and_one_routing_a_layer(tiny: ModelConfig) -> None:
    x, skip, last = inputs(tiny)
    frame, text, routings = MJAD(tiny)(x, skip, last)
    assert frame.shape == last.shape
    assert text is not None
    assert text.shape == (2, tiny.text_dim)
    assert len(routings) == tiny.decoder_depth
    assert routings[0].chosen.shape == (2, 2 + tiny.n_patches, tiny.n_active)


def test_predicting_the_change_starts_at_nothing_changes(tiny: ModelConfig) -> None:
    x, skip, last = inputs(tiny)
    frame, _, _ = MJAD(tiny)(x, skip, last)
    torch.testing.assert_close(frame, last, rtol=0, atol=0)


def test_a_whole_frame_is_drawn_without_the_last_one(tiny: ModelConfig) -> None:
    config = replace(tiny, predict="frame")
    torch.manual_seed(0)
    x, skip, last = inputs(config)
    frame, _, _ = MJAD(config)(x, skip, None)
    assert frame.shape == last.shape
    assert frame.std() > 0


def test_nothing_in_the_filters_place_leaves_no_routing(tiny: ModelConfig) -> None:
    config = replace(tiny, filter="none")
    x, skip, last = inputs(config)
    mjad = MJAD(config)
    assert mjad(x, skip, last)[2] == []
    assert not any("filters" in name for name, _ in mjad.named_parameters())


def test_without_text_there_is_no_sentence_and_no_lead_token_for_it(tiny: ModelConfig) -> None:
    config = replace(tiny, use_text=False)
    x, skip, last = inputs(config)
    mjad = MJAD(config)
    assert mjad.n_lead == 1
    assert mjad(x, skip, last)[1] is None
    assert not any("text" in name for name, _ in mjad.named_parameters())


@pytest.mark.parametrize("use_text", [True, False])
def test_positions_leave_the_leading_tokens_alone(tiny: ModelConfig, use_text: bool) -> None:
    mjad = MJAD(replace(tiny, use_text=use_text))
    assert mjad.positions.shape == (1, mjad.n_lead + tiny.n_patches, tiny.dim)
    assert not mjad.positions[0, : mjad.n_lead].any()
    assert "positions" not in mjad.state_dict()  # made anew, never stored


def test_the_frame_head_draws_each_patch_where_its_token_is(tiny: ModelConfig) -> None:
    config = replace(tiny, predict="frame")
    torch.manual_seed(0)
    head = FrameHead(config)
    _, skip, _ = inputs(config)
    tokens = torch.zeros(1, config.n_patches, config.dim)
    lit = tokens.clone()
    lit[0, config.grid[1]] = 1.0  # first patch of the second row
    with torch.inference_mode():
        change = (head(lit, skip[:1], None) - head(tokens, skip[:1], None)).abs().amax(1)[0]
    rows, columns = torch.nonzero(change > 0, as_tuple=True)
    p = config.patch  # and the one pixel around it that the 3 x 3 convolution reaches
    assert rows.min() == p - 1
    assert columns.min() == 0
    assert columns.max() == p


def test_the_skip_reaches_the_frame(tiny: ModelConfig) -> None:
    torch.manual_seed(0)
    config = replace(tiny, predict="frame")
    x, skip, _ = inputs(config)
    mjad = MJAD(config)
    with torch.inference_mode():
        assert not torch.allclose(mjad(x, skip, None)[0], mjad(x, skip + 1, None)[0], atol=1e-4)
