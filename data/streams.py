"""Batches of normalised splats in an order that can be resumed at any point."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch

from gsmae.batch import Batch
from gsmae.errors import InputError
from gsmae.features import FeatureSpec
from gsmae.gaussians import FIELDS

from . import draws
from .augment import DRAWS, Augmentation, move_points, move_positions, moves_of
from .datasets import SplatDataset
from .stores import FileStore, ResidentStore, Store, sent

log = logging.getLogger(__name__)


def batches(
    dataset: SplatDataset,
    spec: FeatureSpec,
    *,
    batch_size: int,
    gaussians: int,
    seed: int = 0,
    shuffle: bool = True,
    augment: Augmentation | None = None,
    queries: int | Literal["all"] | None = None,
    drop_last: bool = False,
    resident: bool = True,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pad: bool = False,
    device: str | torch.device = "cpu",
    pin: bool = False,
) -> BatchStream:
    """Serve a dataset as batches of equal length.

    gaussians  rows of each object, taken as a window of consecutive rows that wraps at the end. Rows are packed in
               random order, so a window is a uniform sample without replacement. An object with fewer rows gives all
               of them and begins again (`stream.short` counts such objects). Where `spec.draw` is "importance", rows
               are drawn one by one instead, without replacement
    shuffle    True: a new order and new windows every epoch, for training. False: objects by uid, windows from row 0,
               for evaluation
    augment    random moves of points and queries, see `data.augment`
    queries    surface points of each object with their parts: a window of so many (consecutive in a random order, too),
               or "all": every point once, shorter objects filled up with points of part -1. None: no queries
    drop_last  leave out a last batch that is not full
    resident   keep all features in memory, on `device`; False reads windows from the shards (CPU only)
    workers    threads that prepare batches ahead; the batches are the same
    pin        hand batches of the CPU over in pinned memory, from which a GPU copies without being waited for
    rank, world, pad   this rank's share: disjoint. Shuffled ranks have equal length, for which up to world - 1 objects
               are left out of an epoch or, with `pad`, some are repeated; unshuffled ranks cover all objects once

    Raises InputError when the features are more than the objects have (`dataset.info.fields`), when queries are asked
    of objects that have no points or no part names, or no batch is left.
    """
    if batch_size < 1 or gaussians < 1 or workers < 0:
        raise ValueError(f"batch_size {batch_size}, gaussians {gaussians}: at least 1; workers {workers}: at least 0")
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank}, expected 0 to {world - 1}")
    if isinstance(queries, str) and queries != "all" or isinstance(queries, int) and queries < 1:
        raise ValueError(f"queries is {queries!r}, expected a positive number, 'all' or None")
    has_fields(dataset, spec)
    if queries is not None:
        _has_parts(dataset)
    place = torch.device(device)
    if not resident and place.type != "cpu":
        raise ValueError("windows are read from the shards on the CPU; use resident=True or move the batches")
    if resident:
        store: Store = ResidentStore(dataset, spec, surface=queries is not None, device=place)
    else:
        store = FileStore(dataset, spec)
    stream = BatchStream(
        dataset, store, batch_size, gaussians, seed, shuffle, augment, queries, drop_last, workers, rank, world, pad,
        spec.draw == "importance", pin,
    )  # fmt: skip
    if not len(stream):
        cause = f"{len(dataset)} objects leave no batch of {batch_size} for {world} ranks"
        raise InputError(dataset.path, cause, "use a smaller batch size, or drop_last=False")
    if stream.short:
        log.warning(
            "%d of %d objects have fewer than %d Gaussians: theirs repeat", stream.short, len(dataset), gaussians
        )
    return stream


class BatchStream:
    """Epochs of batches; made by `batches`.

    The order of an epoch is a function of (seed, epoch), the window and moves of an object of (seed, epoch, uid).
    Nothing else is state: `epoch(e, skip=k)` yields exactly what an unbroken run would from batch k on.

    short   objects with fewer Gaussians than asked for
    """

    def __init__(
        self,
        dataset: SplatDataset,
        store: Store,
        batch_size: int,
        gaussians: int,
        seed: int,
        shuffle: bool,
        augment: Augmentation | None,
        queries: int | str | None,
        drop_last: bool,
        workers: int,
        rank: int,
        world: int,
        pad: bool,
        weighted: bool = False,
        pin: bool = False,
    ):
        self.dataset, self.store = dataset, store
        self.batch_size, self.gaussians, self.queries = batch_size, gaussians, queries
        self.seed, self.shuffle, self.augment = seed, shuffle, augment
        self.drop_last, self.workers = drop_last, workers
        self.rank, self.world, self.pad = rank, world, pad
        self.weighted, self.pin = weighted, pin
        self.short = int((dataset.counts < gaussians).sum())
        self._uids = np.array([draws.key(uid) for uid in dataset.uids], dtype=np.uint64)
        self._part_mask = torch.zeros(len(dataset.class_names), max(dataset.n_parts, 1), dtype=torch.bool)
        for label, name in enumerate(dataset.class_names):
            first = dataset.part_offsets.get(name, 0)
            self._part_mask[label, first : first + len(dataset.part_names.get(name, ()))] = True

    def __len__(self) -> int:
        """Batches in an epoch of this rank."""
        n = len(self.dataset)
        if self.pad:
            n = -(-n // self.world)
        else:
            n = n // self.world if self.shuffle else len(range(self.rank, n, self.world))
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Objects of an epoch of this rank, in order: [n] int64, none twice unless padded."""
        n = len(self.dataset)
        everyone = draws.permutation(n, draws.key(self.seed, "order", epoch)) if self.shuffle else np.arange(n)
        if self.pad:
            everyone = everyone[np.arange(-(-n // self.world) * self.world) % n]
        elif self.shuffle:
            everyone = everyone[: n // self.world * self.world]
        return everyone[self.rank :: self.world]

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `skip` on; the same for the same arguments."""
        order = self.order(epoch)
        chunks = [order[k * self.batch_size : (k + 1) * self.batch_size] for k in range(skip, len(self))]
        if not self.workers:
            for chunk in chunks:
                yield self._batch(chunk, epoch)
            return
        # in a forked process torch makes its own threads anew, and an error where two threads come to it at once
        torch.set_num_threads(torch.get_num_threads())
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            ahead: deque = deque()
            try:
                for chunk in chunks:
                    ahead.append(pool.submit(self._batch, chunk, epoch))
                    if len(ahead) > 2 * self.workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def __iter__(self) -> Iterator[Batch]:
        """Epoch 0."""
        return self.epoch(0)

    def _batch(self, objects: np.ndarray, epoch: int) -> Batch:
        dataset, store = self.dataset, self.store
        if self.weighted:
            moment = ("drawn", self.seed, epoch) if self.shuffle else ("drawn",)  # in evaluation always the same
            points = store.drawn(objects, self._uids[objects] ^ np.uint64(draws.key(*moment)), self.gaussians)
        else:
            points = store.windows(objects, self._starts(objects, dataset.counts, "window", epoch), self.gaussians)
        constants = store.normalization(objects)
        queries = parts = mask = None
        labels = torch.from_numpy(dataset.labels[objects])
        if self.queries is not None:
            lengths = dataset.point_counts[objects]
            count = int(lengths.max()) if self.queries == "all" else int(self.queries)
            first = self._starts(objects, dataset.point_counts, "queries", epoch)
            queries, parts = store.surface(objects, first, count)
            if self.queries == "all":
                beyond = torch.arange(count)[None] >= torch.from_numpy(lengths)[:, None]
                parts = parts.masked_fill(sent(beyond, parts.device), -1)
            mask = sent(self._part_mask[labels], store.device)
        if self.augment is not None and not self.augment.idle:
            keys = self._uids[objects] ^ np.uint64(draws.key(self.seed, "augment", epoch))
            moves = moves_of(self.augment, sent(torch.from_numpy(draws.uniforms(keys, DRAWS)), store.device))
            points = move_points(points, moves, constants)
            queries = None if queries is None else move_positions(queries, moves)
        uids = tuple(dataset.uids[i] for i in objects.tolist())
        batch = Batch(points, sent(labels, store.device), uids, queries, parts, mask, constants)
        return batch.pinned() if self.pin else batch

    def _starts(self, objects: np.ndarray, counts: np.ndarray, name: str, epoch: int) -> np.ndarray:
        """First row of each object's window: uniform over its rows in training, 0 in evaluation."""
        if not self.shuffle or name == "queries" and self.queries == "all":
            return np.zeros(len(objects), dtype=np.int64)
        keys = self._uids[objects] ^ np.uint64(draws.key(self.seed, name, epoch))
        lengths = counts[objects].astype(np.int64)
        return np.minimum((draws.uniforms(keys, 1)[:, 0] * lengths).astype(np.int64), lengths - 1)


def has_fields(dataset: SplatDataset, spec: FeatureSpec) -> None:
    """Refuse features that are neutral constants in a pack of points."""
    used = {*spec.embed, *spec.group}
    if dataset.info.fields != tuple(FIELDS) and not used.issubset(dataset.info.fields):
        here = ", ".join(dataset.info.fields)
        cause = f"its objects are points with {here}; the features embed {', '.join(spec.embed)}"
        cause += f" and group by {', '.join(spec.group)}"
        flags = [f"--spec.{name} {' '.join(dataset.info.fields)}" for name in ("embed", "group")
                 if not set(getattr(spec, name)).issubset(dataset.info.fields)]  # fmt: skip
        raise InputError(dataset.path, cause, f"use an encoder of {here}: {' '.join(flags)}")


def _has_parts(dataset: SplatDataset) -> None:
    """Refuse queries that could have no answer."""
    without = [c for c in sorted(set(dataset.categories)) if c not in dataset.part_names]
    if without:
        cause = f"the classes {', '.join(without)} have no part names"
        cure = "choose labelled classes with classes=[...], or build with a parts file"
        raise InputError(dataset.path, cause, cure)
    bare = np.flatnonzero(dataset.point_counts == 0)
    if len(bare):
        cause = f"{len(bare)} objects have no surface points, the first is '{dataset.uids[bare[0]]}'"
        raise InputError(dataset.path, cause, "build them again with surface points, and pack again")
