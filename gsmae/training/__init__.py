"""One loop for every task: batches in, checkpoints and metrics out; killed and started again, it goes on.

On a CPU it then goes on bit for bit; on a GPU as exactly as its kernels repeat themselves.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from ..locks import only_writer
from . import processes
from .loop import Loop
from .run import Interrupted, Stream, Task, TrainConfig, TrainReport

__all__ = ["Interrupted", "Stream", "Task", "TrainConfig", "TrainReport", "train"]


def train(
    task: Task,
    model: nn.Module,
    stream: Stream,
    val: Stream | None,
    config: TrainConfig,
    run: str | Path,
    header: dict[str, Any],
    device: str = "cpu",
) -> TrainReport:
    """Train until the last epoch, from the newest whole checkpoint of `run` if there is one.

    stream  with several processes (torchrun), this one's share of each batch: every world-th object
    val     decides which checkpoint is the best; without it the last one is. Every process measures all of it
    header  what a checkpoint must hold to build the model again; stored in each
    device  "cpu" or "cuda"
    Writes checkpoints, best.json, metrics.jsonl and TensorBoard events below `run`, from the first process. SIGTERM and
    SIGINT to any process save and raise Interrupted in all. A step whose loss or gradient is not finite is skipped;
    after three in a row training goes back to the last checkpoint at half the rate; where three more follow before
    there is a new checkpoint, GsmaeError.
    """
    run = Path(run)
    with only_writer(run, "process", does="trains", keep=True) if processes.rank() == 0 else nullcontext():
        return Loop(task, model, stream, val, config, run, header, device).run()
