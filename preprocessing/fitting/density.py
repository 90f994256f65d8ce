"""How many Gaussians, and where: their optimiser state while they are cloned, split and pruned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsmae.gaussians import Gaussians, rotation_matrices, unit_quats

from ..profiles import FitConfig

RESET = float(torch.tensor(0.01).logit())  # where opacities are set back to
NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")


def trainable(gaussians: Gaussians) -> dict[str, Tensor]:
    """The tensors that are optimised, by NAMES: sh0 [N, 1, 3] and shN [N, K - 1, 3] apart, for their rates differ."""
    g = gaussians
    values = (g.means, g.quats, g.log_scales, g.logit_opacities, g.sh[:, :1], g.sh[:, 1:])
    return dict(zip(NAMES, values, strict=True))


def rates(config: FitConfig) -> dict[str, float]:
    """The rate of each trainable tensor; that of the centres is the one at the start."""
    c = config
    values = (c.lr_means, c.lr_quats, c.lr_scales, c.lr_opacities, c.lr_sh, c.lr_sh / 20)
    return dict(zip(NAMES, values, strict=True))


def assembled(rows: dict[str, Tensor]) -> Gaussians:
    """What `trainable` took apart."""
    sh = torch.cat([rows["sh0"], rows["shN"]], dim=1)
    return Gaussians(rows["means"], rows["quats"], rows["log_scales"], rows["logit_opacities"], sh)


def budget_at(share: float, start: int, config: FitConfig) -> int | None:
    """How many Gaussians there may be after densifying at this share of the schedule; None = no densification then."""
    c = config
    if not c.grow_from <= share <= c.grow_until:
        return None
    progress = min(1.0, (share - c.grow_from) / max(0.8 * (c.grow_until - c.grow_from), 1e-9))
    return int(start + (c.cap - start) * progress)


def densified(
    rows: dict[str, Tensor], pull: Tensor, seen: Tensor, budget: int, config: FitConfig, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Clone or split what is pulled hardest, within the budget; then drop what cannot be seen (3DGS, section 5).

    rows       the trainable tensors of one splat, each [N, ...]
    pull       [N] sum of the screen-space gradients, seen [N] over how many steps
    generator  of the CPU, so that every device draws the same
    returns    the new rows, and for each the old row whose optimiser state it keeps, -1 = none
    """
    c = config
    rows = {name: value.clone() for name, value in rows.items()}
    device = rows["means"].device
    pull = pull / seen.clamp_min(1)
    kept = torch.arange(len(pull), device=device)
    room = max(0, min(budget, c.cap) - len(pull))
    chosen = (pull > c.grow_gradient).nonzero()[:, 0]
    chosen = chosen[pull[chosen].argsort(descending=True, stable=True)[:room]].sort().values
    if len(chosen):
        scales = rows["log_scales"][chosen].exp()
        split = scales.amax(dim=1) > c.split_scale
        # a clone is an exact copy; of a split, both halves are drawn from the parent and made smaller
        turn = rotation_matrices(unit_quats(rows["quats"][chosen]))
        noise = torch.randn(2, len(chosen), 3, generator=generator).to(device)
        moved = torch.einsum("nij,bnj->bni", turn, noise * scales) * split[:, None]
        rows["log_scales"][chosen] -= split[:, None] * torch.log(torch.tensor(1.6))
        born = {name: value[chosen].clone() for name, value in rows.items()}
        rows["means"][chosen] += moved[0]
        born["means"] += moved[1]
        rows = {name: torch.cat([value, born[name]]) for name, value in rows.items()}
        kept = torch.cat([kept, torch.full_like(chosen, -1)])
    visible = rows["logit_opacities"].sigmoid() > c.opacity_floor
    if not visible.all() and visible.any():
        index = visible.nonzero()[:, 0]
        rows, kept = {name: value[index] for name, value in rows.items()}, kept[index]
    return rows, kept


def weighted(seen: Tensor, scales: Tensor) -> Tensor:
    """Contributions [N] times relative volume^0.1, from scales [N, 3] (LightGaussian, eq. 5).

    The reference volume is the one at rank 90 % of the descending order, as in its released code.
    """
    volume = scales.prod(dim=1)
    reference = volume.sort(descending=True).values[int(0.9 * (len(volume) - 1))].clamp_min(1e-30)
    return seen * (volume / reference) ** 0.1


def prunings_at(step: int, config: FitConfig) -> int:
    """How often the least important Gaussians are removed at this step: once, or not at all, but for odd settings."""
    return sum(step == round(point * config.iterations) for point in config.prune_at)


def most_important(score: Tensor, config: FitConfig) -> Tensor:
    """Indices, ascending, of the Gaussians that one pruning leaves of those with a score [N]."""
    keep = max(1, round(len(score) * (1 - config.prune_share)))
    return score.argsort(descending=True, stable=True)[:keep].sort().values


class Growth:
    """The trainable tensors of one splat with their Adam state, kept in step while rows come and go.

    parameters   means [N,3], quats [N,4], log_scales [N,3], logit_opacities [N], sh0 [N,1,3], shN [N,K-1,3]
    """

    def __init__(self, gaussians: Gaussians, config: FitConfig, width: int, generator: torch.Generator):
        self.config, self.width, self.generator = config, width, generator
        values = trainable(gaussians)
        self.parameters = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
        groups = [{"params": [p], "lr": rates(config)[name], "name": name} for name, p in self.parameters.items()]
        self.optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)
        self._start, self._scale = len(gaussians), 1.0
        self._clear()

    def finite(self, loss: Tensor) -> bool:
        """Whether the loss and all gradients are finite."""
        sums = [p.grad.sum() for p in self.parameters.values() if p.grad is not None]
        return bool(torch.isfinite(torch.stack([loss.detach(), *sums])).all())

    def forget_gradients(self) -> None:
        """Drop the gradients at hand without a step."""
        self.optimizer.zero_grad(set_to_none=True)

    def snapshot(self) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """A copy of all parameters and of their optimiser state."""
        return {
            name: (p.detach().clone(), {k: v.clone() for k, v in self.optimizer.state.get(p, {}).items()})
            for name, p in self.parameters.items()
        }

    def restore(self, snapshot: dict[str, tuple[Tensor, dict[str, Tensor]]], rates: float) -> None:
        """Back to a snapshot, with all rates multiplied by `rates` from here on."""
        self._scale *= rates
        for group in self.optimizer.param_groups:
            value, state = snapshot[group["name"]]
            self.optimizer.state.pop(group["params"][0], None)
            new = value.clone().requires_grad_()
            if state:
                self.optimizer.state[new] = {k: v.clone() for k, v in state.items()}
            group["params"][0] = self.parameters[group["name"]] = new
            group["lr"] *= rates
        self._clear()

    def gaussians(self) -> Gaussians:
        """A copy of the present state."""
        return assembled({name: value.detach().clone() for name, value in self.parameters.items()})

    def update(self, screen_gradient: Tensor | None, share: float) -> None:
        """One Adam step with the gradients at hand; remembers how hard each Gaussian is pulled across the screen.

        screen_gradient  [1, N, 2] in pixels
        share            of the schedule that is done; decides the rate of the centres
        """
        c = self.config
        for group in self.optimizer.param_groups:
            if group["name"] == "means":
                group["lr"] = self._scale * c.lr_means * (c.lr_means_end / c.lr_means) ** share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if screen_gradient is not None:
            pull = screen_gradient[0].norm(dim=1) * (self.width / 2)
            self._pull += pull
            self._seen += pull > 0

    def grow(self, step: int, importance: Callable[[Gaussians], Tensor]) -> None:
        """Clone, split and prune where the schedule asks for it at this step."""
        c = self.config
        share = step / c.iterations
        budget = budget_at(share, self._start, c) if step % c.grow_every == 0 else None
        if budget is not None:
            self._densify(budget)
            self._clear()
        for _ in range(prunings_at(step, c)):
            self._keep(most_important(importance(self.gaussians()), c))
            self._clear()
        if c.opacity_reset_every and step % c.opacity_reset_every == 0 and share < c.grow_until:
            self._reset_opacities()

    def _densify(self, budget: int) -> None:
        rows = {name: value.detach() for name, value in self.parameters.items()}
        grown, kept = densified(rows, self._pull, self._seen, budget, self.config, self.generator)
        fresh = kept < 0

        def moved(state: Tensor) -> Tensor:
            state = state[kept.clamp_min(0)]
            state[fresh] = 0
            return state

        self._replace(lambda name, value: grown[name], moved)

    def _reset_opacities(self) -> None:
        """Opacities down to at most 0.01, their Adam state forgotten (3DGS, section 5.2)."""
        p = self.parameters["logit_opacities"]
        with torch.no_grad():
            p.clamp_(max=RESET)
        for name in ("exp_avg", "exp_avg_sq"):
            self.optimizer.state[p][name].zero_()

    def _keep(self, index: Tensor) -> None:
        self._replace(lambda name, value: value[index], lambda s: s[index])

    def _replace(self, change: Callable[[str, Tensor], Tensor], change_state: Callable[[Tensor], Tensor]) -> None:
        """New tensors in place of the old ones, in the optimiser too."""
        for group in self.optimizer.param_groups:
            name, old = group["name"], group["params"][0]
            new = change(name, old.detach()).clone().requires_grad_()
            state = self.optimizer.state.pop(old, None)
            if state:
                moments = {k: change_state(state[k]) for k in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[new] = {**state, **moments}
            group["params"][0] = self.parameters[name] = new

    def _clear(self) -> None:
        n = len(self.parameters["means"])
        self._pull, self._seen = torch.zeros(n), torch.zeros(n)
