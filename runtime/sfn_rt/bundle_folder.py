"""A bundle is written whole or not at all: whoever makes or changes one works beside it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfn_rt.bundle import MANIFEST
from sfn_rt.exceptions import OutputError
from sfn_rt.sinks.files import output_errors


@contextmanager
def bundle_folder(out: Path, marker: str = MANIFEST, what: str = "a bundle") -> Iterator[Path]:
    """A folder beside `out` to fill; it becomes `out` if the block ends well, else it is gone.

    An earlier folder of its kind, which has the file `marker`, is replaced; anything else in `out`
    is refused.
    """
    final = Path(os.path.realpath(out))
    if final.exists() and not final.is_dir():
        raise OutputError(f"{out} is a file; --out names a folder")
    if final.is_dir() and any(final.iterdir()) and not (final / marker).is_file():
        raise OutputError(f"{out} holds files that are not {what}; choose another --out")
    work = final.with_name(f".{final.name}.{os.getpid()}.partial")
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    with output_errors(out):
        work.mkdir(parents=True)
    try:
        with output_errors(out):
            yield work
            if final.exists():
                final.rename(old)
            work.rename(final)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    finally:
        for leftover in (work, old):
            shutil.rmtree(leftover, ignore_errors=True)
