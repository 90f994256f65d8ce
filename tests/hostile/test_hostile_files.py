# ruff: noqa: E501  (a table of cases)
"""Splats, zips, shards, checkpoints, configurations and lists made by hand to do harm: each is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fuzz
import h5py
import numpy as np
import pytest

from data.archives import places
from data.lists import read_list
from data.released import read_released
from data.shardfile import Shard
from data.surface import read_points
from gsmae.config import from_yaml
from gsmae.ply import NEEDED, read_ply, read_ply_bytes
from gsmae.recipes import RECIPES
from gsmae.zoo import load_trained
from preprocessing.parts import read_part_patterns

RUN = RECIPES["pretrain"]["tiny"]


def splat(
    form: str = "binary_little_endian", count: Any = 2, names=NEEDED, body: bytes | None = None, more: str = ""
) -> bytes:
    head = f"ply\nformat {form} 1.0\nelement vertex {count}\n" + "".join(f"property float {n}\n" for n in names) + more
    rows = np.zeros((2, len(names)), "<f4").tobytes() if body is None else body
    return head.encode() + b"end_header\n" + rows


def row(**values: float) -> bytes:
    return np.array([[values.get(name, 0.1) for name in NEEDED]] * 2, "<f4").tobytes()


SPLATS: dict[str, tuple[bytes, str]] = {
    "count of 1e10": (splat(count=10**10), "promises 10000000000"),
    "count of 4e7": (splat(count=40_000_000), "is cut off"),
    "count below zero": (splat(count=-1), "COUNT"),
    "count of a strange digit": (splat(count="\u0662"), "COUNT|cut off|trailing"),
    "text of 4e7": (splat("ascii", 40_000_000, body=b"0 " * 14), "is cut off"),
    "header without end": (splat()[:200], "end_header"),
    "comment of 10 MB": (splat(more="comment " + "x" * 10_000_000 + "\n"), "end_header"),
    "two million comments": (splat(more="comment x\n" * 2_000_000), "end_header"),
    "NaN": (splat(body=row(x=np.nan)), "non-finite x"),
    "infinite scale": (splat(body=row(scale_1=np.inf)), "non-finite scale"),
    "coordinate of 1e16": (splat(body=row(y=1e16)), "too far away or too large"),
    "scale of e^80": (splat(body=row(scale_0=80)), "too far away or too large"),
    "no opacity": (splat(names=[n for n in NEEDED if n != "opacity"]), "'opacity' is missing"),
    "property twice": (splat(names=(*NEEDED, "x")), "named twice"),
    "property that is a list": (splat(more="property list uint float f\n"), "is a list"),
    "second element": (splat(more="element face 10000000000\nproperty float f\n"), "second element"),
    "trailing bytes": (splat(body=bytes(4 * 14 * 2 + 1)), "trailing"),
    "zeros": (bytes(1_000_000), "does not begin"),
    "names that move the cursor": (splat(names=(*NEEDED, "f_rest_\x1b[2J")), "f_rest"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*SPLATS, *(f"{name}, in memory" for name in SPLATS)])
def test_a_splat_that_is_made_to_do_harm_is_refused(name, refusal):
    def act(name: str, folder: Path) -> Any:
        content, _ = SPLATS[name.removesuffix(", in memory")]
        (folder / "a.ply").write_bytes(content)
        return read_ply_bytes(content, folder / "a.ply") if "in memory" in name else read_ply(folder / "a.ply")

    assert re.search(SPLATS[name.removesuffix(", in memory")][1], refusal(act))


def archive(*members: tuple[str, bytes], mode: int = 0, change: Callable[[bytes], bytes] = bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            file.writestr(info, content)
    return change(out.getvalue())


GOOD = splat(body=row())
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "name up": (lambda: archive(("../a.ply", GOOD)), "leads outside"),
    "name up, inside": (lambda: archive(("a/../../a.ply", GOOD)), "leads outside"),
    "name absolute": (lambda: archive(("/etc/a.ply", GOOD)), "absolute"),
    "name of a drive": (lambda: archive(("C:/a.ply", GOOD)), "absolute"),
    "name with backslashes": (lambda: archive(("..\\a.ply", GOOD)), "another system|outside"),
    "name with a zero": (lambda: archive(("axply", GOOD), change=lambda b: b.replace(b"axply", b"a\0ply")), "absolute|damaged|zip"),
    "link": (lambda: archive(("a.ply", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), "link"),
    "device": (lambda: archive(("a.ply", b""), mode=stat.S_IFCHR | 0o777), "link or a special"),
    "bomb": (lambda: archive(("a.ply", bytes(200_000_000))), "unpacks|unpack"),
    "many small bombs": (lambda: archive(*((f"{i}.ply", bytes(1_000_000)) for i in range(40))), "unpack"),
    "name twice": (lambda: archive(("a.ply", GOOD), ("b.ply", GOOD), change=lambda b: b.replace(b"b.ply", b"a.ply")), "two members"),
    "encrypted": (lambda: archive(("a.ply", GOOD), change=lambda b: b.replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1")), "encrypted"),
    "size that lies": (lambda: archive(("a.ply", GOOD), change=lambda b: b.replace(struct.pack("<I", len(GOOD)), b"\xff" * 4)), "."),
    "table cut off": (lambda: archive(("a.ply", GOOD))[:-30], "not readable as a zip"),
    "not a zip": (lambda: bytes(100_000), "not readable as a zip"),
    "name that moves the cursor": (lambda: archive(("../\x1b[2J.ply", GOOD)), r"\\x1b\[2J.*leads outside"),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_that_is_made_to_do_harm_is_refused(name, refusal):
    def act(name: str, folder: Path) -> Any:
        (folder / "a.zip").write_bytes(ZIPS[name][0]())
        for _, place in places(folder / "a.zip"):
            place.read_bytes()
        return read_released(folder / "a.zip")

    assert re.search(ZIPS[name][1], refusal(act))


def _replace(file: h5py.File, name: str, **how: Any) -> None:
    values = file[name][()]
    del file[name]
    file.create_dataset(name, data=values, **how)


def _external_link(file: h5py.File, secret: Path) -> None:
    del file["splats"]
    file["splats"] = h5py.ExternalLink(str(secret), "splats")


def _soft_link(file: h5py.File, secret: Path) -> None:
    del file["points"]
    file["points"] = h5py.SoftLink("/point_normals")


def _external_storage(file: h5py.File, secret: Path) -> None:
    shape = file["splats"].shape
    del file["splats"]
    file.create_dataset("splats", shape, "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(file["splats"].shape, "f4")
    layout[:] = h5py.VirtualSource(str(secret), "splats", shape=file["splats"].shape)
    del file["splats"]
    file.create_virtual_dataset("splats", layout)


def _bomb(name: str, count: int, **how: Any) -> Callable[[h5py.File, Path], None]:
    def act(file: h5py.File, secret: Path) -> None:
        shape, dtype = (count, *file[name].shape[1:]), file[name].dtype
        del file[name]
        file.create_dataset(name, shape, dtype, **how)

    return act


def _vlen(file: h5py.File, secret: Path) -> None:
    del file["uids"]
    file.create_dataset("uids", data=["chair/a"], dtype=h5py.string_dtype())


def _opaque(file: h5py.File, secret: Path) -> None:
    del file["labels"]
    file.create_dataset("labels", data=np.void(b"cos\nsystem\n(S'x'\ntR."))


def _group(file: h5py.File, secret: Path) -> None:
    del file["labels"]
    file.create_group("labels")


SHARDS: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "external link": (_external_link, "link to elsewhere"),
    "soft link": (_soft_link, "link to elsewhere"),
    "external storage": (_external_storage, "other files"),
    "virtual dataset": (_virtual, "other files"),
    "text of any length": (_vlen, "has type"),
    "opaque bytes": (_opaque, "has type"),
    "group for a dataset": (_group, "not a dataset"),
    "1e10 rows that are not there": (_bomb("splats", 10**10, chunks=(1000, 14)), "promises"),
    "1e9 offsets in a chunk of 4 GB": (_bomb("offsets", 10**9, chunks=(500_000_000,), compression="gzip"), "promises|chunks"),
    "filter from elsewhere": (lambda f, s: _replace(f, "labels", chunks=True, scaleoffset=0), "filter"),
    "attribute that is an array": (lambda f, s: f.attrs.__setitem__("seed", np.zeros(10)), "unexpected type"),
    "names that are deep": (lambda f, s: f.attrs.__setitem__("class_names", np.bytes_(b"[" * 60_000)), "not readable"),
    "offsets beyond the rows": (lambda f, s: f["offsets"].__setitem__(1, 2**62), "does not divide"),
    "label beyond the classes": (lambda f, s: f["labels"].__setitem__(0, 99), "label"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_is_made_to_do_harm_is_refused_and_leads_to_no_other_file(name, known, refusal):
    content = known["hdf5"].examples[0]["shard_00000.h5"]

    def act(name: str, folder: Path) -> Any:
        secret = folder.parent / "secret.h5"
        secret.unlink(missing_ok=True)
        secret.write_bytes(content)
        (folder / "a.h5").write_bytes(content)
        with h5py.File(folder / "a.h5", "r+") as file:
            SHARDS[name][0](file, secret)
        secret.chmod(0)
        shard = Shard(folder / "a.h5")
        return [shard.rows(i) for i in range(len(shard))]

    assert re.search(SHARDS[name][1], refusal(act))


@pytest.mark.parametrize("name", ["compressed", "plain"])
def test_a_compressed_shard_that_unpacks_to_very_much_is_refused(name, known, refusal):
    content = known["hdf5"].examples[0]["shard_00000.h5"]

    def act(name: str, folder: Path) -> Any:
        much, how = (4_000_000, {"compression": "gzip"}) if name == "compressed" else (4, {})
        (folder / "a.h5").write_bytes(content)
        with h5py.File(folder / "a.h5", "r+") as file:
            del file["labels"]
            file.create_dataset("labels", data=np.zeros(much, "i8"), **how)
        return Shard(folder / "a.h5")

    assert re.search("promises 32000000" if name == "compressed" else "", refusal(act))


def _state(change: Callable[[dict], Any]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def act(files: dict[str, bytes]) -> dict[str, bytes]:
        state = json.loads(files["state.json"])
        state = change(state) or state
        return {**files, "state.json": json.dumps(state).encode()}

    return act


def _weights(content: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def act(files: dict[str, bytes]) -> dict[str, bytes]:
        state = json.loads(files["state.json"])
        state["sha256"]["weights.safetensors"] = hashlib.sha256(content).hexdigest()
        return {"state.json": json.dumps(state).encode(), "weights.safetensors": content}

    return act


def _header(tree: Any, body: bytes = b"") -> bytes:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + body


TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
CHECKPOINTS: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "width of 1e9": (_state(lambda s: s["model"]["encoder"].update(width=10**9, heads=1)), "'width' is 1000000000|multiple"),
    "depth of 1e9": (_state(lambda s: s["model"]["encoder"].update(depth=10**9)), "'depth'|'width'"),
    "groups of 1e12": (_state(lambda s: s["model"]["encoder"].update(groups=10**12)), "'groups'|groups|points"),
    "task that is a list": (_state(lambda s: s.update(task=["pretrain"])), "unknown task"),
    "hashes that are a list": (_state(lambda s: s.update(sha256=["x"])), "sha256"),
    "schema of another world": (_state(lambda s: s.update(schema=2)), "not a checkpoint"),
    "state that is a list": (_state(lambda s: [s]), "not a checkpoint"),
    "state that is deep": (lambda f: {**f, "state.json": b"[" * 500_000}, "not readable as JSON"),
    "best that leads up": (lambda f: {"best.json": b'{"checkpoint": "../other"}', **{f"../other/{n}": c for n, c in f.items()}}, "no checkpoint of this run"),
    "best that is a list": (lambda f: {"best.json": b"[]"}, "no checkpoint of this run"),
    "header of 2^63 bytes": (_weights(b"\xff" * 7 + b"\x7f" + b"{}"), "safetensors"),
    "header that is deep": (_weights(_header(b'{"a":' * 50_000)), "safetensors"),
    "tensor beyond the file": (_weights(_header({"a": {**TENSOR, "data_offsets": [0, 10**12]}}, bytes(16))), "safetensors"),
    "shape of 1e12": (_weights(_header({"a": {**TENSOR, "shape": [10**6, 10**6]}}, bytes(16))), "safetensors"),
    "shape that overflows": (_weights(_header({"a": {**TENSOR, "shape": [2**32, 2**32, 4]}}, bytes(16))), "safetensors"),
    "tensors one over another": (_weights(_header({"a": TENSOR, "b": TENSOR}, bytes(16))), "safetensors"),
    "other tensors": (_weights(_header({"a": TENSOR}, bytes(16))), "missing|more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_is_made_to_do_harm_is_refused(name, known, refusal):
    def act(name: str, folder: Path) -> Any:
        fuzz.put(folder / "run", CHECKPOINTS[name][0](dict(known["state.json"].examples[0])))
        return load_trained(folder / "run")

    assert re.search(CHECKPOINTS[name][1], refusal(act))


def _yaml(folder: Path, content: bytes) -> Any:
    (folder / "a.yaml").write_bytes(content)
    return from_yaml(type(RUN), folder / "a.yaml"), from_yaml(type(RUN), folder / "a.yaml", RUN)


def _points(folder: Path, content: bytes) -> Any:
    (folder / "a.npz").write_bytes(content)
    return read_points(folder / "a.npz", 2)


def _parts(folder: Path, content: bytes) -> Any:
    (folder / "parts.json").write_bytes(content)
    return read_part_patterns(folder / "parts.json")


def _list(folder: Path, content: bytes, name: str) -> Any:
    (folder / name).write_bytes(content)
    return read_list(folder / name)


def _npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def _npy(shape: str) -> bytes:
    """An .npz whose array says that it is larger than it is."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(24)
    return archive(*((f"{name}.npy", body) for name in ("points", "normals", "colors", "parts")))


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)
TEXTS: dict[str, tuple[Callable[..., Any], bytes, str]] = {
    "YAML of a billion laughs": (_yaml, LAUGHS.encode(), "unknown key"),
    "YAML laughing in place of a value": (_yaml, (LAUGHS + "train: *u\n").encode(), "train"),
    "YAML inside itself": (_yaml, b"train: &a\n  epochs: *a\n", "epochs"),
    "YAML that calls": (_yaml, b"train: !!python/object/apply:os.system ['true']\n", "not readable as YAML"),
    "YAML that is deep": (_yaml, b"[" * 100_000, "not readable as YAML"),
    "YAML of 10 MB": (_yaml, b"a: b\n" * 2_000_000, "may have"),
    "YAML with a number without end": (_yaml, b"train: {epochs: " + b"9" * 10_000 + b"}", "not readable|epochs"),
    "YAML in UTF-16": (_yaml, "train: {}".encode("utf-16-le"), "YAML|mapping|dictionary|object"),
    "YAML of zeros": (_yaml, bytes(1000), "not readable as YAML"),
    "parts that are a list": (_parts, b"[]", "not a table of categories"),
    "parts of a category that are a list": (_parts, b'{"chair": ["leg"]}', "'chair' has a list"),
    "parts without patterns": (_parts, b'{"chair": {"leg": []}}', "'leg' of 'chair' has an empty list"),
    "parts with one pattern for a list": (_parts, b'{"chair": {"leg": "leg*"}}', "'leg' of 'chair' has a text"),
    "parts with a number for a pattern": (_parts, b'{"chair": {"leg": ["a", 1]}}', "has a number where a pattern"),
    "parts with null": (_parts, b'{"chair": null}', "'chair' has null"),
    "parts with an empty name": (_parts, b'{"chair": {" ": ["a"]}}', "is empty"),
    "parts with a pattern of a megabyte": (_parts, json.dumps({"a": {"b": ["*a" * 500_000]}}).encode(), "1000000 characters"),
    "parts that move the cursor": (_parts, b'{"chair\\u001b[2J": {"a": ["b"]}}', "cannot be printed"),
    "parts that are deep": (_parts, b'{"a":' * 200_000, "not readable as JSON"),
    "list that is deep": (partial(_list, name="a.json"), b"[" * 200_000, "not readable as JSON"),
    "list of numbers": (partial(_list, name="a.json"), b"[1, 2]", "not a list of names"),
    "list that is no text": (partial(_list, name="a.txt"), b"\xff\xfe\x00\xd8" * 100, "not text"),
    "table without end": (partial(_list, name="all.csv"), b"synsetId,modelId,split\n1,2\n", "cells"),
    "points with objects": (_points, _npz(points=np.array([{}], dtype=object), normals=1, colors=1, parts=1), "Object arrays|not readable"),
    "points that unpack to much": (_points, _npz(points=np.zeros((30_000_000, 3), "f4")), "unpacks to more"),
    "points of 1e10": (_points, _npy("(10000000000, 3)"), "not readable|more memory"),
    "points of a shape that overflows": (_points, _npy("(4294967296, 4294967296, 4)"), "not readable"),
    "points that are not finite": (
        _points, _npz(points=np.full((2, 3), np.nan, "f4"), normals=np.zeros((2, 3), "f4"), colors=np.zeros((2, 3), "u1"), parts=np.zeros(2, "i2")),
        "non-finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_or_table_that_is_made_to_do_harm_is_refused(name, refusal):
    def act(name: str, folder: Path) -> Any:
        read, content, _ = TEXTS[name]
        return read(folder, content=content)

    assert re.search(TEXTS[name][2], refusal(act))
