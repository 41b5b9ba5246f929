"""Captions while processes are killed: by workers on a real Ray cluster, and by one alone."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from captions_data import content, make_videos, run
from sfn_rt.semantics.cached import CaptionFile
from tiny_weights import make_internvl, make_sentence_transformers

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")]

N_FRAMES, BATCH = 84, 2
N_CAPTIONS, N_UNITS = N_FRAMES - 4, (N_FRAMES - 4) // BATCH
DEADLINE_S = 1200.0  # seconds on a machine that is doing much else


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, weights, and the cache that one process alone fills."""
    root = tmp_path_factory.mktemp("cluster")
    make_videos(root / "data", {"training": {"01": N_FRAMES}, "testing": {"01": 8}})
    make_internvl(root / "vlm")
    make_sentence_transformers(root / "text")
    run(root / "data", root / "vlm", root / "alone", text=root / "text", batch=BATCH, max_tokens=48)
    return root


@contextmanager
def command(
    place: Path, out: Path, repository: Path, *more: str
) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own; it ends with the test."""
    paths = [str(repository / stage) for stage in ("runtime", "train")]
    arguments = f"captions {place / 'data'} --weights {place / 'vlm'} --text {place / 'text'}"
    arguments += f" --out {out} --batch {BATCH} --max-tokens 48 --fps 25"
    with subprocess.Popen(
        [sys.executable, "-m", "sfn_train", *arguments.split(), *more],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_units(out: Path, n_units: int, process: subprocess.Popen[str]) -> int:
    """Wait until so many units of the training video are kept; how many are."""
    journal = out / ".captions" / "train_01.jsonl"
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends and process.poll() is None:
        kept = len(journal.read_bytes().splitlines()) - 1 if journal.exists() else 0
        if kept >= n_units:
            return kept
        time.sleep(0.005)
    raise AssertionError(f"{process.args} did not get there: {process.communicate()[0]}")


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_done_twice(
    place: Path, tmp_path: Path, repository: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "c"
    with command(place, out, repository, "--ray", "local", "--workers", "2") as process:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if line.startswith("worker on"):
                break
        found = re.search(r"pid (\d+) \(cpu\)", told[-1])
        assert found is not None, told
        kept = wait_for_units(out, 3, process)
        os.kill(int(found[1]), signal.SIGKILL)
        assert kept < N_UNITS - 5
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    assert "note: a worker died; another takes its place" in said
    assert "note: 1 worker died and had to be replaced; nothing is missing" in said
    assert "worker on" in said  # the second, or who replaced the first
    file = CaptionFile.read(out / "train" / "01.json")
    assert (len(file.captions), file.n_made) == (N_CAPTIONS, N_CAPTIONS)
    assert content(out) == content(place / "alone")


def test_a_killed_command_goes_on_where_it_was(
    place: Path, tmp_path: Path, repository: Path
) -> None:
    out = tmp_path / "c"
    with command(place, out, repository) as process:
        wait_for_units(out, 3, process)
        process.kill()  # SIGKILL: no chance to tidy up
        process.communicate()
    journal = out / ".captions" / "train_01.jsonl"
    kept = len(journal.read_bytes().splitlines()) - 1
    assert 3 <= kept < N_UNITS
    text = place / "text"
    again = run(place / "data", place / "vlm", out, text=text, batch=BATCH, max_tokens=48)
    assert N_CAPTIONS - BATCH * kept <= again.n_made - 4 <= N_CAPTIONS - BATCH * (kept - 1)
    assert content(out) == content(place / "alone")


def test_a_cluster_that_is_not_there_is_named(
    place: Path, tmp_path: Path, repository: Path
) -> None:
    pytest.importorskip("ray")
    with command(place, tmp_path / "c", repository, "--ray", "auto") as process:
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert "error: --ray auto: " in said
    assert "start a cluster with `ray start --head`" in said
