from importlib.util import find_spec

import numpy as np
import pytest

from gsmae.errors import GsmaeError
from gsmae.ops.native import library
from gsmae.render import look_at
from preprocessing.meshes import Mesh, load_mesh
from preprocessing.rendering.cameras import Cameras, train_cameras
from preprocessing.rendering.shading import AMBIENT
from preprocessing.rendering.views import RENDERERS, render_views

NATIVE = pytest.param("native", marks=pytest.mark.skipif(not library.available(), reason="no compiled kernels"))
WARP = pytest.param(
    "warp", marks=pytest.mark.skipif(find_spec("warp") is None, reason="Warp is not installed: gsmae[gpu]")
)
each = pytest.mark.parametrize("renderer", [NATIVE, "reference", WARP])


def soup(triangles, colors=(1, 1, 1, 1), uvs=None, textures=()) -> Mesh:
    """A mesh of loose triangles [F, 3, 3] with a colour for each or for all, and texture 0 where uvs are given."""
    corners = np.asarray(triangles, dtype=np.float32)
    count = len(corners)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    colors = np.broadcast_to(np.asarray(colors, dtype=np.float32).reshape(-1, 4), (count, 4))
    zeros = np.zeros(count, dtype=np.int32)
    return Mesh(
        vertices=corners.reshape(-1, 3),
        faces=np.arange(3 * count, dtype=np.int32).reshape(-1, 3),
        normals=np.repeat(normal[:, None], 3, axis=1),
        uvs=np.zeros((count, 3, 2), np.float32) if uvs is None else np.asarray(uvs, dtype=np.float32),
        colors=np.ascontiguousarray(np.repeat(colors[:, None], 3, axis=1)),
        texture=zeros - (uvs is None),
        textures=tuple(textures),
        materials=zeros,
        material_names=("",),
        groups=zeros,
        group_names=("",),
        mesh_to_splat=np.eye(4),
        sha256="",
        warnings=(),
    )


def square(y: float, size: float = 2.0) -> np.ndarray:
    """Two triangles of an upright square at depth y, seen from -y with x to the right and z up."""
    a, b, c, d = ((x * size, y, z * size) for x, z in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    return np.array([(a, b, c), (a, c, d)])


SQUARE_UV = [[(0, 0), (1, 0), (1, 1)], [(0, 0), (1, 1), (0, 1)]]


def seen_from(*positions, size=32, focal=1.0) -> Cameras:
    """Cameras at these places, looking at the origin; focal in widths of the picture."""
    import torch

    viewmats = look_at(torch.tensor(positions, dtype=torch.float64)).float().numpy()
    K = np.array([[focal * size, 0, size / 2], [0, focal * size, size / 2], [0, 0, 1]], dtype=np.float32)
    return Cameras(viewmats, np.repeat(K[None], len(positions), axis=0), size, size)


FRONT = seen_from((0, -3, 0))


@pytest.mark.skipif(not library.available(), reason="no compiled kernels")
@pytest.mark.parametrize("variant", library.variants())
@pytest.mark.parametrize(
    "name", ["cabinet/glassDoorCabinet", "chair/deckChair", "lamp/lantern", "table/tableWithTablecloth"]
)
def test_the_native_renderer_draws_what_the_reference_defines(examples, name, variant):
    mesh = load_mesh(examples / "meshes" / name / "models" / f"{name.split('/')[1]}.obj")
    cameras = train_cameras("sphere", 3, 48)
    with library.using(variant):
        native = render_views(mesh, cameras, 2, (0.2, 0.4, 1.0), "native")
    reference = render_views(mesh, cameras, 2, (0.2, 0.4, 1.0), "reference")
    difference = np.abs(native.images.astype(int) - reference.images).max(axis=-1)
    assert (difference > 5).mean() < 1e-3 and np.abs(native.alphas.astype(int) - reference.alphas).mean() < 0.05
    assert 0.05 < (reference.alphas > 0).mean() < 0.95


@each
def test_random_triangles_with_everything_on_them_agree_and_stay_in_range(renderer):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (24, 17, 4), dtype=np.uint8)
    mesh = soup(random.normal(0, 0.6, (60, 3, 3)), random.random((60, 4)), random.normal(0, 2, (60, 3, 2)), (picture,))
    cameras = seen_from((0.3, -0.6, 0.2), (2, 2, 1), (0, 0, 3), size=24)
    views = render_views(mesh, cameras, 3, renderer=renderer)
    reference = render_views(mesh, cameras, 3, renderer="reference")
    assert views.images.shape == (3, 24, 24, 3) and views.alphas.shape == (3, 24, 24)
    assert np.abs(views.images.astype(int) - reference.images).max() <= 5
    assert np.abs(views.alphas.astype(int) - reference.alphas).max() <= 5


@each
def test_a_closed_surface_has_no_cracks_and_no_sample_is_drawn_twice(renderer):
    # half-transparent, so that a sample drawn twice would be darker, and one never drawn lighter
    random = np.random.default_rng(1)
    x, z = np.meshgrid(np.linspace(-2, 2, 13), np.linspace(-2, 2, 13), indexing="ij")
    inner = np.zeros_like(x, dtype=bool)
    inner[1:-1, 1:-1] = True
    x, z = (values + inner * random.uniform(-0.12, 0.12, values.shape) for values in (x, z))
    x[6], z[:, 7] = 0.0, 0.5  # some edges exactly through samples' centres
    points = np.stack([x, np.zeros_like(x), z], axis=-1)
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    mesh = soup(
        np.concatenate([np.stack(t, axis=-2).reshape(-1, 3, 3) for t in ((a, b, c), (a, c, d))]), (1, 1, 1, 0.6)
    )
    views = render_views(mesh, seen_from((0, -3, 0), size=65), 1, renderer=renderer)
    assert np.unique(views.alphas).tolist() == [153]
    assert len(np.unique(views.images)) == 1


@each
def test_textures_are_the_right_way_up_and_not_mirrored(renderer):
    picture = np.zeros((2, 2, 4), dtype=np.uint8)
    picture[0, 0], picture[0, 1], picture[1, 0], picture[1, 1] = (
        (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (255, 255, 255, 255),
    )  # fmt: skip
    image = render_views(soup(square(0, 1.4), uvs=SQUARE_UV, textures=(picture,)), FRONT, renderer=renderer).images[0]
    lit = image[8, 8, 0] / 255
    for row, column, color in ((8, 8, (1, 0, 0)), (8, 23, (0, 1, 0)), (23, 8, (0, 0, 1)), (23, 23, (1, 1, 1))):
        assert np.allclose(image[row, column] / 255, np.array(color) * lit, atol=0.02), (row, column)


@each
def test_both_sides_of_a_face_are_lit_as_the_side_that_is_seen(renderer):
    front = soup(square(0))
    back = soup(square(0)[:, ::-1])
    cameras = seen_from((0, -3, 0), (0, 3, 0))
    one, other = (render_views(mesh, cameras, renderer=renderer).images for mesh in (front, back))
    assert np.array_equal(one, other)
    assert one[0, 16, 16, 0] < one[1, 16, 16, 0]  # the key light stands on the +y side


@each
def test_light_stays_in_the_world_when_the_camera_moves(renderer):
    cameras = seen_from((0, -3, 0.2), (1.5, -2, 1), (-1, -4, -1), (0.2, -0.7, 0))
    centre = render_views(soup(square(0)), cameras, renderer=renderer).images[:, 16, 16]
    assert (centre == centre[0]).all()
    below = render_views(soup([[(-9, -9, 0), (9, -9, 0), (0, 18, 0)]]), seen_from((0, 0.1, -3)), renderer=renderer)
    assert below.images[0, 16, 16, 0] == round(255 * AMBIENT)  # no light comes from below


@each
def test_far_textures_turn_into_their_mean_instead_of_noise(renderer):
    checker = np.zeros((64, 64, 4), dtype=np.uint8)
    checker[::2, ::2, :3] = checker[1::2, 1::2, :3] = 255
    checker[..., 3] = 255
    mesh = soup(square(0), uvs=np.array(SQUARE_UV) * 8, textures=(checker,))
    image = render_views(mesh, FRONT, 1, renderer=renderer).images[0].astype(int)
    plain = render_views(soup(square(0), (0.5, 0.5, 0.5, 1)), FRONT, 1, renderer=renderer).images[0]
    assert np.abs(image - plain).max() <= 2


@each
def test_the_nearer_face_hides_the_farther_in_any_order(renderer):
    red, blue = (1, 0, 0, 1), (0, 0, 1, 1)
    for order in (1, -1):
        triangles = np.stack([square(0.5), square(-0.5)])[::order].reshape(-1, 3, 3)
        mesh = soup(triangles, np.array([red, red, blue, blue])[:: order if order > 0 else -1])
        assert render_views(mesh, FRONT, renderer=renderer).images[0, 16, 16, 0] == 0


@each
def test_of_doubled_faces_the_first_is_seen_everywhere(renderer):
    slope = square(0, 4) + np.array([0, 0.6, 0]) * square(0, 4)[..., :1]
    turned = slope[:, [1, 2, 0]]
    mesh = soup(np.concatenate([slope, turned]), [(1, 0, 0, 1)] * 2 + [(0, 0, 1, 1)] * 2)
    image = render_views(mesh, FRONT, renderer=renderer).images[0]
    assert (image[..., 2] == 0).all() and (image[..., 0] > 0).all()


@each
def test_translucent_faces_are_blended_by_depth_and_not_by_order(renderer):
    depths = np.array([-0.5, 0.5, 0.0])
    colors = np.array([(1, 0, 0, 0.5), (0, 1, 0, 0.5), (0, 0, 1, 1)])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        mesh = soup(np.concatenate([square(y) for y in depths[order]]), np.repeat(colors[order], 2, axis=0))
        views = render_views(mesh, FRONT, renderer=renderer)
        lit = AMBIENT + 0.2 * 2 / np.sqrt(21)
        assert np.allclose(views.images[0, 16, 16] / 255, np.array([0.5, 0, 0.5]) * lit, atol=0.005)
        assert views.alphas[0, 16, 16] == 255
    glass = soup(np.concatenate([square(0), square(0.5)]), (1, 0, 0, 0.5))
    assert render_views(glass, FRONT, renderer=renderer).alphas[0, 16, 16] == round(255 * 0.75)


@each
def test_cut_out_textures_show_what_lies_behind_them(renderer):
    bars = np.full((8, 8, 4), 255, dtype=np.uint8)
    bars[:, 4:, 3] = 0
    triangles, uvs = np.concatenate([square(0, 1.5), square(1)]), SQUARE_UV + [[(0.2, 0.5)] * 3] * 2
    colors = [(1, 0, 0, 1)] * 2 + [(0, 0, 1, 1)] * 2
    image = render_views(soup(triangles, colors, uvs, (bars,)), FRONT, renderer=renderer).images[0]
    assert image[16, 8, 2] == 0 and image[16, 8, 0] > 0
    assert image[16, 24, 0] == 0 and image[16, 24, 2] > 0
    assert set(np.unique((image[16] > 0).sum(axis=-1))) <= {1, 2}


@each
def test_a_camera_inside_a_box_sees_its_walls_everywhere(renderer):
    import trimesh

    box = trimesh.creation.box(extents=(2, 2, 2))
    mesh = soup(box.vertices[box.faces])
    views = render_views(mesh, seen_from((0.1, -0.2, 0.3), (0.9, 0.9, 0.9), focal=0.4), renderer=renderer)
    assert (views.alphas == 255).all()
    floor = soup([[(-50, -50, -0.5), (50, -50, -0.5), (0, 90, -0.5)]])
    view = render_views(floor, seen_from((0, -1, 0)), renderer=renderer)
    assert (view.alphas[0, :15] == 0).all() and (view.alphas[0, 17 + 9 :] == 255).all()


@each
def test_nothing_is_seen_of_what_lies_behind_or_has_no_area(renderer):
    behind = render_views(soup(square(-9)), FRONT, background=(0, 0.5, 1), renderer=renderer)
    assert (behind.alphas == 0).all() and behind.images[0, 5, 5].tolist() == [0, 128, 255]
    edge_on = soup([[(0, 0, 0), (0, 1, 0), (0, 0.5, 0)], [(0, 0, 0), (0, 0, 0), (1, 0, 0)]])
    assert (render_views(edge_on, FRONT, renderer=renderer).alphas == 0).all()


@each
def test_supersampling_is_the_mean_of_a_finer_picture(renderer, examples):
    mesh = load_mesh(examples / "meshes/lamp/outdoorLamp/models/outdoorLamp.obj")
    coarse = render_views(mesh, train_cameras("paper", 2, 24), 3, renderer=renderer).images
    fine = render_views(mesh, train_cameras("paper", 2, 72), 1, renderer=renderer).images
    mean = fine.reshape(2, 24, 3, 24, 3, 3).mean(axis=(2, 4))
    assert np.abs(coarse - mean).max() <= 1


@pytest.mark.skipif(not library.available(), reason="no compiled kernels")
def test_the_bytes_do_not_depend_on_the_number_of_threads(examples):
    mesh = load_mesh(examples / "meshes/cabinet/glassDoorCabinet/models/glassDoorCabinet.obj")
    cameras = train_cameras("sphere", 3, 50)
    pictures = []
    for threads in (1, 2, 5):
        library.set_threads(threads)
        pictures.append(render_views(mesh, cameras, 2, renderer="native").images)
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


def test_a_chair_stands_upright_in_its_pictures(examples):
    mesh = load_mesh(examples / "meshes/chair/foldingChair/models/foldingChair.obj")
    alphas = render_views(mesh, train_cameras("paper", 8, 64), 2).alphas
    rows = (alphas > 128).sum(axis=2)  # the seat is wide, the legs are thin
    assert (rows[:, 5:25].max(axis=1) > rows[:, 35:55].max(axis=1)).all()


def test_a_renderer_that_is_not_there_is_an_error_with_a_hint():
    with pytest.raises(GsmaeError, match="did you mean 'native'"):
        render_views(soup(square(0)), FRONT, renderer="nativ")
    with pytest.raises(GsmaeError, match="supersample"):
        render_views(soup(square(0)), FRONT, 0)
    with library.using("reference"), pytest.raises(GsmaeError, match="not compiled"):
        RENDERERS["native"](soup(square(0)), FRONT, 1, (1, 1, 1))
    with library.using("reference"):
        assert (render_views(soup(square(0)), FRONT).alphas == 255).all()
