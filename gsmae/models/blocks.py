"""Transformer blocks: pre-norm attention and perceptron, stochastic depth, the position embedding, initial weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shares import drawn


class DropPath(nn.Module):
    """Drop a residual branch for whole samples in training, and scale it up for the others (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = drawn(len(x), lambda n: x.new_empty(n, *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate))
        return x * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Attention(nn.Module):
    """Multi-head self-attention, [B, T, D] -> [B, T, D]; queries, keys and values without bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Each token of x looks at x, and at the context [B, S, D] if there is one."""
        if context is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            own, others = self.qkv.weight.split([x.shape[-1], 2 * x.shape[-1]])
            q = F.linear(x, own).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            both = F.linear(torch.cat([context, x], dim=1), others)
            k, v = both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(x)))


class Block(nn.Module):
    """One pre-norm transformer block, [B, T, D] -> [B, T, D]; x may look at a context as well, which stays as it is."""

    def __init__(self, width: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        seen = None if context is None else self.norm1(context)
        x = x + self.drop_path(self.attention(self.norm1(x), seen))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PositionEmbedding(nn.Module):
    """From the columns of a centre to a token's position, [B, T, C] -> [B, T, D]."""

    def __init__(self, columns: int, width: int):
        super().__init__()
        self.hidden = nn.Linear(columns, 128)
        self.out = nn.Linear(128, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(x)))


def stack(width: int, depth: int, heads: int, drop_path: float) -> nn.ModuleList:
    """Blocks whose drop-path rate grows linearly from 0 in the first to `drop_path` in the last."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()  # values, also where weights are only shapes
    return nn.ModuleList(Block(width, heads, rate) for rate in rates)


def partitioned(linear: nn.Linear, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of `linear(cat([x, y], -1))`, the bias in the first, so that they may have different shapes.

    What all points of a group share is then multiplied once per group instead of once per point.
    """
    first, second = linear.weight.split([x.shape[-1], y.shape[-1]], dim=1)
    return F.linear(x, first, linear.bias), F.linear(y, second)


def norm_relu(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Batch normalisation over all axes but the last, then ReLU."""
    # in place before the view: through a view autograd would copy all of it
    return F.relu(norm(x.flatten(0, -2)), inplace=True).view_as(x)


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights of all linear layers from a normal of 0.02 cut at two, and zero their biases (Point-MAE).

    generator  the only source of randomness; None is torch's own
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02, generator=generator)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def initialize_decoder(blocks: nn.Module, generator: torch.Generator | None = None) -> None:
    """Point-MAE draws its decoder's linear layers from Xavier's uniform distribution instead."""
    for child in blocks.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight, generator=generator)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def token(width: int, generator: torch.Generator | None = None) -> nn.Parameter:
    """A learned token [1, 1, D], drawn as the weights of `initialize` are."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02, generator=generator))
