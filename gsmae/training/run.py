"""What a training run is made of: its configuration, its task, its batches and its report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..batch import Batch
from ..config import Config
from ..errors import GsmaeError
from .compiling import Compile


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
    compile: Compile = "no"
    """whether torch.compile makes kernels of a pretraining network for its steps on a GPU: fuse, or graphs, which are
    also launched all at once, for small batches. The first step takes about a minute, and drop path draws other
    numbers"""
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

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.compile == "graphs" and self.accumulate > 1:
            raise ValueError("the gradients of a CUDA graph do not add up: compile 'fuse', or accumulate 1")
        return self


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
        it is called all the same, and what it changes in buffers and in parameters that are not trained is undone.
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
