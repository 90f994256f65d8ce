"""The folder of a training run: what it is asked for, what it begins with, and whether it may go on."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tyro

from gsmae import recipes, zoo
from gsmae.config import Config, digest, from_yaml, to_yaml
from gsmae.errors import InputError
from gsmae.files import read_json, write_json
from gsmae.training import processes

from .inputs import Device
from .verb import Arguments, parse, preset, with_defaults


class TrainArguments(Arguments):
    """What every verb that trains takes."""

    data: tyro.conf.Positional[Path]
    """folder written by `gsmae pack`"""
    out: Path
    """run folder; an unfinished run in it goes on"""
    recipe: Literal["tiny", "small", "base"] = "base"
    """named defaults for --spec, --model and --train; base is the paper"""
    config: Path | None = None
    """YAML with such values, as in the config.yaml of another run; flags win over it"""
    device: Device = "auto"
    """auto: a GPU if there is one; started by `torchrun --nproc-per-node N`, each of N processes has one"""


def parse_run(cls: type, verb: str, task: str, argv: list[str]) -> Any:
    """Recipe first, then the YAML file, then the flags."""
    name = preset(argv, "--recipe", recipes.RECIPES[task], "base")
    run = recipes.RECIPES[task][name]
    for here, following in zip(argv, [*argv[1:], ""], strict=True):
        if here == "--config" or here.startswith("--config="):
            run = from_yaml(type(run), here.partition("=")[2] or following, run)
    return parse(cls, verb, argv, with_defaults(cls, run=run))


def inherited(a: Any, task: str, init: zoo.Trained) -> Any:
    """The encoder of the run to begin with; flags that ask for another one, or for other features, are refused."""
    usual, asked, found = recipes.RECIPES[task][a.recipe], a.run, init.encoder.config
    if asked.spec not in (usual.spec, init.spec):
        raise InputError(init.path, f"its features are {init.spec}, --spec asks for {asked.spec}", "leave --spec out")
    if task == "segment" and init.spec.group != ("means",):
        cause = f"its positions are made of {', '.join(init.spec.group)}, those of part segmentation of means, "
        cause += "which is all that a surface point has"
        raise InputError(init.path, cause, "begin with a run that was pretrained with --spec.group means")
    wanted, default = asked.model.encoder, usual.model.encoder
    rate = found.drop_path if wanted.drop_path == default.drop_path else wanted.drop_path
    found = found.model_copy(update={"drop_path": rate})
    if wanted.model_copy(update={"drop_path": rate}) not in (default.model_copy(update={"drop_path": rate}), found):
        raise InputError(init.path, f"its encoder is {found}, --model asks for {wanted}", "leave --model.encoder out")
    return found


def open_run(run: Path, config: Config, header: dict[str, Any]) -> None:
    """config.yaml, command and versions into the run; a run of another configuration is not touched."""
    identity = _identity(config, header)
    path = run / "run.json"
    if path.exists():
        before = read_json(path)
        if identity not in (before.get("config_hash"), _as_of_today(config, run, before)):
            raise InputError(
                run,
                f"holds a run with another configuration or data ({before.get('config_hash')}, now {identity})",
                "choose another --out",
            )
    if processes.rank() > 0:
        return
    to_yaml(config, run / "config.yaml")
    write_json(path, {"config_hash": identity, "command": sys.argv, **header})


def _identity(config: Config, header: dict[str, Any]) -> str:
    """What must not change while a run goes on."""
    named = {k: header[k] for k in ("task", "classes", "parts", "init_weights")}
    return digest(config, named | {"data": header["data"]["hash"]})


def _as_of_today(config: Config, run: Path, header: dict[str, Any]) -> str | None:
    """The identity of a run of an older version: options that it did not know have their defaults."""
    try:
        return _identity(from_yaml(type(config), run / "config.yaml"), header)
    except (InputError, KeyError, TypeError):
        return None


def versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "h5py", "safetensors")}
    from gsmae import __version__

    return {"gsmae": __version__, "python": platform.python_version(), "machine": platform.machine(), **packages}
