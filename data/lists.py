"""Names of objects as collections and their lists write them, and the split each list stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gsmae.errors import InputError

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
ENDINGS = (".ply", ".txt", ".obj", ".off", ".npz", ".glb", ".gltf", ".stl", ".json", ".zip")
CONTAINERS = ("point_cloud", "model", "model_normalized", "models")  # file and folder names that say nothing
SYNSET = re.compile(r"(\d{8})-(.+)")
ITERATION = re.compile(r"iteration_(\d+)")
NUMBERED = re.compile(r"(.+)_\d{4}")  # ModelNet: chair_0001
SUFFIXES = (".txt", ".lst", ".json", ".csv")
MAX_LIST = 256 << 20  # bytes


class Name(NamedTuple):
    """Which object a path or a line of a list means; category and split are "" where it does not say."""

    category: str
    name: str
    split: str = ""

    @property
    def uid(self) -> str:
        return f"{self.category}/{self.name}" if self.category else self.name


def name_of(text: str) -> Name:
    """The object that a path or a line of a list means.

    `03001627-1a2b.ply`, `shape_data/03001627/1a2b`, `chair/train/chair_0001/point_cloud.ply`, `train/chair/a.ply`,
    `chair/a/point_cloud/iteration_30000/point_cloud.ply`, `chair/a.ply`, `chair_0001`, `1a2b`.
    """
    parts = [part for part in text.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        return Name("", "")
    for ending in ENDINGS:
        if parts[-1].lower().endswith(ending) and len(parts[-1]) > len(ending):
            parts[-1] = parts[-1][: -len(ending)]
            break
    while len(parts) > 1 and (parts[-1] in CONTAINERS or ITERATION.fullmatch(parts[-1])):
        parts.pop()
    split = ""
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].lower() in SPLIT_WORDS:
            split = SPLIT_WORDS[parts.pop(at).lower()]
            break
    whole = SYNSET.fullmatch(parts[-1])
    if whole:
        return Name(whole[1], whole[2], split)
    return Name(parts[-2] if len(parts) > 1 else "", parts[-1], split)


def split_of(file: str | Path) -> str:
    """The split that a list's file name speaks of (`modelnet40_train.txt`, `shuffled_val_file_list.json`), or ""."""
    found = {SPLIT_WORDS[w] for w in re.split(r"[^a-z]+", Path(file).stem.lower()) if w in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""


def read_list(file: str | Path) -> list[Name]:
    """The objects of one list, in its order: a line or a JSON string each, or ShapeNet's all.csv.

    The split is what the line says, else what the file's name says. JSON may also be a table split -> list. Raises
    InputError when the file is not such a list.
    """
    file = Path(file)
    cure = "expected one name a line, a JSON list of names, or a CSV with synsetId, modelId and split"
    try:
        if file.stat().st_size > MAX_LIST:
            raise InputError(file, f"has more than {MAX_LIST >> 20} MiB", cure)
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(file, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise InputError(file, "is not text", cure) from None
    return list_of(text, file)


def list_of(text: str, file: str | Path) -> list[Name]:
    """`read_list` of a text that is in memory already."""
    default, suffix = split_of(file), Path(file).suffix.lower()
    if suffix == ".json":
        return list(_of_json(text, file, default))
    lines = [line for line in (line.strip() for line in text.splitlines()) if line and not line.startswith("#")]
    if suffix == ".csv":
        return list(_of_csv(lines, file))
    names = [name_of(line) for line in lines]
    return [n if n.split or not default else n._replace(split=default) for n in names if n.name]


def beside(folder: str | Path) -> list[Path]:
    """Lists that lie where a collection's own do: train.txt, val.txt, test.txt in it, in its parent, or in a folder
    `shapenet_split` of either; the nearest of each name."""
    folder = Path(folder)
    folder = folder if folder.is_dir() else folder.parent
    around = (folder, folder / "shapenet_split", folder.parent, folder.parent / "shapenet_split")
    candidates = ([place / f"{split}.txt" for place in around] for split in SPLITS)
    return [file for files in candidates for file in [next((f for f in files if f.is_file()), None)] if file]


def splits(names: Iterable[Name]) -> dict[str, str]:
    """uid or bare name -> its split; a later entry wins."""
    return {name.uid: name.split for name in names if name.split}


def _of_json(text: str, file: str | Path, default: str) -> Iterable[Name]:
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(file, f"not readable as JSON: {error}") from None
    groups = values.items() if isinstance(values, dict) else [("", values)]
    for key, lines in groups:
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise InputError(file, "is not a list of names, nor a table split -> list")
        for name in map(name_of, lines):
            yield name if name.split else name._replace(split=SPLIT_WORDS.get(key.lower(), default))


def _of_csv(lines: list[str], file: str | Path) -> Iterable[Name]:
    header = [cell.strip().strip('"').lower() for cell in lines[0].split(",")] if lines else []
    if not {"synsetid", "modelid", "split"} <= set(header):
        raise InputError(file, "has no columns synsetId, modelId and split", "ShapeNet's all.csv is read")
    at = [header.index(column) for column in ("synsetid", "modelid", "split")]
    for line in lines[1:]:
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        if len(cells) != len(header):
            raise InputError(file, f"a row has {len(cells)} cells, the header {len(header)}", "is it complete?")
        synset, model, split = (cells[k] for k in at)
        yield Name(synset.zfill(8), model, SPLIT_WORDS.get(split.lower(), ""))
