# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
"""L1 + SSIM of pictures and its gradient (see csrc/images.cpp): a filter along rows, one along columns, for each way.

One thread for a pixel, its three channels together; pictures are [S, H, W], S = objects * views.
"""

import warp as wp

from ..reference import images as constants

wp.set_module_options({"enable_backward": False})

RADIUS = wp.constant(constants.WINDOW // 2)
C1, C2 = wp.constant(constants.C1), wp.constant(constants.C2)
# exp(-k^2 / (2 * 1.5^2)), k = 0..5, divided by the sum over k = -5..5
_HALF = [float(w) for w in constants.gaussian_window()[constants.WINDOW // 2 :]]
W0, W1, W2, W3, W4, W5 = (wp.constant(w) for w in _HALF)


@wp.func
def window(k: int):
    d = wp.abs(k)
    if d == 0:
        return W0
    if d == 1:
        return W1
    if d == 2:
        return W2
    if d == 3:
        return W3
    if d == 4:
        return W4
    return W5


@wp.func
def place(thread: int, width: int, height: int):
    return wp.vec3i(thread // (width * height), thread // width % height, thread % width)


@wp.kernel
def means_along_rows(
    image: wp.array3d(dtype=wp.vec3),
    target: wp.array3d(dtype=wp.vec3),
    width: int,
    height: int,
    maps: wp.array2d(dtype=wp.vec3),
):
    """maps [S * H * W, 4]: windowed means along a row of x, y, x^2 + y^2 and x y."""
    i = wp.tid()
    at = place(i, width, height)
    mx, my, square, product = wp.vec3(), wp.vec3(), wp.vec3(), wp.vec3()
    for k in range(-RADIUS, RADIUS + 1):
        column = at[2] + k
        if column >= 0 and column < width:
            w = window(k)
            x, y = image[at[0], at[1], column], target[at[0], at[1], column]
            mx += w * x
            my += w * y
            square += w * (wp.cw_mul(x, x) + wp.cw_mul(y, y))
            product += w * wp.cw_mul(x, y)
    maps[i, 0] = mx
    maps[i, 1] = my
    maps[i, 2] = square
    maps[i, 3] = product


@wp.kernel
def compare(
    image: wp.array3d(dtype=wp.vec3),
    target: wp.array3d(dtype=wp.vec3),
    width: int,
    height: int,
    maps: wp.array2d(dtype=wp.vec3),
    slopes: wp.array2d(dtype=wp.vec3),
    values: wp.array(dtype=wp.vec2),
):
    """slopes [S * H * W, 3]: gradients of the summed SSIM by the means of x, of x^2 + y^2 and of x y (or no rows);
    values [S * H * W]: SSIM and |x - y|, each summed over the channels."""
    i = wp.tid()
    at = place(i, width, height)
    mx, my, square, product = wp.vec3(), wp.vec3(), wp.vec3(), wp.vec3()
    for k in range(-RADIUS, RADIUS + 1):
        row = at[1] + k
        if row >= 0 and row < height:
            w, j = window(k), i + k * width
            mx += w * maps[j, 0]
            my += w * maps[j, 1]
            square += w * maps[j, 2]
            product += w * maps[j, 3]
    by_mean, by_square, by_product = wp.vec3(), wp.vec3(), wp.vec3()
    similar = 0.0
    for c in range(3):
        mxy, mm = mx[c] * my[c], mx[c] * mx[c] + my[c] * my[c]
        a1, a2 = 2.0 * mxy + C1, 2.0 * (product[c] - mxy) + C2
        b1, b2 = mm + C1, square[c] - mm + C2
        inverse = 1.0 / (b1 * b2)
        value = a1 * a2 * inverse
        by_mean[c] = 2.0 * inverse * (my[c] * (a2 - a1) + mx[c] * value * (b1 - b2))
        by_square[c] = -value * b1 * inverse
        by_product[c] = 2.0 * a1 * inverse
        similar += value
    if slopes.shape[0] > 0:
        slopes[i, 0] = by_mean
        slopes[i, 1] = by_square
        slopes[i, 2] = by_product
    d = image[at[0], at[1], at[2]] - target[at[0], at[1], at[2]]
    values[i] = wp.vec2(similar, wp.abs(d[0]) + wp.abs(d[1]) + wp.abs(d[2]))


@wp.kernel
def slopes_along_rows(slopes: wp.array2d(dtype=wp.vec3), width: int, height: int, maps: wp.array2d(dtype=wp.vec3)):
    """maps [S * H * W, 3]: the slopes filtered along rows."""
    i = wp.tid()
    at = place(i, width, height)
    first, second, third = wp.vec3(), wp.vec3(), wp.vec3()
    for k in range(-RADIUS, RADIUS + 1):
        if at[2] + k >= 0 and at[2] + k < width:
            w, j = window(k), i + k
            first += w * slopes[j, 0]
            second += w * slopes[j, 1]
            third += w * slopes[j, 2]
    maps[i, 0] = first
    maps[i, 1] = second
    maps[i, 2] = third


@wp.kernel
def gradient(
    image: wp.array3d(dtype=wp.vec3),
    target: wp.array3d(dtype=wp.vec3),
    width: int,
    height: int,
    views: int,
    maps: wp.array2d(dtype=wp.vec3),
    wanted: wp.array(dtype=wp.float32),
    l1_scale: float,
    ssim_scale: float,
    out: wp.array3d(dtype=wp.vec3),
):
    """out: gradient of l1_scale * sum |x - y| + ssim_scale * sum SSIM by x, times that of the object's loss, wanted."""
    i = wp.tid()
    at = place(i, width, height)
    first, second, third = wp.vec3(), wp.vec3(), wp.vec3()
    for k in range(-RADIUS, RADIUS + 1):
        row = at[1] + k
        if row >= 0 and row < height:
            w, j = window(k), i + k * width
            first += w * maps[j, 0]
            second += w * maps[j, 1]
            third += w * maps[j, 2]
    x, y = image[at[0], at[1], at[2]], target[at[0], at[1], at[2]]
    found = wp.vec3()
    for c in range(3):
        side = wp.where(x[c] > y[c], 1.0, wp.where(x[c] < y[c], -1.0, 0.0))
        found[c] = l1_scale * side + ssim_scale * (first[c] + 2.0 * x[c] * second[c] + y[c] * third[c])
    out[at[0], at[1], at[2]] = wanted[at[0] // views] * found
