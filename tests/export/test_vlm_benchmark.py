"""benchmarks/vlm_parity.py goes its whole way on a tiny model; --tiny left out is the full size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_step_is_measured(repository: Path, tmp_path: Path) -> None:
    script = repository / "benchmarks" / "vlm_parity.py"
    command = [sys.executable, str(script), "--tiny", "--folder", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    steps = json.loads(ran.stdout.splitlines()[-1])["steps"]
    for part in ("vision", "projector", "language"):
        assert 0 < steps[f"export {part}"]["difference"] <= 1e-4
    for part in ("vision", "projector"):
        assert steps[part]["seconds"] > 0
    for precision in ("fp32", "int4"):
        assert steps[f"language {precision}"]["tokens_per_s"] > 0
    assert all(row["peak_gb"] > 0 for row in steps.values())

    again = subprocess.run([*command, "--steps", "vision"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    later = json.loads(again.stdout.splitlines()[-1])["steps"]
    assert {name for name in steps if steps[name] != later[name]} == {"vision"}
