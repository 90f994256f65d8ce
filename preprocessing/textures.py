"""Texture look-ups: a pyramid of halved pictures, and bilinear samples of one level (the renderer's own definition)."""

from __future__ import annotations

import numpy as np
from PIL import Image


def pyramid(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """The picture and its halves down to one pixel, colours multiplied by their alpha.

    Multiplied, so that the colour of invisible texels never bleeds into visible ones.

    image    [h, w, 4] uint8
    returns  arrays [h, w, 4] uint8, the finest first
    """
    level = Image.fromarray(image).convert("RGBa")
    levels = [np.asarray(level)]
    while max(level.size) > 1:
        level = level.resize((max(level.width // 2, 1), max(level.height // 2, 1)), Image.Resampling.BOX)
        levels.append(np.asarray(level))
    return tuple(levels)


def is_cutout(image: np.ndarray) -> bool:
    """Whether a texture is transparent here and opaque there but hardly anywhere in between: leaves, grilles."""
    alpha = image[..., 3]
    between = np.count_nonzero((alpha > 25) & (alpha < 230))
    return bool((alpha <= 25).any() and between <= 0.1 * alpha.size)


def sample(level: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """Bilinear, repeating samples of one level; v points up, texel centres lie at (i + 0.5) / w.

    level    [h, w, 4] uint8
    uvs      [S, 2] float
    returns  [S, 4] float64 in 0..255, still multiplied by alpha
    """
    height, width = level.shape[:2]
    x = (uvs[:, 0] - np.floor(uvs[:, 0])) * width - 0.5
    y = (1 - (uvs[:, 1] - np.floor(uvs[:, 1]))) * height - 0.5
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, down = (x - column)[:, None], (y - row)[:, None]
    left, below = column % width, row % height
    beside, under = (column + 1) % width, (row + 1) % height
    top = level[below, left] * (1 - right) + level[below, beside] * right
    bottom = level[under, left] * (1 - right) + level[under, beside] * right
    return top * (1 - down) + bottom * down


def sample_trilinear(levels: tuple[np.ndarray, ...], uvs: np.ndarray, lod: np.ndarray) -> np.ndarray:
    """Samples between the levels nearest to `lod` [S] (0 = the finest); RGBA [S, 4] in 0..1, alpha no longer in it."""
    lod = np.clip(lod, 0, len(levels) - 1)
    lower = np.minimum(np.floor(lod).astype(np.int64), len(levels) - 1)
    share = (lod - lower)[:, None]
    out = np.zeros((len(uvs), 4))
    for number in np.unique(lower):
        here = lower == number
        fine = sample(levels[number], uvs[here])
        coarse = sample(levels[min(number + 1, len(levels) - 1)], uvs[here])
        out[here] = fine * (1 - share[here]) + coarse * share[here]
    alpha = out[:, 3:] / 255
    return np.concatenate([np.clip(out[:, :3] / 255 / np.maximum(alpha, 1e-6), 0, 1), alpha], axis=1)
