"""Exponential averages of weights; nothing waits for a GPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def approach(kept: Sequence[Tensor], new: Sequence[Tensor], share: float | Tensor) -> None:
    """Move tensors in place by a share of their way to others of the same shapes.

    share  in 0..1; a scalar tensor where it is only known on the device
    """
    kept, new = list(kept), [n.detach() for n in new]
    many: Any = torch  # its functions of many tensors, by which its own average goes, too, are not declared
    if not kept:
        return
    if isinstance(share, float):
        many._foreach_lerp_(kept, new, share)
        return
    way = many._foreach_sub(new, kept)
    many._foreach_mul_(way, share)
    many._foreach_add_(kept, way)


class Average:
    """A copy of a model whose parameters and BatchNorm statistics follow the model's as an exponential average.

    module   the copy
    updates  how often it has followed; a scalar tensor on the device once steps come whose outcome only that knows
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates: int | Tensor = 0

    @torch.no_grad()
    def follow(self, model: nn.Module, happened: Tensor | None = None) -> None:
        """Towards the model as it is after a step; the first time, all the way.

        happened  scalar bool where only the device knows whether the step was taken; where it was not, nothing moves
        """
        ours = [*self.module.parameters(), *self.module.buffers()]
        pairs = list(zip(ours, [*model.parameters(), *model.buffers()], strict=True))
        share: float | Tensor
        if happened is None and isinstance(self.updates, int):
            share = 1 - self.decay if self.updates else 1.0
            self.updates += 1
        else:
            happened = torch.ones([], dtype=torch.bool, device=pairs[0][0].device) if happened is None else happened
            before = self.updates
            if isinstance(before, int):  # filled on the device: a number that is copied there would be waited for
                before = torch.full([], before, dtype=torch.int64, device=happened.device)
            share = torch.where(before == 0, 1.0, 1 - self.decay) * happened
            self.updates = before + happened
        moving = [(kept, new) for kept, new in pairs if kept.is_floating_point()]
        approach([kept for kept, _ in moving], [new for _, new in moving], share)
        for kept, new in pairs:
            if not kept.is_floating_point():  # a counter
                kept.copy_(new if happened is None else torch.where(happened, new, kept))
