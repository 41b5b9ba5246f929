"""A finished run on disk: the settings, the weights and what normal footage looks like.

    config.yaml         every setting
    model.safetensors   weights in fp32; written last, so its presence means the run is finished
    normal.npz          statistics of held-out normal footage
    run.json            data, split, seed, time, final losses

Weights are never read from a pickle: loading one can run any code that is inside.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sfn_rt.sinks.files import output_errors, write_atomic
from sfn_train.config import Config, parse_config
from sfn_train.exceptions import RunError
from sfn_train.sources import check_tower
from sfn_train.systems import build_network

CONFIG, WEIGHTS, NORMAL, INFO = "config.yaml", "model.safetensors", "normal.npz", "run.json"
CHECKPOINT = Path("checkpoints") / "last.ckpt"  # Lightning's own, for --resume only
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # torch.save's zip, and a bare pickle


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with everything the exporter packs."""

    path: Path
    config: Config
    model: nn.Module
    normal: Mapping[str, NDArray[Any]]
    info: Mapping[str, Any]  # JSON


def save_run(run: Run) -> None:
    """Write the run's files, each whole or not at all, the weights last."""
    with output_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **run.normal)
    weights = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in run.model.state_dict().items()
    }
    write_atomic(run.path / CONFIG, run.config.to_yaml())
    write_atomic(run.path / NORMAL, arrays.getvalue())
    write_atomic(run.path / INFO, json.dumps(run.info, indent=2, allow_nan=False) + "\n")
    write_atomic(run.path / WEIGHTS, save(weights))


def load_run(path: Path) -> Run:
    """Read a finished run folder; refuses pickles and unfinished runs with the way out."""
    _refuse_files(path)
    config = load_config(path)
    if not (path / WEIGHTS).exists():
        if (path / CHECKPOINT).exists():
            raise RunError(
                f"{path}: training is not finished; continue it with "
                f"`python -m sfn_train train DATA --out {path} --resume`"
            )
        raise RunError(f"{path / WEIGHTS} does not exist; train again into this folder")
    model = build_network(config)
    try:
        weights = load_file(path / WEIGHTS)
    except SafetensorError as error:
        _refuse_pickle(path / WEIGHTS)
        raise RunError(f"{path / WEIGHTS} is damaged ({error}); train again") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{path}: {WEIGHTS} is not the model that {CONFIG} describes: {reason}"
        ) from None
    info = _read_info(path / INFO)
    check_tower(model, info, path / INFO)
    return Run(path, config, model.eval(), _read_arrays(path / NORMAL), info)


def load_config(path: Path) -> Config:
    """The settings saved in a run folder."""
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path / CONFIG} does not exist; is {path} a folder that training wrote?"
        ) from None
    return parse_config(text, str(path / CONFIG))


def _refuse_files(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise RunError(f"{path} does not exist; give a run folder that training wrote")
    _refuse_pickle(path)
    raise RunError(f"{path} is a file; give the run folder that holds {CONFIG} and {WEIGHTS}")


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(PICKLE_STARTS):
        raise RunError(
            f"{path} is a pickle, and loading one can run any code inside it; give a run folder "
            f"with {CONFIG} and {WEIGHTS} (safetensors)"
        )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read ({error}); train again") from None


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); train again") from None
    return info
