"""How many Gaussians, and where: their optimiser state while they are cloned, split and pruned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsmae.gaussians import Gaussians, rotation_matrices, unit_quats

from .profiles import FitConfig


class Growth:
    """The trainable tensors of one splat with their Adam state, kept in step while rows come and go.

    parameters   means [N,3], quats [N,4], log_scales [N,3], logit_opacities [N], sh0 [N,1,3], shN [N,K-1,3]
    """

    def __init__(self, gaussians: Gaussians, config: FitConfig, width: int, generator: torch.Generator):
        self.config, self.width, self.generator = config, width, generator
        g = gaussians
        values = {"means": g.means, "quats": g.quats, "log_scales": g.log_scales,
                  "logit_opacities": g.logit_opacities, "sh0": g.sh[:, :1], "shN": g.sh[:, 1:]}  # fmt: skip
        rates = {"means": config.lr_means, "quats": config.lr_quats, "log_scales": config.lr_scales,
                 "logit_opacities": config.lr_opacities, "sh0": config.lr_sh, "shN": config.lr_sh / 20}  # fmt: skip
        self.parameters = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
        groups = [{"params": [p], "lr": rates[name], "name": name} for name, p in self.parameters.items()]
        self.optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)
        self._start, self._scale = len(g), 1.0
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
        p = {name: value.detach().clone() for name, value in self.parameters.items()}
        return Gaussians(
            p["means"], p["quats"], p["log_scales"], p["logit_opacities"], torch.cat([p["sh0"], p["shN"]], dim=1)
        )

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
        if step % c.grow_every == 0 and c.grow_from <= share <= c.grow_until:
            progress = min(1.0, (share - c.grow_from) / max(0.8 * (c.grow_until - c.grow_from), 1e-9))
            self._densify(int(self._start + (c.cap - self._start) * progress))
            self._clear()
        for point in c.prune_at:
            if step == round(point * c.iterations):
                score = importance(self.gaussians())
                keep = max(1, round(len(score) * (1 - c.prune_share)))
                self._keep(score.argsort(descending=True, stable=True)[:keep].sort().values)
                self._clear()
        if c.opacity_reset_every and step % c.opacity_reset_every == 0 and share < c.grow_until:
            self._reset_opacities()

    def _densify(self, budget: int) -> None:
        """Clone or split what is pulled hardest, within the budget; then drop what cannot be seen (3DGS, section 5)."""
        c, p = self.config, self.parameters
        pull = self._pull / self._seen.clamp_min(1)
        room = max(0, min(budget, c.cap) - len(pull))
        chosen = (pull > c.grow_gradient).nonzero()[:, 0]
        chosen = chosen[pull[chosen].argsort(descending=True, stable=True)[:room]].sort().values
        if len(chosen):
            scales = p["log_scales"].detach()[chosen].exp()
            split = scales.amax(dim=1) > c.split_scale
            # a clone is an exact copy; of a split, both halves are drawn from the parent and made smaller
            turn = rotation_matrices(unit_quats(p["quats"].detach()[chosen]))
            noise = torch.randn(2, len(chosen), 3, generator=self.generator)
            moved = torch.einsum("nij,bnj->bni", turn, noise * scales) * split[:, None]
            smaller = split[:, None] * torch.log(torch.tensor(1.6))
            with torch.no_grad():
                p["log_scales"][chosen] -= smaller
                rows = {name: value.detach()[chosen].clone() for name, value in p.items()}
                p["means"][chosen] += moved[0]
                rows["means"] += moved[1]
            self._append(rows)
        visible = self.parameters["logit_opacities"].detach().sigmoid() > c.opacity_floor
        if not visible.all() and visible.any():
            self._keep(visible.nonzero()[:, 0])

    def _reset_opacities(self) -> None:
        """Opacities down to at most 0.01, their Adam state forgotten (3DGS, section 5.2)."""
        p = self.parameters["logit_opacities"]
        with torch.no_grad():
            p.clamp_(max=float(torch.tensor(0.01).logit()))
        for name in ("exp_avg", "exp_avg_sq"):
            self.optimizer.state[p][name].zero_()

    def _append(self, rows: dict[str, Tensor]) -> None:
        self._replace(lambda name, value: torch.cat([value, rows[name]]), lambda s: torch.cat([s, s.new_zeros(
            len(rows["means"]), *s.shape[1:])]))  # fmt: skip

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
