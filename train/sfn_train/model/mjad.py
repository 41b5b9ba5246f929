"""Multimodal Joint Attention Decoder (MJAD): fused tokens to the next frame and its meaning.

    x = SFFM_l(Block_l(x))  for l = 1 .. 4, then LayerNorm        paper Eq. (8)
    frame = head([patch tokens, skip]),   text = head(text token)

Axes: B clips, N patches, D width, S text width; the sequence is [text, class, patches].
"""

import torch
from torch import Tensor, nn

from sfn_train.model.blocks import Block, sincos_positions, unpatchify
from sfn_train.model.config import MLP_RATIO, ModelConfig
from sfn_train.model.memory import Memories
from sfn_train.model.sffm import SFFM, Filter, Routing


class FrameHead(nn.Module):
    """Patch tokens and the last frame's skip to an image (B, 3, H, W).

    With `predict: change` the image is what changes since the last frame, and the last frame is
    added: the head starts at "nothing changes" and spends its few parameters on motion. The paper's
    model, 10 to 30 times as large and trained for days, draws the whole frame.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.patch, self.grid = c.patch, c.grid
        width = c.dim * (2 if c.use_appearance else 1)
        self.to_pixels = nn.Linear(width, 3 * c.patch * c.patch)
        self.refine = nn.Sequential(
            nn.Conv2d(3, c.head_channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            (last := nn.Conv2d(c.head_channels, 3, 1)),
        )
        if c.predict == "change":
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, patches: Tensor, skip: Tensor | None, last: Tensor | None) -> Tensor:
        """(B, N, D) tokens, (B, N, D) skip and, to add to, the last frame (B, 3, H, W)."""
        x = patches if skip is None else torch.cat([patches, skip], dim=-1)  # (B, N, 2 D)
        image: Tensor = self.refine(unpatchify(self.to_pixels(x), self.patch, self.grid))
        return image if last is None else last + image


class MJAD(nn.Module):
    """Alternate attention and filtering, then read out the frame and the sentence."""

    positions: Tensor

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.n_lead = c.use_text + c.has_picture  # tokens before the patches
        grid = c.grid if c.has_picture else (0, 0)
        positions = sincos_positions(c.dim, grid, extra=self.n_lead)
        self.register_buffer("positions", positions, persistent=False)
        depth = range(c.decoder_depth)
        self.memories = make_memories(c) if c.memory == "input" else nn.Identity()
        self.blocks = nn.ModuleList(Block(c.dim, c.heads, 4) for _ in depth)
        self.filters = nn.ModuleList(make_filter(c) for _ in depth)
        self.norm = nn.LayerNorm(c.dim)
        self.frame_head = FrameHead(c) if c.has_picture else None
        self.text_head = None
        if c.use_text:
            self.text_head = nn.Sequential(
                nn.Linear(c.dim, 4 * c.dim), nn.GELU(), nn.Linear(4 * c.dim, c.text_width)
            )

    def forward(
        self, x: Tensor, skip: Tensor | None, last: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, list[Routing]]:
        """Fused tokens (B, 2 + N, D) to frame (B, 3, H, W), text (B, K S) and the routings."""
        x = self.memories(x) + self.positions
        routings: list[Routing] = []
        for block, keep in zip(self.blocks, self.filters, strict=True):
            x = keep(block(x))
            if isinstance(x, tuple):  # of an SFFM, in training or as exported
                x, routing = x
                routings.append(routing)
        x = self.norm(x)
        frame = text = None
        if self.frame_head is not None:
            frame = self.frame_head(x[:, self.n_lead :], skip, last)
        if self.text_head is not None:
            text = self.text_head(x[:, 0])
        return frame, text, routings


def make_filter(c: ModelConfig) -> nn.Module:
    """What stands behind each block: an SFFM, or what an ablation has in its place."""
    if c.memory == "every_layer":
        return make_memories(c)
    if c.filter == "sffm":
        return SFFM(c.dim, c.rank, c.n_filters, c.n_active, c.gate, c.n_shared)
    if c.filter == "none":
        return nn.Identity()
    return Filter(c.dim, c.rank if c.filter == "bottleneck" else MLP_RATIO * c.dim)


def make_memories(c: ModelConfig) -> Memories:
    """A memory for each kind of token that the model has."""
    return Memories(c.dim, c.memory_slots, picture=c.has_picture, text=c.use_text)
