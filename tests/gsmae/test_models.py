"""Blocks, tokenizer and encoder."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from gsmae.features import FeatureSpec
from gsmae.gaussians import Gaussians, columns
from gsmae.groups import Groups
from gsmae.models import Classifier, ClassifierConfig, Encoder, EncoderConfig, GaussianMAE, MAEConfig
from gsmae.models.blocks import Attention, Block, DropPath, stack
from gsmae.models.encoder import thirds
from gsmae.models.tokenizer import Tokenizer

TINY = EncoderConfig(width=12, depth=2, heads=2, groups=4, group_size=8)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def splat(n=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=g)  # noqa: E731
    return Gaussians(draw(n, 3), draw(n, 4), draw(n, 3) - 3, draw(n), draw(n, 1, 3))


def settle(module):
    """Give BatchNorm statistics that are not trivial, so that a fold that ignores them shows."""
    g = torch.Generator().manual_seed(7)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d):
            assert child.running_mean is not None and child.running_var is not None
            child.running_mean.normal_(generator=g)
            child.running_var.uniform_(0.5, 2, generator=g)
        if isinstance(child, nn.Linear):
            child.weight.data.normal_(std=0.2, generator=g)
            if child.bias is not None:
                child.bias.data.normal_(std=0.2, generator=g)
    return module.eval()


def test_defaults_are_the_papers():
    config = MAEConfig()
    assert (config.encoder.width, config.encoder.depth, config.encoder.heads) == (384, 12, 6)
    assert (config.encoder.groups, config.encoder.group_size, config.encoder.candidates) == (64, 32, 40)
    assert (config.decoder_depth, config.mask_ratio, config.masked, config.encoder.drop_path) == (4, 0.6, 38, 0.1)


@pytest.mark.parametrize("pooling, pretrain, finetune", [(True, 28.83, 21.8), (False, 29.14, 22.1)])
def test_the_paper_sized_networks_have_as_many_parameters(pooling, pretrain, finetune):
    encoder = EncoderConfig(pooling=pooling)
    mae = GaussianMAE(MAEConfig(encoder=encoder), FeatureSpec())
    classifier = Classifier(ClassifierConfig(encoder=encoder), FeatureSpec())
    assert sum(p.numel() for p in mae.parameters()) / 1e6 == pytest.approx(pretrain, abs=0.005)
    assert sum(p.numel() for p in classifier.parameters()) / 1e6 == pytest.approx(finetune, abs=0.05)


def test_configurations_refuse_what_does_not_fit():
    with pytest.raises(ValidationError, match="heads"):
        EncoderConfig(width=100, heads=6)
    with pytest.raises(ValidationError):
        EncoderConfig(dpth=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        TINY.width = 7  # type: ignore[misc]
    assert EncoderConfig.model_validate(TINY.model_dump()) == TINY


def test_attention_is_softmax_of_scaled_products():
    layer = Attention(8, 2)
    x = random(3, 5, 8)
    q, k, v = layer.qkv(x).reshape(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = ((q @ k.transpose(-1, -2)) / 2).softmax(-1) @ v
    torch.testing.assert_close(layer(x), layer.out(expected.transpose(1, 2).reshape(3, 5, 8)))
    assert layer.qkv.bias is None


def test_a_block_is_pre_norm_with_exact_gelu():
    block = Block(8, 2, 0.0)
    x = random(2, 5, 8)
    y = x + block.attention(F.layer_norm(x, (8,), eps=1e-5))
    hidden = F.gelu(block.mlp.hidden(F.layer_norm(y, (8,), eps=1e-5)), approximate="none")
    torch.testing.assert_close(block(x), y + block.mlp.out(hidden))


def test_drop_path_drops_whole_samples_keeps_the_mean_and_grows_with_depth():
    drop = DropPath(0.3)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    assert set(y.flatten(1).std(1).tolist()) == {0.0}
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    rates = [module.rate for module in stack(8, 5, 2, 0.1).modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


def plain_tokens(t, groups: torch.Tensor) -> torch.Tensor:
    """The tokenizer as the paper draws it, concatenation and all."""
    x = groups.flatten(0, 1)

    def norm(layer, x):
        return layer(x.transpose(1, 2)).transpose(1, 2)

    x = t.local(F.relu(norm(t.lift_norm, t.lift(x))))
    if t.pool is not None:
        x = t.pool(x)
    x = torch.cat([x.max(1, keepdim=True).values.expand_as(x), x], dim=-1)
    return t.out(F.relu(norm(t.mix_norm, t.mix(x)))).max(1).values.unflatten(0, groups.shape[:2])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("slots", [None, 6])
def test_the_folded_tokenizer_computes_what_the_drawn_one_does(slots, training):
    tokenizer = settle(Tokenizer(14, 16, slots)).double().train(training)
    if slots is not None:
        tokenizer.get_parameter("pool.log_temperature").data = torch.linspace(-1, 1, slots).double()
    groups = random(2, 3, 10, 14).double()
    expected = plain_tokens(tokenizer, groups)
    gradient = torch.autograd.grad(expected.square().sum(), list(tokenizer.parameters()))
    got = tokenizer(groups)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got.square().sum(), list(tokenizer.parameters())), gradient, strict=True):
        torch.testing.assert_close(a, b)


def test_a_token_does_not_depend_on_the_order_in_its_group():
    for slots in (None, 5):
        tokenizer = settle(Tokenizer(14, 16, slots))
        groups = random(2, 3, 10, 14)
        torch.testing.assert_close(tokenizer(groups), tokenizer(groups.flip(2)), atol=1e-5, rtol=1e-5)


def test_the_position_enters_every_block():
    encoder = settle(Encoder(TINY, FeatureSpec()))
    tokens, positions = random(1, 4, 12), random(1, 4, 12, seed=1)
    x = tokens
    for block in encoder.blocks:
        x = block(x + positions)
    torch.testing.assert_close(encoder.transform(tokens, positions), encoder.norm(x))


def test_taps_are_the_normed_outputs_of_their_blocks():
    encoder = settle(Encoder(TINY, FeatureSpec()))
    tokens, positions = random(1, 4, 12), random(1, 4, 12, seed=1)
    first, last, again = encoder.taps(tokens, positions, (1, 2, 2))
    torch.testing.assert_close(first, encoder.norm(encoder.blocks[0](tokens + positions)))
    torch.testing.assert_close(last, encoder.transform(tokens, positions))
    assert torch.equal(last, again)
    assert (thirds(12), thirds(2), thirds(1)) == ((4, 8, 12), (1, 2, 2), (1, 1, 1))


@pytest.mark.parametrize("embed", [("means",), ("means", "opacities"), ("means", "sh"), ("means", "scales", "quats")])
def test_only_embedded_columns_reach_the_tokens_and_only_grouping_columns_the_positions(embed):
    spec = FeatureSpec(embed=embed, group=("means", "sh"))
    encoder = settle(Encoder(TINY, spec))
    points = random(1, 4, 10, 14)
    for column in range(14):
        changed = points.clone()
        changed[..., column] += 0.5
        assert torch.equal(encoder.tokenize(points), encoder.tokenize(changed)) == (column not in columns(embed))
        same = torch.equal(encoder.locate(points[:, :, 0]), encoder.locate(changed[:, :, 0]))
        assert same == (column not in columns(spec.group))


def test_a_whole_splat_goes_in_and_tokens_with_centres_come_out():
    encoder = settle(Encoder(TINY, FeatureSpec()))
    tokens, centers = encoder(splat())
    assert tokens.shape == (4, 12) and centers.shape == (4, 14)
    points = random(3, 50, 14)
    batch = encoder(points)
    assert batch.tokens.shape == (3, 4, 12) and batch.centers.shape == (3, 4, 14)
    torch.testing.assert_close(encoder(points[1]).tokens, batch.tokens[1])


def test_a_large_splat_is_thinned_to_the_configured_number():
    encoder = settle(Encoder(TINY.model_copy(update={"points": 20}), FeatureSpec()))
    seen = []
    group = encoder.group
    encoder.group = lambda points: (seen.append(points.shape[1]), group(points))[1]  # type: ignore[method-assign]
    encoder(splat(60))
    encoder(splat(15))
    assert seen == [20, 15]


def test_ready_groups_are_used_as_they_are():
    encoder = Encoder(TINY, FeatureSpec())
    groups = encoder.group(random(2, 50, 14))
    assert isinstance(groups, Groups) and encoder.group(groups) is groups
    assert groups.points.shape == (2, 4, TINY.candidates, 14)


def test_equal_generators_make_equal_networks():
    first, again, other = (
        GaussianMAE(MAEConfig(encoder=TINY, decoder_heads=2), FeatureSpec(), generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    a, b, c = (torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_evaluation_repeats_itself_to_the_bit():
    encoder = settle(Encoder(TINY, FeatureSpec()))
    assert torch.equal(encoder(splat()).tokens, encoder(splat()).tokens)
