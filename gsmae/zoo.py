"""Trained models by path: the network, its configuration and its FeatureSpec come back together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checkpoint
from .config import from_mapping
from .errors import InputError, nearest_name
from .features import FeatureSpec
from .models import Classifier, Encoder, GaussianLatent, GaussianMAE, PointNet2, Segmenter
from .tasks import TASKS
from .training import TrainConfig
from .weights import load_weights


@dataclass(frozen=True)
class Trained:
    """A checkpoint brought back to life, in evaluation mode.

    model    the network
    task     its name in TASKS
    spec     how its input is normalised
    state    all of state.json: progress, class and part names, versions
    path     the checkpoint folder
    """

    model: GaussianMAE | GaussianLatent | Classifier | Segmenter | PointNet2
    task: str
    spec: FeatureSpec
    state: dict[str, Any]
    path: Path

    @property
    def encoder(self) -> Encoder:
        """The encoder of the network; InputError for the supervised baseline, which has none."""
        if isinstance(self.model, PointNet2):
            raise InputError(self.path, f"a '{self.task}' network has no encoder", "name another run")
        return self.model.encoder

    @property
    def train(self) -> TrainConfig:
        """How it was trained; a converted model says nothing, and has the defaults."""
        return from_mapping(TrainConfig, self.state.get("train", {}), self.path / "state.json")

    @property
    def weights_hash(self) -> str:
        """The sha256 of the weights."""
        return self.state["sha256"][checkpoint.WEIGHTS]


def load_trained(path: str | Path) -> Trained:
    """Load a run (its best checkpoint) or one checkpoint folder; no code in the files is ever executed.

    Raises InputError naming the file and what does not fit.
    """
    found = checkpoint.load(checkpoint.find(path))
    state = found.state
    name = state.get("task")
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(found.path, f"unknown task '{name}'", nearest_name(str(name), TASKS))
    where = found.path / "state.json"
    spec = from_mapping(FeatureSpec, state.get("spec"), where)
    config = from_mapping(TASKS[name].config, state.get("model"), where)
    model = _network(name, config, spec, found)
    load_weights(model, found.weights).require(found.path, exact=True)
    return Trained(model.eval(), name, spec, state, found.path)


def _network(task: str, config: Any, spec: FeatureSpec, found: checkpoint.Checkpoint) -> Any:
    """The network of a configuration; InputError where it is not that of the weights, before memory is taken for what
    it promises."""
    where, cure = found.path / "state.json", "the file is damaged"
    total, count = sum(tensor.numel() for tensor in found.weights.values()), len(found.weights)
    tables = [config.model_dump()]
    for values in tables:  # grows
        tables += [value for value in values.values() if isinstance(value, dict)]
        most = {
            key: count if key.endswith("depth") else total for key, value in values.items() if isinstance(value, int)
        }
        most |= {"width": int((total / 12 / max(values.get("depth", 1), 1)) ** 0.5)} if "width" in values else {}
        for key, limit in most.items():
            if values[key] > limit:
                cause = f"'{key}' is {values[key]}, more than {count} tensors of {total} numbers can be"
                raise InputError(where, cause, cure)
    try:
        return TASKS[task].model(config, spec)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        cause = f"describes a network that cannot be built: {' '.join(str(error).split())[:200]}"
        raise InputError(where, cause, cure) from None


def load(path: str | Path) -> Encoder:
    """The encoder of a trained run, ready for `tokens, centers = encoder(splat)`.

    path  a run or checkpoint folder, pretrained or fine-tuned
    """
    return load_trained(path).encoder
