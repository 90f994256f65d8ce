"""Sections to one HTML page: the template escapes every text, and nothing in it points outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .builds import BuildSection
from .packs import PackSection
from .runs import RunSection

Section = BuildSection | PackSection | RunSection


def render_page(sections: Sequence[Any], *, note: str, made: str) -> str:
    """The whole page as text; `made` says when and by what."""
    environment = Environment(
        loader=PackageLoader("gsmae.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["known"] = _known
    runs = [s for s in sections if s.kind == "run"]
    return environment.get_template("page.html.j2").render(
        sections=[(f"s{i}", s) for i, s in enumerate(sections, 1)],
        title=f"gsmae report: {sections[0].title}" if len(sections) == 1 else "gsmae report",
        note=note,
        made=made,
        comparison=_comparison(runs) if len(runs) > 1 else None,
    )


def _known(value: float | None, form: str = ",.0f") -> str:
    """A number in the given format, an en dash where it is not known."""
    return "–" if value is None else format(value, form)


def _comparison(runs: Sequence[RunSection]) -> list[tuple[str, ...]]:
    """All runs in one table: name, task, encoder, best checkpoint on validation, what was read of the test split."""
    rows = []
    for r in runs:
        test = [_words(e.numbers) for e in r.evaluations if e.split == "test"]
        origin = dict(r.facts).get("encoder from", "–")
        rows.append((r.title, r.task, origin, _words(r.best) or r.state, test[0] if test else "not read"))
    return rows


def _words(numbers: list[tuple[str, str]]) -> str:
    """The metrics that are scores; the loss where there is no score."""
    scores = [f"{name} {value}" for name, value in numbers if name != "objects" and not name.startswith("loss")]
    return ", ".join(scores or [f"{name} {value}" for name, value in numbers if name == "loss"])
