"""Captions read from a file: written by a VLM elsewhere, by a person, or for a test.

The file is JSON, {"0": "a caption", "8": "another"}: the index of the last observed frame of the
clip, as text, and its caption. A clip takes the newest caption that is not from its future.
"""

import bisect
import json
from pathlib import Path

from sfn_rt.exceptions import InputError
from sfn_rt.semantics.captioner import Clip


class CachedCaptioner:
    """Looks captions up instead of making them."""

    name = "cached"

    def __init__(self, path: Path) -> None:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot read captions: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{path}: captions must be JSON, {error}") from None
        if not isinstance(raw, dict) or not raw:
            raise InputError(f'{path}: captions must be an object like {{"0": "two people walk"}}')
        table: dict[int, str] = {}
        for key, text in raw.items():
            if not key.isdecimal() or not isinstance(text, str) or not text.strip():
                raise InputError(f"{path}: entry {key!r} must be a frame index with a caption")
            table[int(key)] = text
        self._frames = sorted(table)
        self._captions = [table[frame] for frame in self._frames]

    def caption(self, clip: Clip) -> str:
        """The newest caption at or before the clip's last frame, else the first of all."""
        place = bisect.bisect_right(self._frames, clip.end_frame) - 1
        return self._captions[max(place, 0)]
