"""Classifier and segmenter: their formulas, and protocols that really freeze."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gsmae.features import FeatureSpec
from gsmae.groups import group
from gsmae.models import Classifier, ClassifierConfig, EncoderConfig, Segmenter, SegmenterConfig
from gsmae.ops.reference.points import interpolate

ENCODER = EncoderConfig(width=12, depth=3, heads=2, groups=6, group_size=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def splats(batch=4, n=40):
    return torch.rand(batch, n, 14, generator=seeded()) * 2 - 1


def classifier(protocol: Any = "full", **changes):
    config = ClassifierConfig(encoder=ENCODER, classes=5, protocol=protocol, **changes)
    return Classifier(config, FeatureSpec(), generator=seeded())


def segmenter(spec=FeatureSpec(), **changes):  # noqa: B008
    return Segmenter(SegmenterConfig(encoder=ENCODER, parts=7, categories=3, **changes), spec, generator=seeded())


def step(model, loss):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss().backward()
    optimizer.step()


@pytest.mark.parametrize("protocol", ["full", "mlp3", "linear"])
def test_each_protocol_has_its_head_and_trains_it(protocol):
    model = classifier(protocol)
    scores = model(splats())
    assert scores.shape == (4, 5)
    assert len([m for m in model.head if isinstance(m, nn.Linear)]) == (1 if protocol == "linear" else 3)
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())


@pytest.mark.parametrize("protocol", ["mlp3", "linear"])
def test_a_frozen_encoder_does_not_change_in_any_way(protocol):
    # released: the class token stays trainable, and the tokenizer's BatchNorm drifts
    model = classifier(protocol)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    for _ in range(3):
        step(model, lambda: model(splats()).square().sum())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("head.") for name in changed)
    assert all(p.requires_grad == name.startswith("head.") for name, p in model.named_parameters())


@pytest.mark.parametrize("protocol", ["mlp3", "linear"])
def test_a_frozen_encoder_stays_in_evaluation_mode_whatever_train_says(protocol):
    model = classifier(protocol)
    for mode in (True, False, True):
        model.train(mode)
        assert not any(m.training for m in model.encoder.modules())
        assert model.head.training == mode
    assert torch.equal(model.features(splats()), model.features(splats()))


def test_a_full_model_trains_everything_and_its_batch_statistics():
    model = classifier().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(p.requires_grad for p in model.parameters())
    step(model, lambda: model(splats()).square().sum())
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert not same


def test_features_are_the_class_token_and_the_maximum_of_the_others():
    model = classifier().eval()
    points = splats()
    groups = model.encoder.group(points)
    x = torch.cat([model.class_token.expand(4, 1, -1), model.encoder.tokenize(groups.points)], dim=1)
    positions = torch.cat([model.class_position.expand(4, 1, -1), model.encoder.locate(groups.centers)], dim=1)
    for block in model.encoder.blocks:
        x = block(x + positions)
    x = model.encoder.norm(x)
    torch.testing.assert_close(model.features(points), torch.cat([x[:, 0], x[:, 1:].amax(1)], dim=-1))
    torch.testing.assert_close(model(points), model(group(points, ("means",), 6, 10)))


def test_twenty_steps_on_one_batch_learn_its_labels():
    model = classifier(dropout=0.0)
    points, labels = splats(), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(points), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_segmentation_computes_the_papers_formula():
    model = segmenter().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.2, generator=seeded(1))
        if isinstance(module, nn.BatchNorm1d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 2, generator=seeded(2))
    points, queries = splats(), torch.rand(4, 9, 3, generator=seeded(3)) * 2 - 1
    category = torch.tensor([0, 2, 1, 2])

    def norm(layer, x):
        return layer(x.transpose(1, 2)).transpose(1, 2)

    groups = model.encoder.group(points)
    tokens, positions = model.encoder.tokenize(groups.points), model.encoder.locate(groups.centers)
    features = torch.cat(model.encoder.taps(tokens, positions, (1, 2, 3)), dim=-1)
    x = torch.cat([queries, interpolate(queries, groups.centers[..., :3], features)], dim=-1)
    x = norm(model.carry1_norm, model.carry1(x)).relu()
    x = norm(model.carry2_norm, model.carry2(x)).relu()
    named = nn.functional.one_hot(category, 3).float()
    named = nn.functional.leaky_relu(model.category_norm(model.category(named)), 0.2)
    whole = torch.cat([features.amax(1), features.mean(1), named], dim=-1)
    x = torch.cat([x, whole[:, None].expand(-1, 9, -1)], dim=-1)
    x = norm(model.head1_norm, model.head1(x)).relu()
    x = norm(model.head2_norm, model.head2(x)).relu()
    expected = model.head3(x).log_softmax(-1)
    torch.testing.assert_close(model(points, queries, category), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected.exp().sum(-1), torch.ones(4, 9))


def test_segmentation_gradients_reach_every_parameter():
    model = segmenter()
    queries = torch.rand(4, 9, 3, generator=seeded(3))
    model(splats(), queries, torch.tensor([0, 1, 2, 0])).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_segmentation_uses_xyz_positions_when_groups_are_made_otherwise():
    # released: crashes for any grouping but xyz
    model = segmenter(FeatureSpec(group=("means", "sh"))).eval()
    assert model.encoder.position.hidden.in_features == 3
    assert model(splats(), torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.int64)).isfinite().all()


def test_the_depths_of_the_features_can_be_chosen():
    early, late = segmenter(taps=(1, 1, 1)).eval(), segmenter(taps=(3, 3, 3)).eval()
    arguments = splats(), torch.zeros(4, 2, 3), torch.zeros(4, dtype=torch.int64)
    assert not torch.equal(early(*arguments), late(*arguments))
    with pytest.raises(ValidationError, match="taps"):
        SegmenterConfig(encoder=ENCODER, taps=(1, 2, 4))


def test_evaluation_repeats_itself_to_the_bit():
    points, queries, category = splats(), torch.rand(4, 9, 3, generator=seeded()), torch.zeros(4, dtype=torch.int64)
    one, other = classifier().eval(), segmenter().eval()
    assert torch.equal(one(points), one(points))
    assert torch.equal(other(points, queries, category), other(points, queries, category))
