import json

import numpy as np
import pytest

from gsmae.errors import InputError
from preprocessing.meshes import load_mesh
from preprocessing.surface import part_labels, sample_surface
from preprocessing.textures import is_cutout, pyramid

TWO = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 3 0 0\nv 3 1 0\n"
FACES = "usemtl small\nf 1 2 3\nf 1 3 4\nusemtl large\nf 2 5 6\nf 2 6 3\n"


@pytest.fixture
def deck_chair(examples):
    return load_mesh(examples / "meshes/chair/deckChair/models/deckChair.obj")


def test_samples_lie_on_the_faces_they_name(deck_chair):
    samples = sample_surface(deck_chair, 3000, 0)
    a, b, c = (deck_chair.vertices[deck_chair.faces[samples.faces]][:, i] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    assert np.abs(((samples.points - a) * normal).sum(1)).max() < 1e-5
    for p, q in ((a, b), (b, c), (c, a)):
        assert (np.cross(q - p, samples.points - p) * normal).sum(1).min() > -1e-5
    assert (samples.normals * normal).sum(1).min() > 0 and np.allclose(
        np.linalg.norm(samples.normals, axis=1), 1, atol=1e-5
    )


def test_faces_get_samples_by_their_area(put):
    samples = sample_surface(load_mesh(put("a.obj", TWO + FACES)), 6000, 1)
    assert np.bincount(samples.faces) / 6000 == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3], abs=0.02)


def test_a_seed_gives_the_same_points_and_another_seed_others(deck_chair):
    first, again, other = (sample_surface(deck_chair, 500, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.points, again.points) and not np.array_equal(first.points, other.points)
    assert first.points.dtype == np.float32 and first.colors.dtype == np.uint8 and first.faces.dtype == np.int32


def test_colours_come_from_materials_and_textures(put, textured, deck_chair):
    put("models/halves.png", np.array([[[255, 0, 0]] * 8] * 4 + [[[0, 0, 255]] * 8] * 4, dtype=np.uint8))
    samples = sample_surface(load_mesh(textured("map_Kd halves.png")), 400, 0)
    high = samples.points[:, 2]
    assert (samples.colors[(high > 0.2) & (high < 0.6)] == [255, 0, 0]).all()  # the picture's top row is at the top
    assert (samples.colors[(high < -0.2) & (high > -0.6)] == [0, 0, 255]).all()
    metal = deck_chair.material_names.index("Metal")
    chair = sample_surface(deck_chair, 3000, 0)
    plain = chair.colors[deck_chair.materials[chair.faces] == metal]
    assert len(plain) and (plain == 204).all()


def test_holes_of_a_cut_out_texture_have_no_samples(put, textured):
    leaf = np.zeros((16, 16, 4), dtype=np.uint8)
    leaf[:, :8] = (0, 255, 0, 255)
    put("models/leaf.png", leaf)
    mesh = load_mesh(textured("map_Kd leaf.png"))
    samples = sample_surface(mesh, 500, 0)
    assert mesh.cutouts.tolist() == [True] and len(samples) == 500
    assert (samples.colors == [0, 255, 0]).all() and samples.points[:, 0].max() < 0.1


def test_invisible_faces_have_no_samples(put):
    put("a.mtl", "newmtl small\nd 1\nnewmtl large\nd 0\n")
    samples = sample_surface(load_mesh(put("a.obj", "mtllib a.mtl\n" + TWO + FACES)), 200, 0)
    assert samples.faces.max() == 1


def test_an_object_without_a_visible_spot_is_an_error(put, textured):
    ghost = np.zeros((64, 64, 4), dtype=np.uint8)
    ghost[0, 0, 3] = 255
    put("models/ghost.png", ghost)
    path = textured("map_Kd ghost.png")
    path.write_text(
        path.read_text()
        .replace("vt 1 0", "vt 0.3 0.3")
        .replace("vt 1 1", "vt 0.4 0.3")
        .replace("vt 0 1", "vt 0.4 0.4")
        .replace("vt 0 0", "vt 0.3 0.4")
    )
    with pytest.raises(InputError, match="transparent"):
        sample_surface(load_mesh(path), 10, 0)


def test_parts_follow_materials_then_groups_in_the_order_given(put):
    mesh = load_mesh(put("a.obj", TWO + "g Left_Leg\n" + FACES + "o lid\ng rim\nf 1 2 3\n"))
    faces = np.arange(5)
    assert part_labels(mesh, faces, {"a": ["SMALL"], "b": ["lar*"]}).tolist() == [0, 0, 1, 1, 1]
    assert part_labels(mesh, faces, {"leg": ["*leg"], "a": ["small"]}).tolist() == [1, 1, 0, 0, -1]
    assert part_labels(mesh, faces, {"x": ["lid"], "y": ["nothing"]}).tolist() == [-1, -1, -1, -1, 0]
    assert part_labels(mesh, faces, {"x": ["lid/rim"], "y": []}).tolist() == [-1, -1, -1, -1, 0]
    assert part_labels(mesh, faces[3:], {}).tolist() == [-1, -1]


def test_one_material_for_all_labels_nothing_unless_there_is_one_part(put):
    mesh = load_mesh(put("a.obj", TWO + "usemtl Lamp\nf 1 2 3\nf 2 5 6\n"))
    assert (part_labels(mesh, np.arange(2), {"body": ["Lamp"], "light": ["Pane"]}) == -1).all()
    assert (part_labels(mesh, np.arange(2), {"body": ["Lamp"]}) == 0).all()


def test_the_examples_parts_are_where_the_eye_sees_them(examples):
    parts = json.loads((examples / "parts.json").read_text())
    assert set(parts) == {path.name for path in (examples / "meshes").iterdir()}

    def heights(name):
        mesh = load_mesh(examples / "meshes" / name)
        samples = sample_surface(mesh, 4000, 0)
        names = parts[name.split("/")[0]]
        labels = part_labels(mesh, samples.faces, names)
        assert labels.dtype == np.int16
        return {part: samples.points[labels == i, 2] for i, part in enumerate(names)}

    table = heights("table/table/models/table.obj")
    assert table["top"].min() > table["legs"].mean() and len(table["top"]) + len(table["legs"]) == 4000
    chair = heights("chair/foldingChair/models/foldingChair.obj")
    assert chair["seat"].min() > chair["frame"].mean()
    shelf = heights("cabinet/upperShelves/models/upperShelves.obj")
    assert all(len(values) == 0 for values in shelf.values())  # one material: its name says nothing about parts


def test_halved_pictures_keep_their_mean_and_invisible_texels_do_not_bleed():
    image = np.zeros((8, 4, 4), dtype=np.uint8)
    image[..., 0] = 255  # red, but
    image[::2] = (0, 200, 0, 255)  # only green is visible
    levels = pyramid(image)
    assert [level.shape[:2] for level in levels] == [(8, 4), (4, 2), (2, 1), (1, 1)]
    assert np.allclose(levels[-1][0, 0], [0, 100, 0, 128], atol=1)
    assert (
        is_cutout(image)
        and not is_cutout(np.full((4, 4, 4), 255, np.uint8))
        and not is_cutout(np.full((4, 4, 4), 99, np.uint8))
    )
