"""Tri-Modal Fusion Encoder (TMFE): appearance, motion and semantics into one token sequence.

    F_v = E_v(I_1 .. I_T)          appearance of each frame              paper Eq. (1)
    F_s = E_t(caption)             sentence embedding of the clip        paper Eq. (2), (3)
    F_m = E_m(I_{t+1} - I_t)       motion of each adjacent pair          paper Eq. (4)

The paper's E_v is the frozen tower of a VLM; the edge profile trains a small ViT in its place.
Each frame and each difference is encoded and projected on its own, so that a stream computes it
once and keeps it: only `Fusion` sees a whole clip.

Axes: B clips, T observed frames, N patches, C the tower's width, D decoder width, S text width.
"""

import torch
from torch import Tensor, nn

from sfn_train.model.blocks import PatchViT
from sfn_train.model.config import ModelConfig
from sfn_train.model.joint_attention import JointAttention


class AppearanceEncoder(nn.Module):
    """One frame (B, 3, H, W) to tokens (B, 1 + N, D) and the skip's patch embeddings (B, N, D)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.vit: nn.Module
        if c.tower is None:
            self.vit = PatchViT(c.patch, c.grid, c.appearance_dim, c.appearance_depth, c.heads, 4)
        else:
            from sfn_train.model.tower import load_tower  # transformers is slow to import

            self.vit = load_tower(c)
        self.project = nn.Linear(c.appearance_dim, c.dim)
        self.project_skip = nn.Linear(c.appearance_dim, c.dim)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Equation (1) for one frame, projected to the decoder's width."""
        return self.projected(*self.vit(frame))

    def projected(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """What the tower says of a frame, (B, 1 + N, C) and (B, N, C), at the decoder's width."""
        return self.project(hidden), self.project_skip(embedded)


class MotionEncoder(nn.Module):
    """One difference of adjacent normalised frames (B, 3, H, W) to tokens (B, 1 + N, C_m)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.vit = PatchViT(
            c.patch, c.grid, c.motion_dim, c.motion_depth, c.heads, 2, norm=c.motion_norm
        )

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
            self.text = nn.Linear(c.text_width, c.dim)
        if c.joint_attention:
            n_contexts = c.use_text + c.use_motion
            self.joint = nn.ModuleList(
                JointAttention(c.dim, c.heads, n_contexts) for _ in range(c.joint_attention)
            )
        if n_dense:
            self.mix = nn.Sequential(
                nn.Linear(n_dense * c.dim, 4 * c.dim), nn.GELU(), nn.Linear(4 * c.dim, c.dim)
            )

    def forward(
        self, appearance: Tensor | None, motion: Tensor | None, text: Tensor | None
    ) -> Tensor:
        """Fuse (B, T, 1 + N, D), (B, T - 1, 1 + N, C_m) and (B, K S); what is off is None."""
        seen = moved = said = None
        if appearance is not None:
            seen = self.appearance(appearance.transpose(1, 2).flatten(2))  # (B, 1 + N, D)
        if motion is not None:
            moved = self.motion(motion.transpose(1, 2).flatten(2))  # (B, 1 + N, D)
        if text is not None:
            said = self.text(text).unsqueeze(1)  # (B, 1, D)
        if hasattr(self, "joint"):
            for layer in self.joint:
                seen = layer(seen, [tokens for tokens in (said, moved) if tokens is not None])
        dense = [tokens for tokens in (seen, moved) if tokens is not None]
        sequence = [] if said is None else [said]
        if dense:
            sequence.append(self.mix(torch.cat(dense, dim=-1)))  # (B, 1 + N, D)
        return torch.cat(sequence, dim=1)  # (B, 2 + N, D) with everything on
