"""Splat pooling: a neighbourhood softly summarised in a few slots (paper, section 4; released as `soft_knn`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LIMIT = 20.0  # temperatures stay within exp(+-20): neither zero nor infinite in any float type that trains


def splat_pool(features: Tensor, log_temperature: Tensor) -> Tensor:
    """Slots z_i = sum_j w_ij x_j with w_ij = softmax_j(-|q - x_j|^2 / t_i) and q the channel-wise maximum of x.

    features         [R, J, C] candidates of each group
    log_temperature  [S] log t_i
    returns          [R, S, C]; a batched matrix product, so that nothing of size R S J C is ever held
    """
    query = features.max(dim=1, keepdim=True).values
    distance = (query - features).square().sum(dim=-1)
    sharpness = torch.exp(-log_temperature.clamp(-LIMIT, LIMIT))
    weights = torch.softmax(-distance[:, None, :] * sharpness[:, None], dim=-1)
    return weights.to(features.dtype) @ features


class SplatPool(nn.Module):
    """`splat_pool` with learned temperatures that start at one and are positive whatever is learned.

    The released t_i = exp(a_i) + b_i can reach zero and below; `gsmae.convert` maps it here where it is positive.
    """

    def __init__(self, slots: int):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(slots))

    @property
    def temperature(self) -> Tensor:
        """t_i > 0, [S]."""
        return self.log_temperature.clamp(-LIMIT, LIMIT).exp()

    def forward(self, features: Tensor) -> Tensor:
        return splat_pool(features, self.log_temperature)
