"""The frozen vision tower E_v of equation (1): InternVL's, through transformers' native class.

From a folder of the whole vision-language model only the tower's tensors are read; the language
model is never built. The tower's two outputs are

    hidden      its last hidden state, class token first
    embedded    what its embedding layer gives the first block, the patches only: a linear map of
                each patch PLUS the learned positions (transformers' hidden_states[0]). The frame
                head takes it as a skip.

It computes in float32 on a CPU and in bfloat16 on a GPU, the type its weights are published in, so
that a tower which has been on a GPU is one of bfloat16 weights.

Axes: B frames, N patches, C width.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel

from sfn_rt.exceptions import DataError
from sfn_train.model.config import ModelConfig
from sfn_train.weights.folder import (
    CONFIG,
    CONVERT,
    Entry,
    Kind,
    compare_shapes,
    find_folder,
    fingerprint,
    hash_files,
    kind_of,
    list_tensors,
    read_json,
    read_tensors,
)

PREFIXES = ("vision_tower.", "model.vision_tower.")  # the hub's folders; transformers' own names


class VisionTower(nn.Module):
    """Frames to (hidden (B, 1 + N, C), embedded (B, N, C)). Never trains and is never saved."""

    def __init__(self, model: InternVLVisionModel, name: str, files: Mapping[str, str]) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.name, self.files = name, dict(files)  # file -> sha256, of all that was read
        self._prefix = ""  # of its keys in the network around it
        config: Any = model.config
        self.width = int(config.hidden_size)
        self.patch, self.image_size = int(config.patch_size[0]), int(config.image_size[0])
        untyped: Any = self
        untyped.register_load_state_dict_pre_hook(_remember_prefix)
        untyped.register_load_state_dict_post_hook(_forgive_absence)
        self.eval()

    @classmethod
    def load(cls, name: str) -> Self:
        """Read the tower of a folder that transformers' InternVL class saved, or of a hub name."""
        source = TowerFiles.find(name)
        with torch.device("meta"):  # no time for random weights that are replaced at once
            model = InternVLVisionModel(source.config)
        weights = read_tensors(source.entries, source.names.values())
        state = {own: weights[stored].float() for own, stored in source.names.items()}
        model.load_state_dict(state, assign=True)
        return cls(model, name, source.hashes())

    @property
    def fingerprint(self) -> str:
        """sha256 over the hashes of the files it was read from."""
        return fingerprint(self.files)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), normalised, to both outputs in float32."""
        kind = frame.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._outputs(frame)
        return self._outputs(frame)

    def _outputs(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.model.embeddings(frame)  # (B, 1 + N, C)
        hidden = self.model.layernorm(self.model.encoder(embedded).last_hidden_state)
        return hidden.float(), embedded[:, 1:].float()

    def check_fits(self, config: ModelConfig) -> None:
        """Raise where the settings do not describe this tower, naming the first that differs."""
        for setting, own in (
            ("appearance_dim", self.width),
            ("patch", self.patch),
            ("frame_height", self.image_size),
            ("frame_width", self.image_size),
        ):
            if getattr(config, setting) != own:
                raise DataError(
                    f"{self.name}: model.{setting} is {getattr(config, setting)}, but the tower's "
                    f"is {own}; set model.{setting}={own}, or give another model.tower"
                )

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation, whatever the network around it does."""
        return super().train(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing, so that checkpoints stay small: the run names the tower and its hash."""
        given = kwargs.get("destination", args[0] if args else None)
        return {} if given is None else given

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        nn.Module._apply(self, fn, recurse)
        for parameter in self.model.parameters():
            kind = torch.bfloat16 if parameter.device.type == "cuda" else torch.float32
            parameter.data = parameter.data.to(kind)
        return self


def _remember_prefix(tower: VisionTower, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    tower._prefix = prefix


def _forgive_absence(tower: VisionTower, incompatible: Any) -> None:
    """What is never saved is not missing."""
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.startswith(f"{tower._prefix}model.")]


class TowerFiles(NamedTuple):
    """A tower on disk, checked by its config and its files' headers; no tensor has been read."""

    folder: Path
    config: InternVLVisionConfig
    entries: dict[str, Entry]
    names: dict[str, str]  # name in the class -> name in the files

    @classmethod
    def find(cls, name: str) -> "TowerFiles":
        folder = find_folder(name)
        kind = kind_of(folder)
        if kind == Kind.INTERNVL_REMOTE:
            raise DataError(
                f"{folder} is {kind}; make a native folder of it with "
                f"`{CONVERT} {folder} --out NEW`, and give that"
            )
        if kind != Kind.INTERNVL:
            raise DataError(f"{folder} is {kind}; a vision tower comes from an InternVL folder")
        config = read_vision_config(folder)
        with torch.device("meta"):
            expected = {
                own: tuple(tensor.shape)
                for own, tensor in InternVLVisionModel(config).state_dict().items()
            }
        entries = list_tensors(folder)
        stored = {
            key.removeprefix(prefix): key
            for prefix in PREFIXES
            for key in entries
            if key.startswith(prefix)
        }
        compare_shapes({own: entries[key].shape for own, key in stored.items()}, expected, folder)
        return cls(folder, config, entries, stored)

    def hashes(self) -> dict[str, str]:
        """sha256 of the files that hold any of it, and of the config."""
        files = {self.entries[name].file for name in self.names.values()}
        return hash_files({self.folder / CONFIG, *files})


def read_vision_config(folder: Path) -> InternVLVisionConfig:
    """The tower's sizes from config.json; square frames and square patches only."""
    raw = read_json(folder / CONFIG).get("vision_config")
    if not isinstance(raw, dict):
        raise DataError(f"{folder / CONFIG} has no vision_config; download it again")
    try:
        values: dict[str, Any] = raw | {"attn_implementation": "sdpa"}
        config = InternVLVisionConfig(**values)
    except Exception as error:  # transformers raises kinds of its own for each sort of nonsense
        reason = " ".join(str(error).split())
        raise DataError(f"{folder / CONFIG}: vision_config cannot be used ({reason})") from None
    for name in ("image_size", "patch_size"):
        size = getattr(config, name)
        if len(size) != 2 or size[0] != size[1]:
            raise DataError(f"{folder / CONFIG}: {name} is {list(size)}, expected a square")
    return config


def load_tower(config: ModelConfig) -> VisionTower:
    """The tower that the settings name, refused where it is not of their sizes."""
    assert config.tower is not None
    tower = VisionTower.load(config.tower)
    tower.check_fits(config)
    return tower


def tower_fingerprint(name: str) -> str:
    """`VisionTower.fingerprint` of a folder without building the tower."""
    return fingerprint(TowerFiles.find(name).hashes())
