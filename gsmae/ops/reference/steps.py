"""A step of Adam for many objects at once, each with its own count of steps."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-15


@torch.no_grad()
def adam_many(
    value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rates: Tensor, counts: Tensor, live: Tensor
) -> None:
    """Adam (Kingma and Ba 2015, algorithm 1) for B objects, in place in `value`, `mean` and `square`.

    value, gradient, mean, square  [B, ...]
    rates   [B]
    counts  [B] int64, which step this is for each object, from 1
    live    [B] bool; the others stay as they are, whatever their gradients
    """
    shape = (-1, *[1] * (value.ndim - 1))
    taken = live.view(shape)
    mean.copy_(torch.where(taken, BETA1 * mean + (1 - BETA1) * gradient, mean))
    square.copy_(torch.where(taken, BETA2 * square + (1 - BETA2) * gradient * gradient, square))
    first, second = (1 - torch.pow(beta, counts.double()) for beta in (BETA1, BETA2))
    pace = (rates / first).to(value.dtype).view(shape)
    root = second.sqrt().to(value.dtype).view(shape)
    value.copy_(torch.where(taken, value - pace * mean / (square.sqrt() / root + EPS), value))
