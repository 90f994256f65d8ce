"""Objects at the edges of what can be built: a result, or an error that says why, within time and memory."""

import multiprocessing
import resource

import numpy as np
import pytest
import trimesh
from PIL import Image

from gsmae.errors import InputError
from preprocessing.formats.assets import Limits
from preprocessing.meshes import load_mesh
from preprocessing.rendering.cameras import test_cameras as cameras_of_tests
from preprocessing.rendering.views import render_views
from preprocessing.surface import sample_surface

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def seen(mesh) -> np.ndarray:
    """How much of each of eight pictures from all around the object covers."""
    return render_views(mesh, cameras_of_tests(8, 32)).alphas.mean((1, 2)) / 255


def test_one_triangle_is_an_object(put):
    mesh = load_mesh(put("a.obj", TRIANGLE + "f 1 2 3\n"))
    samples = sample_surface(mesh, 500, 0)
    assert len(samples) == 500 and (samples.faces == 0).all()
    assert (seen(mesh) > 0.001).sum() >= 6


def test_a_sheet_without_thickness_is_seen_from_both_sides(put):
    mesh = load_mesh(put("a.off", "OFF 4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"))
    assert np.ptp(mesh.vertices[:, 2]) == 0 and len(sample_surface(mesh, 100, 0)) == 100
    cameras = cameras_of_tests(32, 32, -90, 90)
    cover = render_views(mesh, cameras).alphas.mean((1, 2)) / 255
    high = cameras.positions[:, 2]
    assert cover[high > 1].min() > 0.1 and cover[high < -1].min() > 0.1


def test_an_object_whose_only_area_is_invisible_is_an_error(put):
    put("a.mtl", "newmtl air\nd 0\nnewmtl line\nd 1\n")
    mesh = load_mesh(put("a.obj", f"mtllib a.mtl\n{TRIANGLE}usemtl air\nf 1 2 3\nusemtl line\nf 1 2 2\n"))
    assert (seen(mesh) == 0).all()
    with pytest.raises(InputError, match="no face is visible"):
        sample_surface(mesh, 100, 0)


def test_an_object_of_only_invisible_materials_is_taken_for_an_exporters_slip(put):
    put("a.mtl", "newmtl air\nd 0\n")
    mesh = load_mesh(put("a.obj", f"mtllib a.mtl\n{TRIANGLE}usemtl air\nf 1 2 3\n"))
    assert seen(mesh).max() > 0.01 and len(sample_surface(mesh, 100, 0)) == 100


SQUARE = trimesh.Trimesh([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], [(0, 1, 2), (0, 2, 3)], process=False)
VRML = """#VRML V2.0 utf8
Shape { geometry IndexedFaceSet { coord Coordinate { point [0 0 0 1 0 0 1 1 0 0 1 0] }
coordIndex [0 1 2 -1 0 2 3] } }"""


@pytest.mark.parametrize("kind", ["obj", "off", "ply", "stl", "stl_ascii", "glb", "dae", "wrl"])
def test_too_many_faces_are_refused_by_every_reader(put, kind):
    if kind == "wrl":
        data: str | bytes = VRML
    elif kind == "dae":
        pytest.importorskip("collada", reason="trimesh writes COLLADA through pycollada")
        data = trimesh.exchange.dae.export_collada(SQUARE)
    else:
        data = SQUARE.export(file_type=kind)  # type: ignore[assignment]
    path = put(f"a.{kind[:3]}", data)
    assert len(load_mesh(path, limits=Limits(faces=2)).faces) == 2
    with pytest.raises(InputError, match="2 faces; at most 1"):
        load_mesh(path, limits=Limits(faces=1))


def test_polygons_count_as_the_triangles_they_become(put):
    path = put("a.off", "OFF 4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    with pytest.raises(InputError, match="2 faces; at most 1"):
        load_mesh(path, limits=Limits(faces=1))


def test_a_texture_of_16384_pixels_is_refused_before_it_is_unpacked(textured, tmp_path):
    path = textured("map_Kd big.png")
    Image.new("1", (16384, 16384)).save(tmp_path / "models/big.png")
    with pytest.raises(InputError, match=r"big\.png.*(16384 x 16384|unpacks to too much)"):
        load_mesh(path)
    Image.new("1", (16384, 16)).save(tmp_path / "models/big.png")
    with pytest.raises(InputError, match=r"16384 x 16 pixels; at most 8192 a side"):
        load_mesh(path)
    assert load_mesh(path, limits=Limits(side=16384)).textures[0].shape == (16, 16384, 4)


def test_textures_that_are_too_much_together_are_refused(put):
    names = [f"t{i}.png" for i in range(4)]
    for name in names:
        put(name, np.full((16, 16, 3), 200, np.uint8))
    put("a.mtl", "".join(f"newmtl m{i}\nmap_Kd {name}\n" for i, name in enumerate(names)))
    faces = "".join(f"usemtl m{i}\nf 1/1 2/1 3/1\n" for i in range(4))
    path = put("a.obj", f"mtllib a.mtl\n{TRIANGLE}vt 0 0\n{faces}")
    assert len(load_mesh(path, limits=Limits(texels=1024)).textures) == 4
    with pytest.raises(InputError, match="together"):
        load_mesh(path, limits=Limits(texels=1023))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "gigabytes"), [("ply", 2.5), ("obj", 3.5)])
def test_five_million_faces_are_read_within_memory(tmp_path, kind, gigabytes):
    side = 1600
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, side + 1), np.linspace(0.01, np.pi - 0.01, side + 1), indexing="ij")
    points = np.stack([np.sin(v) * np.cos(u), np.sin(v) * np.sin(u), np.cos(v)], -1).reshape(-1, 3)
    first = (np.arange(side)[:, None] * (side + 1) + np.arange(side)).reshape(-1)
    quads = np.stack([first, first + side + 1, first + side + 2, first + 1], axis=1).astype(np.int32)
    path = tmp_path / f"a.{kind}"
    if kind == "obj":
        with path.open("w") as file:
            np.savetxt(file, points, fmt="v %.4f %.4f %.4f")
            np.savetxt(file, quads + 1, fmt="f %d %d %d %d")
    else:
        rows = np.zeros(len(quads), np.dtype([("n", "u1"), ("i", "<i4", 4)]))
        rows["n"], rows["i"] = 4, quads
        axes = "".join(f"property float {axis}\n" for axis in "xyz")
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{axes}element face {len(quads)}\n"
        head += "property list uchar int vertex_indices\nend_header\n"
        path.write_bytes(head.encode() + points.astype("<f4").tobytes() + rows.tobytes())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        faces, peak = pool.apply(_load, (path,))
    assert faces == 2 * len(quads) == 5_120_000 and peak < gigabytes * 2**20


def _load(path) -> tuple[int, int]:
    """Faces, and the most memory that this process ever held, in kB."""
    return len(load_mesh(path).faces), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
