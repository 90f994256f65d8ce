import pytest
import torch

from data import SplatDataset
from data.partial import cut, partial_batches, plane
from gsmae.features import FeatureSpec, normalize
from gsmae.gaussians import Gaussians


def test_the_half_beyond_the_plane_goes_and_the_order_stays():
    means = torch.tensor([[3.0, 0, 0], [0, 0, 0], [2, 0, 0], [1, 0, 0]])
    splat = Gaussians(means, torch.zeros(4, 4), torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, 1, 3))
    assert cut(splat, torch.tensor([1.0, 0, 0])).means[:, 0].tolist() == [0, 1]
    assert cut(splat, torch.tensor([-1.0, 0, 0])).means[:, 0].tolist() == [3, 2]
    assert cut(splat, torch.tensor([1.0, 0, 0]), keep=0.75).means[:, 0].tolist() == [0, 2, 1]
    assert len(cut(splat, torch.tensor([1.0, 0, 0]), keep=0.01)) == 1
    with pytest.raises(ValueError, match="keep is 0"):
        cut(splat, torch.ones(3), keep=0)


def test_planes_are_of_all_directions_and_depend_on_seed_and_uid_alone():
    normals = torch.stack([plane(f"a/{i}", 0) for i in range(2000)])
    assert normals.norm(dim=1) == pytest.approx(1, abs=1e-5)
    assert normals.mean(dim=0).norm() < 0.06 and ((normals.T @ normals / 2000 - torch.eye(3) / 3).abs() < 0.03).all()
    assert torch.equal(plane("a/1", 0), plane("a/1", 0)) and not torch.equal(plane("a/1", 0), plane("a/1", 1))


def test_batches_are_normalised_after_the_cut_and_hold_every_object_once(packed):
    dataset, spec = SplatDataset(packed, "test"), FeatureSpec()
    found = list(partial_batches(dataset, spec, batch_size=4, gaussians=20, seed=3))
    assert [uid for batch in found for uid in batch.uids] == list(dataset.uids)
    part = cut(dataset[0].gaussians, plane(dataset.uids[0], 3))
    expected = normalize(part, spec)[0]
    assert torch.equal(found[0].points[0, : len(expected)], expected[:20])
    heavy = FeatureSpec(draw="importance")
    (drawn,) = partial_batches(dataset, heavy, batch_size=9, gaussians=12, seed=3)
    assert {tuple(row) for row in drawn.points[0].tolist()} < {tuple(row) for row in expected.tolist()}
    assert not torch.equal(drawn.points[0], expected[:12])
    assert found[0].labels.tolist() == dataset.labels[:4].tolist()
