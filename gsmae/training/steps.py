"""One optimiser step: gradients of a batch in pieces, clipping, AdamW, and the average. Nothing waits for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..averages import Average
from ..batch import Batch
from ..shares import Share, divide, working_on
from .compiling import begin_step, compile_network
from .optimizer import adamw, step_seed
from .processes import Team
from .run import Task, TrainConfig


class Stopped(Exception):
    """A signal came between two pieces of a batch; nothing of the step that was begun is left."""


@dataclass(frozen=True)
class Taken:
    """A step whose numbers may still be on the device.

    names   of what was logged, the loss first
    values  [1 + len(names)]: 1, or 0 where loss or gradient was not finite and the step skipped; then what was logged
    finite  the first of them, where it is known without waiting
    """

    step: int
    rate: float
    names: tuple[str, ...]
    values: Tensor
    finite: bool | None
    uids: tuple[str, ...]


class _Step(nn.Module):
    """The forward pass of a step as one module: what Accelerate wraps."""

    def __init__(self, task: Task, model: nn.Module):
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(self.model, batch, generator)


class Stepper:
    """A model, its optimiser and, where one is asked for, its average.

    stopped  whether to stop between two pieces of a batch; asked by all processes alike
    """

    def __init__(self, task: Task, model: nn.Module, config: TrainConfig, team: Team, stopped: Callable[[], bool]):
        self.task, self.model, self.config, self.team, self._stopped = task, model, config, team, stopped
        self.net = team.join(model, _Step(task, model))
        compile_network(model, config.compile, config.accumulate)
        self.optimizer = adamw(model, config)
        self.average = self._average()

    def forget(self, weights: dict[str, Tensor]) -> None:
        """Begin anew from these weights."""
        self.model.load_state_dict(weights)
        self.optimizer.state.clear()
        self.average = self._average()

    def take(self, batch: Batch, step: int, rate: float, share_done: float) -> Taken:
        """Step number `step`, counted from zero, on this process's samples of a batch. Raises Stopped."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        begin_step(self.config.compile)
        # a CPU knows in time whether a step is skipped: only BatchNorm is to be put back there
        followers = list(self.model.buffers()) if self.team.prompt else self._followers()
        before = [f.detach().clone() for f in followers]
        try:
            names, values = self._gradients(batch, step)
        except Stopped:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for kept, value in zip(followers, before, strict=True):
                    kept.copy_(value)
            raise
        finite = torch.isfinite(values[0]) & torch.isfinite(self._gradient_norm())
        # Whether to skip the step is decided on the device: fused AdamW changes nothing where `found_inf` is one, as
        # under a GradScaler. A CPU is asked at once, a GPU by the loop, every few steps.
        self.optimizer.found_inf = 1 - finite.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        known = bool(finite) if self.team.prompt else None
        if known is not False:
            self.task.after_step(self.model, share_done)
        if not known:  # BatchNorm has averaged over what was not finite, and a teacher may have followed
            with torch.no_grad():
                for kept, value in zip(followers, before, strict=True):
                    kept.copy_(torch.where(finite, kept, value))
        if known is not False and self.average is not None:
            self.average.follow(self.model, None if known else finite)
        numbers = torch.cat([finite[None].float(), values])
        return Taken(step + 1, rate, names, numbers, known, batch.uids[:3])

    def _average(self) -> Average | None:
        return Average(self.model, self.config.ema) if self.config.ema else None

    def _followers(self) -> list[Tensor]:
        """What changes in a step although the optimiser does not change it."""
        return [*self.model.buffers(), *(p for p in self.model.parameters() if not p.requires_grad)]

    def _gradients(self, batch: Batch, step: int) -> tuple[tuple[str, ...], Tensor]:
        """Leave the gradients of the whole batch's loss in the parameters; returns what to log, the loss first."""
        pieces = divide(
            batch.to(self.team.device, non_blocking=True), self.config.accumulate, self.team.rank, self.team.world
        )
        shares = None
        if len(pieces) * self.team.world > 1:
            weights = torch.stack([self._weight(piece) for piece, _ in pieces])
            shares = weights / self.team.sum(weights.sum()).clamp_min(1)
        names, values = (), torch.zeros([])
        for number, (piece, share) in enumerate(pieces):
            if number and self._stopped():
                raise Stopped
            last = number == len(pieces) - 1
            with nullcontext() if last else self.team.apart(self.net):
                with self._drawing(None if shares is None else share, step) as generator:
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
    def _drawing(self, share: Share | None, step: int) -> Iterator[torch.Generator]:
        """Randomness that only the step decides, for dropout too, which knows no generator; every piece begins anew."""
        device, seed = self.team.device, step_seed(self.config.seed, step)
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
