"""The mesh renderer in plain numpy: what csrc/mesh.cpp must draw (see render.py), and the way without a compiler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..meshes import Mesh
from ..surface import VISIBLE
from ..textures import sample_trilinear
from .cameras import Cameras
from .shading import BLENDED, COPLANAR, CUTOUT, FAINT, NEAR, Background, Views, face_modes, light_table


def render(mesh: Mesh, cameras: Cameras, supersample: int, background: Background) -> Views:
    """Pictures of a mesh; see `render.render_views`."""
    modes, n = face_modes(mesh), supersample
    images, alphas = [], []
    for view, K in zip(cameras.viewmats.astype(np.float64), cameras.Ks.astype(np.float64), strict=True):
        canvas = _Canvas(mesh, modes, view, K, cameras.width * n, cameras.height * n, n)
        colors, cover = canvas.draw(np.array(background))
        pixels = colors.reshape(cameras.height, n, cameras.width, n, 3).mean(axis=(1, 3))
        images.append(np.floor(pixels * 255 + 0.5).astype(np.uint8))
        alphas.append(np.floor(cover.reshape(cameras.height, n, cameras.width, n).mean(axis=(1, 3)) * 255 + 0.5))
    shape = (len(cameras), cameras.height, cameras.width)
    return Views(np.array(images, dtype=np.uint8).reshape(*shape, 3), np.array(alphas).astype(np.uint8).reshape(shape))


@dataclass(frozen=True)
class _Setup:
    """All faces as one camera sees them, in homogeneous sample coordinates (Olano and Greer 1997).

    edges  [F, 3, 3]: weight i of a face at (x, y) is edge i . (x, y, 1) over the sum of the three
    scale  [F]: 1 / depth is that sum times scale; 0 for a face that is seen edge on
    back   [F] bool: the camera sees the side that the normals do not point to
    """

    edges: np.ndarray
    scale: np.ndarray
    back: np.ndarray


def _line(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Lines through pairs of homogeneous points [F, 3]; line(a, b) is exactly -line(b, a)."""
    swap = np.where(
        a[:, 0] != b[:, 0], a[:, 0] > b[:, 0], np.where(a[:, 1] != b[:, 1], a[:, 1] > b[:, 1], a[:, 2] > b[:, 2])
    )
    swap = swap[:, None]
    return np.cross(np.where(swap, b, a), np.where(swap, a, b)) * np.where(swap, -1, 1)


def _setup(points: np.ndarray, faces: np.ndarray) -> _Setup:
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    edges = np.stack([_line(b, c), _line(c, a), _line(a, b)], axis=1)
    volume = (edges[:, 0] * a).sum(axis=1)
    seen = volume != 0
    scale = np.where(seen, 1 / np.where(seen, np.abs(volume), 1), 0)
    return _Setup(np.where(volume < 0, -1, 1)[:, None, None] * edges, scale, volume > 0)


class _Canvas:
    """One picture while it is drawn; samples in rows, `columns` wide."""

    def __init__(self, mesh: Mesh, modes: np.ndarray, view: np.ndarray, K: np.ndarray, columns: int, rows: int, n: int):
        camera = mesh.vertices.astype(np.float64) @ view[:3, :3].T + view[:3, 3]
        self.points = camera @ (K * np.array([[n], [n], [1]])).T
        self.mesh, self.modes, self.columns, self.rows = mesh, modes, columns, rows
        self.setup = _setup(self.points, mesh.faces)
        self.depth = np.zeros((rows, columns), dtype=np.float32)  # 1 / depth of the nearest opaque face
        self.face = np.full((rows, columns), -1)
        self.layers: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # sample, face, 1 / depth of translucent ones

    def draw(self, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colours [rows * columns, 3] and cover [rows * columns]."""
        boxes = self._boxes()
        for faces in (np.flatnonzero(self.modes != BLENDED), np.flatnonzero(self.modes == BLENDED)):
            for face in faces:
                if self.setup.scale[face] > 0 and boxes[face, 0] < boxes[face, 1] and boxes[face, 2] < boxes[face, 3]:
                    self._rasterise(int(face), boxes[face])
        colors = np.tile(background, (self.face.size, 1))
        owner = self.face.ravel()
        solid = np.flatnonzero(owner >= 0)
        colors[solid] = self._shade(owner[solid], solid)[:, :3]
        left = np.ones(len(colors))
        left[solid] = 0
        self._blend(colors, left)
        return colors, 1 - left

    def _boxes(self) -> np.ndarray:
        """Samples that each face may cover, [F, 4] as x0, x1, y0, y1; all of them where it crosses the near plane."""
        corners = self.points[self.mesh.faces]
        near = corners[..., 2] < NEAR
        flat = corners[..., :2] / np.where(near, 1, corners[..., 2])[..., None]
        low = np.where(near.any(1)[:, None], 0, flat.min(1) - 1.5)
        high = np.where(near.any(1)[:, None], max(self.rows, self.columns), flat.max(1) + 0.5)
        high = np.where(near.all(1)[:, None], -1, high)
        size = np.array([self.columns, self.rows])
        low, high = np.floor(np.clip(low, 0, size)), np.ceil(np.clip(high, 0, size))
        return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1).astype(np.int64)

    def _rasterise(self, face: int, box: np.ndarray) -> None:
        x0, x1, y0, y1 = box
        edges = self.setup.edges[face]
        x, y = np.arange(x0, x1) + 0.5, np.arange(y0, y1)[:, None] + 0.5
        inverse, inside = np.zeros((y1 - y0, x1 - x0)), np.ones((y1 - y0, x1 - x0), dtype=bool)
        for ex, ey, ez in edges:
            weight = ex * x + (ey * y + ez)
            mine = ex > 0 or (ex == 0 and ey > 0)  # a sample on an edge: of the face whose edge points right, or down
            inside &= (weight >= 0) if mine else (weight > 0)
            inverse += weight
        inverse = inverse * self.setup.scale[face]
        mode = self.modes[face]
        before = self.depth[y0:y1, x0:x1]
        bar = before.astype(np.float64) * (1 if mode == BLENDED else COPLANAR)
        inside &= (inverse < 1 / NEAR) & (inverse > bar)
        row, column = np.nonzero(inside)
        sample = (row + y0) * self.columns + column + x0
        if mode == CUTOUT and len(sample):
            kept = self._surface(np.full(len(sample), face), sample)[0][:, 3] >= VISIBLE
            row, column, sample = row[kept], column[kept], sample[kept]
        if mode == BLENDED:
            self.layers.append((sample, np.full(len(sample), face), inverse[row, column].astype(np.float32)))
        else:
            self.depth.ravel()[sample] = inverse[row, column]
            self.face.ravel()[sample] = face

    def _surface(self, faces: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Albedo and opacity [S, 4] of each face at each sample, and its weights [S, 3]."""
        mesh, edges = self.mesh, self.setup.edges[faces]
        place = np.stack([samples % self.columns + 0.5, samples // self.columns + 0.5, np.ones(len(samples))], axis=1)
        weights = (edges * place[:, None]).sum(axis=2)
        total = weights.sum(axis=1)
        weights = weights / total[:, None]
        rgba = (mesh.colors[faces] * weights[..., None]).sum(axis=1).astype(np.float64)
        for number, levels in enumerate(mesh.pyramids):
            here = np.flatnonzero(mesh.texture[faces] == number)
            uvs = (mesh.uvs[faces[here]] * weights[here, :, None]).sum(axis=1)
            # how far uv moves, in texels, from one sample to the next in x and in y
            slopes = (edges[here, :, :2, None] * (mesh.uvs[faces[here]] - uvs[:, None])[:, :, None]).sum(axis=1)
            slopes = slopes / total[here, None, None] * np.array([levels[0].shape[1], levels[0].shape[0]])
            area = (slopes**2).sum(axis=2).max(axis=1, initial=0)
            look = sample_trilinear(levels, uvs, 0.5 * np.log2(np.maximum(area, 1)))
            if mesh.cutouts[number]:
                look[:, 3] = look[:, 3] >= VISIBLE
            rgba[here] *= look
        return rgba, weights

    def _shade(self, faces: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Colour under the light and opacity, [S, 4]."""
        rgba, weights = self._surface(faces, samples)
        normals = (self.mesh.normals[faces] * weights[..., None]).sum(axis=1)
        normals = normals / np.sqrt(np.maximum((normals**2).sum(axis=1, keepdims=True), 1e-20))
        normals = np.where(self.setup.back[faces, None], -normals, normals)
        light = light_table()
        total = np.full(len(faces), light[0], dtype=np.float64)
        for x, y, z, strength in light[1:].reshape(-1, 4):
            total += strength * np.maximum(normals @ np.array([x, y, z]), 0)
        return np.concatenate([np.minimum(rgba[:, :3] * total[:, None], 1), rgba[:, 3:]], axis=1)

    def _blend(self, colors: np.ndarray, left: np.ndarray) -> None:
        """Translucent faces over `colors`, the farthest first; `left` is what still shows of the background."""
        if not self.layers:
            return
        sample, face, inverse = (np.concatenate(values) for values in zip(*self.layers, strict=True))
        order = np.lexsort((face, inverse, sample))
        sample, face = sample[order], face[order]
        shaded = self._shade(face, sample)
        first = np.searchsorted(sample, sample)  # where this sample's fragments begin
        rank = np.arange(len(sample)) - first
        for layer in range(int(rank.max(initial=-1)) + 1):
            here = np.flatnonzero((rank == layer) & (shaded[:, 3] >= FAINT))
            at, alpha = sample[here], shaded[here, 3:]
            colors[at] += alpha * (shaded[here, :3] - colors[at])
            left[at] *= 1 - alpha[:, 0]
