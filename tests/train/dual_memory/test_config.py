"""Settings: what is saved is read back, and what cannot work is refused before anything runs."""

from typing import Any

import pytest

from sfn_train.config import Config, parse_config, read_config
from sfn_train.dual_memory import DualMemoryConfig
from sfn_train.exceptions import ConfigError


@pytest.mark.parametrize("name", ["dual_memory_small", "dual_memory_ped2"])
def test_the_configs_that_come_along_are_read_and_saved(name: str) -> None:
    config = read_config(name)
    assert config.system == "dual-memory"
    assert config.profile == name
    assert parse_config(config.to_yaml(), "saved") == config
    assert config.data.run_length == 16
    assert config.visual.measure == "psnr"
    assert (config.train.learning_rate, config.train.batch, config.train.epochs) == (1e-3, 2, 10)
    assert config.preprocessing.mean == (0.0, 0.0, 0.0)
    assert config.preprocessing.std == (1.0, 1.0, 1.0)


def test_the_full_size_is_the_published_one() -> None:
    published = DualMemoryConfig(
        frame_height=256,
        frame_width=256,
        channels=1,
        widths=(32, 64, 128, 256),
        slots=2000,
        shrink=0.0005,
        pseudo_probability=0.2,
        pseudo_strides=(2, 3, 4, 5),
        entropy=2e-4,
        distance=2e-5,
    )
    assert read_config("dual_memory_ped2").model == published
    small = read_config("dual_memory_small").model
    assert isinstance(small, DualMemoryConfig)
    assert (small.frame_height, small.frame_width, small.slots) == (64, 64, 256)
    assert small.widths == (8, 16, 32, 64)


def test_what_both_systems_are_asked(config: Config, model: DualMemoryConfig) -> None:
    assert (model.observed, model.lag, model.use_text) == (16, 7, False)
    assert model.grid == (4, 6)
    assert config.clips_per_run == 1


def test_settings_of_the_command_line(tiny_yaml: str) -> None:
    config = parse_config(tiny_yaml, "x", ["model.skips=[concatenate, none]", "model.channels=3"])
    assert isinstance(config.model, DualMemoryConfig)
    assert config.model.skips == ("concatenate", "none")
    assert config.model.channels == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("channels=2", r"channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
        ("widths=[8]", r"widths must be 2 levels or more"),
        ("widths=[8, 0, 8]", r"each at least 1, got \(8, 0, 8\)"),
        ("widths=[4, 4, 4, 4, 4, 4]", r"widths has 6 levels, 16 frames allow 5"),
        ("widths=wide", r"model\.widths must be a list"),
        ("frame_height=18", r"frame_height 18 is no multiple of 4"),
        ("frame_width=0", r"frame_width 0 is no multiple of 4"),
        ("skips=[none]", r"skips must be one for each level but the lowest, 2, got 1"),
        ("skips=[none, add]", r"model\.skips must be one of none, concatenate, got 'add'"),
        ("slots=0", r"slots must be at least 1, got 0"),
        ("clip_step=0", r"clip_step must be at least 1, got 0"),
        ("shrink=1", r"shrink must be 0 or above and below 1, got 1"),
        ("shrink=-0.1", r"shrink must be 0 or above"),
        ("slot_spread=0", r"slot_spread must be above 0, got 0"),
        ("pseudo_probability=1.5", r"pseudo_probability must be from 0 to 1, got 1.5"),
        ("pseudo_strides=[1, 2]", r"pseudo_strides must be one or more, each at least 2"),
        ("pseudo_strides=[]", r"pseudo_probability 0 makes none"),
        ("entropy=-1", r"entropy must be 0 or above, got -1"),
        ("distance=.inf", r"distance must be 0 or above, got inf"),
        ("maximise_pseudo=1", r"model\.maximise_pseudo must be true or false, got 1"),
        ("slot=3", r"has no setting 'slot'; did you mean 'slots'\?"),
        ("dim=64", r"has no setting 'dim'"),
    ],
)
def test_bad_settings_are_refused(tiny_yaml: str, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(tiny_yaml, "x", [f"model.{change}"])


def test_a_run_too_short_for_a_clip_is_refused(tiny_yaml: str) -> None:
    with pytest.raises(ConfigError, match=r"run_length 15 holds no clip"):
        parse_config(tiny_yaml, "x", ["data.run_length=15"])


def test_no_strides_are_needed_where_no_pseudo_anomalies_are_made() -> None:
    settings: dict[str, Any] = {"pseudo_probability": 0.0, "pseudo_strides": ()}
    assert DualMemoryConfig(**settings).pseudo_strides == ()
