"""Latent targets: a teacher that only follows, blocks that do not overlap, a collapse that is seen."""

import pytest
import torch
from pydantic import ValidationError

from gsmae import checkpoint, zoo
from gsmae.batch import Batch
from gsmae.features import FeatureSpec
from gsmae.groups import block_parts
from gsmae.models import EncoderConfig, GaussianLatent, LatentConfig, MAEConfig, effective_rank
from gsmae.models.latent import shares
from gsmae.tasks import TASKS, Pretrain
from gsmae.training import TrainConfig, train
from gsmae.training.optimizer import adamw

ENCODER = EncoderConfig(width=12, depth=2, heads=2, groups=12, group_size=6, points=60, drop_path=0.1)


def network(latent=LatentConfig(momentum=0.9), **changes):  # noqa: B008
    config = MAEConfig(
        encoder=ENCODER, decoder_depth=1, decoder_heads=2, objective="latent", mask_ratio=0.5, latent=latent, **changes
    )
    model = Pretrain.model(config, FeatureSpec(), torch.Generator().manual_seed(0))
    assert isinstance(model, GaussianLatent)
    return model


def splats(batch=3, n=60, seed=0):
    points = torch.rand(batch, n, 14, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    points[..., 7:11] = torch.nn.functional.normalize(points[..., 7:11], dim=-1)
    return points


def drawn(model, points, seed=0):
    groups = model.encoder.group(points)
    return groups, model.draw_mask(groups, torch.Generator().manual_seed(seed))


def test_blocks_have_the_papers_sizes_do_not_overlap_and_are_compact():
    assert shares(32, (11, 9, 7, 5)) == (11, 9, 7, 5) and shares(6, (11, 9, 7, 5)) == (2, 2, 1, 1)
    assert shares(4, (100, 1, 1, 1)) == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="too few"):
        shares(3, (1, 1, 1, 1))
    centers = splats(5, 64)
    parts = block_parts(centers, (11, 9, 7, 5), torch.Generator().manual_seed(0))
    assert [(parts == k).sum(1).tolist() for k in range(5)] == [[32] * 5, [11] * 5, [9] * 5, [7] * 5, [5] * 5]
    for part, sample in zip(parts, centers[..., :3], strict=True):
        distance = torch.cdist(sample, sample)
        first = distance[part == 1]  # around one centre, all of the block are nearer than all others
        assert (first[:, part == 1].max(1).values <= first[:, part != 1].min(1).values).any()
    assert not torch.equal(parts, block_parts(centers, (11, 9, 7, 5), torch.Generator().manual_seed(1)))


def test_the_teacher_begins_as_the_student_gets_no_gradients_and_never_leaves_evaluation():
    model = network().train()
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), model.encoder.parameters(), strict=True))
    model(*drawn(model, splats())).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "teacher" not in n
    )
    assert not any(m.training for m in model.teacher.modules()) and model.encoder.training
    held = {id(p) for group in adamw(model, TrainConfig()).param_groups for p in group["params"]}
    assert not held & {id(p) for p in model.teacher.parameters()}


def test_the_teacher_follows_by_the_momentum_and_stands_still_at_the_end():
    model = network()
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    Pretrain().after_step(model, 0.0)
    for p, old in zip(model.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(p, old + 0.1)
    Pretrain().after_step(model, 0.5)  # half a cosine: 0.95
    for p, old in zip(model.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(p, old + 0.1 + 0.9 * 0.05)
    still = [p.clone() for p in model.teacher.parameters()]
    Pretrain().after_step(model, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), still, strict=True))


def test_the_student_sees_only_the_context_and_the_targets_come_from_everything():
    model = network().eval()
    points = splats()
    groups, blocks = drawn(model, points)
    other = torch.where((blocks > 0)[..., None, None], torch.rand_like(groups.points), groups.points)
    spoiled = type(groups)(other, groups.centers, groups.indices)
    a, b = model(groups, blocks), model(spoiled, blocks)
    assert torch.equal(a.encoded, b.encoded) and torch.equal(a.predicted, b.predicted)
    assert not torch.equal(a.targets, b.targets)
    features = model.teacher.transform(model.teacher.tokenize(groups.points), model.teacher.locate(groups.centers))
    expected = torch.nn.functional.layer_norm(features, (12,))
    torch.testing.assert_close(
        a.targets[:, :2], torch.stack([f[p == 1] for f, p in zip(expected, blocks, strict=True)])
    )


def test_each_block_is_predicted_without_the_centres_of_the_others():
    model = network().eval()
    groups, blocks = drawn(model, splats())
    moved = groups.centers + (blocks == 4)[..., None].float()
    a, b = model(groups, blocks).predicted, model(type(groups)(groups.points, moved, groups.indices), blocks).predicted
    changed = (a != b).any(dim=-1)
    assert not changed[:, :5].any() and changed[:, 5:].all()  # sizes 2, 2, 1, 1


def test_a_collapse_is_seen():
    model = network().eval()
    batches = [Batch(splats(4, seed=s), torch.zeros(4), tuple("abcd")) for s in range(3)]
    with torch.no_grad():
        healthy = Pretrain().evaluate(model, batches)
        for p in model.teacher.parameters():
            p.zero_()
        model.teacher.norm.bias.copy_(torch.linspace(-1, 1, 12))
        collapsed = Pretrain().evaluate(model, batches)
    assert "loss" not in healthy and healthy["objects"] == 12  # the loss would choose the collapsed one
    assert healthy["feature_std"] > 0.01 and healthy["feature_rank"] > 2
    assert collapsed["feature_std"] < 1e-6
    logs = Pretrain().loss(model, batches[0], torch.Generator().manual_seed(0))[1]
    assert logs["teacher_std"] < 1e-6 < logs["student_std"]


def test_the_effective_rank_by_hand():
    spread = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert effective_rank(spread) == pytest.approx(2) and effective_rank(spread[:2]) == pytest.approx(1)


def test_the_spread_penalty_pulls_collapsed_features_apart():
    plain, pushed = network(), network(LatentConfig(momentum=0.9, spread=1.0))
    points = splats()
    for model in (plain, pushed):
        model.eval()(*drawn(model, points)).loss.backward()
    assert not torch.equal(plain.encoder.norm.weight.grad, pushed.encoder.norm.weight.grad)  # type: ignore[arg-type]
    out, again = (m(*drawn(m, points)) for m in (plain, pushed))
    assert again.loss > out.loss


def test_a_run_saves_its_teacher_learns_and_gives_back_an_encoder(tmp_path):
    class Stream:
        def __len__(self):
            return 6

        def epoch(self, epoch, skip=0):
            for number in range(skip, 6):
                yield Batch(splats(4, seed=number), torch.zeros(4), tuple("abcd"))

    model = network()
    config = TrainConfig(epochs=6, warmup_epochs=1, val_every=3, save_every=3, batch_size=4, lr=3e-3)
    header = {
        "task": "pretrain",
        "spec": model.spec.model_dump(mode="json"),
        "model": model.config.model_dump(mode="json"),
    }
    report = train(Pretrain(), model, Stream(), Stream(), config, tmp_path / "run", header)  # type: ignore[arg-type]
    assert report.best == checkpoint.steps(tmp_path / "run")[-1].name  # the newest is the best
    trained = zoo.load_trained(tmp_path / "run").model
    assert isinstance(trained, GaussianLatent)
    for a, b in ((trained.teacher, model.teacher), (trained.encoder, model.encoder)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    pairs = zip(trained.teacher.parameters(), trained.encoder.parameters(), strict=True)
    assert any(not torch.equal(x, y) for x, y in pairs)
    assert zoo.load(tmp_path / "run")(splats(1)[0]).tokens.shape == (12, 12)
    assert set(TASKS) >= {"pretrain"}


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    """The teacher is state that only the checkpoint holds."""
    whole, half = network(), network()
    optimizers = [adamw(m, TrainConfig(lr=1e-2)) for m in (whole, half)]

    def steps(model, optimizer, numbers):
        model.eval()
        for number in numbers:
            groups, blocks = drawn(model, splats(seed=number), number)
            optimizer.zero_grad()
            model(groups, blocks).loss.backward()
            optimizer.step()
            model.follow(number / 6)

    steps(whole, optimizers[0], range(6))
    steps(half, optimizers[1], range(3))
    checkpoint.save(tmp_path / "step_00000003", {}, half, optimizers[1])
    found = checkpoint.load(tmp_path / "step_00000003", with_optimizer=True)
    again = network()
    again.load_state_dict(found.weights)
    optimizer = adamw(again, TrainConfig(lr=1e-2))
    checkpoint.restore_optimizer(again, optimizer, found.optimizer)
    steps(again, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValidationError, match="to reconstruct"):
        MAEConfig(objective="latent", centers="predicted")
    with pytest.raises(ValidationError):
        LatentConfig(momentum=1.5)
    with pytest.raises(ValueError, match="too few"):
        network(LatentConfig(blocks=(1,) * 7))
