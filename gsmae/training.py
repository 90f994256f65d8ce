"""One loop for every task: batches in, checkpoints and metrics out; killed and started again, it goes on exactly."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from . import checkpoint, processes
from .batch import Batch
from .config import Config
from .errors import GsmaeError
from .files import sweep, write_json
from .journal import Journal
from .locks import only_writer
from .optimizer import adamw, averaged, learning_rate, step_seed
from .progress import bar
from .shares import Share, divide, working_on
from .signals import stop_signals

log = logging.getLogger(__name__)

BLOCK = 10  # steps whose losses stay on the device before they are read and written together
BAD = 3  # steps in a row without a finite loss or gradient, after which training goes back, and then stops


class TrainConfig(Config):
    """How long, how fast and from which seed; defaults are the paper's pretraining."""

    epochs: Annotated[int, Field(ge=1)] = 300
    """passes over the training split"""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """objects per step, over all processes and micro-batches"""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """micro-batches that a process's share of a batch is cut into, to save memory: gradients are added up, clipped
    once, and one step is taken. Masks and dropout do not depend on it; BatchNorm sees one micro-batch at a time"""
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
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """decay of an exponential average of the weights, 0.999 for instance; 0 = none. It is what validation measures and
    what a checkpoint holds for use"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of matrix products in training: fp32, or bf16 by autocast; weights, optimiser and validation stay in fp32"""
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
        """The scalar to minimise, and what else to log: means over what `weight` counts.

        What it draws, it draws from the generator or by `shares.drawn`, so that a divided batch draws the same.
        """
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Any]:
        """Metrics of a model in evaluation mode."""
        ...

    def after_step(self, model: nn.Module, share_done: float) -> None:
        """Called after every optimiser step; `share_done` of the run, in 0..1, lies behind. Most tasks do nothing.

        A step that was skipped because of its gradient does not count, but on a GPU that is not known in time: there
        it is called all the same, and finds the weights that it found before.
        """

    def weight(self, batch: Batch) -> int | Tensor:
        """What `loss` is a mean over: how much a batch counts when the losses of several are averaged."""
        ...


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
        return _Loop(task, model, stream, val, config, run, header, device).run()


class _NotFinite(Exception):
    """Three steps in a row had no finite loss or gradient."""


@dataclass(frozen=True)
class _Taken:
    """A step whose numbers may still be on the device.

    names   of what was logged
    values  [1 + len(names)]: 1 where all was finite, else 0; then what was logged
    """

    step: int
    rate: float
    names: tuple[str, ...]
    values: Tensor
    uids: tuple[str, ...]


class _Step(nn.Module):
    """The forward pass of a step as one module: what Accelerate wraps."""

    def __init__(self, task: Task, model: nn.Module):
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(self.model, batch, generator)


class _Loop:
    """The state of a run in memory. `step` counts the steps behind; everything else follows from it and the files."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        stream: Stream,
        val: Stream | None,
        config: TrainConfig,
        path: Path,
        header: dict[str, Any],
        device: str,
    ):
        self.began = time.monotonic()
        self.team = team = processes.Team(device, config.precision)
        self.task, self.model, self.stream, self.val = task, model.to(team.device), stream, val
        self.config, self.path, self.header = config, path, header
        if team.lead:
            sweep(path)
        self.net = team.join(model, _Step(task, model))
        self.optimizer = adamw(model, config)
        self.average = averaged(model, config.ema) if config.ema else None
        self.per_epoch = len(stream)
        self.total = self.per_epoch * config.epochs
        self.step, self.best, self.looked = 0, {}, 0
        self.rate_share, self.bad, self.back_at = (
            1.0,
            0,
            -1,
        )  # what is left of the rate, bad steps in a row, see _go_back
        self.taken: list[_Taken] = []
        self.stop = threading.Event()
        self._resume()
        self.resumed = self.step
        # to go back to while there is no checkpoint
        self.initial = None if self.step else {k: v.clone() for k, v in model.state_dict().items()}
        self.journal = Journal(path, self.step) if team.lead else None
        self.shown = bar(path.name, "step", total=self.total, initial=self.step, smoothing=0.1, disable=not team.lead)

    def run(self) -> TrainReport:
        try:
            with stop_signals() as self.stop:
                if self._look_due() and self.looked != self.step:  # it was stopped while it looked
                    self._close_epoch()
                while self.step < self.total:
                    try:
                        self._epoch(self.step // self.per_epoch)
                        self._close_epoch()
                    except _NotFinite:
                        self._go_back()
        finally:
            self._write()
            self.shown.close()
            if self.journal:
                self.journal.close()
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return TrainReport(
            run=str(self.path),
            steps=self.step,
            epochs=self.config.epochs,
            best=self.best.get("checkpoint", ""),
            metrics=self.best.get("metrics", {}),
            parameters=sum(n for n, _ in counts),
            trained_parameters=sum(n for n, trained in counts if trained),
            seconds=round(time.monotonic() - self.began, 1),
            resumed_from=self.resumed,
        )

    def _epoch(self, epoch: int) -> None:
        self.model.train()
        for batch in self.stream.epoch(epoch, skip=self.step - epoch * self.per_epoch):
            if self._stopped():
                self._leave()
            self._advance(batch)
            self.shown.update()
        self._settle()

    def _advance(self, batch: Batch) -> None:
        """One optimiser step. Nothing in it waits for a GPU."""
        rate = self.rate_share * learning_rate(self.step, self.per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        buffers = [b.clone() for b in self.model.buffers()]
        names, values = self._gradients(batch, buffers)
        norm = self._gradient_norm()
        finite = torch.isfinite(values[0]) & torch.isfinite(norm)
        # Whether to skip the step is decided on the device: fused AdamW changes nothing where `found_inf` is one, as
        # under a GradScaler. A CPU knows at once; of a GPU it is asked every BLOCK steps, so that up to BLOCK - 1
        # more steps are computed before three bad ones in a row are noticed. They are dropped with the way back.
        self.optimizer.found_inf = 1 - finite.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        known = bool(finite) if self.team.prompt else None
        if not known:  # BatchNorm has already averaged over what was not finite
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(torch.where(finite, buffer, before))
        self.step += 1
        if known is not False:
            self.task.after_step(self.model, self.step / self.total)
            if self.average is not None:
                self.average.update_parameters(self.model)
        self.taken.append(_Taken(self.step, rate, names, torch.cat([finite[None].float(), values]), batch.uids[:3]))
        if known is not None:
            self._judge(self.taken[-1], known)
        if len(self.taken) >= BLOCK:
            self._settle()

    def _gradients(self, batch: Batch, buffers: list[Tensor]) -> tuple[tuple[str, ...], Tensor]:
        """Leave the gradients of the whole batch's loss in the parameters; returns what to log, the loss first."""
        pieces = divide(batch.to(self.team.device), self.config.accumulate, self.team.rank, self.team.world)
        shares = None
        if len(pieces) * self.team.world > 1:
            weights = torch.stack([self._weight(piece) for piece, _ in pieces])
            shares = weights / self.team.sum(weights.sum()).clamp_min(1)
        names, values = (), torch.zeros([])
        for number, (piece, share) in enumerate(pieces):
            if number and self._stopped():
                self._undo(buffers)
                self._leave()
            last = number == len(pieces) - 1
            with nullcontext() if last else self.team.apart(self.net):
                with self._drawing(None if shares is None else share) as generator:
                    loss, logs = self.net(piece, generator)
                # gradients are averaged over the processes, but each loss is a share of a sum
                self.team.accelerator.backward(loss if shares is None else loss * (shares[number] * self.team.world))
            row = {"loss": loss, **logs}
            names, found = tuple(row), torch.stack([v.detach().float() for v in row.values()])
            if shares is not None:
                found = found * shares[number]
            values = found if number == 0 else values + found
        return names, values if shares is None else self.team.sum(values)

    def _weight(self, batch: Batch) -> Tensor:
        weight = self.task.weight(batch)
        # filled on the device: a number that is copied there would be waited for
        return weight.float() if isinstance(weight, Tensor) else torch.full([], weight, device=self.team.device).float()

    @contextmanager
    def _drawing(self, share: Share | None) -> Iterator[torch.Generator]:
        """Randomness that only the step decides, for dropout too, which knows no generator; every piece begins anew."""
        device, seed = self.team.device, step_seed(self.config.seed, self.step)
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]), working_on(share):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            yield torch.Generator(device).manual_seed(seed)

    def _gradient_norm(self) -> Tensor:
        """Of all gradients together; clipped to the configured norm, once they are complete."""
        if self.config.clip:
            return torch.as_tensor(self.team.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip))
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _undo(self, buffers: list[Tensor]) -> None:
        """As if the step that was begun had not been."""
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _settle(self) -> None:
        """Read what is still on the device, write it down and judge it."""
        unjudged = [] if self.team.prompt else self.taken
        rows = self._write()
        for taken, (finite, *_) in zip(unjudged, rows, strict=False):
            self._judge(taken, bool(finite))

    def _write(self) -> list[list[float]]:
        """Into the journal with the steps taken since the last time; returns their values."""
        taken, self.taken = self.taken, []
        if not taken:
            return []
        flat = iter(torch.cat([t.values for t in taken]).tolist())
        rows = [[next(flat) for _ in t.values] for t in taken]
        for t, (_, *values) in zip(taken, rows, strict=True):
            named = dict(zip(t.names, values, strict=True))
            row = {"step": t.step, "epoch": t.step / self.per_epoch, "split": "train", "lr": t.rate, **named}
            if self.journal:
                self.journal.write(row)
            self.shown.set_postfix_str(f"loss {named['loss']:.4f}", refresh=False)
        return rows

    def _judge(self, taken: _Taken, finite: bool) -> None:
        """Count steps that were skipped."""
        if finite:
            self.bad = 0
            return
        self.bad += 1
        log.warning("step %d: loss or gradient is not finite, the step is skipped (%s)", taken.step - 1, taken.uids)
        if self.bad == BAD:
            raise _NotFinite

    def _go_back(self) -> None:
        """Go on from the last checkpoint at half the rate; a second time from the same one there is no hope."""
        self._write()
        at = self.step - 1
        found = self._newest()
        to = int(found.state["step"]) if found else 0
        if to == self.back_at:
            raise GsmaeError(
                f"{self.path}: the loss was not finite in three steps up to {at}, again after going back to step {to} "
                f"at {self.rate_share:g} of the rate; lower it, or look at the objects that the log names"
            )
        if found:
            self._take(found)
        elif self.initial is not None:
            self.model.load_state_dict(self.initial)
            self.optimizer.state.clear()
            self.average = averaged(self.model, self.config.ema) if self.config.ema else None
            self.step, self.best, self.looked = 0, {}, 0
        self.rate_share, self.bad, self.back_at = self.rate_share / 2, 0, to
        log.warning("three steps in a row: going back to step %d, at %g of the learning rate", to, self.rate_share)
        if self.journal:
            self.journal.rewind(to)
        self.shown.n = to

    def _look_due(self) -> bool:
        done, rest = divmod(self.step, self.per_epoch)
        return self.step > 0 and rest == 0 and (done % self.config.val_every == 0 or done == self.config.epochs)

    def _close_epoch(self) -> None:
        """Measure and save, where it is time to."""
        if self._look_due() and self.looked != self.step:
            self._look()
        done = self.step // self.per_epoch
        if done % self.config.save_every == 0 or done == self.config.epochs or self.best.get("step") == self.step:
            self._save()
            if self.team.lead:
                checkpoint.thin(self.path, self.config.keep, self.best.get("checkpoint", ""))

    def _look(self) -> None:
        """Measure on the validation split; the best so far is marked for keeping."""
        name, direction = self.task.selects
        metrics: dict[str, Any] = {}
        if self.val is not None:
            measured = self.model if self.average is None else self.average.module
            measured.eval()
            with torch.no_grad():
                metrics = self.task.evaluate(measured, self._val_batches(self.val))
            if self.journal:
                epoch = self.step / self.per_epoch
                self.journal.write({"step": self.step, "epoch": epoch, "split": "val", **metrics})
        # equal accuracies, of few objects for instance, are told apart by the loss
        score = [direction * metrics[name], -metrics.get("loss", 0.0)] if name in metrics else [float(self.step)]
        metrics = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        score = self.team.first([s if math.isfinite(s) else -1e30 for s in score])
        if not self.best or score > self.best["score"]:
            chosen = f"{checkpoint.PREFIX}{self.step:08d}"
            self.best = {"checkpoint": chosen, "step": self.step, "score": score, "metrics": metrics}
        self.looked = self.step

    def _val_batches(self, val: Stream) -> Iterator[Batch]:
        for batch in val.epoch(0):
            if self._stopped():
                self._leave()
            yield batch.to(self.team.device)

    def _stopped(self) -> bool:
        return self.team.any(self.stop.is_set())

    def _leave(self) -> NoReturn:
        self._save()
        raise Interrupted(f"{self.path}: stopped by a signal at step {self.step}; run the same command to go on")

    def _save(self) -> None:
        self._settle()  # the journal holds every step of a checkpoint, and no bad step is unknown
        if self.team.lead:
            state = {
                **self.header,
                "step": self.step,
                "epoch": self.step / self.per_epoch,
                "best": self.best,
                "looked": self.looked,
                "rate_share": self.rate_share,
                "bad": self.bad,
                "back_at": self.back_at,
                "train": self.config.model_dump(mode="json"),
            }
            name = f"{checkpoint.PREFIX}{self.step:08d}"
            checkpoint.save(self.path / name, state, self.model, self.optimizer, self.average)
            if self.best:
                write_json(self.path / "best.json", self.best)
        self.initial = None
        self.team.wait()

    def _newest(self) -> checkpoint.Checkpoint | None:
        """The newest whole checkpoint: the same one in every process."""
        found = checkpoint.newest(self.path) if self.team.lead else None
        name = self.team.first(found.path.name if found else None)
        if found is None and name is not None:
            found = checkpoint.load(self.path / name, with_optimizer=True)
        return found

    def _resume(self) -> None:
        found = self._newest()
        if found is None:
            return
        self._take(found)
        if self.team.lead:
            log.info("%s: going on from step %d", self.path, self.step)
            if self.best:  # a kill may have come between the checkpoint and this
                write_json(self.path / "best.json", self.best)

    def _take(self, found: checkpoint.Checkpoint) -> None:
        """Be where a checkpoint was."""
        checkpoint.restore(found, self.model, self.optimizer, self.average)
        state = found.state
        self.step, self.best = int(state["step"]), dict(state["best"])
        self.looked = int(state.get("looked", self.step))
        self.rate_share, self.bad = float(state.get("rate_share", 1.0)), int(state.get("bad", 0))
        self.back_at = int(state.get("back_at", -1))
