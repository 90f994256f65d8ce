"""What the builder makes of what an engine gives back; the engines here are a few lines."""

import logging
import sys
from pathlib import Path

import pytest

from gsmae.errors import InputError
from gsmae.files import read_json
from preprocessing.build import build
from preprocessing.building import ledgers, notes, upkeep
from preprocessing.building.records import MAX_TRIES
from preprocessing.building.rounds import _given
from preprocessing.building.survey import survey
from preprocessing.engines import ENGINES, OverLimit, Resources, SlurmOptions, WorkerDied
from preprocessing.engines.worker import caught

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "reliability"))
import stubs


@pytest.fixture
def built(tmp_path, monkeypatch):
    """built(spoil, engine=, ...): a build of four stubs whose engine gives spoil(job, resources), if anything."""

    def run(spoil, engine="ray", **more):
        def stub(work, jobs, resources, tick=None, **_):
            for job in jobs:
                yield job, spoil(job, resources) or caught(work, job)

        monkeypatch.setitem(ENGINES, engine, stub)
        stubs.collection(tmp_path / "meshes", 4, categories=1)
        return build(tmp_path / "meshes", tmp_path / "out", stubs.CONFIG, engine=engine, make=stubs.make, **more)

    return run


def broken(host: str) -> OSError:
    error = OSError(5, "Input/output error", "somewhere")
    error.host = host  # type: ignore[attr-defined]
    return error


def test_workers_elsewhere_are_given_paths_that_hold_there(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def stub(work, jobs, *_, **__):
        seen.extend([work.keywords["order"].out, *(item.path for (item,) in jobs)])
        return iter(())

    built(lambda *_: None)  # makes the meshes
    monkeypatch.setitem(ENGINES, "ray", stub)
    build("meshes", "new", stubs.CONFIG, engine="ray", make=stubs.make)
    assert len(seen) == 5 and all(path.is_absolute() for path in seen)


def test_what_one_node_cannot_write_others_are_given(built, caplog):
    bad = {"class0/00000", "class0/00002"}
    spoil = lambda job, _: broken("node7") if {job[0].uid} & bad and not bad.discard(job[0].uid) else None  # noqa: E731
    with caplog.at_level(logging.WARNING):
        assert built(spoil).done == 4
    assert "node7" in caplog.text


def test_a_folder_that_two_nodes_cannot_write_or_one_again_ends_the_build_by_name(built):
    hosts = iter("ab")
    with pytest.raises(InputError, match="on b: Input/output error"):
        built(lambda *_: broken(next(hosts)))
    with pytest.raises(InputError, match="on node7"):
        built(lambda job, _: broken("node7") if job[0].uid.endswith("3") else None)
    with pytest.raises(InputError, match="Input/output error"):
        built(lambda *_: broken("here"), engine="local")


def test_no_object_is_tried_more_than_three_times_whoever_dies_under_it(built, tmp_path):
    begun = []

    def dies(job, resources):
        if any(item.uid.endswith("1") for item in job):
            begun.extend([len(job)] * resources.tries)
            return WorkerDied(resources.tries, "exit code 11")
        return None

    built(dies, batch=2)
    assert begun == [2, 1, 1]
    assert read_json(tmp_path / "out" / "records" / "class0" / "00001.json")["attempts"] == MAX_TRIES
    begun.clear()
    built(dies, retry=True, anyway=True)
    assert begun == [1]


def test_an_object_that_failed_before_has_only_its_other_tries(built, tmp_path):
    timeout = lambda job, _: OverLimit("timeout", "timeout: too long") if job[0].uid.endswith("1") else None  # noqa: E731
    built(timeout)
    seen = []
    built(lambda job, resources: seen.append(resources.tries), retry=True)
    assert seen == [2]


def test_a_shard_of_slurm_is_counted_in_objects():
    assert [_given(Resources(slurm=SlurmOptions(shard=100)), size, 3).slurm.shard for size in (1, 64, 200)] == [
        100,
        1,
        1,
    ]


def test_a_builder_takes_over_before_it_removes_anything(built, tmp_path, monkeypatch):
    built(lambda *_: None)
    said = []
    for module, name in (("preprocessing.build", "sweep"), ("preprocessing.building.upkeep", "_orphans")):
        monkeypatch.setattr(
            f"{module}.{name}", lambda out, *_: said.append(notes.announced(out).get("token", "")) or []
        )
    notes.announce(tmp_path / "out", "old")
    built(lambda *_: None)
    assert len(said) == 1 and said[0] not in ("", "old")
    notes.announce(tmp_path / "out", "old")
    upkeep.gc(tmp_path / "out")
    assert said[1:] == [""]


def test_status_does_not_list_workers_whose_object_is_done(built, tmp_path):
    built(lambda *_: None)
    notes.announce(tmp_path / "out", "token")
    end = read_json(tmp_path / "out" / "records" / "class0" / "00001.json")["run"]["finished"]
    for number, since in ((1, end - 1), (2, end + 100)):
        told = f'{{"uid": "class0/0000{number}", "stage": "write", "since": {since}}}'
        (tmp_path / "out" / "at_work" / f"elsewhere-{number}-1.json").write_text(told)
    assert [uid for uid, *_ in survey(tmp_path / "out").at_work] == ["class0/00002"]


def test_a_follower_opens_only_ledgers_that_have_grown(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / "ledgers").mkdir(exist_ok=True)
        (tmp_path / "ledgers" / f"{name}.jsonl").write_text('{"uid": "x"}\n')
    follower, opened, before = ledgers.Follower(tmp_path), [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self.name) or before(self, *a, **k))
    with before(tmp_path / "ledgers" / "b.jsonl", "a") as file:
        file.write('{"uid": "y"}\n')
    assert follower.look() == [{"uid": "y"}] and opened == ["b.jsonl"]
