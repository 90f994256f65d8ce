"""The renderer that needs NVIDIA Warp. What every renderer must draw is told in test_render.py, of this one too."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from gsmae.errors import GsmaeError
from preprocessing.meshes import Mesh, load_mesh
from preprocessing.rendering import warp as render_warp
from preprocessing.rendering.cameras import Cameras, train_cameras
from preprocessing.rendering.shading import BLENDED, CUTOUT, OPAQUE, Views, face_modes
from preprocessing.rendering.views import RENDERERS, render_views

ROOT = Path(__file__).resolve().parents[2]
SKY = (0.2, 0.4, 1.0)
needs_warp = pytest.mark.skipif(find_spec("warp") is None, reason="Warp is not installed: gsmae[gpu]")


def example(examples: Path, name: str) -> Mesh:
    return load_mesh(examples / "meshes" / name / "models" / f"{name.split('/')[1]}.obj")


def punched(mesh: Mesh) -> Mesh:
    """The mesh with round holes in its pictures."""

    def holes(image: np.ndarray) -> np.ndarray:
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] * 4 / max(image.shape[:2]) % 1 - 0.5
        return np.dstack([image[..., :3], np.where(x * x + y * y < 0.1, 0, 255).astype(np.uint8)])

    return replace(mesh, textures=tuple(holes(image) for image in mesh.textures))


def tinted(mesh: Mesh) -> Mesh:
    """The mesh with all its faces a little translucent, and the pictures as they are."""
    return replace(mesh, colors=mesh.colors * np.array([1, 1, 1, 0.7], dtype=np.float32))


def plain(mesh: Mesh) -> Mesh:
    return mesh


def assert_same(views: Views, expected: Views, pixels: float = 2e-4) -> None:
    """Pictures to 5/255, but for a share `pixels` of them: edges that go through the centre of a sample."""
    difference = np.abs(views.images.astype(int) - expected.images).max(axis=-1)
    assert (difference > 5).mean() <= pixels
    assert (difference > 0).mean() <= 20 * pixels
    assert (np.abs(views.alphas.astype(int) - expected.alphas) > 5).mean() <= pixels
    assert 0.05 < (expected.alphas > 0).mean() < 0.95


@needs_warp
@pytest.mark.parametrize(
    "name, change, mode",
    [
        ("chair/deckChair", plain, OPAQUE),
        ("table/tableWithTablecloth", plain, OPAQUE),
        ("cabinet/upperShelves", plain, OPAQUE),
        ("cabinet/glassDoorCabinet", plain, BLENDED),
        ("lamp/JapaneseLantern", tinted, BLENDED),
        ("container/crate", punched, CUTOUT),
        ("chair/osakaChair", punched, CUTOUT),
    ],
)
def test_rays_see_what_the_rasteriser_draws(examples, name, change, mode):
    mesh = change(example(examples, name))
    assert mode in face_modes(mesh) and len(mesh.textures) > 0
    cameras = train_cameras("sphere", 4, 80)
    warp = render_warp.render(mesh, cameras, 2, SKY, "cpu")
    assert_same(warp, render_views(mesh, cameras, 2, SKY))


@needs_warp
def test_cameras_far_away_skewed_and_not_square_see_the_same(examples):
    mesh = example(examples, "cabinet/glassDoorCabinet")
    near = train_cameras("sphere", 3, 64)
    distances = np.array([1, 30, 3000])  # in those of the rig
    viewmats, Ks = near.viewmats.copy(), near.Ks.copy()
    viewmats[:, 2, 3] *= distances
    Ks[:, [0, 1], [0, 1]] *= distances[:, None]
    Ks[:, 0, 1], Ks[:, 1, 2] = 0.2 * Ks[:, 0, 0], 20
    cameras = Cameras(viewmats, Ks, 64, 41)
    assert_same(render_warp.render(mesh, cameras, 1, SKY, "cpu"), render_views(mesh, cameras, 1, SKY), 1e-3)


@needs_warp
def test_any_number_of_translucent_layers_is_blended(examples):
    mesh, copies = example(examples, "lamp/JapaneseLantern"), np.linspace(0.2, 1, 15, dtype=np.float32)
    count = len(mesh.vertices)
    nested = replace(
        mesh,
        vertices=np.concatenate([mesh.vertices * size for size in copies]),
        faces=np.concatenate([mesh.faces + count * i for i in range(len(copies))]),
        **{name: np.concatenate([getattr(mesh, name)] * len(copies)) for name in ("normals", "uvs", "texture")},
        colors=np.concatenate([mesh.colors] * len(copies)) * np.array([1, 1, 1, 0.05], dtype=np.float32),
    )
    cameras = train_cameras("sphere", 2, 64)
    views = render_warp.render(nested, cameras, 2, SKY, "cpu")
    assert_same(views, render_views(nested, cameras, 2, SKY))
    assert views.alphas.max() > 255 * (1 - 0.95**25)  # more than 25 of them


@needs_warp
def test_faces_that_pass_through_each_other_agree(examples):
    mesh, random = example(examples, "container/ammoBox"), np.random.default_rng(0)
    corners = random.uniform(-0.6, 0.6, mesh.vertices.shape).astype(np.float32)
    opacity = random.choice([1, 0.5], (len(mesh.faces), 1)).astype(np.float32)
    mesh = replace(mesh, vertices=corners, colors=np.dstack([mesh.colors[..., :3], opacity.repeat(3, axis=1)]))
    assert set(face_modes(mesh)) == {OPAQUE, BLENDED}
    cameras = train_cameras("sphere", 3, 64)
    assert_same(render_warp.render(mesh, cameras, 2, SKY, "cpu"), render_views(mesh, cameras, 2, SKY), 1e-3)


@needs_warp
def test_an_uploaded_mesh_is_drawn_again_and_again_and_its_pictures_stay_on_the_device(examples):
    mesh = example(examples, "lamp/lantern")
    cameras = train_cameras("sphere", 4, 24)
    scene = render_warp.upload(mesh, "cpu")
    images, alphas = render_warp.draw(scene, cameras, 2, SKY)
    assert images.dtype == alphas.dtype == torch.uint8 and images.device.type == "cpu"
    again = torch.cat([render_warp.draw(scene, cameras[i : i + 1], 2, SKY)[0] for i in range(4)])
    assert torch.equal(images, again)
    whole = render_warp.render(mesh, cameras, 2, SKY, "cpu")
    assert np.array_equal(images.numpy(), whole.images) and np.array_equal(alphas.numpy(), whole.alphas)
    assert render_warp.draw(scene, cameras[:0])[0].shape == (0, 24, 24, 3)


def test_without_warp_the_error_names_the_extra(examples, monkeypatch):
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(GsmaeError, match=r"pip install 'gsmae\[gpu\]'"):
        render_views(example(examples, "lamp/lantern"), train_cameras("sphere", 1, 8), 1, renderer="warp")
    assert "warp" in RENDERERS


@needs_warp
def test_a_device_that_is_not_there_is_an_error(examples):
    with pytest.raises(GsmaeError, match="cuda:77"):
        render_warp.upload(example(examples, "lamp/lantern"), "cuda:77")


@needs_warp
def test_warp_is_loaded_late_says_nothing_and_keeps_its_kernels_outside_the_checkout():
    code = """if True:
        import sys
        import preprocessing.build, preprocessing.rendering.views, preprocessing.rendering.warp
        assert "warp" not in sys.modules
        from preprocessing.rendering.cameras import train_cameras
        from preprocessing.meshes import load_mesh
        mesh = load_mesh("examples/meshes/lamp/lantern/models/lantern.obj")
        preprocessing.rendering.warp.render(mesh, train_cameras("sphere", 1, 8), 1, (1, 1, 1), "cpu")
        import warp
        sys.stderr.write("cache:" + warp.config.kernel_cache_dir)
    """
    out = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert out.stdout == ""
    cache = Path(out.stderr.split("cache:")[-1])
    assert cache.is_absolute() and not cache.is_relative_to(ROOT)


@needs_warp
@pytest.mark.slow
def test_the_kernel_compiles_for_gpus_that_are_not_there(tmp_path):
    wp = pytest.importorskip("warp")
    from preprocessing.rendering import warp_kernels

    wp.compile_aot_module(warp_kernels, arch=[75, 90], module_dir=tmp_path, use_ptx=True)
    assert all("draw" in path.read_text() for path in tmp_path.glob("*.ptx"))
    assert len(list(tmp_path.glob("*.ptx"))) == 2


@needs_warp
@pytest.mark.gpu
@pytest.mark.parametrize("change", [plain, punched, tinted])
def test_a_gpu_draws_what_the_cpu_draws(examples, change):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert render_warp.default_device() == "cuda"
    cameras = train_cameras("sphere", 8, 100)
    for name in ("table/tableWithTablecloth", "cabinet/glassDoorCabinet", "container/crate"):
        mesh = change(example(examples, name))
        images, alphas = render_warp.draw(render_warp.upload(mesh), cameras, 2, SKY)
        assert images.device.type == "cuda"
        assert_same(Views(images.cpu().numpy(), alphas.cpu().numpy()), render_views(mesh, cameras, 2, SKY))
