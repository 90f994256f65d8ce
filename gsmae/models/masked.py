"""What all pretraining shares: the encoder of the visible groups and the decoder of the hidden ones."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ..config import Config
from ..errors import nearest_name
from ..features import FeatureSpec, Normalization
from ..gaussians import WIDTHS, columns
from ..groups import Groups, block_mask, importance_mask, masked_count, random_mask, rows
from ..importance import MASK_POWER, log_importance
from .blocks import PositionEmbedding, initialize, initialize_decoder, stack, token
from .encoder import Encoder, EncoderConfig


class LatentConfig(Config):
    """Targets in feature space, for `objective` "latent"."""

    momentum: float = Field(default=0.996, ge=0, le=1)
    """of the teacher's weights at the first step; it grows to one by half a cosine"""
    blocks: tuple[int, ...] = Field(default=(11, 9, 7, 5), min_length=1)
    """relative sizes of the blocks of hidden groups; each is predicted on its own"""
    spread: float = Field(default=0.0, ge=0)
    """weight of a penalty on channels whose standard deviation over the batch is below one (VICReg's hinge)"""


class MAEConfig(Config):
    """The masked autoencoder; defaults are the paper's."""

    encoder: EncoderConfig = EncoderConfig()
    """the part that is kept after pretraining"""
    decoder_depth: int = Field(default=4, ge=1)
    """transformer blocks of the decoder, as wide as the encoder"""
    decoder_heads: int = Field(default=6, ge=1)
    """attention heads of the decoder; they divide the width"""
    objective: Literal["reconstruct", "latent"] = "reconstruct"
    """what is predicted of hidden groups: their Gaussians, or what a slowly following teacher makes of them"""
    mask: Literal["random", "block", "importance"] = "random"
    """which groups are hidden: any, a contiguous block, or with probability by opacity times volume^(1/3). Latent
    targets have blocks of their own"""
    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """share of the groups that is hidden, rounded down: 38 of 64"""
    tokenize: Literal["all", "visible"] = "all"
    """groups that pass the tokenizer. "all" as released: those that will be hidden are thrown away afterwards.
    "visible" is much faster and in evaluation equal; in training, BatchNorm then sees only the visible groups"""
    match: Literal["slots", "nearest"] = "slots"
    """target of a predicted Gaussian's attributes: the Gaussian in the same slot, as released, or the one that the
    Chamfer distance of the positions pairs it with"""
    centers: Literal["given", "predicted"] = "given"
    """where the decoder has the centres of hidden groups from: it is told, as released, or they are predicted from the
    visible groups and the hidden ones' contents, as in PCP-MAE (arXiv 2408.08753), and learned with the weight 0.1"""
    weights: dict[str, float] = Field(default_factory=dict)
    """loss weights by field, and of "centers"; those not named are one (centers: 0.1)"""
    latent: LatentConfig = LatentConfig()

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        for name in weights:
            if name not in (*WIDTHS, "centers"):
                raise ValueError(f"unknown field '{name}': {nearest_name(name, (*WIDTHS, 'centers'))}")
        return weights

    @model_validator(mode="after")
    def _fits(self) -> MAEConfig:
        if self.encoder.width % self.decoder_heads:
            raise ValueError(f"width {self.encoder.width} is not a multiple of {self.decoder_heads} decoder heads")
        if self.centers == "predicted" and (self.tokenize, self.objective) != ("all", "reconstruct"):
            raise ValueError(
                "centers are predicted from all tokens, to reconstruct: leave tokenize and objective alone"
            )
        return self

    @property
    def masked(self) -> int:
        """How many groups of each splat are hidden."""
        return masked_count(self.encoder.groups, self.mask_ratio)


class Masked(nn.Module):
    """Encoder and decoder of a pretraining network; subclasses say what is predicted of the hidden groups.

    config     sizes and choices
    spec       fields that are embedded, grouped by and normalised
    generator  source of the initial weights; None is torch's own
    """

    def __init__(self, config: MAEConfig, spec: FeatureSpec, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.spec = config, spec
        width = config.encoder.width
        self.encoder = Encoder(config.encoder, spec, generator=generator)
        self.mask_token = token(width, generator)
        self.decoder_position = PositionEmbedding(len(columns(spec.group)), width)
        self.decoder_blocks = stack(width, config.decoder_depth, config.decoder_heads, config.encoder.drop_path)
        self.decoder_norm = nn.LayerNorm(width)

    def _initialize(self, heads: nn.Module, generator: torch.Generator | None) -> None:
        initialize(self.decoder_position, generator)
        initialize(heads, generator)
        initialize_decoder(self.decoder_blocks, generator)

    def draw_mask(
        self, groups: Groups, generator: torch.Generator, normalization: Normalization | None = None
    ) -> Tensor:
        """A mask [B, G] as the configuration says, True = hidden; on the generator's or the centres' device.

        normalization  of the splats; needed to mask by importance where scales are normalised (ValueError without)
        """
        ratio = self.config.mask_ratio
        if self.config.mask == "block":
            return block_mask(groups.centers, ratio, generator)
        if self.config.mask == "importance":
            return importance_mask(self._importance(groups.points, normalization), ratio, generator)
        batch, count, _ = groups.centers.shape
        return random_mask(batch, count, ratio, generator)

    def _importance(self, points: Tensor, normalization: Normalization | None) -> Tensor:
        """The logarithm of the summed importance of each group, [B, G]."""
        opacities, scales = points[..., 3], points[..., 4:7]
        if "opacities" in self.spec.normalize:
            opacities = (opacities + 1) / 2
        if normalization is not None:
            scales = normalization.linear_scales(points)
        elif "scales" in self.spec.normalize:
            raise ValueError("masks by importance need the volumes: give the normalization of these splats")
        return log_importance(opacities, scales, MASK_POWER).logsumexp(dim=-1)

    def _tokens(self, groups: Groups, visible: Tensor) -> Tensor:
        """Tokens of the visible groups [B, V, D]."""
        if self.config.tokenize == "all":
            tokens = self.encoder.tokenize(groups.points)
            # the gradient of `rows` sorts its indices on a GPU, in a dozen launches
            return tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[-1]))
        return self.encoder.tokenize(rows(groups.points, visible))

    def _encode(self, groups: Groups, visible: Tensor) -> Tensor:
        return self.encoder.transform(self._tokens(groups, visible), self.encoder.locate(rows(groups.centers, visible)))

    def _decode(self, encoded: Tensor, located: Tensor, hidden: int) -> Tensor:
        """The decoder's features of the last `hidden` groups.

        encoded  [B, V, D]           of the visible groups
        located  [B, V + hidden, C]  grouping columns of their centres, then of the hidden ones'
        """
        x = torch.cat([encoded, self.mask_token.to(encoded.dtype).expand(len(encoded), hidden, -1)], dim=1)
        positions = self.decoder_position(located)
        for block in self.decoder_blocks:
            x = block(x + positions)
        return self.decoder_norm(x[:, -hidden:])
