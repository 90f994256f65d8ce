# ruff: noqa: E501  (a table of names)
"""500 hostile meshes, random mixes of references that lead out of their folders: no file outside is opened."""

from __future__ import annotations

import json
import random
from pathlib import Path

import fuzz
import fuzz_seeds as seeds
import pytest

NAMES = (
    "../secret{e}", "../../secret{e}", "x/../../secret{e}", "./../secret{e}", "{out}/secret{e}", "/etc/passwd", "/proc/self/environ",
    "file://{out}/secret{e}", "file:///etc/passwd", "http://127.0.0.1:9/a{e}", "//127.0.0.1/share/a{e}", "..\\secret{e}",
    "\\\\server\\share\\a{e}", "C:\\secret{e}", "link{e}", "up/secret{e}", "linked/secret{e}", "%2e%2e/secret{e}",
    "..%2fsecret{e}", "../other/inside{e}", "~/secret{e}", "$HOME/secret{e}", "-o 1 1 1 ../secret{e}", "../Secret{e}",
    "../object{n}x/secret{e}", "wood{e}", "textures/../wood{e}", "WOOD{e}", "models/../../secret{e}", "/dev/zero", "pipe{e}",
    "\x00../secret{e}", "....//secret{e}", "..;/secret{e}", "secret{e}\n../secret{e}", "loop/loop/loop/secret{e}",
)  # fmt: skip


def hostile(number: int, home: Path) -> Path:
    """An object in home/objectN that names files outside, among others."""
    dice = random.Random(number)
    folder = home / f"object{number}"
    kind = ("obj", "gltf", "dae", "ply")[number % 4]
    place = folder / "models" if dice.random() < 0.3 else folder

    def name(ending: str) -> str:
        return dice.choice(NAMES).format(e=ending, out=home, n=number)

    wood = seeds.picture("PNG", 2)
    if kind == "obj":
        materials = "".join(f"newmtl m{i}\nKd 1 0 0\nmap_Kd {name('.png')}\nmap_d {name('.png')}\n" for i in range(3))
        lines = "".join(f"mtllib {name('.mtl')}\n" for _ in range(3)) + "mtllib a.mtl\n"
        shape = "v 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\n"
        faces = "".join(f"usemtl m{i}\nf 1/1 2/2 3/3\n" for i in range(3))
        files = {"a.obj": (lines + shape + faces).encode(), "a.mtl": materials.encode(), "wood.png": wood}
    elif kind == "gltf":
        files = seeds.gltf()
        tree = json.loads(files["a.gltf"])
        tree["images"] = [{"uri": name(".png")}, {"uri": name(".png")}]
        if dice.random() < 0.4:
            tree["buffers"][0]["uri"] = name(".bin")
        files = {**files, "a.gltf": json.dumps(tree).encode(), "wood.png": wood}
    elif kind == "dae":
        said = name(".png").replace("\x00", "").replace("&", "")
        files = {"a.dae": seeds.DAE.replace("wood.png", said).encode(), "wood.png": wood}
    else:
        said = name(".png").replace("\n", " ")
        files = {"a.ply": seeds.PLY.replace("wood.png", said).encode("utf-8"), "wood.png": wood}
    fuzz.put(place, files)
    for ending in (".png", ".mtl", ".bin"):
        (place / f"link{ending}").symlink_to(home / f"secret{ending}")
    (place / "up").symlink_to("..")
    (place / "linked").symlink_to(home)
    (place / "loop").symlink_to("loop")
    return place / f"a.{kind}"


@pytest.mark.parametrize("count", [48, pytest.param(500, marks=pytest.mark.slow)])
def test_no_file_outside_an_objects_folder_is_opened(tmp_path, watched, count):
    for ending, content in (
        (".png", seeds.picture("PNG", 4)),
        (".mtl", b"newmtl m0\nKd 0 0 1\n"),
        (".bin", seeds.scene().blob),
    ):
        for place in ("", "other"):
            fuzz.put(tmp_path / place, {("inside" if place else "secret") + ending: content})
    paths = [str(hostile(number, tmp_path)) for number in range(count)]
    code = f"""
from gsmae.errors import InputError
from preprocessing.meshes import load_mesh
from preprocessing.surface import sample_surface
paths = {paths!r}
out = []
for number, path in enumerate(paths[:4] + paths):
    seen.clear(); watching = True
    try:
        mesh = load_mesh(path); sample_surface(mesh, 50, 0); outcome = "read"
        textures = [t.shape[0] for t in mesh.textures]
    except InputError:
        outcome, textures = "refused", []
    watching = False
    if number >= 4:  # the first four only import
        out.append([path, outcome, textures, list(seen)])
print(json.dumps(out))
"""
    found = watched(code)
    assert len(found) == count
    outside, kinds = [], {"read": 0, "refused": 0}
    for path, outcome, textures, events in found:
        kinds[outcome] += 1
        number = path.removeprefix(str(tmp_path) + "/object").split("/")[0]
        root = f"{tmp_path}/object{number}/"
        outside += [(path, event) for event in events if event[0] != "read" or not event[1].startswith(root)]
        assert any(event[1] == path for event in events), "the watch saw nothing"
        assert 4 not in textures, f"{path}: has the picture that lies outside"
    assert outside == []
    assert kinds["read"] > count // 2 and kinds["refused"] > 0
