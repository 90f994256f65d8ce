# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
# ruff: noqa: UP018  (in Warp `int(0)` declares a variable, `0` a constant)
"""Blending of the sorted splats of a tile, and the gradients of it: one thread for a pixel, one block for a tile.

On a GPU the 32 threads of a warp hold 8 x 4 pixels of one tile and walk the same list, so they meet at every splat and
add up what it is owed among themselves before one of them adds it to memory. On the CPU each thread is alone.
"""

import warp as wp

from ..reference import splats as constants
from .kernels_project import LOG_ALPHA_MIN

wp.set_module_options({"enable_backward": False})

ALPHA_MAX = wp.constant(constants.ALPHA_MAX)
TRANSMITTANCE_MIN = wp.constant(constants.TRANSMITTANCE_MIN)
TILE = constants.TILE
PIXELS = wp.constant(TILE * TILE)


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return __expf(x);
#else
    return wp::exp(x);
#endif
""")
def fast_exp(x: float) -> float: ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
#endif
    return x;
""")
def warp_sum(x: float) -> float: ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return __any_sync(0xffffffffu, x);
#else
    return x;
#endif
""")
def warp_any(x: int) -> int: ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return (threadIdx.x & 31) == 0;
#else
    return 1;
#endif
""")
def first_of_warp() -> int: ...


@wp.func
def place(thread: int, tiles_x: int, tiles: int):
    """Tile among those of all views, view, and pixel of a thread: (tile, view, x, y)."""
    tile, pixel = thread // PIXELS, thread % PIXELS
    view, inside = tile // tiles, tile % tiles
    lane, part = pixel % 32, pixel // 32
    return wp.vec4i(
        tile, view,
        inside % tiles_x * TILE + part % 2 * 8 + lane % 8,
        inside // tiles_x * TILE + part // 2 * 4 + lane // 8,
    )  # fmt: skip


@wp.func
def log_alpha(record0: wp.vec4, record1: wp.vec4, dx: float, u: float):
    return record1[1] - record0[3] * dx * dx - record1[0] * u * u


@wp.kernel
def forward(
    records: wp.array2d(dtype=wp.vec4),
    values: wp.array(dtype=wp.int32),
    bounds: wp.array2d(dtype=wp.int32),
    background: wp.array(dtype=wp.vec3),
    tiles_x: int,
    tiles: int,
    width: int,
    height: int,
    colors: wp.array3d(dtype=wp.vec3),
    alphas: wp.array3d(dtype=wp.float32),
):
    """colors, alphas [S, H, W]."""
    at = place(wp.tid(), tiles_x, tiles)
    px, py = float(at[2]) + 0.5, float(at[3]) + 0.5
    if at[2] >= width or at[3] >= height:
        return
    through = float(1.0)
    color = wp.vec3()
    for j in range(bounds[at[0], 0], bounds[at[0], 1]):
        row = values[j]
        record0, record1 = records[row, 0], records[row, 1]
        dx = px - record0[0]
        power = log_alpha(record0, record1, dx, py - record0[1] - record0[2] * dx)
        if power >= LOG_ALPHA_MIN:
            wanted = wp.min(fast_exp(power), ALPHA_MAX) * through
            rest = through - wanted
            if rest <= TRANSMITTANCE_MIN:
                break
            color += wanted * wp.vec3(record1[2], record1[3], records[row, 2][0])
            through = rest
    colors[at[1], at[3], at[2]] = color + through * background[0]
    alphas[at[1], at[3], at[2]] = 1.0 - through


@wp.kernel
def backward(
    records: wp.array2d(dtype=wp.vec4),
    values: wp.array(dtype=wp.int32),
    bounds: wp.array2d(dtype=wp.int32),
    tiles_x: int,
    tiles: int,
    width: int,
    height: int,
    colors: wp.array3d(dtype=wp.vec3),
    alphas: wp.array3d(dtype=wp.float32),
    g_colors: wp.array3d(dtype=wp.vec3),
    g_alphas: wp.array3d(dtype=wp.float32),
    sums: wp.array2d(dtype=wp.float32),
    rests: wp.array3d(dtype=wp.float32),
):
    """Front to back again: the gradient of alpha_i is T_i c_i - (what lies behind i) / (1 - alpha_i), each weighted
    with the gradient of the pixel, and what lies behind is the finished pixel less what came before.

    sums [rows, 9], zero before: of d = dL/d(log alpha) times 1, dx, dx^2, u, u dx, u^2, and the colour's gradient.
    rests [S, H, W], or nothing: what every pixel shows of the background.
    """
    at = place(wp.tid(), tiles_x, tiles)
    px, py = float(at[2]) + 0.5, float(at[3]) + 0.5
    inside = at[2] < width and at[3] < height
    open = inside
    g, g_alpha = wp.vec3(), float(0.0)
    behind = float(0.0)
    if open:
        g = g_colors[at[1], at[3], at[2]]
        behind = wp.dot(colors[at[1], at[3], at[2]], g)
        if g_alphas.shape[0] > 0:
            g_alpha = g_alphas[at[1], at[3], at[2]]
            behind += alphas[at[1], at[3], at[2]] * g_alpha
    through = float(1.0)
    for j in range(bounds[at[0], 0], bounds[at[0], 1]):
        # the same for all threads of a warp: none may leave it before the others
        if warp_any(int(open)) == 0:
            break
        row = values[j]
        record0, record1 = records[row, 0], records[row, 1]
        dx = px - record0[0]
        u = py - record0[1] - record0[2] * dx
        power = log_alpha(record0, record1, dx, u)
        drawn = open and power >= LOG_ALPHA_MIN
        d, weight = float(0.0), float(0.0)
        if drawn:
            value = fast_exp(power)
            alpha = wp.min(value, ALPHA_MAX)
            wanted = alpha * through
            rest = through - wanted
            if rest <= TRANSMITTANCE_MIN:
                open = False
                drawn = False
            else:
                weight = wanted
                shade = record1[2] * g[0] + record1[3] * g[1] + records[row, 2][0] * g[2] + g_alpha
                behind -= weight * shade
                if value <= ALPHA_MAX:
                    d = value * (through * shade - behind / (1.0 - alpha))
                through = rest
        if warp_any(int(drawn)) != 0:
            one, by_dx, by_dx2 = warp_sum(d), warp_sum(d * dx), warp_sum(d * dx * dx)
            by_u, by_udx, by_u2 = warp_sum(d * u), warp_sum(d * u * dx), warp_sum(d * u * u)
            red, green, blue = warp_sum(weight * g[0]), warp_sum(weight * g[1]), warp_sum(weight * g[2])
            if first_of_warp() != 0:
                wp.atomic_add(sums, row, 0, one)
                wp.atomic_add(sums, row, 1, by_dx)
                wp.atomic_add(sums, row, 2, by_dx2)
                wp.atomic_add(sums, row, 3, by_u)
                wp.atomic_add(sums, row, 4, by_udx)
                wp.atomic_add(sums, row, 5, by_u2)
                wp.atomic_add(sums, row, 6, red)
                wp.atomic_add(sums, row, 7, green)
                wp.atomic_add(sums, row, 8, blue)
    if inside and rests.shape[0] > 0:
        rests[at[1], at[3], at[2]] = through


@wp.kernel
def weigh(
    records: wp.array2d(dtype=wp.vec4),
    values: wp.array(dtype=wp.int32),
    bounds: wp.array2d(dtype=wp.int32),
    tiles_x: int,
    tiles: int,
    width: int,
    height: int,
    weights: wp.array(dtype=wp.float64),
):
    """Adds the blending weights of each splat to weights [rows]."""
    at = place(wp.tid(), tiles_x, tiles)
    px, py = float(at[2]) + 0.5, float(at[3]) + 0.5
    open = at[2] < width and at[3] < height
    through = float(1.0)
    for j in range(bounds[at[0], 0], bounds[at[0], 1]):
        if warp_any(int(open)) == 0:
            break
        row = values[j]
        record0, record1 = records[row, 0], records[row, 1]
        dx = px - record0[0]
        power = log_alpha(record0, record1, dx, py - record0[1] - record0[2] * dx)
        weight = float(0.0)
        if open and power >= LOG_ALPHA_MIN:
            wanted = wp.min(fast_exp(power), ALPHA_MAX) * through
            if through - wanted <= TRANSMITTANCE_MIN:
                open = False
            else:
                weight = wanted
                through -= wanted
        if warp_any(int(weight > 0.0)) != 0:
            total = warp_sum(weight)
            if first_of_warp() != 0:
                wp.atomic_add(weights, row, wp.float64(total))
