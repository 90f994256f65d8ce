"""Runs in processes of their own: order, failures that reach what comes after, and stopping."""

import os
import time

import pytest

from gsmae.cli.side_by_side import side_by_side
from gsmae.config import from_mapping
from gsmae.reproduce import Data, Table, plan


def does(step) -> str:
    """A step that takes no time: its arm's name says what becomes of it."""
    if step.kind != "pretrain":
        return ""
    if step.name == "dies":
        os._exit(7)
    if step.name == "errs":
        raise RuntimeError("a bug")
    if step.name == "sleeps":
        time.sleep(60)
    return "no memory" if step.name == "fails" else ""


@pytest.fixture
def steps(tmp_path):
    def made(*names):
        arms = [{"name": n, "pretrain": {"model": {"mask_ratio": 0.1 + 0.1 * k}}} for k, n in enumerate(names)]
        table = from_mapping(Table, {"about": "a test", "arms": arms})
        return plan(table, (0,), {"splats": Data(tmp_path, "aaa")}, recipe="tiny").steps

    return made


def test_each_run_comes_after_the_one_it_begins_with_and_failures_stay_with_their_own(steps):
    wanted = steps("good", "fails", "dies", "other")
    done = list(side_by_side(wanted, does, 2))
    reasons = {(step.name, step.kind): reason for step, reason in done}
    assert len(done) == len(wanted) == 8
    assert [reasons[n, "classify"] for n in ("good", "fails", "other")] == ["", "no memory", ""]
    assert reasons["dies", "pretrain"] == reasons["dies", "classify"] == "its process died (exit code 7)"
    order = [(step.name, step.kind) for step, _ in done]
    assert all(order.index((n, "pretrain")) < order.index((n, "classify")) for n in ("good", "fails", "dies", "other"))


def test_a_bug_is_not_taken_for_a_run_that_was_asked_to_stop(steps, capfd):
    reasons = {step.kind: reason for step, reason in side_by_side(steps("errs"), does, 1)}
    assert reasons["pretrain"] == reasons["classify"] == "its process died (exit code 1)"
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_when_the_time_is_over_what_sleeps_is_stopped_and_nothing_else_begins(steps):
    began = time.monotonic()
    done = list(side_by_side(steps("sleeps", "good"), does, 1, seconds=3))
    assert done == [] and time.monotonic() - began < 50
