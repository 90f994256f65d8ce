# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
"""L1 + SSIM of pictures and its gradient (see csrc/images.cpp), a kernel for each way, a block of threads for a tile.

Pictures are [S, H, W, 3], S = objects * views. A block filters its tile, and what is around it, along columns, straight
from memory: side by side are threads with numbers side by side, the three channels in turn. What they find is shared,
and filtered along rows by threads with one channel of a row each. A row of what is shared is 3 (mod 32) numbers long,
so that the threads of a warp, which go by row and channel there, meet in no bank of the memory.

On the CPU a block is one thread, which goes through each step for all THREADS in turn.
"""

import warp as wp

from .runtime import BLOCK
from .tiles import PRELUDE

wp.set_module_options({"enable_backward": False})


@wp.func_native(
    PRELUDE
    + """
    GSMAE_SHARED float maps[4 * MAP];
    struct Mine { Out maps[4]; float similar, different; };
    Mine mine[TURNS];
    auto along_columns = [&](auto* targets) {
        GSMAE_EACH {
            Mine& own = mine[turn];
            own.different = 0.0f;
            if (number_of(t) < ROW + AROUND) {
                const bool counts = number_of(t) >= 0 && number_of(t) < ROW;
                const int at = offset(first_row_of(t) - RADIUS, number_of(t));
                auto x_at = image.data + at;
                auto y_at = targets + at;
                In x, y;  // all are asked for before the first is awaited
                GSMAE_UNROLL
                for (int i = 0; i < IN; ++i, x_at += row_size, y_at += row_size) {
                    x[i] = there(t, i) ? *x_at : 0.0f;
                    y[i] = there(t, i) ? level(*y_at) : 0.0f;
                }
                along_column(x, maps, t);
                along_column(y, maps + MAP, t);
                GSMAE_UNROLL
                for (int i = 0; i < IN; ++i) {
                    const float product = x[i] * y[i];
                    if (counts && i >= RADIUS && i < RADIUS + OUT) own.different += fabsf(x[i] - y[i]);
                    x[i] = x[i] * x[i] + y[i] * y[i];
                    y[i] = product;
                }
                along_column(x, maps + 2 * MAP, t);
                along_column(y, maps + 3 * MAP, t);
            }
        }
    };
    if (bytes.shape[0] > 0) along_columns(bytes.data);
    else along_columns(target.data);
    GSMAE_MEET;
    GSMAE_EACH {
        Mine& own = mine[turn];
        own.similar = 0.0f;
        if (t < WORKERS) {
            const float* from = maps + place_of(t);
            const int pixels = row_inside(line_of(t) / 3) ? width - left - pixel_of(t) : 0;  // that are there, or more
            GSMAE_UNROLL
            for (int m = 0; m < 4; ++m) along_row(from + m * MAP, own.maps[m]);
            GSMAE_UNROLL
            for (int o = 0; o < OUT; ++o) {
                const float mx = own.maps[0][o], my = own.maps[1][o], mxy = mx * my, mm = mx * mx + my * my;
                const float a1 = 2.0f * mxy + C1, a2 = 2.0f * (own.maps[3][o] - mxy) + C2;
                const float b1 = mm + C1, b2 = own.maps[2][o] - mm + C2;
#if defined(__CUDA_ARCH__)
                const float inverse = __fdividef(1.0f, b1 * b2);
#else
                const float inverse = 1.0f / (b1 * b2);
#endif
                const float value = a1 * a2 * inverse;
                own.maps[0][o] = 2.0f * inverse * (my * (a2 - a1) + mx * value * (b1 - b2));
                own.maps[1][o] = -value * b1 * inverse;
                own.maps[2][o] = 2.0f * a1 * inverse;
                own.similar += o < pixels ? value : 0.0f;
            }
        }
    }
    GSMAE_MEET;  // the maps have been read: their room is free
    float* sums = maps + 3 * MAP;  // [2, THREADS], and behind them [2, 16]
    GSMAE_EACH {
        sums[t] = mine[turn].similar;
        sums[THREADS + t] = mine[turn].different;
        if (t < WORKERS) {
            float* to = maps + place_of(t);
            GSMAE_UNROLL
            for (int m = 0; m < 3; ++m) keep(mine[turn].maps[m], to + m * MAP);
        }
    }
    GSMAE_MEET;
    GSMAE_EACH {
        if (t < 32) {
            float sum = 0.0f;
            GSMAE_UNROLL
            for (int k = 0; k < THREADS; k += 16) sum += sums[t / 16 * THREADS + k + t % 16];
            sums[2 * THREADS + t] = sum;
        }
        if (slopes.shape[1] > 0) {
            GSMAE_UNROLL
            for (int k = 0; k < 6; ++k) {
                const int row = kept_row_of(t, k), f = kept_number_of(t, k);
                if (kept_there(t, k)) {
                    GSMAE_UNROLL
                    for (int m = 0; m < 3; ++m)
                        slopes.data[m * wp::int64(slopes.shape[1]) + offset(row, f)] = maps[m * MAP + row * PITCH + f];
                }
            }
        }
    }
    GSMAE_MEET;
    GSMAE_EACH {
        if (t < 2) {
            float sum = 0.0f;
            GSMAE_UNROLL
            for (int k = 0; k < 16; ++k) sum += sums[2 * THREADS + 16 * t + k];
            values.data[2 * wp::int64(tile) + t] = sum;
        }
    }
"""
)
def compare_tile(
    thread: int,
    image: wp.array(dtype=wp.float32),
    target: wp.array(dtype=wp.float32),
    bytes: wp.array(dtype=wp.uint8),
    width: int,
    height: int,
    slopes: wp.array2d(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),
): ...


# launches have whole blocks only, and no thread leaves before the others: all meet
@wp.kernel(grid_stride=False, launch_bounds=(BLOCK, 4))
def compare(
    image: wp.array(dtype=wp.float32),
    target: wp.array(dtype=wp.float32),
    bytes: wp.array(dtype=wp.uint8),
    width: int,
    height: int,
    slopes: wp.array2d(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),
):
    """image [S * H * W * 3], and as long as it target or bytes, 255 of which are 1; the other of the two is empty.

    slopes [3, S * H * W * 3]: gradients of the summed SSIM by the windowed means of x, of x^2 + y^2 and of x y (or no
    columns); values [S * tiles, 2]: SSIM and |x - y|, each summed over the pixels and channels of a tile."""
    compare_tile(wp.tid(), image, target, bytes, width, height, slopes, values)


@wp.func_native(
    PRELUDE
    + """
    GSMAE_SHARED float maps[3 * MAP];
    struct Mine { Out maps[3]; };
    Mine mine[TURNS];
    GSMAE_EACH {
        if (number_of(t) < ROW + AROUND) {
            GSMAE_ROLLED  // together they would need more registers than five blocks leave to one
            for (int m = 0; m < 3; ++m) {
                const float* at = slopes.data + m * wp::int64(slopes.shape[1]);
                at += offset(first_row_of(t) - RADIUS, number_of(t));
                In in;
                GSMAE_UNROLL
                for (int i = 0; i < IN; ++i, at += row_size) in[i] = there(t, i) ? *at : 0.0f;
                along_column(in, maps + m * MAP, t);
            }
        }
    }
    GSMAE_MEET;
    GSMAE_EACH {
        if (t < WORKERS) {
            const float* from = maps + place_of(t);
            GSMAE_UNROLL
            for (int m = 0; m < 3; ++m) along_row(from + m * MAP, mine[turn].maps[m]);
        }
    }
    GSMAE_MEET;
    GSMAE_EACH {
        if (t < WORKERS) {
            float* to = maps + place_of(t);
            GSMAE_UNROLL
            for (int m = 0; m < 3; ++m) keep(mine[turn].maps[m], to + m * MAP);
        }
    }
    GSMAE_MEET;
    const float pull = wanted.data[picture / views];
    auto put = [&](auto* targets) {
        GSMAE_EACH {
            float x[6], y[6];
            GSMAE_UNROLL
            for (int k = 0; k < 6; ++k) {
                const int at = offset(kept_row_of(t, k), kept_number_of(t, k));
                x[k] = kept_there(t, k) ? image.data[at] : 0.0f;
                y[k] = kept_there(t, k) ? level(targets[at]) : 0.0f;
            }
            GSMAE_UNROLL
            for (int k = 0; k < 6; ++k) {
                const int row = kept_row_of(t, k), f = kept_number_of(t, k);
                const float* found = maps + row * PITCH + f;
                const float side = x[k] > y[k] ? 1.0f : x[k] < y[k] ? -1.0f : 0.0f;
                const float by_ssim = found[0] + 2.0f * x[k] * found[MAP] + y[k] * found[2 * MAP];
                if (kept_there(t, k)) out.data[offset(row, f)] = pull * (l1_scale * side + ssim_scale * by_ssim);
            }
        }
    };
    if (bytes.shape[0] > 0) put(bytes.data);
    else put(target.data);
"""
)
def gradient_of_tile(
    thread: int,
    image: wp.array(dtype=wp.float32),
    target: wp.array(dtype=wp.float32),
    bytes: wp.array(dtype=wp.uint8),
    width: int,
    height: int,
    views: int,
    slopes: wp.array2d(dtype=wp.float32),
    wanted: wp.array(dtype=wp.float32),
    l1_scale: float,
    ssim_scale: float,
    out: wp.array(dtype=wp.float32),
): ...


@wp.kernel(grid_stride=False, launch_bounds=(BLOCK, 5))
def gradient(
    image: wp.array(dtype=wp.float32),
    target: wp.array(dtype=wp.float32),
    bytes: wp.array(dtype=wp.uint8),
    width: int,
    height: int,
    views: int,
    slopes: wp.array2d(dtype=wp.float32),
    wanted: wp.array(dtype=wp.float32),
    l1_scale: float,
    ssim_scale: float,
    out: wp.array(dtype=wp.float32),
):
    """out [S * H * W * 3]: gradient of l1_scale * sum |x - y| + ssim_scale * sum SSIM by x, times that of the object's
    loss, wanted; the others as for `compare`."""
    gradient_of_tile(wp.tid(), image, target, bytes, width, height, views, slopes, wanted, l1_scale, ssim_scale, out)
