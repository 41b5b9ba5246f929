"""What a run takes from outside: vision tower, sentence encoder, captions, cached features.

The paper's profiles name all of them, and none comes with this project. They are looked for before
the first video is read, since preparing a data set can take hours; what a run was trained with is
recorded in it, and another tower in its place is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sfn_rt.datasets import Dataset
from sfn_rt.exceptions import DataError
from sfn_train.captions.known import open_text, read_captions
from sfn_train.config import Config
from sfn_train.exceptions import RunError
from sfn_train.model import SFN, ModelConfig

if TYPE_CHECKING:
    from sfn_train.model.tower import VisionTower

HOW = "docs/reproduction.md has the commands that make it"
LOCAL = ("/", ".", "~")  # what a folder's name starts with, and no name of the hub does


def check_sources(config: Config, dataset: Dataset) -> None:
    """Raise at the first thing that the settings name and that is not there."""
    model, semantics = config.model, config.semantics
    if not isinstance(model, ModelConfig):
        return
    if model.tower is not None:
        if model.tower.startswith(LOCAL):
            _folder(config, "model.tower", model.tower)
        from sfn_train.model.tower import load_tower  # transformers is slow to import

        load_tower(model)
    if model.use_text:
        if semantics.captions is not None:
            _folder(config, "semantics.captions", semantics.captions)
        files = read_captions(dataset.train, config)
        try:
            open_text(config, files.values())
        except DataError:
            if semantics.text is not None:
                _folder(config, "semantics.text", semantics.text)
            raise
    if config.data.features is not None:
        _folder(config, "data.features", config.data.features)


def _folder(config: Config, setting: str, name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{config.profile}: {setting} is {name}, which is no folder here; {HOW}, and "
            f"`--set {setting}=FOLDER` names another"
        )
    return folder


def tower_of(network: nn.Module) -> "VisionTower | None":
    """The frozen tower inside a network, None without one."""
    if not isinstance(network, SFN) or network.config.tower is None:
        return None
    from sfn_train.model.tower import VisionTower

    assert network.appearance is not None
    assert isinstance(network.appearance.vit, VisionTower)
    return network.appearance.vit


def tower_record(network: nn.Module) -> dict[str, str] | None:
    """Name and sha256 of the frozen tower, for run.json; None without one."""
    tower = tower_of(network)
    return None if tower is None else {"name": tower.name, "sha256": tower.fingerprint}


def check_tower(network: nn.Module, recorded: Mapping[str, Any], source: Path) -> None:
    """Refuse a tower that is not the one `recorded` at the training that wrote `source`."""
    found = tower_record(network)
    if found is None:
        return
    trained = recorded.get("tower")
    if not isinstance(trained, Mapping) or not isinstance(trained.get("sha256"), str):
        raise RunError(f"{source} does not say which vision tower it is of; train again")
    if trained["sha256"] != found["sha256"]:
        raise RunError(
            f"{source}: trained with the vision tower whose sha256 is {trained['sha256'][:12]}…, "
            f"but {found['name']} is {found['sha256'][:12]}…; put the one back that it was trained "
            f"with, or train again"
        )
