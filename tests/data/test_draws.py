"""Draws without state: uniform, and functions of their key alone."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats

from data import draws


def test_keys_tell_numbers_names_and_their_boundaries_apart():
    keys = [draws.key(*parts) for parts in ((1,), ("1",), (1, 2), (12,), ("1", "2"), ("12",), ("a", 1), ("a1",), ())]
    assert len(set(keys)) == len(keys) and draws.key(7, "rows", "chair/1") == draws.key(7, "rows", "chair/1")


def test_the_draws_are_those_of_splitmix64_and_fixed_for_ever():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # seed 0
    assert draws.bits(0, 3).tolist() == published
    assert draws.permutation(6, draws.key(0, "rows", "chair/1")).tolist() == [5, 0, 4, 1, 3, 2]


def test_uniforms_are_uniform_and_independent_between_neighbouring_keys():
    u = draws.uniforms(np.arange(2000), 8)
    assert u.shape == (2000, 8) and u.min() >= 0 and u.max() < 1
    assert all(stats.kstest(u[:, k], "uniform").pvalue > 1e-3 for k in range(8))
    correlation = np.corrcoef(u.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.1 and abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.1


def test_permutations_are_uniform():
    counts = np.zeros((5, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(4000):
            counts[np.arange(5), draws.permutation(5, draws.key(seed))] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
