"""The figures of a run: what its steps measured since the last report, and how fast they went."""

import time
from typing import Any

from torch import Tensor

from lawm.model import effective_rank
from lawm.training.fine_tune import state_figures, state_health
from lawm.training.objective import LossTerms
from lawm.training.ranks import mean_over_ranks

RANK_ROWS = 4096
"""Latents of which the effective rank is taken."""


class Figures:
    """Means over the steps since the last report, over all ranks, and figures of the last step's latents and states.
    Nothing of it outlives a report, so that a checkpoint holds none."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._steps = self._clips = 0
        self._waited = 0.0
        self._began = time.perf_counter()
        self._last: tuple[Tensor | None, tuple[Tensor, Tensor] | None] = None, None

    def began(self, clips: int, waited: float) -> None:
        """A step on that many clips of all ranks, after that many seconds of waiting for them."""
        self._clips += clips
        self._waited += waited

    def add(self, terms: LossTerms, more: dict[str, Any]) -> None:
        """A step that changed weights."""
        loss, penalty = terms.total.detach(), terms.penalty.detach()
        for name, value in {**terms.metrics, "loss": loss, "penalty": penalty, **more}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._last = terms.latents, terms.states

    def skipped(self) -> None:
        """A step whose loss or gradient was not finite."""
        self._last = None, None

    def take(self) -> dict[str, float]:
        """All figures since the last call. Called on every rank."""
        now = time.perf_counter()
        found = mean_over_ranks({k: float(v) / max(self._steps, 1) for k, v in self._sums.items()})
        seconds = max(now - self._began, 1e-9)
        found["clips_per_second"] = self._clips / seconds
        found["waited_seconds"] = self._waited
        found["data_wait_share"] = min(self._waited / seconds, 1.0)
        self._sums, self._steps, self._clips, self._waited, self._began = {}, 0, 0, 0.0, now
        latents, states = self._last
        if latents is not None and latents.shape[1] > 1:
            found["effective_rank"] = effective_rank(latents[:RANK_ROWS].cpu())
        if states is not None:
            current, original = (mean_over_ranks(state_figures(which)) for which in states)
            found |= state_health(current, original)
        return found
