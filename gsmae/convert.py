"""Weights of the released Gaussian-MAE and of Point-MAE: safe reading, sizes from shapes, loading with a report."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from . import checkpoint
from .errors import GsmaeError, InputError
from .features import ALL, FeatureSpec
from .files import sha256
from .gaussians import columns
from .models import (
    Classifier,
    ClassifierConfig,
    EncoderConfig,
    GaussianMAE,
    MAEConfig,
    Segmenter,
    SegmenterConfig,
)
from .released_names import POOL, PREFIX, Kind, Model, depth_of, kind_of, to_ours, to_released
from .weights import LoadReport, load_weights

__all__ = [
    "Converted",
    "Imported",
    "build",
    "convert",
    "import_released",
    "infer",
    "kind_of",
    "read_released",
    "to_ours",
    "to_released",
]

CAP = 2 << 30  # bytes of a checkpoint that will be read; the released ones have about 0.35e9 with their optimiser
TASK_NAMES: dict[Kind, str] = {"mae": "pretrain", "cls": "classify", "seg": "segment"}
WRAPPERS = ("base_model", "model_state_dict", "state_dict", "model")


@dataclass(frozen=True)
class Converted:
    """A checkpoint folder made of a released file. `unused` are names of the file that mean nothing here."""

    out: Path
    task: str
    parameters: int
    unused: tuple[str, ...]
    assumed: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """A released network as ours. `assumed` says in words what the file does not tell."""

    model: Model
    kind: Kind
    report: LoadReport
    assumed: tuple[str, ...]


def convert(
    path: str | Path,
    out: str | Path,
    *,
    heads: int | None = None,
    groups: int = 64,
    group_size: int | None = None,
    group: tuple[str, ...] | None = None,
    normalize: tuple[str, ...] | None = None,
) -> Converted:
    """Make a checkpoint folder, as training writes them, of a released file; arguments as of `import_released`."""
    imported = import_released(
        path, heads=heads, groups=groups, group_size=group_size, group=group, normalize=normalize
    )
    model = imported.model
    state = {
        "task": TASK_NAMES[imported.kind],
        "spec": model.spec.model_dump(mode="json"),
        "model": model.config.model_dump(mode="json"),
        "classes": [],  # the released files hold no names
        "parts": [],
        "train": {},
        "step": 0,
        "epoch": 0.0,
        "best": {},
        "source": {"path": str(path), "sha256": sha256(path), "assumed": list(imported.assumed)},
    }
    checkpoint.save(out, state, model, None)
    parameters = sum(p.numel() for p in model.parameters())
    return Converted(Path(out), state["task"], parameters, imported.report.unexpected, imported.assumed)


def import_released(
    path: str | Path,
    *,
    heads: int | None = None,
    groups: int = 64,
    group_size: int | None = None,
    group: tuple[str, ...] | None = None,
    normalize: tuple[str, ...] | None = None,
    cap: int = CAP,
) -> Imported:
    """Read a checkpoint of the released Gaussian-MAE, or of Point-MAE, into a model of the same function.

    The sizes come from the shapes; what those do not tell comes from the arguments, or is assumed and said.
    heads       attention heads; else one per 64 columns of width
    groups      number of groups
    group_size  Gaussians per group, where no prediction head tells; else 32
    group       fields grouped by, where their number of columns does not tell
    normalize   normalised fields; else what the released configurations have: all, for classification only means
    cap         largest file that is read, in bytes
    Raises InputError where the file is not such a checkpoint, or not a whole one.
    """
    state = read_released(path, cap)
    try:
        kind = kind_of(state)
        weights, unknown = to_ours(state, kind)
        config, spec, assumed = infer(
            state, kind, heads=heads, groups=groups, group_size=group_size, group=group, normalize=normalize
        )
    except (GsmaeError, ValueError) as error:
        raise InputError(path, " ".join(str(error).split())) from None
    model = build(config, spec)
    report = load_weights(model, weights).require(path)
    report = LoadReport(report.used, report.missing, (*report.unexpected, *unknown), report.mismatched)
    return Imported(model.eval(), kind, report, assumed)


def read_released(path: str | Path, cap: int = CAP) -> dict[str, Tensor]:
    """The named tensors of a PyTorch (.pth) or safetensors file, float32, without `module.` and outer levels.

    Nothing in the file is executed: PyTorch files are read with weights_only, and there is no other way to read one.
    Raises InputError where the file is too large, not readable so, or has no or non-finite weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file")
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
    except Exception as error:  # zipfile raises whatever the bytes lead it to
        raise InputError(path, f"not readable as PyTorch weights: {error}", "is the download complete?") from None
    with suppress(tarfile.TarError), tarfile.open(path, "r:"):  # torch would unpack it to look inside
        raise InputError(path, "is in PyTorch's old tar format, which is not read", "save it again with torch.save")
    if size > cap:
        raise InputError(path, f"has {size} bytes, more than the {cap} that are read")
    state = _unwrapped(_read(path))
    if not state:
        raise InputError(path, "has no weights", f"expected named tensors, at the top or under {', '.join(WRAPPERS)}")
    if sum(4 * v.numel() for v in state.values()) > cap:
        raise InputError(path, f"unfolds to more than the {cap} bytes that are read")
    plain = {}
    for name, value in state.items():
        if value.is_floating_point():
            value = value.to(torch.float32)
            if not value.isfinite().all():
                raise InputError(path, f"'{name}' has values that are not finite")
        plain[name] = value.contiguous()
    return plain


def _read(path: Path) -> Any:
    cure = "only tensors and plain values are read; save the weights alone, as {'base_model': state_dict}"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(path, f"not readable as safetensors: {error}") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything; it is always the file's fault
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(path, f"not readable as PyTorch weights: {reason[0][:200]}", cure) from None


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The tensors of the outermost level that has any, prefixes of wrapping modules removed."""
    for _ in WRAPPERS:
        if not isinstance(content, dict):
            return {}
        content = next((content[w] for w in WRAPPERS if isinstance(content.get(w), dict)), content)
    state = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor) and _plain(value):
            state[re.sub(r"^((module|base_model)\.)+", "", name)] = value.detach()
    return state


def _plain(value: Tensor) -> bool:
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_complex()


def build(config: MAEConfig | ClassifierConfig | SegmenterConfig, spec: FeatureSpec) -> Model:
    """The network that a configuration is for."""
    if isinstance(config, MAEConfig):
        return GaussianMAE(config, spec)
    return Classifier(config, spec) if isinstance(config, ClassifierConfig) else Segmenter(config, spec)


def infer(
    state: Mapping[str, Tensor],
    kind: Kind,
    *,
    heads: int | None = None,
    groups: int = 64,
    group_size: int | None = None,
    group: tuple[str, ...] | None = None,
    normalize: tuple[str, ...] | None = None,
) -> tuple[MAEConfig | ClassifierConfig | SegmenterConfig, FeatureSpec, tuple[str, ...]]:
    """Configuration of a released network from the shapes of its weights; arguments as of `import_released`.

    returns  configuration, FeatureSpec, and in words what was assumed
    """
    prefix, assumed = PREFIX[kind], [f"groups={groups}"]
    depth = depth_of(state, prefix + "blocks.blocks.")
    width = _shape(state, prefix + "pos_embed.2.weight")[0]
    for name in (f"{prefix}blocks.blocks.{i}.attn.qkv.weight" for i in range(depth)):
        if _shape(state, name) != (3 * width, width):
            raise ValueError(f"'{name}' has shape {_shape(state, name)}, not that of width {width}")
    if heads is None:
        if width % 64:
            raise ValueError(f"the number of attention heads is needed: width {width} is not a multiple of 64")
        heads = width // 64
        assumed.append(f"heads={heads}")
    embed = _fields("embedded", _shape(state, prefix + "encoder.first_conv.0.weight")[1], None, shape_whole=True)
    group = _fields("grouped by", _shape(state, prefix + "pos_embed.0.weight")[1], group, shape_whole=False)
    if normalize is None:
        normalize = ("means",) if kind == "cls" else ALL
        assumed.append(f"normalize={normalize}")
    if kind == "mae":
        group_size = _shape(state, "increase_dim.0.weight")[0] // 3
    elif group_size is None:
        group_size = 32
        assumed.append(f"group_size={group_size}")
    temperature = state.get(prefix + POOL + "learnable_temp")
    slots = None if temperature is None or temperature.numel() == group_size else temperature.numel()
    encoder = EncoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        groups=groups,
        group_size=group_size,
        pooling=temperature is not None,
        slots=slots,
    )
    spec = FeatureSpec(embed=embed, group=group, normalize=normalize)
    if kind == "mae":
        decoder = depth_of(state, "MAE_decoder.blocks.")
        return MAEConfig(encoder=encoder, decoder_depth=decoder, decoder_heads=heads), spec, tuple(assumed)
    if kind == "cls":
        last = "8" if "cls_head_finetune.8.weight" in state else "0"
        classes = _shape(state, f"cls_head_finetune.{last}.weight")[0]
        protocol = "full" if last == "8" else "linear"
        return ClassifierConfig(encoder=encoder, classes=classes, protocol=protocol), spec, tuple(assumed)
    return (
        SegmenterConfig(
            encoder=encoder,
            parts=_shape(state, "convs3.weight")[0],
            categories=_shape(state, "label_conv.0.weight")[1],
            taps=(4, 8, 12) if depth >= 12 else None,  # fixed in the released code, whatever the depth
        ),
        spec,
        tuple(assumed),
    )


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"'{name}' is missing")
    if state[name].ndim < 2:
        raise ValueError(f"'{name}' is not a matrix")
    return tuple(state[name].shape)


def _fields(role: str, width: int, given: tuple[str, ...] | None, shape_whole: bool) -> tuple[str, ...]:
    """The fields, means among them, that have this many columns together.

    shape_whole  scales and quats are there together or not at all
    """
    if given is not None:
        if len(columns(given)) != width:
            raise ValueError(f"the network has {width} columns to be {role}, but {given} have {len(columns(given))}")
        return given
    others = [name for name in ALL if name != "means"]
    fitting = [
        ("means", *rest)
        for count in range(len(others) + 1)
        for rest in combinations(others, count)
        if len(columns(("means", *rest))) == width and not (shape_whole and ("scales" in rest) != ("quats" in rest))
    ]
    if len(fitting) != 1:
        choice = " or ".join(str(names) for names in fitting) or "no choice of fields with means has as many"
        raise ValueError(f"{width} columns are {role}, which must be said: {choice}")
    return fitting[0]
