"""What a stream's networks found out about a frame, as one row of numbers from the device.

The device part `measure` compares there what was predicted with what came, and gives (batch, M):

    visual      evidence of prediction_error.measure_error                      1
    box         where the largest box begins: y * (w - box_w + 1) + x           1
    semantic    prediction_error.semantic_error                                 1
    distilled   the decoder's, as it is                                         1
    heat        prediction_error's heat map, row by row                         gh gw

in this order, and only what the decoder gives: `visual`, `box` and `heat` with `next_frame`,
`semantic` with `semantic`, `distilled` with `distilled`. Export writes the graph by
`measured_layout`, `resident.py` reads its answer by it.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from sfn_rt.prediction_error import VisualConfig, VisualError

COLUMNS = {  # column -> the decoder's output that it is made of, in the order of a row
    "visual": "next_frame",
    "box": "next_frame",
    "semantic": "semantic",
    "distilled": "distilled",
    "heat": "next_frame",
}


def measured_layout(outputs: Collection[str], visual: VisualConfig) -> dict[str, slice]:
    """Column -> its place in a row, for a decoder that gives `outputs`."""
    layout: dict[str, slice] = {}
    at = 0
    for column, source in COLUMNS.items():
        if source in outputs:
            width = visual.grid_height * visual.grid_width if column == "heat" else 1
            layout[column] = slice(at, at + width)
            at += width
    return layout


def layout_width(layout: Mapping[str, slice]) -> int:
    """M."""
    return max((place.stop for place in layout.values()), default=0)


def read_visual(
    rows: NDArray[np.float32],
    layout: Mapping[str, slice],
    visual: VisualConfig,
    size: tuple[int, int],
) -> list[VisualError]:
    """The visual error of each row (p, M); `size` is the model's h and w. Empty without one."""
    if "visual" not in layout:
        return []
    height, width = size
    box_h, box_w = min(visual.box_height, height), min(visual.box_width, width)
    grid = (visual.grid_height, visual.grid_width)
    found = []
    for row in rows:
        y, x = divmod(round(float(row[layout["box"]][0])), width - box_w + 1)
        box = (x / width, y / height, box_w / width, box_h / height)
        heat = row[layout["heat"]].astype(np.float16).reshape(grid)
        found.append(VisualError(float(row[layout["visual"]][0]), box, heat))
    return found
