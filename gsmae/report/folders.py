"""Reading folders that may be half written, of another version, or made by someone unkind: what is odd is skipped."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from gsmae.errors import InputError
from gsmae.files import read_json

KINDS = {"build.json": "build", "pack.json": "pack", "run.json": "run"}
LONGEST = 600  # characters of one text on the page
PICTURE = 900  # pixels; a wider picture is made smaller before it goes into the page


def kind_of(folder: str | Path) -> str:
    """ "build", "pack" or "run", by the file that each has; InputError says what was expected."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "name a folder written by gsmae build, pack, pretrain or finetune")
    for name, kind in KINDS.items():
        if (folder / name).is_file():
            return kind
    below = [p.name for p in sorted(folder.iterdir()) if any((p / name).is_file() for name in KINDS)]
    cure = f"did you mean {', '.join(str(folder / b) for b in below[:3])}?" if below else "is the name right?"
    raise InputError(folder, "is neither a build (build.json) nor a pack (pack.json) nor a run (run.json)", cure)


def mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; {} where the file is absent; {} and a problem where it is not one."""
    if not path.exists():
        return {}
    try:
        values = read_json(path)
    except (InputError, OSError) as error:
        problems.append(f"{path.name}: {getattr(error, 'cause', error)}")
        return {}
    if not isinstance(values, dict):
        problems.append(f"{path.name}: not a table of values")
        return {}
    return values


def journal(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in order; lines that are cut off or broken are counted, not read."""
    if not path.exists():
        return []
    rows, broken = [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                row = None
            if isinstance(row, dict) and number(row, "step") is not None:
                rows.append(row)
            elif line.strip():
                broken += 1
    if broken:
        problems.append(f"{path.name}: {broken} broken line{'s' * (broken > 1)} left out")
    return rows


def number(values: dict[str, Any], key: str) -> float | None:
    """A finite number, or None whatever else is there."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of 400 digits
        return None


def text(values: dict[str, Any], key: str) -> str:
    """A text of bounded length, "" where there is none."""
    value = values.get(key)
    return "" if value is None else shorten(str(value))


def shorten(value: str) -> str:
    """At most LONGEST characters."""
    return value if len(value) <= LONGEST else value[:LONGEST] + " …"


def texts(values: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts, () where there is none."""
    value = values.get(key)
    return tuple(shorten(str(v)) for v in value) if isinstance(value, list) else ()


def table(values: dict[str, Any], key: str) -> dict[str, Any]:
    """A table of values below a key, {} where there is none."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def tables(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of tables below a key, [] where there is none."""
    value = values.get(key)
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def as_yaml(value: Any) -> str:
    """Nested plain values for people to read, in their order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).strip() if value else ""


def data_uri(path: Path, problems: list[str]) -> str:
    """A picture as a data URI, "" where there is none; a large one is made smaller, a broken one is a problem."""
    if not path.is_file():
        return ""
    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
            if picture.width * picture.height > 50_000_000:
                raise ValueError(f"{picture.width} x {picture.height} pixels")
            picture.load()
            if picture.width > PICTURE:
                small = picture.convert("RGB")
                small.thumbnail((PICTURE, PICTURE), Image.Resampling.BOX)
                buffer = io.BytesIO()
                small.save(buffer, format="PNG", optimize=True)
                raw = buffer.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problems.append(f"{path.name}: not readable as a picture: {error}")
        return ""
    return "data:image/png;base64," + base64.b64encode(raw).decode("ascii")


def written(files: Iterable[Path]) -> str:
    """From when to when files were written, by their time stamps; "" without files."""
    stamps = [f.stat().st_mtime for f in files if f.exists()]
    if not stamps:
        return ""
    first, last = (datetime.fromtimestamp(s, timezone.utc) for s in (min(stamps), max(stamps)))
    begin = first.strftime("%Y-%m-%d %H:%M")
    if (last - first).total_seconds() < 60:
        return begin + " UTC"
    return f"{begin} to {last.strftime('%H:%M' if last.date() == first.date() else '%Y-%m-%d %H:%M')} UTC"
