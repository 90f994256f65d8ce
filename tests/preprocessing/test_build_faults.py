"""A small part of what scripts/reliability runs in full; the figures are in docs/reliability.md."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def reliability(name: str, *arguments: str) -> str:
    """What a script of scripts/reliability prints; it must end with 0."""
    command = [sys.executable, ROOT / "scripts" / "reliability" / name, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs LD_PRELOAD and a C compiler")
def test_a_commit_that_breaks_at_any_step_leaves_the_object_absent_or_whole():
    told = reliability("break_commits.py", "--every", "7")
    assert "0 wrong" in told and "kill: killed, absent" in told and "ENOSPC: stopped, absent" in told


def test_killed_workers_and_builders_lose_nothing():
    told = reliability("kill_builders.py", "--kills", "6", "--objects", "60", "--builders", "1")
    assert "6 workers and 1 builders killed" in told and "lost: 0; failed: 0; duplicate: 0; corrupt: 0" in told


@pytest.mark.slow
def test_a_thousand_objects_grow_neither_builder_nor_workers():
    assert "1000 of 1000 stubs" in reliability("soak_build.py", "--objects", "1000")
