import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from gsmae.errors import InputError
from preprocessing.formats.assets import Assets, object_folder
from preprocessing.meshes import load_mesh

RED = np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8)


def shows(path) -> bool:
    """Whether the mesh came with its red texture."""
    mesh = load_mesh(path)
    return bool((mesh.texture == 0).all()) and mesh.textures[0][0, 0].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("models/red.png", "red.png"),
        ("images/red.png", "../images/red.png"),  # ShapeNetCore v2
        ("images/red.png", "..\\images\\red.png"),
        ("models/images/red.png", "./images/red.png"),
        ("images/Red.PNG", "../Images/red.png"),
        ("models/red wood.png", "red wood.png"),
        ("models/red.png", "C:\\Users\\maker\\Desktop\\red.png"),
        ("models/red.png", "/home/maker/red.png"),
        ("models/red.png", "-s 2 2 1 -o 0 0 -clamp on red.png"),
    ],
)
def test_textures_are_found_inside_the_objects_folder(put, textured, place, name):
    put(place, RED)
    assert shows(textured(f"map_Kd {name}"))


@pytest.mark.parametrize(
    "name", ["../../red.png", "/{}/red.png", "../models/../../red.png", "link.png", "folder/red.png"]
)
def test_nothing_outside_the_objects_folder_is_read(put, tmp_path, name):
    put("red.png", RED)
    put("object/models/a.mtl", "newmtl paint\nmap_Kd " + name.format(tmp_path))
    quad = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\n"
    path = put("object/models/a.obj", f"mtllib a.mtl\nmtllib ../../b.mtl\n{quad}usemtl paint\nf 1/1 2/1 3/1\n")
    put("b.mtl", "newmtl other\n")
    (path.parent / "link.png").symlink_to(tmp_path / "red.png")
    (path.parent / "folder").symlink_to(tmp_path)
    opened = []
    sys.addaudithook(
        lambda event, args: opened.append(str(args[0])) if event == "open" and opened is not None else None
    )
    mesh = load_mesh(path)
    seen, opened = opened, None
    assert (mesh.texture == -1).all() and any("outside" in w for w in mesh.warnings)
    ours = [os.path.realpath(name) for name in seen if name.startswith(str(tmp_path))]
    assert ours and all(name.startswith(str(tmp_path / "object")) for name in ours)


def test_a_folder_a_pipe_or_nothing_under_the_name_is_a_missing_texture(textured, tmp_path):
    (tmp_path / "models" / "folder.png").mkdir(parents=True)
    os.mkfifo(tmp_path / "models" / "pipe.png")
    for name in ("folder.png", "pipe.png", "", ".", "..", "x" * 5000 + ".png", "a\0b.png"):
        mesh = load_mesh(textured(f"map_Kd {name}"))
        assert (mesh.texture == -1).all() and np.allclose(mesh.colors[0, 0], [0.2, 0.4, 0.6, 1]), name


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_a_texture_that_is_damaged_is_a_warning(put, textured, content):
    put("models/bad.png", content)
    mesh = load_mesh(textured("map_Kd bad.png"))
    assert "bad.png" in mesh.warnings[0] and "not readable" in mesh.warnings[0] and (mesh.texture == -1).all()


def test_a_picture_of_a_format_that_is_not_allowed_is_a_warning(put, textured, tmp_path):
    path = textured("map_Kd red.gif")
    Image.fromarray(RED).save(tmp_path / "models/red.gif")
    assert "not readable" in load_mesh(path).warnings[0]


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tga"])
def test_allowed_formats_are_read(textured, tmp_path, kind):
    path = textured(f"map_Kd red.{kind}")
    Image.fromarray(RED.repeat(8, 0).repeat(8, 1)).save(tmp_path / f"models/red.{kind}")
    mesh = load_mesh(path)
    assert np.allclose(mesh.textures[0][8, 8], [255, 0, 0, 255], atol=3)


def test_large_pictures_are_errors_before_they_are_unpacked(textured, tmp_path):
    path = textured("map_Kd big.png")
    Image.new("1", (8200, 8)).save(tmp_path / "models/big.png")
    with pytest.raises(InputError, match="8200 x 8"):
        load_mesh(path)
    head = struct.pack(">4sIIBBBBB", b"IHDR", 40000, 40000, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    picture = b"\x89PNG\r\n\x1a\n" + head + bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "models/big.png").write_bytes(picture)
    with pytest.raises(InputError, match=r"big\.png"):
        load_mesh(path)


def test_large_files_are_errors(put, textured, monkeypatch):
    put("models/red.png", RED)
    monkeypatch.setattr("preprocessing.formats.assets.MAX_BYTES", 100)
    put("models/a.mtl", b"#" * 200)
    with pytest.raises(InputError, match=r"a\.mtl"):
        load_mesh(put("models/a.obj", "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"))


def test_an_alpha_channel_that_is_all_zero_is_not_meant(put, textured):
    put("models/red.png", np.dstack([RED, np.zeros((2, 2, 1), np.uint8)]))
    assert shows(textured("map_Kd red.png"))


def test_sixteen_bit_pictures_are_scaled_and_not_clipped(put, textured):
    put("models/grey.png", np.full((2, 2), 0x8000, dtype=np.uint16))
    assert load_mesh(textured("map_Kd grey.png")).textures[0][0, 0].tolist() == [128, 128, 128, 255]


def test_the_root_is_the_meshs_folder_or_that_above_models(tmp_path):
    assert object_folder(tmp_path / "chair/a.obj") == tmp_path / "chair"
    assert object_folder(tmp_path / "03001627/x/models/model_normalized.obj") == tmp_path / "03001627/x"
    assert Assets(tmp_path / "a/b/c.obj", tmp_path).root == tmp_path.resolve()


def test_a_wider_root_can_be_given(put, tmp_path):
    put("textures/red.png", RED)
    put("chair/a.mtl", "newmtl paint\nmap_Kd ../textures/red.png\n")
    quad = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\n"
    path = put("chair/a.obj", f"mtllib a.mtl\n{quad}usemtl paint\nf 1/1 2/1 3/1\n")
    assert (load_mesh(path).texture == -1).all()
    assert (load_mesh(path, root=tmp_path).texture == 0).all()
