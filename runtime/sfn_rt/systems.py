"""The systems a bundle can hold: which graphs each of them is made of, and what must fit together.

sfn-vad       predicts the next frame and the meaning of a clip; any of its branches may be off
dual-memory   reconstructs a clip that it has seen whole, and scores a frame in its middle
"""

from collections.abc import Mapping
from typing import Literal

from sfn_rt.backends.base import PartSpec

System = Literal["sfn-vad", "dual-memory"]
PARTS: Mapping[System, tuple[str, ...]] = {
    "sfn-vad": ("vision", "appearance", "motion", "decoder", "text"),
    "dual-memory": ("autoencoder",),
}


def check_parts(
    system: System,
    parts: Mapping[str, PartSpec],
    *,
    observed: int,
    size: tuple[int, int],
    text_width: int,
) -> None:
    """Raise ValueError unless `parts` make up the system for clips of `observed` frames of `size`.

    `text_width` is that of the embedded captions of a clip together, 0 without captions.
    """
    if unknown := sorted(parts.keys() - set(PARTS[system])):
        raise ValueError(f"parts of {system} are {list(PARTS[system])}, got {unknown[0]!r} too")
    if system == "dual-memory":
        _check_dual_memory(parts, observed, size)
    else:
        _check_sfn_vad(parts, text_width)


def _check_sfn_vad(parts: Mapping[str, PartSpec], text_width: int) -> None:
    _need(parts, "decoder", *(("text",) if text_width else ()))
    decoder = parts["decoder"]
    predicted = {tensor.name for tensor in decoder.outputs} & {"next_frame", "semantic"}
    if not predicted:
        given = [tensor.name for tensor in decoder.outputs]
        raise ValueError(f"the decoder must give 'next_frame' or 'semantic', got {given}")
    if "next_frame" in predicted and not {"appearance", "motion"} & parts.keys():
        raise ValueError(f"parts must have 'appearance' or 'motion', got {sorted(parts)}")
    if "vision" in parts and "appearance" not in parts:
        raise ValueError(f"parts must have 'appearance' beside 'vision', got {sorted(parts)}")
    takes = {tensor.name for tensor in parts["appearance"].inputs} if "appearance" in parts else {}
    wanted = {"hidden", "embedded"} if "vision" in parts else {"frame"}
    if takes and takes != wanted:
        raise ValueError(f"the appearance part must take {sorted(wanted)}, got {sorted(takes)}")
    widths = [tensor.shape[-1] for tensor in decoder.inputs if tensor.name == "text"]
    if widths != ([text_width] if text_width else []):
        raise ValueError(
            f"the decoder's input 'text' must have the width of a clip's embedded captions, "
            f"{text_width or 'none'}, got {widths[0] if widths else 'none'}"
        )


def _check_dual_memory(parts: Mapping[str, PartSpec], observed: int, size: tuple[int, int]) -> None:
    _need(parts, "autoencoder")
    tensors = (*parts["autoencoder"].inputs, *parts["autoencoder"].outputs)
    found = [(tensor.name, *tensor.shape[1:]) for tensor in tensors]
    if found != [("clip", observed, 3, *size), ("error", *size)]:
        raise ValueError(
            f"the autoencoder must turn 'clip' [batch, {observed}, 3, {size[0]}, {size[1]}] into "
            f"'error' [batch, {size[0]}, {size[1]}], got {', '.join(map(str, found))}"
        )


def _need(parts: Mapping[str, PartSpec], *names: str) -> None:
    for name in names:
        if name not in parts:
            raise ValueError(f"parts must have {name!r}, got {sorted(parts)}")
