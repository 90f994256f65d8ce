"""Gaussians that cannot be computed with: which they are, and builds without them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gsmae.gaussians import Gaussians
from gsmae.ply import LARGEST, read_ply_bytes
from gsmae.progress import bar

from .manifest import Build

STAGE = "pack"
REASON = "none of its Gaussians has finite values"


def usable(gaussians: Gaussians) -> Tensor:
    """Which Gaussians give finite features in whatever company: [N] bool.

    Those with a NaN or infinite value do not, nor those of which a coordinate or a scale is above LARGEST. A quaternion
    of zeros is no rotation, and usable.
    """
    g = gaussians
    good = (g.means.abs() <= LARGEST).all(dim=1) & (g.log_scales <= math.log(LARGEST)).all(dim=1)
    for values in (g.means, g.quats, g.log_scales, g.logit_opacities[:, None], g.sh.flatten(1)):
        good &= torch.isfinite(values).all(dim=1)
    return good


def without_bad_rows(builds: list[Build], *, progress: bool = False) -> tuple[list[Build], dict[str, int]]:
    """Read every splat and look for Gaussians that are not `usable`.

    returns  the builds, in which an object without a usable Gaussian has failed, and uid -> number of the others'
             Gaussians to leave out, where there are some
    Raises InputError for a splat that cannot be read at all.
    """
    out, dropped = [], {}
    total = sum(len(build.done) for build in builds)
    with bar("look", "object", total=total, disable=not progress) as shown:
        for build in builds:
            records = []
            for record in build.records:
                splat = build.splat(record)
                if record.status == "done" and splat.is_file():  # a missing one is for the plan to tell
                    good = usable(read_ply_bytes(splat.read_bytes(), splat, finite=False))
                    bad = len(good) - int(good.sum())
                    if bad == len(good):
                        record = record.model_copy(update={"status": "failed", "stage": STAGE, "reason": REASON})
                    elif bad:
                        dropped[record.uid] = bad
                    shown.update()
                records.append(record)
            out.append(replace(build, records=tuple(records)))
    return out, dropped
