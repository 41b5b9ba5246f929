"""transformers says much while it loads; none of it is news to someone who asked for one answer."""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no report of unused keys or unusual settings."""
    hf: Any = importlib.import_module("transformers.utils.logging")  # untyped
    bar, level = hf.is_progress_bar_enabled(), hf.get_verbosity()
    hf.disable_progress_bar()
    hf.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bar:
            hf.enable_progress_bar()
