"""Where windows of normalised splats come from: all features in memory, or shards normalised as they are read."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gsmae.features import FeatureSpec, Normalization, normalize
from gsmae.gaussians import WIDTH, columns
from gsmae.importance import log_weights

from . import draws
from .datasets import SplatDataset, to_gaussians

MEANS, SCALES = (slice(columns([name])[0], columns([name])[-1] + 1) for name in ("means", "scales"))
RAW = 14  # leading columns of a shard that features are made of; the rest is SH above degree 0


class Store(Protocol):
    """Normalised features of the objects of a dataset."""

    device: torch.device

    def windows(self, objects: np.ndarray, starts: np.ndarray, count: int) -> Tensor:
        """Rows start, start + 1, ... of each object, wrapping at its end: [B, count, 14]."""
        ...

    def drawn(self, objects: np.ndarray, seeds: np.ndarray, count: int) -> Tensor:
        """Rows of each object, those that carry more of its look more often (`gsmae.importance`): [B, count, 14]."""
        ...

    def normalization(self, objects: np.ndarray) -> Normalization:
        """The constants of each object, with a leading B."""
        ...

    def surface(self, objects: np.ndarray, starts: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
        """Surface points in the normalised frame [B, count, 3] and global parts [B, count], wrapping likewise."""
        ...


class ResidentStore:
    """All features (56 bytes a Gaussian) and surface points computed once and kept on a device.

    A window is then one copy per object on the CPU and one gather for the batch on a GPU.
    """

    def __init__(self, dataset: SplatDataset, spec: FeatureSpec, *, surface: bool, device: torch.device):
        self.device = device
        self.firsts = np.concatenate([[0], np.cumsum(dataset.counts)]).astype(np.int64)
        self.lengths = dataset.counts.astype(np.int64)
        self.features = torch.empty(int(self.firsts[-1]), WIDTH, device=device)
        self.weights = np.empty(int(self.firsts[-1]) if spec.draw == "importance" else 0, dtype=np.float32)
        kept = []
        for i in range(len(dataset)):
            gaussians = to_gaussians(dataset.rows(i), 0)
            points, constants = normalize(gaussians, spec)
            self.features[self.firsts[i] : self.firsts[i + 1]] = points.to(device)
            if len(self.weights):
                self.weights[self.firsts[i] : self.firsts[i + 1]] = log_weights(gaussians).numpy()
            kept.append(constants)
        self.constants = stacked(kept).to(device)
        self.fields = spec.normalize
        self.point_lengths = dataset.point_counts.astype(np.int64)
        self.point_firsts = np.concatenate([[0], np.cumsum(self.point_lengths)]).astype(np.int64)
        if surface:
            total = int(self.point_firsts[-1])
            self.queries = torch.empty(total, 3, device=device)
            self.parts = torch.empty(total, dtype=torch.int64, device=device)
            for i in range(len(dataset)):
                found = dataset.surface(i)
                if found is not None:
                    place = slice(int(self.point_firsts[i]), int(self.point_firsts[i + 1]))
                    self.queries[place] = ((found.points - kept[i].center) / kept[i].radius).to(device)
                    self.parts[place] = found.parts.to(device)

    def windows(self, objects: np.ndarray, starts: np.ndarray, count: int) -> Tensor:
        return _gather(self.features, self.firsts[objects], self.lengths[objects], starts, count)

    def drawn(self, objects: np.ndarray, seeds: np.ndarray, count: int) -> Tensor:
        index = np.empty((len(objects), count), dtype=np.int64)
        for k, (i, seed) in enumerate(zip(objects.tolist(), seeds.tolist(), strict=True)):
            first, last = self.firsts[i], self.firsts[i + 1]
            index[k] = first + draws.weighted(seed, self.weights[first:last], count)
        return self.features[sent(torch.from_numpy(index), self.device)]

    def normalization(self, objects: np.ndarray) -> Normalization:
        return unstacked(self.constants[sent(torch.from_numpy(objects), self.device)], self.fields)

    def surface(self, objects: np.ndarray, starts: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
        place = (self.point_firsts[objects], self.point_lengths[objects], starts, count)
        return _gather(self.queries, *place), _gather(self.parts, *place)


class FileStore:
    """Windows read from the shards batch by batch; only eight constants an object are kept.

    For sets larger than memory. An object is read whole the first time, for its constants, then window by window.
    """

    def __init__(self, dataset: SplatDataset, spec: FeatureSpec):
        self.device = torch.device("cpu")
        self.dataset, self.spec = dataset, spec
        self.constants = torch.zeros(len(dataset), 8)
        self.known = np.zeros(len(dataset), dtype=bool)  # set after the constants, which other threads then read

    def windows(self, objects: np.ndarray, starts: np.ndarray, count: int) -> Tensor:
        rows = np.empty((len(objects), count, RAW), dtype=np.float32)
        for k, (i, start) in enumerate(zip(objects.tolist(), starts.tolist(), strict=True)):
            self._fill(rows[k], i, start)
        gaussians = to_gaussians(rows.reshape(-1, RAW), 0)
        points, _ = normalize(gaussians, self.spec)  # right but for means and scales, which need the whole object
        points, size = points.unflatten(0, (len(objects), count)), (len(objects), count)
        n = unstacked(self._stacked(objects)[:, None], self.spec.normalize)
        center, radius = n.center, n.radius[..., None]
        points[..., MEANS] = (gaussians.means.unflatten(0, size) - center) / radius
        scales = gaussians.scales.unflatten(0, size) / radius
        points[..., SCALES] = (scales - n.scale_center) / n.scale_radius[..., None]
        return points

    def drawn(self, objects: np.ndarray, seeds: np.ndarray, count: int) -> Tensor:
        chosen = []
        for i, seed in zip(objects.tolist(), seeds.tolist(), strict=True):  # every row is read: any may be drawn
            gaussians = to_gaussians(self.dataset.rows(i), 0)
            points, constants = normalize(gaussians, self.spec)
            self.constants[i] = stacked([constants])[0]
            self.known[i] = True
            chosen.append(points[torch.from_numpy(draws.weighted(seed, log_weights(gaussians).numpy(), count))])
        return torch.stack(chosen)

    def normalization(self, objects: np.ndarray) -> Normalization:
        return unstacked(self._stacked(objects), self.spec.normalize)

    def surface(self, objects: np.ndarray, starts: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
        n = self.normalization(objects)
        queries, parts = [], []
        for k, (i, start) in enumerate(zip(objects.tolist(), starts.tolist(), strict=True)):
            found = self.dataset.surface(i)
            assert found is not None, "batches() refuses objects without surface points"
            index = (start + torch.arange(count)) % len(found.points)
            queries.append((found.points[index] - n.center[k]) / n.radius[k])
            parts.append(found.parts[index])
        return torch.stack(queries), torch.stack(parts)

    def _stacked(self, objects: np.ndarray) -> Tensor:
        for i in objects.tolist():
            if not self.known[i]:
                _, constants = normalize(to_gaussians(self.dataset.rows(i), 0), self.spec)
                self.constants[i] = stacked([constants])[0]
                self.known[i] = True
        return self.constants[torch.from_numpy(objects)]

    def _fill(self, out: np.ndarray, i: int, start: int) -> None:
        """Consecutive rows of object i from `start`, wrapping at its end."""
        length, done = int(self.dataset.counts[i]), 0
        while done < len(out):
            step = min(len(out) - done, length - start)
            out[done : done + step] = self.dataset.rows(i, start, start + step)[:, :RAW]
            done, start = done + step, 0


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; a GPU copies it when it comes to it, and is not waited for."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def stacked(constants: list[Normalization]) -> Tensor:
    """Normalisation constants of B splats as rows: center, radius, scale center, scale radius: [B, 8]."""
    rows = [torch.cat([n.center, n.radius[None], n.scale_center, n.scale_radius[None]]) for n in constants]
    return torch.stack(rows)


def unstacked(rows: Tensor, fields: tuple[str, ...]) -> Normalization:
    """The inverse of `stacked`: one Normalization whose tensors have a leading B."""
    return Normalization(rows[..., :3], rows[..., 3], rows[..., 4:7], rows[..., 7], fields)


def _gather(flat: Tensor, firsts: np.ndarray, lengths: np.ndarray, starts: np.ndarray, count: int) -> Tensor:
    """Wrapping windows of consecutive rows: [B, count, ...]."""
    if flat.is_cuda:
        place = sent(torch.from_numpy(np.stack([firsts, lengths, starts])), flat.device)[:, :, None]
        index = place[0] + (place[2] + torch.arange(count, device=flat.device)) % place[1]
        return flat[index]
    out = torch.empty(len(firsts), count, *flat.shape[1:], dtype=flat.dtype)
    source, target = flat.numpy(), out.numpy()
    for k, (first, length, start) in enumerate(zip(firsts.tolist(), lengths.tolist(), starts.tolist(), strict=True)):
        done = 0
        while done < count:
            step = min(count - done, length - start)
            target[k, done : done + step] = source[first + start : first + start + step]
            done, start = done + step, 0
    return out
