"""Results that are read once: kept in the run, shown again when asked again, and not silently replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsmae import zoo
from gsmae.errors import InputError
from gsmae.files import read_json

from .verb import Outcome


def home(found: zoo.Trained) -> Path:
    """Where results of a checkpoint are kept: its run, or itself where it stands alone, as a converted one does."""
    return found.path.parent if (found.path.parent / "run.json").exists() else found.path


def kept_result(file: Path, identity: dict[str, Any], split: str, again: bool) -> dict[str, Any] | None:
    """What `file` holds if it answers the same question, None if the split is to be read now.

    identity  what the question is: checkpoint, data, split, method
    Raises InputError where the test split was read for another question and `again` does not say that this is meant.
    """
    if again or not file.exists():
        return None
    before = read_json(file)
    usual = {"seed": 0}  # of results that older versions kept without it
    there = {key: before.get(key, usual.get(key)) for key in identity} if isinstance(before, dict) else {}
    if there == identity:
        return {**before, "read": "kept result"}
    if split == "test":
        asked = ", ".join(f"{k} {there.get(k)}, now {v}" for k, v in identity.items() if there.get(k) != v)
        cause = f"the test split was read before, for another question ({asked})"
        raise InputError(file, cause, "choose models on val; --again reads test once more")
    return None


def shown(result: dict[str, Any], as_json: bool) -> Outcome:
    """A result as a verb hands it back: numbers and words in lines, tables only as JSON."""
    lines = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items() if not isinstance(v, dict | list)}
    return Outcome(result, 0, as_json, [f"{k}: {v}" for k, v in lines.items()])
