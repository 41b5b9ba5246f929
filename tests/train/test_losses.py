"""The losses against their formulas, written out in numpy one clip at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfn_train.config import LossConfig
from sfn_train.losses import compute_losses
from sfn_train.model import ModelConfig, Prediction
from sfn_train.model.sffm import Routing

B, L, P, S, N_TOKENS, E, K, LAYERS = 2, 7, 3, 6, 5, 4, 2, 2
WEIGHTS = LossConfig(frame=1.5, text=0.5, motion=2.0, balance=0.1)


def make_prediction(seed: int = 0) -> tuple[Prediction, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    frames = torch.randn(B, L, 3, 4, 6, generator=g)
    text = torch.randn(B, P, S, generator=g)
    probability = [torch.rand(B * P, N_TOKENS, E, generator=g).softmax(-1) for _ in range(LAYERS)]
    routings = [Routing(p, *p.topk(K, dim=-1)) for p in probability]
    predicted = torch.randn(B * P, 3, 4, 6, generator=g)
    return Prediction(predicted, torch.randn(B * P, S, generator=g), routings), frames, text


def by_hand(prediction: Prediction, frames: torch.Tensor, text: torch.Tensor) -> dict[str, float]:
    """Equations (9) to (12) and (7), clip by clip."""
    frame, cosine, motion = [], [], []
    for run in range(B):
        for clip in range(P):
            predicted = prediction.next_frame[run * P + clip].numpy().astype(np.float64)
            target, last = frames[run, clip + 4].numpy(), frames[run, clip + 3].numpy()
            frame.append(np.mean((predicted - target) ** 2))
            hinge = (predicted - target) ** 2 - (predicted - last) ** 2
            motion.append(np.mean(np.maximum(0, hinge)))
            a, b = prediction.semantic[run * P + clip].numpy(), text[run, clip].numpy()
            cosine.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    balance = 0.0
    for routing in prediction.routings:
        for sequence in range(B * P):
            for i in range(E):
                share = (routing.chosen[sequence] == i).sum().item() * E / (K * N_TOKENS)
                balance += share * routing.probability[sequence, :, i].mean().item() / (B * P)
    losses = {"frame": np.mean(frame), "motion": np.mean(motion), "balance": balance}
    losses["text"] = 1 - np.mean(cosine)
    return losses


def test_each_loss_and_their_weighted_sum_equal_the_formulas(tiny: ModelConfig) -> None:
    prediction, frames, text = make_prediction()
    losses = compute_losses(prediction, frames, text, tiny, WEIGHTS)
    expected = by_hand(prediction, frames, text)
    assert set(losses) == {*expected, "total"}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5)
    total = sum(getattr(WEIGHTS, name) * value for name, value in expected.items())
    assert losses["total"].item() == pytest.approx(total, rel=1e-5)


def test_perfect_predictions_cost_only_balance(tiny: ModelConfig) -> None:
    prediction, frames, text = make_prediction()
    perfect = Prediction(frames[:, 4:].flatten(0, 1), 3 * text.flatten(0, 1), prediction.routings)
    losses = compute_losses(perfect, frames, text, tiny, WEIGHTS)
    assert losses["frame"] == 0
    assert losses["motion"] == 0
    assert losses["text"].item() == pytest.approx(0, abs=1e-6)
    assert losses["total"].item() == pytest.approx(0.1 * losses["balance"].item(), abs=1e-6)


def test_a_branch_that_is_off_has_no_loss(tiny: ModelConfig) -> None:
    prediction, frames, text = make_prediction()
    without_motion = replace(tiny, use_motion=False)
    losses = compute_losses(prediction, frames, text, without_motion, WEIGHTS)
    assert "motion" not in losses
    losses = compute_losses(prediction._replace(semantic=None), frames, None, tiny, WEIGHTS)
    assert "text" not in losses
    losses = compute_losses(prediction._replace(routings=[]), frames, text, tiny, WEIGHTS)
    assert "balance" not in losses


def test_losses_are_fp32_whatever_the_model_computes_in(tiny: ModelConfig) -> None:
    prediction, frames, text = make_prediction()
    half = prediction._replace(next_frame=prediction.next_frame.bfloat16())
    losses = compute_losses(half, frames, text, tiny, WEIGHTS)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_a_text_loss_of_weight_0_is_left_out(tiny: ModelConfig) -> None:
    prediction, frames, text = make_prediction()
    assert "text" not in compute_losses(prediction, frames, text, tiny, LossConfig(text=0))


def test_without_a_picture_only_the_sentence_costs(tiny: ModelConfig) -> None:
    prediction, frames, text = make_prediction()
    alone = replace(tiny, use_appearance=False, use_motion=False)
    losses = compute_losses(prediction._replace(next_frame=None), frames, text, alone, WEIGHTS)
    assert set(losses) == {"text", "balance", "total"}


def test_several_captions_cost_the_mean_of_each(tiny: ModelConfig) -> None:
    prediction, frames, text = make_prediction()
    windows = replace(tiny, windows=(4, 8))
    assert prediction.semantic is not None
    both = prediction._replace(semantic=torch.cat([prediction.semantic, text.flatten(0, 1)], -1))
    one = compute_losses(prediction, frames, text, tiny, WEIGHTS)["text"]
    two = compute_losses(both, frames, torch.cat([text, text], -1), windows, WEIGHTS)["text"]
    assert two.item() == pytest.approx(one.item() / 2, rel=1e-5)  # the second is perfect
