"""The tokenizer: each group of Gaussians to one token (paper, section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import norm_relu, partitioned
from .pooling import SplatPool


class Tokenizer(nn.Module):
    """A small PointNet over each group, [B, G, K, C] -> [B, G, D].

    The widths 128, 256 and 512 are fixed whatever D is. With `slots` the group passes through splat pooling in the
    middle and the second half is narrower, as in the released network.

    columns  C, the columns of the embedded fields
    width    D
    slots    number of slots of the splat pooling, None for none
    """

    def __init__(self, columns: int, width: int, slots: int | None):
        super().__init__()
        local = 256 if slots is None else 128
        self.lift = nn.Linear(columns, 128)
        self.lift_norm = nn.BatchNorm1d(128)
        self.local = nn.Linear(128, local)
        self.pool = None if slots is None else SplatPool(slots)
        self.mix = nn.Linear(2 * local, 2 * local)
        self.mix_norm = nn.BatchNorm1d(2 * local)
        self.out = nn.Linear(2 * local, width)

    def forward(self, groups: Tensor) -> Tensor:
        x = groups.flatten(0, 1)
        hidden = norm_relu(self.lift_norm, self.lift(x))
        mixed = self._mix(hidden) if self.pool is None else self._mix_slots(self.pool(self.local(hidden)))
        mixed = norm_relu(self.mix_norm, mixed)
        return self.out(mixed).max(dim=1).values.unflatten(0, groups.shape[:2])

    def _mix(self, hidden: Tensor) -> Tensor:
        """mix(cat[max over the group, local]) without the local features' own product.

        `local` and the second half of `mix` are two linear maps in a row, so their product is taken once per step
        and its 256 rows once per Gaussian are saved; equal up to rounding.
        """
        local = self.local(hidden)
        shared, per_point = self.mix.weight.split(local.shape[-1], dim=1)
        bias = self.mix.bias + per_point @ self.local.bias
        shared = F.linear(local.max(dim=1, keepdim=True).values, shared, bias)
        return F.linear(hidden, per_point @ self.local.weight).add_(shared)

    def _mix_slots(self, slots: Tensor) -> Tensor:
        shared, per_slot = partitioned(self.mix, slots.max(dim=1, keepdim=True).values, slots)
        return per_slot.add_(shared)
