from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual.color import ColorVisuals
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from gsmae.errors import InputError
from preprocessing.formats.polygons import triangulate
from preprocessing.meshes import load_mesh

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
L_SHAPE = np.array([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], dtype=float)  # area 3, concave at (1, 1)


def lift(flat, axis=2):
    return np.insert(flat, axis, 0.5, axis=1)


def signed_areas(points, triangles):
    a, b, c = (points[triangles[:, i]] for i in range(3))
    return np.cross(b - a, c - a) / 2


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_concave_polygon_is_covered_once_in_its_own_winding(axis, turn, mirrored):
    points = np.roll(lift(L_SHAPE, axis), turn, axis=0)[:: -1 if mirrored else 1]
    triangles, owner = triangulate(points, np.array([6]))
    areas = signed_areas(points, triangles)
    assert len(triangles) == 4 and (owner == 0).all()
    whole = np.cross(points, np.roll(points, -1, axis=0)).sum(0)[axis] / 2
    assert abs(areas[:, axis].sum()) == pytest.approx(3) and areas[:, axis].sum() == pytest.approx(whole)
    assert (areas[:, axis] * np.sign(whole) > 0).all()


@pytest.mark.parametrize("turn", range(4))
def test_a_concave_quad_is_cut_where_it_stays_inside(turn):
    arrow = np.roll(lift(np.array([(0.0, 0), (2, 1), (0, 2), (1, 1)])), turn, axis=0)
    triangles, _ = triangulate(arrow, np.array([4]))
    assert (signed_areas(arrow, triangles)[:, 2] > 0).all()


def test_polygons_of_every_size_keep_their_order():
    points = np.concatenate([lift(L_SHAPE[:n]) for n in (4, 3, 2, 6, 3)])
    triangles, owner = triangulate(points, np.array([4, 3, 2, 6, 3]))
    assert owner.tolist() == [0, 0, 1, 3, 3, 3, 3, 4]
    assert triangles.max() == len(points) - 1


def test_an_off_file_may_have_comments_polygons_and_colours(put):
    text = "OFF # made by hand\n# nothing\n\n6 3 0\n" + "".join(f"{x} {y} 0  # corner\n" for x, y in L_SHAPE)
    mesh = load_mesh(put("a.off", text + "6 0 1 2 3 4 5 255 0 0\n3 0 1 2 0 255 0\n4 0 1 2 3 0 0 255\n"))
    assert len(mesh.faces) == 4 + 1 + 2
    assert np.allclose(mesh.colors[[0, 3, 4, 6], 0], [[1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("red", "half"),
    [("255 0 0", "0 255 0 128"), ("1.0 0.0 0.0", "0.0 1.0 0.0 0.502"), ("1.001 0 0", "0 1.0 0 0.502"),
     ("255 0 0 255", "0 255 0 128")],
)  # fmt: skip
def test_face_colours_of_an_off_file_are_bytes_or_fractions_and_may_be_missing(put, red, half):
    text = "OFF\n4 4 0\n" + "".join(f"{r[2:]}\n" for r in SQUARE.splitlines())
    mesh = load_mesh(put("a.off", text + f"3 0 1 2 {red}\n3 0 2 3 {half}\n3 0 1 3\n3 1 2 3 7\n"))
    assert np.allclose(
        mesh.colors[:, 0], [[1, 0, 0, 1], [0, 1, 0, 0.502], [0.7, 0.7, 0.7, 1], [0.7, 0.7, 0.7, 1]], atol=1e-3
    )


@pytest.mark.parametrize(("name", "start"), [("a.obj", SQUARE), ("a.off", "OFF 4 3 0\n" + SQUARE.replace("v ", ""))])
def test_faces_of_two_corners_are_left_out_aloud(put, name, start):
    faces = "f 1 2 3\nf 1 2\nf 3\n" if name == "a.obj" else "3 0 1 2\n2 0 1\n1 2\n"
    mesh = load_mesh(put(name, start + faces))
    assert len(mesh.faces) == 1 and mesh.warnings == ("2 face(s) of fewer than three corners are left out",)


def test_off_with_colours_and_normals_at_its_vertices(put):
    rows = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
    text = "CNOFF 3 1 0\n" + "".join(f"{x} {y} {z} 0 0.2 1 {x} {y} 0.5 0.25\n" for x, y, z in rows) + "3 0 1 2\n"
    mesh = load_mesh(put("a.off", text))
    assert np.allclose(mesh.colors[0], [[0, 0, 0.5, 0.25], [1, 0, 0.5, 0.25], [0, 1, 0.5, 0.25]])
    assert np.allclose(mesh.normals[0], np.array([0, 0.2, 1]) / np.sqrt(1.04))


@pytest.mark.parametrize("header", ["OFF\n4 1 0\n", "OFF4 1 0\n", "OFF 4 1 0\r\n", "off\n4 1\n", "COFF\n4 1 0\n"])
def test_headers_of_off_files_in_the_wild(put, header):
    color = " 255 128 0 255" if header.startswith("COFF") else ""
    mesh = load_mesh(put("a.off", header + "".join(f"{r[2:]}{color}\n" for r in SQUARE.splitlines()) + "4 0 1 2 3\n"))
    assert len(mesh.faces) == 2
    assert np.allclose(mesh.colors[0, 0], [1, 128 / 255, 0, 1] if color else [0.7, 0.7, 0.7, 1])


@pytest.mark.parametrize(
    "faces",
    [
        "f 1 2 3 4\n", "f -4 -3 -2 -1\n", "f 1/1 2/1 3/1 4/1\n", "f 1//1 2//1 3//1 4//1\n",
        "f 1/1/1 2/1/1 3/1/1 4/1/1\n", "f 1 2 3\nf 1/1/1 3//1 4/1\n", "f 1/1/ 2/1/ 3/1/ 4/1/\n",
        "f 1 2 \\\n3 4 # all\n", "f\t1 2\t3 4\r\n", "f -4/-1 -3/-1 -2/-1 -1/-1\n",
    ],
)  # fmt: skip
def test_every_way_to_write_a_face_gives_the_same_square(put, faces):
    mesh = load_mesh(put("a.obj", SQUARE + "vt 0.5 0.5\nvn 0 0 1\n" + faces))
    corners = mesh.vertices[mesh.faces] * np.sqrt(0.5)
    assert len(mesh.faces) == 2
    assert np.allclose(signed_areas(corners.reshape(-1, 3), np.arange(6).reshape(2, 3)).sum(0), [0, -1, 0], atol=1e-5)


def test_objects_groups_and_materials_are_kept_by_face_without_a_library(put):
    text = SQUARE + "f 1 2 3\no chair\nusemtl wood\nf 1 2 3\ng left leg\nf 1 2 4\nf 1 2 3\no table\nf 1 2 4\n"
    mesh = load_mesh(put("a.obj", text))
    assert [mesh.material_names[i] for i in mesh.materials] == ["", "wood", "wood", "wood", "wood"]
    assert [mesh.group_names[i] for i in mesh.groups] == ["", "chair", "chair/left leg", "chair/left leg", "table"]
    assert mesh.warnings == ()


def test_vertex_colours_of_an_obj(put):
    colored = "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\nf 1 2 3\n"
    assert np.allclose(load_mesh(put("a.obj", colored)).colors[0], [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("line", "alpha"),
    [("d 0.25", 0.25), ("Tr 0.25", 0.75), ("d 0.5\nTr 0.9", 0.5), ("Tr 0.9\nd 0.5", 0.5), ("d -halo 0.5", 0.5),
     ("Tr 1", 1.0), ("illum 2", 1.0), ("d 7", 1.0), ("d nan", 1.0), ("d", 1.0)],
)  # fmt: skip
def test_opacity_of_a_material(textured, line, alpha):
    color = load_mesh(textured(line)).colors[0, 0]
    assert np.allclose(color, [0.2, 0.4, 0.6, alpha])


def test_an_object_that_would_be_invisible_is_shown(textured):
    assert (load_mesh(textured("d 0")).colors[..., 3] == 1).all()


def test_a_missing_library_and_a_missing_material_are_warnings(put):
    mesh = load_mesh(put("a.obj", f"mtllib gone.mtl\n{SQUARE}usemtl x\nf 1 2 3\n"))
    assert mesh.warnings == ("material library gone.mtl is missing; its materials are drawn grey",)
    put("b.mtl", "newmtl other\nKd 1 0 0\n")
    mesh = load_mesh(put("b.obj", f"mtllib b.mtl\n{SQUARE}usemtl x\nf 1 2 3\n"))
    assert "material x" in mesh.warnings[0] and np.allclose(mesh.colors[0, 0], [0.7, 0.7, 0.7, 1])


def test_libraries_may_be_several_and_have_spaces_in_their_names(put):
    put("my paints.mtl", "newmtl red\nKd 1 0 0\n")
    put("b.mtl", "newmtl green\nKd 0 1 0\n")
    put("c.mtl", "newmtl blue paint\nKd 0 0 1\n")
    faces = "usemtl red\nf 1 2 3\nusemtl green\nf 1 2 3\nusemtl blue paint\nf 1 2 3\n"
    mesh = load_mesh(put("a.obj", "mtllib my paints.mtl\nmtllib b.mtl c.mtl\n" + SQUARE + faces))
    assert np.array_equal(mesh.colors[:, 0, :3], np.eye(3)) and mesh.warnings == ()


@pytest.mark.parametrize(("kind", "up"), [("ply", "z"), ("stl", "z"), ("glb", "y"), ("obj", "y")])
def test_formats_that_others_wrote_are_read_in_their_own_frame(tmp_path, kind, up):
    box = trimesh.creation.box(extents=(1, 2, 4))
    box.export(tmp_path / f"box.{kind}")
    mesh = load_mesh(tmp_path / f"box.{kind}")
    size = np.ptp(mesh.vertices, axis=0) * np.sqrt(21) / 2
    assert len(mesh.faces) == 12
    assert np.allclose(size, [1, 2, 4] if up == "z" else [1, 4, 2], atol=1e-5)


def test_a_gltf_scene_keeps_its_transforms_textures_and_names(tmp_path):
    picture = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    material = PBRMaterial(name="paint", baseColorTexture=picture, baseColorFactor=[255, 255, 255, 128])
    square = trimesh.Trimesh([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], [(0, 1, 2), (0, 2, 3)], process=False)
    square.visual = TextureVisuals(uv=[(0, 0), (1, 0), (1, 1), (0, 1)], material=material)
    plain = trimesh.creation.box(extents=(1, 1, 1))
    plain.visual = ColorVisuals(plain, face_colors=[0, 255, 0, 255])
    scene = trimesh.Scene()
    scene.add_geometry(square, node_name="picture")
    scene.add_geometry(plain, node_name="block", transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    scene.export(tmp_path / "a.glb")
    mesh = load_mesh(tmp_path / "a.glb")
    back = np.linalg.inv(mesh.mesh_to_splat)
    names = np.array([name.split("/")[0] for name in mesh.group_names])[mesh.groups]
    assert set(names) == {"picture", "block"}
    block = trimesh.transform_points(mesh.vertices[mesh.faces[names == "block"]].reshape(-1, 3), back)
    assert np.allclose(block.min(0), [4.5, -0.5, -0.5], atol=1e-5)
    assert np.allclose(mesh.colors[names == "block"], [0, 1, 0, 1])
    shown = mesh.texture[names == "picture"]
    assert (shown >= 0).all() and np.array_equal(mesh.textures[shown[0]][..., :3], np.asarray(picture))
    assert (mesh.colors[names == "picture"][..., 3] == 1).all()  # glTF: opaque unless it says otherwise


def test_a_ply_with_colours_and_normals(put):
    rows = "0 0 0 0 0.5 1 255 0 0\n1 0 0 0 0.5 1 0 255 0\n0 1 0 0 0.5 1 0 0 255\n"
    names = "".join(f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz"))
    names += "".join(f"property uchar {n}\n" for n in ("red", "green", "blue"))
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    mesh = load_mesh(put("a.ply", f"ply\nformat ascii 1.0\nelement vertex 3\n{names}{faces}{rows}3 0 1 2\n"))
    assert np.allclose(mesh.colors[0, :, :3], np.eye(3))
    assert np.allclose(mesh.normals[0], np.array([0, 0.5, 1]) / np.sqrt(1.25), atol=1e-6)


def test_collada_stands_on_the_axis_that_it_names(tmp_path):
    pytest.importorskip("collada", reason="trimesh writes COLLADA through pycollada")
    trimesh.creation.box(extents=(1, 2, 4)).export(tmp_path / "a.dae")
    text = (tmp_path / "a.dae").read_text()
    assert "<up_axis>Y_UP</up_axis>" in text
    for axis, size in {"Y_UP": [1, 4, 2], "Z_UP": [1, 2, 4], "X_UP": [2, 4, 1]}.items():
        (tmp_path / "b.dae").write_text(text.replace("Y_UP", axis))
        assert np.allclose(np.ptp(load_mesh(tmp_path / "b.dae").vertices, axis=0) * np.sqrt(21) / 2, size, atol=1e-5)


def test_texture_coordinates_without_a_material_invent_no_texture(put):
    mesh = load_mesh(put("a.obj", SQUARE + "vt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\n"))
    assert mesh.textures == () and (mesh.texture == -1).all() and np.allclose(mesh.colors, [0.7, 0.7, 0.7, 1])


@pytest.mark.parametrize("inside", [True, False])
def test_a_gltf_reads_its_buffers_from_its_own_folder_only(tmp_path, inside):
    files: Any = trimesh.Scene(trimesh.creation.box(extents=(1, 2, 4))).export(file_type="gltf")
    (tmp_path / "box").mkdir()
    for name, data in files.items():
        if name.endswith(".gltf"):
            text = data.decode() if inside else data.decode().replace('"uri":"', '"uri":"../')
            (tmp_path / "box/box.gltf").write_text(text)
        else:
            (tmp_path / ("box" if inside else ".") / name).write_bytes(data)
    if inside:
        assert len(load_mesh(tmp_path / "box/box.gltf").faces) == 12
    else:
        with pytest.raises(InputError, match=r"buffer \.\./.* outside"):
            load_mesh(tmp_path / "box/box.gltf")
