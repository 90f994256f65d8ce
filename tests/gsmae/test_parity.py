"""The released network's numbers: every array of every case in a folder, reproduced by ours with converted weights.

The folder holds pairs NAME.json, NAME.npz; GSMAE_PARITY names it, default ../shared/parity beside the repository.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from gsmae.convert import build, infer, kind_of, to_ours, to_released
from gsmae.features import FeatureSpec
from gsmae.models import (
    Classifier,
    ClassifierConfig,
    EncoderConfig,
    GaussianMAE,
    MAEConfig,
    MAEOutput,
    Segmenter,
    SegmenterConfig,
)
from gsmae.weights import load_weights

pytestmark = pytest.mark.parity

FOLDER = Path(os.environ.get("GSMAE_PARITY") or Path(__file__).parents[3] / "shared" / "parity")
CASES = sorted(p.stem for p in FOLDER.glob("*.json") if p.with_suffix(".npz").exists()) if FOLDER.is_dir() else []
OURS = {"xyz": "means", "opacity": "opacities", "scale": "scales", "rotation": "quats", "sh": "sh"}
LOSSES = {"cd": "means", "density": "opacities", "scale": "scales", "rotation": "quats", "sh": "sh"}
TOLERANCE = 1e-4

if not CASES:
    CASES = [pytest.param(None, marks=pytest.mark.skip(reason=f"no parity cases in {FOLDER}"))]


def named_weights(parameters: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """The weights of a case, from names, shapes and seed alone (the recipe is the parity folder's)."""
    weights = {}
    for name, shape in parameters.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
        x = random.standard_normal(tuple(shape)).astype(np.float32)
        if name.endswith("running_var"):
            x = 1 + 0.5 * np.abs(x)
        elif name.endswith("running_mean"):
            x = 0.1 * x
        elif len(shape) == 1:
            x = 1 + 0.1 * x if name.endswith("weight") else 0.05 * x
        else:
            x = x / np.sqrt(max(int(np.prod(shape[1:])), 1))
        weights[name] = torch.as_tensor(np.asarray(x, dtype=np.float32))
    return weights


def fields(names: list[str]) -> tuple[str, ...]:
    return tuple(OURS[name] for name in names)


def configured(case: dict, weights: dict[str, torch.Tensor]):
    """Our configuration of a case; slots, classes and parts are told only by the shapes."""
    prefix = "MAE_encoder." if case["kind"] == "mae" else ""
    slots = weights.get(prefix + "encoder.n3_agg.learnable_temp")
    encoder = EncoderConfig(
        width=case["width"],
        depth=case["depth"],
        heads=case["heads"],
        groups=case["groups"],
        group_size=case["group_size"],
        pooling=case["splat_pooling"],
        slots=None if slots is None else len(slots),
    )
    # means are embedded and normalised whether they are named or not
    embed, normalize = (("means", *fields(case[key])) for key in ("attribute", "norm_attribute"))
    spec = FeatureSpec(embed=embed, group=fields(case["group_attribute"]), normalize=normalize)
    if case["kind"] == "mae":
        return MAEConfig(encoder=encoder, decoder_depth=case["decoder_depth"], decoder_heads=case["heads"]), spec
    if case["kind"] == "cls":
        last = max(n for n in weights if n.startswith("cls_head_finetune") and n.endswith("weight"))
        protocol = "linear" if last == "cls_head_finetune.0.weight" else "full"
        return ClassifierConfig(encoder=encoder, classes=len(weights[last]), protocol=protocol), spec
    taps = (4, 8, 12) if case["depth"] >= 12 else None
    categories = weights["label_conv.0.weight"].shape[1]
    return SegmenterConfig(encoder=encoder, parts=len(weights["convs3.weight"]), categories=categories, taps=taps), spec


def outputs(model: GaussianMAE | Classifier | Segmenter, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every output that a case can hold, by its name in the .npz."""
    groups = model.encoder.group(arrays["points"])
    out = {
        "group_points": groups.points,
        "centers": groups.centers,
        "tokens": model.encoder.tokenize(groups.points),
    }
    if isinstance(model, GaussianMAE):
        result: MAEOutput = model(arrays["points"], arrays["mask"])
        out |= {"encoder_output": result.encoded, "decoder_output": result.decoded}
        out |= {f"loss_{name}": result.losses[field] for name, field in LOSSES.items() if field in result.losses}
        out["loss"] = out["loss_total"] = result.loss
    elif isinstance(model, Classifier):
        out["logits"] = model(arrays["points"])
    else:
        category = arrays["category_one_hot"]
        assert torch.equal(category, torch.nn.functional.one_hot(category.argmax(1), category.shape[1]).float())
        out["log_probs"] = model(arrays["points"], arrays["query_xyz"], category.argmax(dim=1))
    return out


def read(name: str):
    case = json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: torch.as_tensor(file[key]) for key in file.files}
    return case, arrays, named_weights(case["parameters"], case["seed"])


@pytest.mark.parametrize("name", CASES)
def test_every_array_is_the_released_networks(name):
    case, arrays, weights = read(name)
    model = build(*configured(case, weights))
    ours, unknown = to_ours(weights, case["kind"])
    report = load_weights(model, ours)
    assert unknown == report.missing == report.unexpected == report.mismatched == ()

    with torch.inference_mode():
        got = outputs(model.eval(), arrays)
    inputs = {"points", "mask", "query_xyz", "category_one_hot"}
    expected = {key: value for key, value in arrays.items() if key not in inputs}
    assert expected, "the case has nothing to compare"
    assert set(expected) <= set(got), "the case has an array that is not compared"
    for key, value in expected.items():
        assert got[key].shape == value.shape, key
        error = (got[key] - value).abs().max().item()
        assert error <= TOLERANCE, f"{key} is off by {error:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_is_read_from_the_shapes(name):
    case, _, weights = read(name)
    assert kind_of(weights) == case["kind"]
    config, spec = configured(case, weights)
    got, got_spec, _ = infer(
        weights,
        case["kind"],
        heads=case["heads"],
        groups=case["groups"],
        group_size=case["group_size"],
        group=spec.group,
        normalize=spec.normalize,
    )
    assert got_spec == spec
    equal_slots = config.encoder.slots in (None, config.encoder.group_size)
    expected = config.encoder.model_copy(update={"slots": None}) if equal_slots else config.encoder
    assert got.model_copy(update={"encoder": expected}) == config.model_copy(update={"encoder": expected})
    assert got.encoder == expected


@pytest.mark.parametrize("name", CASES)
def test_weights_go_back_to_the_released_names_and_shapes(name):
    case, _, weights = read(name)
    model = build(*configured(case, weights))
    load_weights(model, to_ours(weights, case["kind"])[0])
    back = to_released(model)
    assert {key: list(value.shape) for key, value in back.items()} == case["parameters"]
    assert all(torch.equal(back[key], value) for key, value in weights.items() if "n3_agg" not in key)
