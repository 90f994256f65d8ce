"""Networks for labelled splats: classification, and part segmentation of points by the splat that surrounds them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Config
from ..features import FeatureSpec
from ..groups import Groups
from ..ops import interpolate
from ..shares import Dropout
from .blocks import initialize, norm_relu, partitioned, token
from .encoder import Encoder, EncoderConfig, thirds


class ClassifierConfig(Config):
    """A classifier on the encoder; defaults are the paper's."""

    encoder: EncoderConfig = EncoderConfig()
    """as in pretraining"""
    classes: int = Field(default=40, ge=1)
    """number of classes"""
    protocol: Literal["full", "mlp3", "linear"] = "full"
    """what is trained: everything; a three-layer head on the frozen encoder; one layer on the frozen encoder"""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """in the three-layer head"""


class Classifier(nn.Module):
    """Class token and the maximum over the other tokens, through a head to class scores (paper, section 5).

    With the protocols "mlp3" and "linear" the encoder, the class token and its position do not change in any way:
    no gradients, and BatchNorm and drop path stay in evaluation mode whatever `train()` says.
    """

    def __init__(self, config: ClassifierConfig, spec: FeatureSpec, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.spec = config, spec
        width = config.encoder.width
        self.encoder = Encoder(config.encoder, spec, generator=generator)
        self.class_token = token(width, generator)
        self.class_position = token(width, generator)
        self.head = _head(config)
        initialize(self.head, generator)
        if self.frozen:
            for parameter in (*self.encoder.parameters(), self.class_token, self.class_position):
                parameter.requires_grad_(False)
            self.encoder.eval()

    @property
    def frozen(self) -> bool:
        """Whether only the head is trained."""
        return self.config.protocol != "full"

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def features(self, points: Tensor | Groups) -> Tensor:
        """What the head sees: [class token, maximum over the other tokens], [B, 2 D]."""
        groups = self.encoder.group(points)
        tokens, positions = self.encoder.tokenize(groups.points), self.encoder.locate(groups.centers)
        x = self.encoder.transform(_prepend(self.class_token, tokens), _prepend(self.class_position, positions))
        return torch.cat([x[:, 0], x[:, 1:].max(dim=1).values], dim=-1)

    def forward(self, points: Tensor | Groups) -> Tensor:
        """Class scores [B, classes] of normalised Gaussians [B, N, 14] or of their groups."""
        return self.head(self.features(points))


def _head(config: ClassifierConfig) -> nn.Sequential:
    width = 2 * config.encoder.width
    if config.protocol == "linear":
        return nn.Sequential(nn.Linear(width, config.classes))
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), Dropout(config.dropout)]
        width = 256
    return nn.Sequential(*layers, nn.Linear(width, config.classes))


def _prepend(first: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([first.to(rest.dtype).expand(len(rest), -1, -1), rest], dim=1)


class SegmenterConfig(Config):
    """Part segmentation on the encoder; defaults are the paper's for ShapeNet-Part."""

    encoder: EncoderConfig = EncoderConfig()
    """as in pretraining"""
    parts: int = Field(default=50, ge=1)
    """number of parts over all categories"""
    categories: int = Field(default=16, ge=1)
    """number of object categories"""
    taps: tuple[int, int, int] | None = None
    """blocks whose outputs are used, counted from one; None for the ends of the thirds, 4, 8 and 12 of 12"""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """after the first layer of the head"""

    @model_validator(mode="after")
    def _fits(self) -> SegmenterConfig:
        if self.taps is not None and not all(1 <= tap <= self.encoder.depth for tap in self.taps):
            raise ValueError(f"taps {self.taps} are not all within the {self.encoder.depth} blocks")
        return self


class Segmenter(nn.Module):
    """Part scores of points: features of three depths carried to them from the centres (PointNet++), and a head.

    Positions are means whatever `spec.group` says, because that is all that a point has.
    """

    def __init__(self, config: SegmenterConfig, spec: FeatureSpec, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.spec = config, spec
        width = config.encoder.width
        self.encoder = Encoder(config.encoder, spec, position=("means",), generator=generator)
        self.category = nn.Linear(config.categories, 64, bias=False)
        self.category_norm = nn.BatchNorm1d(64)
        self.carry1 = nn.Linear(3 + 3 * width, 4 * width)
        self.carry1_norm = nn.BatchNorm1d(4 * width)
        self.carry2 = nn.Linear(4 * width, 1024)
        self.carry2_norm = nn.BatchNorm1d(1024)
        self.head1 = nn.Linear(1024 + 6 * width + 64, 512)
        self.head1_norm = nn.BatchNorm1d(512)
        self.dropout = Dropout(config.dropout)
        self.head2 = nn.Linear(512, 256)
        self.head2_norm = nn.BatchNorm1d(256)
        self.head3 = nn.Linear(256, config.parts)
        for child in self.children():
            if child is not self.encoder:
                initialize(child, generator)

    def forward(self, points: Tensor | Groups, queries: Tensor, category: Tensor) -> Tensor:
        """Logarithms of part probabilities at the queries.

        points    normalised Gaussians [B, N, 14] or their groups
        queries   [B, P, 3] positions in the same normalised space
        category  [B] int64 index of the object category
        returns   [B, P, parts]
        """
        groups = self.encoder.group(points)
        tokens, positions = self.encoder.tokenize(groups.points), self.encoder.locate(groups.centers)
        depths = self.config.taps or thirds(self.config.encoder.depth)
        features = torch.cat(self.encoder.taps(tokens, positions, depths), dim=-1)
        carried = self._carry(queries, groups.centers[..., :3].contiguous(), features)
        whole = [features.max(dim=1).values, features.mean(dim=1), self._name(category, features.dtype)]
        at_point, of_object = partitioned(self.head1, carried, torch.cat(whole, dim=-1)[:, None])
        x = self.dropout(norm_relu(self.head1_norm, at_point + of_object))
        x = norm_relu(self.head2_norm, self.head2(x))
        return F.log_softmax(self.head3(x), dim=-1)

    def _carry(self, queries: Tensor, centers: Tensor, features: Tensor) -> Tensor:
        """relu(norm(carry1(cat[query, interpolated features]))) and the same with carry2, [B, P, 1024].

        Interpolation and a linear map can be taken in either order; there are far fewer centres than queries, so
        the map comes first.
        """
        at_query, at_center = partitioned(self.carry1, queries.to(features.dtype), features)
        x = at_query + interpolate(queries, centers, at_center)
        x = norm_relu(self.carry1_norm, x)
        return norm_relu(self.carry2_norm, self.carry2(x))

    def _name(self, category: Tensor, dtype: torch.dtype) -> Tensor:
        one_hot = (category[:, None] == torch.arange(self.config.categories, device=category.device)).to(dtype)
        return F.leaky_relu(self.category_norm(self.category(one_hot)), 0.2)
