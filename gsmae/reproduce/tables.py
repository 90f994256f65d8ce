"""The paper's tables as data: a row is an arm, what it changes in a recipe, and the number that the paper gives.

The numbers are those of arXiv 2408.10906. Where it gives none, there is none: re-runs by others are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..config import Config, from_mapping, from_yaml
from ..errors import InputError, nearest_name

TaskName = Literal["classify", "pointnet2", "segment", "probe", "fewshot"]
METRICS: dict[str, tuple[str, ...]] = {  # the first is the one that is compared; few-shot's are its ways and shots
    "classify": ("accuracy", "class_accuracy"),
    "segment": ("instance_iou", "class_iou"),
    "probe": ("accuracy", "class_accuracy"),
    "fewshot": (),
}


class Arm(Config):
    """One row of a table. Overrides are parts of a run's configuration, as in its config.yaml."""

    name: str
    task: TaskName = "classify"
    """what is measured: fine-tuned, or by `gsmae probe` and `gsmae fewshot`; pointnet2 stands among classify"""
    method: Literal["full", "linear", "svm", "knn"] | None = None
    """of probe (none: svm) and fewshot (none: full)"""
    input: Literal["splats", "points"] = "splats"
    """points: the packs of --points and --pretrain-points instead"""
    pretrained: bool = True
    """False: trained from scratch"""
    shared: dict[str, Any] = Field(default_factory=dict)
    """overrides of every run of the arm; `spec` and `model.encoder` reach fine-tuning through the pretrained run"""
    pretrain: dict[str, Any] = Field(default_factory=dict)
    """overrides of pretraining"""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """overrides of fine-tuning"""
    paper: dict[str, float] = Field(default_factory=dict)
    """data set -> the paper's percentage: accuracy, or mean IoU over instances"""

    @model_validator(mode="after")
    def _fits(self) -> Arm:
        if self.task == "probe" and (not self.pretrained or self.method == "full"):
            raise ValueError("'probe' needs a pretrained run and one of the methods linear, svm, knn")
        if self.task == "pointnet2" and self.pretrained:
            raise ValueError("'pointnet2' has nothing that is pretrained: say pretrained: false")
        if self.method is not None and self.task in ("classify", "pointnet2", "segment"):
            raise ValueError(f"'method' is not for {self.task}: use finetune: {{model: {{protocol: ...}}}}")
        return self

    @property
    def kind(self) -> str:
        """Which arms it can be compared with, a key of METRICS."""
        return "classify" if self.task == "pointnet2" else self.task


class Table(Config):
    """Arms that are read together."""

    about: str
    """what is compared, in one line"""
    against: tuple[str, ...] = ()
    """the arms that the others of the same task are compared with, seed by seed; one of each task"""
    arms: tuple[Arm, ...] = Field(min_length=1)

    @field_validator("arms")
    @classmethod
    def _names(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        names = [arm.name for arm in arms]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two arms are called {', '.join(map(repr, twice))}")
        return arms

    @model_validator(mode="after")
    def _known(self) -> Table:
        tasks = {arm.name: arm.kind for arm in self.arms}
        for name in self.against:
            if name not in tasks:
                raise ValueError(f"'against': no arm is called '{name}' ({nearest_name(name, tasks)})")
        if len({tasks[name] for name in self.against}) < len(self.against):
            raise ValueError(f"'against': {', '.join(self.against)}: two arms of one task")
        return self


class Base(Config):
    """What every arm of a table has in common, beside the recipe; the arms' own overrides win over it."""

    shared: dict[str, Any] = Field(default_factory=dict)
    """overrides of all runs, e.g. {spec: ..., model: {encoder: ...}}"""
    pretrain: dict[str, Any] = Field(default_factory=dict)
    classify: dict[str, Any] = Field(default_factory=dict)
    segment: dict[str, Any] = Field(default_factory=dict)
    pointnet2: dict[str, Any] = Field(default_factory=dict)
    """of PointNet++, which has a model of its own: `model` of what is shared is not for it"""
    folds: dict[str, Any] = Field(default_factory=dict)
    """ways, shots, queries and folds of few-shot learning, where they are not the usual ones"""


def read_base(path: Path | None) -> Base:
    """The file of --config, or nothing. Raises InputError that names the file and the key."""
    return Base() if path is None else from_yaml(Base, path)


def read_table(name: str) -> Table:
    """A table of TABLES by its name, or a YAML file of the same form. Raises InputError."""
    if name in TABLES:
        return TABLES[name]
    if name.endswith((".yaml", ".yml")):
        return from_yaml(Table, name)
    raise InputError(name, "no such table", f"{nearest_name(name, TABLES)}, or a .yaml file of your own")


def _arms(*rows: dict[str, Any]) -> tuple[Arm, ...]:
    return tuple(from_mapping(Arm, row) for row in rows)


def _e(*fields: str) -> dict[str, Any]:
    return {"spec": {"embed": ["means", *fields]}}


def _g(*fields: str) -> dict[str, Any]:
    return {"spec": {"group": list(fields)}}


def _size(gaussians: int, groups: int) -> dict[str, Any]:
    return {"train": {"gaussians": gaussians}, "model": {"encoder": {"groups": groups, "points": gaussians}}}


_ALL = ("means", "opacities", "scales", "quats", "sh")
_PLAIN = {"model": {"encoder": {"pooling": False}}}

TABLES: dict[str, Table] = {
    "embedding": Table(
        about="which fields are embedded, E(.); full fine-tuning",
        against=("E(All)",),
        arms=_arms(
            {"name": "E(C)", "shared": _e(), "paper": {"modelnet10": 93.72, "modelnet40": 91.77}},
            {"name": "E(C,O)", "shared": _e("opacities"), "paper": {"modelnet10": 93.83, "modelnet40": 91.78}},
            {"name": "E(C,SH)", "shared": _e("sh"), "paper": {"modelnet10": 93.83, "modelnet40": 92.41}},
            {"name": "E(C,S,R)", "shared": _e("scales", "quats"), "paper": {"modelnet10": 94.27, "modelnet40": 93.19}},
            {
                "name": "E(O,C,S,R)",
                "shared": _e("opacities", "scales", "quats"),
                "paper": {"modelnet10": 95.48, "modelnet40": 92.42},
            },
            {"name": "E(All)", "paper": {"modelnet10": 95.37, "modelnet40": 93.35}},
        ),
    ),
    "grouping": Table(
        about="which fields are grouped by, G(.), with and without splat pooling (the paper's numbers are not known)",
        against=("G(C), pooling",),
        arms=_arms(
            {"name": "G(C), pooling"},
            {"name": "G(C), no pooling", "shared": _PLAIN},
            {"name": "G(C,O), pooling", "shared": _g("means", "opacities")},
            {"name": "G(C,S,R), pooling", "shared": _g("means", "scales", "quats")},
            {"name": "G(C,SH), pooling", "shared": _g("means", "sh")},
            {"name": "G(All), pooling", "shared": _g(*_ALL)},
            {"name": "G(All), no pooling", "shared": {**_g(*_ALL), **_PLAIN}},
        ),
    ),
    "masks": Table(
        about="share and kind of the hidden groups; 0.2 to 0.8 were tried, 0.6 is the paper's",
        against=("random 0.6",),
        arms=_arms(
            *({"name": f"random {r}", "pretrain": {"model": {"mask_ratio": r}}} for r in (0.2, 0.4, 0.6, 0.8)),
            *(
                {"name": f"block {r}", "pretrain": {"model": {"mask_ratio": r, "mask": "block"}}}
                for r in (0.2, 0.4, 0.6, 0.8)
            ),
        ),
    ),
    "splats": Table(
        about="Gaussians per object, in all runs (the paper, table E.1); how many groups 2k and 8k have is our choice",
        against=("1024",),
        arms=_arms(
            {"name": "1024", "shared": _size(1024, 64), "paper": {"modelnet10": 95.37, "modelnet40": 93.35}},
            {"name": "2048", "shared": _size(2048, 128), "paper": {"modelnet10": 93.29, "modelnet40": 92.29}},
            {"name": "4096", "shared": _size(4096, 128), "paper": {"modelnet10": 94.82, "modelnet40": 93.02}},
            {"name": "8192", "shared": _size(8192, 256), "paper": {"modelnet10": 95.26, "modelnet40": 93.05}},
        ),
    ),
    "frozen": Table(
        about="what is trained: everything, or a head on the frozen encoder",
        against=("full",),
        arms=_arms(
            {"name": "full", "paper": {"modelnet10": 95.37, "modelnet40": 93.35}},
            {
                "name": "MLP-3",
                "finetune": {"model": {"protocol": "mlp3"}},
                "paper": {"modelnet10": 95.26, "modelnet40": 92.74},
            },
            {"name": "linear", "finetune": {"model": {"protocol": "linear"}}},
            {"name": "from scratch", "pretrained": False},
            {"name": "PointNet++ from scratch", "task": "pointnet2", "pretrained": False, "shared": _e()},
        ),
    ),
    "probe": Table(
        about="frozen features by simple classifiers: what pretraining alone has learned",
        against=("E(All), svm",),
        arms=_arms(
            {"name": "E(All), svm", "task": "probe"},
            {"name": "E(All), linear", "task": "probe", "method": "linear"},
            {"name": "E(All), knn", "task": "probe", "method": "knn"},
            {"name": "E(C), svm", "task": "probe", "shared": _e()},
            {  # an epoch at rate zero is for BatchNorm's running statistics: too few steps for them in a small pack
                "name": "random weights, svm",
                "task": "probe",
                "pretrain": {"train": {"lr": 0, "lr_end": 0, "epochs": 1}},
            },
        ),
    ),
    "fewshot": Table(
        about="few-shot learning, 10 folds of each setting (the paper's own numbers are not known)",
        arms=_arms(
            {"name": "E(All)", "task": "fewshot"},
            {"name": "E(C)", "task": "fewshot", "shared": _e()},
            {"name": "E(All), frozen, linear", "task": "fewshot", "method": "linear"},
            {"name": "from scratch", "task": "fewshot", "pretrained": False},
        ),
    ),
    "segmentation": Table(
        about="part segmentation, all of E(.); the paper's own numbers are not known",
        against=("E(All)",),
        arms=_arms(
            {"name": "E(C)", "task": "segment", "shared": _e()},
            {"name": "E(C,S,R)", "task": "segment", "shared": _e("scales", "quats")},
            {"name": "E(All)", "task": "segment"},
            {"name": "E(All), no pooling", "task": "segment", "shared": _PLAIN},
            {"name": "from scratch", "task": "segment", "pretrained": False},
        ),
    ),
}
