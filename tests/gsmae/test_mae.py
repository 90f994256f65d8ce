"""Pretraining: what is seen, what is predicted, and that it learns."""

from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from gsmae.features import FeatureSpec
from gsmae.gaussians import FIELDS, columns
from gsmae.groups import random_mask
from gsmae.models import EncoderConfig, GaussianMAE, MAEConfig, reconstruct
from gsmae.models.mae import activate
from gsmae.ops.reference.points import chamfer

EMBED = [
    ("means", *o, *sr, *sh) for o in ((), ("opacities",)) for sr in ((), ("scales", "quats")) for sh in ((), ("sh",))
]
GROUP = [names for count in range(1, 6) for names in combinations(FIELDS, count)]


def splats(batch=2, n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, n, 14, generator=g) * 2 - 1
    points[..., 7:11] = torch.nn.functional.normalize(points[..., 7:11], dim=-1)
    points[..., 7:11] *= points[..., 7:8].sign()
    return points


def network(spec=FeatureSpec(), *, encoder=None, **changes):  # noqa: B008
    sizes: dict[str, Any] = {"width": 12, "depth": 2, "heads": 2, "groups": 6, "group_size": 8} | (encoder or {})
    config = MAEConfig(encoder=EncoderConfig(**sizes), decoder_depth=1, decoder_heads=2, **changes)
    return GaussianMAE(config, spec, generator=torch.Generator().manual_seed(0))


def mask_for(model, batch=2, seed=0):
    encoder = model.config.encoder
    return random_mask(batch, encoder.groups, model.config.mask_ratio, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("embed", EMBED, ids="+".join)
def test_every_choice_of_fields_trains_with_finite_gradients(embed, pooling):
    points = splats()
    for group in GROUP:
        normalize = ("means", *group[:2])
        model = network(FeatureSpec(embed=embed, group=group, normalize=normalize), encoder={"pooling": pooling})
        out = model(points, mask_for(model))
        assert set(out.losses) == set(out.predicted) == set(embed)
        out.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("pooling", [True, False])
def test_shapes_are_as_promised(pooling):
    model = network(encoder={"pooling": pooling})
    out = model(splats(), mask_for(model))
    assert out.encoded.shape == (2, 3, 12) and out.decoded.shape == (2, 3, 12)
    for name, width in FIELDS.items():
        assert out.predicted[name].shape == out.targets[name].shape == (2, 3, 8, width)
    assert out.groups.points.shape == (2, 6, 10 if pooling else 8, 14)
    assert out.loss.shape == ()
    torch.testing.assert_close(out.loss, torch.stack(list(out.losses.values())).sum())


def test_the_encoder_never_sees_a_hidden_group():
    model = network().eval()
    points = splats()
    mask = mask_for(model)
    groups = model.encoder.group(points)
    other = torch.where(mask[..., None, None], torch.rand_like(groups.points), groups.points)
    spoiled = type(groups)(other, groups.centers, groups.indices)
    assert torch.equal(model(groups, mask).encoded, model(spoiled, mask).encoded)
    assert not torch.equal(model(groups, mask).loss, model(spoiled, mask).loss)


def test_tokenizing_all_or_only_visible_groups_differs_in_batch_statistics_alone():
    visible, everything = network(tokenize="visible"), network(tokenize="all")
    points, mask = splats(), mask_for(visible)
    a, b = visible.eval()(points, mask).loss, everything.eval()(points, mask).loss
    torch.testing.assert_close(a, b)
    visible.train()(points, mask)
    everything.train()(points, mask)
    one, other = (dict(m.named_buffers())["encoder.tokenizer.lift_norm.running_mean"] for m in (visible, everything))
    assert not torch.allclose(one, other)


def test_losses_are_chamfer_on_relative_means_and_l1_on_the_rest():
    model = network().eval()
    out = model(splats(), mask_for(model))
    hidden = out.groups.points[out.mask][:, :8]
    for name, loss in out.losses.items():
        target, predicted = hidden[..., columns([name])], out.predicted[name].flatten(0, 1)
        expected = chamfer(predicted, target) if name == "means" else (predicted - target).abs().mean()
        torch.testing.assert_close(loss, expected)


def test_loss_weights_count_and_unknown_fields_are_refused():
    model = network(weights={"sh": 0.0, "means": 2.0}).eval()
    out = model(splats(), mask_for(model))
    rest = out.losses["opacities"] + out.losses["scales"] + out.losses["quats"]
    torch.testing.assert_close(out.loss, 2 * out.losses["means"] + rest)
    with pytest.raises(ValidationError, match="rotation"):
        MAEConfig(weights={"rotation": 1.0})


def test_matching_by_position_forgives_another_order_of_the_slots():
    slots, nearest = network().eval(), network(match="nearest").eval()
    points, mask = splats(), mask_for(slots)
    predicted = slots(points, mask).predicted
    hidden = slots.encoder.group(points).points[mask].unflatten(0, (2, -1))[:, :, :8].flip(2)
    perfect = {name: hidden[..., columns([name])] for name in predicted}
    groups = slots.encoder.group(points).points[mask].unflatten(0, (2, -1))
    assert all(torch.equal(v, perfect[k]) for k, v in nearest._targets(groups, perfect).items() if k != "means")
    assert not torch.equal(slots._targets(groups, perfect)["sh"], perfect["sh"])
    assert nearest(points, mask).loss.isfinite()


def test_each_field_is_predicted_in_the_range_that_it_has():
    x = torch.linspace(-3, 3, 24)
    every, none = FeatureSpec(), FeatureSpec(normalize=("means",))
    torch.testing.assert_close(activate("opacities", x, every), x.tanh())
    torch.testing.assert_close(activate("opacities", x, none), x.sigmoid())
    torch.testing.assert_close(activate("scales", x, every), x.tanh())
    torch.testing.assert_close(activate("scales", x, none), x.relu())
    assert all(torch.equal(activate(name, x, spec), x) for name in ("means", "sh") for spec in (every, none))


def test_quaternions_are_unit_start_at_the_identity_and_are_not_edited_in_place():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    before = x.detach().clone()
    quats = activate("quats", x, FeatureSpec())
    assert torch.equal(x.detach(), before)
    torch.testing.assert_close(quats.norm(dim=-1), torch.ones(5, dtype=torch.float64))
    assert activate("quats", torch.zeros(4), FeatureSpec()).tolist() == [1, 0, 0, 0]
    t = before.tanh()
    t[:, 0] = 1 - t[:, 0]
    torch.testing.assert_close(quats.detach(), t / t.norm(dim=-1, keepdim=True))
    # the released head overwrites tanh's output, which tanh's gradient still needs
    assert torch.autograd.gradcheck(lambda y: activate("quats", y, FeatureSpec()), x)


def test_twenty_steps_on_one_batch_lower_the_loss():
    model = network(encoder={"drop_path": 0.0})
    points, mask = splats(4), mask_for(model, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        out = model(points, mask)
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_evaluation_repeats_itself_to_the_bit_and_leaves_its_inputs_alone():
    model = network().eval()
    points, mask = splats(), mask_for(model)
    before = points.clone(), mask.clone()
    first, second = model(points, mask), model(points, mask)
    assert torch.equal(first.loss, second.loss) and torch.equal(first.decoded, second.decoded)
    assert torch.equal(points, before[0]) and torch.equal(mask, before[1])


def test_a_sample_does_not_depend_on_its_batch_in_evaluation():
    model = network().eval()
    points, mask = splats(3), mask_for(model, 3)
    torch.testing.assert_close(model(points, mask).decoded[1:2], model(points[1:2], mask[1:2]).decoded)


def test_masks_that_cannot_be_batched_are_refused():
    model = network()
    uneven = torch.zeros(2, 6, dtype=torch.bool)
    uneven[0, :2] = uneven[1, :3] = True
    with pytest.raises(ValueError, match="2 to 3"):
        model(splats(), uneven)
    for value in (True, False):
        with pytest.raises(ValueError, match="some must be hidden"):
            model(splats(), torch.full((2, 6), value))
    with pytest.raises(ValueError, match="shape"):
        model(splats(), torch.ones(2, 5, dtype=torch.bool))


def test_the_configured_kind_of_mask_is_drawn():
    points = splats()
    for kind in ("random", "block"):
        model = network(mask=kind)
        groups = model.encoder.group(points)
        mask = model.draw_mask(groups, torch.Generator().manual_seed(0))
        assert mask.shape == (2, 6) and mask.sum(1).tolist() == [model.config.masked] * 2
        assert torch.equal(mask, model.draw_mask(groups, torch.Generator().manual_seed(0)))


class Waiting(TorchDispatchMode):
    """Notes every operation for whose result a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        by_mask = "index" in name and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for a in args
            if isinstance(a, list | tuple)
            for i in a
        )
        if by_mask or any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_with_a_known_count_never_waits_for_the_device():
    model = network()
    points, mask = splats(), mask_for(model)
    with Waiting() as counted:
        model(points, mask)
    assert counted.found, "counting a mask waits; without this the next line proves nothing"
    with Waiting() as step:
        model(points, mask, masked=3).loss.backward()
    assert step.found == []


def test_reconstruction_is_the_truth_where_visible_and_the_prediction_where_masked():
    spec = FeatureSpec(embed=("means", "sh"))
    model = network(spec).eval()
    points, mask = splats(), mask_for(model)
    out = model(points, mask)
    rows = reconstruct(out).unflatten(1, (6, 8))
    truth = out.groups.points[:, :, :8].clone()
    truth[..., :3] += out.groups.centers[:, :, None, :3]
    torch.testing.assert_close(rows[:, 3:], truth[~mask].unflatten(0, (2, 3)))
    centers = out.groups.centers[mask].unflatten(0, (2, 3))
    torch.testing.assert_close(rows[:, :3, :, :3], out.predicted["means"] + centers[:, :, None, :3])
    assert torch.equal(rows[:, :3, :, 3:11], truth[mask].unflatten(0, (2, 3))[..., 3:11])


def test_half_precision_arithmetic_gives_nearly_the_same_loss():
    model = network().eval()
    points, mask = splats(), mask_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(points, mask)
    assert half.decoded.dtype == torch.bfloat16 and half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, model(points, mask).loss, atol=0.02, rtol=0.02)


def test_a_step_on_ready_groups_compiles_to_one_graph():
    model = network()
    groups, mask = model.encoder.group(splats()), mask_for(model)
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(groups, mask, 3).loss, model(groups, mask, 3).loss)
