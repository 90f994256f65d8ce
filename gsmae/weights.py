"""Weights into models, with a report of what fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .errors import InputError


@dataclass(frozen=True)
class LoadReport:
    """What became of each name when weights met a model. Names are ours; unknown released ones are as they were.

    used        copied into the model
    missing     of the model, not among the weights
    unexpected  among the weights, not of the model
    mismatched  in both, with different shapes; not copied
    """

    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def require(self, path: str | Path, prefix: str = "", exact: bool = False) -> LoadReport:
        """This report, if all of the model below `prefix` was loaded; else an InputError that says what was not.

        exact  also refuse weights that the model has no place for
        """
        faults = [f"{n} is missing" for n in self.missing if n.startswith(prefix)]
        faults += [n for n in self.mismatched if n.startswith(prefix)]
        faults += [f"{n} is unknown" for n in self.unexpected if exact and n.startswith(prefix)]
        if faults:
            more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
            raise InputError(path, "; ".join(faults[:4]) + more, "do the configurations match?")
        return self


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], only: str = "") -> LoadReport:
    """Copy into a model what fits by name and shape, and say what did not.

    weights  by our names, of a model of the same or another task
    only     prefix of the names that are looked at, "encoder." to begin a task from another's encoder
    """
    own = {name: value for name, value in model.state_dict().items() if name.startswith(only)}
    given = {name: value for name, value in weights.items() if name.startswith(only)}
    shared = [name for name in own if name in given]
    used = [name for name in shared if own[name].shape == given[name].shape]
    model.load_state_dict({name: given[name] for name in used}, strict=False)
    return LoadReport(
        used=tuple(used),
        missing=tuple(name for name in own if name not in given),
        unexpected=tuple(name for name in given if name not in own),
        mismatched=tuple(
            f"{name} has shape {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in shared
            if own[name].shape != given[name].shape
        ),
    )
