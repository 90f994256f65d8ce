import sys

import pytest
import torch

from gsmae.batch import Batch
from gsmae.errors import GsmaeError
from gsmae.features import FeatureSpec
from gsmae.models import PointNet2, PointNet2Config
from gsmae.models.pointnet2 import balls
from gsmae.tasks import TASKS

SMALL = PointNet2Config(classes=3, centers=(16, 4), neighbors=(8, 8), share=0.25)
MEANS = FeatureSpec(embed=("means",))


def network(spec=MEANS, seed=0, **changes):
    config = SMALL.model_copy(update=changes)
    return PointNet2(config, spec, generator=torch.Generator().manual_seed(seed))


def cloud(batch=2, n=40, seed=0):
    return torch.randn(batch, n, 14, generator=torch.Generator().manual_seed(seed)) * 0.4


def test_balls_are_all_pairs_within_the_radius_up_to_the_nearest_so_many():
    places = cloud()[..., :3].contiguous()
    centers = places[:, :5].contiguous()
    found = {tuple(e) for e in balls(places, centers, 40, 0.5).T.tolist()}
    expected = {
        (b * 40 + i, b * 5 + j)
        for b in range(2)
        for i in range(40)
        for j in range(5)
        if (places[b, i] - centers[b, j]).norm() <= 0.5
    }
    assert found == expected and {(i, i) for i in range(5)} <= found
    few = balls(places, centers, 3, 0.5)
    assert torch.bincount(few[1], minlength=10).max() <= 3
    for j in range(10):
        distance = (places.flatten(0, 1)[few[0, few[1] == j]] - centers.flatten(0, 1)[j]).norm(dim=1).max()
        left = [i for i, k in expected if k == j and i not in few[0, few[1] == j]]
        assert all((places.flatten(0, 1)[i] - centers.flatten(0, 1)[j]).norm() >= distance for i in left)


def test_a_set_abstraction_is_the_maximum_over_its_ball_computed_densely():
    model = network().eval()
    places = cloud()[..., :3].contiguous()
    centers = places[:, :6].contiguous()
    edges = balls(places, centers, 40, 0.6)
    flat, middle = places.flatten(0, 1), centers.flatten(0, 1)
    with torch.no_grad():
        out = model.first((None, None), (flat, middle), edges)
        for j in range(12):
            near = (flat[(j // 6) * 40 : (j // 6 + 1) * 40] - middle[j]).norm(dim=1) <= 0.6
            inside = flat[(j // 6) * 40 : (j // 6 + 1) * 40][near] - middle[j]
            assert torch.allclose(out[j], model.first.local_nn(inside).amax(dim=0), atol=1e-6)


def test_the_order_of_the_points_and_the_other_objects_do_not_matter():
    model, points = network(FeatureSpec()).eval(), cloud()
    with torch.no_grad():
        scores = model(points)
        # the first point is where farthest point sampling begins, so it stays
        order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
        assert torch.allclose(model(points[:, order]), scores, atol=1e-5)
        assert torch.allclose(model(points[:1]), scores[:1], atol=1e-5)


def test_only_what_is_embedded_is_seen_and_the_generator_decides_the_weights():
    points, other = cloud(), cloud()
    other[..., 3:] = 7
    with torch.no_grad():
        assert torch.equal(network().eval()(points), network().eval()(other))
        assert not torch.equal(network(FeatureSpec()).eval()(points), network(FeatureSpec()).eval()(other))
        assert not torch.equal(network().eval()(points), network(seed=1).eval()(points))


def test_it_learns_to_tell_shapes_apart():
    """Balls, discs and rods, by the task that `gsmae finetune pointnet2` trains."""
    g = torch.Generator().manual_seed(0)

    def batch(count):
        labels = torch.arange(count) % 3
        points = torch.randn(count, 64, 14, generator=g) * 0.3
        points[..., 2] *= torch.where(labels == 0, 1.0, 0.1)[:, None]
        points[..., 1] *= torch.where(labels == 2, 0.1, 1.0)[:, None]
        return Batch(points, labels, tuple(map(str, range(count))))

    task, model = TASKS["pointnet2"](), network(dropout=0.0, share=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss, _ = task.loss(model, batch(24), g)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert task.evaluate(model.eval(), [batch(60)])["accuracy"] > 0.75


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(GsmaeError, match=r"pip install 'gsmae\[baselines\]'"):
        network()
