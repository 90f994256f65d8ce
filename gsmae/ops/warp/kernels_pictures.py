# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
"""L1 + SSIM of pictures and its gradient (see csrc/images.cpp): a filter along rows, one along columns, for each way.

One thread for a pixel, its three channels together; pictures are [S, H, W], S = objects * views. What lies between the
kernels has a plane for each number and channel, so that threads side by side read and write side by side.
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


@wp.func
def added(sums: wp.vec3, weight: float, maps: wp.array2d(dtype=wp.float32), first: int, at: int):
    """sums + weight * three maps in a row, the first of which is named."""
    return sums + weight * wp.vec3(maps[first, at], maps[first + 1, at], maps[first + 2, at])


@wp.func
def put(maps: wp.array2d(dtype=wp.float32), first: int, at: int, value: wp.vec3):
    maps[first, at] = value[0]
    maps[first + 1, at] = value[1]
    maps[first + 2, at] = value[2]


@wp.kernel
def means_along_rows(
    image: wp.array3d(dtype=wp.vec3),
    target: wp.array3d(dtype=wp.vec3),
    width: int,
    height: int,
    maps: wp.array2d(dtype=wp.float32),
):
    """maps [4 * 3, S * H * W]: windowed means along a row of x, y, x^2 + y^2 and x y, a plane for each channel."""
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
    put(maps, 0, i, mx)
    put(maps, 3, i, my)
    put(maps, 6, i, square)
    put(maps, 9, i, product)


@wp.kernel
def compare(
    image: wp.array3d(dtype=wp.vec3),
    target: wp.array3d(dtype=wp.vec3),
    width: int,
    height: int,
    maps: wp.array2d(dtype=wp.float32),
    slopes: wp.array2d(dtype=wp.float32),
    values: wp.array(dtype=wp.vec2),
):
    """slopes [3 * 3, S * H * W]: gradients of the summed SSIM by the means of x, of x^2 + y^2 and of x y (or no
    columns); values [S * H * W]: SSIM and |x - y|, each summed over the channels."""
    i = wp.tid()
    at = place(i, width, height)
    mx, my, square, product = wp.vec3(), wp.vec3(), wp.vec3(), wp.vec3()
    for k in range(-RADIUS, RADIUS + 1):
        row = at[1] + k
        if row >= 0 and row < height:
            w, j = window(k), i + k * width
            mx = added(mx, w, maps, 0, j)
            my = added(my, w, maps, 3, j)
            square = added(square, w, maps, 6, j)
            product = added(product, w, maps, 9, j)
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
    if slopes.shape[1] > 0:
        put(slopes, 0, i, by_mean)
        put(slopes, 3, i, by_square)
        put(slopes, 6, i, by_product)
    d = image[at[0], at[1], at[2]] - target[at[0], at[1], at[2]]
    values[i] = wp.vec2(similar, wp.abs(d[0]) + wp.abs(d[1]) + wp.abs(d[2]))


@wp.kernel
def slopes_along_rows(
    slopes: wp.array2d(dtype=wp.float32), width: int, height: int, maps: wp.array2d(dtype=wp.float32)
):
    """maps [3 * 3, S * H * W]: the slopes filtered along rows."""
    i = wp.tid()
    at = place(i, width, height)
    first, second, third = wp.vec3(), wp.vec3(), wp.vec3()
    for k in range(-RADIUS, RADIUS + 1):
        if at[2] + k >= 0 and at[2] + k < width:
            w, j = window(k), i + k
            first = added(first, w, slopes, 0, j)
            second = added(second, w, slopes, 3, j)
            third = added(third, w, slopes, 6, j)
    put(maps, 0, i, first)
    put(maps, 3, i, second)
    put(maps, 6, i, third)


@wp.kernel
def gradient(
    image: wp.array3d(dtype=wp.vec3),
    target: wp.array3d(dtype=wp.vec3),
    width: int,
    height: int,
    views: int,
    maps: wp.array2d(dtype=wp.float32),
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
            first = added(first, w, maps, 0, j)
            second = added(second, w, maps, 3, j)
            third = added(third, w, maps, 6, j)
    x, y = image[at[0], at[1], at[2]], target[at[0], at[1], at[2]]
    found = wp.vec3()
    for c in range(3):
        side = wp.where(x[c] > y[c], 1.0, wp.where(x[c] < y[c], -1.0, 0.0))
        found[c] = l1_scale * side + ssim_scale * (first[c] + 2.0 * x[c] * second[c] + y[c] * third[c])
    out[at[0], at[1], at[2]] = wanted[at[0] // views] * found
