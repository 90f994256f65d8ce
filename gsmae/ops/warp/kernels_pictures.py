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

from ..reference import images as constants

wp.set_module_options({"enable_backward": False})

WIDE, TALL = 32, 16  # pixels of a tile
THREADS = 256  # of a block: runtime.BLOCK

_CONSTANTS = f"""
    constexpr int THREADS = {THREADS}, WIDE = {WIDE}, TALL = {TALL}, RADIUS = {constants.WINDOW // 2};
    constexpr float W[2 * RADIUS + 1] = {{{", ".join(f"{float(w)!r}f" for w in constants.gaussian_window())}}};
    constexpr float C1 = {constants.C1!r}f, C2 = {constants.C2!r}f;
    constexpr int OUT = 8, IN = OUT + 2 * RADIUS;  // numbers that a thread finds in a filter, and that it needs
    constexpr int ROW = 3 * WIDE, AROUND = 3 * RADIUS, PITCH = 131, MAP = TALL * PITCH;
    typedef float In[IN], Out[OUT];
    constexpr int LINES = 3 * TALL, WORKERS = LINES * WIDE / OUT;  // along rows, a few threads have nothing to do
    static_assert(2 * OUT == TALL && ROW + 2 * AROUND <= THREADS / 2 && WORKERS == 192 && PITCH % 32 == 3);
"""

# What both kernels share. `GSMAE_EACH` is a step of all threads, between which they meet; `t` is the thread and `turn`
# where it keeps what it remembers from one step to the next.
_BLOCK = """
#if defined(__CUDA_ARCH__)
    #define GSMAE_SHARED __shared__
    #define GSMAE_UNROLL _Pragma("unroll")
    #define GSMAE_ROLLED _Pragma("unroll 1")
    #define GSMAE_MEET __syncthreads()
    #define GSMAE_EACH for (int turn = 0, t = threadIdx.x; turn < 1; ++turn)
    constexpr int TURNS = 1;
    // thread / THREADS, in words that tell the compiler that it is the same for all
    const unsigned tile = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
#else
    #define GSMAE_SHARED
    #define GSMAE_UNROLL
    #define GSMAE_ROLLED
    #define GSMAE_MEET
    #define GSMAE_EACH for (int turn = 0, t = 0; turn < THREADS; t = ++turn)
    constexpr int TURNS = THREADS;
    const unsigned tile = thread / THREADS;
    if (thread % THREADS != 0) return;
#endif
    const unsigned tiles_x = (width + WIDE - 1) / WIDE, tiles = tiles_x * ((height + TALL - 1) / TALL);
    const int picture = tile / tiles, left = tile % tiles % tiles_x * WIDE, top = tile % tiles / tiles_x * TALL;
    const int start = picture * height * width * 3, row_size = 3 * width;
    // Numbers of the picture: rows are counted from the tile's first, and so is f, three to a column.
    auto row_inside = [&](int row) { return unsigned(top + row) < unsigned(height); };
    auto column_inside = [&](int f) { return unsigned(3 * left + f) < unsigned(row_size); };
    auto offset = [&](int row, int f) { return start + (top + row) * row_size + 3 * left + f; };
    auto level = [](auto value) {
        if constexpr (sizeof(value) > 1) return value;
        else {  // value / 255 to the last bit, as torch has it
            const float whole = value, inverse = 1.0f / 255.0f, near = whole * inverse;
            return fmaf(fmaf(-near, 255.0f, whole), inverse, near);
        }
    };
    auto filter = [&](const In& in, Out& out) {
        GSMAE_UNROLL
        for (int o = 0; o < OUT; ++o) {
            out[o] = 0.0f;
            GSMAE_UNROLL
            for (int k = 0; k <= 2 * RADIUS; ++k) out[o] += W[k] * in[o + k];
        }
    };
    // Along columns, a thread has OUT rows of one number f.
    auto number_of = [](unsigned t) { return (int)(t % (THREADS / 2)) - AROUND; };
    auto first_row_of = [](unsigned t) { return (int)(t / (THREADS / 2)) * OUT; };
    auto there = [&](int t, int i) { return column_inside(number_of(t)) && row_inside(first_row_of(t) + i - RADIUS); };
    auto along_column = [&](const In& in, float* map, int t) {
        Out out;
        filter(in, out);
        float* to = map + first_row_of(t) * PITCH + number_of(t) + AROUND;
        GSMAE_UNROLL
        for (int o = 0; o < OUT; ++o) to[o * PITCH] = out[o];
    };
    // Along rows, a thread has OUT pixels of a line, which is a row and a channel. Lines 32 and on share warps, two
    // halves that are 16 banks apart.
    auto line_of = [](unsigned t) -> int { return t < 128 ? t % 32 : 32 + t % 16; };
    auto pixel_of = [](unsigned t) -> int { return OUT * (t < 128 ? t / 32 : t / 32 % 2 + t / 16 % 2 * 2); };
    auto place_of = [&](int t) { return line_of(t) / 3 * PITCH + 3 * pixel_of(t) + line_of(t) % 3; };
    auto along_row = [&](const float* from, Out& out) {
        In in;
        GSMAE_UNROLL
        for (int i = 0; i < IN; ++i) in[i] = from[3 * i];
        filter(in, out);
    };
    auto keep = [&](const Out& out, float* to) {
        GSMAE_UNROLL
        for (int o = 0; o < OUT; ++o) to[3 * o] = out[o];
    };
    // Where the tile is read and written as it lies in memory, a thread has six numbers, the k-th of them here.
    auto kept_row_of = [](unsigned t, int k) { return (int)(t / 32) + k / 3 * 8; };
    auto kept_number_of = [](unsigned t, int k) { return (int)(t % 32) + k % 3 * 32; };
    auto kept_there = [&](int t, int k) {
        return row_inside(kept_row_of(t, k)) && column_inside(kept_number_of(t, k));
    };
"""


@wp.func_native(
    _CONSTANTS
    + _BLOCK
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
@wp.kernel(grid_stride=False, launch_bounds=(THREADS, 4))
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
    _CONSTANTS
    + _BLOCK
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


@wp.kernel(grid_stride=False, launch_bounds=(THREADS, 5))
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
