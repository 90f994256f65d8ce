# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
"""What the threads of a warp, and of a block, tell each other. On the CPU a block is one thread, and so is a warp.

All threads of the warp, or of the block, must come to each of these calls together.
"""

import warp as wp


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return threadIdx.x & 31;
#else
    return 0;
#endif
""")
def lane() -> int:
    """The thread's number in its warp."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return 32;
#else
    return 1;
#endif
""")
def lanes_of_warp() -> int: ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return blockDim.x;
#else
    return 1;
#endif
""")
def threads_of_block() -> int: ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    __syncwarp();
#endif
""")
def meet():
    """Wait for the threads of the warp; what they wrote before can be read after."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return __any_sync(0xffffffffu, x);
#else
    return x;
#endif
""")
def warp_any(x: int) -> int:
    """Whether x is not 0 for any thread of the warp."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return __ballot_sync(0xffffffffu, x);
#else
    return x ? 1u : 0u;
#endif
""")
def ballot(x: int) -> wp.uint32:
    """A bit for each thread of the warp: whether its x is not 0."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return __shfl_sync(0xffffffffu, row, __ffs(waiting) - 1);
#else
    return row;
#endif
""")
def next_row(row: int, waiting: wp.uint32) -> int:
    """The row of the first thread that waits."""
    ...


@wp.func_native("""
    return waiting & (waiting - 1u);
""")
def without_first(waiting: wp.uint32) -> wp.uint32:
    """The lowest bit taken away."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 800
    const int high = (int)(key >> 32);
    const int least = __reduce_min_sync(0xffffffffu, high);
    const unsigned low = __reduce_min_sync(0xffffffffu, high == least ? unsigned(key) : 0xffffffffu);
    return (wp::int64(least) << 32) | wp::int64(low);
#else
    for (int step = 16; step > 0; step /= 2) {
        const wp::int64 other = __shfl_xor_sync(0xffffffffu, key, step);
        key = other < key ? other : key;
    }
#endif
#endif
    return key;
""")
def least_of_warp(key: wp.int64) -> wp.int64:
    """The smallest key of the warp, for all of its threads."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    __shared__ wp::int64 keys[2][32];  // two in turn: nobody writes over what another has yet to read
    const int lane = threadIdx.x & 31;
    if (lane == 0) keys[turn][threadIdx.x / 32] = key;
    __syncthreads();
    key = lane < blockDim.x / 32 ? keys[turn][lane] : 0x7fffffffffffffffll;
#endif
    return key;
""")
def of_all_warps(key: wp.int64, turn: int) -> wp.int64:
    """The keys of the warps of a block, one for each lane."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    // Eight sums over 32 threads in nine exchanges: each halves what a thread carries, and how many it carries it for.
    const bool high = threadIdx.x & 16, middle = threadIdx.x & 8, low = threadIdx.x & 4;
    const float b0 = (high ? a4 : a0) + __shfl_xor_sync(0xffffffffu, high ? a0 : a4, 16);
    const float b1 = (high ? a5 : a1) + __shfl_xor_sync(0xffffffffu, high ? a1 : a5, 16);
    const float b2 = (high ? a6 : a2) + __shfl_xor_sync(0xffffffffu, high ? a2 : a6, 16);
    const float b3 = (high ? a7 : a3) + __shfl_xor_sync(0xffffffffu, high ? a3 : a7, 16);
    const float c0 = (middle ? b2 : b0) + __shfl_xor_sync(0xffffffffu, middle ? b0 : b2, 8);
    const float c1 = (middle ? b3 : b1) + __shfl_xor_sync(0xffffffffu, middle ? b1 : b3, 8);
    float d = (low ? c1 : c0) + __shfl_xor_sync(0xffffffffu, low ? c0 : c1, 4);
    d += __shfl_xor_sync(0xffffffffu, d, 2);
    d += __shfl_xor_sync(0xffffffffu, d, 1);
    for (int step = 16; step > 0; step /= 2) a8 += __shfl_xor_sync(0xffffffffu, a8, step);
    const int lane = threadIdx.x & 31;
    float* to = sums.data + 9 * size_t(row) + (lane == 1 ? 8 : lane / 4);
    if ((lane & 3) == 0 || lane == 1) atomicAdd(to, lane == 1 ? a8 : d);
#else
    float* to = sums.data + 9 * size_t(row);
    to[0] += a0; to[1] += a1; to[2] += a2; to[3] += a3; to[4] += a4; to[5] += a5; to[6] += a6; to[7] += a7; to[8] += a8;
#endif
""")
def add_sums(sums: wp.array2d(dtype=wp.float32), row: int, a0: float, a1: float, a2: float, a3: float, a4: float,
             a5: float, a6: float, a7: float, a8: float):  # fmt: skip
    """Adds nine numbers of all threads of a warp to those of a row, [rows, 9] without gaps."""
    ...


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    if ((threadIdx.x & 31) == 0) atomicAdd(weights.data + row, (double)x);
#else
    weights.data[row] += x;
#endif
""")
def add_weight(weights: wp.array(dtype=wp.float64), row: int, x: float):
    """Adds a number of all threads of a warp to that of a row."""
    ...
