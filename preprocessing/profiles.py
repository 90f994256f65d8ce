"""Named ways to build: which views, and how each object is fitted."""

from __future__ import annotations

from typing import Literal

from gsmae.config import Config

from .fit import FitConfig


class BuildConfig(Config):
    """Everything that decides what a splat looks like; its digest is in every record."""

    rig: Literal["sphere", "paper", "paper_modelnet"] = "sphere"
    """training cameras: evenly over the sphere, or the paper's 72 (ShapeNet's from above; ModelNet's all around)"""
    views: int = 72
    """training views"""
    val_views: int = 4
    """views that decide when a fit stops"""
    test_views: int = 8
    """views that only measure: neither trained on nor selected by"""
    resolution: int = 400
    """width and height of the views in pixels"""
    supersample: int = 2
    """samples per pixel and axis"""
    surface_points: int = 4096
    """samples of the mesh surface kept beside the splat, with part labels where the mesh names its parts"""
    min_psnr: float = 18.0
    """objects below this PSNR on the test views are rejected, with the reason in their record"""
    fit: FitConfig = FitConfig()


# Rates of INRIA's code belong to 30,000 steps; with 1,000 steps they cost 2.4 dB, so short profiles have their own.
PROFILES = {
    "tiny": BuildConfig(
        views=36, resolution=200, test_views=4, fit=FitConfig(iterations=400, initial=2500, cap=4000, val_every=50)
    ),
    "fast": BuildConfig(),
    "paper": BuildConfig(
        rig="paper",
        fit=FitConfig(
            iterations=30_000, cap=60_000, sh_degree=3, lr_means=5e-4, lr_means_end=5e-6, lr_sh=2.5e-3,
            lr_scales=5e-3, lr_quats=1e-3, grow_from=1 / 60, grow_until=0.5, grow_every=100, grow_gradient=2e-4,
            split_scale=0.03, opacity_reset_every=3000, prune_at=(0.53, 0.8), val_every=1000, patience=5, min_gain=0.02,
        ),
    ),
}  # fmt: skip
