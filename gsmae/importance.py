"""How much of an object's look a Gaussian carries, and draws that prefer those that carry more."""

from __future__ import annotations

import torch
from torch import Tensor

from .gaussians import Gaussians
from .shapes import FLOOR
from .shares import drawn

DRAW_POWER = 0.1  # of the volume where Gaussians are drawn: LightGaussian's (arXiv 2311.17245)
MASK_POWER = 1 / 3  # where groups are hidden: GaussFusion's salience (arXiv 2607.05906)
FAINT = 1e-3  # opacities below count as this, so that every Gaussian can be drawn


def log_importance(opacities: Tensor, scales: Tensor, power: float) -> Tensor:
    """log(opacity * volume^power), up to a constant of the splat: [...] and [..., 3] -> [...].

    scales  in any one unit; at least FLOOR of it is taken
    """
    return opacities.clamp_min(FAINT).log() + power * scales.clamp_min(FLOOR).log().sum(dim=-1)


def log_weights(gaussians: Gaussians) -> Tensor:
    """The logarithm of the weight with which `FeatureSpec.draw` = "importance" draws each Gaussian, [N]."""
    extent = gaussians.means - gaussians.means.mean(dim=0)
    radius = extent.norm(dim=1).max().clamp_min(1e-12)
    return log_importance(gaussians.opacities, gaussians.scales / radius, DRAW_POWER)


def heaviest(log_weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw without replacement, each time with probability by weight (Gumbel top-k, arXiv 1903.06059).

    log_weights  [..., N]
    returns      [..., count] int64, in the order drawn
    """
    first, *rest = log_weights.shape
    noise = drawn(first, lambda n: torch.rand(n, *rest, generator=generator, device=generator.device))
    noise = noise.to(log_weights.device)
    gumbel = -(-noise.clamp_min(1e-20).log()).log()
    return (log_weights + gumbel).topk(count, dim=-1).indices


def thin(gaussians: Gaussians, count: int, draw: str, generator: torch.Generator) -> Tensor:
    """Indices of at most `count` Gaussians of a splat, drawn as a FeatureSpec says ("uniform" or "importance")."""
    count = min(count, len(gaussians))
    if draw == "importance":
        return heaviest(log_weights(gaussians), count, generator).sort().values
    return torch.randperm(len(gaussians), generator=generator)[:count]
