"""What a simulator makes of actions, from a place in a recorded episode on."""

import functools

import numpy as np

from lawm.config import LawmError
from lawm.data import VideoLabels
from lawm.simulation.pusht import PushTSimulator, PushTSpec

SIMULATORS = ("pusht",)


def outcomes(simulator: str, recorded: VideoLabels, start: int, actions_SHA: np.ndarray, parts: int = 1) -> np.ndarray:
    """The states [S, H + 1, width] that each of S sequences of H actions leads through, from state `start` of the
    recorded episode on. An action that stands for `parts` of the recorded ones is given in as many equal parts. Raises
    LawmError for a simulator that there is not, or in which the episode does not play as it was recorded."""
    if simulator not in SIMULATORS:
        raise LawmError(f"labels made by the simulator {simulator!r}; there are {', '.join(SIMULATORS)}")
    return _pusht(recorded.rate_hz).outcomes(recorded, start, actions_SHA, parts)


@functools.lru_cache(maxsize=2)
def _pusht(rate_hz: float) -> PushTSimulator:
    return PushTSimulator(PushTSpec(rate_hz=rate_hz))
