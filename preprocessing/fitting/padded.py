"""Many splats being fitted: their trainable tensors and optimiser states, padded to one number of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gsmae.gaussians import Gaussians

from .density import NAMES, RESET, assembled, trainable

ABSENT = -30.0  # opacity logit of rows that are padding: they are not drawn and have no gradient
STEP = 512  # the number of rows is a multiple of this, so that it does not change with every new Gaussian

Rows = dict[str, Tensor]  # by NAMES


class Padded:
    """B splats of at most N Gaussians.

    values   by NAMES, [B, N, ...] leaves that require gradients
    moments  by NAMES, Adam's two averages
    counts   Gaussians of each splat, the rest of the N rows are padding
    steps    [B] int64 on the device: steps of Adam that each has taken
    scale    [B] what each splat's rates are multiplied by
    pull     [B, N] sum of screen-space gradients since the last densification, seen [B, N] over how many steps
    """

    def __init__(self, splats: Sequence[Gaussians], device: torch.device):
        self.device = device
        self.steps = torch.zeros(len(splats), dtype=torch.int64, device=device)
        self.scale = torch.ones(len(splats), device=device)
        rows = [{n: t.to(device) for n, t in trainable(g).items()} for g in splats]
        zeros = [{n: torch.zeros_like(t) for n, t in r.items()} for r in rows]
        self._fill(rows, [(z, z) for z in zeros])
        self.forget_pull(range(len(splats)))

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def rows(self) -> int:
        """N."""
        return self.values["means"].shape[1]

    def row(self, b: int) -> Rows:
        """A copy of one splat's tensors, without padding."""
        return {name: value.detach()[b, : self.counts[b]].clone() for name, value in self.values.items()}

    def gaussians(self, b: int) -> Gaussians:
        """One splat as it is."""
        return assembled(self.row(b))

    def moment(self, b: int) -> tuple[Rows, Rows]:
        """A copy of one splat's averages."""
        count = self.counts[b]
        first, second = ({n: m[i][b, :count].clone() for n, m in self.moments.items()} for i in (0, 1))
        return first, second

    def replace(self, changed: dict[int, tuple[Rows, tuple[Rows, Rows]]]) -> None:
        """New rows and averages for some splats."""
        all_rows = [changed[b][0] if b in changed else self.row(b) for b in range(len(self))]
        all_moments = [changed[b][1] if b in changed else self.moment(b) for b in range(len(self))]
        before = [(self.pull[b, :c].clone(), self.seen[b, :c].clone()) for b, c in enumerate(self.counts)]
        self._fill(all_rows, all_moments)
        self.forget_pull(range(len(self)))
        for b, (pull, seen) in enumerate(before):
            if b not in changed:
                self.pull[b, : len(pull)], self.seen[b, : len(seen)] = pull, seen

    def keep(self, chosen: Sequence[int]) -> None:
        """Only these splats stay, in this order."""
        index = torch.tensor(list(chosen), dtype=torch.int64, device=self.device)
        self.steps, self.scale = self.steps[index], self.scale[index]
        self.pull, self.seen = self.pull[index], self.seen[index]
        self.counts = [self.counts[b] for b in chosen]
        rows = self._padded_to(max(self.counts, default=0))
        self.pull, self.seen = self.pull[:, :rows].contiguous(), self.seen[:, :rows].contiguous()
        for name in NAMES:
            self.values[name] = self.values[name].detach()[index, :rows].contiguous().requires_grad_()
            first, second = self.moments[name]
            self.moments[name] = first[index, :rows].contiguous(), second[index, :rows].contiguous()

    def reset_opacities(self, chosen: Sequence[int]) -> None:
        """Opacities down to at most 0.01, their averages forgotten (3DGS, section 5.2)."""
        index = torch.tensor(list(chosen), dtype=torch.int64, device=self.device)
        with torch.no_grad():
            self.values["logit_opacities"][index] = self.values["logit_opacities"][index].clamp_max(RESET)
        for average in self.moments["logit_opacities"]:
            average[index] = 0

    def forget_pull(self, chosen: Sequence[int] | range) -> None:
        """Begin to add up anew."""
        if len(chosen) == len(self):
            self.pull = torch.zeros(len(self), self.rows, device=self.device)
            self.seen = torch.zeros_like(self.pull)
        for b in chosen:
            self.pull[b], self.seen[b] = 0, 0

    def _fill(self, rows: Sequence[Rows], moments: Sequence[tuple[Rows, Rows]]) -> None:
        """Tensors padded anew."""
        self.counts = [len(r["means"]) for r in rows]
        most = self._padded_to(max(self.counts, default=0))
        self.values: Rows = {}
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        for name in NAMES:
            value = self._stack([r[name] for r in rows], most, ABSENT if name == "logit_opacities" else 0.0)
            self.values[name] = value.requires_grad_()
            first, second = (self._stack([m[i][name] for m in moments], most, 0.0) for i in (0, 1))
            self.moments[name] = first, second

    def _stack(self, parts: Sequence[Tensor], rows: int, filler: float) -> Tensor:
        out = torch.full((len(parts), rows, *parts[0].shape[1:]), filler, device=self.device)
        for b, part in enumerate(parts):
            out[b, : len(part)] = part
        return out

    @staticmethod
    def _padded_to(count: int) -> int:
        return -(-count // STEP) * STEP
