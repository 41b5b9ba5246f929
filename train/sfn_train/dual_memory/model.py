"""The autoencoder: 3-D convolutions down, one of two memories at the bottom, and up again.

    level 0      16 x H x W      2 convolutions                          widths[0]
    level i      halved i times  stride-2 convolution, 2 convolutions    widths[i]
    bottleneck   each place is a query, replaced by what its clip's memory makes of it
    back up      stride-2 transposed convolution, [concatenate the level's own], 2 convolutions
    picture      1 convolution

Every convolution is 3 x 3 x 3 and all but the last have BatchNorm and ReLU behind them. A clip
passes the normal memory, one that is marked as a pseudo-anomaly the other: clip by clip.

Axes: B clips, T = 16 frames, H and W pixels, C channels, Q places of the bottleneck, S slots.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfn_train.dual_memory.config import SCORED, DualMemoryConfig
from sfn_train.dual_memory.memory import Memory, recall

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as video and OpenCV define grey
FLAT = 1 / 255  # a deviation below one grey level is noise, not a picture to be stretched
REACH = 3  # frames to each side that one frame depends on above the last transposed convolution


class Reconstruction(NamedTuple):
    """What the memories make of a batch of clips, in the standardised space."""

    target: Tensor  # (B, C, T, H, W) the clips themselves
    picture: Tensor  # (B, C, T, H, W) through the memory that each clip belongs to
    weights: Tensor  # (B, Q, S) how it was addressed
    as_normal: Tensor | None  # (marked, C, T, H, W) marked clips through the normal memory


class DualMemory(nn.Module):
    """Rebuilds clips from patterns of normal (or of anomalous) motion that it has stored."""

    memory_format = torch.channels_last_3d  # to train in: a fifth faster on a CPU

    def __init__(self, config: DualMemoryConfig) -> None:
        super().__init__()
        self.config = c = config
        self.first = double(c.channels, c.widths[0])
        pairs = list(zip(c.widths[:-1], c.widths[1:], strict=True))
        self.down = nn.ModuleList(
            nn.Sequential(conv(fine, coarse, stride=2), double(coarse, coarse))
            for fine, coarse in pairs
        )
        self.normal = Memory(c.slots, c.widths[-1], c.slot_spread)
        self.anomalous = Memory(c.slots, c.widths[-1], c.slot_spread)
        self.up = nn.ModuleList(expand(coarse, fine) for fine, coarse in pairs)  # finest first
        self.refine = nn.ModuleList(
            double(fine * (2 if skip == "concatenate" else 1), fine)
            for (fine, _), skip in zip(pairs, c.skips, strict=True)
        )
        self.picture = nn.Conv3d(c.widths[0], c.channels, 3, padding=1)

    def forward(
        self, clip: Tensor, pseudo: Tensor | None = None, *, also_as_normal: bool = False
    ) -> Reconstruction:
        """Clips (B, T, 3, H, W) of RGB in 0..1; `pseudo` (B,) bool marks pseudo-anomalies.

        `also_as_normal` rebuilds the marked clips a second time, through the normal memory.
        """
        target = self.standardise(clip)
        levels = self.encode(target)
        bottom = levels[-1]
        recalled, weights = self.remember(bottom, pseudo)
        marked = None
        if also_as_normal and pseudo is not None:
            marked = pseudo.nonzero()[:, 0]  # (marked,)
            recalled = torch.cat([recalled, self.remember(bottom[marked], None)[0]])
            levels = [torch.cat([level, level[marked]]) for level in levels[:-1]]
        picture = self.decode(recalled, levels)
        if marked is None:
            return Reconstruction(target, picture, weights, None)
        return Reconstruction(target, picture[: len(clip)], weights, picture[len(clip) :])

    def error(self, clip: Tensor) -> Tensor:
        """Squared error (B, H, W) of the scored frame, mean over channels; the exported part.

        The normal memory alone. Of the finest level only those frames are computed that the scored
        one depends on.
        """
        target = self.standardise(clip)
        levels = self.encode(target)
        recalled, _ = self.remember(levels[-1], None)
        needed = slice(SCORED - REACH, SCORED + REACH + 1)
        picture = self.decode(recalled, levels, needed)[:, :, REACH]  # (B, C, H, W)
        return (picture - target[:, :, SCORED]).square().mean(dim=1)

    def standardise(self, clip: Tensor) -> Tensor:
        """RGB clips (B, T, 3, H, W) to frames (B, C, T, H, W) of mean 0 and deviation 1 each."""
        if self.config.channels == 1:
            # Not a matrix product: autocast would round the picture to 8 bits of mantissa.
            red, green, blue = clip.unbind(dim=2)  # (B, T, H, W) each
            clip = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(2)
        centred = clip - clip.mean(dim=(2, 3, 4), keepdim=True)
        deviation = centred.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
        return (centred / deviation.clamp_min(FLAT)).transpose(1, 2)  # (B, C, T, H, W)

    def encode(self, target: Tensor) -> list[Tensor]:
        """(B, C, T, H, W) to every level, finest first."""
        levels = [self.first(target)]
        for down in self.down:
            levels.append(down(levels[-1]))
        return levels

    def remember(self, bottom: Tensor, pseudo: Tensor | None) -> tuple[Tensor, Tensor]:
        """The lowest level (B, C, t, h, w) as its memory has it, and the weights (B, Q, S)."""
        slots = self.normal.slots.expand(bottom.shape[0], -1, -1)  # (B, S, C); len() would fix B
        if pseudo is not None:
            slots = torch.where(pseudo[:, None, None], self.anomalous.slots, slots)
        queries = bottom.flatten(2).transpose(1, 2)  # (B, Q, C)
        recalled, weights = recall(queries, slots, self.config.shrink)
        return recalled.transpose(1, 2).unflatten(2, bottom.shape[2:]), weights

    def decode(self, recalled: Tensor, levels: list[Tensor], frames: slice = slice(None)) -> Tensor:
        """The picture (B, C, frames, H, W); `levels` are the encoder's, for the skips."""
        x = recalled
        for i in reversed(range(len(self.up))):
            taken = frames if i == 0 else slice(None)
            x = self.up[i](x)[:, :, taken]
            if self.config.skips[i] == "concatenate":
                x = torch.cat([x, levels[i][:, :, taken]], dim=1)
            x = self.refine[i](x)
        picture: Tensor = self.picture(x)
        return picture


def double(inner: int, outer: int) -> nn.Sequential:
    """The two convolutions of a level."""
    return nn.Sequential(conv(inner, outer), conv(outer, outer))


def conv(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    """One convolution; its bias would be BatchNorm's."""
    layer = nn.Conv3d(inner, outer, 3, stride, padding=1, bias=False)
    return normalised(layer, outer, taps=27 * inner)


def expand(inner: int, outer: int) -> nn.Sequential:
    """Twice the frames, rows and columns."""
    layer = nn.ConvTranspose3d(inner, outer, 3, 2, padding=1, output_padding=1, bias=False)
    return normalised(layer, outer, taps=27 * inner / 8)  # of 8 places, 1 has an input


def normalised(layer: nn.Module, width: int, taps: float) -> nn.Sequential:
    """A convolution, BatchNorm and ReLU; `taps` is what a sum of the convolution adds up.

    The weights are He's: with them the variance in front of BatchNorm is about the 1 that its
    running statistics begin with, so the network scores sensibly after its first steps, too.
    """
    assert isinstance(layer.weight, nn.Parameter)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / taps))
    return nn.Sequential(layer, nn.BatchNorm3d(width), nn.ReLU(inplace=True))
