"""The definitions of the point operations, against slow and obvious versions of themselves."""

import numpy as np
import pytest
import torch

from gsmae.ops.reference.points import chamfer, chamfer_matches, farthest_points, interpolate, nearest, three_nearest


def cloud(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def slow_farthest(points: np.ndarray, count: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < count:
        gap = ((points[:, None] - points[chosen]) ** 2).sum(-1).min(1)
        gap[chosen] = -1
        chosen.append(int(gap.argmax()))
    return chosen


@pytest.mark.parametrize("width", [1, 3, 4, 14])
def test_farthest_points_are_the_farthest_in_all_columns(width):
    points = cloud(3, 90, width)
    got = farthest_points(points, 20, start=5)
    assert got.dtype == torch.int64
    for sample, indices in zip(points.double().numpy(), got.tolist(), strict=True):
        assert indices == slow_farthest(sample, 20, 5)


def test_a_sample_never_depends_on_the_others_of_its_batch():
    points = cloud(4, 64, 14)
    assert torch.equal(farthest_points(points, 9)[2:3], farthest_points(points[2:3], 9))
    assert torch.equal(nearest(points[:, :5], points, 7)[2:3], nearest(points[2:3, :5], points[2:3], 7))


def test_points_near_the_origin_can_be_chosen():
    # the released kernel skips points with |p|^2 <= 1e-3
    points = torch.tensor([[[1.0, 0, 0], [0.99, 0, 0], [0.01, 0, 0], [0.98, 0, 0]]])
    assert farthest_points(points, 2).tolist() == [[0, 2]]


def test_columns_beyond_the_third_count():
    points = torch.zeros(1, 4, 14)
    points[0, 3, 13] = 1
    assert farthest_points(points, 2).tolist() == [[0, 3]]


def test_farthest_points_cover_better_than_a_random_choice():
    points = cloud(1, 2000, 3)

    def radius(indices):
        return torch.cdist(points[0], points[0, indices]).min(dim=1).values.max()

    assert radius(farthest_points(points, 200)[0]) < 0.6 * radius(torch.arange(200))


def test_ties_go_to_the_lower_index():
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]])
    assert farthest_points(square, 5).tolist() == [[0, 1, 2, 3, 4]]
    assert nearest(square[:, :1], square, 5).tolist() == [[[0, 1, 2, 3, 4]]]
    many = torch.zeros(1, 500, 3)
    assert nearest(many[:, :2], many, 40).tolist() == [[list(range(40))] * 2]


def test_duplicates_are_chosen_once_each_and_last():
    points = torch.tensor([[[0.0], [0.0], [5.0], [5.0], [2.0]]])
    assert farthest_points(points, 5).tolist() == [[0, 2, 4, 1, 3]]
    everything = farthest_points(cloud(1, 10, 3).repeat(2, 3, 1), 30)
    assert all(sorted(row) == list(range(30)) for row in everything.tolist())


def test_counts_that_do_not_fit_name_both_numbers():
    points = cloud(1, 8, 3)
    with pytest.raises(ValueError, match="9.*8"):
        farthest_points(points, 9)
    with pytest.raises(ValueError, match="8.*8"):
        farthest_points(points, 2, start=8)
    with pytest.raises(ValueError, match="9.*8"):
        nearest(points, points, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 14])
def test_nearest_is_a_full_sort_by_distance(width, dtype):
    query, points = cloud(2, 11, width).to(dtype), cloud(2, 60, width, seed=1).to(dtype)
    distance = (query[:, :, None].double() - points[:, None].double()).square().sum(-1)
    assert torch.equal(nearest(query, points, 60), distance.argsort(dim=-1, stable=True))


def test_nearest_in_chunks_equals_nearest_at_once(monkeypatch):
    query, points = cloud(5, 6, 3), cloud(5, 40, 3, seed=1)
    whole = nearest(query, points, 4)
    monkeypatch.setattr("gsmae.ops.reference.points.CHUNK", 6 * 40 * 2)
    assert torch.equal(nearest(query, points, 4), whole)


def test_inputs_are_left_alone():
    points = cloud(2, 30, 5)
    before = points.clone()
    farthest_points(points, 10)
    nearest(points, points, 3)
    assert torch.equal(points, before)


def test_interpolation_is_exact_at_a_centre_and_a_mean_between_three():
    centers = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [50, 50, 50]]])
    features = torch.tensor([[[1.0, 10], [2, 20], [6, 30], [1e3, 1e3]]])
    middle = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0, 0]]])
    out = interpolate(middle, centers, features)
    torch.testing.assert_close(out[0, 0], torch.tensor([3.0, 20.0]))
    torch.testing.assert_close(out[0, 1], torch.tensor([2.0, 20.0]))


def test_interpolation_equals_its_formula_and_has_its_gradient():
    query, centers, features = cloud(2, 9, 3), cloud(2, 5, 3, seed=1), cloud(2, 5, 4, seed=2)
    out = interpolate(query, centers, features)
    for b in range(2):
        for p in range(9):
            d = (query[b, p] - centers[b]).square().sum(-1)
            near = d.argsort()[:3]
            w = 1 / (d[near] + 1e-8)
            torch.testing.assert_close(out[b, p], (w[:, None] * features[b, near]).sum(0) / w.sum())
    arguments = [x.double().requires_grad_() for x in (query, centers, features)]
    assert torch.autograd.gradcheck(interpolate, arguments)


def test_interpolation_with_fewer_than_three_centres():
    query, centers = cloud(1, 4, 3), cloud(1, 2, 3, seed=1)
    indices, weights = three_nearest(query, centers)
    assert indices.shape == (1, 4, 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4))
    assert interpolate(query, centers[:, :1], torch.ones(1, 1, 6)).eq(1).all()


def test_chamfer_equals_its_formula_and_has_its_gradient():
    a, b = cloud(4, 7, 3), cloud(4, 5, 3, seed=1)
    distance = torch.cdist(a.double(), b.double()).square()
    expected = distance.min(2).values.mean() + distance.min(1).values.mean()
    torch.testing.assert_close(chamfer(a, b).double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(chamfer, [a.double().requires_grad_(), b.double().requires_grad_()])


def test_chamfer_does_not_care_about_order_and_is_zero_for_equal_sets():
    a, b = cloud(3, 8, 3), cloud(3, 8, 3, seed=1)
    shuffled = b[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(chamfer(a, b), chamfer(a, shuffled))
    assert chamfer(a, a.flip(1)) == 0


def test_chamfer_matches_find_the_partner():
    a = cloud(2, 6, 3)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    to_b, to_a = chamfer_matches(a, a[:, order])
    assert torch.equal(order[to_b], torch.arange(6).expand(2, 6))
    assert torch.equal(to_a, order.expand(2, 6))
