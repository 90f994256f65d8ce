# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
# ruff: noqa: UP018  (in Warp `int(0)` declares a variable, `0` a constant)
"""Projection of splats into cameras and back, one thread for a splat (see csrc/project.h, whose mathematics this is).

Indices: b object, v view, s = b * views + v, n splat, row = s * splats + n. With dx, dy from a splat's centre and
u = dy - slope * dx, log(alpha) = peak - across * dx^2 - along * u^2: two squares, so that nothing cancels in needles.
"""

import warp as wp

from ..reference import splats as constants

wp.set_module_options({"enable_backward": False})

NEAR = wp.constant(constants.NEAR)
BLUR = wp.constant(constants.BLUR)
ALPHA_MIN = wp.constant(constants.ALPHA_MIN)
LOG_ALPHA_MIN = wp.constant(-5.541263545158426)
MARGIN = wp.constant(0.5 * constants.FRUSTUM_MARGIN)
QUAT_MIN = wp.constant(constants.QUAT_MIN)


@wp.struct
class Splats:
    """What is drawn: [B * N] each, sh [B * N, K]."""

    means: wp.array(dtype=wp.vec3)
    quats: wp.array(dtype=wp.vec4)
    scales: wp.array(dtype=wp.vec3)
    opacities: wp.array(dtype=wp.float32)
    sh: wp.array2d(dtype=wp.vec3)


@wp.struct
class Projection:
    """One splat in one view."""

    drawn: wp.bool
    p: wp.vec3  # mean in the camera
    u0: wp.vec3  # rows of U = Jacobian * rotation of the camera
    u1: wp.vec3
    m0: wp.vec3  # rows of M = U N
    m1: wp.vec3
    n: wp.mat33  # N = rotation of the splat * scales
    turn: wp.mat33
    quat: wp.vec4  # unit
    length2: wp.float32  # of the quaternion as given
    xx: wp.float32
    xy: wp.float32
    yy: wp.float32
    det: wp.float32
    x: wp.float32
    y: wp.float32
    free_x: wp.bool  # where the Jacobian's point is not clamped
    free_y: wp.bool
    direction: wp.vec3
    distance: wp.float32
    color: wp.vec3  # before the clamp at 0


@wp.func
def basis(k: int, d: wp.vec3):
    """Value of the k-th spherical harmonic, in the order and signs of 3DGS."""
    x, y, z = d[0], d[1], d[2]
    if k == 0:
        return 0.28209479177387814
    if k == 1:
        return -0.4886025119029199 * y
    if k == 2:
        return 0.4886025119029199 * z
    if k == 3:
        return -0.4886025119029199 * x
    if k == 4:
        return 1.0925484305920792 * x * y
    if k == 5:
        return -1.0925484305920792 * y * z
    if k == 6:
        return 0.31539156525252005 * (2.0 * z * z - x * x - y * y)
    if k == 7:
        return -1.0925484305920792 * x * z
    if k == 8:
        return 0.5462742152960396 * (x * x - y * y)
    if k == 9:
        return -0.5900435899266435 * y * (3.0 * x * x - y * y)
    if k == 10:
        return 2.890611442640554 * x * y * z
    if k == 11:
        return -0.4570457994644658 * y * (4.0 * z * z - x * x - y * y)
    if k == 12:
        return 0.3731763325901154 * z * (2.0 * z * z - 3.0 * x * x - 3.0 * y * y)
    if k == 13:
        return -0.4570457994644658 * x * (4.0 * z * z - x * x - y * y)
    if k == 14:
        return 1.445305721320277 * z * (x * x - y * y)
    return -0.5900435899266435 * x * (x * x - 3.0 * y * y)


@wp.func
def basis_gradient(k: int, d: wp.vec3):
    """Its gradient by the direction's components, taken as independent."""
    x, y, z = d[0], d[1], d[2]
    if k == 0:
        return wp.vec3(0.0, 0.0, 0.0)
    if k == 1:
        return wp.vec3(0.0, -0.4886025119029199, 0.0)
    if k == 2:
        return wp.vec3(0.0, 0.0, 0.4886025119029199)
    if k == 3:
        return wp.vec3(-0.4886025119029199, 0.0, 0.0)
    if k == 4:
        return 1.0925484305920792 * wp.vec3(y, x, 0.0)
    if k == 5:
        return -1.0925484305920792 * wp.vec3(0.0, z, y)
    if k == 6:
        return 0.31539156525252005 * wp.vec3(-2.0 * x, -2.0 * y, 4.0 * z)
    if k == 7:
        return -1.0925484305920792 * wp.vec3(z, 0.0, x)
    if k == 8:
        return 0.5462742152960396 * wp.vec3(2.0 * x, -2.0 * y, 0.0)
    xx, yy, zz = x * x, y * y, z * z
    if k == 9:
        return -0.5900435899266435 * wp.vec3(6.0 * x * y, 3.0 * (xx - yy), 0.0)
    if k == 10:
        return 2.890611442640554 * wp.vec3(y * z, x * z, x * y)
    if k == 11:
        return -0.4570457994644658 * wp.vec3(-2.0 * x * y, 4.0 * zz - xx - 3.0 * yy, 8.0 * y * z)
    if k == 12:
        return 0.3731763325901154 * wp.vec3(-6.0 * x * z, -6.0 * y * z, 6.0 * zz - 3.0 * xx - 3.0 * yy)
    if k == 13:
        return -0.4570457994644658 * wp.vec3(4.0 * zz - 3.0 * xx - yy, -2.0 * x * y, 8.0 * x * z)
    if k == 14:
        return 1.445305721320277 * wp.vec3(2.0 * x * z, -2.0 * y * z, xx - yy)
    return -0.5900435899266435 * wp.vec3(3.0 * (xx - yy), -6.0 * x * y, 0.0)


@wp.func
def project(s: Splats, i: int, coefficients: int, viewmat: wp.mat44, K: wp.mat33, width: float, height: float,
            offset: wp.vec2):  # fmt: skip
    """Splat i in a camera."""
    r = Projection()
    w0 = wp.vec3(viewmat[0, 0], viewmat[0, 1], viewmat[0, 2])
    w1 = wp.vec3(viewmat[1, 0], viewmat[1, 1], viewmat[1, 2])
    w2 = wp.vec3(viewmat[2, 0], viewmat[2, 1], viewmat[2, 2])
    t = wp.vec3(viewmat[0, 3], viewmat[1, 3], viewmat[2, 3])
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    mean, scale, opacity = s.means[i], s.scales[i], s.opacities[i]
    r.p = wp.vec3(wp.dot(w0, mean), wp.dot(w1, mean), wp.dot(w2, mean)) + t
    z = r.p[2]
    r.drawn = z > NEAR and opacity >= ALPHA_MIN  # false for NaN
    if not r.drawn:
        return r

    q = s.quats[i]
    r.length2 = wp.dot(q, q)
    r.quat = wp.vec4(1.0, 0.0, 0.0, 0.0)
    if not (r.length2 <= QUAT_MIN):  # true for NaN, which then spoils the splat as it should
        r.quat = q / wp.sqrt(r.length2)
    a, b, c, d = r.quat[0], r.quat[1], r.quat[2], r.quat[3]
    r.turn = wp.mat33(
        1.0 - 2.0 * (c * c + d * d), 2.0 * (b * c - a * d), 2.0 * (b * d + a * c),
        2.0 * (b * c + a * d), 1.0 - 2.0 * (b * b + d * d), 2.0 * (c * d - a * b),
        2.0 * (b * d - a * c), 2.0 * (c * d + a * b), 1.0 - 2.0 * (b * b + c * c),
    )  # fmt: skip
    r.n = r.turn @ wp.diag(scale)

    x, y = r.p[0] / z, r.p[1] / z
    r.x = fx * x + cx + offset[0]
    r.y = fy * y + cy + offset[1]
    margin_x, margin_y = MARGIN * width / fx, MARGIN * height / fy
    tx = wp.min(wp.max(x, -(cx / fx + margin_x)), (width - cx) / fx + margin_x)
    ty = wp.min(wp.max(y, -(cy / fy + margin_y)), (height - cy) / fy + margin_y)
    r.free_x = tx == x
    r.free_y = ty == y
    r.u0 = (fx / z) * (w0 - tx * w2)
    r.u1 = (fy / z) * (w1 - ty * w2)
    r.m0 = wp.transpose(r.n) @ r.u0
    r.m1 = wp.transpose(r.n) @ r.u1
    r.xx = wp.dot(r.m0, r.m0)
    r.xy = wp.dot(r.m0, r.m1)
    r.yy = wp.dot(r.m1, r.m1)
    # Cauchy-Binet for the determinant before the blur: no cancellation in needles
    normal = wp.cross(r.m0, r.m1)
    r.det = wp.dot(normal, normal) + BLUR * (r.xx + r.yy) + BLUR * BLUR
    r.xx += BLUR
    r.yy += BLUR

    towards = mean + wp.vec3(
        w0[0] * t[0] + w1[0] * t[1] + w2[0] * t[2],
        w0[1] * t[0] + w1[1] * t[1] + w2[1] * t[2],
        w0[2] * t[0] + w1[2] * t[1] + w2[2] * t[2],
    )
    r.distance = wp.length(towards)
    r.direction = towards / r.distance
    r.color = wp.vec3(0.5, 0.5, 0.5)
    for k in range(coefficients):
        r.color += basis(k, r.direction) * s.sh[i, k]
    r.drawn = (
        wp.isfinite(r.x) and wp.isfinite(r.y) and wp.isfinite(r.xx + r.yy) and wp.isfinite(r.xy)
        and wp.isfinite(r.det) and wp.isfinite(opacity) and wp.isfinite(r.color)
    )  # fmt: skip
    return r


@wp.func
def columns(shape: wp.vec4, reach: float, half_width: float, top: float, bottom: float):
    """First and last x, from the centre, of the ellipse across dx^2 + along u^2 = reach between two dy; first > last
    where they miss it. shape: slope, across, along, half height of the ellipse."""
    slope, across, along, half_height = shape[0], shape[1], shape[2], shape[3]
    low, high = wp.max(top, -half_height), wp.min(bottom, half_height)
    if low > high:
        return wp.vec2(1.0, -1.0)
    both = across + along * slope * slope
    end = wp.clamp(slope * half_width, low, high)  # dy of the ellipse's right end, or the nearest there is
    right = (along * slope * end + wp.sqrt(wp.max(reach * both - along * across * end * end, 0.0))) / both
    end = wp.clamp(-slope * half_width, low, high)
    left = (along * slope * end - wp.sqrt(wp.max(reach * both - along * across * end * end, 0.0))) / both
    slack = 0.01 + 1e-3 * half_width
    return wp.vec2(left - slack, right + slack)


@wp.func
def span(record0: wp.vec4, record1: wp.vec4, record2: wp.vec4, row: int, tile: int, width: int):
    """First and last column of tiles that a projected splat reaches in a row of tiles, as pixel centres; first > last
    where none."""
    reach = record1[1] - LOG_ALPHA_MIN
    half_width, half_height = record2[1], record2[2]
    top = float(row * tile) + 0.5 - record0[1]
    shape = wp.vec4(record0[2], record0[3], record1[0], half_height)
    ends = columns(shape, reach, half_width, top, top + float(tile - 1))
    if ends[0] > ends[1]:
        return wp.vec2i(1, 0)
    # half a pixel is the distance from a pixel's edge to its centre
    low, high = record0[0] + ends[0] - 0.5, record0[0] + ends[1] - 0.5
    last = float(width - 1)
    if high < 0.0 or low > last:
        return wp.vec2i(1, 0)
    return wp.vec2i(int(wp.clamp(low, 0.0, last)) // tile, int(wp.clamp(high, 0.0, last)) // tile)


@wp.func
def rows(record0: wp.vec4, record2: wp.vec4, tile: int, height: int):
    """First and last row of tiles of the box around a projected splat; first > last where it is outside."""
    last = float(height - 1)
    top, bottom = record0[1] - record2[2] - 0.5, record0[1] + record2[2] - 0.5
    if not (bottom >= 0.0 and top <= last):
        return wp.vec2i(1, 0)
    return wp.vec2i(int(wp.clamp(top, 0.0, last)) // tile, int(wp.clamp(bottom, 0.0, last)) // tile)


@wp.kernel
def forward(
    s: Splats,
    coefficients: int,
    splats: int,
    views: int,
    viewmats: wp.array(dtype=wp.mat44),
    Ks: wp.array(dtype=wp.mat33),
    offsets: wp.array(dtype=wp.vec2),
    width: int,
    height: int,
    tile: int,
    records: wp.array2d(dtype=wp.vec4),
    counts: wp.array(dtype=wp.int32),
):
    """records [rows, 3]: (x, y, slope, across), (along, peak, red, green), (blue, half width, half height, depth);
    counts [rows]: tiles that each reaches, 0 where it is not drawn (its record is then not written)."""
    row = wp.tid()
    at = row // splats
    offset = wp.vec2(0.0, 0.0)
    if offsets.shape[0] > 0:
        offset = offsets[row]
    i = at // views * splats + row % splats
    r = project(s, i, coefficients, viewmats[at], Ks[at], float(width), float(height), offset)
    counts[row] = 0
    if not r.drawn:
        return
    peak = wp.log(s.opacities[i])
    reach = wp.max(peak - LOG_ALPHA_MIN, 0.0)
    # half sizes with slack for rounding
    half_width = wp.sqrt(2.0 * reach * r.xx) * 1.0001 + 0.01
    half_height = wp.sqrt(2.0 * reach * r.yy) * 1.0001 + 0.01
    record0 = wp.vec4(r.x, r.y, r.xy / r.xx, 0.5 / r.xx)
    record1 = wp.vec4(0.5 * r.xx / r.det, peak, wp.max(r.color[0], 0.0), wp.max(r.color[1], 0.0))
    record2 = wp.vec4(wp.max(r.color[2], 0.0), half_width, half_height, r.p[2])
    found = int(0)
    down = rows(record0, record2, tile, height)
    for y in range(down[0], down[1] + 1):
        across = span(record0, record1, record2, y, tile, width)
        found += wp.max(across[1] - across[0] + 1, 0)
    if found > 0:
        records[row, 0] = record0
        records[row, 1] = record1
        records[row, 2] = record2
    counts[row] = found


@wp.kernel
def backward(
    s: Splats,
    coefficients: int,
    splats: int,
    views: int,
    viewmats: wp.array(dtype=wp.mat44),
    Ks: wp.array(dtype=wp.mat33),
    offsets: wp.array(dtype=wp.vec2),
    width: int,
    height: int,
    sums: wp.array2d(dtype=wp.float32),
    g: Splats,
    g_offsets: wp.array(dtype=wp.vec2),
):
    """From sums [rows, 9] over pixels (kernels_blend.backward) to gradients of the splats, added up over the views in
    their order; g.sh is zero before."""
    i = wp.tid()
    b = i // splats
    scale = s.scales[i]
    g_mean, g_scale = wp.vec3(), wp.vec3()
    g_opacity = float(0.0)
    g_quat = wp.vec4()
    for v in range(views):
        at = b * views + v
        row = at * splats + i % splats
        offset = wp.vec2(0.0, 0.0)
        if offsets.shape[0] > 0:
            offset = offsets[row]
        viewmat, K = viewmats[at], Ks[at]
        r = project(s, i, coefficients, viewmat, K, float(width), float(height), offset)
        g_x, g_y = float(0.0), float(0.0)
        if r.drawn:
            one, by_dx, by_dx2 = sums[row, 0], sums[row, 1], sums[row, 2]
            by_u, by_udx, by_u2 = sums[row, 3], sums[row, 4], sums[row, 5]
            # log(alpha) = log(opacity) - a dx^2 - c u^2, u = dy - slope dx, slope = xy / xx
            a, c, slope = 0.5 / r.xx, 0.5 * r.xx / r.det, r.xy / r.xx
            g_slope, g_k = 2.0 * c * by_udx, 2.0 * c * c * by_u2
            g_x = 2.0 * a * by_dx - 2.0 * c * slope * by_u
            g_y = 2.0 * c * by_u
            g_xx = 2.0 * a * a * by_dx2 - 2.0 * a * slope * g_slope + slope * slope * g_k
            g_xy, g_yy = 2.0 * a * g_slope - 2.0 * slope * g_k, g_k
            g_opacity += one / s.opacities[i]

            # to M, then to U and N
            g_m0 = 2.0 * g_xx * r.m0 + g_xy * r.m1
            g_m1 = 2.0 * g_yy * r.m1 + g_xy * r.m0
            g_u0, g_u1 = r.n @ g_m0, r.n @ g_m1
            g_n = wp.outer(r.u0, g_m0) + wp.outer(r.u1, g_m1)

            # N = turn * scale; the quaternion's gradient is made tangential to the unit sphere
            t = r.turn
            g_scale += wp.vec3(
                g_n[0, 0] * t[0, 0] + g_n[1, 0] * t[1, 0] + g_n[2, 0] * t[2, 0],
                g_n[0, 1] * t[0, 1] + g_n[1, 1] * t[1, 1] + g_n[2, 1] * t[2, 1],
                g_n[0, 2] * t[0, 2] + g_n[1, 2] * t[1, 2] + g_n[2, 2] * t[2, 2],
            )
            if r.length2 > QUAT_MIN:
                h = g_n @ wp.diag(scale)
                qw, qx, qy, qz = r.quat[0], r.quat[1], r.quat[2], r.quat[3]
                tangent = wp.vec4(
                    2.0 * (qx * (h[2, 1] - h[1, 2]) + qy * (h[0, 2] - h[2, 0]) + qz * (h[1, 0] - h[0, 1])),
                    2.0 * (qw * (h[2, 1] - h[1, 2]) + qy * (h[0, 1] + h[1, 0]) + qz * (h[0, 2] + h[2, 0])
                           - 2.0 * qx * (h[1, 1] + h[2, 2])),
                    2.0 * (qw * (h[0, 2] - h[2, 0]) + qx * (h[0, 1] + h[1, 0]) + qz * (h[1, 2] + h[2, 1])
                           - 2.0 * qy * (h[0, 0] + h[2, 2])),
                    2.0 * (qw * (h[1, 0] - h[0, 1]) + qx * (h[0, 2] + h[2, 0]) + qy * (h[1, 2] + h[2, 1])
                           - 2.0 * qz * (h[0, 0] + h[1, 1])),
                )  # fmt: skip
                g_quat += (tangent - wp.dot(tangent, r.quat) * r.quat) / wp.sqrt(r.length2)

            # U = (f / z) (row of the camera - t * its third row), t = clamped x / z or y / z
            w0 = wp.vec3(viewmat[0, 0], viewmat[0, 1], viewmat[0, 2])
            w1 = wp.vec3(viewmat[1, 0], viewmat[1, 1], viewmat[1, 2])
            w2 = wp.vec3(viewmat[2, 0], viewmat[2, 1], viewmat[2, 2])
            fx, fy, z = K[0, 0], K[1, 1], r.p[2]
            g_sx, g_sy = fx * g_x, fy * g_y  # by x/z and y/z
            if r.free_x:
                g_sx -= fx / z * wp.dot(g_u0, w2)
            if r.free_y:
                g_sy -= fy / z * wp.dot(g_u1, w2)
            g_z = -(wp.dot(g_u0, r.u0) + wp.dot(g_u1, r.u1) + (g_sx * r.p[0] + g_sy * r.p[1]) / z) / z
            g_mean += (g_sx / z) * w0 + (g_sy / z) * w1 + g_z * w2

            # colour: coefficients, and the direction when there are more than the constant ones
            g_color = wp.vec3(
                wp.where(r.color[0] >= 0.0, sums[row, 6], 0.0),
                wp.where(r.color[1] >= 0.0, sums[row, 7], 0.0),
                wp.where(r.color[2] >= 0.0, sums[row, 8], 0.0),
            )
            g_direction = wp.vec3()
            for k in range(coefficients):
                g.sh[i, k] = g.sh[i, k] + basis(k, r.direction) * g_color
                g_direction += wp.dot(s.sh[i, k], g_color) * basis_gradient(k, r.direction)
            if coefficients > 1:
                g_mean += (g_direction - wp.dot(g_direction, r.direction) * r.direction) / r.distance
        if g_offsets.shape[0] > 0:
            g_offsets[row] = wp.vec2(g_x, g_y)
    g.means[i] = g_mean
    g.quats[i] = g_quat
    g.scales[i] = g_scale
    g.opacities[i] = g_opacity
