"""Gaussian splats to pictures in plain torch: the definition that every faster rasteriser must meet.

3D Gaussian Splatting (Kerbl et al. 2023, sections 4 to 6) with the conventions of gsplat's "classic" mode: EWA
projection with a clamped Jacobian, 0.3 px^2 added to every projected covariance, front-to-back blending with a cut
at alpha 1/255 and at transmittance 1e-4. The cut makes the support of a splat an ellipse, so that leaving out what
lies beyond it changes nothing: there is no approximation by tiles or by a radius of three sigma.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ... import gaussians

NEAR = 0.01  # splats whose centre is nearer are not drawn
BLUR = 0.3  # px^2 added to the diagonal of every projected covariance
ALPHA_MIN = 1 / 255  # a weaker contribution to a pixel is skipped
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4  # a pixel is finished before the splat that would bring it here
FRUSTUM_MARGIN = 0.3  # the Jacobian is taken inside the frustum widened by this share of its half width
QUAT_MIN = 1e-24  # a quaternion with a smaller squared length means "no rotation"

TILE = 16
KEEP = 1 << 27  # pixel-splat pairs kept for the backward pass; a picture with more recomputes them tile by tile


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures of splats in V pinhole cameras, differentiable in every argument before `viewmats` and the last two.

    A splat that is nearer than 0.01, not finite in a view, or outside the picture is not drawn and has no gradient.

    means      [N, 3]
    quats      [N, 4] wxyz, of any length; zero means no rotation
    scales     [N, 3] standard deviations (linear)
    opacities  [N] in [0, 1]
    sh         [N, K, 3] with K = 1, 4, 9 or 16; colour = max(0, SH + 0.5) in the direction from camera to mean
    viewmats   [V, 4, 4] rigid, world to camera (x right, y down, z forward)
    Ks         [V, 3, 3] in pixels; the centre of the first pixel is (0.5, 0.5)
    background [3]
    offsets    [V, N, 2] added to the projected centres, in pixels: zeros whose gradient drives densification
    returns    colors [V, height, width, 3] and alphas [V, height, width]
    """
    check_arguments(means, quats, scales, opacities, sh, viewmats, Ks, width, height, background, offsets)
    colors, alphas = [], []
    for view in range(len(viewmats)):
        offset = None if offsets is None else offsets[view]
        drawn = _project_visible(
            means, quats, scales, opacities, sh, viewmats[view], Ks[view], width, height, offset=offset
        )
        color, alpha = _blend(drawn, width, height, background)
        colors.append(color)
        alphas.append(alpha)
    if not colors:
        return means.new_zeros(0, height, width, 3), means.new_zeros(0, height, width)
    return torch.stack(colors), torch.stack(alphas)


@torch.no_grad()
def contributions(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
) -> Tensor:
    """Sum over views and pixels of each splat's blending weight (the importance score of LightGaussian, section 3.1).

    Arguments as for `rasterize`; returns [N].
    """
    check_arguments(means, quats, scales, opacities, sh, viewmats, Ks, width, height)
    total = means.new_zeros(len(means))
    for view in range(len(viewmats)):
        drawn = _project_visible(means, quats, scales, opacities, sh, viewmats[view], Ks[view], width, height)
        for tile in _tiles(drawn, width, height):
            weights = _weights(drawn, tile)
            total.index_add_(0, drawn.index[tile.inside], weights.sum(1))
    return total


def check_arguments(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor | None = None,
    offsets: Tensor | None = None,
) -> None:
    """ValueError naming the argument whose shape does not fit."""
    n, v = means.shape[0], viewmats.shape[0]
    expected = {
        "means": (means, (n, 3)),
        "quats": (quats, (n, 4)),
        "scales": (scales, (n, 3)),
        "opacities": (opacities, (n,)),
        "sh": (sh, (n, sh.shape[1] if sh.ndim > 1 else 0, 3)),
        "viewmats": (viewmats, (v, 4, 4)),
        "Ks": (Ks, (v, 3, 3)),
        "background": (background, (3,)),
        "offsets": (offsets, (v, n, 2)),
    }
    for name, (value, shape) in expected.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {shape}")
    if sh.shape[1] not in (1, 4, 9, 16):
        raise ValueError(f"sh has {sh.shape[1]} coefficients for each channel; there must be 1, 4, 9 or 16")
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels cannot be drawn")


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices of wxyz quaternions of any length; zero means no rotation.

    quats   [..., 4]
    returns [..., 3, 3]
    """
    length2 = (quats * quats).sum(-1, keepdim=True)
    usable = ~(length2 <= QUAT_MIN)  # true for NaN, which then spoils the splat as it should
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=quats.dtype, device=quats.device)
    unit = torch.where(usable, quats * torch.where(usable, length2, 1.0).rsqrt(), identity)
    return gaussians.rotation_matrices(unit)


def sh_basis(directions: Tensor, count: int) -> Tensor:
    """The first `count` (1, 4, 9 or 16) real spherical harmonics of unit directions, in the order and signs of 3DGS.

    directions [..., 3]
    returns    [..., count]
    """
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if count > 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if count > 4:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
        if count > 9:
            basis += [
                -0.5900435899266435 * y * (3 * xx - yy),
                2.890611442640554 * x * y * z,
                -0.4570457994644658 * y * (4 * zz - xx - yy),
                0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
                -0.4570457994644658 * x * (4 * zz - xx - yy),
                1.445305721320277 * z * (xx - yy),
                -0.5900435899266435 * x * (xx - 3 * yy),
            ]
    return torch.stack(basis, -1)


class _Drawn(NamedTuple):
    """What one view draws, nearest first."""

    index: Tensor  # [M] which splat
    centres: Tensor  # [M, 2] px
    covariances: Tensor  # [M, 4] xx, xy, yy in px^2 and their determinant
    opacities: Tensor  # [M]
    colors: Tensor  # [M, 3]


class _Tile(NamedTuple):
    inside: Tensor  # which of the drawn splats reach the tile, nearest first
    pixels: Tensor  # [P, 2] pixel centres
    rows: slice
    columns: slice


def _project_visible(means, quats, scales, opacities, sh, viewmat, K, width, height, offset=None) -> _Drawn:
    # The choice is made first, without gradients, so that no infinity of a splat that is left out reaches the rest.
    with torch.no_grad():
        index = torch.nonzero(_camera_points(means, viewmat)[:, 2] > NEAR).squeeze(1)
        drawn = _project(means, quats, scales, opacities, sh, viewmat, K, width, height, offset, index)
        finite = torch.cat([drawn.centres, drawn.covariances, drawn.opacities[:, None], drawn.colors], 1)
        half = _half_extents(drawn)
        beyond = drawn.centres.new_tensor([width, height])
        keep = torch.isfinite(finite).all(1) & (drawn.opacities >= ALPHA_MIN)
        keep &= ((drawn.centres + half > 0) & (drawn.centres - half < beyond)).all(1)
        index = index[keep]
        depth = _camera_points(means, viewmat)[index, 2]
        index = index[torch.argsort(depth, stable=True)]
    return _project(means, quats, scales, opacities, sh, viewmat, K, width, height, offset, index)


def _camera_points(means: Tensor, viewmat: Tensor) -> Tensor:
    return means @ viewmat[:3, :3].T + viewmat[:3, 3]


def _project(means, quats, scales, opacities, sh, viewmat, K, width, height, offset, index) -> _Drawn:
    """EWA projection (Zwicker et al. 2001; gsplat's mathematical supplement, section 3) of the chosen splats."""
    means, quats, scales, opacities, sh = (t[index] for t in (means, quats, scales, opacities, sh))
    rotation = viewmat[:3, :3]
    x, y, z = _camera_points(means, viewmat).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    centres = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    if offset is not None:
        centres = centres + offset[index]

    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    tx = (x / z).clamp(-(cx / fx + margin_x), (width - cx) / fx + margin_x)
    ty = (y / z).clamp(-(cy / fy + margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * tx / z, zero, fy / z, -fy * ty / z], -1).reshape(-1, 2, 3)
    root = jacobian @ rotation @ (rotation_matrices(quats) * scales[:, None, :])
    xx, yy = (root * root).sum(-1).unbind(-1)
    xy = (root[:, 0] * root[:, 1]).sum(-1)
    # Cauchy-Binet: without the blur the determinant is that of a Gram matrix; the usual difference of products loses
    # every digit of it when the splat is a needle.
    normal = torch.linalg.cross(root[:, 0], root[:, 1])
    determinant = (normal * normal).sum(-1) + BLUR * (xx + yy) + BLUR * BLUR
    xx, yy = xx + BLUR, yy + BLUR

    towards = means + rotation.T @ viewmat[:3, 3]
    basis = sh_basis(torch.nn.functional.normalize(towards, dim=-1), sh.shape[1])
    colors = ((basis[..., None] * sh).sum(1) + 0.5).clamp_min(0)
    return _Drawn(index, centres, torch.stack([xx, xy, yy, determinant], -1), opacities, colors)


def _half_extents(drawn: _Drawn) -> Tensor:
    """Half sizes of the boxes outside which alpha is below the cut, with a margin for rounding; [M, 2]."""
    reach = 2 * torch.log(drawn.opacities.clamp_min(ALPHA_MIN) / ALPHA_MIN)
    return 1 + (reach[:, None] * drawn.covariances[:, [0, 2]]).sqrt() * 1.001


def _tiles(drawn: _Drawn, width: int, height: int):
    """The tiles that some splat reaches, row by row."""
    with torch.no_grad():
        half = _half_extents(drawn)
        low, high = drawn.centres - half, drawn.centres + half
    steps = torch.arange(TILE, dtype=low.dtype, device=low.device) + 0.5
    for top in range(0, height, TILE):
        band = torch.nonzero((high[:, 1] > top) & (low[:, 1] < top + TILE)).squeeze(1)
        ys = top + steps[: height - top]
        for left in range(0, width, TILE):
            inside = band[(high[band, 0] > left) & (low[band, 0] < left + TILE)]
            if len(inside):
                xs = left + steps[: width - left]
                pixels = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], -1).reshape(-1, 2)
                yield _Tile(inside, pixels, slice(top, top + len(ys)), slice(left, left + len(xs)))


def _weights(drawn: _Drawn, tile: _Tile) -> Tensor:
    """Blending weights alpha * T of a tile's splats and pixels; [splats, pixels]."""
    xx, xy, _, determinant = drawn.covariances[tile.inside, :, None].unbind(1)
    dx, dy = (tile.pixels - drawn.centres[tile.inside, None]).unbind(-1)
    # Half the squared Mahalanobis distance as x, then y given x: two squares, so nothing cancels.
    sigma = 0.5 * (dx * dx / xx + (dy - dx * xy / xx) ** 2 * xx / determinant)
    alpha = (drawn.opacities[tile.inside, None] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    after = torch.cumprod(1 - alpha, 0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    return torch.where(after > TRANSMITTANCE_MIN, alpha * before, 0.0)


def _blend(drawn: _Drawn, width: int, height: int, background: Tensor) -> tuple[Tensor, Tensor]:
    def blend(tile: _Tile, *fields: Tensor) -> Tensor:
        here = _Drawn(*fields)
        weights = _weights(here, tile)
        return torch.cat([weights.T @ here.colors[tile.inside], weights.sum(0)[:, None]], 1)

    tiles = list(_tiles(drawn, width, height))
    pairs = sum(len(tile.inside) * len(tile.pixels) for tile in tiles)
    rows: dict[int, list[Tensor]] = {}
    blank = drawn.colors.new_zeros(1, 1, 4) + 0 * drawn.colors.sum()  # differentiable even if nothing is in sight
    by_place = {(tile.rows.start, tile.columns.start): tile for tile in tiles}
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = by_place.get((top, left))
            size = (min(TILE, height - top), min(TILE, width - left))
            if tile is None:
                part = blank.expand(*size, 4)
            elif pairs > KEEP and torch.is_grad_enabled():
                part = checkpoint(blend, tile, *drawn, use_reentrant=False).reshape(*size, 4)
            else:
                part = blend(tile, *drawn).reshape(*size, 4)
            rows.setdefault(top, []).append(part)
    picture = torch.cat([torch.cat(parts, 1) for parts in rows.values()])
    alphas = picture[..., 3]
    return picture[..., :3] + (1 - alphas)[..., None] * background, alphas
