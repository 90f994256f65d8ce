"""Released checkpoints: read safely, converted exactly, refused with a reason."""

import io
import pickle
import zipfile
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gsmae.convert import build, convert, import_released, infer, read_released, to_ours, to_released
from gsmae.errors import InputError
from gsmae.features import ALL, FeatureSpec
from gsmae.groups import random_mask
from gsmae.models import ClassifierConfig, EncoderConfig, GaussianMAE, MAEConfig, Segmenter, SegmenterConfig
from gsmae.weights import load_weights
from gsmae.zoo import load_trained

ENCODER = EncoderConfig(width=12, depth=2, heads=2, groups=6, group_size=8)
HINTS: dict[str, Any] = {"heads": 2, "groups": 6, "group_size": 8}


def encoder(**changes):
    return ENCODER.model_copy(update=changes)


CONFIGS = {
    "mae": MAEConfig(encoder=encoder(), decoder_depth=1, decoder_heads=2),
    "mae plain": MAEConfig(encoder=encoder(pooling=False), decoder_depth=3, decoder_heads=2),
    "mae 32 slots": MAEConfig(encoder=encoder(slots=32), decoder_depth=1, decoder_heads=2),
    "cls": ClassifierConfig(encoder=encoder(), classes=7),
    "cls linear": ClassifierConfig(encoder=encoder(pooling=False), classes=7, protocol="linear"),
    "seg": SegmenterConfig(encoder=encoder(depth=13, pooling=False), parts=9, categories=3, taps=(4, 8, 12)),
}


def randomized(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=g) * 0.4 + (0.5 if value.ndim == 1 else -0.2))
    return model.eval()


def outputs(model):
    g = torch.Generator().manual_seed(5)
    points = torch.rand(2, 40, 14, generator=g) * 2 - 1
    with torch.inference_mode():
        if isinstance(model, GaussianMAE):
            return model(points, random_mask(2, 6, 0.6, g)).loss
        if isinstance(model, Segmenter):
            return model(points, points[:, :5, :3], torch.tensor([0, 2]))
        return model(points)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_comes_back_from_released_names_with_equal_outputs(tmp_path, name, suffix):
    spec = FeatureSpec() if not name.startswith("cls") else FeatureSpec(normalize=("means",))
    model = randomized(build(CONFIGS[name], spec))
    path = tmp_path / f"ckpt{suffix}"
    state = {f"module.{key}": value.contiguous() for key, value in to_released(model).items()}
    if suffix == ".pth":
        torch.save({"base_model": state, "optimizer": {"lr": 1e-3, "state": {}}, "epoch": 3, "metrics": {}}, path)
    else:
        save_file(state, path)
    imported = import_released(path, **HINTS)
    assert imported.model.config == CONFIGS[name] and imported.model.spec == spec
    assert not (imported.report.missing or imported.report.unexpected or imported.report.mismatched)
    assert len(imported.report.used) == len(model.state_dict())
    torch.testing.assert_close(outputs(imported.model), outputs(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["mae", "cls", "seg"])
def test_a_converted_checkpoint_is_one_of_ours(tmp_path, name):
    model = randomized(build(CONFIGS[name], FeatureSpec()))
    torch.save(to_released(model), tmp_path / "released.pth")
    done = convert(tmp_path / "released.pth", tmp_path / "ours", normalize=ALL, **HINTS)
    trained = load_trained(tmp_path / "ours")
    assert trained.task == done.task and trained.spec == model.spec and done.unused == ()
    torch.testing.assert_close(outputs(trained.model), outputs(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("embed, width", [(("means",), 3), (("means", "opacities"), 4), (("means", "sh"), 6),
    (("means", "scales", "quats"), 10), (("means", "opacities", "scales", "quats"), 11)])  # fmt: skip
def test_the_embedded_fields_are_told_by_the_number_of_columns(embed, width):
    model = build(CONFIGS["mae"], FeatureSpec(embed=embed))
    state = to_released(model)
    assert state["MAE_encoder.encoder.first_conv.0.weight"].shape == (128, width, 1)
    assert infer(state, "mae", heads=2, groups=6)[1].embed == embed


def test_grouping_fields_that_the_shapes_do_not_tell_must_be_said():
    state = to_released(build(CONFIGS["mae"], FeatureSpec(group=("means", "scales"))))
    with pytest.raises(ValueError, match=r"6 columns.*scales.*or.*sh"):
        infer(state, "mae", heads=2)
    assert infer(state, "mae", heads=2, group=("means", "scales"))[1].group == ("means", "scales")
    with pytest.raises(ValueError, match="6 columns.*have 7"):
        infer(state, "mae", heads=2, group=("means", "quats"))


def test_what_the_file_does_not_tell_is_said_to_be_assumed(tmp_path):
    torch.save(
        to_released(build(ClassifierConfig(encoder=encoder(width=64, heads=1)), FeatureSpec())), tmp_path / "a.pth"
    )
    imported = import_released(tmp_path / "a.pth")
    assert imported.assumed == ("groups=64", "heads=1", "normalize=('means',)", "group_size=32")
    assert imported.model.config.encoder.slots == 8


def test_a_temperature_that_is_not_positive_is_refused_by_slot(tmp_path):
    state = to_released(build(CONFIGS["mae"], FeatureSpec()))
    bias = state["MAE_encoder.encoder.n3_agg.log_temp_bias"]
    bias[2], bias[5] = -1.0, -3.0
    with pytest.raises(ValueError, match=r"slots \[2, 5\]"):
        to_ours(state, "mae")
    torch.save(state, tmp_path / "cold.pth")
    with pytest.raises(InputError, match=r"cold.pth.*\[2, 5\]"):
        import_released(tmp_path / "cold.pth", **HINTS)
    bias[:] = torch.linspace(-0.99, 5, 8)
    weights, _ = to_ours(state, "mae")
    log_temperature = weights["encoder.tokenizer.pool.log_temperature"]
    torch.testing.assert_close(log_temperature.exp(), 1 + bias, atol=1e-6, rtol=1e-6)


def test_an_encoder_moves_to_another_task_and_the_report_says_what_did_not():
    mae, classifier = build(CONFIGS["mae"], FeatureSpec()), build(CONFIGS["cls"], FeatureSpec())
    report = load_weights(classifier, randomized(mae).state_dict(), only="encoder.").require("run")
    assert report.missing == report.unexpected == report.mismatched == ()
    for name, value in classifier.encoder.state_dict().items():
        assert torch.equal(value, mae.encoder.state_dict()[name])
    report = load_weights(classifier, mae.state_dict())
    assert "class_token" in report.missing and "mask_token" in report.unexpected


def test_pooled_and_plain_tokenizers_do_not_mix_silently():
    pooled, plain = build(CONFIGS["mae"], FeatureSpec()), build(CONFIGS["cls linear"], FeatureSpec())
    report = load_weights(plain, pooled.state_dict(), only="encoder.")
    assert "encoder.tokenizer.local.weight has shape (128, 128) instead of (256, 128)" in report.mismatched
    with pytest.raises(InputError, match="runs/base.*tokenizer"):
        report.require("runs/base", "encoder.")


def test_names_that_mean_nothing_are_reported(tmp_path):
    state = to_released(build(CONFIGS["cls"], FeatureSpec()))
    torch.save(state | {"loss_ce.weight": torch.zeros(7)}, tmp_path / "a.pth")
    assert import_released(tmp_path / "a.pth", **HINTS).report.unexpected == ("loss_ce.weight",)


def test_a_checkpoint_that_lacks_something_is_refused_by_name(tmp_path):
    state = to_released(build(CONFIGS["mae"], FeatureSpec()))
    for gone in ("MAE_encoder.norm.weight", "increase_dim.0.weight", "MAE_encoder.pos_embed.2.weight"):
        torch.save({k: v for k, v in state.items() if k != gone}, tmp_path / "part.pth")
        with pytest.raises(InputError, match="part.pth.*missing"):
            import_released(tmp_path / "part.pth", **HINTS)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"base_model": {"norm.weight": torch.zeros(1)}, "epoch": Hostile()}, tmp_path / "evil.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("evil.pth", "pickle.pth"):
        with pytest.raises(InputError, match=f"{name}.*not readable.*weights alone"):
            read_released(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoints_are_refused_by_name(tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken"):
        import_released(path)


def test_a_cut_off_checkpoint_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save(to_released(build(CONFIGS["cls"], FeatureSpec())), buffer)
    (tmp_path / "half.pth").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match="half.pth"):
        import_released(tmp_path / "half.pth")


def test_too_large_files_are_not_read(tmp_path):
    path = tmp_path / "large.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with pytest.raises(InputError, match="large.pth.*1000"):
        read_released(path, cap=1000)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 200_000)
    with pytest.raises(InputError, match="bomb.pth.*bytes"):
        read_released(tmp_path / "bomb.pth", cap=100_000)
    torch.save({"a": torch.zeros(1).expand(10_000, 10_000)}, tmp_path / "fold.pth")
    with pytest.raises(InputError, match="fold.pth.*unfolds"):
        read_released(tmp_path / "fold.pth", cap=1_000_000)


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path):
    torch.save({"norm.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="nan.pth.*'norm.weight'"):
        read_released(tmp_path / "nan.pth")


def test_other_networks_are_refused_by_their_names(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="resnet.pth.*layer1.0.conv1.weight"):
        import_released(tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="no such file"):
        import_released(tmp_path / "absent.pth")


def test_half_precision_becomes_float32(tmp_path):
    torch.save({"model": {"norm.weight": torch.ones(2, dtype=torch.float16)}}, tmp_path / "half.pth")
    assert read_released(tmp_path / "half.pth")["norm.weight"].dtype == torch.float32
