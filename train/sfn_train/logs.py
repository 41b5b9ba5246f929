"""Where the numbers of training go: a CSV that survives --resume, and a line on the terminal."""

import csv
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from sfn_rt.progress import Progress


class MetricsCsv(Logger):
    """metrics.csv: a row a logged step and split. A resumed run cuts what it will do again."""

    def __init__(self, path: Path, losses: Sequence[str]) -> None:
        super().__init__()
        self.path = path
        self.columns = ("step", "split", "total", *losses, "learning_rate", "minutes")
        self._logged: dict[str, int] = {}  # split -> its last step

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def start(self, step: int) -> None:
        """Keep the rows before `step`; 0 begins a new file."""
        kept = []
        if step and self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append `train/total` and its like, one row a split."""
        for split in ("train", "validation"):
            row: dict[str, object] = {
                name.removeprefix(f"{split}/"): f"{value:.6g}"
                for name, value in metrics.items()
                if name.startswith(f"{split}/")
            }
            done = int(step or 0)
            if row and done != self._logged.get(split):  # Lightning repeats the last on stopping
                self._logged[split] = done
                with self.path.open("a", newline="") as file:
                    csv.DictWriter(file, self.columns).writerow(
                        row | {"step": done, "split": split}
                    )


class StepBar(Progress):
    """The runtime's progress line, counting steps instead of frames."""

    def line(self) -> str:
        """`loss 0.412  ████░░  120/400  30 %  1.3 steps/s  3:35 left`"""
        return super().line().replace("frames", "steps")
