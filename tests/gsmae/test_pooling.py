"""Splat pooling: its formula, and temperatures that cannot do harm."""

import pytest
import torch

from gsmae.features import FeatureSpec
from gsmae.models import Encoder, EncoderConfig
from gsmae.models.pooling import SplatPool, splat_pool


def features(r=3, j=10, c=5, seed=0):
    return torch.randn(r, j, c, generator=torch.Generator().manual_seed(seed))


def test_slots_are_the_papers_weighted_sums():
    x, temperature = features(), torch.tensor([0.3, 1.0, 4.0])
    slots = splat_pool(x, temperature.log())
    assert slots.shape == (3, 3, 5)
    for r in range(3):
        query = x[r].amax(0)
        distance = (query - x[r]).square().sum(1)
        for i, t in enumerate(temperature):
            weights = torch.exp(-distance / t) / torch.exp(-distance / t).sum()
            torch.testing.assert_close(slots[r, i], weights @ x[r])


def test_the_gradient_is_right():
    x = features(2, 6, 3).double().requires_grad_()
    log_temperature = torch.tensor([-0.5, 0.0, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(splat_pool, (x, log_temperature))


def test_cold_slots_take_the_nearest_and_hot_slots_the_mean():
    x = features()
    cold, hot = splat_pool(x, torch.tensor([-15.0, 15.0])).unbind(1)
    distance = (x.amax(1, keepdim=True) - x).square().sum(-1)
    torch.testing.assert_close(cold, x[torch.arange(3), distance.argmin(1)])
    torch.testing.assert_close(hot, x.mean(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [-1e30, -100.0, -1.0, 0.0, 100.0, 1e30])
def test_a_temperature_is_positive_and_its_gradient_finite_whatever_is_learned(value):
    # released: exp(a) + b, which reaches zero and divides by it
    pool = SplatPool(4)
    with torch.no_grad():
        pool.log_temperature.fill_(value)
    assert (pool.temperature > 0).all() and pool.temperature.isfinite().all()
    x = features().requires_grad_()
    pool(x).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert pool.log_temperature.grad is not None and pool.log_temperature.grad.isfinite().all()


def test_equal_candidates_stay_finite():
    x = torch.ones(2, 4, 3, requires_grad=True)
    out = splat_pool(x, torch.zeros(2))
    out.sum().backward()
    assert out.eq(1).all() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("size", [8, 20, 32])
def test_the_number_of_slots_follows_the_group_size(size):
    # released: 32 whatever the group size
    encoder = Encoder(EncoderConfig(width=12, depth=1, heads=2, groups=4, group_size=size), FeatureSpec())
    pool = encoder.tokenizer.pool
    assert pool is not None and len(pool.temperature) == size
    assert encoder.config.candidates == int(1.25 * size)


def test_pooling_can_be_turned_off():
    # released: a switch that is on by default and has no off
    config = EncoderConfig(width=12, depth=1, heads=2, groups=4, group_size=8, pooling=False)
    encoder = Encoder(config, FeatureSpec())
    assert encoder.tokenizer.pool is None and config.candidates == 8
    assert not any("pool" in name for name in encoder.state_dict())


def test_nothing_of_the_size_of_groups_slots_candidates_channels_is_held():
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    x = features(16, 40, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        splat_pool(x, torch.zeros(32, requires_grad=True))
    assert max(sizes) <= 16 * 40 * 64
