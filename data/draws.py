"""Randomness as a function of names: no state, so order, windows and augmentation can be resumed anywhere.

Every draw is a hash of (key, counter). Streams are thereby independent of batch size, ranks and workers, and, unlike
those of numpy's generators, the same in every version: packed bytes do not change when numpy does.
"""

from __future__ import annotations

import hashlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def key(*parts: int | str) -> int:
    """A 64-bit key from any mixture of numbers and names; different lists give different keys."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix(values: np.ndarray) -> np.ndarray:
    """Hash of 64-bit numbers, element by element (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = values.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * _A
    x = (x ^ (x >> np.uint64(27))) * _B
    return x ^ (x >> np.uint64(31))


def bits(keys: int | np.ndarray, count: int) -> np.ndarray:
    """`count` hashed numbers for each key: keys [...] uint64 or one number -> [..., count] uint64."""
    keys = np.asarray(keys, dtype=np.uint64)[..., None]  # never a scalar: numpy warns when those wrap around
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return mix(mix(keys) + counters)


def uniforms(keys: int | np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each key: [..., count] float64."""
    return (bits(keys, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def weighted(seed: int, log_weights: np.ndarray, count: int) -> np.ndarray:
    """Indices drawn without replacement with probability by weight, one after the other: [count] int64, ascending.

    By Gumbel noise and the largest sums (arXiv 1903.06059). Where there are fewer than `count`, all of them again and
    again.
    """
    n = len(log_weights)
    if count >= n:
        return np.arange(count) % n
    noise = np.maximum(uniforms(seed, n), 2.0**-54)
    return np.sort(np.argpartition(log_weights - np.log(-np.log(noise)), n - count)[n - count :])


def permutation(n: int, seed: int) -> np.ndarray:
    """A permutation of 0..n-1 that depends on n and the key `seed` alone: [n] int64."""
    return np.argsort(bits(seed, n), kind="stable")
