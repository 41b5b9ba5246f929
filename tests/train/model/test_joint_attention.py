"""Joint attention: one softmax over the sentence and every patch that moves."""

import torch

from sfn_train.model.joint_attention import JointAttention

D, H = 8, 2


def make(n_contexts: int = 2) -> JointAttention:
    torch.manual_seed(0)
    layer = JointAttention(D, H, n_contexts).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def inputs() -> tuple[torch.Tensor, list[torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    sizes = (5, 1, 6)
    x, text, motion = (torch.randn(2, n, D, generator=g, dtype=torch.float64) for n in sizes)
    return x, [text, motion]


@torch.no_grad()
def test_it_is_the_formula_head_by_head() -> None:
    layer, (x, contexts) = make(), inputs()
    q = layer.query(layer.norm1(x))
    k = torch.cat([c.key(c.norm(t)) for c, t in zip(layer.contexts, contexts, strict=True)], 1)
    v = torch.cat([c.value(c.norm(t)) for c, t in zip(layer.contexts, contexts, strict=True)], 1)
    heads = []
    for h in range(H):
        part = slice(h * D // H, (h + 1) * D // H)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / (D // H) ** 0.5).softmax(-1)
        heads.append(weights @ v[..., part])
    attended = x + layer.attention_gain * layer.out(torch.cat(heads, -1))
    expected = attended + layer.mlp_gain * layer.mlp(layer.norm2(attended))
    torch.testing.assert_close(layer(x, contexts), expected)


@torch.no_grad()
def test_each_context_is_heard() -> None:
    layer, (x, (text, motion)) = make(), inputs()
    y = layer(x, [text, motion])
    assert not torch.allclose(y, layer(x, [text.flip(-1), motion]))
    assert not torch.allclose(y, layer(x, [text, motion.flip(-1)]))


@torch.no_grad()
def test_gains_start_at_0() -> None:
    x, contexts = inputs()
    assert torch.equal(JointAttention(D, H, 2).double()(x, contexts), x)
