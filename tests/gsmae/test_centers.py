"""Predicted centres (PCP-MAE) and masks by importance: what the decoder knows, and which groups are hidden."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from gsmae.features import FeatureSpec, normalize
from gsmae.gaussians import columns
from gsmae.groups import Groups, importance_mask, masked_count
from gsmae.models import EncoderConfig, GaussianMAE, MAEConfig, reconstruct
from gsmae.models.blocks import Attention, Block
from gsmae.reconstruct import reconstruct_splat

BY = {"means": ("means",), "means and colour": ("means", "sh")}


def network(spec=FeatureSpec(), *, pooling=True, **changes: Any):  # noqa: B008
    encoder = EncoderConfig(width=12, depth=2, heads=2, groups=6, group_size=8, points=60, pooling=pooling)
    config = MAEConfig(encoder=encoder, decoder_depth=1, decoder_heads=2, **changes)
    return GaussianMAE(config, spec, generator=torch.Generator().manual_seed(0))


def splats(batch=2, n=40, seed=0):
    points = torch.rand(batch, n, 14, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    points[..., 7:11] = torch.nn.functional.normalize(points[..., 7:11], dim=-1)
    return points


def drawn(model, points, normalization=None, seed=0):
    groups = model.encoder.group(points)
    return groups, model.draw_mask(groups, torch.Generator().manual_seed(seed), normalization)


def test_a_context_is_looked_at_but_stays_as_it_is():
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    layer = Attention(8, 2)
    both = torch.cat([context, x], dim=1)
    torch.testing.assert_close(layer(x, context), layer(both)[:, 5:])
    block = Block(8, 2, 0.0)
    torch.testing.assert_close(block(x, context), block(both)[:, 5:])


@pytest.mark.parametrize("by", BY.values(), ids=BY)
def test_the_decoder_is_not_told_where_the_hidden_groups_are(by):
    spec = FeatureSpec(group=by)
    told, guessing = network(spec).eval(), network(spec, centers="predicted").eval()
    groups, mask = drawn(guessing, splats())
    elsewhere = Groups(groups.points, groups.centers + mask[..., None].float(), groups.indices)
    a, b = guessing(groups, mask), guessing(elsewhere, mask)
    assert torch.equal(a.decoded, b.decoded) and torch.equal(a.centers[..., columns(by)], b.centers[..., columns(by)])
    assert a.losses["centers"] != b.losses["centers"]
    assert not torch.equal(told(groups, mask).decoded, told(elsewhere, mask).decoded)


def test_the_visible_tokens_are_those_of_a_network_that_is_told():
    told, guessing = network().eval(), network(centers="predicted").eval()
    groups, mask = drawn(told, splats())
    torch.testing.assert_close(told(groups, mask).encoded, guessing(groups, mask).encoded)


def test_the_loss_of_the_centres_counts_by_its_weight_and_the_decoders_does_not_move_them():
    model = network(centers="predicted").eval()
    groups, mask = drawn(model, splats())
    out = model(groups, mask)
    fields = sum(loss for name, loss in out.losses.items() if name != "centers")
    torch.testing.assert_close(out.loss, fields + 0.1 * out.losses["centers"])
    truth = groups.centers[mask].unflatten(0, (2, -1))[..., :3]
    torch.testing.assert_close(out.losses["centers"], (out.centers[..., :3] - truth).square().mean())
    head = model.center_head.weight
    assert torch.autograd.grad(fields, head, allow_unused=True, retain_graph=True) == (None,)  # type: ignore[arg-type]
    assert torch.autograd.grad(out.losses["centers"], head)[0].abs().max() > 0
    silent = network(centers="predicted", weights={"centers": 0.0}).eval()(groups, mask)
    torch.testing.assert_close(silent.loss, fields)


def test_centres_are_learned():
    model = network(centers="predicted", pooling=False)
    groups, mask = drawn(model, splats(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        out = model(groups, mask)
        out.loss.backward()
        optimizer.step()
        losses.append(out.losses["centers"].item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_reconstruction_stands_where_the_centres_were_predicted():
    model = network(centers="predicted").eval()
    groups, mask = drawn(model, splats())
    out = model(groups, mask)
    made = reconstruct(out).unflatten(1, (6, 8))[:, :3, :, :3]
    torch.testing.assert_close(made, out.predicted["means"] + out.centers[:, :, None, :3])
    assert not torch.allclose(out.centers, groups.centers[mask].unflatten(0, (2, 3)))


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValidationError, match="all tokens"):
        MAEConfig(centers="predicted", tokenize="visible")


def test_heavy_groups_are_hidden_more_often_and_as_many_as_ever():
    weights = torch.tensor([1.0, 1, 1, 1, 1, 8]).log().expand(4000, 6)
    mask = importance_mask(weights, 0.34, torch.Generator().manual_seed(0))
    assert (mask.sum(1) == masked_count(6, 0.34)).all()
    often = mask.float().mean(0)
    # first or second of two draws by weight
    assert abs(float(often[5]) - (8 / 13 + 5 / 13 * 8 / 12)) < 0.02 and (often[:5] - often[0]).abs().max() < 0.03
    assert torch.equal(mask, importance_mask(weights, 0.34, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "spec", [FeatureSpec(), FeatureSpec(normalize=("means",)), FeatureSpec(embed=("means", "shapes"))]
)
def test_importance_is_that_of_the_gaussians_however_they_are_normalised(make_splat, spec):
    g = make_splat(60)
    points, how = normalize(g, spec)
    model = network(spec, mask="importance")
    groups = model.encoder.group(points[None])
    got = model._importance(groups.points, how)
    volumes = (g.scales / how.radius).prod(dim=1)
    expected = (g.opacities.clamp_min(1e-3) * volumes ** (1 / 3))[groups.indices].sum(-1).log()
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)
    mask = model.draw_mask(groups, torch.Generator().manual_seed(0), how)
    assert mask.sum().item() == 3 and model(groups, mask).loss.isfinite()


def test_without_the_constants_masks_by_importance_are_refused_where_they_are_needed():
    model = network(mask="importance")
    with pytest.raises(ValueError, match="give the normalization"):
        drawn(model, splats())


@pytest.mark.parametrize("changes", [{"mask": "importance"}, {"centers": "predicted"}, {"match": "nearest"}])
def test_a_splat_is_reconstructed_with_every_option(make_splat, changes):
    for spec in (FeatureSpec(), FeatureSpec(embed=("means", "shapes", "sh"), draw="importance")):
        made = reconstruct_splat(network(spec, **changes).eval(), make_splat(90), seed=0)
        assert len(made.predicted) == len(made.input) == 48 and len(made.visible) == 24
        assert all(torch.isfinite(v).all() for v in (made.predicted.means, made.predicted.covariances))
