from pathlib import Path

import numpy as np
import pytest
import trimesh

from gsmae.errors import InputError
from gsmae.files import sha256
from preprocessing.meshes import load_mesh
from preprocessing.sources import SOURCES

EXAMPLES = Path(__file__).parents[2] / "examples"
OBJECTS = sorted((EXAMPLES / "meshes").glob("*/*/models/*.obj"))
OFFS = sorted((EXAMPLES / "off").glob("*/*/*.off"))
TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def area(vertices, faces):
    corners = np.asarray(vertices, dtype=np.float64)[faces]
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.stem)
def test_every_example_has_the_surface_that_trimesh_reads(path):
    mesh = load_mesh(path)
    theirs = trimesh.load_mesh(path, process=False)
    scale = np.cbrt(np.linalg.det(mesh.mesh_to_splat[:3, :3]))
    assert len(mesh.faces) == len(theirs.faces)
    assert area(mesh.vertices, mesh.faces) == pytest.approx(theirs.area * scale**2, rel=1e-3)
    moved = trimesh.transform_points(theirs.vertices, mesh.mesh_to_splat)
    assert np.allclose(moved.min(0), mesh.vertices.min(0), atol=1e-5)
    assert np.allclose(moved.max(0), mesh.vertices.max(0), atol=1e-5)
    assert mesh.sha256 == sha256(path)


@pytest.mark.parametrize("path", [*OBJECTS, *OFFS], ids=lambda p: p.stem)
def test_every_example_is_centred_in_the_unit_sphere(path):
    mesh = load_mesh(path)
    assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(1, abs=1e-6)
    assert np.allclose(mesh.vertices.min(0), -mesh.vertices.max(0), atol=1e-6)
    assert np.allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-4)
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    flat = np.cross(b - a, c - a)
    assert ((mesh.normals * flat[:, None]).sum(-1) >= 0).all()
    count = len(mesh.faces)
    assert mesh.uvs.shape == (count, 3, 2) and mesh.colors.shape == (count, 3, 4)
    assert np.isfinite(mesh.uvs).all() and mesh.texture.max() < len(mesh.textures)


def test_an_object_stands_the_same_way_through_obj_and_through_modelnets_off():
    chair = load_mesh(EXAMPLES / "meshes/chair/chair2/models/chair2.obj")
    for item in SOURCES["modelnet"](EXAMPLES / "off"):
        if item.uid == "chair/chair_0002":
            off = load_mesh(item)
            assert np.allclose(off.vertices.max(0), chair.vertices.max(0), atol=1e-4)
            assert area(off.vertices, off.faces) == pytest.approx(area(chair.vertices, chair.faces), rel=1e-3)
    high = chair.vertices[chair.vertices[:, 2] > 0.5]
    assert len(high) and high[:, 1].min() > 0.2  # the back rest is at the top and behind


def test_y_up_becomes_z_up(put):
    mesh = load_mesh(put("a.obj", "v 0 0 0\nv 4 0 0\nv 0 2 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n"))
    assert np.allclose(mesh.mesh_to_splat[:3, :3] @ [1, 2, 3] * np.sqrt(21) / 2, [1, -3, 2])
    kept = load_mesh(put("b.obj", "v 0 0 0\nv 4 0 0\nv 0 2 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n"), up="z")
    assert np.allclose(kept.vertices[1] - kept.vertices[0], [8 / np.sqrt(21), 0, 0])


def test_vertices_that_no_face_uses_do_not_shrink_the_object(put):
    alone = load_mesh(put("a.obj", TRIANGLE + "f 1 2 3\n"))
    stray = load_mesh(put("b.obj", TRIANGLE + "v 1000 nan 0\nf 1 2 3\n"))
    assert np.array_equal(alone.vertices, stray.vertices)


def test_names_of_materials_and_groups_stay_with_their_faces():
    path = EXAMPLES / "meshes/chair/deckChair/models/deckChair.obj"
    mesh = load_mesh(path)
    counted, name = {}, ""
    for line in path.read_text().splitlines():
        if line.startswith("usemtl "):
            name = line[7:]
        elif line.startswith("f "):
            counted[name] = counted.get(name, 0) + len(line.split()) - 3  # triangles of a polygon
    ours = {mesh.material_names[i]: int((mesh.materials == i).sum()) for i in np.unique(mesh.materials)}
    assert ours == counted and len(counted) == 3
    fabric = mesh.texture[mesh.materials == mesh.material_names.index("Chair_Fabric")]
    stripes = mesh.textures[fabric[0]].reshape(-1, 4).mean(0)
    assert len(np.unique(fabric)) == 1 and stripes[2] > stripes[0]  # blue and white


def test_a_texture_that_is_missing_is_a_warning_and_the_materials_colour():
    mesh = load_mesh(EXAMPLES / "meshes/table/technicalTable1/models/technicalTable1.obj")
    (warning,) = mesh.warnings
    assert "f:/images/textures/wood/tree.jpg" in warning and "technicalTable1.mtl" in warning and "missing" in warning
    edge = mesh.materials == mesh.material_names.index("Kanter")
    assert (mesh.texture[edge] == -1).all()
    assert np.allclose(mesh.colors[edge][0, 0], [0.68445, 0.572119, 0.14653, 1])


def test_normals_of_the_file_are_kept_where_they_are_sane(put):
    text = TRIANGLE + "vn 0.5 0 1\nvn 0 0 -1\nvn 0 0 0\nvn 1 0 0\nf 1//{} 2//{} 3//{}\n"
    tilted = load_mesh(put("a.obj", text.format(1, 1, 1))).normals
    assert np.allclose(tilted, np.array([0.5, -1, 0]) / np.sqrt(1.25))
    for wrong in ((2, 2, 2), (3, 1, 1), (4, 4, 4), (1, 2, 1)):
        assert np.allclose(load_mesh(put("b.obj", text.format(*wrong))).normals, [0, -1, 0]), wrong


def test_a_flat_object_is_fine_at_any_size(put):
    for size in ("1e-300", "1", "1e307"):
        text = TRIANGLE.replace("1", size) + "f 1 2 3\n"
        mesh = load_mesh(put(f"{size}.obj", text))
        assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(1)


BAD = {
    "absent.obj": (None, "no such file"),
    "empty.obj": ("", "empty"),
    "blank.obj": ("\n\n", "no faces"),
    "points.obj": (TRIANGLE, "no faces"),
    "index.obj": (TRIANGLE + "f 1 2 4\n", "vertex 4 of 3"),
    "zero.obj": (TRIANGLE + "f 0 1 2\n", "vertex 0 of 3"),
    "before.obj": (TRIANGLE + "f -1 -2 -9\n", "vertex -5 of 3"),
    "uv.obj": (TRIANGLE + "vt 0 0\nf 1/1 2/1 3/2\n", "texture coordinate 2 of 1"),
    "words.obj": ("v a b c\n" + TRIANGLE + "f 1 2 3\n", "a vertex"),
    "corner.obj": (TRIANGLE + "f 1 2 x\n", "a face"),
    "short.obj": ("v 1 2\n" + TRIANGLE + "f 1 2 3\n", "fewer than three"),
    "huge_index.obj": (TRIANGLE + "f 1 2 99999999999999999999999\n", "a face"),
    "nan.obj": (TRIANGLE + "v nan 0 0\nf 1 2 4\n", "vertex 4 is not finite"),
    "inf.obj": (TRIANGLE + "v 1e999 0 0\nf 1 2 4\n", "not finite"),
    "point.obj": ("v 5 5 5\nv 5 5 5\nv 5 5 5\nf 1 2 3\n", "no extent"),
    "line.obj": ("v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "without area"),
    "two.obj": (TRIANGLE + "f 1 2\n", "no faces"),
    "binary.obj": (bytes(range(256)) * 20, "no faces"),
    "no_header.off": ("3 1 0\n0 0 0\n", "does not begin with OFF"),
    "only_header.off": ("OFF\n", "counts"),
    "cut_vertices.off": ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "promises 3 vertices and 1 faces"),
    "cut_faces.off": ("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "truncated"),
    "cut_line.off": ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1\n", "fewer corners"),
    "bomb.off": ("OFF\n99999999999 99999999999 0\n", "promises"),
    "wild.off": ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "vertex 7 of 3"),
    "negative.off": ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "vertex -1 of 3"),
    "nan.off": ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 nan 0\n3 0 1 2\n", "not finite"),
    "binary.off": ("OFF BINARY\n\0\0\0", "not read"),
    "four.off": ("4OFF\n3 1 0\n", "not read"),
    "junk.ply": (b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nend_header\n", "not readable|no faces"),
    "junk.glb": (b"glTF" + bytes(50), "not GLB of version 2"),
    "junk.stl": (b"solid nothing", "not readable|no faces"),
    "strange.xyz": ("1 2 3\n", "no reader for '.xyz'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_names_it_and_says_why(put, tmp_path, name):
    content, cause = BAD[name]
    path = tmp_path / name if content is None else put(name, content)
    with pytest.raises(InputError, match=cause) as error:
        load_mesh(path)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "name", ["meshes/container/ammoBox/models/ammoBox.obj", "off/container/train/container_0002.off"]
)
def test_damaged_bytes_give_a_mesh_or_an_input_error_and_nothing_else(put, name):
    path = EXAMPLES / name
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        data = bytearray(path.read_bytes())
        for _ in range(random.integers(1, 6)):
            place = int(random.integers(len(data)))
            kind = random.integers(3)
            if kind == 0:
                data[place] = int(random.integers(256))
            elif kind == 1:
                del data[place : place + int(random.integers(1, 100))]
            else:
                data[place:place] = random.choice([b"nan ", b"/", b"-9", b"f 1 2 3\n", b"1e400", b"#", b"\\\n"])
        try:
            mesh = load_mesh(put("x" + path.suffix, bytes(data)))
            assert np.isfinite(mesh.vertices).all() and mesh.faces.max() < len(mesh.vertices)
            outcomes.add("mesh")
        except InputError:
            outcomes.add("error")
    assert outcomes == {"mesh", "error"}
