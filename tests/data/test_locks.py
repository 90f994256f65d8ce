"""One writer at a time in a folder, and nothing of it left behind."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import data.shards
from data.checks import verify
from data.shards import pack
from gsmae.errors import InputError
from gsmae.locks import LOCK, only_writer


def test_a_second_writer_is_refused_until_the_first_has_left(tmp_path):
    with only_writer(tmp_path / "p", "pack"):
        with pytest.raises(InputError, match="another pack is at work"), only_writer(tmp_path / "p", "pack"):
            pass
        with only_writer(tmp_path / "q", "pack"):
            pass
    with only_writer(tmp_path / "p", "pack"):
        assert (tmp_path / "p" / LOCK).exists()
    assert not (tmp_path / "p" / LOCK).exists()


def test_the_lock_of_a_killed_writer_does_not_hold(tmp_path):
    code = "import os, sys\nfrom gsmae.locks import only_writer\nwith only_writer(sys.argv[1], 'pack'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert (tmp_path / LOCK).exists()
    with only_writer(tmp_path, "pack"):
        pass


def test_threads_that_race_for_a_folder_never_write_at_once(tmp_path):
    inside, clashes, turns = [], [], []

    def race() -> None:
        for _ in range(200):
            try:
                with only_writer(tmp_path, "pack"):
                    inside.append(1)
                    clashes.append(len(inside) - 1)
                    inside.pop()
                    turns.append(1)
            except InputError:
                pass

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(clashes) == 0 and len(turns) > 50


def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_writer(tmp_path, "pack"):
        assert "no locks" in caplog.text


def _pack(build: Path, out: Path, barrier, results) -> None:
    barrier.wait()
    try:
        results.put("already" if pack(build, out, objects_per_shard=2).already else "packed")
    except InputError as error:
        results.put(error.cause)


def test_packs_that_start_together_leave_one_whole_pack(make_build, tmp_path):
    build = make_build()
    for i in range(12):
        build.add(f"chair/{i}")
    context = multiprocessing.get_context("fork")  # three imports of torch would take ten seconds
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_pack, args=(build.path, tmp_path / "p", barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    said = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert said.count("packed") == 1
    assert set(said) <= {"packed", "already", "another pack is at work in this folder"}
    assert verify(tmp_path / "p").ok and not (tmp_path / "p" / LOCK).exists()


def test_a_pack_that_another_finished_meanwhile_is_reported_as_such(make_build, tmp_path, monkeypatch):
    build = make_build().add("chair/1")

    def late(folder, what):  # the other pack is done between our look at the folder and our lock
        monkeypatch.setattr(data.shards, "only_writer", only_writer)
        pack(build.path, folder)
        return only_writer(folder, what)

    monkeypatch.setattr(data.shards, "only_writer", late)
    assert pack(build.path, tmp_path / "p").already
