"""Groups: centres and neighbourhoods in the chosen columns, and masks over them."""

import pytest
import torch

from gsmae.gaussians import FIELDS, columns
from gsmae.groups import block_mask, group, masked_count, random_mask


def splats(batch=2, n=80, seed=0):
    return torch.rand(batch, n, 14, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("by", [("means",), ("opacities",), ("means", "sh"), ("scales", "quats"), tuple(FIELDS)])
def test_neighbours_are_the_nearest_in_the_grouping_fields_nearest_first(by):
    points = splats()
    groups = group(points, by, groups=6, size=9)
    assert groups.points.shape == (2, 6, 9, 14) and groups.centers.shape == (2, 6, 14)
    space = columns(by)
    for b in range(2):
        distance = torch.cdist(groups.centers[b][:, space].double(), points[b][:, space].double())
        assert torch.equal(groups.indices[b], distance.argsort(dim=1, stable=True)[:, :9])


def test_only_the_means_are_relative_to_the_centre():
    points = splats()
    groups = group(points, ("means",), 5, 7)
    for b in range(2):
        absolute = points[b][groups.indices[b]]
        torch.testing.assert_close(groups.points[b][..., :3] + groups.centers[b][:, None, :3], absolute[..., :3])
        assert torch.equal(groups.points[b][..., 3:], absolute[..., 3:])
    assert groups.points[:, :, 0, :3].eq(0).all()


def test_the_first_centre_is_the_first_gaussian():
    points = splats()
    assert torch.equal(group(points, ("means",), 3, 4).centers[:, 0], points[:, 0])


def test_grouping_by_other_fields_finds_other_groups():
    points = splats()
    assert not torch.equal(group(points, ("means",), 8, 4).indices, group(points, ("means", "sh"), 8, 4).indices)


def test_a_splat_that_is_too_small_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="64.*10"):
        group(splats(n=10), ("means",), 64, 4)
    with pytest.raises(ValueError, match="40.*10"):
        group(splats(n=10), ("means",), 4, 40)


def test_grouping_leaves_its_input_alone_and_repeats_itself():
    points = splats()
    before = points.clone()
    first, second = group(points, ("means",), 5, 7), group(points, ("means",), 5, 7)
    assert torch.equal(points, before) and torch.equal(first.points, second.points)


@pytest.mark.parametrize("ratio, expected", [(0.6, 38), (0.2, 12), (0.001, 1), (0.999, 63)])
def test_a_mask_hides_the_same_number_everywhere(ratio, expected):
    assert masked_count(64, ratio) == expected
    masks = random_mask(5, 64, ratio, torch.Generator().manual_seed(0))
    blocks = block_mask(splats(5, 64), ratio, torch.Generator().manual_seed(0))
    assert masks.dtype == blocks.dtype == torch.bool
    assert masks.sum(1).tolist() == blocks.sum(1).tolist() == [expected] * 5


def test_masks_come_from_their_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (random_mask(4, 64, 0.6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    block = block_mask(splats(), 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(first, again) and not torch.equal(first, other) and block.any()
    assert torch.equal(torch.get_rng_state(), state)


def test_every_group_is_hidden_equally_often():
    masks = random_mask(4000, 10, 0.6, torch.Generator().manual_seed(0))
    assert (masks.float().mean(0) - 0.6).abs().max() < 0.04


def test_a_block_is_a_ball_around_one_of_its_centres():
    centers = splats(6, 40)
    for mask, sample in zip(block_mask(centers, 0.3, torch.Generator().manual_seed(3)), centers, strict=True):
        distance = torch.cdist(sample[:, :3], sample[:, :3])
        inside = distance[mask][:, mask].max(dim=1).values
        outside = distance[mask][:, ~mask].min(dim=1).values
        assert (inside <= outside).any()
