"""About how long runs will take, before they begin."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..batch import Batch
from ..features import Normalization
from ..gaussians import WIDTH
from ..tasks import TASKS, Segment
from ..training.processes import Team
from ..training.steps import Stepper
from .plan import Step

USUAL = {"ways": [5, 10], "shots": [10, 20], "folds": 10}  # of `gsmae folds`


@dataclass(frozen=True)
class Size:
    """What a pack holds: objects for training, classes, parts."""

    train: int
    classes: int
    parts: int


def expected_seconds(steps: Sequence[Step], sizes: Mapping[Path, Size], device: str) -> list[float | str]:
    """About how long each step takes, by two optimiser steps of its kind now; or why it cannot take one.

    Seeds are taken to make no difference. Reading the data is not counted.
    """
    known: dict[str, float | str] = {}
    found: list[float | str] = []
    for step in steps:
        size = sizes[step.data.path]
        key = _without_seed(step)
        if key not in known:
            try:
                known[key] = seconds_per_step(step, size, device)
            except Exception as error:  # whatever it is, the run will fail of it and say so in its row
                known[key] = f"{type(error).__name__}: {error}"
        each = known[key]
        found.append(each if isinstance(each, str) else each * _count(step, size))
    return found


def seconds_per_step(step: Step, size: Size, device: str) -> float:
    """Seconds of one optimiser step on random input; on a CPU with at most 8 objects, and then by proportion."""
    where = _where(device)
    objects = step.train.batch_size if where == "cuda" else min(8, step.train.batch_size)
    taker, batch, spent = *stepper(step, size, device, objects), 0.0
    for number in range(2):  # the first warms up
        start = time.perf_counter()
        taker.take(batch, number, step.train.lr, 0.0)
        if where == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
    return spent * step.train.batch_size / objects


def stepper(step: Step, size: Size, device: str, objects: int | None = None) -> tuple[Stepper, Batch]:
    """What takes a step's optimiser steps, with fresh weights, and random input of so many objects (none: a batch)."""
    where = _where(device)
    kind = {"probe": "pretrain", "fewshot": "classify"}.get(step.kind, step.kind)
    config: Any = step.config
    initial: Any = step.init.config if step.init else config
    train, spec, own = step.train, initial.spec, {"encoder": initial.model.encoder} if step.init else {}
    if kind in ("classify", "pointnet2"):
        own["classes"] = size.classes
    if kind == "segment":
        own |= {"parts": max(1, size.parts), "categories": size.classes}
    task: Any = Segment([], {}) if kind == "segment" else TASKS[kind]()
    generator = torch.Generator().manual_seed(0)
    model = TASKS[kind].model(config.model.model_copy(update=own), spec, generator=generator).to(where).train()
    count: int = train.batch_size if objects is None else objects
    batch = _batch(count, train, spec.normalize, generator).to(where)
    pieces = max(1, round(train.accumulate * count / train.batch_size))  # of about the size that they will have
    alike = train.model_copy(update={"accumulate": pieces})
    return Stepper(task, model, alike, Team(where, train.precision), lambda: False), batch


def _where(device: str) -> str:
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _batch(objects: int, train: Any, normalize: tuple[str, ...], generator: torch.Generator) -> Batch:
    points = torch.randn(objects, train.gaussians, WIDTH, generator=generator).clamp(-1, 1)
    queries = torch.rand(objects, train.queries, 3, generator=generator)
    labels, parts = torch.zeros(objects, dtype=torch.int64), torch.zeros(objects, train.queries, dtype=torch.int64)
    zeros, ones = torch.zeros(objects, 3), torch.ones(objects)
    known = Normalization(zeros, ones, zeros, ones, normalize)
    return Batch(points, labels, ("",) * objects, queries, parts, normalization=known)


def _count(step: Step, size: Size) -> int:
    """Optimiser steps of a run; a probe sees every object about once."""
    train = step.train
    if step.kind == "probe":
        return max(1, size.train // train.batch_size)
    if step.kind == "fewshot":
        folds = {**USUAL, **step.more}
        objects = [ways * shots for ways in folds["ways"] for shots in folds["shots"]]
        epochs = train.epochs if step.method == "full" else 1
        return folds["folds"] * epochs * sum(math.ceil(n / train.batch_size) for n in objects)
    return max(1, size.train // train.batch_size) * train.epochs


def _without_seed(step: Step) -> str:
    own = step.config.model_copy(update={"train": step.train.model_copy(update={"seed": 0})})
    return f"{step.kind} {step.data.path} {own} {_without_seed(step.init) if step.init else ''}"
