"""A bundle's system decides, and only here, which stream a video is scored by."""

import numpy as np

from sfn_rt.backends.fake import MeanOfClip, RepeatLastFrame
from sfn_rt.evidence import EvidenceStream, Perception
from sfn_rt.normal import SceneModel
from sfn_rt.prediction_error import VisualConfig
from sfn_rt.preprocess import Preprocessing
from sfn_rt.reconstruction import ReconstructionStream
from sfn_rt.streams import open_stream
from sfn_rt.systems import System


def perception(system: System) -> Perception:
    dual = system == "dual-memory"
    return Perception(
        backend=MeanOfClip() if dual else RepeatLastFrame(),
        system=system,
        observed=16 if dual else 4,
        lag=7 if dual else 0,
        preprocessing=Preprocessing(height=16, width=24),
        visual=VisualConfig(),
        scene=SceneModel(None, None, np.zeros((1, 16, 24), np.float32)),
        terms=("visual",),
    )


def test_each_system_has_its_stream() -> None:
    assert isinstance(open_stream(perception("sfn-vad")), EvidenceStream)
    assert isinstance(open_stream(perception("dual-memory")), ReconstructionStream)


def test_each_system_says_what_it_needs_and_gives() -> None:
    sfn, dual = perception("sfn-vad"), perception("dual-memory")
    assert (sfn.least_frames, dual.least_frames) == (5, 16)
    assert sfn.available_terms == dual.available_terms == ("visual",)
    assert not dual.needs_scenes
