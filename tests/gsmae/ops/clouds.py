"""Points on which grouping is hard to get right to the index: ties, duplicates, and numbers at their limits."""

import torch
from torch import Tensor


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn(high: int, count: int) -> Tensor:
    return torch.randint(high, (count,), generator=torch.Generator().manual_seed(1))


CLOUDS = {
    "uniform": lambda p: p,
    "a sphere": lambda p: torch.nn.functional.normalize(p, dim=-1),
    "a coarse grid": lambda p: (2 * p).round() / 2,
    "duplicates": lambda p: p[:, drawn(max(1, p.shape[1] // 3), p.shape[1])],
    "one point": lambda p: p[:, :1].expand_as(p),
    "sorted": lambda p: p.sort(dim=1).values,
    "tiny": lambda p: p * 1e-20,  # distances are subnormal or zero
    "huge": lambda p: p * 1e19,  # some distances are infinite
    "far from the origin": lambda p: p * 1e-3 + 100,  # few bits are left, so that most distances are ties
}
