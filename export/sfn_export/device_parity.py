"""Do the device graphs compute what numpy and OpenCV compute on the host?

The reference is sfn_rt's own functions behind the Backend protocol; the feeds are pictures of
cameras smaller and larger than the model's frame, and predictions that err a little, usually and
wildly.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sfn_export.device_graphs import MEASURE, PREPARE
from sfn_export.parity import (
    BATCHES,
    SCALES,
    TOLERANCE,
    Difference,
    ParityReport,
    assert_parity,
    random_feeds,
)
from sfn_rt.backends.base import Array, Arrays, Backend, CheckedBackend, PartSpec
from sfn_rt.measured import measured_layout
from sfn_rt.prediction_error import VisualConfig, absolute_error, measure_error, semantic_error
from sfn_rt.preprocess import Preprocessing, preprocess, resize_matrix

# Of a camera, in shares of the model's frame: smaller, larger, one axis each, and odd numbers.
CAMERAS = ((0.41, 0.57), (1.61, 2.27), (0.83, 3.1), (2.9, 0.71), (1.0, 1.0))
SMALLEST = 16  # pixels: engines are built for no smaller side
NEAR = 0.01  # an error this near to pixel_error, as a share of it, may be counted either way


class HostFunctions(CheckedBackend):
    """The device graphs' parts as the runtime computes them without a device."""

    name = "numpy"

    def __init__(
        self,
        specs: Mapping[str, PartSpec],
        preprocessing: Preprocessing,
        visual: VisualConfig,
        windows: int,
    ) -> None:
        self.parts = specs
        self.preprocessing, self.visual, self.windows = preprocessing, visual, windows

    def compute(self, part: str, feeds: Arrays, names: Sequence[str]) -> Arrays:
        """By sfn_rt.preprocess and sfn_rt.prediction_error, frame by frame."""
        if part == PREPARE:
            frames = [preprocess(image, self.preprocessing) for image in feeds["image"]]
            return {"frame": np.stack(frames)}
        if part == MEASURE:
            return {"measured": self._measured(feeds)}
        return {"difference": feeds["frame"] - feeds["previous"]}

    def _measured(self, feeds: Arrays) -> Array:
        layout = measured_layout(feeds, self.visual)
        (spec,) = self.parts[MEASURE].outputs
        rows = np.zeros((len(next(iter(feeds.values()))), int(spec.shape[1])), np.float32)
        if "visual" in layout:
            width = feeds["frame"].shape[3] - min(self.visual.box_width, feeds["frame"].shape[3])
            errors = absolute_error(feeds["next_frame"], feeds["frame"])
            for row, error in zip(rows, errors, strict=True):
                found = measure_error(error, self.visual)
                x, y = found.box[0] * error.shape[1], found.box[1] * error.shape[0]
                row[layout["visual"]] = found.evidence
                row[layout["box"]] = round(y) * (width + 1) + round(x)
                row[layout["heat"]] = found.heat.astype(np.float32).ravel()
        if "semantic" in layout:
            error = semantic_error(feeds["semantic"], feeds["text"], self.windows)
            rows[:, layout["semantic"]] = error[:, None]
        if "distilled" in layout:
            rows[:, layout["distilled"]] = feeds["distilled"][:, None]
        return rows


def check_device(reference: HostFunctions, exported: Backend) -> ParityReport:
    """Compare every device graph with its host function; raises on a miss."""
    differences: list[Difference] = []
    for part, spec in reference.parts.items():
        for case, feeds in device_feeds(part, spec, reference):
            expected, actual = reference.infer(part, feeds), exported.infer(part, feeds)
            differences += compare(part, expected, actual, case, reference)
    return ParityReport(differences=tuple(differences), rerouted=())


def device_feeds(
    part: str, spec: PartSpec, model: HostFunctions
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Cases of one part and what they feed."""
    if part == PREPARE:
        for share in CAMERAS:
            feeds = camera_feeds(model.preprocessing, share)
            height, width = feeds["image"].shape[1:3]
            yield f"camera of {height} x {width}", feeds
        return
    for kind in SCALES:
        for batch in BATCHES:
            feeds = next(random_feeds(spec, kind, batch))
            if "frame" in feeds and part == MEASURE:
                feeds["frame"] = feeds["next_frame"] + wrong_by(feeds["frame"], model.visual)
            yield f"{kind} input, batch {batch}", feeds


def camera_feeds(spec: Preprocessing, share: tuple[float, float]) -> dict[str, Array]:
    """Two seeded pictures of a camera and the matrices that resize them."""
    height, width = (
        max(SMALLEST, round(part * side))
        for part, side in zip(share, (spec.height, spec.width), strict=True)
    )
    rng = np.random.default_rng((height, width))
    return {
        "image": rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8),
        "rows": resize_matrix(height, spec.height, spec.resize),
        "columns": resize_matrix(width, spec.width, spec.resize),
    }


def wrong_by(noise: Array, visual: VisualConfig) -> Array:
    """An error (B, C, h, w) of `noise`, alike in all channels and never near `pixel_error`."""
    error = noise[:, :1] * visual.pixel_error  # (B, 1, h, w)
    near = np.abs(np.abs(error) - visual.pixel_error) < NEAR * visual.pixel_error
    return np.repeat(np.where(near, 0, error), 3, axis=1).astype(np.float32)


def compare(
    part: str, expected: Arrays, actual: Arrays, case: str, model: HostFunctions
) -> list[Difference]:
    """Every output, and of `measured` every column by itself."""
    budget = TOLERANCE["fp32"]
    if part != MEASURE:
        return [
            assert_parity(f"{part}.{name}", expected[name], actual[name], budget, case)
            for name in expected
        ]
    mine, theirs = expected["measured"], actual["measured"].copy()
    inputs = [tensor.name for tensor in model.parts[part].inputs]
    layout = measured_layout(inputs, model.visual)
    if "heat" in layout:  # on the host it is kept in 16 bits
        place = layout["heat"]
        theirs[:, place] = theirs[:, place].astype(np.float16)
    return [
        assert_parity(f"{part}.{column}", mine[:, place], theirs[:, place], budget, case)
        for column, place in layout.items()
    ]
