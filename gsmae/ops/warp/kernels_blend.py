# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
# ruff: noqa: UP018  (in Warp `int(0)` declares a variable, `0` a constant)
"""Blending of the sorted splats of a tile, and the gradients of it: one thread for a pixel, one block for a tile.

On a GPU the 32 threads of a warp hold a patch of 8 x 4 pixels of one tile and walk the same list: 32 splats at a time
are looked at by a thread each, which says whether its splat can reach the patch, and only those are blended. Threads
meet at every such splat and add up what it is owed among themselves before it is added to memory. On the CPU each
thread is alone with its pixel: a patch of one, a warp of one.
"""

import warp as wp

from ..reference import splats as constants
from .kernels_project import LOG_ALPHA_MIN, columns
from .threads import add_sums, add_weight, ballot, lane, lanes_of_warp, next_row, warp_any, without_first

wp.set_module_options({"enable_backward": False})

ALPHA_MAX = wp.constant(constants.ALPHA_MAX)
TRANSMITTANCE_MIN = wp.constant(constants.TRANSMITTANCE_MIN)
TILE = constants.TILE
PIXELS = wp.constant(TILE * TILE)
PATCH_X, PATCH_Y = wp.constant(8), wp.constant(4)


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
    return pixel / size * size + 0.5f * size;
#else
    return pixel + 0.5f;
#endif
""")
def patch_centre(pixel: int, size: int) -> float: ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return 0.5f * size - 0.5f;
#else
    return 0.0f;
#endif
""")
def patch_half(size: int) -> float:
    """From the centre of a patch to the centre of its last pixel."""
    ...


@wp.func
def place(thread: int, tiles_x: int, tiles: int):
    """Tile among those of all views, view, and pixel of a thread: (tile, view, x, y)."""
    tile, pixel = thread // PIXELS, thread % PIXELS
    view, inside = tile // tiles, tile % tiles
    place_in_warp, part = pixel % 32, pixel // 32
    return wp.vec4i(
        tile, view,
        inside % tiles_x * TILE + part % 2 * PATCH_X + place_in_warp % PATCH_X,
        inside // tiles_x * TILE + part // 2 * PATCH_Y + place_in_warp // PATCH_X,
    )  # fmt: skip


@wp.func
def reaches(records: wp.array2d(dtype=wp.vec4), row: int, x: int, y: int):
    """Whether a splat is drawn anywhere in the patch of a pixel: its box meets it, and its ellipse the rows of it."""
    record0, record2 = records[row, 0], records[row, 2]
    dx, dy = patch_centre(x, PATCH_X) - record0[0], patch_centre(y, PATCH_Y) - record0[1]
    half_x, half_y = patch_half(PATCH_X), patch_half(PATCH_Y)
    if wp.abs(dx) > record2[1] + half_x or wp.abs(dy) > record2[2] + half_y:
        return False
    record1 = records[row, 1]
    shape = wp.vec4(record0[2], record0[3], record1[0], record2[2])
    ends = columns(shape, record1[1] - LOG_ALPHA_MIN, record2[1], dy - half_y, dy + half_y)
    return ends[0] <= dx + half_x and ends[1] >= dx - half_x


@wp.func
def look(records: wp.array2d(dtype=wp.vec4), values: wp.array(dtype=wp.int32), first: int, end: int, x: int, y: int):
    """This thread's row of the next in the list, and which threads of the warp have one that reaches the patch."""
    mine, hit = int(0), int(0)
    if first + lane() < end:
        mine = values[first + lane()]
        hit = int(reaches(records, mine, x, y))
    return mine, ballot(hit)


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
    inside = at[2] < width and at[3] < height
    open = inside
    through = float(1.0)
    color = wp.vec3()
    end, first = bounds[at[0], 1], int(bounds[at[0], 0])
    # the conditions of the loops are the same for all threads of a warp: none may leave before the others
    while first < end and warp_any(int(open)) != 0:
        mine, waiting = look(records, values, first, end, at[2], at[3])
        while waiting != wp.uint32(0):
            row = next_row(mine, waiting)
            waiting = without_first(waiting)
            record0, record1 = records[row, 0], records[row, 1]
            dx = px - record0[0]
            power = log_alpha(record0, record1, dx, py - record0[1] - record0[2] * dx)
            if open and power >= LOG_ALPHA_MIN:
                wanted = wp.min(fast_exp(power), ALPHA_MAX) * through
                rest = through - wanted
                if rest <= TRANSMITTANCE_MIN:
                    open = False
                else:
                    color += wanted * wp.vec3(record1[2], record1[3], records[row, 2][0])
                    through = rest
        first += lanes_of_warp()
    if inside:
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
    end, first = bounds[at[0], 1], int(bounds[at[0], 0])
    while first < end and warp_any(int(open)) != 0:
        mine, waiting = look(records, values, first, end, at[2], at[3])
        while waiting != wp.uint32(0):
            row = next_row(mine, waiting)
            waiting = without_first(waiting)
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
                by_dx, by_u = d * dx, d * u
                add_sums(
                    sums, row, d, by_dx, by_dx * dx, by_u, by_u * dx, by_u * u, weight * g[0], weight * g[1],
                    weight * g[2],
                )  # fmt: skip
        first += lanes_of_warp()
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
    end, first = bounds[at[0], 1], int(bounds[at[0], 0])
    while first < end and warp_any(int(open)) != 0:
        mine, waiting = look(records, values, first, end, at[2], at[3])
        while waiting != wp.uint32(0):
            row = next_row(mine, waiting)
            waiting = without_first(waiting)
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
                add_weight(weights, row, weight)
        first += lanes_of_warp()
