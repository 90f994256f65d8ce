"""Gaussians drawn by what they carry of an object's look, from files and from memory, as repeatable as windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data import draws
from data.datasets import SplatDataset, to_gaussians
from data.shards import pack
from data.streams import batches
from gsmae.features import FeatureSpec, normalize
from gsmae.importance import DRAW_POWER, heaviest, log_importance, log_weights, thin

SPEC = FeatureSpec(draw="importance")


def rows_of(dataset, i):
    whole, _ = normalize(to_gaussians(dataset.rows(i), 0), SPEC)
    return {tuple(row): k for k, row in enumerate(whole.tolist())}


def test_importance_is_opacity_times_a_power_of_the_volume(make_splat):
    g = make_splat(0, 20)
    assert torch.allclose(
        log_importance(g.opacities, g.scales, 0.5).exp(), g.opacities.clamp_min(1e-3) * g.scales.prod(1).sqrt()
    )
    larger = g.replace(log_scales=g.log_scales + 1)
    assert torch.allclose(
        log_importance(larger.opacities, larger.scales, DRAW_POWER),
        log_importance(g.opacities, g.scales, DRAW_POWER) + 3 * DRAW_POWER, atol=1e-5,
    )  # fmt: skip
    flat = g.replace(log_scales=torch.full_like(g.log_scales, -torch.inf), logit_opacities=g.logit_opacities - 1e9)
    assert log_weights(flat).isfinite().all()


def test_draws_without_replacement_have_the_probabilities_of_the_weights():
    weights = torch.tensor([1.0, 2.0, 5.0]).log()
    generator, first, second = torch.Generator().manual_seed(0), np.zeros(3), np.zeros((3, 3))
    drawn = heaviest(weights.expand(20000, 3), 2, generator)
    for a, b in drawn.tolist():
        first[a] += 1
        second[a, b] += 1
    assert np.abs(first / 20000 - np.array([1, 2, 5]) / 8).max() < 0.01
    assert second.trace() == 0 and abs(second[2, 1] / first[2] - 2 / 3) < 0.02
    counts = np.zeros(3)
    for seed in range(4000):
        index = draws.weighted(seed, weights.numpy(), 1)
        counts[index] += 1
    assert np.abs(counts / 4000 - np.array([1, 2, 5]) / 8).max() < 0.03


def test_a_small_object_gives_all_and_begins_again():
    assert draws.weighted(1, np.zeros(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert sorted(draws.weighted(1, np.zeros(9), 8).tolist()) == draws.weighted(1, np.zeros(9), 8).tolist()


@pytest.mark.parametrize("resident", [True, False])
def test_drawn_batches_have_no_row_twice_and_are_a_function_of_seed_epoch_and_object(packed, resident):
    dataset = SplatDataset(packed, "train")
    options = {"batch_size": 5, "gaussians": 20, "seed": 3, "resident": resident}
    stream = batches(dataset, SPEC, **options)
    again = {uid: p for b in batches(dataset, SPEC, **{**options, "batch_size": 3}).epoch(2)
             for uid, p in zip(b.uids, b.points, strict=True)}  # fmt: skip
    changed = 0
    for batch, other in zip(stream.epoch(2), stream.epoch(3), strict=True):
        for uid, points in zip(batch.uids, batch.points, strict=True):
            assert torch.equal(points, again[uid])
            drawn = [rows_of(dataset, dataset.uids.index(uid))[tuple(row)] for row in points.tolist()]
            assert drawn == sorted(drawn) and len(set(drawn)) == min(20, dataset.counts[dataset.uids.index(uid)])
        changed += not torch.equal(batch.points, other.points)
    assert changed == len(stream)
    fixed = [batches(dataset, SPEC, shuffle=False, **{**options, "seed": s}) for s in (3, 4)]
    assert all(torch.equal(a.points, b.points) for a, b in zip(*fixed, strict=True))


def test_files_and_memory_draw_the_same(packed):
    dataset = SplatDataset(packed, "train")
    pair = (batches(dataset, SPEC, batch_size=7, gaussians=20, resident=r) for r in (True, False))
    assert all(torch.equal(a.points, b.points) for a, b in zip(*(s.epoch(1) for s in pair), strict=True))


def test_what_is_seen_best_is_drawn_most_often(make_build, tmp_path):
    build = make_build().add("chair/1", count=64)
    pack(build.path, tmp_path / "p")
    dataset = SplatDataset(tmp_path / "p")
    weights = log_weights(dataset[0].gaussians)
    place, counts = rows_of(dataset, 0), np.zeros(64)
    stream = batches(dataset, SPEC, batch_size=1, gaussians=8)
    for epoch in range(300):
        for row in next(stream.epoch(epoch)).points[0].tolist():
            counts[place[tuple(row)]] += 1
    order = weights.argsort().numpy()
    assert counts[order[-16:]].sum() > 1.3 * counts[order[:16]].sum()


def test_the_constants_of_the_splats_come_with_the_batch(packed):
    dataset = SplatDataset(packed, "train")
    for resident in (True, False):
        batch = next(
            iter(batches(dataset, FeatureSpec(), batch_size=4, gaussians=10, shuffle=False, resident=resident))
        )
        assert batch.normalization is not None
        scales = batch.normalization.linear_scales(batch.points)
        for k, uid in enumerate(batch.uids):
            g = dataset[dataset.uids.index(uid)].gaussians
            _, how = normalize(g, FeatureSpec())
            torch.testing.assert_close(scales[k] * how.radius, g.scales[:10])


def test_a_large_splat_is_thinned_by_weight(make_splat):
    g = make_splat(0, 400)
    chosen = thin(g, 100, "importance", torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == 100 and chosen.tolist() == sorted(chosen.tolist())
    assert log_weights(g)[chosen].mean() > log_weights(g).mean()
    assert len(thin(g, 1000, "importance", torch.Generator())) == 400
    plain = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:100]
    assert torch.equal(thin(g, 100, "uniform", torch.Generator().manual_seed(0)), plain)
