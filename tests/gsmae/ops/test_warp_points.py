"""Grouping by NVIDIA Warp chooses exactly what the definition chooses, index for index.

The kernels run on Warp's CPU device, where a block is one thread; `-m gpu` runs the same stories on a GPU.
"""

import importlib.util

import pytest
import torch
from clouds import CLOUDS, uniform
from torch import Tensor

from gsmae import ops
from gsmae.ops import native, reference, warp
from gsmae.ops.native import library

pytestmark = pytest.mark.skipif(importlib.util.find_spec("warp") is None, reason="Warp is not installed: gsmae[gpu]")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


def assert_twins_agree(points: Tensor, count: int, k: int, device: str, start: int = 0) -> None:
    centers, neighbours = reference.points.group(points, count, k, start)
    there = points.to(device)
    made = warp.points.group(there, count, k, start)
    for ours, expected in zip(made, (centers, neighbours), strict=True):
        assert ours.dtype == torch.int64 and ours.device.type == device
        assert torch.equal(ours.cpu(), expected)
    assert torch.equal(warp.points.farthest_points(there, count, start).cpu(), centers)
    query = uniform(len(points), 11, points.shape[2], seed=2)
    found = warp.points.nearest(query.to(device), there, k)
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), reference.points.nearest(query, points, k))


@pytest.mark.parametrize("width", [1, 3, 14, 59])
@pytest.mark.parametrize("kind", CLOUDS)
def test_warp_chooses_the_points_of_the_definition(device, kind, width):
    assert_twins_agree(CLOUDS[kind](uniform(3, 501, width)), 60, 40, device, start=7)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 127, 129, 300, 1025])
def test_warp_takes_every_number_of_points_and_neighbours(device, n):
    for k in sorted({1, (n + 1) // 2, min(n, warp.points.MOST)}):
        assert_twins_agree(uniform(2, n, 3), min(n, 300), k, device, start=n - 1)


def test_warp_leaves_more_neighbours_than_it_picks_well_to_the_definition(device, monkeypatch):
    monkeypatch.setattr(warp.points, "MOST", 20)
    for k in (20, 21, 90):
        assert_twins_agree(uniform(2, 90, 4), 30, k, device)


def test_many_queries_share_little_room(device, monkeypatch):
    monkeypatch.setattr(warp.points, "ROOM", 3 * 200)  # of 44 queries, three at a time
    assert_twins_agree(uniform(4, 200, 5), 11, 33, device)


def test_warp_rounds_a_product_before_it_is_added(device):
    # otherwise the first two are not equally far: a column that comes later is rounded less
    points = torch.tensor([[[0.3, 0.1], [0.1, 0.3], [0.0, 0.0]]], device=device)
    for p in (points, points.flip(-1)):
        assert warp.points.nearest(p[:, 2:], p, 3).tolist() == [[[2, 0, 1]]]
        assert warp.points.farthest_points(p, 2, start=2).tolist() == [[2, 0]]


def test_points_that_are_no_numbers_are_the_farthest_in_warp_as_in_the_compiled_twin(device):
    points = uniform(2, 200, 3)
    points[0, 5, 1], points[0, 9], points[1, 7, 2] = float("nan"), float("inf"), -float("inf")
    points[0, 11] = -float("nan")
    made = [t.cpu() for t in warp.points.group(points.to(device), 200, 200)]
    for found in (made[0], made[1].flatten(0, 1)):
        assert torch.equal(found.sort(dim=-1).values, torch.arange(200).expand_as(found))
    assert set(made[0][0, 1:4].tolist()) == {5, 9, 11} and made[0][1, 1] == 7
    assert torch.equal(made[0][1], reference.points.farthest_points(points[1:], 200)[0])  # one that is infinite
    if library.available():
        for ours, expected in zip(made, native.points.group(points, 200, 200), strict=True):
            assert torch.equal(ours, expected)


def test_any_layout_in_memory_will_do_for_warp_and_inputs_are_left_alone(device):
    points = uniform(2, 14, 90).mT
    before = points.clone()
    assert_twins_agree(points[..., 2:7], 20, 9, device)
    there = points.to(device)[:1].expand(3, -1, -1)
    made = warp.points.group(there, 20, 9)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(made, reference.points.group(there.cpu(), 20, 9), strict=True))
    assert torch.equal(there[0].cpu(), before[0])


def test_warp_finds_nothing_for_nothing(device):
    empty = torch.zeros(0, 5, 3, device=device)
    assert warp.points.farthest_points(empty, 2).shape == (0, 2)
    assert warp.points.nearest(torch.zeros(2, 0, 3, device=device), empty.new_zeros(2, 5, 3), 4).shape == (2, 0, 4)
    assert [t.shape for t in warp.points.group(empty, 2, 4)] == [(0, 2), (0, 2, 4)]
    assert warp.points.farthest_points(empty.new_zeros(1, 5, 0), 5).tolist() == [[0, 1, 2, 3, 4]]


def test_warp_refuses_what_the_definition_refuses():
    points = uniform(2, 8, 3)
    with pytest.raises(ValueError, match="9.*8"):
        warp.points.group(points, 9, 2)
    with pytest.raises(ValueError, match="9.*8"):
        warp.points.group(points, 2, 9)
    with pytest.raises(ValueError, match="8.*8"):
        warp.points.farthest_points(points, 2, start=8)
    with pytest.raises(ValueError, match="fit together"):
        warp.points.nearest(points[..., :2], points, 2)
    with pytest.raises(ValueError, match="at least one column"):
        warp.points.group(points[..., :0], 2, 2)


@pytest.mark.parametrize("centers", [1, 2, 64])
def test_interpolation_by_warp_has_the_values_and_the_gradients_of_its_definition(device, centers):
    results = []
    for twin in (warp, reference):
        leaves = [t.to(device).requires_grad_() for t in (uniform(2, 50, 3), uniform(2, centers, 3, seed=1))]
        features = uniform(2, centers, 5, seed=2).to(device).requires_grad_()
        values = twin.points.interpolate(*leaves, features)
        values.square().sum().backward()
        results.append((*twin.points.three_nearest(*leaves), values, *(t.grad for t in (*leaves, features))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.slow
def test_the_kernels_of_points_compile_for_gpus_that_are_not_there_and_fuse_nothing(tmp_path):
    wp = pytest.importorskip("warp")
    wp.compile_aot_module(warp.runtime.kernels("points"), arch=[75, 90], module_dir=tmp_path, use_ptx=True)
    for arch, reduction in ((75, "shfl.sync"), (90, "redux.sync.min")):
        text = next(tmp_path.glob(f"*sm{arch}.ptx")).read_text(errors="replace")
        assert reduction in text and "bar.sync" in text and "bar.warp.sync" in text
        assert "mul.rn.f32" in text and "fma." not in text and ".local" not in text


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("width", [3, 14])
@pytest.mark.parametrize("n", [1024, 4096, 16384])
def test_a_gpu_groups_as_the_cpu_does(cuda, n, width):
    points = uniform(5, n, width)
    made, expected = ops.group(points.to(cuda), 128, 128), ops.group(points, 128, 128)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(made, expected, strict=True))


@pytest.mark.gpu
def test_groups_on_a_gpu_come_from_the_kernels_and_nobody_waits_for_them(cuda, monkeypatch):
    points = uniform(8, 1024, 14).to(cuda)
    expected = reference.points.group(points, 64, 32)
    warp.points.group(points, 64, 32)  # loads the kernels
    called, real = [], warp.points.group
    monkeypatch.setattr(warp.points, "group", lambda *a: (called.append(1), real(*a))[1])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = ops.group(points, 64, 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert called == [1] and all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.gpu
def test_grouping_is_captured_in_a_cuda_graph(cuda):
    points = uniform(8, 1024, 14).to(cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops.group(points, 64, 32)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = ops.group(points, 64, 32)
    for seed in (1, 2):
        points.copy_(uniform(8, 1024, 14, seed=seed))
        graph.replay()
        expected = reference.points.group(points, 64, 32)
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
