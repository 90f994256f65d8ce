"""From a table to runs: every arm and seed is a pretraining, perhaps shared, and a fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from .. import recipes
from ..config import Config, digest, from_mapping, merged
from ..errors import InputError, nearest_name
from .tables import Arm, Base, Table


@dataclass(frozen=True)
class Data:
    """A pack: where it lies and what it holds (the start of its fingerprint)."""

    path: Path
    hash: str


@dataclass(frozen=True)
class Step:
    """One run.

    kind    "pretrain", or a task
    config  the whole configuration; a fine-tuned run's `spec` and encoder are those of `init`. A probe trains nothing:
            it has the configuration and the folder of `init`
    init    the run to begin with, or None
    name    of the arm that asked for it first; part of the folder's name, not of the identity
    method  of a probe or of few-shot learning; `more` are the settings of its folds
    """

    kind: str
    config: Config
    data: Data
    init: Step | None
    name: str
    method: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def train(self) -> Any:
        """Its TrainConfig."""
        return cast(Any, self.config).train

    @property
    def digest(self) -> str:
        """What the run is: equal for equal task, configuration (with the seed), data and initial run."""
        about = {"kind": self.kind, "data": self.data.hash, "init": self.init.digest if self.init else ""}
        return digest(self.config, {**about, **({"method": self.method, **self.more} if self.method else {})})

    @property
    def asked(self) -> dict[str, Any]:
        """The configuration to hand to the verb: without what the initial run decides."""
        values = self.config.model_dump(mode="json")
        if self.init:
            del values["spec"], values["model"]["encoder"]
        return values

    def folder(self, runs: Path) -> Path:
        """Its folder below `runs`: the one that is there, whatever arm made it, or a new name."""
        if self.kind == "probe" and self.init:
            return self.init.folder(runs)
        here = sorted(runs.glob(f"*-{self.digest}")) if runs.is_dir() else []
        short = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")
        return here[0] if here else runs / f"{self.kind}-{short}-s{self.train.seed}-{self.digest}"


@dataclass(frozen=True)
class Wanted:
    """What one cell of the table needs, or why it cannot be had."""

    arm: Arm
    seed: int
    finetune: Step | None
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """A table's cells, and the runs in an order in which each comes after the one it begins with."""

    table: Table
    cells: tuple[Wanted, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every run once, seed by seed, so that whole columns of a first seed come early."""
        found: dict[str, Step] = {}
        for cell in self.cells:
            for step in (cell.finetune and cell.finetune.init, cell.finetune):
                if step is not None:
                    found.setdefault(step.digest, step)
        return tuple(found.values())


def plan(
    table: Table,
    seeds: Sequence[int],
    data: Mapping[str, Data],
    *,
    recipe: str,
    base: Base | None = None,
    arms: Sequence[str] = (),
) -> Plan:
    """Resolve every arm and seed to runs.

    data    "splats", and where there are any "points", "pretrain-splats", "pretrain-points"
    recipe  a name of `recipes.RECIPES`
    base    overrides of all arms
    arms    only these; none: all
    An arm whose configuration is not valid, or whose data are not there, is a cell with a problem. Raises InputError
    for an arm's name that the table does not have.
    """
    known = [arm.name for arm in table.arms]
    for name in arms:
        if name not in known:
            raise InputError("--limit-arms", f"no arm is called '{name}'", nearest_name(name, known))
    chosen = [arm for arm in table.arms if not arms or arm.name in arms]
    cells, base = [], base or Base()
    for seed in seeds:
        for arm in chosen:
            try:
                cells.append(Wanted(arm, seed, _runs(arm, seed, data, recipe, base)))
            except InputError as error:
                cells.append(Wanted(arm, seed, None, str(error)))
    return Plan(table, tuple(cells))


def _runs(arm: Arm, seed: int, data: Mapping[str, Data], recipe: str, base: Base) -> Step:
    if arm.input not in data:
        raise InputError(arm.name, "needs points instead of splats", "name their pack with --points")
    if arm.pretrained and (arm.finetune.get("spec") or arm.finetune.get("model", {}).get("encoder")):
        raise InputError(arm.name, "`finetune` names spec or model.encoder", "they come from pretraining: use `shared`")
    for name in ("classify", "segment") if arm.pretrained else ():
        own = getattr(base, name)
        if own.get("spec") or own.get("model", {}).get("encoder"):
            raise InputError("--config", f"`{name}` names spec or model.encoder, but '{arm.name}' is pretrained",
                             "they come from pretraining: use `shared`")  # fmt: skip
    here, seeded = data[arm.input], {"train": {"seed": seed}}
    init = None
    if arm.pretrained:
        there = data.get(f"pretrain-{arm.input}", here)
        if arm.input == "points" and "pretrain-splats" in data and "pretrain-points" not in data:
            raise InputError(arm.name, "pretrains on points", "name their pack with --pretrain-points")
        config = _config(arm, "pretrain", recipe, base.shared, base.pretrain, arm.shared, arm.pretrain, seeded)
        init = Step("pretrain", config, there, None, arm.name)
    if arm.task == "probe" and init:
        return Step("probe", init.config, here, init, arm.name, arm.method or "svm")
    if arm.task == "pointnet2":
        own = [{k: v for k, v in values.items() if k != "model"} for values in (base.shared, arm.shared)]
        config = _config(arm, arm.task, recipe, own[0], base.pointnet2, own[1], arm.finetune, seeded)
        return Step(arm.task, config, here, None, arm.name)
    kind = "segment" if arm.task == "segment" else "classify"
    own = (base.classify if kind == "classify" else base.segment, arm.finetune, seeded)
    shared = (base.shared, arm.shared)
    if init:
        shared = tuple(_without_inherited(values) for values in shared)
    config = _config(arm, kind, recipe, shared[0], own[0], shared[1], *own[1:])
    if arm.task == "fewshot":
        return Step("fewshot", config, here, init, arm.name, arm.method or "full", base.folds)
    return Step(arm.task, config, here, init, arm.name)


def _config(arm: Arm, kind: str, recipe: str, *overrides: dict[str, Any]) -> Config:
    found: Config = recipes.RECIPES[kind][recipe]
    values = found.model_dump(mode="json")
    for over in overrides:
        values = merged(values, over)
    return from_mapping(type(found), values, f"{arm.name}, {kind}")


def _without_inherited(values: dict[str, Any]) -> dict[str, Any]:
    left = {key: value for key, value in values.items() if key != "spec"}
    if isinstance(left.get("model"), dict):
        left["model"] = {key: value for key, value in left["model"].items() if key != "encoder"}
    return left
