"""Damaged files of every kind are read or refused by name, within 1 GB and 5 s; all: scripts/reliability/fuzz.py."""

from __future__ import annotations

import os
from pathlib import Path

import fuzz
import fuzz_targets
import pytest

from gsmae.errors import GsmaeError, InputError

FOUND = sorted(path for path in (Path(__file__).parent / "regressions").rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", fuzz.SHARES)
def test_good_examples_are_read_and_a_few_damaged_ones_do_no_harm(known, kind, tmp_path):
    good = fuzz_targets.Target([], (), known[kind].read, known[kind].damage)
    object.__setattr__(good, "case", lambda number: known[kind].examples[int(number)])
    outcomes = fuzz.run(good, [str(i) for i in range(len(known[kind].examples))], tmp_path)
    assert [o[:2] for o in outcomes] == [("result", "")] * len(outcomes)
    tally = fuzz.measure(kind, known[kind], 5, 7, tmp_path)
    assert tally.bad == [] and tally.inputs == tally.results + tally.refused == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.SHARES)
def test_many_damaged_files_do_no_harm(known, kind, tmp_path):
    tally = fuzz.measure(kind, known[kind], fuzz.SHARES[kind], 11, tmp_path)
    assert tally.bad == [] and tally.results > 0 and tally.refused + tally.results == fuzz.SHARES[kind]


def test_the_harness_sees_what_it_is_there_to_see(tmp_path, monkeypatch):
    """Crash, endless loop, too much memory, another error, an error without the file's name: each is bad."""
    monkeypatch.setattr(fuzz, "SECONDS", 1)

    def refuse(path):
        raise InputError(path / "a", "no")

    def nameless(path):
        raise GsmaeError("no")

    def loop(path):
        while True:
            pass

    acts = {
        "crash": lambda path: os.kill(os.getpid(), 11), "loop": loop, "memory": lambda path: bytearray(2 << 30),
        "other": lambda path: 1 // 0, "nameless": nameless, "refuse": refuse, "good": lambda path: 1,
    }  # fmt: skip
    found = {}
    for name, act in acts.items():
        target = fuzz_targets.Target([{"a": b""}], ("a",), act, lambda content, others, dice: content)
        ((kind, what, _, _),) = fuzz.run(target, ["0"], tmp_path)
        found[name] = kind, what
    assert {name: kind for name, (kind, _) in found.items()} == {
        "crash": "bad", "loop": "bad", "memory": "bad", "other": "bad", "nameless": "bad", "refuse": "refused",
        "good": "result",
    }  # fmt: skip
    assert "1 s" in found["loop"][1] and "ZeroDivision" in found["other"][1] and "name" in found["nameless"][1]


def test_a_case_is_the_same_whenever_it_is_made(known):
    for kind in fuzz.SHARES:
        cases = [known[kind].case(f"{kind}/3/{i}") for i in range(3)]
        assert cases == [known[kind].case(f"{kind}/3/{i}") for i in range(3)]
        assert any(case not in known[kind].examples for case in cases), kind


@pytest.mark.parametrize("file", FOUND, ids=lambda file: "/".join(file.parts[-4:]))
def test_what_the_fuzzer_once_found_is_refused_by_name(known, file, tmp_path):
    """regressions/KIND/EXAMPLE/CASE/FILE takes the place of that file in the example; each once was a bad outcome."""
    kind, example, name = file.parts[-4], int(file.parts[-3]), file.name
    files = dict(known[kind].examples[example])
    assert any(n.rpartition("/")[2] == name for n in files)
    files = known[kind].mend({n: file.read_bytes() if n.rpartition("/")[2] == name else c for n, c in files.items()})
    target = fuzz_targets.Target([files], (name,), known[kind].read, lambda content, others, dice: content)
    ((outcome, what, _, _),) = fuzz.run(target, ["0"], tmp_path)
    assert outcome == "refused", what
