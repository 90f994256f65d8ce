# type: ignore
# Warp's kernels look like Python and are not; its types are not Python's.
# ruff: noqa: UP018  (in Warp `int(0)` declares a variable, `0` a constant)
"""One thread per pixel: what csrc/mesh.cpp draws, sample by sample, along rays (see render.py). Needs NVIDIA Warp.

A sample's geometry is that of the rasteriser, in double precision: a face's corners in homogeneous sample coordinates,
sheared so that the sample is the origin. The cross product of two corners is then (slope in x, slope in y, value at the
sample) of the third corner's weight, and two faces compute a shared edge to the same value of opposite sign, so that no
sample is hit twice or never (Woop, Benthin and Wald 2013). Boxes are only asked which faces to test.
"""

import warp as wp

from ..surface import VISIBLE
from .shading import BLENDED, COPLANAR, CUTOUT, FAINT, NEAR

# without contraction a product rounds alike in both orders, and both devices round alike
wp.set_module_options({"enable_backward": False, "fuse_fp": False, "fast_math": False})

mat34d = wp.types.matrix(shape=(3, 4), dtype=wp.float64)

ZERO = wp.constant(wp.float64(0.0))
FARTHEST = wp.constant(wp.float64(1 / NEAR))  # the largest 1 / depth
SLIGHTLY = wp.constant(wp.float64(COPLANAR))
CUT, BLEND = wp.constant(CUTOUT), wp.constant(BLENDED)
HALF, UNSEEN = wp.constant(VISIBLE), wp.constant(FAINT)
SPENT = wp.constant(1e-4)  # share of the light below which nothing behind is looked for
WIDER = wp.constant(wp.float32(1.0001))  # of a depth, so that boxes are never left out for rounding


@wp.struct
class Camera:
    """p = project @ (vertex, 1) in homogeneous sample coordinates; a ray is eye + depth * (unproject @ (x, y, 1))."""

    project: mat34d
    unproject: wp.mat33d
    eye: wp.vec3d
    first: wp.float64  # depth before which there is nothing


@wp.struct
class Faces:
    """Those that one tree of boxes holds, as numbers in the mesh."""

    tree: wp.uint64
    numbers: wp.array(dtype=wp.int32)


@wp.struct
class Scene:
    """A mesh; arrays as in csrc/surface.h."""

    solid: Faces
    blended: Faces
    corners: wp.array2d(dtype=wp.vec3)  # [F, 3]
    normals: wp.array2d(dtype=wp.vec3)
    uvs: wp.array2d(dtype=wp.vec2)
    colors: wp.array2d(dtype=wp.vec4)
    texture: wp.array(dtype=wp.int32)
    modes: wp.array(dtype=wp.int32)
    texels: wp.array(dtype=wp.uint32)  # RGBA multiplied by alpha, R lowest
    levels: wp.array(dtype=wp.vec3i)
    chains: wp.array(dtype=wp.vec3i)
    light: wp.array(dtype=wp.float32)


@wp.struct
class Hit:
    """A face at one sample. `a`, `b`, `c`: slopes and value of the corners' weights, which are not yet divided by
    their sum; all values >= 0 where the sample is inside."""

    inverse: wp.float64  # 1 / depth; 0 = the face is not there
    a: wp.vec3d
    b: wp.vec3d
    c: wp.vec3d
    back: wp.bool  # the side that the normals do not point to is seen


@wp.func
def corner(camera: Camera, v: wp.vec3, x: wp.float64, y: wp.float64):
    p = camera.project @ wp.vec4d(wp.float64(v[0]), wp.float64(v[1]), wp.float64(v[2]), wp.float64(1.0))
    return wp.vec3d(p[0] - x * p[2], p[1] - y * p[2], p[2])


@wp.func
def owned(edge: wp.vec3d):
    # an edge through the sample: of the face whose edge points right, or down
    return edge[2] > ZERO or (edge[2] == ZERO and (edge[0] > ZERO or (edge[0] == ZERO and edge[1] > ZERO)))


@wp.func
def meet(scene: Scene, camera: Camera, face: int, x: wp.float64, y: wp.float64):
    """The face at sample (x, y)."""
    hit = Hit()
    a = corner(camera, scene.corners[face, 0], x, y)
    b = corner(camera, scene.corners[face, 1], x, y)
    c = corner(camera, scene.corners[face, 2], x, y)
    at_a, at_b, at_c = b[0] * c[1] - b[1] * c[0], c[0] * a[1] - c[1] * a[0], a[0] * b[1] - a[1] * b[0]
    if wp.min(at_a, wp.min(at_b, at_c)) < ZERO and wp.max(at_a, wp.max(at_b, at_c)) > ZERO:
        return hit
    volume = at_a * a[2] + at_b * b[2] + at_c * c[2]
    if volume == ZERO or not wp.isfinite(volume):
        return hit
    side = wp.where(volume < ZERO, wp.float64(-1.0), wp.float64(1.0))
    hit.a = side * wp.cross(b, c)
    hit.b = side * wp.cross(c, a)
    hit.c = side * wp.cross(a, b)
    if owned(hit.a) and owned(hit.b) and owned(hit.c):
        inverse = (hit.a[2] + hit.b[2] + hit.c[2]) / wp.abs(volume)
        if inverse > ZERO and inverse < FARTHEST:
            hit.inverse = inverse
            hit.back = volume > ZERO
    return hit


@wp.func
def texel(scene: Scene, level: wp.vec3i, x: int, y: int):
    value = scene.texels[level[0] + y * level[1] + x]
    byte = wp.uint32(255)
    return wp.vec4(
        float(value & byte),
        float((value >> wp.uint32(8)) & byte),
        float((value >> wp.uint32(16)) & byte),
        float(value >> wp.uint32(24)),
    )


@wp.func
def bilinear(scene: Scene, level: wp.vec3i, u: float, v: float):
    """Repeating, RGBA 0..255 multiplied by alpha; u and v in [0, 1), v pointing down."""
    w, h = level[1], level[2]
    x, y = u * float(w) + 0.5, v * float(h) + 0.5  # one texel to the right, so that neither is negative
    x1, y1 = int(x), int(y)
    right, down = x - float(x1), y - float(y1)
    x0, y0 = wp.where(x1 < 1, w - 1, x1 - 1), wp.where(y1 < 1, h - 1, y1 - 1)
    x1, y1 = wp.where(x1 >= w, 0, x1), wp.where(y1 >= h, 0, y1)
    above = texel(scene, level, x0, y0) * (1.0 - right) + texel(scene, level, x1, y0) * right
    below = texel(scene, level, x0, y1) * (1.0 - right) + texel(scene, level, x1, y1) * right
    return above * (1.0 - down) + below * down


@wp.func
def albedo(scene: Scene, face: int, hit: Hit):
    """Colour without light and opacity of a face at a sample."""
    inverse = wp.float64(1.0) / (hit.a[2] + hit.b[2] + hit.c[2])
    out = (
        scene.colors[face, 0] * float(hit.a[2] * inverse)
        + scene.colors[face, 1] * float(hit.b[2] * inverse)
        + scene.colors[face, 2] * float(hit.c[2] * inverse)
    )
    number = scene.texture[face]
    if number < 0:
        return out
    ta, tb, tc = scene.uvs[face, 0], scene.uvs[face, 1], scene.uvs[face, 2]
    across = hit.a * wp.float64(ta[0]) + hit.b * wp.float64(tb[0]) + hit.c * wp.float64(tc[0])
    upward = hit.a * wp.float64(ta[1]) + hit.b * wp.float64(tb[1]) + hit.c * wp.float64(tc[1])
    total = hit.a + hit.b + hit.c
    u, v = across[2] * inverse, upward[2] * inverse
    # how far uv moves, in texels, from one sample to the next in x and in y
    chain = scene.chains[number]
    finest = scene.levels[chain[0]]
    du = (across - total * u) * (inverse * wp.float64(finest[1]))
    dv = (upward - total * v) * (inverse * wp.float64(finest[2]))
    area = float(wp.max(du[0] * du[0] + dv[0] * dv[0], du[1] * du[1] + dv[1] * dv[1]))
    top = chain[1] - 1
    lod = float(0.0)
    if area > 1.0:
        lod = wp.min(0.5 * wp.log2(area), float(top))
    lower = int(lod)
    share = lod - float(lower)
    right, down = wp.min(float(u - wp.floor(u)), 0.99999994), 1.0 - float(v - wp.floor(v))
    look = bilinear(scene, scene.levels[chain[0] + lower], right, down)
    if share > 0.0:
        look = look * (1.0 - share) + bilinear(scene, scene.levels[chain[0] + lower + 1], right, down) * share
    alpha = look[3] / 255.0
    scale = 1.0 / (255.0 * wp.max(alpha, 1e-6))
    if chain[2] != 0:
        alpha = wp.where(alpha >= HALF, 1.0, 0.0)
    return wp.vec4(
        out[0] * wp.min(look[0] * scale, 1.0),
        out[1] * wp.min(look[1] * scale, 1.0),
        out[2] * wp.min(look[2] * scale, 1.0),
        out[3] * alpha,
    )


@wp.func
def shade(scene: Scene, face: int, hit: Hit):
    """Colour under the light and opacity of a face at a sample."""
    out = albedo(scene, face, hit)
    inverse = wp.float64(1.0) / (hit.a[2] + hit.b[2] + hit.c[2])
    normal = (
        scene.normals[face, 0] * float(hit.a[2] * inverse)
        + scene.normals[face, 1] * float(hit.b[2] * inverse)
        + scene.normals[face, 2] * float(hit.c[2] * inverse)
    )
    scale = wp.where(hit.back, -1.0, 1.0) / wp.sqrt(wp.max(wp.dot(normal, normal), 1e-20))
    strength = scene.light[0]
    for i in range(1, scene.light.shape[0], 4):
        direction = wp.vec3(scene.light[i], scene.light[i + 1], scene.light[i + 2])
        strength += scene.light[i + 3] * wp.max(wp.dot(normal, direction) * scale, 0.0)
    return wp.vec4(
        wp.min(out[0] * strength, 1.0), wp.min(out[1] * strength, 1.0), wp.min(out[2] * strength, 1.0), out[3]
    )


@wp.func
def nearest(scene: Scene, camera: Camera, start: wp.vec3, direction: wp.vec3, x: wp.float64, y: wp.float64):
    """The opaque face that is seen at a sample, -1 = none: of coplanar ones the first."""
    best = int(-1)
    before = float(0.0)
    limit = float(wp.inf)
    first = float(camera.first)
    query = wp.bvh_query_ray(scene.solid.tree, start, direction)
    item = int(0)
    while wp.bvh_query_next(query, item, limit):
        face = scene.solid.numbers[item]
        hit = meet(scene, camera, face, x, y)
        if hit.inverse > ZERO:
            bar = wp.float64(before)
            if (face > best and hit.inverse > bar * SLIGHTLY) or (face < best and hit.inverse * SLIGHTLY >= bar):
                there = bool(True)
                if scene.modes[face] == CUT:
                    there = albedo(scene, face, hit)[3] >= HALF
                if there:
                    best = face
                    before = float(hit.inverse)
                    limit = WIDER / before - first
    return best, before


@wp.func
def behind(
    scene: Scene, camera: Camera, start: wp.vec3, direction: wp.vec3, x: wp.float64, y: wp.float64,
    bar: float, last: float, last_face: int,
):  # fmt: skip
    """The next translucent face at a sample after `last_face` at 1 / depth `last`, nearer than `bar`; -1 = none."""
    best = int(-1)
    before = float(0.0)
    first = float(camera.first)
    limit = float(wp.inf)
    if bar > 0.0:
        limit = WIDER / bar - first
    query = wp.bvh_query_ray(scene.blended.tree, start, direction)
    item = int(0)
    while wp.bvh_query_next(query, item, limit):
        face = scene.blended.numbers[item]
        hit = meet(scene, camera, face, x, y)
        if hit.inverse > wp.float64(bar):
            inverse = float(hit.inverse)
            if (inverse < last or (inverse == last and face < last_face)) and (
                inverse > before or (inverse == before and face > best)
            ):
                best = face
                before = inverse
                limit = WIDER / before - first
    return best, before


@wp.kernel
def draw(
    scene: Scene, cameras: wp.array(dtype=Camera), supersample: int, background: wp.vec3,
    images: wp.array4d(dtype=wp.uint8), alphas: wp.array3d(dtype=wp.uint8),
):  # fmt: skip
    view, row, column = wp.tid()
    camera = cameras[view]
    total = wp.vec3(0.0, 0.0, 0.0)
    cover = float(0.0)
    for number in range(supersample * supersample):
        x = wp.float64(column * supersample + number % supersample) + wp.float64(0.5)
        y = wp.float64(row * supersample + number // supersample) + wp.float64(0.5)
        along = camera.unproject @ wp.vec3d(x, y, wp.float64(1.0))
        direction = wp.vec3(along)
        for axis in range(3):  # a box's slab and a ray within it: no division by zero
            if wp.abs(direction[axis]) < 1e-9:
                direction[axis] = 1e-9
        start = wp.vec3(camera.eye + along * camera.first)
        face = int(-1)
        bar = float(0.0)
        if scene.solid.numbers.shape[0] > 0:
            face, bar = nearest(scene, camera, start, direction, x, y)
        left = float(1.0)
        if scene.blended.numbers.shape[0] > 0:
            last = float(wp.inf)
            layer = int(0)
            while layer >= 0 and left > SPENT:
                layer, last = behind(scene, camera, start, direction, x, y, bar, last, layer)
                if layer >= 0:
                    color = shade(scene, layer, meet(scene, camera, layer, x, y))
                    if color[3] >= UNSEEN:
                        total += wp.vec3(color[0], color[1], color[2]) * (color[3] * left)
                        left *= 1.0 - color[3]
        if face >= 0:
            color = shade(scene, face, meet(scene, camera, face, x, y))
            total += wp.vec3(color[0], color[1], color[2]) * left
            cover += 1.0
        else:
            total += background * left
            cover += 1.0 - left
    share = 255.0 / float(supersample * supersample)
    for channel in range(3):
        images[view, row, column, channel] = wp.uint8(total[channel] * share + 0.5)
    alphas[view, row, column] = wp.uint8(cover * share + 0.5)
