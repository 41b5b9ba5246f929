"""What tests in several folders share: where real video is, and where this checkout is."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A shell that starts the tests in the background has Ctrl-C ignored, here and in all children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return ROOT


@pytest.fixture(scope="session")
def sfn_data() -> Path:
    """The folder of real video that SFN_DATA names; a test that needs it skips without."""
    named = os.environ.get("SFN_DATA")
    if not named:
        pytest.skip("SFN_DATA is not set: it names the folder that holds ped2/ and smoke/")
    folder = Path(named).resolve()
    if not folder.is_dir():
        pytest.skip(f"SFN_DATA={named} is not a folder")
    return folder


@pytest.fixture(scope="session")
def ped2(sfn_data: Path) -> Path:
    """UCSD Ped2 in the benchmarks' layout."""
    return existing(sfn_data / "ped2")


@pytest.fixture(scope="session")
def smoke(sfn_data: Path) -> Path:
    """A folder of awkward and ordinary videos without labels."""
    return existing(sfn_data / "smoke")


def existing(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


# --- one tiny trained-looking model for every test that needs one, exported once ---------------

TINY_MODEL = {
    "frame_height": 20,
    "frame_width": 30,
    "patch": 5,
    "dim": 16,
    "appearance_dim": 16,
    "appearance_depth": 1,
    "motion_dim": 8,
    "motion_depth": 1,
    "heads": 2,
    "decoder_depth": 2,
    "reduction": 4,
    "n_filters": 9,
    "n_active": 3,
    "head_channels": 4,
}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short videos as folders of frames: a square walks, and in the test video it runs."""
    import cv2
    import numpy as np

    root = tmp_path_factory.mktemp("tiny_data")
    ground = np.random.default_rng(0).integers(90, 110, (40, 60, 3), dtype=np.uint8)
    for folder, n_frames in (("training", 24), ("testing", 30)):
        frames = root / folder / "frames" / "01"
        frames.mkdir(parents=True)
        for i in range(n_frames):
            image = ground.copy()
            at = (3 * i if folder == "testing" and i >= 15 else i) % 48
            image[14:26, at : at + 12] = (200, 40, 40)
            cv2.imwrite(str(frames / f"{i:03}.png"), image)
    labels = (np.arange(30) >= 15).astype(np.uint8)
    np.savez(root / "frame_labels.npz", **{"01": labels})
    return root


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run folder as training leaves it; the weights are random, none of them zero."""
    import numpy as np
    import torch

    from sfn_rt.normal import NormalFootage, SceneModel, term_subsets
    from sfn_rt.prediction_error import VisualConfig
    from sfn_rt.scores import Tail
    from sfn_rt.threshold import Threshold
    from sfn_train.checkpoint import Run, save_run
    from sfn_train.config import Config, DataConfig, SemanticsConfig, TrainConfig
    from sfn_train.model import SFN, ModelConfig

    config = Config(
        model=ModelConfig(**TINY_MODEL),  # type: ignore[arg-type]
        data=DataConfig(),
        semantics=SemanticsConfig(),
        train=TrainConfig(steps=1),
    )
    torch.manual_seed(0)
    model = SFN(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    rng = np.random.default_rng(0)
    terms = ("visual", "semantic")
    normal = NormalFootage(
        scene=SceneModel(None, None, rng.standard_normal((1, 16, 24)).astype(np.float32)),
        tails={term: Tail.fit(np.abs(rng.standard_normal(200))) for term in terms},
        thresholds={t: Threshold(3.0, "made up for tests", 1.0) for t in term_subsets(terms)},
        heat_scale=1.0,
    )
    visual = VisualConfig(box_height=5, box_width=5, grid_height=4, grid_width=6)
    info = {
        "data": str(tiny_data),
        "n_videos": 1,
        "n_frames": 24,
        "visual": dict(vars(visual)),
    }
    path = tmp_path_factory.mktemp("tiny") / "run"
    save_run(Run(path, config, model.eval(), normal.to_arrays(), info))
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """The bundle that exporting `tiny_run` makes; not to be changed by a test."""
    from sfn_export.build import ExportOptions, build_bundle

    out = tmp_path_factory.mktemp("exported") / "bundle"
    build_bundle(tiny_run, out, ExportOptions(threads=1), say=lambda text: None)
    return out


# --- the whole workshop once, on a walkway: what a user's bundle is, only smaller --------------


@pytest.fixture(scope="session")
def walkway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic set in small: three normal videos, two with labelled anomalies."""
    from sfn_train.data.synthetic import make_walkway

    root = tmp_path_factory.mktemp("walkway") / "data"
    return make_walkway(
        root, n_train=3, n_test=2, train_frames=100, test_frames=90, size=(120, 180)
    )


@pytest.fixture(scope="session")
def walkway_run(tmp_path_factory: pytest.TempPathFactory, walkway: Path) -> Path:
    """What `python -m sfn_train train` leaves after some steps of a tiny model."""
    import yaml
    from typer.testing import CliRunner

    from sfn_train.cli import app

    folder = tmp_path_factory.mktemp("trained")
    train = {
        "steps": 60,
        "learning_rate": 0.003,
        "batch": 2,
        "precision": "32-true",
        "accelerator": "cpu",
    }
    train |= {"validation_batches": 2, "log_every": 1}
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({"model": TINY_MODEL, "train": train}), "utf-8")
    arguments = ["train", str(walkway), "--config", str(config), "--out", str(folder / "run")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture(scope="session")
def walkway_bundle(walkway_run: Path) -> Path:
    """What `python -m sfn_export bundle` makes of `walkway_run`; not to be changed by a test."""
    from typer.testing import CliRunner

    from sfn_export.cli import app

    out = walkway_run.parent / "bundle"
    arguments = ["bundle", str(walkway_run), "--out", str(out), "--threads", "1", "--frames", "24"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out


# --- a bundle of the second system, its graph written by hand ----------------------------------


@pytest.fixture(scope="session")
def dual_bundle(tmp_path_factory: pytest.TempPathFactory, walkway: Path) -> Path:
    """dual-memory without a network: a frame is reconstructed as the mean of its clip.

    The arithmetic is that of sfn_rt.backends.fake.MeanOfClip, which fits the statistics.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from sfn_rt.backends.fake import CLIP, SCORED, MeanOfClip
    from sfn_rt.bundle import (
        SCHEMA_VERSION,
        Manifest,
        PartEntry,
        Provenance,
        ScoreSettings,
        write_manifest,
    )
    from sfn_rt.evidence import Perception
    from sfn_rt.frames import open_source
    from sfn_rt.normal import NormalFootage, SceneModel, thumbnail
    from sfn_rt.prediction_error import VisualConfig
    from sfn_rt.preprocess import Preprocessing
    from sfn_rt.scores import Tail, causal_scores
    from sfn_rt.streams import open_stream
    from sfn_rt.threshold import fit_threshold

    size = (20, 30)
    backend = MeanOfClip(*size)
    folder = tmp_path_factory.mktemp("dual") / "bundle"
    folder.mkdir()
    constants = {"scored": [SCORED], "first_axis": [1]}
    nodes = [
        ("Gather", ["clip", "scored"], "kept", {"axis": 1}),  # (B, 1, 3, h, w)
        ("Squeeze", ["kept", "first_axis"], "frame", {}),
        ("ReduceMean", ["clip", "first_axis"], "mean", {"keepdims": 0}),
        ("Sub", ["frame", "mean"], "difference", {}),
        ("Mul", ["difference", "difference"], "squared", {}),
        ("ReduceMean", ["squared", "first_axis"], "error", {"keepdims": 0}),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, takes, [gives], **how) for op, takes, gives, how in nodes],
        "autoencoder",
        [helper.make_tensor_value_info("clip", TensorProto.FLOAT, ["batch", CLIP, 3, *size])],
        [helper.make_tensor_value_info("error", TensorProto.FLOAT, ["batch", *size])],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (folder / "autoencoder.onnx").write_bytes(model.SerializeToString())

    visual = VisualConfig(
        measure="psnr", box_height=5, box_width=5, pixel_error=0.05, grid_height=4, grid_width=6
    )
    preprocessing = Preprocessing(
        height=size[0], width=size[1], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    videos = sorted((walkway / "training" / "videos").iterdir())
    footage = [list(open_source(video)) for video in videos]
    scene = SceneModel(None, None, np.stack([thumbnail(frames[0].image) for frames in footage]))
    perception = Perception(
        backend=backend, system="dual-memory", observed=CLIP, lag=CLIP - 1 - SCORED,
        preprocessing=preprocessing, visual=visual, scene=scene, terms=("visual",),
    )  # fmt: skip
    evidence = []
    for frames in footage:
        stream = open_stream(perception)
        rows = [row for row in stream.predict(stream.look(frames)) if row.terms]
        evidence.append({"visual": np.array([row.terms["visual"] for row in rows])})
    tails = {"visual": Tail.fit(np.concatenate([column["visual"] for column in evidence]))}
    scores = [causal_scores(column, tails) for column in evidence]
    thresholds = {("visual",): fit_threshold(scores, 25.0, 1.0)}
    normal = NormalFootage(scene, tails, thresholds, heat_scale=0.1)
    np.savez(folder / "normal.npz", **normal.to_arrays())
    (threshold,) = thresholds.values()
    (spec,) = backend.parts.values()
    write_manifest(
        folder,
        Manifest(
            schema_version=SCHEMA_VERSION, system="dual-memory", profile="mean", sfn_version="0",
            observed=CLIP, lag=CLIP - 1 - SCORED, preprocessing=preprocessing,
            parts={
                "autoencoder": PartEntry(
                    files={"fp32": "autoencoder.onnx"}, default="fp32",
                    inputs=spec.inputs, outputs=spec.outputs,
                )
            },
            semantics=None, vlm=None, visual=dict(vars(visual)),
            score=ScoreSettings(
                ema_alpha=0.2, threshold=threshold.value, rule=threshold.rule,
                false_alarms_per_hour=1.0, terms=("visual",),
            ),
            normal="normal.npz",
            device={},
            precisions={},
            provenance=Provenance(
                data="walkway", n_videos=3, n_frames=300, seed=0, config_sha256="", licences={}
            ),
        ),
    )  # fmt: skip
    return folder


# --- a bundle that captions by itself ----------------------------------------------------------


@pytest.fixture(scope="session")
def vlm_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random InternVL in transformers' native layout, which has a lot to say."""
    from tiny_weights import make_internvl, make_talkative

    folder = make_talkative(make_internvl(tmp_path_factory.mktemp("vlm") / "InternVL-tiny"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def vlm_bundle(tiny_bundle: Path, vlm_weights: Path) -> Path:
    """`tiny_bundle` and what `python -m sfn_export vlm` adds; not to be changed by a test."""
    from typer.testing import CliRunner

    from sfn_export.cli import app

    out = vlm_weights.parent / "bundle"
    arguments = ["vlm", str(vlm_weights), "--bundle", str(tiny_bundle), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out
