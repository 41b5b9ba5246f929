"""The student expects an error of the picture alone, and changes nothing but itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sfn_train.config import LossConfig
from sfn_train.losses import compute_losses
from sfn_train.model import SFN, ModelConfig
from sfn_train.model.student import LOWEST, Student
from sfn_train.torch_backend import TorchBackend, part_specs

WITH = {"student": 8}


@pytest.fixture
def taught(tiny: ModelConfig) -> SFN:
    torch.manual_seed(0)
    return SFN(replace(tiny, **WITH)).eval()


def run(config: ModelConfig, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(2, 8, 3, config.frame_height, config.frame_width, generator=generator)
    return frames, torch.randn(2, 4, config.text_width, generator=generator)


def test_the_rest_is_the_same_bits_with_and_without_it(tiny: ModelConfig, taught: SFN) -> None:
    torch.manual_seed(0)
    alone = SFN(tiny).eval()
    after = torch.rand(3)
    torch.manual_seed(0)
    SFN(replace(tiny, **WITH))
    assert torch.equal(torch.rand(3), after), "what is drawn later must be the same, too"
    weights = taught.state_dict()
    assert all(torch.equal(weights[name], x) for name, x in alone.state_dict().items())
    assert {n.split(".")[1] for n in weights.keys() - alone.state_dict().keys()} == {"student"}
    frames, text = run(tiny)
    with torch.inference_mode():
        ours, theirs = taught(frames, text), alone(frames, text)
    assert torch.equal(ours.next_frame, theirs.next_frame)
    assert torch.equal(ours.semantic, theirs.semantic)
    assert theirs.distilled is None
    assert ours.distilled.shape == (8,)


def test_what_is_said_has_no_influence_and_what_is_seen_has(taught: SFN) -> None:
    frames, text = run(taught.config)
    other, unsaid = run(taught.config, seed=2)
    with torch.inference_mode():
        one, same, another = taught(frames, text), taught(frames, unsaid), taught(other, text)
    assert not torch.equal(one.semantic, same.semantic)
    assert torch.equal(one.distilled, same.distilled)
    assert not torch.equal(one.distilled, another.distilled)


def test_nothing_flows_from_it_to_the_rest_nor_back(taught: SFN) -> None:
    frames, text = run(taught.config)
    student = taught.decoder.student
    assert student is not None
    assert not any(p.requires_grad for p in student.parameters()), "DDP would wait for gradients"
    prediction = taught.train()(frames, text)
    assert prediction.distilled is None, "while the others learn, it does not run"
    losses = compute_losses(prediction, frames, text, taught.config, LossConfig())
    losses["total"].backward()
    assert all(p.grad is None for p in student.parameters())

    taught.zero_grad(set_to_none=True)
    taught.requires_grad_(False).eval()
    student.requires_grad_(True)
    taught(frames, text).distilled.sum().backward()
    learning = {name for name, p in taught.named_parameters() if p.grad is not None}
    assert learning == {f"decoder.student.{name}" for name, _ in student.named_parameters()}
    assert all(bool(p.grad.abs().sum() > 0) for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "changes", [{"use_appearance": False, "joint_attention": 0}, {"use_motion": False}]
)
def test_a_branch_that_is_off_is_not_asked_for(tiny: ModelConfig, changes: dict[str, Any]) -> None:
    model = SFN(replace(tiny, **WITH, **changes)).eval()
    frames, text = run(model.config)
    with torch.inference_mode():
        assert model(frames, text).distilled.shape == (8,)


@pytest.mark.parametrize(
    "changes", [{"use_text": False}, {"use_appearance": False, "use_motion": False}]
)
def test_without_captions_or_picture_there_is_none(
    tiny: ModelConfig, changes: dict[str, Any]
) -> None:
    config = replace(tiny, **WITH, **changes)
    assert not config.has_student
    assert SFN(config).decoder.student is None
    assert "distilled" not in [s.name for s in part_specs(config, text=False)["decoder"].outputs]


def test_a_width_below_zero_is_refused(tiny: ModelConfig) -> None:
    with pytest.raises(ValueError, match=r"student must be a width, or 0 for none, got -1"):
        replace(tiny, student=-1)


def tokens(config: ModelConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    n = 1 + config.n_patches
    seen = torch.randn(batch, config.observed, n, config.dim, generator=generator)
    moved = torch.randn(batch, config.observed - 1, n, config.motion_dim, generator=generator)
    return seen, moved


def test_any_scale_of_features_is_the_same_to_it(tiny: ModelConfig) -> None:
    student, (seen, moved) = Student(replace(tiny, **WITH)), tokens(tiny)
    with torch.no_grad():
        student.calibrate(seen, moved)
        expected = student(seen, moved)
        student.calibrate(100 * seen + 7, 1e-3 * moved - 1)
        scaled = student(100 * seen + 7, 1e-3 * moved - 1)
    torch.testing.assert_close(scaled, expected, rtol=1e-3, atol=1e-5)


def test_a_number_that_never_changes_does_not_become_a_strange_one(tiny: ModelConfig) -> None:
    student, (seen, moved) = Student(replace(tiny, **WITH)), tokens(tiny)
    seen[..., 0] = 0.5
    nudged = seen.clone()
    nudged[..., 0] += 1e-6
    with torch.no_grad():
        student.calibrate(seen, moved)
        torch.testing.assert_close(student(nudged, moved), student(seen, moved), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_whatever_arrives_its_error_is_a_number_and_not_below_zero(
    tiny: ModelConfig, scale: float
) -> None:
    student, (seen, moved) = Student(replace(tiny, **WITH)), tokens(tiny)
    with torch.no_grad():
        for bias in (50.0, -50.0):
            student.read[-1].bias.fill_(bias)  # type: ignore[operator,union-attr]
            found = student(scale * seen, scale * moved)
            assert torch.isfinite(found).all()
    assert (found >= F.softplus(torch.tensor(LOWEST))).all()


def test_one_odd_patch_in_a_wide_picture_can_be_learned(tiny: ModelConfig) -> None:
    wide = replace(tiny, frame_height=64, frame_width=96, **WITH)  # 96 patches
    student = Student(wide)
    student.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = wide.n_patches
        seen = torch.randn(16, wide.observed, 1 + n, wide.dim, generator=generator)
        moved = torch.randn(16, wide.observed - 1, 1 + n, wide.motion_dim, generator=generator)
        odd = torch.rand(16, generator=generator) < 0.5
        where = torch.randint(1, 1 + n, (16,), generator=generator)
        moved[torch.arange(16), :, where] += 3.0 * odd[:, None, None]
        return seen, moved, odd

    for _ in range(120):
        seen, moved, odd = batch()
        wanted = torch.where(odd, 0.3, 0.02)
        loss = F.huber_loss(student(seen, moved).log(), wanted.log())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        seen, moved, odd = batch()
        found = student(seen, moved)
    assert found[odd].min() > 2 * found[~odd].max()


def test_the_backend_gives_what_its_parts_promise(taught: SFN) -> None:
    backend = TorchBackend(taught, None)
    spec = backend.parts["decoder"]
    assert [s.name for s in spec.outputs] == ["next_frame", "semantic", "distilled", "routing"]
    generator = torch.Generator().manual_seed(0)
    feeds = {
        s.name: torch.randn([2, *s.shape[1:]], generator=generator).numpy()  # type: ignore[list-item]
        for s in spec.inputs
    }
    found = backend.infer("decoder", feeds, ["distilled"])
    assert list(found) == ["distilled"]
    assert found["distilled"].shape == (2,)
