"""A model that sees through a VLM's tower, kept on a device: what the VLM needs still comes out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfn_export.build import ExportOptions, build_bundle
from sfn_rt.backends.ort import OrtBackend, OrtDevice
from sfn_rt.bundle import load_bundle
from sfn_rt.device_networks import DeviceNetworks
from sfn_rt.frames import open_source
from sfn_rt.networks import HostNetworks, NetworkSettings
from sfn_rt.prediction_error import VisualConfig
from sfn_train.checkpoint import load_run, save_run
from sfn_train.model import SFN
from sfn_train.sources import tower_record


@pytest.mark.slow
def test_hidden_states_and_errors_are_those_of_the_host(
    tiny_run: Path, vlm_weights: Path, tiny_data: Path, tmp_path: Path
) -> None:
    old = load_run(tiny_run)
    sizes = {"frame_height": 56, "frame_width": 56, "patch": 14, "appearance_dim": 64}
    own = replace(old.config.model, tower=str(vlm_weights), **sizes)
    torch.manual_seed(0)
    model = SFN(own).eval()
    config = replace(old.config, model=own, data=replace(old.config.data, resize="bicubic"))
    info = {**old.info, "tower": tower_record(model)}
    save_run(replace(old, path=tmp_path / "run", config=config, model=model, info=info))
    path = tmp_path / "bundle"
    build_bundle(tmp_path / "run", path, ExportOptions(threads=1), say=lambda t: None)

    bundle = load_bundle(path)
    manifest = bundle.manifest
    assert manifest.semantics is not None
    settings = NetworkSettings(
        observed=manifest.observed,
        preprocessing=manifest.preprocessing,
        visual=VisualConfig(**manifest.visual),  # type: ignore[arg-type]
        n_windows=len(manifest.semantics.windows),
    )
    with open_source(tiny_data / "testing" / "frames" / "01") as source:
        frames = list(source)
    text = np.random.default_rng(0).standard_normal((30, manifest.semantics.embedded_width))
    with (
        OrtBackend.from_bundle(bundle, threads=1) as plain,
        OrtDevice.from_bundle(bundle, provider="cpu", threads=1) as backend,
    ):
        assert "vision" in plain.parts
        host, device = HostNetworks(plain, settings), DeviceNetworks(backend, settings, 7)
        for start in range(0, 30, 7):
            block = frames[start : start + 7]
            pictures, raw = host.look(block), device.look(block)
            wanted = host.encode(pictures, change=True, hidden=True)
            seen = device.encode(raw, change=True, hidden=True)
            assert wanted.hidden is not None
            np.testing.assert_allclose(
                seen.hidden, wanted.hidden, atol=1e-5 * spread(wanted.hidden)
            )
            np.testing.assert_allclose(seen.tokens, wanted.tokens, atol=1e-4)
            p = wanted.n_predicted
            given = text[start + len(block) - p : start + len(block)].astype(np.float32)
            errors, expected = device.decode(seen, raw, given), host.decode(wanted, pictures, given)
            assert errors is not None
            assert expected is not None
            np.testing.assert_allclose(errors.semantic, expected.semantic, atol=1e-5)
            for error, other in zip(errors.visual, expected.visual, strict=True):
                assert error.evidence == pytest.approx(other.evidence, abs=1e-5)


def spread(values: np.ndarray) -> float:
    return float(np.abs(values).max())
