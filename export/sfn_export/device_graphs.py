"""The small graphs that keep a stream on its device: what the runtime does around the networks.

    prepare     image, and the resize as one matrix an axis -> the frame the networks see
    difference  frame - previous
    measure     what the decoder predicts, against what was there -> evidence, a row a frame

Without them every frame would come back to the host before the encoders and every prediction after
them. Each computes what numpy and OpenCV do on the host (sfn_rt.preprocess and
sfn_rt.prediction_error, named beside each module; device_parity.py holds them together), in fp32
at every precision of the model: they are a hundredth of its work, and the evidence is what scores
are made of. TF32 would lose in `prepare` what 8 bits hold: it is off where engines are built.

What a row of `measure` holds stands in sfn_rt.measured, by which the device reads it.

Axes: B frames, C = 3 channels, H and W a camera's height and width, h and w the model's, gh and gw
the heat map's, K captions of S numbers.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfn_export.trace import traced
from sfn_rt.backends.base import PartSpec, TensorSpec
from sfn_rt.features import OUTPUTS
from sfn_rt.measured import layout_width, measured_layout
from sfn_rt.prediction_error import LEAST_MEAN, VisualConfig
from sfn_rt.preprocess import FloatArray, Preprocessing

PREPARE, DIFFERENCE, MEASURE = "prepare", "difference", "measure"


class Prepare(nn.Module):
    """`sfn_rt.preprocess.preprocess` for any size of camera; the resize is its resize_matrix."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: Preprocessing) -> None:
        super().__init__()
        scale = [1 / (255 * std) for std in spec.std]
        shift = [mean / std for mean, std in zip(spec.mean, spec.std, strict=True)]
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, H, W, C), (h, H) and (w, W) to (B, C, h, w)."""
        image, rows, columns = tensors
        tall = torch.matmul(rows, image.float().flatten(2))  # (B, h, W C)
        tall = tall.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)  # (B, C, h, W)
        return (torch.matmul(tall, columns.t()) * self.scale - self.shift,)


class Difference(nn.Module):
    """The change of neighbouring frames, which the motion encoder sees."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(B, C, h, w) twice to one."""
        frame, previous = tensors
        return (frame - previous,)


class Visual(nn.Module):
    """`measure_error` of a batch: evidence, cell of the box that errs most, heat.

    The box counts are sums of zeros and ones, exact in every order and in TF32, so that equal
    boxes tie on every backend; the first of them is taken without relying on how an ArgMax or a
    TopK breaks ties.
    """

    tall: Tensor
    wide: Tensor
    place: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, config: VisualConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        box = (min(config.box_height, size[0]), min(config.box_width, size[1]))
        self.area = box[0] * box[1]
        self.cells = (size[0] - box[0] + 1) * (size[1] - box[1] + 1)
        rows, columns = area_matrices(size, (config.grid_height, config.grid_width))
        self.register_buffer("tall", torch.ones(1, 1, box[0], 1))
        self.register_buffer("wide", torch.ones(1, 1, 1, box[1]))
        self.register_buffer("place", torch.arange(self.cells, dtype=torch.float32))
        self.register_buffer("rows", torch.from_numpy(rows))  # (gh, h)
        self.register_buffer("columns", torch.from_numpy(columns.T.copy()))  # (w, gw)

    def forward(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """Absolute error (B, h, w) to evidence and cell (B, 2), heat (B, gh gw)."""
        wrong = (error > self.config.pixel_error).float().unsqueeze(1)  # (B, 1, h, w)
        boxes = F.conv2d(F.conv2d(wrong, self.tall), self.wide).flatten(1)  # (B, cells)
        most = boxes.amax(dim=1, keepdim=True)  # (B, 1)
        cell = torch.where(boxes == most, self.place, float(self.cells)).amin(dim=1, keepdim=True)
        heat = torch.matmul(torch.matmul(self.rows, error), self.columns)  # (B, gh, gw)
        return torch.cat([self.evidence(error, most), cell], dim=1), heat.flatten(1)

    def evidence(self, error: Tensor, most: Tensor) -> Tensor:
        """(B, 1) by the configured measure."""
        if self.config.measure == "largest_box":
            return most / self.area
        mean = (error * error).mean(dim=(1, 2)).unsqueeze(1)
        if self.config.measure == "mean":
            return mean
        return mean.clamp(min=LEAST_MEAN).log() * (10 / math.log(10))


class Semantic(nn.Module):
    """`semantic_error`: 1 - cosine, mean over the captions of a clip."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, predicted: Tensor, actual: Tensor) -> Tensor:
        """(B, K S) twice to (B, 1)."""
        p, a = (x.unflatten(1, (self.windows, -1)) for x in (predicted, actual))  # (B, K, S)
        norms = (p * p).sum(dim=-1).sqrt() * (a * a).sum(dim=-1).sqrt()  # (B, K)
        cosine = (p * a).sum(dim=-1) / norms.clamp(min=1e-12)
        error: Tensor = (1.0 - cosine).mean(dim=1, keepdim=True)
        return error


class Measure(nn.Module):
    """What the decoder predicted against what was there, a row of numbers a frame."""

    def __init__(self, spec: PartSpec, config: VisualConfig, windows: int) -> None:
        super().__init__()
        self.inputs = [tensor.name for tensor in spec.inputs]
        frames = [tensor.shape[2:] for tensor in spec.inputs if tensor.name == "frame"]
        self.visual = Visual(config, frames[0]) if frames else None  # type: ignore[arg-type]
        self.semantic = Semantic(windows) if "semantic" in self.inputs else None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the order of the spec's inputs to (B, M)."""
        fed = dict(zip(self.inputs, tensors, strict=True))
        columns, heat = [], []
        if self.visual is not None:
            wrong = fed["next_frame"] - fed["frame"]  # (B, C, h, w)
            evidence, cells = self.visual(((wrong * wrong).sum(dim=1) / 3).sqrt())
            columns.append(evidence)
            heat.append(cells)
        if self.semantic is not None:
            columns.append(self.semantic(fed["semantic"], fed["text"]))
        if "distilled" in fed:
            columns.append(fed["distilled"].unsqueeze(1))
        return (torch.cat([*columns, *heat], dim=1),)


def area_matrices(size: tuple[int, int], grid: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """OpenCV's INTER_AREA from `size` to `grid` as a matrix an axis: (gh, h) and (gw, w).

    Asked of OpenCV itself, one line of the picture after the other: once an axis grows it takes
    another rule for both.
    """

    def resized(image: FloatArray) -> FloatArray:
        return np.asarray(
            cv2.resize(image, grid[::-1], interpolation=cv2.INTER_AREA), dtype=np.float32
        )

    lines = np.eye(size[0], dtype=np.float32), np.eye(size[1], dtype=np.float32)
    rows = [resized(np.repeat(line[:, None], size[1], axis=1))[:, 0] for line in lines[0]]
    columns = [resized(np.repeat(line[None], size[0], axis=0))[0] for line in lines[1]]
    return np.stack(rows, axis=1), np.stack(columns, axis=1)


def device_specs(
    decoder: PartSpec, preprocessing: Preprocessing, visual: VisualConfig
) -> dict[str, PartSpec]:
    """What the graphs of one model take and give; `decoder` says what it predicts."""
    size = (preprocessing.height, preprocessing.width)
    frame = TensorSpec("frame", "float32", ("batch", 3, *size))
    image = TensorSpec("image", "uint8", ("batch", "height", "width", 3))
    rows = TensorSpec("rows", "float32", (size[0], "height"))
    columns = TensorSpec("columns", "float32", (size[1], "width"))
    previous = TensorSpec("previous", "float32", frame.shape)
    return {
        PREPARE: PartSpec((image, rows, columns), (frame,)),
        DIFFERENCE: PartSpec(
            (frame, previous), (TensorSpec("difference", "float32", frame.shape),)
        ),
        MEASURE: _measure_spec(decoder, frame, visual),
    }


def device_modules(
    specs: Mapping[str, PartSpec], preprocessing: Preprocessing, visual: VisualConfig, windows: int
) -> dict[str, nn.Module]:
    """The modules to trace; `windows` is the number of a clip's captions."""
    return {
        PREPARE: Prepare(preprocessing),
        DIFFERENCE: Difference(),
        MEASURE: Measure(specs[MEASURE], visual, windows),
    }


def trace_device(
    folder: Path,
    decoder: PartSpec,
    preprocessing: Preprocessing,
    visual: VisualConfig,
    windows: int,
) -> dict[str, PartSpec]:
    """Write the graphs that a model with this decoder needs into `folder`, PART.onnx each."""
    specs = device_specs(decoder, preprocessing, visual)
    for part, module in device_modules(specs, preprocessing, visual, windows).items():
        traced(part, module, specs[part], folder / f"{part}.onnx")
    return specs


def _measure_spec(decoder: PartSpec, frame: TensorSpec, visual: VisualConfig) -> PartSpec:
    """Beside what the decoder predicts, what that is compared with."""
    predicted = {tensor.name: tensor for tensor in decoder.outputs}
    inputs = [predicted[name] for name in OUTPUTS if name in predicted]
    if "next_frame" in predicted:
        inputs.append(frame)
    if "semantic" in predicted:
        semantic = predicted["semantic"]
        inputs.append(TensorSpec("text", semantic.dtype, semantic.shape))
    width = layout_width(measured_layout(predicted, visual))
    return PartSpec(tuple(inputs), (TensorSpec("measured", "float32", ("batch", width)),))
