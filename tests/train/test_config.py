"""Settings: what is wrong is refused by name, what is right survives a round trip."""

from pathlib import Path

import pytest

from sfn_train.config import Config, known_names, parse_config, read_config
from sfn_train.exceptions import ConfigError

MINIMAL = "train: {steps: 3}"


def test_every_config_that_comes_along_is_read_and_survives_a_round_trip() -> None:
    assert "edge" in known_names()
    for name in known_names():
        config = read_config(name)
        assert parse_config(config.to_yaml(), "saved") == config


def test_edge_has_at_least_256_patches_and_the_papers_filters() -> None:
    model = read_config("edge").model
    assert model.n_patches >= 256
    assert (model.n_filters, model.n_active, model.decoder_depth) == (63, 7, 4)


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL + "\nsemantics: {scene: {flow_height: 120}}")
    config = read_config(str(file))
    assert config.train.steps == 3
    assert config.semantics.scene.flow_height == 120


def test_changes_are_typed_by_the_setting() -> None:
    changes = ["model.dim=64", "train.learning_rate=2e-4", "train.betas=[0.5, 0.9]"]
    config = read_config("edge", [*changes, "train.minutes=null", "train.loss.text=0"])
    assert config.model.dim == 64
    assert config.train.learning_rate == 2e-4  # text to YAML 1.1
    assert config.train.betas == (0.5, 0.9)
    assert config.train.minutes is None
    assert config.train.loss.text == 0.0


def test_preprocessing_has_the_models_frame_size() -> None:
    config = read_config("edge", ["data.resize=bicubic"])
    spec = config.preprocessing
    assert (spec.height, spec.width) == (config.model.frame_height, config.model.frame_width)
    assert spec.resize == "bicubic"


def test_a_list_of_any_length_is_read_and_saved() -> None:
    for text, expected in (("[4, 8, 16]", (4, 8, 16)), ("[]", ())):
        config = read_config("edge", [f"model.windows={text}"])
        assert config.sfn.windows == expected
        assert parse_config(config.to_yaml(), "saved") == config


def test_the_batch_of_a_step_is_told_in_clips() -> None:
    config = parse_config("train: {steps: 1, batch: 3, accumulate: 5, devices: 2}", "x")
    assert config.clips_per_run == 4  # 8 frames, of which 4 have 4 before them
    assert config.clips_per_step == 3 * 5 * 2 * 4


def test_the_system_decides_the_settings_of_the_model() -> None:
    config = read_config("dual_memory_small", ["model.slots=64", "model.pseudo_strides=[2, 3]"])
    assert (config.system, config.model.observed, config.clips_per_run) == ("dual-memory", 16, 1)
    assert "slots: 64" in config.to_yaml()
    assert (config.preprocessing.mean, config.preprocessing.std) == ((0, 0, 0), (1, 1, 1))
    with pytest.raises(ConfigError, match="needs a model of the system sfn-vad, got one of dual"):
        _ = config.sfn
    with pytest.raises(ConfigError, match="model has no setting 'slots'"):
        read_config("edge", ["model.slots=64"])
    with pytest.raises(ConfigError, match=r"must be above 15, as a clip of dual-memory takes 16"):
        read_config("dual_memory_small", ["data.run_length=15"])


def test_fingerprint_changes_with_any_setting() -> None:
    assert read_config("edge").fingerprint() == read_config("edge").fingerprint()
    changed = read_config("edge", ["semantics.scene.min_area=61"])
    assert changed.fingerprint() != read_config("edge").fingerprint()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("model: {dimm: 64}", r"x\.yaml: model has no setting 'dimm'; did you mean 'dim'\? known:"),
        (
            "modle: {}",
            r"the file has no setting 'modle'; did you mean 'model'\? known: data, distil, model",
        ),
        ("train: {loss: {txt: 1}}", r"train\.loss has no setting 'txt'; did you mean 'text'"),
        ("model: {dim: 64.5}", r"model\.dim must be a whole number, got 64\.5"),
        ("model: {dim: true}", r"model\.dim must be a whole number, got True"),
        ("model: {use_text: 1}", r"model\.use_text must be true or false, got 1"),
        ("train: {learning_rate: fast}", r"train\.learning_rate must be a number, got 'fast'"),
        ("train: {betas: [0.9]}", r"train\.betas must be 2 values"),
        ("model: {windows: 4}", r"model\.windows must be a list, as in \[4, 8\], got 4"),
        ("model: {windows: [4, a]}", r"model\.windows must be a whole number, got 'a'"),
        ("system: dual", r"system must be one of sfn-vad, dual-memory, got 'dual'"),
        ("train: {steps: 1, accumulate: 0}", r"train: accumulate must be at least 1, got 0"),
        ("train: {precision: fp8}", r"train\.precision must be one of auto, 32-true, bf16-mixed"),
        ("train: {schedule: linear}", r"train\.schedule must be one of constant, cosine"),
        ("train: {steps: 0}", r"train: steps must be at least 1, got 0"),
        ("train: {batch: 2}", r"training has no end: set steps, epochs or minutes"),
        ("model: {frame_width: 245}", r"model: frame_width 245 is no multiple of patch"),
        ("semantics: {captioner: cached}", r"captions names the folder of the cached captioner"),
        (f"{MINIMAL}\ndata: {{run_length: 4}}", r"data\.run_length 4 holds no clip"),
        ("train: 7", r"train must hold settings, got 7"),
        ("[1, 2]", r"must hold the sections"),
        ("{", r"is not YAML"),
    ],
)
def test_mistakes_are_refused_with_place_and_way_out(yaml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(yaml, "x.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.dim", "expected section.setting=value, as in model.dim=64"),
        ("dim=64", "expected section.setting=value"),
        ("model.dim=[", "is not a YAML value"),
        ("model.dimm=64", "did you mean 'dim'"),
        ("train.steps.x=1", "is a value, not a section"),
    ],
)
def test_mistaken_changes_are_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config("edge", [change])


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no config 'egde': it is neither a file nor one of .*, edge,"
    ):
        read_config("egde")


def test_a_config_cannot_be_changed_after_its_checks() -> None:
    config: Config = parse_config(MINIMAL, "x")
    with pytest.raises(AttributeError):
        config.train.steps = 5  # type: ignore[misc]
