"""An architecture that cannot be built is refused before anything is."""

import pytest

from sfn_train.model import ModelConfig


def test_derived_sizes() -> None:
    config = ModelConfig(frame_height=20, frame_width=30, patch=5, dim=16, reduction=4)
    assert config.grid == (4, 6)
    assert config.n_patches == 24
    assert config.rank == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_height": 161}, "frame_height 161 is no multiple of patch 10"),
        ({"frame_width": 245}, "frame_width 245 is no multiple of patch 10"),
        ({"dim": 98}, "dim 98 must be a multiple of heads 4"),
        ({"motion_dim": 6, "heads": 3}, "motion_dim 6 must be a multiple of heads 3 and of 4"),
        ({"reduction": 97}, "reduction 97 leaves no bottleneck"),
        ({"n_active": 64}, r"n_active must be in \[1, 63\], got 64"),
        ({"n_active": 0}, "n_active must be in"),
        (
            {"use_appearance": False, "use_motion": False, "use_text": False},
            "all off: nothing is left",
        ),
        ({"n_shared": 2}, "n_shared must be 0 or 1, got 2"),
        ({"memory": "input"}, "set filter to none"),
        ({"memory_slots": 1}, "memory_slots must be at least 2, got 1"),
        ({"joint_attention": -1}, "0 or more layers, got -1"),
        ({"joint_attention": 2, "use_appearance": False}, "joint_attention needs appearance"),
        ({"windows": (8, 4)}, r"windows must rise from 1 frame on, got \[8, 4\]"),
        ({"windows": (0, 4)}, "windows must rise"),
        ({"windows": (4,), "use_text": False}, "use_text must be on"),
        ({"tower": "folder", "use_appearance": False}, "use_appearance must be on"),
        ({"bottleneck": 0}, "leaves no bottleneck"),
    ],
)
def test_nonsense_is_refused(change: dict[str, int], message: str) -> None:
    sizes = {"frame_height": 160, "frame_width": 240, "patch": 10, "heads": 4, "dim": 96}
    sizes |= {"appearance_dim": 96, "motion_dim": 64, "n_filters": 63}
    if "motion_dim" in change:
        sizes |= {"dim": 12, "appearance_dim": 12, "reduction": 4}
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(sizes | change))  # type: ignore[arg-type]


def test_the_shipped_sizes_keep_the_papers_shape() -> None:
    config = ModelConfig()
    assert config.n_patches >= 256
    assert (config.n_filters, config.n_active, config.decoder_depth) == (63, 7, 4)
