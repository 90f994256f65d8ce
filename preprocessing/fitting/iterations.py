"""One step of a fit for all objects of a batch, in tensors alone: nothing in it waits for the GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gsmae.ops.batches import Backend
from gsmae.ops.warp import runtime
from gsmae.ops.warp.splats import Capacity

from ..profiles import FitConfig
from ..rendering.cameras import Cameras
from .density import NAMES, rates, weighted
from .padded import Padded

log = logging.getLogger(__name__)

PAIRS = 8  # of tile and splat that a Gaussian is first given room for
BAD = 3  # steps in a row that are not finite, after which an object is lost


class Iterations:
    """Steps of B fits; the tensors they change are those of `state`, and the few here that say how it went.

    On a GPU, with kernels that wait for nothing, the step is captured as a CUDA graph once its shapes have come to
    rest: the second time that it runs with the same ones.
    """

    def __init__(self, twin: Backend, state: Padded, images: Tensor, cameras: Cameras, config: FitConfig, graphs: bool):
        self.twin, self.state, self.cameras, self.config = twin, state, cameras, config
        self.images = images.contiguous()
        device = state.device
        self.viewmats = torch.from_numpy(cameras.viewmats).to(device)
        self.Ks = torch.from_numpy(cameras.Ks).to(device)
        self.white = torch.ones(3, device=device)
        self.graphs = graphs and twin.static
        self.capacity = Capacity(len(state) * state.rows * PAIRS, device) if twin.static else None
        self.numbers = torch.arange(len(state), device=device)
        self._rest()

    def run(self, done: int, views: Sequence[Sequence[int]]) -> None:
        """Steps done + 1, done + 2 and so on, with one view for each object in each. Steps for which buffers were too
        small changed nothing, nor did any after them: they are repeated with larger ones."""
        left = list(range(len(views)))
        while left:
            self.finished.zero_()
            for k in left:
                self._step(done + 1 + k, views[k])
            if self.capacity is None:
                return
            room = self.capacity.pairs
            missed = self.capacity.grow()
            if self.capacity.pairs != room:
                self._forget_graph()
            if not missed:
                return
            left = left[int(self.finished) :]

    def verdict(self) -> tuple[list[bool], list[int]]:
        """Which objects took the last step, and which are lost: not finite in BAD steps in a row since they were told
        last."""
        streak, lost = torch.stack([self.streak, self.lost.long()]).tolist()
        if any(lost):
            self.streak.masked_fill_(self.lost, 0)
            self.lost.zero_()
        return [s == 0 for s in streak], [b for b, is_lost in enumerate(lost) if is_lost]

    def importances(self, chosen: Sequence[int]) -> list[Tensor]:
        """Importance [N] of the Gaussians of some objects, from all training views."""
        v, c, b = self.state.values, self.cameras, len(self.state)
        with torch.no_grad():
            scales, sh = v["log_scales"].exp(), torch.cat([v["sh0"], v["shN"]], dim=2)
            cameras = [t.expand(b, *t.shape).contiguous() for t in (self.viewmats, self.Ks)]
            seen = self.twin.contributions_many(
                v["means"], v["quats"], scales, v["logit_opacities"].sigmoid(), sh, *cameras, c.width, c.height
            )
        counts = self.state.counts
        return [weighted(seen[i, : counts[i]], scales[i, : counts[i]]) for i in chosen]

    def keep(self, chosen: Sequence[int]) -> None:
        """Only these objects go on."""
        before = len(self.state)
        index = torch.tensor(list(chosen), dtype=torch.int64, device=self.state.device)
        self.state.keep(chosen)
        self.numbers = self.numbers[index]
        if self.capacity is not None:
            self.capacity.pairs = max(1, self.capacity.pairs * len(chosen) // before)
        self._rest()

    def changed(self) -> None:
        """The tensors of the state are others than before."""
        self._forget_graph()

    def _rest(self) -> None:
        b, device = len(self.state), self.state.device
        self.views = torch.zeros(b, dtype=torch.int64, device=device)
        self.rates = torch.zeros(len(NAMES), device=device)
        self.finished = torch.zeros(1, dtype=torch.int64, device=device)  # steps that had room
        self.streak = torch.zeros(b, dtype=torch.int64, device=device)
        self.lost = torch.zeros(b, dtype=torch.bool, device=device)
        self._forget_graph()

    def _forget_graph(self) -> None:
        self.graph: Any = None
        self._kernels: Any = None
        self._seen: int | None = None

    def _step(self, step: int, views: Sequence[int]) -> None:
        c = self.config
        bands = (min(c.sh_degree, step // c.sh_every) + 1) ** 2
        now = rates(c) | {"means": c.lr_means * (c.lr_means_end / c.lr_means) ** (step / c.iterations)}
        self._send(self.views, list(views), torch.int64)
        self._send(self.rates, [now[name] for name in NAMES], torch.float32)
        if self.graphs and self._seen == bands:
            if self.graph is None:
                self.graph = self._captured(bands)
            if self.graph is not None:
                self.graph.replay()
                return
        self.graph = None
        self._compute(bands)
        self._seen = bands

    def _send(self, to: Tensor, values: list[Any], dtype: torch.dtype) -> None:
        held = torch.tensor(values, dtype=dtype)
        to.copy_(held.pin_memory() if to.device.type == "cuda" else held, non_blocking=True)

    def _compute(self, bands: int) -> None:
        state, c, camera = self.state, self.config, self.cameras
        v = state.values
        b = len(state)
        offsets = torch.zeros(b, 1, state.rows, 2, device=state.device, requires_grad=True)
        pictures, _ = self.twin.rasterize_many(
            v["means"], v["quats"], v["log_scales"].exp(), v["logit_opacities"].sigmoid(),
            torch.cat([v["sh0"], v["shN"][:, :, : bands - 1]], dim=2), self.viewmats[self.views][:, None],
            self.Ks[self.views][:, None], camera.width, camera.height, self.white, offsets, self.capacity,
        )  # fmt: skip
        targets = self._targets()[:, None]
        losses = self.twin.l1_ssim_many(pictures, targets, c.ssim_weight)
        *gradients, screen = torch.autograd.grad(losses.sum(), [*v.values(), offsets])
        with torch.no_grad():
            sums = [losses, *(g.reshape(b, -1).sum(1) for g in gradients)]
            finite = torch.isfinite(torch.stack(sums)).all(dim=0)
            had_room = torch.ones_like(finite) if self.capacity is None else ~self.capacity.overflowed().expand(b)
            live = finite & had_room
            self.finished += had_room[:1]
            self.streak.copy_(torch.where(had_room, torch.where(finite, 0, self.streak + 1), self.streak))
            self.lost |= self.streak >= BAD
            state.steps += live
            for name, gradient, rate in zip(v, gradients, self.rates, strict=True):
                self.twin.adam_many(
                    v[name].detach(), gradient, *state.moments[name], rate * state.scale, state.steps, live
                )
            pull = torch.where(live[:, None], screen[:, 0].norm(dim=2) * (camera.width / 2), 0.0)
            state.pull += pull
            state.seen += pull > 0

    def _targets(self) -> Tensor:
        """The view of each object whose turn it is, [B, H, W, 3] uint8."""
        count, views, *shape = self.images.shape
        pictures = self.images.view(count * views, -1)
        if pictures.shape[1] % 8 == 0:  # eight bytes at a time
            pictures = pictures.view(torch.int64)
        chosen = pictures.index_select(0, self.numbers * views + self.views)
        return chosen.view(torch.uint8).view(-1, *shape)

    def _captured(self, bands: int) -> Any:
        """The step as a CUDA graph, or None, and never again, where that fails."""
        wp = runtime.warp()
        try:
            torch.cuda.synchronize(self.state.device)
            graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.state.device)
            stream = runtime.stream(side)
            with wp.ScopedStream(stream), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                wp.capture_begin(stream=stream, force_module_load=False, external=True)
                try:
                    self._compute(bands)
                finally:
                    self._kernels = wp.capture_end(stream=stream)  # holds the modules that the graph calls
            return graph
        except RuntimeError as error:
            log.warning("the iteration cannot be captured as a CUDA graph, and goes on without: %s", error)
            self.graphs = False
            return None
