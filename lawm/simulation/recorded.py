"""Episodes of simulators that are written as LeRobot data sets."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lawm import storage
from lawm.config import LawmError
from lawm.data import NewDataSet, write_episode
from lawm.simulation.pusht import encode_mp4


@dataclass(frozen=True)
class Recorded:
    """`frames` uint8 [F, H, W, 3]; `columns`: numbers [F, W] by the name of a feature, of which the actions of the last
    frame lead nowhere."""

    frames: np.ndarray
    columns: dict[str, np.ndarray]


def check_frames(states: int, size: int) -> None:
    """Raises LawmError for an episode of too few frames, and for pictures that cannot be."""
    if states < 2:
        raise LawmError(f"{states} states an episode; expected at least 2")
    if size % 2 or not 32 <= size <= 1024:
        raise LawmError(f"size {size}; expected an even number of pixels from 32 to 1024 (4:2:0 colour)")


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
