"""Tri-Modal Fusion Encoder (TMFE): appearance, motion and semantics into one token sequence.

    F_v = E_v(I_1 .. I_T)          appearance of each frame              paper Eq. (1)
    F_s = E_t(caption)             sentence embedding of the clip        paper Eq. (2), (3)
    F_m = E_m(I_{t+1} - I_t)       motion of each adjacent pair          paper Eq. (4)

The edge profile trains a small ViT where the paper has the frozen tower of a VLM. Each frame and
each difference is encoded and projected on its own, so that a stream computes it once and
keeps it: only `Fusion` sees a whole clip.

Axes: B clips, T observed frames, N patches, D decoder width, S text width.
"""

import torch
from torch import Tensor, nn

from sfn_train.model.blocks import PatchViT
from sfn_train.model.config import ModelConfig


class AppearanceEncoder(nn.Module):
    """One frame (B, 3, H, W) to tokens (B, 1 + N, D) and the skip's patch embeddings (B, N, D)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.vit = PatchViT(c.patch, c.grid, c.appearance_dim, c.appearance_depth, c.heads, 4)
        self.project = nn.Linear(c.appearance_dim, c.dim)
        self.project_skip = nn.Linear(c.appearance_dim, c.dim)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Equation (1) for one frame, projected to the decoder's width."""
        hidden, embedded = self.vit(frame)
        return self.project(hidden), self.project_skip(embedded)


class MotionEncoder(nn.Module):
    """One difference of adjacent normalised frames (B, 3, H, W) to tokens (B, 1 + N, C_m)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.vit = PatchViT(c.patch, c.grid, c.motion_dim, c.motion_depth, c.heads, 2)

    def forward(self, difference: Tensor) -> Tensor:
        """Equation (4) for one pair of frames."""
        hidden: Tensor = self.vit(difference)[0]
        return hidden


class Fusion(nn.Module):
    """A clip's modalities to one sequence [text, class, patch_1 .. patch_N], (B, 2 + N, D)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        n_dense = c.use_appearance + c.use_motion
        if c.use_appearance:
            self.appearance = nn.Linear(c.observed * c.dim, c.dim)
        if c.use_motion:
            self.motion = nn.Linear((c.observed - 1) * c.motion_dim, c.dim)
        if c.use_text:
            self.text = nn.Linear(c.text_dim, c.dim)
        self.mix = nn.Sequential(
            nn.Linear(n_dense * c.dim, 4 * c.dim), nn.GELU(), nn.Linear(4 * c.dim, c.dim)
        )

    def forward(
        self, appearance: Tensor | None, motion: Tensor | None, text: Tensor | None
    ) -> Tensor:
        """Fuse (B, T, 1 + N, D), (B, T - 1, 1 + N, C_m) and (B, S); what is off is None."""
        dense = []
        if appearance is not None:
            frames = appearance.transpose(1, 2).flatten(2)  # (B, 1 + N, T D)
            dense.append(self.appearance(frames))
        if motion is not None:
            pairs = motion.transpose(1, 2).flatten(2)  # (B, 1 + N, (T - 1) C_m)
            dense.append(self.motion(pairs))
        x: Tensor = self.mix(torch.cat(dense, dim=-1))  # (B, 1 + N, D)
        if text is None:
            return x
        return torch.cat([self.text(text).unsqueeze(1), x], dim=1)  # (B, 2 + N, D)
