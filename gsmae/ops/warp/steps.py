"""Adam for many objects in one launch a tensor; the promises are those of gsmae.ops.reference.steps."""

from __future__ import annotations

import torch
from torch import Tensor

from . import runtime


@torch.no_grad()
def adam_many(
    value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rates: Tensor, counts: Tensor, live: Tensor
) -> None:
    """See gsmae.ops.reference.steps.adam_many; `value`, `mean` and `square` are contiguous."""
    if value.numel() == 0:
        return
    flat = [t.detach().view(-1) for t in (value, gradient.contiguous(), mean, square)]
    with runtime.on(value.device) as wp:
        runtime.launch(
            wp, runtime.kernels("steps").adam, value.numel(), value.device, *flat, value.numel() // len(value), rates,
            counts, live.view(torch.uint8),
        )  # fmt: skip
