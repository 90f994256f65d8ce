"""Masked reconstruction for people to look at: what went in, what was seen, what was made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .features import denormalize, normalize
from .gaussians import Gaussians
from .groups import rows
from .models import GaussianMAE
from .models import reconstruct as filled
from .render import orbit, render


@dataclass(frozen=True)
class Reconstruction:
    """Three splats of SH degree 0 in the frame of the original.

    input      the groups as they were
    visible    the groups that the network saw
    predicted  those, and its prediction of all others
    """

    input: Gaussians
    visible: Gaussians
    predicted: Gaussians


def reconstruct_splat(model: GaussianMAE, splat: Gaussians, seed: int) -> Reconstruction:
    """Draw as many Gaussians as the encoder takes, hide groups, predict them; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    points, how = normalize(splat, model.spec)
    keep = torch.randperm(len(points), generator=generator)[: model.config.encoder.points]
    with torch.no_grad():
        groups = model.encoder.group(points[keep][None].to(device))
        output = model(groups, model.draw_mask(groups, generator))
        size = model.config.encoder.group_size
        order = output.mask.to(torch.uint8).argsort(dim=1, stable=True, descending=True)
        truth = rows(groups.points, order)[:, :, :size].clone()
        truth[..., :3] += rows(groups.centers, order)[:, :, None, :3]
        truth = truth.flatten(1, 2)[0].cpu()
        made = filled(output)[0].cpu()
    hidden = int(output.mask.sum()) * size
    return Reconstruction(*(denormalize(p, how) for p in (truth, truth[hidden:], made)))


def picture(made: Reconstruction, size: int) -> Image.Image:
    """input | visible | predicted, side by side, from the same side."""
    viewmats, intrinsics = orbit(1, size)
    row = [render(g, viewmats, intrinsics, size, size)[0] for g in (made.input, made.visible, made.predicted)]
    return Image.fromarray((torch.cat(row, dim=1).numpy() * 255).round().astype(np.uint8))
