"""Finding, choosing and refusing compiled kernels."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gsmae import ops
from gsmae.ops.native import library

ROOT = Path(__file__).resolve().parents[3]
needs_kernels = pytest.mark.skipif(not library.available(), reason="no compiled kernels here")


@pytest.fixture
def fresh(monkeypatch):
    """The loader as it is before the first question."""
    monkeypatch.setattr(library._State, "loaded", {})
    monkeypatch.setattr(library._State, "chosen", None)
    return monkeypatch


def a_splat(size: int = 8) -> tuple[Any, ...]:
    viewmat = torch.eye(4)[None].clone()
    viewmat[0, 2, 3] = 2.0
    K = torch.tensor([[[10.0, 0, size / 2], [0, 10, size / 2], [0, 0, 1]]])
    splat = torch.zeros(1, 3), torch.ones(1, 4), torch.full((1, 3), 0.1), torch.tensor([0.5]), torch.zeros(1, 1, 3)
    return *splat, viewmat, K, size, size, torch.ones(3)


def test_without_a_library_one_warning_is_logged_and_the_twin_draws(fresh, tmp_path, caplog):
    fresh.setattr(library, "FOLDER", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not library.available()
        assert library.variant() == library.REFERENCE
        colors, _ = ops.rasterize(*a_splat())
    assert colors.shape == (1, 8, 8, 3)
    assert len(caplog.records) == 1
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler"):
        library.library()


@needs_kernels
def test_a_stale_library_is_refused_with_the_cure(fresh, caplog):
    fresh.setattr(library, "ABI", library.ABI + 1)
    with caplog.at_level(logging.WARNING):
        assert not library.available()
    assert "reinstall gsmae" in caplog.text


def test_a_file_that_is_no_library_is_refused(fresh, tmp_path, caplog):
    (tmp_path / "_kernels_baseline.so").write_bytes(b"not a library")
    fresh.setattr(library, "FOLDER", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not library.available()
    assert "cannot be loaded" in caplog.text


@needs_kernels
def test_a_variant_can_be_forced_and_is_forgotten_afterwards():
    before = library.variant()
    for name in [*library.variants(), library.REFERENCE]:
        with library.using(name):
            assert library.variant() == name
    assert library.variant() == before


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="sse9"), library.using("sse9"):
        pass


def test_threads_follow_torch_until_set():
    assert library.threads() == torch.get_num_threads()
    library.set_threads(3)
    try:
        assert library.threads() == 3
    finally:
        library.set_threads(None)
    assert library.threads() == torch.get_num_threads()
    with pytest.raises(ValueError, match="at least 1"):
        library.set_threads(0)


@needs_kernels
def test_a_process_forked_after_a_parallel_kernel_has_threads_of_its_own():
    script = """
import os, torch
from gsmae import ops
from gsmae.ops.native import library
library.set_threads(2)
a, b = torch.rand(2, 2, 64, 64, 3)
before = ops.ssim(a, b)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.ssim(a, b), before) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_build_without_a_compiler_succeeds(tmp_path):
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    broken = {**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    done = subprocess.run(command, cwd=ROOT, env=broken, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "slower plain torch" in done.stderr
    assert not list(tmp_path.rglob("*.so"))
