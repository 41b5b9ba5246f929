"""The student: how wrong the decoder will be about the caption, before there is a caption.

    e = 1 - cos(s^, s)                      what a caption would show       paper Eq. (13)
    e^ = softplus(g(log-mean-exp_n f(x_n), mean_n f(x_n)))          what the student expects of it

x_n is all that the decoder sees of patch n before text and filters take part: the appearance of
the T frames and the motion of the T - 1 differences between them. f tells P things of a patch and
its neighbours. The log of their mean exponential is nearly their largest, so that one small fast
thing in a wide picture counts; their mean tells how full the picture is.

It learns when the rest is trained and frozen (sfn_train/distil.py): nothing of it reaches the
other weights, and no other output changes with it.

Axes: B clips, T pictures (observed frames, or differences), N patches (h x w), C numbers a patch of
one picture, H hidden, P pooled.
"""

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfn_train.model.blocks import sincos_positions
from sfn_train.model.config import ModelConfig

POOLED = 16  # P
READ = 32  # width of g
SEED = 0  # of the weights it starts with
# Of what is made of a patch: stranger counts as that strange. It bounds rounding, too: huge numbers
# that cancel would leave nothing but.
STRANGEST = 8.0
LOWEST = -9.0  # of the readout: an error of 1e-4, below any caption's
USUAL = -3.0  # it starts at: an error of 0.05


class Deviation(nn.Module):
    """A patch in T pictures, (B, 1 + N, T C) as fusion lays them out, to H numbers of it.

    It weighs deviations from what is usual, which its weights take in: no pass over the tokens.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # Of normal footage, a number each: what the encoders give is on any scale.
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.weigh = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, T C) to (B, 1 + N, H)."""
        weight = self.weigh.weight / self.spread
        return F.linear(x, weight, self.weigh.bias - weight @ self.mean)

    def calibrate(self, x: Tensor) -> None:
        """Take the scale of normal footage from tokens (B, 1 + N, T C) of it."""
        self.mean.copy_(x.mean(dim=(0, 1)))
        # A number that never changes must not become a strange one by rounding.
        least = max(1e-2 * float(x.std()), 1e-12)
        self.spread.copy_(x.std(dim=(0, 1)).clamp(min=least))


class Student(nn.Module):
    """What a clip looks like, to the semantic error that its caption would have."""

    positions: Tensor

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.grid = c.grid
        self.register_buffer("positions", sincos_positions(c.dim, c.grid, 0), persistent=False)
        with torch.random.fork_rng(devices=[]):  # the other weights are drawn as without it
            torch.manual_seed(SEED)
            self.appearance = Deviation(c.observed * c.dim, c.student) if c.use_appearance else None
            pairs = c.observed - 1
            self.motion = Deviation(pairs * c.motion_dim, c.student) if c.use_motion else None
            self.place = nn.Linear(c.dim, c.student)
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
        seen = [part(laid_out) for part, laid_out in self._pairs(appearance, motion)]
        x = reduce(torch.add, seen)[:, 1:] + self.place(self.positions)  # (B, N, H)
        h = F.gelu(x.clamp(-STRANGEST, STRANGEST))
        near = self.around(h.transpose(1, 2).unflatten(2, self.grid))  # (B, H, h, w)
        h = h + F.gelu(near).flatten(2).transpose(1, 2)
        told = self.tell(F.gelu(self.mix(h)))  # (B, N, P)
        largest = told.logsumexp(dim=1) - math.log(told.shape[1])  # (B, P)
        z = self.read(torch.cat([largest, told.mean(dim=1)], dim=-1)).squeeze(-1)  # (B,)
        return F.softplus(z.clamp(min=LOWEST))

    def calibrate(self, appearance: Tensor | None, motion: Tensor | None) -> None:
        """Take the scale of normal footage from what `forward` gets of it."""
        for part, laid_out in self._pairs(appearance, motion):
            part.calibrate(laid_out)

    def _pairs(
        self, appearance: Tensor | None, motion: Tensor | None
    ) -> list[tuple[Deviation, Tensor]]:
        both = ((self.appearance, appearance), (self.motion, motion))
        return [
            (part, tokens.transpose(1, 2).flatten(2))  # (B, 1 + N, T C)
            for part, tokens in both
            if part is not None and tokens is not None
        ]
