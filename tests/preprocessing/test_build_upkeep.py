"""Around a build: what failed is tried again, what kills left is removed, and another shell sees how far it is."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gsmae.cli import main
from gsmae.errors import InputError
from gsmae.files import read_json, write_json
from preprocessing.build import build
from preprocessing.building import ledgers, notes, upkeep
from preprocessing.building.jobs import build_object
from preprocessing.building.plans import plan
from preprocessing.building.records import Order, commit_failure
from preprocessing.building.survey import survey
from preprocessing.sources import SOURCES, MeshItem

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "reliability"))
import stubs


@pytest.fixture
def stub_build(tmp_path):
    """stub_build(extra names ...) -> the folder of a build of four stubs and those."""

    def run(*extra: str) -> Path:
        stubs.collection(tmp_path / "meshes", 4, categories=2)
        for name in extra:
            (tmp_path / "meshes" / "class0" / f"{name}.obj").write_text(stubs.MESH)
        build(tmp_path / "meshes", tmp_path / "out", stubs.CONFIG, workers=0, make=stubs.make)
        return tmp_path / "out"

    return run


def record(out: Path, name: str) -> dict:
    return read_json(out / "records" / "class0" / f"{name}.json")


def test_a_failure_lies_in_quarantine_with_kind_stage_reason_and_traceback(stub_build):
    out = stub_build("bad")
    told = (out / "quarantine" / "class0" / "bad.txt").read_text()
    for words in (
        "object: class0/bad",
        "kind: error",
        "stage: fit",
        "no texture of that name",
        "Traceback",
        "stubs.py",
    ):
        assert words in told
    assert (record(out, "bad")["failure"], record(out, "bad")["attempts"]) == ("error", 1)


def test_only_matching_failures_are_tried_again_and_nothing_more_than_three_times(stub_build):
    out = stub_build("bad")
    again = {"make": stubs.make, "resources": None}
    assert upkeep.retry(out, "timeout", **again).already == 5 and record(out, "bad")["attempts"] == 1
    for attempts, matching in ((2, "texture"), (3, "^error: fit"), (3, "")):
        report = upkeep.retry(out, matching, **again)
        assert (report.failed, record(out, "bad")["attempts"]) == (1, attempts)
    assert report.given_up == 1
    upkeep.retry(out, anyway=True, **again)
    assert record(out, "bad")["attempts"] == 4


def test_retry_builds_nothing_that_was_never_tried(stub_build):
    out = stub_build("bad")
    (out / "records" / "class0" / "00000.json").unlink()
    upkeep.retry(out, make=stubs.make)
    assert not (out / "records" / "class0" / "00000.json").exists() and record(out, "bad")["attempts"] == 2


def test_an_object_that_works_at_last_leaves_quarantine_and_its_count(stub_build):
    out = stub_build("bad")
    (out.parent / "meshes" / "class0" / "bad.obj").write_text(stubs.MESH + "# mended\n")
    report = build(out.parent / "meshes", out, stubs.CONFIG, workers=0, make=stubs.make)
    assert report.failed == 0 and not list((out / "quarantine").rglob("*.txt"))
    assert "attempts" not in record(out, "bad")


def test_gc_removes_what_kills_left_and_nothing_else(stub_build):
    out = stub_build("bad")
    before = {path for path in out.rglob("*") if path.is_file()}
    (out / "splats" / "class0" / ".aside-x.ply").write_bytes(b"half")
    (out / "splats" / "class0" / "orphan.ply").write_bytes(stubs.splat("orphan"))
    (out / "points" / "class0" / "bad.npz").write_bytes(b"of an object that failed")
    (out / "at_work").mkdir()
    (out / "at_work" / "host-1-1.json").write_text('{"uid": "a/b", "stage": "fit", "since": 1}')
    report = upkeep.gc(out)
    assert (report.temporaries, len(report.orphans), report.notes) == (1, 2, 1)
    after = {path for path in out.rglob("*") if path.is_file()}
    assert {p for p in before if p.parent.name != "ledgers"} == {p for p in after if p.parent.name != "ledgers"}


def test_gc_does_not_take_a_folder_without_records_for_garbage(tmp_path):
    stubs.collection(tmp_path / "meshes", 12)
    build(tmp_path / "meshes", tmp_path / "out", stubs.CONFIG, workers=0, make=stubs.make)
    for path in (tmp_path / "out" / "records").rglob("*.json"):
        path.unlink()
    with pytest.raises(InputError, match="gsmae repair"):
        upkeep.gc(tmp_path / "out")
    assert len(list((tmp_path / "out" / "splats").rglob("*.ply"))) == 12


def test_ledgers_are_one_line_per_object_and_are_written_again_from_the_records(stub_build):
    out = stub_build("bad")
    lines = {entry["uid"]: entry for entry in ledgers.read(out)}
    assert len(lines) == 5 and set(lines["class0/00000"]["stages"]) == {"load", "fit", "write"}
    assert lines["class0/00000"]["machine"] and lines["class0/00000"]["peak_memory"] > 1 << 20
    (ledger,) = (out / "ledgers").glob("*.jsonl")
    torn = ledger.read_bytes()
    ledger.write_bytes(torn[: len(torn) // 2])
    assert upkeep.gc(out).ledger_lines == 5
    assert {entry["uid"]: entry for entry in ledgers.read(out)} == lines


def test_status_counts_records_and_not_what_an_outdated_ledger_says(stub_build, capsys):
    out = stub_build("bad")
    changed = record(out, "bad") | {"reason": "another", "attempts": 3}
    write_json(out / "records" / "class0" / "bad.json", changed)
    found = survey(out)
    assert (found.done, found.failed, found.given_up, found.state) == (4, 1, 1, "idle")
    assert list(found.failures) == ["fit: another"] and found.costs[0].objects == 4
    assert main(["status", str(out)]) == 0
    assert "4 done, 1 failed" in capsys.readouterr().out


def test_what_lists_a_collection_or_watches_a_build_does_not_load_torch():
    names = ("preprocessing.build", *(f"preprocessing.building.{name}" for name in ("survey", "plans", "upkeep")))
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_status_sees_a_running_and_a_killed_build(stub_build):
    out = stub_build()
    notes.announce(out, "token", engine="local", objects=9)
    notes.note(out, "class0/x", "fit", time.time() - 5)
    running = survey(out)
    assert (running.state, running.objects, running.at_work[0][:2]) == ("building", 9, ("class0/x", "fit"))
    said = read_json(out / "at_work" / "build.json")
    host = said["builder"].rsplit("-", 2)[0]
    write_json(out / "at_work" / "build.json", said | {"builder": f"{host}-999999999-1"})
    assert survey(out).state == "stopped"
    write_json(out / "at_work" / "build.json", said | {"builder": "elsewhere-1-1"})
    assert survey(out).state == "unknown"


def test_a_plan_multiplies_what_is_left_with_what_the_rest_took(stub_build, capsys):
    out = stub_build("bad")
    for name in ("00000", "00002"):  # both of class0; pretend that objects take an hour
        (out / "records" / "class0" / f"{name}.json").unlink()
    for path in (out / "records" / "class1").glob("*.json"):
        values = read_json(path)
        write_json(path, values | {"run": values["run"] | {"seconds": 3600.0, "machine": "slow one"}})
    found = plan(out, workers=2, price=0.5)
    assert (found.objects, found.done, found.failed, found.left) == (5, 2, 1, 2)
    (estimate,) = found.estimates
    assert (estimate.cost.machine, estimate.hours, estimate.wall_hours, estimate.price) == ("slow one", 2, 1, 1)
    assert found.bytes_left == 2 * found.bytes_each > 2 * 4000
    assert main(["plan", str(out), "--workers", "2", "--price-per-hour", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 2
    fresh = plan(out.parent / "meshes", [out])
    assert (fresh.done, fresh.left) == (0, 5) and fresh.estimates[0].hours == 5


def test_a_worker_of_an_earlier_build_stops_and_leaves_no_record(stub_build):
    out = stub_build("late")
    path = out / "records" / "class0" / "late.json"
    path.unlink()
    notes.announce(out, "new")
    (late,) = [item for item in SOURCES["folder"](out.parent / "meshes") if item.uid == "class0/late"]
    old = Order(out, stubs.CONFIG, identity="x", token="old", make=stubs.make)
    with pytest.raises(notes.Superseded):
        build_object(late, old)
    with pytest.raises(notes.Superseded):  # taken over while it worked, and whether it fails or not
        build_object(late, Order(out, stubs.CONFIG, identity="x", token="new", make=taken_over))
    assert not path.exists()


def taken_over(item, out, *_):
    notes.announce(out, "newer")
    raise ValueError("its files were swept away")


def of(out: Path, name: str) -> MeshItem:
    (item,) = [item for item in SOURCES["folder"](out.parent / "meshes") if item.uid == f"class0/{name}"]
    return item


def test_a_repeated_job_does_not_try_a_failed_object_again_but_a_later_build_does(stub_build):
    out = stub_build("bad")
    (out / "records" / "class0" / "bad.json").unlink()
    for token, attempts in (("one", 1), ("one", 1), ("two", 2)):
        notes.announce(out, token)
        order = Order(out, stubs.CONFIG, identity="x", token=token, make=stubs.make)
        assert build_object(of(out, "bad"), order)["attempts"] == attempts == record(out, "bad")["attempts"]
        assert commit_failure(order, of(out, "bad"), "fit", ValueError("again"))["attempts"] == attempts


def test_a_worker_of_an_earlier_build_replaces_no_splat(stub_build):
    out = stub_build("late")
    splat = out / "splats" / "class0" / "late.ply"
    splat.write_bytes(b"by the later build")
    (out / "records" / "class0" / "late.json").unlink()
    notes.announce(out, "old")
    with pytest.raises(notes.Superseded):
        build_object(of(out, "late"), Order(out, stubs.CONFIG, identity="x", token="old", make=slower))
    assert splat.read_bytes() == b"by the later build"


def test_a_token_that_cannot_be_read_is_not_another_build(tmp_path):
    notes.announce(tmp_path, "ours")
    notes.check(tmp_path, "ours")
    path = tmp_path / "at_work" / "build.json"
    path.write_text("{")
    with pytest.raises(OSError, match="damaged"):
        notes.check(tmp_path, "ours")
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        notes.check(tmp_path, "ours")
    path.rmdir()
    with pytest.raises(notes.Superseded):
        notes.check(tmp_path, "ours")


def slower(item, out, *rest):
    notes.announce(out, "new")  # while it fits
    return stubs.make(item, out, *rest)


def swept(item, out, config, patterns, seed, entered, *_):
    entered("write")
    notes.announce(out, "new")
    raise FileNotFoundError(2, "No such file or directory", str(out / ".aside-x.ply"))


def test_a_swept_temporary_of_an_earlier_build_is_no_error_of_the_folder(stub_build):
    out = stub_build("late")
    (out / "records" / "class0" / "late.json").unlink()
    notes.announce(out, "old")
    with pytest.raises(notes.Superseded):
        build_object(of(out, "late"), Order(out, stubs.CONFIG, identity="x", token="old", make=swept))


def test_a_worker_that_dies_on_its_object_is_told_apart_with_its_stage(tmp_path):
    stubs.collection(tmp_path / "meshes", 2)
    (tmp_path / "meshes" / "class0" / "crash.obj").write_text(stubs.MESH)
    report = build(tmp_path / "meshes", tmp_path / "out", stubs.CONFIG, workers=1, make=stubs.make)
    assert (report.done, report.failed, report.given_up) == (2, 1, 1)
    values = record(tmp_path / "out", "crash")
    assert (values["failure"], values["stage"], values["attempts"]) == ("died", "fit", 3)
    assert re.search(r"exit code 11", values["reason"])
    done = record(tmp_path / "out", "00000")["run"]
    assert (values["run"]["machine"], values["run"]["host"]) == (done["machine"], done["host"])


def test_a_batch_whose_worker_dies_is_taken_apart(tmp_path):
    stubs.collection(tmp_path / "meshes", 4)
    (tmp_path / "meshes" / "class0" / "crash.obj").write_text(stubs.MESH)
    report = build(tmp_path / "meshes", tmp_path / "out", stubs.CONFIG, workers=1, make=stubs.make, batch=5)
    assert (report.done, report.failed) == (4, 1) and record(tmp_path / "out", "crash")["failure"] == "died"


def test_what_is_no_build_is_refused_by_every_verb(tmp_path, capsys):
    for verb in ("status", "gc", "retry", "plan"):
        assert main([verb, str(tmp_path)]) == 3
        assert str(tmp_path) in capsys.readouterr().err
