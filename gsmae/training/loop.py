"""The loop of a training run: epochs, validation, checkpoints, the way back, and stopping when it is asked to."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from .. import checkpoint
from ..batch import Batch
from ..errors import GsmaeError, InputError
from ..files import sweep, write_json
from ..progress import bar
from . import processes
from .compiling import uncompiled
from .journal import Journal
from .optimizer import learning_rate
from .run import Interrupted, Stream, Task, TrainConfig, TrainReport
from .signals import stop_signals
from .steps import Stepper, Stopped, Taken

log = logging.getLogger(__name__)

BLOCK = 10  # steps whose numbers stay on the device before they are read and written together
BAD = 3  # steps in a row without a finite loss or gradient, after which training goes back, and then stops


class _NotFinite(Exception):
    """Three steps in a row had no finite loss or gradient."""


class Loop:
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
        self.steps = Stepper(task, model, config, team, self._stopped)
        self.per_epoch = len(stream)
        self.total = self.per_epoch * config.epochs
        self.step, self.best, self.looked = 0, {}, 0
        self.rate_share = 1.0  # of the configured rate
        self.bad, self.back_at = 0, -1  # bad steps in a row; the step that was gone back to
        self.taken: list[Taken] = []
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
            try:
                self._advance(batch)
            except Stopped:
                self._leave()
            self.shown.update()
        self._settle()

    def _advance(self, batch: Batch) -> None:
        rate = self.rate_share * learning_rate(self.step, self.per_epoch, self.config)
        taken = self.steps.take(batch, self.step, rate, (self.step + 1) / self.total)
        self.step += 1
        self.taken.append(taken)
        if taken.finite is not None:
            self._judge(taken, taken.finite)
        # Of a GPU it is learned so late whether steps were skipped; up to BLOCK - 1 more are computed before three in
        # a row are noticed, and are dropped with the way back.
        if len(self.taken) >= BLOCK:
            self._settle()

    def _settle(self) -> None:
        """Read what is still on the device, write it down and judge it."""
        steps = self.taken
        for taken, (finite, *_) in zip(steps, self._write(), strict=True):
            if taken.finite is None:
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

    def _judge(self, taken: Taken, finite: bool) -> None:
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
        if found is None and self.initial is None:
            raise GsmaeError(
                f"{self.path}: the loss was not finite in three steps up to {at}, and no checkpoint is readable to go "
                "back to; put one of them back, or begin in another folder"
            )
        to = int(found.state["step"]) if found else 0
        if to == self.back_at:
            raise GsmaeError(
                f"{self.path}: the loss was not finite in three steps up to {at}, again after going back to step {to} "
                f"at {self.rate_share:g} of the rate; lower it, or look at the objects that the log names"
            )
        if found:
            self._take(found)
        else:
            assert self.initial is not None
            self.steps.forget(self.initial)
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
            measured = self.model if self.steps.average is None else self.steps.average.module
            measured.eval()
            with torch.no_grad(), uncompiled(self.config.compile):
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
            checkpoint.save(self.path / name, state, self.model, self.steps.optimizer, self.steps.average)
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
            damaged = self.team.first([p.name for p in checkpoint.steps(self.path)])
            if damaged:
                cause = f"none of its checkpoints is whole ({', '.join(damaged)}; the log says what is wrong with each)"
                raise InputError(self.path, cause, "put one of them back, or delete these folders to begin anew")
            return
        self._take(found)
        if self.team.lead:
            log.info("%s: going on from step %d", self.path, self.step)
            if self.best:  # a kill may have come between the checkpoint and this
                write_json(self.path / "best.json", self.best)

    def _take(self, found: checkpoint.Checkpoint) -> None:
        """Be where a checkpoint was."""
        checkpoint.restore(found, self.model, self.steps.optimizer, self.steps.average)
        state = found.state
        self.step, self.best = int(state["step"]), dict(state["best"])
        self.looked = int(state.get("looked", self.step))
        self.rate_share, self.bad = float(state.get("rate_share", 1.0)), int(state.get("bad", 0))
        self.back_at = int(state.get("back_at", -1))
