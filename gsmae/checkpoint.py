"""Checkpoints: safetensors and JSON in one folder that is either whole or absent; nothing is ever unpickled.

RUN/step_00001200/weights.safetensors     the model's parameters and buffers, for use: their average where one was kept
                  live.safetensors        those that training goes on from; only where they are not the same
                  optimizer.safetensors   AdamW moments, by parameter name (absent from an exported model)
                  state.json              task, model and feature configuration, progress, sha256 of the above
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .averages import Average
from .errors import InputError
from .files import read_json, sha256, write_folder_aside

log = logging.getLogger(__name__)

SCHEMA = 1
PREFIX = "step_"
WEIGHTS, LIVE, OPTIMIZER = "weights.safetensors", "live.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: `state` is everything from state.json, optimizer is empty for an exported model.

    weights  for use
    live     what training goes on from, where an average is used; else empty
    """

    path: Path
    state: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    live: dict[str, Tensor]


def save(
    path: str | Path,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    average: Average | None = None,
) -> None:
    """Write one checkpoint folder, whole or not at all.

    state    plain values; what is needed to build the model again and to go on
    average  of the model's weights; where there is one it is what the checkpoint holds for use
    """
    with write_folder_aside(path) as folder:
        files = {WEIGHTS: _tensors(model)}
        if average is not None:
            files = {WEIGHTS: _tensors(average.module), LIVE: _tensors(model)}
            state = {**state, "averaged": int(average.updates)}
        if optimizer is not None:
            files[OPTIMIZER] = optimizer_tensors(model, optimizer)
        for name, tensors in files.items():
            save_file(tensors, folder / name)
        hashes = {name: sha256(folder / name) for name in files}
        (folder / "state.json").write_text(
            json.dumps({"schema": SCHEMA, **state, "sha256": hashes}, indent=1) + "\n", encoding="utf-8"
        )


def read_state(path: str | Path) -> dict[str, Any]:
    """state.json of one checkpoint, its schema checked."""
    state = read_json(Path(path) / "state.json")
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise InputError(path, "not a checkpoint of this version", f"schema {SCHEMA} is expected")
    if not isinstance(state.get("sha256", {}), dict):
        raise InputError(Path(path) / "state.json", "'sha256' is not a table of hashes", "the file is damaged")
    return state


def load(path: str | Path, *, with_optimizer: bool = False) -> Checkpoint:
    """Read one checkpoint folder; every file is compared with its hash first.

    with_optimizer  also what only training needs
    Raises InputError naming the file that is missing, cut off or altered.
    """
    path = Path(path)
    state = read_state(path)
    tensors: dict[str, dict[str, Tensor]] = {WEIGHTS: {}, LIVE: {}, OPTIMIZER: {}}
    names = [WEIGHTS]
    if with_optimizer:
        names += [OPTIMIZER] + [LIVE] * ("averaged" in state)
    for name in names:
        file = path / name
        if not file.exists():
            raise InputError(file, "no such file")
        if sha256(file) != state.get("sha256", {}).get(name):
            raise InputError(file, "does not match its hash in state.json", "the file is cut off or altered")
        try:
            tensors[name] = load_file(file)
        except SafetensorError as error:
            raise InputError(file, f"not readable as safetensors: {error}") from None
    return Checkpoint(path, state, tensors[WEIGHTS], tensors[OPTIMIZER], tensors[LIVE])


def steps(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(p for p in Path(run).glob(PREFIX + "*") if p.is_dir())


def newest(run: str | Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, with its optimiser; broken ones are passed over, and it is said."""
    for path in reversed(steps(run)):
        try:
            return load(path, with_optimizer=True)
        except InputError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
    return None


def find(path: str | Path) -> Path:
    """The checkpoint that a path stands for: itself, or of a run the one in best.json, else the newest.

    Raises InputError where there is none.
    """
    path = Path(path)
    if (path / "state.json").exists():
        return path
    if (path / "best.json").exists():
        said = read_json(path / "best.json")
        name = said.get("checkpoint") if isinstance(said, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.strip(".") == "":
            raise InputError(path / "best.json", "names no checkpoint of this run", "the file is damaged")
        best = path / name
        if (best / "state.json").exists():
            return best
    for step in reversed(steps(path)):
        if (step / "state.json").exists():
            return step
    raise InputError(path, "no checkpoint here", f"expected a run folder with {PREFIX}* or a folder with state.json")


def thin(run: str | Path, keep: int, also: str) -> None:
    """Remove all but the newest `keep` checkpoints and the one named `also`."""
    for path in steps(run)[:-keep]:
        if path.name != also:
            shutil.rmtree(path)


def restore(
    found: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None = None
) -> None:
    """Put everything back where `save` found it."""
    model.load_state_dict(found.live or found.weights)
    if average is not None:
        average.module.load_state_dict(found.weights)
        average.updates = int(found.state["averaged"])
    restore_optimizer(model, optimizer, found.optimizer)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: "PARAMETER/exp_avg" and so on."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    out = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            out[f"{names[parameter]}/{key}"] = torch.as_tensor(value).contiguous()
    return out


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took out, and nothing else."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        target = parameters[name]
        optimizer.state[target][slot] = value.to(target.device)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.contiguous() for k, v in model.state_dict().items()}
