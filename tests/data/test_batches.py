"""BatchStream: normalised windows, exact resume, no object twice, whatever the workers, ranks and storage."""

from __future__ import annotations

import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from data.augment import AUGMENTATIONS, Augmentation
from data.datasets import SplatDataset, to_gaussians
from data.shards import pack
from data.streams import batches
from gsmae.batch import Batch
from gsmae.errors import InputError
from gsmae.features import FeatureSpec, normalize

SPEC = FeatureSpec()
WIDE = Augmentation(turn="any", stretch=(0.6, 1.5), shift=0.2, mirror=0.5)


def same(a: Batch, b: Batch, tolerance: float = 0.0) -> bool:
    pairs = ((getattr(a, f), getattr(b, f)) for f in ("points", "labels", "queries", "parts", "part_mask"))
    close = (x is y is None or x is not None and y is not None and torch.allclose(x, y, 0, tolerance) for x, y in pairs)
    return a.uids == b.uids and all(close)


def all_same(a, b, tolerance: float = 0.0) -> bool:
    return all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))


@pytest.fixture
def train(packed) -> SplatDataset:
    return SplatDataset(packed, "train")


def test_an_evaluation_stream_gives_every_object_once_with_its_first_rows_normalised_over_all(packed):
    dataset = SplatDataset(packed)
    stream = batches(dataset, SPEC, batch_size=5, gaussians=20, shuffle=False)
    got = list(stream)
    assert [uid for b in got for uid in b.uids] == list(dataset.uids) and len(got) == len(stream) == 5
    points = torch.cat([b.points for b in got])
    for i in range(len(dataset)):
        whole, _ = normalize(to_gaussians(dataset.rows(i)), SPEC)
        assert torch.equal(points[i], whole[:20])
    assert torch.cat([b.labels for b in got]).tolist() == dataset.labels.tolist()
    assert all_same(got, batches(dataset, SPEC, batch_size=5, gaussians=20, shuffle=False, seed=7))


def test_training_sees_every_object_once_an_epoch_in_another_order_each(train):
    stream = batches(train, SPEC, batch_size=5, gaussians=20)
    orders = [[uid for b in stream.epoch(e) for uid in b.uids] for e in range(3)]
    assert all(sorted(order) == list(train.uids) for order in orders) and len(set(map(tuple, orders))) == 3
    assert [len(b) for b in stream] == [5, 5, 5, 1]
    dropped = batches(train, SPEC, batch_size=5, gaussians=20, drop_last=True)
    assert [len(b) for b in dropped] == [5, 5, 5] and len(dropped) == 3


@pytest.mark.parametrize("resident", [True, False])
def test_a_stream_resumes_exactly_at_any_batch_of_any_epoch(train, resident):
    def fresh():
        return batches(
            train, SPEC, batch_size=4, gaussians=25, seed=3, augment=WIDE, queries=8, resident=resident
        )  # fmt: skip

    unbroken = [list(fresh().epoch(e)) for e in range(2)]
    for epoch, skip in itertools.product(range(2), range(5)):
        resumed = list(fresh().epoch(epoch, skip=skip))
        assert len(resumed) == 4 - skip and all_same(unbroken[epoch][skip:], resumed)
    assert not same(unbroken[0][0], unbroken[1][0])


def test_workers_change_nothing_and_can_be_left_in_the_middle(train):
    for resident in (True, False):
        options = {"batch_size": 3, "gaussians": 25, "augment": WIDE, "queries": 8, "resident": resident}
        plain, ahead = batches(train, SPEC, **options), batches(train, SPEC, workers=2, **options)
        assert all_same(plain.epoch(1), ahead.epoch(1)) and all_same(plain.epoch(0, 2), ahead.epoch(0, 2))
        next(ahead.epoch(0))


def test_windows_and_moves_of_an_object_do_not_depend_on_the_batch_it_is_in(train):
    few = batches(train, SPEC, batch_size=3, gaussians=20, augment=WIDE)
    many = batches(train, SPEC, batch_size=16, gaussians=20, augment=WIDE)
    a = {uid: p for b in few.epoch(4) for uid, p in zip(b.uids, b.points, strict=True)}
    b = {uid: p for b in many.epoch(4) for uid, p in zip(b.uids, b.points, strict=True)}
    assert all(torch.allclose(a[uid], b[uid], 0, 1e-6) for uid in train.uids)


def test_files_and_memory_give_the_same_batches(packed):
    dataset = SplatDataset(packed)
    for spec in (SPEC, FeatureSpec(normalize=("means",))):
        options = {"batch_size": 7, "gaussians": 50, "queries": 9, "augment": WIDE}
        resident, mapped = (batches(dataset, spec, resident=r, **options) for r in (True, False))
        for epoch in (0, 1):
            assert all_same(resident.epoch(epoch), mapped.epoch(epoch), 2e-6)


def test_a_quantised_pack_gives_nearly_the_batches_of_a_float_one(make_build, tmp_path):
    build = make_build()
    for i in range(4):
        build.add(f"chair/{i}", count=300)
    pack(build.path, tmp_path / "f")
    pack(build.path, tmp_path / "u", quantize="u16")
    f, u = (batches(SplatDataset(tmp_path / d), SPEC, batch_size=4, gaussians=100) for d in "fu")
    a, b = next(iter(f)).points, next(iter(u)).points
    sign = (a[..., 7:11] * b[..., 7:11]).sum(-1, keepdim=True).sign()  # q and -q are one rotation, w near 0 is either
    assert (sign < 0).sum() < 5
    b = torch.cat([b[..., :7], b[..., 7:11] * sign, b[..., 11:]], dim=2)
    assert 0 < (a - b).abs().max() < 2e-4


def test_a_window_is_consecutive_rows_that_wrap_and_short_objects_repeat_and_are_counted(train, caplog):
    with caplog.at_level(logging.WARNING):
        stream = batches(train, SPEC, batch_size=16, gaussians=50)
    assert stream.short == int((train.counts < 50).sum()) > 0 and "fewer than 50" in caplog.text
    batch = next(stream.epoch(2))
    for uid, points in zip(batch.uids, batch.points, strict=True):
        i = train.uids.index(uid)
        whole, _ = normalize(to_gaussians(train.rows(i)), SPEC)
        (start,) = (whole == points[0]).all(dim=1).nonzero()[0].tolist()
        n = len(whole)
        assert torch.equal(points, whole[(start + torch.arange(50)) % n])
        uses = Counter((start + k) % n for k in range(50))
        assert max(uses.values()) - min(uses.get(k, 0) for k in range(n)) <= 1


def test_every_row_of_an_object_is_drawn_equally_often(make_build, tmp_path):
    build = make_build().add("chair/1", count=64)
    pack(build.path, tmp_path / "p")
    stream = batches(SplatDataset(tmp_path / "p"), SPEC, batch_size=1, gaussians=16, seed=1)
    whole, _ = normalize(to_gaussians(SplatDataset(tmp_path / "p").rows(0)), SPEC)
    place = {tuple(row): k for k, row in enumerate(whole.tolist())}
    starts = np.zeros(64)
    for epoch in range(1280):
        rows = [place[tuple(row)] for row in next(stream.epoch(epoch)).points[0].tolist()]
        assert len(set(rows)) == 16  # without replacement
        starts[rows[0]] += 1
    assert stats.chisquare(starts).pvalue > 1e-3  # uniform starts that wrap: each row in 16 of 64 windows


def test_a_window_is_a_uniform_subset_over_packing_seeds(make_build, tmp_path):
    """Any two rows of the original file meet in a window as often as in a random subset."""
    from data import draws

    pairs = np.zeros((8, 8))
    for seed in range(3000):
        order = draws.permutation(8, draws.key(seed, "rows", "chair/1"))
        window = order[(int(draws.uniforms(seed, 1)[0] * 8) + np.arange(3)) % 8]
        pairs[np.ix_(window, window)] += 1
    assert stats.chisquare(pairs[np.triu_indices(8, 1)]).pvalue > 1e-3
    assert stats.chisquare(np.diag(pairs)).pvalue > 1e-3


def test_ranks_share_an_epoch_without_overlap(packed):
    dataset = SplatDataset(packed)  # 24 objects

    def shares(world, **options):
        streams = [
            batches(dataset, SPEC, batch_size=4, gaussians=10, rank=r, world=world, **options) for r in range(world)
        ]
        return [[uid for b in s.epoch(1) for uid in b.uids] for s in streams], [len(s) for s in streams]

    uids, lengths = shares(5)
    assert [len(u) for u in uids] == [4] * 5 and lengths == [1] * 5
    assert len(set(itertools.chain(*uids))) == 20
    padded, lengths = shares(5, pad=True)
    assert [len(u) for u in padded] == [5] * 5 and lengths == [2] * 5
    assert set(itertools.chain(*padded)) == set(dataset.uids)
    tested, lengths = shares(5, shuffle=False)
    assert sorted(itertools.chain(*tested)) == list(dataset.uids) and lengths == [2, 2, 2, 2, 1]
    one = [uid for b in batches(dataset, SPEC, batch_size=4, gaussians=10).epoch(1) for uid in b.uids]
    assert [u for group in zip(*uids, strict=True) for u in group] == one[:20]


def test_all_labelled_points_are_asked_once_in_the_frame_of_the_means(packed):
    dataset = SplatDataset(packed)
    for resident in (True, False):
        stream = batches(dataset, SPEC, batch_size=7, gaussians=10, shuffle=False, queries="all", resident=resident)
        for batch in stream:
            assert batch.queries is not None and batch.parts is not None and batch.part_mask is not None
            for uid, queries, parts, mask in zip(batch.uids, batch.queries, batch.parts, batch.part_mask, strict=True):
                i = dataset.uids.index(uid)
                surface = dataset.surface(i)
                assert surface is not None
                _, n = normalize(to_gaussians(dataset.rows(i)), SPEC)
                count = len(surface.points)
                assert torch.allclose(queries[:count], (surface.points - n.center) / n.radius, 0, 1e-6)
                assert torch.equal(parts[:count], surface.parts) and (parts[count:] == -1).all()
                assert torch.isfinite(queries).all()
                first = dataset.part_offsets[uid.split("/")[0]]
                own = len(dataset.part_names[uid.split("/")[0]])
                assert mask.nonzero()[:, 0].tolist() == list(range(first, first + own))


def test_the_augmentation_none_is_no_augmentation(train):
    none, still = (batches(train, SPEC, batch_size=16, gaussians=20, augment=a) for a in (AUGMENTATIONS["none"], None))
    assert all_same(none.epoch(1), still.epoch(1))
    assert [name for name, a in AUGMENTATIONS.items() if a.idle] == ["none"]


def test_queries_move_with_the_splat(packed):
    dataset = SplatDataset(packed, classes=["chair"])
    still, moving = (
        batches(dataset, SPEC, batch_size=12, gaussians=30, queries=10, augment=a, seed=2) for a in (None, WIDE)
    )
    a, b = next(still.epoch(1)), next(moving.epoch(1))
    assert a.queries is not None and b.queries is not None and torch.equal(a.parts, b.parts)  # type: ignore[arg-type]
    means = torch.cat([a.points[..., :3], torch.ones(12, 30, 1)], dim=2)
    affine = torch.linalg.lstsq(means, b.points[..., :3]).solution  # fitted to the means, true for the queries
    expected = torch.cat([a.queries, torch.ones(12, 10, 1)], dim=2) @ affine
    assert (b.queries - expected).abs().max() < 1e-4 and (a.queries - b.queries).abs().max() > 0.1


def test_impossible_requests_are_refused_in_words(packed, make_build, tmp_path):
    dataset = SplatDataset(packed)
    for wrong in ({"batch_size": 0}, {"gaussians": 0}, {"workers": -1}, {"rank": 2}, {"queries": 0}, {"queries": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            batches(dataset, SPEC, **{"batch_size": 2, "gaussians": 3, **wrong})
    with pytest.raises(InputError, match="24 objects leave no batch of 25"):
        batches(dataset, SPEC, batch_size=25, gaussians=3, drop_last=True)
    build = make_build().add("lamp/1").add("chair/1").add("chair/2")
    (build.path / "points" / "chair" / "2.npz").unlink()
    pack(build.path, tmp_path / "p")
    with pytest.raises(InputError, match="the classes lamp have no part names"):
        batches(SplatDataset(tmp_path / "p"), SPEC, batch_size=1, gaussians=3, queries=4)
    with pytest.raises(InputError, match="1 objects have no surface points, the first is 'chair/2'"):
        batches(SplatDataset(tmp_path / "p", classes=["chair"]), SPEC, batch_size=1, gaussians=3, queries=4)


def test_objects_of_different_degree_are_one_batch(make_build, tmp_path):
    build = make_build()
    for degree in (0, 1, 3):
        build.add(f"chair/{degree}", degree=degree)
    pack(build.path, tmp_path / "p", val_fraction=0, objects_per_shard=2)
    dataset = SplatDataset(tmp_path / "p")
    for resident in (True, False):
        batch = next(iter(batches(dataset, SPEC, batch_size=3, gaussians=40, shuffle=False, resident=resident)))
        for i in range(3):
            assert torch.allclose(batch.points[i], normalize(dataset[i].gaussians, SPEC)[0], 0, 1e-6)


@pytest.mark.gpu
def test_batches_made_on_a_gpu_are_those_made_on_the_cpu(packed):
    dataset = SplatDataset(packed)
    options = {"batch_size": 7, "gaussians": 50, "queries": 9, "augment": WIDE}
    here, there = batches(dataset, SPEC, **options), batches(dataset, SPEC, device="cuda", **options)
    assert all_same(here.epoch(1), (b.to("cpu") for b in there.epoch(1)), 1e-5)


def test_the_public_names_are_what_they_are_called():
    """A module of the name of a function would take its place in the package."""
    from data import SplatDataset as Dataset
    from data import batches as function

    assert callable(function) and Dataset is SplatDataset
