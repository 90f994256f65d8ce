# ruff: noqa: E501  (a program for a child)
"""Pickles in every place where a file of ours or of the released code could hold one: none is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

# In the child: payloads, the files that carry them, and what reads each. A payload that ran would leave the canary,
# or at least an event: pickle.find_class comes before anything that a pickle can call.
CODE = '''
import ctypes, hashlib, io, marshal, pickle, struct, tarfile, types, zipfile
from pathlib import Path
home = Path(HOME); canary = home / "canary"
touch = f"open({str(canary)!r}, 'w').close()"

def calls(module, name, *args):
    """A pickle of module.name(*args), without importing the module."""
    words = "".join(f"V{a}\\n" if isinstance(a, str) else f"I{a}\\n" for a in args)
    return f"c{module}\\n{name}\\n({words}tR.".encode()

def listed(module, name, *args):
    """The same with one list for an argument."""
    words = "".join(f"V{a}\\na" for a in args)
    return f"c{module}\\n{name}\\n((lp0\\n{words}tR.".encode()

PAYLOADS = {
    "system": calls("os", "system", f"touch {canary}"),
    "posix": calls("posix", "system", f"touch {canary}"),
    "popen": listed("subprocess", "Popen", "touch", str(canary)),
    "run": listed("subprocess", "check_output", "touch", str(canary)),
    "exec": calls("builtins", "exec", touch),
    "eval": calls("builtins", "eval", touch),
    "eval of 2": calls("__builtin__", "eval", touch),
    "open": calls("builtins", "open", str(canary), "w"),
    "io": calls("io", "open", str(canary), "w"),
    "path": calls("pathlib", "Path.touch", str(canary)),
    "import": calls("builtins", "__import__", "antigravity"),
    "runpy": calls("runpy", "run_path", str(home / "evil.py")),
    "module": calls("importlib", "import_module", "evil"),
    "socket": calls("socket", "create_connection", "127.0.0.1"),
    "pty": calls("pty", "spawn", "sh"),
    "remove": calls("os", "remove", str(home / "precious")),
    "rmtree": calls("shutil", "rmtree", str(home)),
    "dlopen": calls("ctypes", "CDLL", "libc.so.6"),
    "code": calls("code", "interact"),
    "getattr": calls("builtins", "getattr", "os", "system"),
    "torch.load": calls("torch", "load", str(home / "evil.pth")),
    "torch.hub": calls("torch.hub", "load", str(home), "evil"),
    "from bytes": calls("torch.storage", "_load_from_bytes", "x"),
    "numpy": calls("numpy.testing._private.utils", "runstring", touch, "x"),
    "timeit": calls("timeit", "timeit", touch),
    "pdb": calls("pdb", "run", touch),
    "jit": calls("torch.jit.unsupported_tensor_ops", "execWrapper", touch, "x", "y"),
    "collect": calls("torch._inductor.codecache", "exec_python", touch),
}
(home / "evil.py").write_text(touch)
(home / "precious").write_text("x")
(home / "run").mkdir()
(home / "evil.pth").write_bytes(PAYLOADS["system"])

def torch_zip(payload, name="data.pkl"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(f"archive/{name}", payload); z.writestr("archive/version", "3\\n"); z.writestr("archive/byteorder", "little")
    return out.getvalue()

def script_zip(payload):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("archive/constants.pkl", payload); z.writestr("archive/data.pkl", payload)
        z.writestr("archive/code/__torch__.py", touch); z.writestr("archive/version", "3\\n")
    return out.getvalue()

def legacy(payload):
    return pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + payload

def tar(payload):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name); info.size = len(payload); t.addfile(info, io.BytesIO(payload))
    return out.getvalue()

def npy(payload):
    head = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + "\\n"
    return b"\\x93NUMPY\\x01\\x00" + struct.pack("<H", len(head)) + head.encode() + payload

def npz(payload):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name in ("points", "normals", "colors", "parts"):
            z.writestr(f"{name}.npy", npy(payload))
    return out.getvalue()

CARRIERS = {"raw.pth": bytes, "raw.pt": bytes, "raw.pkl": bytes, "raw.safetensors": bytes, "zip.pth": torch_zip,
            "zip.pt": torch_zip, "script.pt": script_zip, "legacy.pth": legacy, "tar.pt": tar}

import numpy as np, torch, h5py
from gsmae.cli import main
from gsmae.config import from_yaml
from gsmae.convert import convert, read_released
from gsmae.errors import GsmaeError
from gsmae.recipes import RECIPES
from gsmae.zoo import load_trained
from data.shardfile import Shard
from data.surface import read_points
from preprocessing.meshes import load_mesh

run = RECIPES["pretrain"]["tiny"]
def yaml_of(tag): return f"train: !!python/{tag}\\n".encode()
YAML = {"object/apply": yaml_of(f"object/apply:os.system ['touch {canary}']"), "object/new": yaml_of(f"object/new:os.system [touch {canary}]"),
        "name": yaml_of("name:os.system ''"), "module": yaml_of("module:evil ''"),
        "exec": yaml_of(f"object/apply:builtins.exec [\\"{touch}\\"]"), "popen": yaml_of(f"object/apply:subprocess.Popen [[touch, {canary}]]")}

def run_folder(payload, optimizer=False):
    folder = home / "run"
    (folder / "weights.safetensors").write_bytes(payload)
    state = {"schema": 1, "task": "pretrain", "spec": {}, "model": {}, "sha256": {"weights.safetensors": hashlib.sha256(payload).hexdigest()}}
    (folder / "state.json").write_text(__import__("json").dumps(state))
    return folder

def hdf5(payload):
    with h5py.File(home / "a.h5", "w") as f:
        f.attrs["class_names"] = np.void(payload)
        f["splats"] = np.void(payload)
        f["uids"] = np.array([payload], dtype="S")
    return home / "a.h5"

jobs = []
for name, payload in PAYLOADS.items():
    for carrier, wrap in CARRIERS.items():
        file = home / f"{name.replace(' ', '_')}_{carrier}"
        file.write_bytes(wrap(payload))
        jobs.append((f"{name} in {carrier}", lambda file=file: read_released(file)))
    file = home / f"{name.replace(' ', '_')}.npz"
    file.write_bytes(npz(payload))
    jobs.append((f"{name} in npz", lambda file=file: read_points(file, 2)))
    bare = home / f"{name.replace(' ', '_')}_bare.npz"
    bare.write_bytes(npy(payload))
    jobs.append((f"{name} in npy", lambda bare=bare: read_points(bare, 2)))
    jobs.append((f"{name} in run", lambda payload=payload: load_trained(run_folder(payload))))
for name, text in YAML.items():
    file = home / f"yaml_{name.replace('/', '_')}.yaml"
    file.write_bytes(text)
    jobs.append((f"YAML {name}", lambda file=file: from_yaml(type(run), file)))
# what is imported late is imported now, by a good file of each kind
torch.save({"a": torch.zeros(2)}, home / "good.pth"); read_released(home / "good.pth")
torch.save({"a": torch.zeros(2)}, home / "good_legacy.pth", _use_new_zipfile_serialization=False); read_released(home / "good_legacy.pth")
outcomes = {}
def tried(name, act):
    global watching
    seen.clear(); watching = True
    try:
        act(); outcome = "read"
    except GsmaeError as error:
        outcome = "refused"
    except SystemExit as error:
        outcome = f"exit {error.code}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"[:200]
    finally:
        watching = False
    outcomes[name] = [outcome, [e for e in seen if e[0] != "read" and "run/" not in e[1]]]
for name, act in jobs[:3]:  # once for what is imported late by the way that errors take
    tried(name, act)
for name, act in jobs:
    tried(name, act)
for name in ("system", "exec", "popen"):
    payload = PAYLOADS[name]
    file = hdf5(payload)
    tried(f"{name} in HDF5", lambda: Shard(file))
    for carrier in ("raw.pth", "zip.pth", "legacy.pth", "raw.safetensors"):
        code = main(["convert", str(home / f"{name}_{carrier}"), "--out", str(home / "out")])  # the first time imports
        tried(f"gsmae convert {name} {carrier}", lambda: sys.exit(main(["convert", str(home / f"{name}_{carrier}"), "--out", str(home / "out")])))
print(json.dumps({"outcomes": outcomes, "payloads": len(PAYLOADS), "canary": canary.exists(), "out": (home / "out").exists(),
                  "precious": (home / "precious").exists()}))
'''


@pytest.fixture(scope="module")
def told(tmp_path_factory, watched):
    home = tmp_path_factory.mktemp("pickles")
    return watched(CODE.replace("HOME", repr(str(home)), 1))


def test_no_payload_runs_wherever_it_lies(told):
    assert told["payloads"] >= 25 and len(told["outcomes"]) > 300
    assert told["precious"] and not told["canary"] and not told["out"]
    loud = {
        name: [event for event in events if not (name.startswith("gsmae convert") and event[0] == "exec")]
        for name, (_, events) in told["outcomes"].items()
    }  # the command line makes classes of its arguments; the canary is watched there, too
    assert {name: events for name, events in loud.items() if events} == {}


def test_every_file_with_a_payload_is_refused_by_name_and_none_is_read(told):
    wrong = {name: outcome for name, (outcome, _) in told["outcomes"].items() if outcome not in ("refused", "exit 3")}
    assert wrong == {}


def test_the_watch_sees_a_pickle_that_is_executed(tmp_path: Path, watched):
    """The same watch, told to unpickle: without it the tests above would prove nothing."""
    code = f"""
import pickle
watching = True
for payload in (b"cos\\nsystem\\n(Vtouch {tmp_path}/canary\\ntR.", b"cbuiltins\\nexec\\n(Vopen({str(tmp_path / "b")!r}, 'w')\\ntR."):
    pickle.loads(payload)
watching = False
print(json.dumps(seen))
"""
    events = [event for event, _ in watched(code)]
    assert {"pickle.find_class", "os.system", "exec", "write"} <= set(events)
    assert (tmp_path / "canary").exists() and json.dumps(events)
