"""The four losses, in the normalised pixel space the networks see.

    L_frame = mean((I^ - I_5)^2)                                        paper Eq. (9)
    L_text = 1 - cos(s^, s)                                             paper Eq. (10)
    L_motion = mean(max(0, (I^ - I_5)^2 - (I^ - I_4)^2))                paper Eq. (11)
    L = L_frame + L_text + L_motion + alpha * sum over layers of L_b    paper Eq. (12), (7)

L_motion punishes predictions that are nearer to the last frame seen than to the one that came:
repeating the last frame is not enough.

Axes: B runs, L frames of a run, P = L - T clips of a run, T observed frames, K captions of a clip,
S width of an embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfn_train.config import LossConfig
from sfn_train.model import ModelConfig, Prediction
from sfn_train.model.sffm import balance_loss


def compute_losses(
    prediction: Prediction,
    frames: Tensor,
    text: Tensor | None,
    model: ModelConfig,
    weights: LossConfig,
) -> dict[str, Tensor]:
    """Each loss that applies, unweighted, and their weighted `total`.

    `frames` is (B, L, 3, H, W), `text` (B, P, K S); the prediction holds B * P clips, run by run.
    With K captions a clip, L_text is the mean over them.
    """
    losses = {}
    if prediction.next_frame is not None:
        predicted = prediction.next_frame.float()  # (B P, 3, H, W)
        target = frames[:, model.observed :].flatten(0, 1)  # I_5 of each clip
        error = (predicted - target).square()
        losses["frame"] = error.mean()
        if model.use_motion and weights.motion:
            last = frames[:, model.observed - 1 : -1].flatten(0, 1)  # I_4 of each clip
            losses["motion"] = F.relu(error - (predicted - last).square()).mean()
    if prediction.semantic is not None and text is not None and weights.text:
        captions = (model.n_windows, -1)
        said = prediction.semantic.float().unflatten(-1, captions)  # (B P, K, S)
        meant = text.flatten(0, 1).unflatten(-1, captions)  # (B P, K, S)
        losses["text"] = 1 - F.cosine_similarity(said, meant, dim=-1).mean()
    if prediction.routings:
        losses["balance"] = torch.stack([balance_loss(r) for r in prediction.routings]).sum()
    losses["total"] = torch.stack(
        [getattr(weights, name) * loss for name, loss in losses.items()]
    ).sum()
    return losses
