"""Trained models by path: the network, its configuration and its FeatureSpec come back together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checkpoint
from .config import from_mapping
from .errors import InputError, nearest_name
from .features import FeatureSpec
from .models import Classifier, Encoder, GaussianLatent, GaussianMAE, Segmenter
from .tasks import TASKS
from .weights import load_weights


@dataclass(frozen=True)
class Trained:
    """A checkpoint brought back to life, in evaluation mode.

    model    the network; all have an `encoder`
    task     its name in TASKS
    spec     how its input is normalised
    state    all of state.json: progress, class and part names, versions
    path     the checkpoint folder
    """

    model: GaussianMAE | GaussianLatent | Classifier | Segmenter
    task: str
    spec: FeatureSpec
    state: dict[str, Any]
    path: Path


def load_trained(path: str | Path) -> Trained:
    """Load a run (its best checkpoint) or one checkpoint folder; no code in the files is ever executed.

    Raises InputError naming the file and what does not fit.
    """
    found = checkpoint.load(checkpoint.find(path))
    state = found.state
    name = state.get("task")
    if name not in TASKS:
        raise InputError(found.path, f"unknown task '{name}'", nearest_name(str(name), TASKS))
    where = found.path / "state.json"
    spec = from_mapping(FeatureSpec, state.get("spec"), where)
    config = from_mapping(TASKS[name].config, state.get("model"), where)
    model = TASKS[name].model(config, spec)
    load_weights(model, found.weights).require(found.path, exact=True)
    return Trained(model.eval(), name, spec, state, found.path)


def load(path: str | Path) -> Encoder:
    """The encoder of a trained run, ready for `tokens, centers = encoder(splat)`.

    path  a run or checkpoint folder, pretrained or fine-tuned
    """
    return load_trained(path).model.encoder
