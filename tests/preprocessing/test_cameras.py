import numpy as np
import pytest

from gsmae.errors import GsmaeError
from preprocessing.rendering import cameras as rigs


def project(cameras, points):
    """Pixels [V, P, 2] and depths [V, P] of world points [P, 3]."""
    seen = points @ cameras.viewmats[:, :3, :3].transpose(0, 2, 1) + cameras.viewmats[:, None, :3, 3]
    pixels = seen @ cameras.Ks.transpose(0, 2, 1)
    return pixels[..., :2] / pixels[..., 2:], seen[..., 2]


def directions(cameras):
    return cameras.positions / np.linalg.norm(cameras.positions, axis=1, keepdims=True)


def closest(a, b):
    """Smallest angle in degrees between the directions of two rigs."""
    return np.degrees(np.arccos(np.clip(directions(a) @ directions(b).T, -1, 1))).min()


@pytest.mark.parametrize("rig", rigs.RIGS)
def test_the_unit_sphere_fills_the_picture_and_stays_inside(rig):
    cameras = rigs.train_cameras(rig, 72, 200)
    sphere = rigs.sphere(2000)
    pixels, depths = project(cameras, sphere)
    assert depths.min() > 1
    assert pixels.min() > 0 and pixels.max() < 200
    assert pixels.min() < 4 and pixels.max() > 196
    assert np.allclose(project(cameras, np.zeros((1, 3)))[0], 100, atol=1e-3)


@pytest.mark.parametrize("rig", rigs.RIGS)
def test_up_in_the_world_is_up_in_the_picture(rig):
    cameras = rigs.train_cameras(rig)
    level = np.abs(directions(cameras)[:, 2]) < 0.99
    ends = project(cameras, np.array([[0, 0, -0.3], [0, 0, 0.3]]))[0][level]
    assert np.allclose(ends[:, 0, 0], ends[:, 1, 0], atol=1e-2)
    assert (ends[:, 1, 1] < ends[:, 0, 1]).all()
    assert np.allclose(np.linalg.det(cameras.viewmats[:, :3, :3]), 1, atol=1e-5)


def test_the_papers_rig_has_72_even_azimuths_and_elevations_from_above():
    seen = directions(rigs.train_cameras("paper"))
    assert len(seen) == 72
    turned = np.degrees(np.arctan2(seen[:, 1], seen[:, 0])) - np.arange(72) * 5
    assert np.allclose((turned + 180) % 360, 180, atol=1e-3)
    elevations = np.degrees(np.arcsin(seen[:, 2]))
    assert 0 <= elevations.min() < 5 and 40 < elevations.max() <= 45
    below = directions(rigs.train_cameras("paper_modelnet"))[:, 2]
    assert below.min() < -0.9 and below.max() > 0.9


@pytest.mark.parametrize("rig", rigs.RIGS)
def test_measuring_views_are_far_from_those_trained_and_chosen_on(rig):
    train, val, test = rigs.train_cameras(rig), rigs.val_cameras(), rigs.test_cameras()
    assert min(closest(train, val), closest(train, test)) > 4 and closest(val, test) > 10


def test_the_sphere_rig_leaves_no_hole():
    holes = directions(rigs.train_cameras("sphere", 72)) @ rigs.sphere(3000).T
    assert np.degrees(np.arccos(holes.max(axis=0))).max() < 20


def test_views_can_be_held_to_a_band_of_elevations():
    heights = directions(rigs.test_cameras(50, lowest=0, highest=45))[:, 2]
    assert heights.min() >= 0 and heights.max() <= np.sin(np.radians(45)) + 1e-6


def test_rigs_are_values(examples):
    first, second = rigs.train_cameras("paper"), rigs.train_cameras("paper")
    assert (first.viewmats == second.viewmats).all() and first.viewmats.dtype == np.float32
    assert len(first[:5]) == 5 and (first[np.array([3])].Ks == first.Ks[3]).all()


def test_an_unknown_rig_is_an_error_with_a_hint():
    with pytest.raises(GsmaeError, match="did you mean 'sphere'"):
        rigs.train_cameras("spere")
