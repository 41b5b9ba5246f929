"""Pieces shared by the encoders and the decoder: pre-norm ViT block, patches, positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D) tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return attended tokens, same shape."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, H, N, d)
        if self.training and not x.is_cuda:  # backward through CPU flash attention is slow here
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
            y = weights.to(v.dtype) @ v  # (B, H, N, d)
        else:
            y = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, d)
        attended: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    """Pre-norm transformer block with both residuals."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return transformed tokens, same shape."""
        attended: Tensor = x + self.attention(self.norm1(x))
        out: Tensor = attended + self.mlp(self.norm2(attended))
        return out


def patchify(image: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, N, C * patch * patch), patches row by row."""
    b, c, height, width = image.shape
    cells = image.reshape(b, c, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, C * patch * patch) back to (B, C, H, W); the inverse of `patchify`."""
    rows, columns = grid
    cells: Tensor = patches.unflatten(1, grid).unflatten(
        -1, (-1, patch, patch)
    )  # (B, h, w, C, p, p)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(
        -1, cells.shape[3], rows * patch, columns * patch
    )


def sincos_positions(dim: int, grid: tuple[int, int], extra: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (1, extra + N, dim): zeros for `extra` leading tokens."""
    frequency = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows = torch.arange(grid[0], dtype=torch.float64)[:, None] * frequency  # (h, dim / 4)
    columns = torch.arange(grid[1], dtype=torch.float64)[:, None] * frequency  # (w, dim / 4)
    down = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, grid[1], -1)
    across = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(grid[0], -1, -1)
    table = torch.cat([across, down], dim=-1).flatten(0, 1)  # (N, dim)
    return torch.cat([torch.zeros(extra, dim, dtype=torch.float64), table]).float().unsqueeze(0)


class PatchViT(nn.Module):
    """Small ViT over one image: patches, class token, fixed positions, pre-norm blocks."""

    positions: Tensor

    def __init__(
        self,
        patch: int,
        grid: tuple[int, int],
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.register_buffer("positions", sincos_positions(dim, grid, extra=1), persistent=False)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to last hidden state (B, 1 + N, dim), patch embeddings (B, N, dim)."""
        embedded = self.embed(patchify(image, self.patch))  # (B, N, dim)
        cls = self.class_token.expand(image.shape[0], -1, -1)  # len() would fix the batch
        x = torch.cat([cls, embedded], dim=1) + self.positions  # (B, 1 + N, dim)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), embedded
