"""Which frame is on display when: one rule for frames and for what belongs to them."""

import numpy as np


def choose(times_N: np.ndarray, wanted_F: np.ndarray, half: float, near: float) -> np.ndarray:
    """For each wanted time the index of the frame on display then: the latest that is not after it. Where that is
    `half` (half a sampling interval) old or older, the next frame if it is nearer than that. `times_N` ascends;
    times closer than `near` are the same."""
    shown = np.searchsorted(times_N, wanted_F + near, side="right") - 1
    after = np.minimum(shown + 1, len(times_N) - 1)
    stale = (shown < 0) | (wanted_F - times_N[np.maximum(shown, 0)] >= half - near)
    return np.where(stale, after, shown)
