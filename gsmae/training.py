"""One loop for every task: batches in, checkpoints and metrics out; killed and started again, it goes on exactly."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from . import checkpoint
from .batch import Batch
from .config import Config
from .errors import GsmaeError
from .files import sweep, write_aside, write_json
from .locks import only_writer
from .progress import bar

log = logging.getLogger(__name__)


class TrainConfig(Config):
    """How long, how fast and from which seed; defaults are the paper's pretraining."""

    epochs: Annotated[int, Field(ge=1)] = 300
    """passes over the training split"""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """objects per step"""
    gaussians: Annotated[int, Field(ge=1)] = 1024
    """Gaussians drawn from each object"""
    lr: Annotated[float, Field(ge=0)] = 1e-3
    """peak learning rate of AdamW"""
    lr_end: Annotated[float, Field(ge=0)] = 1e-6
    """learning rate at the end of the cosine"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    """epochs of linear warm-up"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW decay; none on biases, norms and tokens"""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """largest gradient norm, 0 = no clipping"""
    val_every: Annotated[int, Field(ge=1)] = 10
    """epochs between two looks at the validation split"""
    save_every: Annotated[int, Field(ge=1)] = 10
    """epochs between two checkpoints"""
    keep: Annotated[int, Field(ge=1)] = 2
    """newest checkpoints that are kept, besides the best"""
    queries: Annotated[int, Field(ge=1)] = 2048
    """labelled surface points drawn from each object, for part segmentation"""
    augment: str = "default"
    """moves of data.augment.AUGMENTATIONS: default (turns about the vertical, scale, shift), paper, rotations, none"""
    seed: int = 0
    """of weights, order, windows, masks and dropout"""


class Stream(Protocol):
    """The batches of a split; `data.batches` makes one."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterable[Batch]:
        """The batches of one epoch from number `skip` on; the same for the same arguments."""
        ...


class Task(Protocol):
    """What a run learns. `selects` names the validation metric that picks the best checkpoint, and its direction."""

    selects: tuple[str, int]

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and what else to log."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Any]:
        """Metrics of a model in evaluation mode."""
        ...

    def after_step(self, model: nn.Module, share_done: float) -> None:
        """Called after every optimiser step; `share_done` of the run, in 0..1, lies behind. Most tasks do nothing."""


@dataclass(frozen=True)
class TrainReport:
    """How a run ended. `metrics` are those of the best checkpoint on the validation split."""

    run: str
    steps: int
    epochs: int
    best: str
    metrics: dict[str, Any]
    parameters: int
    trained_parameters: int
    seconds: float
    resumed_from: int


class Interrupted(GsmaeError):
    """A signal asked the run to stop; its state was saved first."""


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

    val     decides which checkpoint is the best; without it the last one is
    header  what a checkpoint must hold to build the model again; stored in each
    Writes checkpoints, best.json, metrics.jsonl and TensorBoard events below `run`. SIGTERM and SIGINT save and raise
    Interrupted. A loss that is not finite skips the step; the third in a row raises GsmaeError.
    """
    run, start = Path(run), time.monotonic()
    with only_writer(run, "process", does="trains", keep=True):
        return _train(task, model, stream, val, config, run, header, device, start)


def _train(
    task: Task,
    model: nn.Module,
    stream: Stream,
    val: Stream | None,
    config: TrainConfig,
    run: Path,
    header: dict[str, Any],
    device: str,
    start: float,
) -> TrainReport:
    from torch.utils.tensorboard import SummaryWriter

    sweep(run)
    model.to(device)
    optimizer = adamw(model, config)
    per_epoch = len(stream)
    total = per_epoch * config.epochs
    step, best = _resume(run, model, optimizer)
    if best:
        write_json(run / "best.json", best)  # a kill may have come between the checkpoint and this
    resumed = step
    journal = _Journal(run, step)
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
    bad = 0

    def save() -> None:
        name = f"{checkpoint.PREFIX}{step:08d}"
        state = {
            **header,
            "step": step,
            "epoch": step / per_epoch,
            "best": best,
            "train": config.model_dump(mode="json"),
        }
        checkpoint.save(run / name, state, model, optimizer)

    def look() -> None:
        """Measure on the validation split; the best so far is marked for keeping."""
        nonlocal best
        name, direction = task.selects
        metrics = {}
        if val is not None:
            model.eval()
            with torch.no_grad():
                metrics = task.evaluate(model, (b.to(device) for b in val.epoch(0)))
            journal.write({"step": step, "epoch": step / per_epoch, "split": "val", **metrics})
            for key, value in metrics.items():
                if isinstance(value, int | float):
                    writer.add_scalar(f"val/{key}", value, step)
        # equal accuracies, of few objects for instance, are told apart by the loss
        score = [direction * metrics[name], -metrics.get("loss", 0.0)] if name in metrics else [float(step)]
        metrics = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        score = [s if math.isfinite(s) else -1e30 for s in score]
        if not best or score > best["score"]:
            best = {"checkpoint": f"{checkpoint.PREFIX}{step:08d}", "step": step, "score": score, "metrics": metrics}

    shown = bar(run.name, "step", total=total, initial=step, smoothing=0.1)
    with _stop_signals() as stop:
        for epoch in range(step // per_epoch, config.epochs):
            model.train()
            for batch in stream.epoch(epoch, skip=step - epoch * per_epoch):
                if stop.is_set():
                    save()
                    raise Interrupted(f"{run}: stopped by a signal at step {step}; run the same command to go on")
                rate = learning_rate(step, per_epoch, config)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                buffers = [b.clone() for b in model.buffers()]
                with torch.random.fork_rng():  # dropout knows no generator: give it a state that only the step decides
                    torch.manual_seed(step_seed(config.seed, step))
                    generator = torch.Generator(device).manual_seed(step_seed(config.seed, step))
                    loss, logs = task.loss(model, batch.to(device), generator)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
                if torch.isfinite(loss) and torch.isfinite(norm):
                    bad = 0
                    optimizer.step()
                    task.after_step(model, (step + 1) / total)
                else:
                    bad += 1
                    for buffer, before in zip(model.buffers(), buffers, strict=True):
                        buffer.copy_(before)  # BatchNorm has already averaged over what was not finite
                    log.warning(
                        "step %d: loss or gradient is not finite, the step is skipped (%s)", step, batch.uids[:3]
                    )
                    if bad == 3:
                        raise GsmaeError(f"{run}: the loss was not finite in three steps up to {step}; lower the rate?")
                optimizer.zero_grad(set_to_none=True)
                step += 1
                row = {"loss": loss.detach(), **logs}
                values = dict(zip(row, torch.stack([v.detach().float() for v in row.values()]).tolist(), strict=True))
                journal.write({"step": step, "epoch": step / per_epoch, "split": "train", "lr": rate, **values})
                for key, value in values.items():
                    writer.add_scalar(f"train/{key}", value, step)
                shown.update()
                shown.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
            done = epoch + 1
            if done % config.val_every == 0 or done == config.epochs:
                look()
            if done % config.save_every == 0 or done == config.epochs or best.get("step") == step:
                save()
                if best:
                    write_json(run / "best.json", best)
                checkpoint.thin(run, config.keep, best.get("checkpoint", ""))
    shown.close()
    writer.close()
    journal.close()
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return TrainReport(
        run=str(run),
        steps=step,
        epochs=config.epochs,
        best=best.get("checkpoint", ""),
        metrics=best.get("metrics", {}),
        parameters=sum(n for n, _ in counts),
        trained_parameters=sum(n for n, trained in counts if trained),
        seconds=round(time.monotonic() - start, 1),
        resumed_from=resumed,
    )


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are to be trained, without decay on vectors and tokens."""
    decayed, free = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (free if p.squeeze().ndim <= 1 or name.endswith("bias") else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)


def learning_rate(step: int, per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to `lr_end`, by the step."""
    epoch = step / per_epoch
    if epoch < config.warmup_epochs:
        return config.lr_end + (config.lr - config.lr_end) * epoch / config.warmup_epochs
    share = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr_end + (config.lr - config.lr_end) * (1 + math.cos(math.pi * min(share, 1))) / 2


def step_seed(seed: int, step: int) -> int:
    """The seed of one step: resuming needs no stored random state."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:6], "big")


def _resume(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    found = checkpoint.newest(run)
    if found is None:
        return 0, {}
    model.load_state_dict(found.weights)
    checkpoint.restore_optimizer(model, optimizer, found.optimizer)
    log.info("%s: going on from step %d", run, found.state["step"])
    return int(found.state["step"]), dict(found.state["best"])


class _Journal:
    """metrics.jsonl: one JSON object per line; lines after the step that is resumed from are dropped."""

    def __init__(self, run: Path, step: int):
        path = run / "metrics.jsonl"
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                log.warning("%s: a broken line is dropped", path)
        with write_aside(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; outside the main thread signals are not ours to take."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
