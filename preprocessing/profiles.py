"""How to build: which views, how each object is fitted, and named sets of both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gsmae.config import Config


class FitConfig(Config):
    """How one object is optimised. Rates are for objects in the unit sphere."""

    iterations: Annotated[int, Field(ge=1)] = 700
    """optimisation steps, one view each"""
    initial: Annotated[int, Field(ge=1)] = 5000
    """Gaussians at the start, samples of the mesh surface"""
    cap: Annotated[int, Field(ge=1)] = 12000
    """most Gaussians at any time"""
    sh_degree: Annotated[int, Field(ge=0, le=3)] = 0
    """degree of the spherical harmonics, 0 to 3; the light is fixed in the world, so 0 serves matt objects"""
    sh_every: Annotated[int, Field(ge=1)] = 1000
    """steps after which one more degree of the harmonics is freed"""
    lr_means: float = 4e-3
    """rate of the centres at the start, in units of the object's radius"""
    lr_means_end: float = 1e-4
    """rate of the centres at the end; exponential in between"""
    lr_sh: float = 2e-2
    """rate of the base colour; higher harmonics get a twentieth"""
    lr_opacities: float = 5e-2
    """rate of the opacity logits"""
    lr_scales: float = 3e-2
    """rate of the logarithms of the scales"""
    lr_quats: float = 5e-3
    """rate of the quaternions"""
    ssim_weight: Annotated[float, Field(ge=0, le=1)] = 0.2
    """share of 1 - SSIM in the loss; the rest is L1"""
    grow_from: Annotated[float, Field(ge=0, le=1)] = 0.05
    """share of the schedule at which densification begins"""
    grow_until: Annotated[float, Field(ge=0, le=1)] = 0.6
    """share of the schedule at which densification ends"""
    grow_every: Annotated[int, Field(ge=1)] = 50
    """steps between two densifications"""
    grow_gradient: float = 8e-4
    """mean screen-space gradient (in units of half the picture) above which a Gaussian is cloned or split"""
    split_scale: float = 0.01
    """Gaussians larger than this are split, smaller ones cloned"""
    opacity_floor: float = 0.005
    """Gaussians fainter than this are removed at each densification"""
    opacity_reset_every: Annotated[int, Field(ge=0)] = 0
    """steps between two resets of the opacities to 0.01; 0 = never"""
    prune_at: tuple[float, ...] = ()
    """shares of the schedule at which the least important Gaussians are removed"""
    prune_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    """share removed at each of these points (paper: 60 %)"""
    val_every: Annotated[int, Field(ge=1)] = 100
    """steps between two looks at the validation views"""
    patience: Annotated[int, Field(ge=1)] = 3
    """looks without progress after which the fit stops early"""
    min_gain: float = 0.05
    """decibels on the validation views that count as progress"""


class BuildConfig(Config):
    """Everything that decides what a splat looks like; its digest is in every record."""

    rig: Literal["sphere", "paper", "paper_modelnet"] = "sphere"
    """training cameras: evenly over the sphere, or the paper's 72 (ShapeNet's from above; ModelNet's all around)"""
    views: Annotated[int, Field(ge=1)] = 72
    """training views"""
    val_views: Annotated[int, Field(ge=1)] = 4
    """views that decide when a fit stops"""
    test_views: Annotated[int, Field(ge=1)] = 8
    """views that only measure: neither trained on nor selected by"""
    resolution: Annotated[int, Field(ge=16)] = 400
    """width and height of the views in pixels"""
    supersample: Annotated[int, Field(ge=1)] = 2
    """samples per pixel and axis"""
    surface_points: Annotated[int, Field(ge=1)] = 4096
    """samples of the mesh surface kept beside the splat, with part labels where the mesh names its parts"""
    surface_distance: bool = False
    """also measure how far the centres lie from the mesh surface; needs Open3D (the extra `full`)"""
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
            iterations=30_000, cap=150_000, sh_degree=3, lr_means=5e-4, lr_means_end=5e-6, lr_sh=2.5e-3,
            lr_scales=5e-3, lr_quats=1e-3, grow_from=1 / 60, grow_until=0.5, grow_every=100, grow_gradient=2e-4,
            split_scale=0.03, opacity_reset_every=3000, prune_at=(0.53, 0.8), val_every=1000, patience=5, min_gain=0.02,
        ),
    ),
}  # fmt: skip
