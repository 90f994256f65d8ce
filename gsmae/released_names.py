"""Names and shapes of the released Gaussian-MAE's weights, and ours: one rule, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from .models import Classifier, GaussianMAE, Segmenter
from .models.pooling import LIMIT

Kind = Literal["mae", "cls", "seg"]
Model = GaussianMAE | Classifier | Segmenter

ENCODER = {
    "encoder.first_conv.0": "encoder.tokenizer.lift",
    "encoder.first_conv.1": "encoder.tokenizer.lift_norm",
    "encoder.first_conv.3": "encoder.tokenizer.local",
    "encoder.second_conv.0": "encoder.tokenizer.mix",
    "encoder.second_conv.1": "encoder.tokenizer.mix_norm",
    "encoder.second_conv.3": "encoder.tokenizer.out",
    "pos_embed.0": "encoder.position.hidden",
    "pos_embed.2": "encoder.position.out",
    "norm": "encoder.norm",
}
BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "norm2",
    "mlp.fc1": "mlp.hidden",
    "mlp.fc2": "mlp.out",
}
TASK: dict[Kind, dict[str, str]] = {
    "mae": {
        "mask_token": "mask_token",
        "decoder_pos_embed.0": "decoder_position.hidden",
        "decoder_pos_embed.2": "decoder_position.out",
        "MAE_decoder.norm": "decoder_norm",
        "increase_dim.0": "heads.means",
        "opacity_head.0": "heads.opacities",
        "scale_head.0": "heads.scales",
        "rotation_head.0": "heads.quats",
        "sh_head.0": "heads.sh",
    },
    "cls": {
        "cls_token": "class_token",
        "cls_pos": "class_position",
        **{f"cls_head_finetune.{i}": f"head.{i}" for i in (0, 1, 4, 5, 8)},
    },
    "seg": {
        "label_conv.0": "category",
        "label_conv.1": "category_norm",
        "propagation_0.mlp_convs.0": "carry1",
        "propagation_0.mlp_bns.0": "carry1_norm",
        "propagation_0.mlp_convs.1": "carry2",
        "propagation_0.mlp_bns.1": "carry2_norm",
        "convs1": "head1",
        "bns1": "head1_norm",
        "convs2": "head2",
        "bns2": "head2_norm",
        "convs3": "head3",
    },
}
PREFIX: dict[Kind, str] = {"mae": "MAE_encoder.", "cls": "", "seg": ""}  # of the encoder's names
CONV = re.compile(r"(_conv\.\d|_dim\.0|_head\.0|mlp_convs\.\d|convs\d)$")  # 1x1 convolutions there, linear layers here
POOL = "encoder.n3_agg."
TEMPERATURE = "encoder.tokenizer.pool.log_temperature"


def kind_of(state: Mapping[str, Tensor]) -> Kind:
    """Which released network the names belong to; raises ValueError where none."""
    if any(name.startswith(("MAE_encoder.", "MAE_decoder.")) for name in state):
        return "mae"
    if any(name.startswith(("propagation_0.", "label_conv.")) for name in state):
        return "seg"
    if "cls_token" in state:
        return "cls"
    raise ValueError(f"not a Gaussian-MAE or Point-MAE network: its names begin with {', '.join(list(state)[:3])}")


def to_ours(state: Mapping[str, Tensor], kind: Kind) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Released names and shapes to ours.

    returns  the weights by our names, and the released names that mean nothing here
    Raises ValueError where a splat-pooling temperature is not positive, naming its slots.
    """
    table = dict(_names(kind, depth_of(state, PREFIX[kind] + "blocks.blocks."), depth_of(state, "MAE_decoder.blocks.")))
    weights, unknown = {}, []
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if name in table:
            weights[table[name]] = value
        elif module in table:
            conv = CONV.search(module) and value.ndim == 3 and value.shape[2] == 1
            weights[f"{table[module]}.{leaf}"] = value[..., 0] if conv else value
        elif not name.startswith(PREFIX[kind] + POOL):
            unknown.append(name)
    pool = PREFIX[kind] + POOL
    if pool + "learnable_temp" in state and pool + "log_temp_bias" in state:
        weights[TEMPERATURE] = _log_temperature(state[pool + "learnable_temp"], state[pool + "log_temp_bias"])
    return weights, tuple(unknown)


def to_released(model: Model) -> dict[str, Tensor]:
    """The weights of a model under the released names and shapes, for the released code to load.

    Temperatures t become a = log t, b = 0; `nnn.log_temp`, which the released network has and never uses, is zero.
    """
    kind: Kind = "mae" if isinstance(model, GaussianMAE) else "cls" if isinstance(model, Classifier) else "seg"
    decoder = len(model.decoder_blocks) if isinstance(model, GaussianMAE) else 0
    table = {ours: theirs for theirs, ours in _names(kind, len(model.encoder.blocks), decoder)}
    state = {}
    for name, value in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if name == TEMPERATURE:
            pool = PREFIX[kind] + POOL
            state[pool + "learnable_temp"] = value.clamp(-LIMIT, LIMIT)
            state[pool + "log_temp_bias"] = torch.zeros_like(value)
            state[pool + "nnn.log_temp"] = value.new_zeros(1)
        elif name in table:
            state[table[name]] = value
        else:
            theirs = table[module]
            conv = CONV.search(theirs) and value.ndim == 2
            state[f"{theirs}.{leaf}"] = value[..., None] if conv else value
    return state


def _names(kind: Kind, depth: int, decoder_depth: int) -> Iterator[tuple[str, str]]:
    """(released, ours) of every module and bare parameter."""
    for theirs, ours in ENCODER.items():
        yield PREFIX[kind] + theirs, ours
    yield from TASK[kind].items()
    for theirs, ours in BLOCK.items():
        for i in range(depth):
            yield f"{PREFIX[kind]}blocks.blocks.{i}.{theirs}", f"encoder.blocks.{i}.{ours}"
        for i in range(decoder_depth):
            yield f"MAE_decoder.blocks.{i}.{theirs}", f"decoder_blocks.{i}.{ours}"


def depth_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks have names that begin with `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _log_temperature(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + b) of each slot."""
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"learnable_temp has shape {tuple(a.shape)} and log_temp_bias {tuple(b.shape)}")
    temperature = a.double().exp() + b.double()
    low = (temperature.log().nan_to_num(-torch.inf) < -LIMIT).nonzero().flatten().tolist()
    if low:
        raise ValueError(
            f"splat-pooling temperature exp(a) + b is not positive in slots {low}: such a network divides by zero "
            "or inverts its own weights, and has no counterpart here"
        )
    return temperature.log().clamp(max=LIMIT).float()
