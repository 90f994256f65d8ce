"""The tile of a picture that a block of threads compares: C++ that both kernels of `kernels_pictures` begin with."""

from ..reference import images as constants
from .runtime import BLOCK

WIDE, TALL = 32, 16  # pixels of a tile

_CONSTANTS = f"""
    constexpr int THREADS = {BLOCK}, WIDE = {WIDE}, TALL = {TALL}, RADIUS = {constants.WINDOW // 2};
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

PRELUDE = _CONSTANTS + _BLOCK
