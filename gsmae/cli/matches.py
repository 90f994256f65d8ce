"""Whether a pack suits a task, and whether it is one that a trained run can be measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsmae import zoo
from gsmae.errors import InputError


def part_names(dataset: Any) -> list[str]:
    """Names of the global parts, "category/part"."""
    return [f"{category}/{part}" for category, names in dataset.part_names.items() for part in names]


def no_empty_class(dataset: Any) -> None:
    """Refuse classes that nothing can be learned of."""
    there = set(dataset.labels.tolist())
    empty = [name for label, name in enumerate(dataset.class_names) if label not in there]
    if empty:
        some = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        cause = f"the split 'train' has no object of {len(empty)} of {len(dataset.class_names)} classes: {some}"
        raise InputError(dataset.path, cause, "name the others with --classes, or pack with other splits")


def same_classes(found: zoo.Trained, path: Path, split: str) -> tuple[Any, int]:
    """The split that a run can be measured on, and how many of its objects its classes leave out.

    Raises InputError where the pack has not the classes and parts that the run was trained for.
    """
    from data.datasets import SplatDataset

    if found.task == "pretrain":
        return SplatDataset(path, split=split), 0
    whole = SplatDataset(path, split=split)
    classes = found.state.get("classes") or list(whole.class_names)
    _same(path, found.path, "classes", whole.class_names, found.state.get("pack_classes") or classes)
    dataset = SplatDataset(path, split=split, classes=classes)
    _same(path, found.path, "parts", part_names(dataset), found.state.get("parts") or part_names(dataset))
    return dataset, len(whole) - len(dataset)


def _same(path: Path, run: Path, what: str, ours: Any, theirs: Any) -> None:
    """Refuse names that differ, and say in what."""
    if list(ours) == list(theirs):
        return
    sides = [(path, [n for n in ours if n not in theirs]), (run, [n for n in theirs if n not in ours])]
    told = [
        f"only in {side}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" for side, names in sides if names
    ]
    cause = f"its {len(ours)} {what} are not the {len(theirs)} of {run}; {'; '.join(told) or 'their order differs'}"
    raise InputError(path, cause, "measure a run on a pack of the collection that it was trained on")
