"""Damaged files of every kind are read or refused by name, within 1 GB and 5 s; all: scripts/reliability/fuzz.py."""

from __future__ import annotations

import os
from pathlib import Path

import fuzz
import pytest

from gsmae.errors import GsmaeError, InputError

REGRESSIONS = Path(__file__).parent / "regressions"
FOUND = sorted(path.relative_to(REGRESSIONS).as_posix() for path in REGRESSIONS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def harmless(known, tmp_path_factory):
    """What became of every kind's good examples, and of five damaged ones each: kind -> (outcomes, outcomes)."""
    cases = {f"{kind} {n}": files for kind in known for n, files in enumerate(known[kind].examples)}
    cases |= {f"{kind} damaged {n}": known[kind].case(f"{kind}/7/{n}") for kind in known for n in range(5)}

    def act(name: str, folder: Path):
        fuzz.put(folder, cases[name])
        return known[name.split()[0]].read(folder)

    found = zip(cases, fuzz.settle(fuzz.Acts(act), list(cases), tmp_path_factory.mktemp("harmless")), strict=True)
    good, damaged = {kind: [] for kind in known}, {kind: [] for kind in known}
    for name, outcome in found:
        (damaged if "damaged" in name else good)[name.split()[0]].append(outcome)
    return good, damaged


@pytest.mark.parametrize("kind", fuzz.SHARES)
def test_good_examples_are_read_and_a_few_damaged_ones_do_no_harm(known, harmless, kind):
    good, damaged = (outcomes[kind] for outcomes in harmless)
    assert [o[:2] for o in good] == [("result", "")] * len(known[kind].examples)
    assert len(damaged) == 5 and [o for o in damaged if o[0] not in ("result", "refused")] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.SHARES)
def test_many_damaged_files_do_no_harm(known, kind, tmp_path):
    tally = fuzz.measure(kind, known[kind], fuzz.SHARES[kind], 11, tmp_path)
    assert tally.bad == [] and tally.results > 0 and tally.refused + tally.results == fuzz.SHARES[kind]


def test_the_harness_sees_what_it_is_there_to_see(tmp_path, monkeypatch):
    """Crash, endless loop, too much memory, another error, an error without the file's name: these are bad, no more."""
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)

    def refuse(path):
        raise InputError(path / "a", "no")

    def nameless(path):
        raise GsmaeError("no")

    def loop(path):
        while True:
            pass

    acts = {
        "good": lambda path: 1, "crash": lambda path: os.kill(os.getpid(), 11), "refuse": refuse, "loop": loop,
        "memory": lambda path: bytearray(2 << 30), "other": lambda path: 1 // 0, "nameless": nameless,
        "end": lambda path: os._exit(3), "good again": lambda path: 1,
    }  # fmt: skip
    target = fuzz.Acts(lambda name, folder: acts[name](folder))
    for tried in (fuzz.run, fuzz.settle):
        found = {name: outcome[:2] for name, outcome in zip(acts, tried(target, list(acts), tmp_path), strict=True)}
        assert {name: kind for name, (kind, _) in found.items()} == {
            "good": "result", "crash": "bad", "refuse": "refused", "loop": "bad", "memory": "bad", "other": "bad",
            "nameless": "bad", "end": "bad", "good again": "result",
        }  # fmt: skip
        assert "0.3 s" in found["loop"][1] and "ZeroDivision" in found["other"][1] and "name" in found["nameless"][1]
        assert "-11" in found["crash"][1] and "MemoryError" in found["memory"][1] and "with 3" in found["end"][1]


def test_what_is_bad_only_after_others_does_not_count(tmp_path):
    """A child that has been through much is no witness: settle asks again alone, and run tells what it saw."""
    done = []

    def act(name, folder):
        done.append(name)
        return 1 // (2 - len(done))

    target = fuzz.Acts(act)
    assert [o[0] for o in fuzz.run(target, ["a", "b", "c"], tmp_path)] == ["result", "bad", "result"]
    assert [o[0] for o in fuzz.settle(target, ["a", "b", "c"], tmp_path)] == ["result"] * 3


def test_a_case_is_the_same_whenever_it_is_made(known):
    for kind in fuzz.SHARES:
        cases = [known[kind].case(f"{kind}/3/{i}") for i in range(3)]
        assert cases == [known[kind].case(f"{kind}/3/{i}") for i in range(3)]
        assert any(case not in known[kind].examples for case in cases), kind


@pytest.mark.parametrize("name", FOUND)
def test_what_the_fuzzer_once_found_is_refused_by_name(known, outcome, name):
    """regressions/KIND/EXAMPLE/CASE/FILE takes the place of that file in the example; each once was a bad outcome."""

    def act(name: str, folder: Path):
        kind, example, _, file = name.split("/")
        good = known[kind].examples[int(example)]
        assert any(n.rpartition("/")[2] == file for n in good)
        harmful = (REGRESSIONS / name).read_bytes()
        fuzz.put(folder, known[kind].mend({n: harmful if n.rpartition("/")[2] == file else c for n, c in good.items()}))
        return known[kind].read(folder)

    kind, what, _, _ = outcome(act)
    assert kind == "refused", what
