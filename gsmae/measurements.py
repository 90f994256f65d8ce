"""Where what was measured of a run is kept."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError
from .files import read_json


def kept_file(folder: Path, name: str, data: str) -> Path:
    """FOLDER/NAME.json, or where that is of another pack, FOLDER/NAME_DATA.json.

    data  the start of the pack's fingerprint, as the results say it
    """
    plain = folder / f"{name}.json"
    if not plain.is_file():
        return plain
    try:
        found = read_json(plain)
    except InputError:  # whoever reads it will say so
        return plain
    other = isinstance(found, dict) and found.get("data", data) != data
    return folder / f"{name}_{data}.json" if other else plain
