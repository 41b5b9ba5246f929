"""What tests in several folders share: where real video is, and where this checkout is."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
