import struct

import numpy as np
import pytest

from gsmae.errors import InputError
from preprocessing.meshes import load_mesh

POINTS = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.5, 1.5, 0)]
RGB = [("uchar", "red"), ("uchar", "green"), ("uchar", "blue")]
KINDS = {"uchar": "B", "int": "i", "float": "f", "ushort": "H"}


def ply(faces, face_columns=(), vertex_columns=(), vertex_rows=None, form="ascii", head="", cut=0) -> bytes:
    """A PLY of POINTS; a face is its corners and then the values of the further columns."""
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(form, "")
    lines = ["ply", f"format {form} 1.0", *filter(None, [head]), f"element vertex {len(POINTS)}"]
    lines += [f"property float {axis}" for axis in "xyz"] + [f"property {k} {n}" for k, n in vertex_columns]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    lines += [f"property {kind} {name}" for kind, name in face_columns] + ["end_header", ""]
    rows = [([("float", v) for v in p] + [(k, v) for (k, _), v in zip(vertex_columns, r, strict=True)])
            for p, r in zip(POINTS, vertex_rows or [()] * 5, strict=True)]  # fmt: skip
    for corners, *values in faces:
        row = [("uchar", len(corners)), *(("int", c) for c in corners)]
        for (kind, _), value in zip(face_columns, values, strict=True):
            if kind.startswith("list"):
                row += [("uchar", len(value)), *(("float", v) for v in value)]
            else:
                row.append((kind, value))
        rows.append(row)
    if form == "ascii":
        body = "\n".join(" ".join(str(value) for _, value in row) for row in rows).encode()
    else:
        body = b"".join(struct.pack(order + KINDS[kind], value) for row in rows for kind, value in row)
    return "\n".join(lines).encode() + body[: len(body) - cut]


FORMS = ["ascii", "binary_little_endian", "binary_big_endian"]
MIXED = [((0, 1, 2), 255, 0, 0), ((0, 1, 2, 3), 0, 255, 0), ((0, 1, 2, 4, 3), 0, 0, 255)]


@pytest.mark.parametrize("form", FORMS)
def test_triangles_quads_and_polygons_with_their_colours(put, form):
    mesh = load_mesh(put("a.ply", ply(MIXED, RGB, form=form)))
    assert len(mesh.faces) == 1 + 2 + 3 and mesh.warnings == ()
    assert np.allclose(mesh.colors[[0, 2, 5], 0, :3], np.eye(3))
    area = np.linalg.norm(np.cross(*np.diff(mesh.vertices[mesh.faces], axis=1).transpose(1, 0, 2)), axis=1) / 2
    scale = np.linalg.norm(mesh.mesh_to_splat[:3, 0]) ** 2
    assert np.allclose([area[0], area[1:3].sum(), area[3:].sum()], np.array([0.5, 1, 1.25]) * scale)
    assert np.allclose(mesh.mesh_to_splat[:3, :3] / np.sqrt(scale), np.eye(3))  # z is up


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ([*RGB, ("uchar", "alpha")], (255, 0, 0, 51), (1, 0, 0, 0.2)),
        (RGB, (1, 1, 1), (1 / 255,) * 3 + (1,)),
        ([("float", n) for _, n in RGB], (1.0, 0.5, 0.0), (1, 0.5, 0, 1)),
        ([("ushort", n) for _, n in RGB], (65535, 0, 0), (1, 0, 0, 1)),
        ([("uchar", f"diffuse_{n}") for _, n in RGB], (0, 255, 0), (0, 1, 0, 1)),
    ],
)
def test_vertex_colours_of_every_type(put, form, columns, row, expected):
    data = ply([((0, 1, 2),)], (), columns, [row] * 5, form)
    assert np.allclose(load_mesh(put("a.ply", data)).colors, expected, atol=1e-6)


def test_textures_by_vertex_by_corner_and_by_number(put):
    put("red wood.png", np.full((2, 2, 3), (255, 0, 0), np.uint8))
    put("blue.png", np.full((2, 2, 3), (0, 0, 255), np.uint8))
    by_vertex = ply(
        [((0, 1, 2),)], (), [*RGB, ("float", "s"), ("float", "t")], [(9, 9, 9, *p[:2]) for p in POINTS],
        head="comment TextureFile red wood.png",
    )  # fmt: skip
    mesh = load_mesh(put("a.ply", by_vertex))
    assert mesh.textures[0][0, 0].tolist() == [255, 0, 0, 255] and (mesh.colors == 1).all()
    assert np.allclose(mesh.uvs[0], [(0, 0), (1, 0), (1, 1)])
    by_corner = ply(
        [((0, 1, 2), (0, 0, 1, 0, 1, 1), 1), ((0, 2, 3, 4), (0, 0, 1, 1, 0, 1, 0.5, 1), 0), ((0, 1, 4), (), 0)],
        [("list uchar float", "texcoord"), ("int", "texnumber")], form="binary_little_endian",
        head="comment TextureFile red wood.png\ncomment TextureFile blue.png",
    )  # fmt: skip
    mesh = load_mesh(put("b.ply", by_corner))
    assert [mesh.textures[i][0, 0, 2] if i >= 0 else None for i in mesh.texture] == [255, 0, 0, None]
    assert np.allclose(mesh.uvs[0], [(0, 0), (1, 0), (1, 1)])


def test_texture_coordinates_without_a_texture_invent_none(put):
    data = ply([((0, 1, 2),)], (), [("float", "s"), ("float", "t")], [p[:2] for p in POINTS])
    mesh = load_mesh(put("a.ply", data))
    assert mesh.textures == () and np.allclose(mesh.colors, [0.7, 0.7, 0.7, 1])
    gone = data.replace(b"element vertex", b"comment TextureFile gone.png\nelement vertex")
    mesh = load_mesh(put("a.ply", gone))
    assert "gone.png" in mesh.warnings[0] and np.allclose(mesh.colors, [0.7, 0.7, 0.7, 1])


def test_normals_further_elements_and_strange_lines_of_the_header(put):
    normal = [("float", f"n{axis}") for axis in "xyz"]
    data = ply([((0, 1, 2),)], (), normal, [(0.6, 0, 0.8)] * 5, head="Created by a program\nobj_info x\ncomment y")
    data = data.replace(b"end_header", b"element edge 2\nproperty int a\nproperty list uchar float b\nend_header")
    mesh = load_mesh(put("a.ply", data + b"\n0 2 1.5 1.5\n1 0\n"))
    assert np.allclose(mesh.normals, [0.6, 0, 0.8])


def test_faces_of_two_corners_are_left_out_aloud(put):
    mesh = load_mesh(put("a.ply", ply([((0, 1, 2),), ((0, 1),)])))
    assert len(mesh.faces) == 1 and "1 face(s)" in mesh.warnings[0]


WHOLE = ply(MIXED, RGB)
BAD = {
    "cut text": (ply(MIXED, RGB, cut=4), "truncated"),
    "cut binary": (ply(MIXED, RGB, form="binary_little_endian", cut=1), "truncated"),
    "cut vertices": (ply(MIXED, RGB, form="binary_little_endian", cut=100), "truncated"),
    "bomb": (WHOLE.replace(b"vertex 5", b"vertex 999999999999"), "truncated"),
    "face bomb": (WHOLE.replace(b"face 3", b"face 999999999999"), "999999999999 faces; at most"),
    "negative": (WHOLE.replace(b"face 3", b"face -3"), "negative counts"),
    "index": (ply([((0, 1, 7),)]), "vertex 7 of 5"),
    "below": (ply([((0, 1, -1),)], form="binary_big_endian"), "vertex -1 of 5"),
    "type": (WHOLE.replace(b"float x", b"quad x"), "property quad x"),
    "format": (WHOLE.replace(b"ascii", b"xml"), "format xml"),
    "header": (WHOLE[:60], "end_header"),
    "word": (WHOLE.replace(b"0.5 1.5", b"one 1.5"), "a number"),
    "nan": (WHOLE.replace(b"0.5 1.5", b"nan 1.5"), "not finite"),
    "points": (ply([]), "no faces"),
    "length": (WHOLE.replace(b"\n3 0 1 2", b"\n-3 0 1 2"), "list of -3"),
    "strips": (WHOLE.replace(b"element face", b"element tristrips"), "triangle strips"),
    "coordinates": (ply([((0, 1, 2), (0, 0, 1))], [("list uchar float", "texcoord")]), "two for each corner"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_says_why(put, name):
    content, cause = BAD[name]
    with pytest.raises(InputError, match=cause):
        load_mesh(put("a.ply", content))


@pytest.mark.parametrize("form", FORMS)
def test_damaged_bytes_give_a_mesh_or_an_input_error_and_nothing_else(put, form):
    random, outcomes, whole = np.random.default_rng(0), set(), ply(MIXED, RGB, form=form)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(len(data)))
            if random.random() < 0.7:
                data[place] = random.integers(256)
            else:
                del data[place : place + int(random.integers(1, 9))]
        try:
            assert np.isfinite(load_mesh(put("x.ply", bytes(data))).vertices).all()
            outcomes.add("mesh")
        except InputError:
            outcomes.add("error")
    assert outcomes == {"mesh", "error"}
