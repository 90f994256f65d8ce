"""Several processes that train one model: who is who, what they agree on, and BatchNorm over all of them.

`torchrun --nproc-per-node N` starts them and says so in the environment; Hugging Face Accelerate connects them.
"""

from __future__ import annotations

import atexit
import os
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import GsmaeError


def rank() -> int:
    """The number of this process, from 0; the first one writes the run."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


class Team:
    """The processes that train one model together; one process alone is a team as well.

    device     "cpu" or "cuda": on which each has its own
    precision  of matrix products: fp32, or bf16 by autocast; weights, optimiser and losses stay in float32
    Raises GsmaeError where the processes that were started do not find each other.
    """

    def __init__(self, device: str, precision: Literal["fp32", "bf16"]):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # Accelerate keeps its settings for the life of a process; another run in it may want others
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = "no" if precision == "fp32" else precision
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed)
        self.device, self.rank, self.world = self.accelerator.device, rank(), world()
        if self.accelerator.num_processes != self.world:
            found = self.accelerator.num_processes
            raise GsmaeError(f"{self.world} processes were started, {found} found each other; start them by torchrun")
        if self.world > 1:  # the connections serve the next run in these processes as well
            atexit.unregister(_disconnect)
            atexit.register(_disconnect)
        # flags are agreed on over the CPU, so that no GPU has to be waited for
        self._flags = dist.new_group(backend="gloo") if self.world > 1 and self.device.type != "cpu" else None

    @property
    def prompt(self) -> bool:
        """Whether the device's results are there when a call returns, so that reading them costs nothing."""
        return self.device.type == "cpu"

    @property
    def lead(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def join(self, model: nn.Module, step: nn.Module) -> nn.Module:
        """`step`, which runs `model`, so that gradients are averaged over the team and precision is as asked for."""
        if self.world > 1:
            synchronize_norms(model)
        return self.accelerator.prepare(step)

    def apart(self, step: nn.Module) -> AbstractContextManager[None]:
        """Gradients meanwhile stay with each process and add up."""
        return self.accelerator.no_sync(step)

    def sum(self, values: Tensor) -> Tensor:
        """Element by element, over the team; no process waits for its device."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.world == 1:
            return flag
        value = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._flags)
        return bool(value)

    def first(self, value: Any) -> Any:
        """What the first process has."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def synchronize_norms(model: nn.Module) -> None:
    """Let every BatchNorm of a model use the statistics of all processes; names and weights stay."""
    if next(model.parameters()).device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm1d:
                setattr(parent, name, SyncedBatchNorm.like(child))


class SyncedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the batches of all processes, for the CPU, which nn.SyncBatchNorm refuses."""

    @classmethod
    def like(cls, norm: nn.BatchNorm1d) -> SyncedBatchNorm:
        """One that shares the weights and statistics of `norm`."""
        made = cls(norm.num_features, norm.eps, norm.momentum)
        made._parameters, made._buffers = norm._parameters, norm._buffers
        return made.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        over = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_full([1], x.numel() / x.shape[1])
        *sums, count = _Sum.apply(torch.cat([x.sum(over), count])).split([x.shape[1], 1])
        mean = sums[0] / count
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(over)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - share).add_(mean, alpha=share)
        self.running_var.mul_(1 - share).add_(variance, alpha=share)


class _Sum(torch.autograd.Function):
    """Sum over all processes; each sees the gradients of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
