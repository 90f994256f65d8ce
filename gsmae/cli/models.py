"""reconstruct, embed, convert: what trained networks are used for, and where they can come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import tyro

from gsmae import zoo
from gsmae.errors import GsmaeError, InputError
from gsmae.files import write_aside
from gsmae.models import GaussianMAE
from gsmae.ply import read_ply, write_ply
from gsmae.probes import feature
from gsmae.progress import bar

from .verb import Arguments, Outcome, parse, plain


class ReconstructArguments(Arguments):
    """Hide most groups of each splat and let a pretrained run predict them: a picture input | visible | predicted and
    the three splats, per file."""

    run: tyro.conf.Positional[Path]
    """pretrained run or checkpoint"""
    splats: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """3DGS .ply files"""
    out: Path
    """folder for NAME.png and NAME_{input,visible,predicted}.ply"""
    size: int = 256
    """pixels of each picture"""
    seed: int = 0
    """of the Gaussians drawn and of the mask"""


def reconstruct(argv: list[str]) -> Outcome:
    """gsmae reconstruct"""
    from gsmae.reconstruct import picture, reconstruct_splat

    a = parse(ReconstructArguments, "reconstruct", argv)
    trained = zoo.load_trained(a.run)
    if not isinstance(trained.model, GaussianMAE):
        raise InputError(trained.path, f"is a '{trained.task}' run", "only one pretrained to reconstruct can do so")
    names = [file.stem for file in a.splats]
    for file in a.splats:
        if names.count(file.stem) > 1:
            raise InputError(file, "another of the splats has the same name", "reconstruct them into two folders")
    failed = {}
    for file in bar("reconstruct", "splat", a.splats):
        try:
            made = reconstruct_splat(trained.model, read_ply(file), a.seed)
        except (GsmaeError, ValueError) as error:
            failed[str(file)] = str(error)
            continue
        for name in ("input", "visible", "predicted"):
            write_ply(a.out / f"{file.stem}_{name}.ply", getattr(made, name))
        with write_aside(a.out / f"{file.stem}.png") as temporary:
            picture(made, a.size).save(temporary, format="PNG")
    summary = {"out": str(a.out), "splats": len(a.splats) - len(failed), "failed": failed}
    return Outcome(summary, 4 if failed else 0, a.as_json)


class EmbedArguments(Arguments):
    """Features of splats: one row per object in a Parquet file, maximum and mean over its tokens, as `probe` has it."""

    run: tyro.conf.Positional[Path]
    """run or checkpoint whose encoder to use"""
    splats: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """3DGS .ply files, or folders that are searched for them"""
    out: Path
    """Parquet file: path, gaussians, vector"""


def embed(argv: list[str]) -> Outcome:
    """gsmae embed"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    a = parse(EmbedArguments, "embed", argv)
    encoder = zoo.load(a.run)
    files = [f for path in a.splats for f in (_splats(path) if path.is_dir() else [path])]
    if not files:
        raise InputError(a.splats[0], "no .ply below this folder")
    rows, failed = [], {}
    with torch.no_grad():
        for file in bar("embed", "splat", files):
            try:
                splat = read_ply(file)
                tokens = encoder(splat).tokens
            except (GsmaeError, ValueError) as error:
                failed[str(file)] = str(error)
                continue
            rows.append({"path": str(file), "gaussians": len(splat), "vector": feature(tokens).numpy()})
    if not rows:
        raise InputError(files[0], f"none of {len(files)} splats could be embedded: {next(iter(failed.values()))}")
    schema = pa.schema([("path", pa.string()), ("gaussians", pa.int64()), ("vector", pa.list_(pa.float32()))])
    with write_aside(a.out) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
    summary = {"out": str(a.out), "splats": len(rows), "width": len(rows[0]["vector"]), "failed": failed}
    return Outcome(summary, 4 if failed else 0, a.as_json)


def _splats(folder: Path) -> list[Path]:
    """The .ply below a folder, without what an interrupted writer left."""
    return sorted(path for path in folder.rglob("*.ply") if not path.name.startswith("."))


class ConvertArguments(Arguments):
    """Turn a released Gaussian-MAE or Point-MAE checkpoint (.pth, .safetensors) into one of ours. Nothing in the file
    is executed: only tensors are read, and a file that holds anything else is refused."""

    checkpoint: tyro.conf.Positional[Path]
    """the released file"""
    out: Path
    """checkpoint folder to write"""
    heads: int | None = None
    """attention heads; None = one per 64 of width, as all released models have"""
    groups: int = 64
    """groups per splat that the model was trained with; the file does not tell"""
    group_size: int | None = None
    """Gaussians per group, where the file does not tell"""
    group: tuple[str, ...] | None = None
    """fields that the model groups by, where the width alone does not tell"""
    normalize: tuple[str, ...] | None = None
    """fields that were normalised; None = as the released configurations have it"""


def convert(argv: list[str]) -> Outcome:
    """gsmae convert"""
    from gsmae.convert import convert as convert_checkpoint

    a = parse(ConvertArguments, "convert", argv)
    report = convert_checkpoint(
        a.checkpoint, a.out, heads=a.heads, groups=a.groups, group_size=a.group_size, group=a.group,
        normalize=a.normalize,
    )  # fmt: skip
    return Outcome(plain(report), 0, a.as_json)
