"""What a run measured, line by line: metrics.jsonl for programs, TensorBoard's events for looking."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from ..files import write_aside

log = logging.getLogger(__name__)

PLACES = ("step", "epoch", "split")  # where a row belongs; everything else in it was measured


class Journal:
    """One JSON object per line; lines after the step that is resumed from are dropped.

    run   the run's folder
    step  steps that are kept
    """

    def __init__(self, run: Path, step: int):
        self.path = run / "metrics.jsonl"
        self._open(step)

    def rewind(self, step: int) -> None:
        """Drop what came after a step."""
        self.close()
        self._open(step)

    def write(self, row: dict[str, Any]) -> None:
        """One line, and a point in every curve of its split; `row` has step, epoch, split and what was measured."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for key, value in row.items():
            if key not in PLACES and isinstance(value, int | float):
                self._curves.add_scalar(f"{row['split']}/{key}", value, row["step"])

    def close(self) -> None:
        self._file.close()
        self._curves.close()

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                log.warning("%s: a broken line is dropped", self.path)
        with write_aside(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._curves = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step + 1 if step else None)
