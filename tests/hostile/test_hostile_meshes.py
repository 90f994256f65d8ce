"""Meshes made by hand to do harm: each is refused by name or read without what it should not have, within limits."""

# ruff: noqa: E501  (a table of cases)
from __future__ import annotations

import base64
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import fuzz
import fuzz_seeds as seeds
import numpy as np
import pytest
from PIL import Image

from preprocessing.meshes import load_mesh
from preprocessing.surface import sample_surface

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nusemtl m\nf 1/1 2/2 3/3\n"
RED = np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8)
Make = Callable[[Path], Path]


def png(side: int, *extra: bytes, rows: int | None = None) -> bytes:
    """A PNG of side x side pixels, all alike, of a few kilobytes; extra chunks before its pixels, few rows of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(1)
    packed = [packer.compress(bytes(1 + 3 * side)) for _ in range(side if rows is None else rows)]
    body = b"".join(packed) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def textured(name: str, outside: str = "") -> Make:
    """An OBJ whose material names a texture; a red picture lies outside of its folder."""

    def make(folder: Path) -> Path:
        Image.fromarray(RED).save(folder / "secret.png")
        home = folder / "object"
        home.mkdir()
        (home / "a.mtl").write_text("newmtl m\nKd 0 1 0\nmap_Kd " + name.format(folder) + "\n")
        (home / "a.obj").write_text(f"mtllib a.mtl\n{SQUARE}")
        if outside == "link":
            (home / "link.png").symlink_to("../secret.png")
        if outside == "folder":
            (home / "up").symlink_to("..")
        if outside == "pipe":
            os.mkfifo(home / "pipe.png")
        if outside == "device":
            (home / "zero.png").symlink_to("/dev/zero")
        return home / "a.obj"

    return make


def pictured(content: bytes) -> Make:
    """An OBJ with this picture beside it."""

    def make(folder: Path) -> Path:
        (folder / "a.png").write_bytes(content)
        (folder / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
        (folder / "a.obj").write_text(f"mtllib a.mtl\n{SQUARE}")
        return folder / "a.obj"

    return make


def file(name: str, content: str | bytes | Callable[[], str | bytes]) -> Make:
    """One file."""

    def make(folder: Path) -> Path:
        body = content() if callable(content) else content
        (folder / name).write_bytes(body if isinstance(body, bytes) else body.encode())
        return folder / name

    return make


def library(lines: str, link: bool = False) -> Make:
    """An OBJ with these lines in front; a library with a red material lies outside of its folder."""

    def make(folder: Path) -> Path:
        (folder / "b.mtl").write_text("newmtl m\nKd 1 0 0\n")
        home = folder / "object"
        home.mkdir()
        (home / "a.obj").write_text(lines.format(folder) + SQUARE)
        if link:
            (home / "link.mtl").symlink_to("../b.mtl")
        return home / "a.obj"

    return make


def gltf(change: Callable[[dict], object]) -> Make:
    """The example scene as .gltf after a change of its JSON; a file that none may read lies outside of its folder."""

    def make(folder: Path) -> Path:
        files = seeds.gltf()
        tree = json.loads(files["a.gltf"])
        tree = change(tree) or tree
        files["a.gltf"] = json.dumps(tree).encode()
        (folder / "secret.bin").write_bytes(files["a.bin"])
        fuzz.put(folder / "object", files)
        return folder / "object" / "a.gltf"

    return make


def buffer(uri: str) -> Make:
    """The scene with another buffer; {} is the folder outside."""

    def make(folder: Path) -> Path:
        return gltf(lambda j: j["buffers"][0].update(uri=uri.format(folder)))(folder)

    return make


def repeated(nodes: int, count: int) -> Callable[[], bytes]:
    """A GLB of many nodes that show one triangle of a long array of zeros."""

    def build() -> bytes:
        s = seeds.Scene()
        index = s.array([0, 1, 2], "<u2")
        s.json["accessors"].append({"componentType": 5126, "count": count, "type": "VEC3"})
        s.json["meshes"] = [{"primitives": [{"attributes": {"POSITION": 1}, "indices": index}]}]
        s.json["nodes"] = [{"mesh": 0}] * nodes
        s.json["scenes"] = [{"nodes": list(range(nodes))}]
        return seeds.glb(s)

    return build


def chunks() -> bytes:
    """A GLB whose chunk is said to have 4 GB."""
    content = seeds.glb()
    return content[:12] + struct.pack("<I", 2**32 - 1) + content[16:]


def dae(head: str = "", old: str = "", new: str = "") -> str:
    """The example scene with a document type, or something else replaced."""
    text = seeds.DAE.replace(old, new) if old else seeds.DAE
    return text.replace("<COLLADA", head + "<COLLADA", 1)


LAUGHS = "<!DOCTYPE x [<!ENTITY a '" + "ha" * 50 + "'>" + "".join(
    f"<!ENTITY {chr(98 + i)} '{('&' + chr(97 + i) + ';') * 10}'>" for i in range(9)
) + "]>"  # fmt: skip
EBCDIC = b'<?xml version="1.0" encoding="cp037"?>' + (LAUGHS + seeds.DAE.split("?>")[1]).encode("cp037")
TREE = "".join(f"DEF N{i} Group {{ children [ USE N{i - 1} USE N{i - 1} ] }}\n" for i in range(1, 40))
SHAPE = "Shape { geometry IndexedFaceSet { coord Coordinate { point [0 0 0 1 0 0 0 1 0] } coordIndex [0 1 2 -1] } }"
SLOW = {
    "picture of 8192",
    "hundred thousand groups",
    "hundred thousand unknown materials",
    "line of 2 MB",
    "mtllib again and again",
    "PLY comment of 50 MB",
    "GLB one long array, 20000 times",
    "VRML of 2^39 nodes",
    "DAE of 200000 levels",
    "VRML points that none uses",
    "polygon of 12000 corners",
    "DAE of many nodes",
    "VRML of brackets",
    "STL of facets without corners",
    "picture with a bomb of text",
}  # of the processor: some seconds
STAR = [
    (np.cos(a) * r, np.sin(a) * r) for a, r in zip(np.linspace(0, 6.28, 12_000), np.tile([1, 0.5], 6000), strict=True)
]
PLY = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
FACE = "element face {}\nproperty list {} int vertex_indices\nend_header\n"


def many_nodes(count: int) -> str:
    """A scene of nodes that each show the geometry again."""
    return dae("", '<instance_node url="#n"/>', '<instance_node url="#n"/>' * count)


# name -> (how it is made, what the error says; or "" where it is read without harm and the warning says it)
CASES: dict[str, tuple[Make, str, str]] = {
    "map_Kd up": (textured("../secret.png"), "", "outside"),
    "map_Kd up twice": (textured("x/../../secret.png"), "", "outside"),
    "map_Kd absolute": (textured("{}/secret.png"), "", "outside"),
    "map_Kd file": (textured("file://{}/secret.png"), "", "missing|outside"),
    "map_Kd http": (textured("http://127.0.0.1/secret.png"), "", "missing"),
    "map_Kd share": (textured("\\\\server\\share\\secret.png"), "", "outside|missing"),
    "map_Kd backslash": (textured("..\\secret.png"), "", "outside"),
    "map_Kd link": (textured("link.png", "link"), "", "outside"),
    "map_Kd linked folder": (textured("up/secret.png", "folder"), "", "outside"),
    "map_Kd pipe": (textured("pipe.png", "pipe"), "", "missing"),
    "map_Kd device": (textured("zero.png", "device"), "", "outside"),
    "map_Kd passwd": (textured("/etc/passwd"), "", "outside"),
    "mtllib up": (library("mtllib ../b.mtl\n"), "", "outside"),
    "mtllib absolute": (library("mtllib {}/b.mtl\n"), "", "outside"),
    "mtllib link": (library("mtllib link.mtl\n", link=True), "", "outside"),
    "mtllib very many": (library("mtllib " + " ".join(f"{i}.mtl" for i in range(20_000)) + "\n"), "more than 5000", ""),
    "mtllib again and again": (library("mtllib c.mtl\n" * 100_000), "", "missing"),
    "names that move the cursor": (library("mtllib \x1b[2J\x07.mtl\n"), "", r"\\x1b\[2J\\x07\.mtl"),
    "picture of 16384": (pictured(png(16384, rows=1)), "unpacks to too much", ""),
    "picture of 8192": (pictured(png(8192)), "", ""),
    "picture of 9000": (pictured(png(9000, rows=1)), "9000 x 9000", ""),
    "picture with a bomb of text": (
        pictured(png(2, struct.pack(">I", 97_000) + b"zTXtk\0\0" + zlib.compress(bytes(99_000_000), 9)[:96_997] + b"crc!")),
        "", "not readable",
    ),
    "hundred thousand groups": (
        file("a.obj", SQUARE + "".join(f"g {i}\nusemtl {i}\nf 1/1 2/2 3/3\n" for i in range(100_000))), "", "",
    ),
    "hundred thousand unknown materials": (
        library("mtllib a.mtl\n" + "".join(f"usemtl {i}\nf 1 2 3\n" for i in range(50_000))), "", "",
    ),
    "polygon of 12000 corners": (
        file("a.obj", "".join(f"v {x} {y} 0\n" for x, y in STAR) + "f " + " ".join(map(str, range(1, 12_001)))),
        "too many corners", "",
    ),
    "vertices not finite": (file("a.obj", SQUARE.replace("v 1 1 0", "v 1 1e400 0")), "not finite", ""),
    "vertices near the end of float": (file("a.obj", SQUARE.replace("v 1 1 0", "v 1e308 -1e308 1e308")), "without area", ""),
    "index beyond int64": (file("a.obj", SQUARE + "f 1 2 99999999999999999999"), "a face", ""),
    "index of a strange digit": (file("a.obj", SQUARE + "f -\u00b2 -1 -1"), "a face", ""),
    "index far back": (file("a.obj", SQUARE + "f -1 -2 -999999999999999999"), "a face names", ""),
    "line of 2 MB": (file("a.obj", lambda: SQUARE + "f " + "1 " * 1_000_000), "", ""),
    "zeros instead of text": (file("a.obj", bytes(5_000_000)), "no faces", ""),
    "text in UTF-16 without its mark": (file("a.obj", SQUARE.encode("utf-16-le")), "no faces|a face|a vertex", ""),
    "OFF of 1e10": (file("a.off", "OFF\n10000000000 10000000000 0\n0 0 0\n"), "promises", ""),
    "OFF of 1e30": (file("a.off", "OFF\n1" + "0" * 30 + " 1 0\n0 0 0\n"), "the counts", ""),
    "OFF of less than nothing": (file("a.off", "OFF\n-3 -1 0\n0 0 0\n"), "counts", ""),
    "OFF face of 1e10 corners": (file("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n1 1 0\n10000000000 0 1 2\n"), "fewer corners", ""),
    "OFF face of 1e19 corners": (file("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n1 1 0\n99999999999999999999 0 1\n"), "a face", ""),
    "STL of 4e9": (file("a.stl", bytes(80) + b"\xff" * 4 + bytes(500)), "promises 4294967295", ""),
    "STL not finite": (file("a.stl", bytes(80) + struct.pack("<I", 1) + b"\xff" * 50), "not finite", ""),
    "STL of facets without corners": (file("a.stl", lambda: "solid\n" + "facet normal\n" * 1_000_000), "corners", ""),
    "STL of endless spaces": (file("a.stl", lambda: "solid\n" + "vertex" + " " * 5_000_000 + "facet normal"), "", ""),
    "PLY of 1e10 faces": (file("a.ply", PLY.format("ascii", 1) + FACE.format(10**10, "uchar") + "0 0 0\n"), "10000000000", ""),
    "PLY of 1e10 vertices": (
        file("a.ply", PLY.format("binary_little_endian", 10**10) + FACE.format(1, "uchar") + "000"), "ends before", "",
    ),
    "PLY list of 4e9": (
        file("a.ply", PLY.format("binary_little_endian", 1).encode() + FACE.format(1, "uint").encode() + bytes(12) + b"\xff" * 40),
        "list of|ends before", "",
    ),
    "PLY of nothing, 1e10 times": (
        file("a.ply", "ply\nformat ascii 1.0\nelement nothing 10000000000\n" + PLY[21:].format(1) + FACE.format(1, "uchar") + "0 0 0\n3 0 0 0"),
        "", "",
    ),
    "PLY header without end": (file("a.ply", lambda: "ply\n" + "comment x\n" * 2_000_000), "no end_header", ""),
    "PLY comment of 50 MB": (
        file("a.ply", lambda: seeds.PLY.replace("ascii 1.0\n", "ascii 1.0\ncomment " + "x" * 50_000_000 + "\n")), "", "",
    ),
    "PLY coordinates that are lists": (
        file("a.ply", seeds.PLY.replace("property float x", "property list uchar float x")), "no faces", "",
    ),
    "glTF buffer up": (buffer("../secret.bin"), "outside", ""),
    "glTF buffer up, hidden": (buffer("%2e%2e/secret.bin"), "outside", ""),
    "glTF buffer absolute": (buffer("{}/secret.bin"), "outside", ""),
    "glTF buffer file": (buffer("file://{}/secret.bin"), "missing|outside", ""),
    "glTF buffer http": (buffer("http://127.0.0.1:9/secret.bin"), "missing", ""),
    "glTF buffer passwd": (buffer("/etc/passwd"), "outside", ""),
    "glTF buffer not base64": (buffer("data:application/octet-stream;base64,$$$$"), "base64", ""),
    "glTF buffer too short": (buffer("data:application/octet-stream;base64,AAAA"), "beyond its buffer", ""),
    "glTF image up": (gltf(lambda j: j["images"][1].update(uri="../secret.bin")), "", "outside"),
    "glTF image bomb": (
        gltf(lambda j: j["images"][1].update(uri="data:image/png;base64," + base64.b64encode(png(16384, rows=1)).decode())),
        "unpacks to too much", "",
    ),
    "glTF accessor of 1e10": (gltf(lambda j: j["accessors"][0].update(count=10**10)), "beyond|positions", ""),
    "glTF node inside itself": (gltf(lambda j: j["nodes"][3].update(children=[0])), "twice", ""),
    "glTF nodes in a ring": (gltf(lambda j: j["nodes"][1].update(children=[1])), "twice", ""),
    "glTF lists in lists": (file("a.gltf", '{"asset":' + "[" * 200_000), "glTF", ""),
    "glTF number of 10000 digits": (file("a.gltf", '{"asset":{"version":"2.0"},"scene":' + "9" * 10_000 + "}"), "glTF", ""),
    "glTF floats for numbers": (gltf(lambda j: j.update(scene=0.5)), "scenes", ""),
    "GLB chunk of 4 GB": (file("a.glb", chunks), "truncated", ""),
    "GLB zeros without data": (file("a.glb", repeated(1, 10**9)), "without data", ""),
    "GLB one long array, 20000 times": (file("a.glb", repeated(20_000, 10**6)), "extent|area", ""),
    "DAE of a billion laughs": (file("a.dae", dae(LAUGHS, "oak", "&j;")), "document type", ""),
    "DAE with a file inside": (
        file("a.dae", dae('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "oak", "&a;")), "document type", "",
    ),
    "DAE with its type in EBCDIC": (file("a.dae", EBCDIC), "document type|not readable", ""),
    "DAE with its type in UTF-16": (
        file("a.dae", dae(LAUGHS).replace('?>', ' encoding="utf-16"?>', 1).encode("utf-16")), "document type", "",
    ),
    "DAE picture passwd": (file("a.dae", dae("", "wood.png", "file:///etc/passwd")), "", "outside"),
    "DAE node inside itself": (
        file("a.dae", dae("", '<scale>2 1 1</scale>', '<scale>2 1 1</scale><instance_node url="#n"/>')),
        "inside themselves|faces", "",
    ),
    "DAE of 200000 levels": (file("a.dae", lambda: "<COLLADA>" + "<a>" * 200_000 + "</a>" * 200_000 + "</COLLADA>"), "no faces", ""),
    "DAE of many nodes": (file("a.dae", many_nodes(2_000)), "", ""),
    "VRML of 2^39 nodes": (file("a.wrl", f"#VRML V2.0 utf8\nDEF N0 {SHAPE}\n{TREE}"), "more than 100000", ""),
    "VRML of 1e5 levels": (file("a.wrl", "#VRML V2.0 utf8\n" + "Group { children [ " * 100_000), "inside nodes", ""),
    "VRML of strings without end": (file("a.wrl", '#VRML V2.0 utf8\nX { a "' + '\\"' * 1_000_000), "truncated", ""),
    "VRML of brackets": (file("a.wrl", "#VRML V2.0 utf8\n" + "[" * 1_000_000), "should be|inside", ""),
    "VRML with another file": (file("a.wrl", '#VRML V2.0 utf8\nInline { url "/etc/passwd" }\n' + SHAPE), "", "Inline"),
    "VRML points that none uses": (
        file("a.wrl", lambda: "#VRML V2.0 utf8\nDEF S Shape { geometry IndexedFaceSet { coord Coordinate { point ["
             + "0 0 0 1 0 0 0 1 0 " * 100_000 + "] } coordIndex [0 1 2 -1] } }\n" + "USE S\n" * 5000),
        "", "",
    ),
    "VRML choice of infinity": (
        file("a.wrl", f"#VRML V2.0 utf8\nSwitch {{ whichChoice 1e999 choice [ {SHAPE} ] }}\n{SHAPE}"), "", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES])
def test_a_mesh_that_is_made_to_do_harm_is_refused_or_does_none(name, outcome):
    def act(name: str, folder: Path) -> None:
        make, refused, told = CASES[name]
        mesh = load_mesh(make(folder))
        sample_surface(mesh, 100, 0)
        warnings = "; ".join(mesh.warnings)
        if refused:
            raise AssertionError(f"was read: {warnings[:200]}")
        if "outside" in told and not any(kind in name for kind in ("mtllib", "glTF", "DAE")):
            assert not mesh.textures, "the picture outside was read"
        assert not re.search("[\x00-\x1f]", warnings)
        assert re.search(told, warnings), warnings[:300]

    _, refused, _ = CASES[name]
    kind, what, _, _ = outcome(act)
    assert kind != "bad", what
    if refused:
        assert kind == "refused" and re.search(refused, what), what
    elif name not in EITHER:
        assert kind == "result", what


EITHER = {"STL of endless spaces", "PLY of nothing, 1e10 times"}  # refused, for another reason than they were made for


def test_there_are_as_many_as_are_promised():
    assert len(CASES) >= 60
