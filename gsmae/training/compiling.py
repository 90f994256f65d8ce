"""The network of a run through torch.compile, in place: names, checkpoints and copies of it stay what they were."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from ..errors import GsmaeError
from ..models.masked import Masked

Compile = Literal["no", "fuse", "graphs"]


def compile_network(model: nn.Module, how: Compile, pieces: int) -> None:
    """Let calls of a pretraining network run compiled; each set of shapes is compiled when it first comes.

    What the task does before the call, which is grouping and drawing a mask, stays as it is. Raises GsmaeError for
    other networks: they group, or look for neighbours, in the middle of a call, and that cannot be compiled.

    pieces  in which a batch is computed: drop path makes each a graph of its own
    """
    if how == "no":
        return
    if not isinstance(model, Masked):
        raise GsmaeError(f"train.compile is '{how}', but only networks of pretraining are compiled; leave it at 'no'")
    # torch counts the graphs of all networks of a process together, and runs what comes after the eighth as written
    torch.compiler.reset()
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 2 * pieces)  # a last batch may be smaller
    model.compile(dynamic=False, mode="reduce-overhead" if how == "graphs" else None)


def begin_step(how: Compile) -> None:
    """Say that nothing of the step before is needed any more: CUDA graphs write where they wrote then."""
    if how == "graphs":
        torch.compiler.cudagraph_mark_step_begin()


def uncompiled(how: Compile) -> AbstractContextManager[object]:
    """Networks meanwhile run as written: a measurement has other shapes than training, and few steps."""
    return nullcontext() if how == "no" else torch.compiler.set_stance("force_eager")
