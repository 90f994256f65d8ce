# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
"""Which splats each tile blends, in which order: pairs of tile and splat, sorted by tile, then depth, then splat."""

import warp as wp

from .kernels_project import rows, span

wp.set_module_options({"enable_backward": False})

LOW = wp.constant(wp.int64(0xFFFFFFFF))
DEPTH_BITS = 32


@wp.kernel
def emit(
    records: wp.array2d(dtype=wp.vec4),
    counts: wp.array(dtype=wp.int32),
    ends: wp.array(dtype=wp.int64),
    splats: int,
    tiles_x: int,
    tiles_y: int,
    tile: int,
    width: int,
    height: int,
    capacity: int,
    keys: wp.array(dtype=wp.int64),
    values: wp.array(dtype=wp.int32),
):
    """Writes the pairs of one splat in one view, as many as fit. key: number of the tile among those of all views, then
    the bits of the depth, which are ordered like positive floats. ends: running totals of counts."""
    row = wp.tid()
    count = counts[row]
    if count == 0:
        return
    at = int(wp.min(ends[row] - wp.int64(count), wp.int64(capacity)))
    record0, record1, record2 = records[row, 0], records[row, 1], records[row, 2]
    depth = wp.int64(wp.cast(record2[3], wp.int32)) & LOW
    first = row // splats * tiles_x * tiles_y
    down = rows(record0, record2, tile, height)
    for y in range(down[0], down[1] + 1):
        across = span(record0, record1, record2, y, tile, width)
        for x in range(across[0], across[1] + 1):
            if at < capacity:
                keys[at] = (wp.int64(first + y * tiles_x + x) << wp.int64(DEPTH_BITS)) | depth
                values[at] = row
            at += 1


@wp.kernel
def fill(ends: wp.array(dtype=wp.int64), capacity: int, tiles: int, keys: wp.array(dtype=wp.int64),
         needed: wp.array(dtype=wp.int64)):  # fmt: skip
    """Gives the places that no pair took the number after the last tile; notes the largest total there ever was."""
    i = wp.tid()
    total = ends[ends.shape[0] - 1]
    if wp.int64(i) >= total:
        keys[i] = wp.int64(tiles) << wp.int64(DEPTH_BITS)
    if i == 0:
        needed[0] = wp.max(needed[0], total)


@wp.kernel
def ranges(keys: wp.array(dtype=wp.int64), capacity: int, tiles: int, bounds: wp.array2d(dtype=wp.int32)):
    """bounds [tiles, 2]: first pair of each tile and the one after its last; zero before."""
    i = wp.tid()
    here = int(keys[i] >> wp.int64(DEPTH_BITS))
    if here >= tiles:
        return
    before, after = (-1), (-1)
    if i > 0:
        before = int(keys[i - 1] >> wp.int64(DEPTH_BITS))
    if i + 1 < capacity:
        after = int(keys[i + 1] >> wp.int64(DEPTH_BITS))
    if before != here:
        bounds[here, 0] = i
    if after != here:
        bounds[here, 1] = i + 1
