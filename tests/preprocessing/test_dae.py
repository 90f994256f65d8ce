import numpy as np
import pytest
import trimesh

from gsmae.errors import InputError
from preprocessing.meshes import load_mesh

L_SHAPE = "0 0 0 2 0 0 2 1 0 1 1 0 1 2 0 0 2 0"
MATERIAL = """<library_materials><material id="m" name="oak"><instance_effect url="#e"/></material></library_materials>
<library_images><image id="i"><init_from>wood%20grain.png</init_from></image></library_images>
<library_effects><effect id="e"><profile_COMMON>
<newparam sid="surface"><surface type="2D"><init_from>i</init_from></surface></newparam>
<newparam sid="sampler"><sampler2D><source>surface</source></sampler2D></newparam>
<technique sid="common"><phong>{}</phong></technique></profile_COMMON></effect></library_effects>"""
RED = "<diffuse><color>1 0 0 1</color></diffuse>"
SOURCE = """<source id="{0}"><float_array id="{0}-a" count="{1}">{2}</float_array><technique_common>
<accessor source="#{0}-a" count="{1}" stride="{3}"/></technique_common></source>"""
VERTEX = '<input semantic="VERTEX" source="#v" offset="0"/>'
POLYLIST = f'<polylist count="1" material="s">{VERTEX}<vcount>6</vcount><p>0 1 2 3 4 5</p></polylist>'
PLACED = """<instance_geometry url="#g"><bind_material><technique_common><instance_material symbol="s" target="#m"/>
</technique_common></bind_material></instance_geometry>"""


def dae(faces=POLYLIST, nodes=f"<node>{PLACED}</node>", effect=RED, sources="", libraries="", up="Z_UP") -> str:
    position = SOURCE.format("p", 18, L_SHAPE, 3)
    return f"""<?xml version="1.0"?><COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
    <asset><up_axis>{up}</up_axis></asset>{MATERIAL.format(effect)}
    <library_geometries><geometry id="g"><mesh>{position}{sources}
    <vertices id="v"><input semantic="POSITION" source="#p"/></vertices>{faces}</mesh></geometry></library_geometries>
    {libraries}<library_visual_scenes><visual_scene id="all">{nodes}</visual_scene></library_visual_scenes>
    <scene><instance_visual_scene url="#all"/></scene></COLLADA>"""


def corners(mesh) -> np.ndarray:
    """[F, 3, 3] in the file's frame."""
    points = trimesh.transform_points(mesh.vertices[mesh.faces].reshape(-1, 3), np.linalg.inv(mesh.mesh_to_splat))
    return points.reshape(-1, 3, 3)


def area(mesh) -> float:
    return np.linalg.norm(np.cross(*np.diff(corners(mesh), axis=1).transpose(1, 0, 2)), axis=1).sum() / 2


@pytest.mark.parametrize(
    ("faces", "count", "expected"),
    [
        (POLYLIST, 4, 3.0),
        (f'<polygons count="1">{VERTEX}<p>0 1 2 3 4 5</p></polygons>', 4, 3.0),
        (f'<triangles count="2">{VERTEX}<p>0 1 2 0 2 5</p></triangles>', 2, 3.0),
        (f'<tristrips count="2">{VERTEX}<p>0 1 5 3</p><p>0 1 2</p></tristrips>', 3, 3.0),
        (f'<trifans count="1">{VERTEX}<p>0 1 2 3</p></trifans>', 2, 1.5),
        (f'<lines count="1">{VERTEX}<p>0 1</p></lines>{POLYLIST}', 4, 3.0),
    ],
)
def test_polygons_strips_and_fans(put, faces, count, expected):
    mesh = load_mesh(put("a.dae", dae(faces)))
    assert len(mesh.faces) == count and area(mesh) == pytest.approx(expected, rel=1e-5) and mesh.warnings == ()
    assert np.allclose(mesh.normals, [0, 0, 1], atol=1e-6)


def test_nodes_nest_are_used_again_and_mirror(put):
    library = f'<library_nodes><node id="n" name="leg"><scale>2 1 1</scale>{PLACED}</node></library_nodes>'
    nodes = """<node name="chair"><translate>10 0 0</translate><rotate>0 0 1 90</rotate><instance_node url="#n"/>
    <node><matrix>-1 0 0 0 0 1 0 0 0 0 1 5 0 0 0 1</matrix><instance_node url="#n"/></node></node>"""
    mesh = load_mesh(put("a.dae", dae(nodes=nodes, libraries=library)))
    assert len(mesh.faces) == 8 and mesh.group_names == ("leg",) and mesh.material_names == ("oak",)
    found = corners(mesh)
    assert np.allclose([found[:4].min((0, 1)), found[:4].max((0, 1))], [(8, 0, 0), (10, 4, 0)], atol=1e-4)
    assert np.allclose([found[4:].min((0, 1)), found[4:].max((0, 1))], [(8, -4, 5), (10, 0, 5)], atol=1e-4)
    assert np.allclose(mesh.normals, [0, 0, 1], atol=1e-5) and area(mesh) == pytest.approx(12, rel=1e-4)


@pytest.mark.parametrize(("up", "size"), [("X_UP", [2, 0, 2]), ("Y_UP", [2, 0, 2]), ("Z_UP", [2, 2, 0])])
def test_up_is_what_the_file_says(put, up, size):
    mesh = load_mesh(put("a.dae", dae(up=up)))
    assert np.allclose(np.ptp(mesh.vertices, axis=0) * np.sqrt(2), size, atol=1e-6)


@pytest.mark.parametrize(
    ("effect", "color"),
    [
        (RED, (1, 0, 0, 1)),
        (RED + '<transparent opaque="A_ONE"><color>0 0 0 0.5</color></transparent>', (1, 0, 0, 0.5)),
        (RED + "<transparency><float>0.25</float></transparency>", (1, 0, 0, 0.25)),
        (RED + '<transparent opaque="RGB_ZERO"><color>1 1 1 1</color></transparent>'
         "<transparency><float>0.25</float></transparency>", (1, 0, 0, 0.75)),
        (RED + "<transparency><float>0</float></transparency>", (1, 0, 0, 1)),
        ("", (0.7, 0.7, 0.7, 1)),
    ],
)  # fmt: skip
def test_diffuse_colour_and_opacity(put, effect, color):
    assert np.allclose(load_mesh(put("a.dae", dae(effect=effect))).colors, color, atol=1e-5)


def test_textures_and_vertex_colours_by_corner(put):
    put("wood grain.png", np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8))
    sources = SOURCE.format("t", 6, "0 0 1 0 0 1", 2) + SOURCE.format("c", 6, "1 0 0 0 1 0", 3)
    inputs = (
        VERTEX
        + '<input semantic="TEXCOORD" source="#t" offset="1" set="0"/><input semantic="COLOR" source="#c" offset="2"/>'
    )
    faces = f'<triangles count="1" material="s">{inputs}<p>0 0 0 1 1 1 5 2 0</p></triangles>'
    effect = '<diffuse><texture texture="sampler" texcoord="UV"/></diffuse>'
    mesh = load_mesh(put("a.dae", dae(faces, effect=effect, sources=sources)))
    assert mesh.textures[0][:, 0, 2].tolist() == [0, 255] and np.allclose(mesh.uvs[0], [(0, 0), (1, 0), (0, 1)])
    assert np.allclose(mesh.colors[0], [(1, 0, 0, 1), (0, 1, 0, 1), (1, 0, 0, 1)])
    gone = load_mesh(put("b/a.dae", dae(faces, effect=effect, sources=sources)))
    assert gone.textures == () and "wood" in gone.warnings[0]


def test_a_skin_stands_as_it_was_bound(put):
    library = """<library_controllers><controller id="k"><skin source="#g"><bind_shape_matrix>
    1 0 0 0 0 1 0 0 0 0 1 7 0 0 0 1</bind_shape_matrix></skin></controller></library_controllers>"""
    nodes = f"<node>{PLACED.replace('geometry', 'controller').replace('#g', '#k')}</node><node>{PLACED}</node>"
    mesh = load_mesh(put("a.dae", dae(nodes=nodes, libraries=library)))
    assert len(mesh.faces) == 8 and np.ptp(corners(mesh)[..., 2]) == pytest.approx(7, rel=1e-4)


def test_what_is_left_out_is_told(put):
    faces = f'<polylist count="2">{VERTEX}<vcount>2 4</vcount><p>0 1 0 1 2 3</p></polylist>'
    nodes = f"<node><lookat>0 0 1 0 0 0 0 1 0</lookat>{PLACED}</node>"
    warnings = load_mesh(put("a.dae", dae(faces, nodes))).warnings
    assert any("1 face(s)" in w for w in warnings) and any("<lookat>" in w for w in warnings)


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
BAD = {
    "entities": (dae().replace("<COLLADA", ENTITIES + "<COLLADA", 1), "document type"),
    "wide entities": (dae().replace("<COLLADA", ENTITIES + "<COLLADA", 1).replace('"1.0"', '"1.0" encoding="utf-16"')
                      .encode("utf-16"), "document type"),
    "cut": (dae()[:-100], "not readable as COLLADA"),
    "other": ("<svg/>", "not COLLADA"),
    "index": (dae(POLYLIST.replace("4 5<", "4 6<")), "value 6 of 6"),
    "negative": (dae(POLYLIST.replace("4 5<", "4 -1<")), "names value"),
    "count": (dae(POLYLIST.replace("<vcount>6", "<vcount>7")), "promises 7 corners but has 6"),
    "words": (dae(POLYLIST.replace("4 5<", "4 x<")), "<p>"),
    "source": (dae(POLYLIST.replace("#v", "#w")), "#w, which does not exist"),
    "geometry": (dae(nodes='<node><instance_geometry url="#h"/></node>'), "#h, which does not exist"),
    "loop": (dae(nodes='<node id="n"><instance_node url="#n"/></node>'), "nodes inside themselves"),
    "offset": (dae(POLYLIST.replace('offset="0"', 'offset="99999999999"')), "offset 99999999999"),
    "nan": (dae().replace("0 2 0</float", "0 nan 0</float"), "not finite"),
    "matrix": (dae(nodes=f"<node><matrix>1 2 3</matrix>{PLACED}</node>"), "<matrix> of 3"),
    "empty": (dae(nodes=""), "no faces"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_says_why(put, name, monkeypatch):
    monkeypatch.setattr("preprocessing.formats.dae.MAX_NODES", 1000)
    content, cause = BAD[name]
    with pytest.raises(InputError, match=cause):
        load_mesh(put("a.dae", content))


def test_damaged_bytes_give_a_mesh_or_an_input_error_and_nothing_else(put):
    random, outcomes = np.random.default_rng(0), set()
    whole = dae(effect=RED + "<transparency><float>0.5</float></transparency>").encode()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(20, len(data)))
            if random.random() < 0.7:
                data[place] = random.choice(list(b"0123456789-<>/#. abcdgmnpsv"))
            else:
                del data[place : place + int(random.integers(1, 9))]
        try:
            assert np.isfinite(load_mesh(put("x.dae", bytes(data))).vertices).all()
            outcomes.add("mesh")
        except InputError:
            outcomes.add("error")
    assert outcomes == {"mesh", "error"}
