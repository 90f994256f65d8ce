"""The encoder: groups to tokens to features; what pretraining leaves behind and every task begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Config
from ..features import FeatureSpec, expand, normalize
from ..gaussians import WIDTH, Gaussians, columns
from ..groups import Groups, group, select
from ..importance import thin
from .blocks import PositionEmbedding, initialize, stack
from .tokenizer import Tokenizer


class EncoderConfig(Config):
    """Size of the encoder and how splats are cut into groups; defaults are the paper's."""

    width: int = Field(default=384, ge=1)
    """D, width of a token"""
    depth: int = Field(default=12, ge=1)
    """transformer blocks"""
    heads: int = Field(default=6, ge=1)
    """attention heads; they divide the width"""
    groups: int = Field(default=64, ge=2)
    """G, tokens per splat"""
    group_size: int = Field(default=32, ge=1)
    """K, Gaussians per group; the targets of pretraining"""
    pooling: bool = True
    """splat pooling, as every released run had; it takes int(1.25 K) candidates per group"""
    slots: int | None = Field(default=None, ge=1)
    """slots of the splat pooling; None for K (the released code has 32 whatever K is)"""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """stochastic depth of the last block, growing linearly from 0 in the first"""
    points: int = Field(default=1024, ge=1)
    """Gaussians kept of a whole splat when the encoder is called on one"""

    @model_validator(mode="after")
    def _fits(self) -> EncoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.points < self.groups:
            raise ValueError(f"{self.points} points of a splat cannot make {self.groups} groups")
        return self

    @property
    def candidates(self) -> int:
        """Gaussians that the tokenizer sees per group."""
        return int(1.25 * self.group_size) if self.pooling else self.group_size


class Encoded(NamedTuple):
    """Features of a splat's groups.

    tokens   [B, G, D]   after the last norm
    centers  [B, G, 14]  the Gaussians that they belong to, normalised
    Without the first axis where a single splat was given.
    """

    tokens: Tensor
    centers: Tensor


class Encoder(nn.Module):
    """Tokenizer, position embedding and transformer; the position is added to the input of every block.

    config     sizes
    spec       fields that are embedded and grouped by
    position   fields of a centre that its position is made of; `spec.group` unless given
    generator  source of the initial weights; None is torch's own

    `encoder(splat)` runs all of it; tasks call `group`, `tokenize`, `locate` and `transform` themselves.
    """

    def __init__(
        self,
        config: EncoderConfig,
        spec: FeatureSpec,
        *,
        position: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.config, self.spec = config, spec
        self._embed = columns(spec.embed)
        self._position = columns(spec.group if position is None else position)
        slots = (config.slots or config.group_size) if config.pooling else None
        self.tokenizer = Tokenizer(len(self._embed), config.width, slots)
        self.position = PositionEmbedding(len(self._position), config.width)
        self.blocks = stack(config.width, config.depth, config.heads, config.drop_path)
        self.norm = nn.LayerNorm(config.width)
        initialize(self, generator)

    def group(self, points: Tensor | Groups) -> Groups:
        """Groups as this encoder wants them, from normalised Gaussians [B, N, 14]; ready groups are passed on."""
        if isinstance(points, Groups):
            return points
        return group(expand(points, self.spec), self.spec.group, self.config.groups, self.config.candidates)

    def tokenize(self, points: Tensor) -> Tensor:
        """Groups of Gaussians [B, G, K, C] to tokens [B, G, D]."""
        return self.tokenizer(select(points, self._embed))

    def locate(self, centers: Tensor) -> Tensor:
        """Centres [B, G, C] to position embeddings [B, G, D]."""
        return self.position(select(centers, self._position))

    def transform(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens after all blocks and the norm; both arguments and the result are [B, T, D]."""
        for block in self.blocks:
            tokens = block(tokens + positions)
        return self.norm(tokens)

    def taps(self, tokens: Tensor, positions: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """Like `transform`, but the normed outputs of the blocks at `depths`, counted from one."""
        found = {}
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens + positions)
            found[depth] = tokens
        return [self.norm(found[depth]) for depth in depths]

    def forward(self, splat: Gaussians | Tensor) -> Encoded:
        """Features of whole splats.

        splat  Gaussians, which are normalised by the encoder's own FeatureSpec and thinned to `config.points`, drawn
               as in training but always the same ones; or normalised columns, [N, 14] or [B, N, 14], which
               are taken as they are
        """
        device = self.norm.weight.device
        if isinstance(splat, Gaussians):
            points = normalize(splat, self.spec)[0].to(device)[None]
            drawn = thin(splat, self.config.points, self.spec.draw, torch.Generator().manual_seed(0))
            points = points[:, drawn.to(device)]
        else:
            points = splat.to(device) if splat.ndim == 3 else splat.to(device)[None]
        groups = self.group(points)
        tokens = self.transform(self.tokenize(groups.points), self.locate(groups.centers))
        centers = groups.centers[..., :WIDTH]
        if isinstance(splat, Gaussians) or splat.ndim == 2:
            return Encoded(tokens[0], centers[0])
        return Encoded(tokens, centers)


def thirds(depth: int) -> tuple[int, int, int]:
    """The blocks, counted from one, after each third of the depth: 4, 8 and 12 of 12."""
    first, second, third = (math.ceil(depth * i / 3) for i in (1, 2, 3))
    return first, second, third
