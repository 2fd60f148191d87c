"""When a run has to stop by its own figures, which are the same on every rank."""

from typing import Any

from lawm.config import RunStopped, TrainConfig

FIRST_LOSS = "first_prediction"
BAD_STEPS = "bad_steps"


class Divergence:
    """Counts steps whose loss was not finite, and holds each report against the first. Its state is kept in a
    checkpoint's `extra`, so that a restart forgets neither."""

    def __init__(self, loop: TrainConfig, state: dict[str, Any] | None = None) -> None:
        self.loop = loop
        self.first_loss: float | None = (state or {}).get(FIRST_LOSS)
        self.bad_steps = int((state or {}).get(BAD_STEPS, 0))
        self._good_since_start = False
        self._reports_above = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint. (No checkpoint is written while reports stand above the first.)"""
        return {BAD_STEPS: self.bad_steps} | ({} if self.first_loss is None else {FIRST_LOSS: self.first_loss})

    def good(self) -> None:
        """A step whose loss and gradient were finite."""
        self._good_since_start = True

    def bad(self, step: int) -> None:
        """Step `step` (from 0) was skipped. Raises RunStopped where those are too many."""
        self.bad_steps += 1
        if self.bad_steps > self.loop.max_bad_steps:
            raise RunStopped(
                f"the loss was not finite in {self.bad_steps} steps (train.max_bad_steps = {self.loop.max_bad_steps}), "
                f"last at step {step + 1}; lower optimizer.muon_lr and optimizer.adamw_lr, or look for bad input"
            )

    @property
    def suspicious(self) -> bool:
        """Whether the last report was far above the first: no state to keep."""
        return self._reports_above > 0

    def trouble(self, done: int, figures: dict[str, float]) -> str:
        """Why the run has to stop after `done` steps; else empty. Called with every report, once."""
        loss = figures.get("prediction")
        if loss is None:  # every step since the last report was skipped
            if done == self.loop.steps and not self._good_since_start:
                return f"the loss was finite in none of {self.bad_steps} steps; look for bad input, or lower the rates"
            return ""
        if self.first_loss is None:
            self.first_loss = loss
        limit = self.loop.diverged_above * self.first_loss
        self._reports_above = self._reports_above + 1 if limit > 0 and loss > limit else 0
        if self._reports_above == 3 or (self.suspicious and done == self.loop.steps):
            return (
                f"the prediction loss has diverged: {loss:.3g}, and {self.first_loss:.3g} at first "
                f"(train.diverged_above = {self.loop.diverged_above:g}); lower optimizer.muon_lr and optimizer.adamw_lr"
            )
        return ""
