# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
"""Adam for many objects, one thread for a number."""

import warp as wp

from ..reference import steps as constants

wp.set_module_options({"enable_backward": False})

BETA1, BETA2 = wp.constant(constants.BETA1), wp.constant(constants.BETA2)
# rounded after the subtraction, not before it
REST1, REST2 = wp.constant(1 - constants.BETA1), wp.constant(1 - constants.BETA2)
EPS = wp.constant(constants.EPS)
ONE, LONG1, LONG2 = (wp.constant(wp.float64(x)) for x in (1.0, constants.BETA1, constants.BETA2))


@wp.kernel
def adam(
    value: wp.array(dtype=wp.float32),
    gradient: wp.array(dtype=wp.float32),
    mean: wp.array(dtype=wp.float32),
    square: wp.array(dtype=wp.float32),
    width: int,
    rates: wp.array(dtype=wp.float32),
    counts: wp.array(dtype=wp.int64),
    live: wp.array(dtype=wp.uint8),
):
    """[B * width] each, but for the last three, which are [B]."""
    i = wp.tid()
    b = i // width
    if live[b] == wp.uint8(0):
        return
    count = wp.float64(counts[b])
    first = wp.float32(ONE - wp.pow(LONG1, count))
    root = wp.float32(wp.sqrt(ONE - wp.pow(LONG2, count)))
    g = gradient[i]
    m = BETA1 * mean[i] + REST1 * g
    s = BETA2 * square[i] + REST2 * g * g
    mean[i] = m
    square[i] = s
    value[i] = value[i] - rates[b] / first * m / (wp.sqrt(s) / root + EPS)
