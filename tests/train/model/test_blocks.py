"""Patches, positions and the small ViT: what later modules rely on without looking."""

import numpy as np
import pytest
import torch

from sfn_train.model.blocks import (
    Attention,
    Block,
    PatchViT,
    patchify,
    sincos_positions,
    unpatchify,
)

GRID = (2, 3)
PATCH = 4


def test_patches_go_row_by_row_and_hold_one_place_each() -> None:
    image = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).reshape(2, 3, 8, 12)
    patches = patchify(image, PATCH)  # (2, 6, 48)
    assert patches.shape == (2, 6, 3 * PATCH * PATCH)
    below_left = image[1, :, 4:8, 0:4].flatten()  # the first patch of the second row
    torch.testing.assert_close(patches[1, 3], below_left, rtol=0, atol=0)


def test_unpatchify_is_the_inverse() -> None:
    image = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    again = unpatchify(patchify(image, PATCH), PATCH, GRID)
    torch.testing.assert_close(again, image, rtol=0, atol=0)


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_positions_are_zero_for_leading_tokens_alone(extra: int) -> None:
    table = sincos_positions(16, GRID, extra)[0]  # (extra + N, 16)
    assert table.shape == (extra + 6, 16)
    assert not table[:extra].any()
    assert table[extra:].any(dim=1).all()


def test_positions_are_sines_of_column_then_row() -> None:
    table = sincos_positions(8, GRID, extra=1)[0].numpy()
    row, column = 1, 2
    frequency = 1 / 10000 ** (np.arange(2) / 2)
    expected = np.concatenate(
        [f(place * frequency) for place in (column, row) for f in (np.sin, np.cos)]
    )
    np.testing.assert_allclose(table[1 + row * 3 + column], expected, atol=1e-6)
    assert len(np.unique(table.round(5), axis=0)) == 1 + 6  # no two places alike


def test_attention_is_softmax_of_scaled_products_head_by_head() -> None:
    torch.manual_seed(0)
    attention = Attention(dim=8, heads=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.inference_mode():
        actual = attention(x).numpy()
        qkv = attention.qkv(x).numpy().reshape(2, 5, 3, 2, 4)
    heads = []
    for h in range(2):
        q, k, v = (qkv[:, :, i, h] for i in range(3))  # (B, N, d)
        weight = np.exp(np.einsum("bnd,bmd->bnm", q, k) / np.sqrt(4))
        weight /= weight.sum(axis=-1, keepdims=True)
        heads.append(np.einsum("bnm,bmd->bnd", weight, v))
    joined = torch.from_numpy(np.concatenate(heads, axis=-1))
    with torch.inference_mode():
        np.testing.assert_allclose(actual, attention.out(joined).numpy(), atol=1e-12)


def test_a_block_without_its_branches_is_the_identity() -> None:
    torch.manual_seed(0)
    block = Block(8, heads=2, mlp_ratio=2)
    for last in (block.attention.out, block.mlp[-1]):
        for parameter in last.parameters():
            torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_vit_gives_a_class_token_before_the_patches_and_their_embeddings() -> None:
    torch.manual_seed(0)
    vit = PatchViT(PATCH, GRID, dim=8, depth=1, heads=2, mlp_ratio=2)
    image = torch.randn(3, 3, 8, 12)
    with torch.inference_mode():
        hidden, embedded = vit(image)
        alone, _ = vit(image[1:2])
    assert hidden.shape == (3, 7, 8)
    assert embedded.shape == (3, 6, 8)
    torch.testing.assert_close(embedded, vit.embed(patchify(image, PATCH)))
    torch.testing.assert_close(hidden[1:2], alone, rtol=0, atol=1e-6)  # images do not mix


def test_the_same_patch_elsewhere_is_another_token() -> None:
    torch.manual_seed(0)
    vit = PatchViT(PATCH, GRID, dim=8, depth=1, heads=2, mlp_ratio=2)
    with torch.inference_mode():
        hidden, embedded = vit(torch.ones(1, 3, 8, 12))
    assert torch.equal(embedded[0, 0], embedded[0, 5])
    assert not torch.allclose(hidden[0, 1], hidden[0, 6], atol=1e-3)
