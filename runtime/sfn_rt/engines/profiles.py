"""For which sizes an engine is built: each dynamic axis by its name gets smallest, usual, largest.

An engine is tuned for the usual size of a profile and takes all sizes between its ends. A stream
that is scored live comes a frame at a time, so a batch of 1 has a profile of its own beside the
one for 1 to N.

A language model with a key-value cache is used in two ways that no one range of sizes serves: it
reads a whole prompt behind nothing (prefill), then a token at a time behind all that was said
(decode). It gets a profile for each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sfn_rt.exceptions import BackendError

Range = tuple[int, int, int]  # smallest, usual, largest
Ranges = Mapping[str, Range]  # by axis
TOKENS: Range = (2, 16, 128)
SIDE = 16  # pixels, of the smallest frame
USUAL_FRAME = (576, 720)
# Four frames of 256 tokens and a question make about 1100; a caption is cut at 1024 more.
PREFILL: Ranges = {"sequence": (1, 1100, 2048), "past": (0, 0, 0)}
DECODE: Ranges = {"sequence": (1, 1, 1), "past": (1, 1200, 4096)}
PLACES = {0: "batch", 1: "tokens"}  # what a dynamic axis without a name is


def stream_profiles(max_batch: int, max_frame: tuple[int, int]) -> tuple[Ranges, ...]:
    """For a model's parts and device graphs: one frame, and up to `max_batch`."""
    height, width = max_frame
    rest: dict[str, Range] = {
        "tokens": TOKENS,
        "height": (SIDE, min(USUAL_FRAME[0], height), height),
        "width": (SIDE, min(USUAL_FRAME[1], width), width),
    }
    one, many = {"batch": (1, 1, 1)} | rest, {"batch": (1, max_batch, max_batch)} | rest
    return (one,) if max_batch == 1 else (one, many)


def add_profiles(
    builder: Any, config: Any, network: Any, profiles: Sequence[Ranges], source: object
) -> int:
    """Give every dynamic axis its range, in each profile; how many profiles there are now."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    axes = {tensor.name: _axes(tensor) for tensor in tensors}
    named = {axis for shape in axes.values() for axis in shape if isinstance(axis, str)}
    if not named:
        return 0
    widest = profiles[-1]
    if unknown := sorted(named - widest.keys() - (PREFILL.keys() if "past" in named else set())):
        raise BackendError(
            f"{source}: the axis {unknown[0]!r} has no range of sizes; name it one of "
            f"{sorted({'batch', 'tokens', 'height', 'width', *PREFILL})}"
        )
    wanted = [{**widest, **PREFILL}, {**widest, **DECODE}] if "past" in named else list(profiles)
    used = [{axis: r[axis] for axis in sorted(named & r.keys())} for r in wanted]
    for i, ranges in enumerate(used):
        if ranges not in used[:i]:  # without a batch, that for one frame is that for many
            _add_profile(builder, config, axes, ranges, source)
    return int(config.num_optimization_profiles)


def _add_profile(
    builder: Any,
    config: Any,
    axes: Mapping[str, tuple[int | str, ...]],
    ranges: Ranges,
    source: object,
) -> None:
    profile = builder.create_optimization_profile()
    for name, shape in axes.items():
        sizes = [ranges[axis] if isinstance(axis, str) else (axis,) * 3 for axis in shape]
        if any(isinstance(axis, str) for axis in shape):
            profile.set_shape(name, *zip(*sizes, strict=True))
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{source}: TensorRT refuses the ranges {dict(ranges)} of its axes")


def _axes(tensor: Any) -> tuple[int | str, ...]:
    """Sizes of a network's input, names where they are dynamic."""
    return tuple(
        (tensor.get_dimension_name(i) or PLACES.get(i, f"axis {i}")) if size == -1 else size
        for i, size in enumerate(tensor.shape)
    )
