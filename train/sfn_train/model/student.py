"""The student: how wrong the decoder will be about the caption, before there is a caption.

    e = 1 - cos(s^, s)                      what a caption would show       paper Eq. (13)
    e^ = softplus(g(log-mean-exp_n f(x_n), mean_n f(x_n)))          what the student expects of it

x_n is all that the decoder sees of patch n before text and filters take part: the appearance of
the T frames and the motion of the T - 1 differences between them. f tells P things of a patch and
its neighbours. The log of their mean exponential is nearly their largest, so that one small fast
thing in a wide picture counts; their mean tells how full the picture is.

It learns when the rest is trained and frozen (sfn_train/distil.py): nothing of it reaches the
other weights, and no other output changes with it.

Axes: B clips, T observed frames, N patches (h x w), C numbers a patch, H hidden, P pooled.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfn_train.model.blocks import sincos_positions
from sfn_train.model.config import ModelConfig

POOLED = 16  # P
READ = 32  # width of g
SEED = 0  # of the weights it starts with
# Deviations from the usual: what is stranger counts as that strange. It also bounds rounding, as
# products of huge numbers that cancel would leave nothing but.
STRANGEST = 8.0
LOWEST = -9.0  # of the readout: an error of 1e-4, below any caption's
USUAL = -3.0  # it starts at: an error of 0.05


class Student(nn.Module):
    """What a clip looks like, to the semantic error that its caption would have."""

    mean: Tensor
    spread: Tensor
    positions: Tensor

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        width = c.observed * c.dim * c.use_appearance
        width += (c.observed - 1) * c.motion_dim * c.use_motion
        self.grid = c.grid
        # Of normal footage, a number each: what the encoders give is on any scale.
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("positions", sincos_positions(c.dim, c.grid, 0), persistent=False)
        with torch.random.fork_rng(devices=[]):  # the other weights are drawn as without it
            torch.manual_seed(SEED)
            self.token = nn.Linear(width, c.student)
            self.place = nn.Linear(c.dim, c.student, bias=False)
            self.around = nn.Conv2d(c.student, c.student, 3, padding=1, groups=c.student)
            self.mix = nn.Linear(c.student, c.student)
            self.tell = nn.Linear(c.student, POOLED)
            self.read = nn.Sequential(
                nn.Linear(2 * POOLED, READ), nn.GELU(), (last := nn.Linear(READ, 1))
            )
        nn.init.constant_(last.bias, USUAL)
        self.requires_grad_(False)  # until it is its turn

    def forward(self, appearance: Tensor | None, motion: Tensor | None) -> Tensor:
        """(B, T, 1 + N, D) and (B, T - 1, 1 + N, C_m), None where off, to errors (B,)."""
        x = (self.features(appearance, motion) - self.mean) / self.spread
        x = x.clamp(-STRANGEST, STRANGEST)
        h = F.gelu(self.token(x) + self.place(self.positions))  # (B, N, H)
        near = self.around(h.transpose(1, 2).unflatten(2, self.grid))  # (B, H, h, w)
        h = h + F.gelu(near).flatten(2).transpose(1, 2)
        told = self.tell(F.gelu(self.mix(h)))  # (B, N, P)
        largest = told.logsumexp(dim=1) - math.log(told.shape[1])  # (B, P)
        z = self.read(torch.cat([largest, told.mean(dim=1)], dim=-1)).squeeze(-1)  # (B,)
        return F.softplus(z.clamp(min=LOWEST))

    def features(self, appearance: Tensor | None, motion: Tensor | None) -> Tensor:
        """What is known of each patch, (B, N, C); the class tokens are left out."""
        seen = [x[:, :, 1:] for x in (appearance, motion) if x is not None]
        return torch.cat([x.transpose(1, 2).flatten(2) for x in seen], dim=-1)

    def calibrate(self, features: Tensor) -> None:
        """Take the scale of normal footage from features (B, N, C) of it."""
        flat = features.flatten(0, 1)
        self.mean.copy_(flat.mean(dim=0))
        # A number that never changes must not become a strange one by rounding.
        self.spread.copy_(flat.std(dim=0).clamp(min=1e-2 * float(flat.std()) + 1e-12))
