"""The compiled point operations choose exactly what their definition chooses, index for index."""

import pytest
import torch
from clouds import CLOUDS, uniform
from torch import Tensor

from gsmae import ops
from gsmae.gaussians import FIELDS
from gsmae.groups import group
from gsmae.ops import native, reference
from gsmae.ops.native import library

VARIANTS = library.variants() or [pytest.param("none", marks=pytest.mark.skip(reason="no compiled kernels here"))]
WIDTHS = [1, 2, 3, 4, 7, 14, 15]


def assert_twins_agree(points: Tensor, count: int, k: int, start: int = 0) -> None:
    centers, neighbours = reference.points.group(points, count, k, start)
    for ours, expected in zip(native.points.group(points, count, k, start), (centers, neighbours), strict=True):
        assert ours.dtype == torch.int64
        assert torch.equal(ours, expected)
    assert torch.equal(native.points.farthest_points(points, count, start), centers)
    query = uniform(len(points), 11, points.shape[2], seed=2)
    assert torch.equal(native.points.nearest(query, points, k), reference.points.nearest(query, points, k))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", CLOUDS)
def test_the_same_points_are_chosen(variant, kind, width):
    points = CLOUDS[kind](uniform(3, 500, width))
    with library.using(variant):
        assert_twins_agree(points, 60, 40, start=7)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300])
def test_every_number_of_points_and_neighbours_will_do(variant, n):
    with library.using(variant):
        for k in sorted({1, (n + 1) // 2, n}):
            assert_twins_agree(uniform(2, n, 3), n, k, start=n - 1)


@pytest.mark.parametrize("twin", [*VARIANTS, library.REFERENCE])
def test_a_product_is_rounded_before_it_is_added(twin):
    # otherwise the first two are not equally far: a column that comes later is rounded less
    points = torch.tensor([[[0.3, 0.1], [0.1, 0.3], [0.0, 0.0]]])
    with library.using(twin):
        for p in (points, points.flip(-1)):
            assert ops.nearest(p[:, 2:], p, 3).tolist() == [[[2, 0, 1]]]
            assert ops.farthest_points(p, 2, start=2).tolist() == [[2, 0]]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["chair/deckChair", "table/tableWithTablecloth"])
def test_real_surfaces_are_grouped_alike(variant, name, examples):
    (file,) = (examples / "meshes" / name / "models").glob("*.obj")
    lines = [line.split()[1:4] for line in file.read_text().splitlines() if line.startswith("v ")]
    vertices = torch.tensor([[float(x) for x in line] for line in lines])[None, :5000]  # symmetric: full of ties
    vertices = (vertices - vertices.mean(dim=1)) / vertices.std()
    with library.using(variant):
        assert_twins_agree(vertices, min(128, vertices.shape[1]), 40)


@pytest.mark.parametrize("variant", VARIANTS)
def test_points_that_are_no_numbers_are_the_farthest_and_harm_nobody(variant):
    points = uniform(2, 200, 3)
    points[0, 5, 1], points[0, 9], points[1, 7, 2] = float("nan"), float("inf"), -float("inf")
    with library.using(variant):
        centers, neighbours = native.points.group(points, 200, 200)
        for found in (centers, neighbours.flatten(0, 1)):
            assert torch.equal(found.sort(dim=-1).values, torch.arange(200).expand_as(found))
        clean = points[0, [i for i in range(200) if i not in (5, 9)]][None]
        among = native.points.nearest(clean[:, :20], points[:1], 198)
        assert not torch.isin(among, torch.tensor([5, 9])).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_threads_changes_nothing(variant):
    points, query = uniform(5, 300, 4), uniform(5, 150, 4, seed=3)
    results = []
    with library.using(variant):
        for threads in (1, 2, 3):
            library.set_threads(threads)
            try:
                results.append([*ops.group(points, 20, 9), ops.nearest(query, points, 9)])
            finally:
                library.set_threads(None)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_layout_in_memory_will_do_and_inputs_are_left_alone(variant):
    points = uniform(2, 14, 90).mT
    before = points.clone()
    with library.using(variant):
        assert_twins_agree(points[..., 2:7], 20, 9)
        assert_twins_agree(points[:1].expand(3, -1, -1), 20, 9)
    assert torch.equal(points, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_found_for_nothing(variant):
    with library.using(variant):
        assert native.points.farthest_points(torch.zeros(0, 5, 3), 2).shape == (0, 2)
        assert native.points.nearest(torch.zeros(2, 0, 3), torch.zeros(2, 5, 3), 4).shape == (2, 0, 4)
        assert [t.shape for t in native.points.group(torch.zeros(0, 5, 3), 2, 4)] == [(0, 2), (0, 2, 4)]
        assert native.points.farthest_points(torch.zeros(1, 5, 0), 5).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("twin", [reference, native])
def test_what_does_not_fit_is_refused(twin):
    points = uniform(2, 8, 3)
    with pytest.raises(ValueError, match="9.*8"):
        twin.points.group(points, 9, 2)
    with pytest.raises(ValueError, match="9.*8"):
        twin.points.group(points, 2, 9)
    with pytest.raises(ValueError, match="8.*8"):
        twin.points.farthest_points(points, 2, start=8)
    with pytest.raises(ValueError, match="fit together"):
        twin.points.nearest(points[..., :2], points, 2)
    with pytest.raises(ValueError, match="fit together"):
        twin.points.nearest(points[:1], points, 2)
    with pytest.raises(ValueError, match="at least one column"):
        twin.points.group(points[..., :0], 2, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_go_to_the_definition(dtype):
    points = uniform(2, 50, 3).to(dtype)
    expected = reference.points.group(points, 8, 6)
    assert all(torch.equal(a, b) for a, b in zip(ops.group(points, 8, 6), expected, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("by", [("means",), ("opacities",), ("means", "sh"), tuple(FIELDS)])
def test_groups_of_gaussians_are_the_same_with_and_without_kernels(variant, by):
    points = uniform(2, 400, 14)
    with library.using(variant):
        ours = group(points, by, 16, 40)
    with library.using(library.REFERENCE):
        expected = group(points, by, 16, 40)
    assert torch.equal(ours.indices, expected.indices)
    assert torch.equal(ours.points, expected.points) and torch.equal(ours.centers, expected.centers)


def test_positions_that_are_learned_can_be_grouped():
    points = uniform(1, 40, 3).requires_grad_()
    assert not ops.group(points, 4, 5)[1].requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("centers", [1, 2, 3, 64])
def test_interpolation_has_the_values_and_the_gradients_of_its_definition(variant, centers):
    results = []
    for twin in (native, reference, ops):
        leaves = [t.requires_grad_() for t in (uniform(2, 50, 3), uniform(2, centers, 3, seed=1))]
        features = uniform(2, centers, 5, seed=2).requires_grad_()
        with library.using(variant):
            indices, weights = (twin if twin is ops else twin.points).three_nearest(*leaves)
            values = (twin if twin is ops else twin.points).interpolate(*leaves, features)
        values.square().sum().backward()
        results.append((indices, weights.detach(), values.detach(), *(t.grad for t in (*leaves, features))))
    for ours in (results[0], results[2]):
        assert all(torch.equal(a, b) for a, b in zip(ours, results[1], strict=True))


def test_interpolation_takes_the_compiled_neighbours_where_it_may(monkeypatch):
    called = []
    real = native.points.nearest
    monkeypatch.setattr(native.points, "nearest", lambda *a: (called.append(1), real(*a))[1])
    query, centers, features = uniform(1, 9, 3), uniform(1, 5, 3, seed=1), uniform(1, 5, 2, seed=2)
    ops.interpolate(query, centers, features.double())
    assert called == ([1] if library.available() else [])
    ops.interpolate(query.double(), centers.double(), features.double())
    assert len(called) <= 1
