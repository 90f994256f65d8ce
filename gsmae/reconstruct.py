"""Masked reconstruction for people to look at: what went in, what was seen, what was made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .features import denormalize, normalize
from .gaussians import WIDTH, Gaussians
from .groups import rows
from .importance import thin
from .models import GaussianMAE
from .models import reconstruct as filled
from .render import orbit, render


@dataclass(frozen=True)
class Reconstruction:
    """Three splats of SH degree 0 in the frame of the original.

    input      the groups as they were
    visible    the groups that the network saw
    predicted  those, and its prediction of all others
    thinned    Gaussians of the original for each that was drawn
    """

    input: Gaussians
    visible: Gaussians
    predicted: Gaussians
    thinned: float


def reconstruct_splat(model: GaussianMAE, splat: Gaussians, seed: int) -> Reconstruction:
    """Draw as many Gaussians as the encoder takes, hide groups, predict them; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    points, how = normalize(splat, model.spec)
    keep = thin(splat, model.config.encoder.points, model.spec.draw, generator)
    with torch.no_grad():
        groups = model.encoder.group(points[keep][None].to(device))
        output = model(groups, model.draw_mask(groups, generator, how.to(device)))
        size = model.config.encoder.group_size
        order = output.mask.to(torch.uint8).argsort(dim=1, stable=True, descending=True)
        truth = rows(groups.points, order)[:, :, :size, :WIDTH].clone()
        truth[..., :3] += rows(groups.centers, order)[:, :, None, :3]
        truth = truth.flatten(1, 2)[0].cpu()
        made = filled(output)[0].cpu()
    hidden = int(output.mask.sum()) * size
    splats = (denormalize(p, how) for p in (truth, truth[hidden:], made))
    return Reconstruction(*splats, thinned=len(splat) / len(keep))


def picture(made: Reconstruction, size: int) -> Image.Image:
    """input | visible | predicted, side by side, from the same side.

    The few Gaussians that were drawn are shown so much larger that they fill the volume that all of them did.
    """
    viewmats, intrinsics = orbit(1, size)
    larger = math.log(made.thinned) / 3
    row = []
    for g in (made.input, made.visible, made.predicted):
        row += list(render(g.replace(log_scales=g.log_scales + larger), viewmats, intrinsics, size, size))
    return Image.fromarray((torch.cat(row, dim=1).numpy() * 255).round().astype(np.uint8))
