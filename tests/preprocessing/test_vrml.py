from typing import Any

import numpy as np
import pytest
import trimesh

from gsmae.errors import InputError
from preprocessing.formats.assets import Limits
from preprocessing.meshes import load_mesh
from preprocessing.surface import part_labels

HEAD = "#VRML V2.0 utf8\n"
SQUARE = "coord Coordinate { point [0 0 0, 1 0 0, 1 1 0, 0 1 0] } coordIndex [0,1,2,3,-1]"
FACE = f"Shape {{ geometry IndexedFaceSet {{ {SQUARE} }} }}"

# a package as KiCad has it: a licence with brackets and quotes, a palette of materials, then the shapes that use it
KICAD = """#VRML V2.0 utf8
#kicad StepUp wrl exported
# "as is" [without] {warranty}
Shape {
\tappearance Appearance {material DEF PIN-01 Material {
\t\tdiffuseColor 0.824 0.82 0.781
\t\ttransparency 0.0
\t\tshininess 0.7
\t\t}
\t}
}
Shape {
\tappearance Appearance {material DEF GLASS-13 Material {
\t\tdiffuseColor 0.0 0.631244 0.748016
\t\ttransparency 0.39
\t\t}
\t}
}
Shape { geometry IndexedFaceSet
{ creaseAngle 0.50 coordIndex [0,1,2,-1,3,1,0,-1]
coord Coordinate { point [0 0 0,2 0 0,0 1 0,
1 0 0.5 # the tip
]}}
appearance Appearance{material USE PIN-01 }
}
Shape { geometry IndexedFaceSet
{ creaseAngle 0.50 coordIndex [0,1,2,3,4,5,-1,0,1,-1]
coord Coordinate { point [0 0 4,2 0 4,2 1 4,1 1 4,1 2 4,0 2 4]}}
appearance Appearance{material USE GLASS-13 }
}
Shape { geometry IndexedFaceSet { coordIndex [] coord Coordinate { point [] } }
appearance Appearance {material USE PIN-01} }
"""


def faces(mesh) -> np.ndarray:
    """[F, 3, 3] corners in the file's frame, the smaller faces (by their first corner) first."""
    corners = mesh.vertices[mesh.faces].reshape(-1, 3)
    return trimesh.transform_points(corners, np.linalg.inv(mesh.mesh_to_splat)).reshape(-1, 3, 3)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_kicad_package_has_its_materials_colours_and_every_face(put, ending):
    mesh = load_mesh(put("a.wrl", KICAD.replace("\n", ending).encode()))
    assert [mesh.material_names[i] for i in mesh.materials] == ["PIN-01"] * 2 + ["GLASS-13"] * 4
    assert np.allclose(mesh.colors[0], [0.824, 0.82, 0.781, 1])
    assert np.allclose(mesh.colors[2], [0, 0.631244, 0.748016, 0.61])
    areas = np.linalg.norm(np.cross(*np.diff(faces(mesh), axis=1).transpose(1, 0, 2)), axis=1) / 2
    assert areas[2:].sum() == pytest.approx(3)  # the L, concave, is covered once
    assert mesh.warnings == ("1 face(s) of fewer than three corners are left out",)
    assert part_labels(mesh, np.arange(6), {"lead": ["pin-*"], "glass": ["GLASS-*"]}).tolist() == [0] * 2 + [1] * 4


def test_z_is_up(put):
    mesh = load_mesh(put("a.wrl", KICAD))
    assert np.allclose(np.diag(mesh.mesh_to_splat)[:3] / mesh.mesh_to_splat[0, 0], 1)


def test_transforms_nest_and_nodes_are_used_again(put):
    turned = "rotation 0 0 1 1.5707963 scale 2 1 1 scaleOrientation 0 0 1 0.3 center 1 0 0"
    text = f"""DEF Once Group {{ children {FACE} }}
    Transform {{ translation 10 0 0 children [ Transform {{ {turned} children USE Once }} USE Once ] }}"""
    mesh = load_mesh(put("a.wrl", HEAD + text))
    assert len(mesh.faces) == 6 and mesh.group_names == ("Once",)
    rotate, move = trimesh.transformations.rotation_matrix, trimesh.transformations.translation_matrix
    tilt = rotate(0.3, [0, 0, 1])
    matrix = move([11, 0, 0]) @ rotate(np.pi / 2, [0, 0, 1]) @ tilt @ np.diag([2, 1, 1, 1]) @ tilt.T @ move([-1, 0, 0])
    found = faces(mesh)
    assert np.allclose(found[2:4].reshape(-1, 3), trimesh.transform_points(found[:2].reshape(-1, 3), matrix), atol=1e-5)
    assert np.allclose(found[4:], found[:2] + [10, 0, 0], atol=1e-5)


def test_faces_keep_their_outside_through_mirrors(put):
    text = f"{FACE} Transform {{ translation 0 0 1 scale -1 1 1 children {FACE} }}"
    text += (
        FACE.replace("0 0,", "0 2,")
        .replace("1 0,", "1 2,")
        .replace("1 0]", "1 2]")
        .replace("coord ", "ccw FALSE coord ", 1)
    )
    mesh = load_mesh(put("a.wrl", HEAD + text))
    assert np.allclose(mesh.normals[:, 0, 2], [1, 1, 1, 1, -1, -1], atol=1e-6)


def test_switches_and_levels_of_detail_show_one_child(put):
    text = f"""Switch {{ whichChoice 1 choice [ {FACE} {FACE} {FACE} ] }} Switch {{ choice [ {FACE} ] }}
    LOD {{ range [1, 2] level [ {FACE} {FACE} ] }}"""
    assert len(load_mesh(put("a.wrl", HEAD + text)).faces) == 4


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("color Color { color [1 0 0, 0 0 1] } colorPerVertex FALSE", [(1, 0, 0), (0, 0, 1)]),
        ("color Color { color [1 0 0, 0 0 1] } colorPerVertex FALSE colorIndex [1 0]", [(0, 0, 1), (1, 0, 0)]),
        ("color Color { color [1 0 0, 0 1 0, 0 0 1, 1 1 1] }", [(1, 0, 0), (0, 1, 0)]),
        ("color Color { color [1 0 0, 0 1 0] } colorIndex [1 1 1 -1 0 0 0 -1]", [(0, 1, 0), (1, 0, 0)]),
    ],
)
def test_colours_of_faces_and_corners_replace_the_materials(put, fields, expected):
    shape = """Shape { appearance Appearance { material Material { diffuseColor 0.5 0.5 0.5 transparency 0.5 } }
    geometry IndexedFaceSet { coord Coordinate { point [0 0 0, 1 0 0, 1 1 0, 0 1 0] } coordIndex [0 1 2 -1 1 2 3]"""
    mesh = load_mesh(put("a.wrl", f"{HEAD}{shape} {fields} }} }}"))
    assert np.allclose(mesh.colors[:, 0], np.insert(np.array(expected, dtype=float), 3, 0.5, axis=1))


def test_what_is_no_mesh_is_left_out_aloud_and_lines_are_not_missed(put):
    shapes = "Shape { geometry Box { size 1 1 1 } } Shape { geometry IndexedLineSet { coord USE p coordIndex [0 1] } }"
    text = f"""WorldInfo {{ title "a [title] {{ # of" info [ "x" "y" ] }} NavigationInfo {{ type [ "EXAMINE", "ANY" ] }}
    DEF v Viewpoint {{ position 0 0 1 }} {FACE.replace("coord Coord", "coord DEF p Coord")} {shapes}
    Inline {{ url "other.wrl" }} ROUTE v.a TO v.b"""
    mesh = load_mesh(put("a.wrl", HEAD + text))
    assert len(mesh.faces) == 2 and len(mesh.warnings) == 2
    assert "Box" in mesh.warnings[0] and "Inline" in mesh.warnings[1]
    assert np.allclose(mesh.colors, [0.7, 0.7, 0.7, 1])


BAD = {
    "one": ("#VRML V1.0 ascii\nSeparator { }", "VRML 1 is not read"),
    "text": ("hello", "does not begin"),
    "nothing": (HEAD, "no faces"),
    "lines": (HEAD + "Shape { geometry IndexedLineSet { } }", "no faces"),
    "empty": (HEAD + "Shape { geometry IndexedFaceSet { } }", "no faces"),
    "cut": (HEAD + FACE[:-3], "truncated"),
    "cut array": (HEAD + FACE[:70], "truncated"),
    "index": (HEAD + FACE.replace("3,-1", "4,-1"), "vertex 4 of 4"),
    "negative": (HEAD + FACE.replace("3,-1", "-3,-1"), "vertex -3 of 4"),
    "fraction": (HEAD + FACE.replace("3,-1", "3.5,-1"), "coordIndex"),
    "points": (HEAD + FACE.replace("0 1 0]", "0 1]"), "11 numbers"),
    "nan": (HEAD + FACE.replace("0 1 0]", "0 1 nan]"), "nan"),
    "huge": (HEAD + FACE.replace("0 1 0]", "0 1 1e999]"), "not finite"),
    "proto": (HEAD + "PROTO Pin [ ] { }" + FACE, "PROTO"),
    "use": (HEAD + "USE nobody", "nobody"),
    "itself": (HEAD + "DEF a Group { children [ USE a ] }", "not defined before"),
    "deep": (HEAD + "Group { children [ " * 5000 + FACE + " ] }" * 5000, "nodes inside nodes"),
    "colours": (HEAD + FACE.replace("coord ", "color Color { color [1 0 0] } coord ", 1), "colours do not fit"),
    "words": (HEAD + "lots of words", "where a node should be"),
    "bracket": (HEAD + "}", "where a node should be"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_says_why(put, name):
    content, cause = BAD[name]
    with pytest.raises(InputError, match=cause):
        load_mesh(put("a.wrl", content))


def test_a_small_file_cannot_unfold_into_a_large_scene(put, monkeypatch):
    doubled = "".join(f"DEF n{i + 1} Group {{ children [ USE n{i} USE n{i} ] }}\n" for i in range(40))
    text = f"{HEAD}DEF n0 Group {{ children {FACE} }}\n{doubled}"
    monkeypatch.setattr("preprocessing.formats.vrml.MAX_NODES", 1000)
    with pytest.raises(InputError, match="more than 1000 nodes"):
        load_mesh(put("a.wrl", text))
    with pytest.raises(InputError, match="101 faces; at most 100"):
        load_mesh(put("a.wrl", text), limits=Limits(faces=100))


def test_damaged_bytes_give_a_mesh_or_an_input_error_and_nothing_else(put):
    random = np.random.default_rng(0)
    outcomes = set()
    inserts: Any = [b"nan ", b"[", b"]", b"{", b"}", b"-9 ", b"DEF ", b"1e400 ", b'"', b"#", b"USE x "]
    for _ in range(300):
        data = bytearray(KICAD.encode())
        for _ in range(random.integers(1, 5)):
            place = int(random.integers(20, len(data)))
            kind = random.integers(3)
            if kind == 0:
                data[place] = int(random.integers(256))
            elif kind == 1:
                del data[place : place + int(random.integers(1, 60))]
            else:
                data[place:place] = inserts[random.integers(len(inserts))]
        try:
            assert np.isfinite(load_mesh(put("x.wrl", bytes(data))).vertices).all()
            outcomes.add("mesh")
        except InputError:
            outcomes.add("error")
    assert outcomes == {"mesh", "error"}
