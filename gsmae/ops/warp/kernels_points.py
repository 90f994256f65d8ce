# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
"""Farthest points, a block of threads for a cloud, and nearest points, a warp for a query.

What is compared are keys: the bits of a squared distance, which are ordered as such floats are, and below them the
index, so that no two keys are equal and ties go to the lower index. On the CPU a block is one thread, and so is a warp:
the strides below are then 1, and what threads tell each other falls away.
"""

import warp as wp

from .threads import lanes_of_warp, least_of_warp, meet, of_all_warps, threads_of_block

# one launch has whole blocks only, so that all threads of a block meet at a barrier
wp.set_module_options({"enable_backward": False, "fuse_fp": False})

AT_ONCE = wp.constant(4)  # points of a thread whose distances are computed together
NONE = wp.constant(wp.int64(0x7FFFFFFFFFFFFFFF))  # behind every key
LOW = wp.constant(wp.int64(0xFFFFFFFF))
SHIFT = wp.constant(wp.int64(32))
INFINITE = wp.constant(float("inf"))
NOT_A_NUMBER = wp.constant(0x7FC00000)  # the bits of one, behind those of an infinite distance


@wp.func_native("""
    const float* column = columns.data + size_t(cloud) * width * n;
    const float* query = rows.data + size_t(row) * width;
    const int last = n - 1;
    const int i0 = first < last ? first : last, i1 = first + step < last ? first + step : last;
    const int i2 = first + 2 * step < last ? first + 2 * step : last;
    const int i3 = first + 3 * step < last ? first + 3 * step : last;
    float d0 = 0.0f, d1 = 0.0f, d2 = 0.0f, d3 = 0.0f;
#if defined(__CUDA_ARCH__)
    #pragma unroll 4
    for (int c = 0; c < width; ++c, column += n) {
        const float q = __ldg(query + c);
        const float x0 = __fsub_rn(__ldg(column + i0), q), x1 = __fsub_rn(__ldg(column + i1), q);
        const float x2 = __fsub_rn(__ldg(column + i2), q), x3 = __fsub_rn(__ldg(column + i3), q);
        d0 = __fadd_rn(d0, __fmul_rn(x0, x0)), d1 = __fadd_rn(d1, __fmul_rn(x1, x1));
        d2 = __fadd_rn(d2, __fmul_rn(x2, x2)), d3 = __fadd_rn(d3, __fmul_rn(x3, x3));
    }
#else
    for (int c = 0; c < width; ++c, column += n) {
        const float q = query[c];
        const float x0 = column[i0] - q, x1 = column[i1] - q, x2 = column[i2] - q, x3 = column[i3] - q;
        const float s0 = x0 * x0, s1 = x1 * x1, s2 = x2 * x2, s3 = x3 * x3;
        d0 = d0 + s0, d1 = d1 + s1, d2 = d2 + s2, d3 = d3 + s3;
    }
#endif
    return wp::vec_t<4, wp::float32>(d0, d1, d2, d3);
""")
def distances(
    columns: wp.array3d(dtype=wp.float32),
    cloud: int,
    n: int,
    width: int,
    rows: wp.array2d(dtype=wp.float32),
    row: int,
    first: int,
    step: int,
) -> wp.vec4:
    """Squared distances of a row to the points first, first + step and so on of a cloud; beyond the last, of the last.

    Columns in order, and every operation rounds: the intrinsics are never fused.
    """
    ...


@wp.func
def key_of(bits: int, index: int):
    return (wp.int64(bits) << SHIFT) | wp.int64(index)


@wp.func
def no_key():
    """A function, since a variable that Warp makes of a constant is the constant, and both change together."""
    return NONE


@wp.func
def bits_of(distance: float):
    """In the order of distances, NaN last, whichever NaN it is."""
    return wp.where(distance <= INFINITE, wp.cast(distance, wp.int32), NOT_A_NUMBER)


@wp.kernel(grid_stride=False)
def cover(
    columns: wp.array3d(dtype=wp.float32),
    rows: wp.array2d(dtype=wp.float32),
    n: int,
    width: int,
    count: int,
    start: int,
    gaps: wp.array2d(dtype=wp.float32),
    chosen: wp.array2d(dtype=wp.int64),
):
    """columns [B, C, N] and rows [B * N, C], the same points. gaps [B, N]: room for the distance of each point to the
    nearest chosen one. chosen [B, count]."""
    thread, threads = wp.tid(), threads_of_block()
    cloud, first = thread // threads, thread % threads
    current = int(start)
    for step in range(count):
        if first == 0:
            chosen[cloud, step] = wp.int64(current)
        if step + 1 < count:
            best = no_key()
            for i in range(first, n, AT_ONCE * threads):
                gap = wp.vec4(INFINITE, INFINITE, INFINITE, INFINITE)
                if step > 0:
                    for u in range(AT_ONCE):
                        if i + u * threads < n:
                            gap[u] = gaps[cloud, i + u * threads]
                d = distances(columns, cloud, n, width, rows, cloud * n + current, i, threads)
                for u in range(AT_ONCE):
                    j = i + u * threads
                    if j < n:
                        left = gap[u]
                        if d[u] < left:  # NaN changes nothing
                            left = d[u]
                        if j == current:
                            left = -1.0  # below every distance: never again
                        gaps[cloud, j] = left
                        # the complement turns the order of the bits, so that the least key has the largest gap
                        best = wp.min(best, key_of(~wp.cast(left, wp.int32), j))
            best = least_of_warp(of_all_warps(least_of_warp(best), step % 2))
            current = int(best & LOW)


@wp.kernel(grid_stride=False)
def select(
    columns: wp.array3d(dtype=wp.float32),
    rows: wp.array2d(dtype=wp.float32),
    picks: wp.array(dtype=wp.int64),
    n: int,
    width: int,
    queries: int,
    per_cloud: int,
    k: int,
    room: wp.array2d(dtype=wp.int32),
    found: wp.array2d(dtype=wp.int64),
):
    """columns [B, C, N]. rows: the queries [B * per_cloud, C], or, where there are picks [B * per_cloud], all points
    [B * N, C] of which they are taken. room [R, N] for the distances of R queries at a time. found [B * per_cloud, k].

    Each lane knows the smallest key in its own stretch of the points. The smallest of the lanes' is the next neighbour;
    then all lanes look through the stretch that it came from for the smallest key behind it.
    """
    lanes = lanes_of_warp()
    lane, mine = wp.tid() % lanes, wp.tid() // lanes
    length = (n + lanes * lanes - 1) // (lanes * lanes) * lanes  # of a stretch
    for q in range(mine, queries, room.shape[0]):
        cloud = q // per_cloud
        row = int(q)
        if picks.shape[0] > 0:
            row = cloud * n + int(picks[q])
        best = no_key()
        meet()  # before the room is used again
        for first in range(0, n, AT_ONCE * lanes):
            d = distances(columns, cloud, n, width, rows, row, first + lane, lanes)
            for u in range(AT_ONCE):
                j = first + u * lanes + lane
                key = no_key()
                if j < n:
                    bits = bits_of(d[u])
                    room[mine, j] = bits
                    key = key_of(bits, j)
                key = least_of_warp(key)
                if (first + u * lanes) // length == lane:
                    best = wp.min(best, key)
        meet()  # what others wrote can be read
        for rank in range(k):
            least = least_of_warp(best)
            at = int(least & LOW)
            owner = at // length
            if lane == owner:
                found[q, rank] = wp.int64(at)
            key = no_key()
            for j in range(owner * length + lane, wp.min(n, owner * length + length), lanes):
                other = key_of(room[mine, j], j)
                if other > least:
                    key = wp.min(key, other)
            key = least_of_warp(key)
            if lane == owner:
                best = key
