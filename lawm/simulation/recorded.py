"""Episodes of simulators that are written as LeRobot data sets."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lawm import storage
from lawm.data import NewDataSet, write_episode
from lawm.simulation.pusht import encode_mp4


@dataclass(frozen=True)
class Recorded:
    """`frames` uint8 [F, H, W, 3]; `columns`: numbers [F, W] by the name of a feature, of which the actions of the last
    frame lead nowhere."""

    frames: np.ndarray
    columns: dict[str, np.ndarray]


class Simulator(Protocol):
    """A world with a policy in it."""

    def episode(self, seed: int, number: int) -> Recorded:
        """Depends on these two and the simulator's spec alone."""


def record(simulator: Simulator, about: NewDataSet, out: str, seed: int, number: int) -> int:
    """Simulates one episode and writes it down; its number of frames."""
    made = simulator.episode(seed, number)
    mp4 = encode_mp4(made.frames, about.fps)
    write_episode(storage.absolute(out), about, number, mp4, made.frames, made.columns)
    return len(made.frames)
