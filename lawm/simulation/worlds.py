"""Worlds to act in: from a place in a recorded episode on, one action after another, with pictures. Legend: A action
width, S state width."""

import math
from typing import Any, Protocol

import numpy as np

from lawm.config import LawmError
from lawm.data import VideoLabels
from lawm.simulation.navigation import NavigationSimulator, NavigationWorld
from lawm.simulation.panda import PandaSimulator, PandaWorld
from lawm.simulation.pusht import PushTSimulator, PushTSpec
from lawm.simulation.recorded import Simulator


class World(Protocol):
    """What acts and is looked at."""

    def state(self) -> np.ndarray:
        """[S], as the labels have it."""

    def picture(self) -> np.ndarray:
        """uint8 RGB [height, width, 3], as the videos show it."""

    def act(self, action_A: np.ndarray, wanted_S: np.ndarray) -> bool:
        """Takes one action of the clips; whether the wanted state was reached while it lasted."""

    def reached(self, wanted_S: np.ndarray) -> bool:
        """Whether the task counts as done."""

    def distance(self, wanted_S: np.ndarray) -> float:
        """How far the world is from a state, by what the rule of success measures."""


NEAR = 20.0  # arena units, agent and block together
ALIKE = math.pi / 9
LOOK_HZ = 10  # gym-pusht's own rate, at which success is looked for


class PushTWorld:
    """PushT. Success as in stable-worldmodel: agent and block together within 20 arena units, the block's angle within
    pi / 9, at any of the environment's steps (10 a second)."""

    def __init__(self, recorded: VideoLabels, first: int, parts: int, size: int) -> None:
        self._simulator = PushTSimulator(PushTSpec(rate_hz=recorded.rate_hz, size=size))
        self._simulator.play(recorded, first)
        self._parts, self._each = parts, max(1, round(LOOK_HZ / recorded.rate_hz))

    def state(self) -> np.ndarray:
        return self._simulator.state()

    def picture(self) -> np.ndarray:
        return self._simulator.picture()

    def act(self, action_A: np.ndarray, wanted_S: np.ndarray) -> bool:
        parts = range(self._parts)
        looks = (look for _ in parts for look in self._simulator.push_slowly(action_A / self._parts, self._each))
        return any(self.reached(wanted_S) for _ in looks)

    def reached(self, wanted_S: np.ndarray) -> bool:
        here = self.state()
        turned = abs(math.remainder(float(here[4] - wanted_S[4]), 2 * math.pi))
        return self.distance(wanted_S) < NEAR and turned < ALIKE

    def distance(self, wanted_S: np.ndarray) -> float:
        return float(np.linalg.norm(self.state()[:4] - wanted_S[:4]))


WORLDS = ("pusht", "navigation", "panda")


def simulator_of(world: str, spec: Any) -> Simulator:
    """The simulator whose episodes are written as LeRobot data sets. Raises LawmError where it cannot be had."""
    match world:
        case "navigation":
            return NavigationSimulator(spec)
        case "panda":
            return PandaSimulator(spec)
    raise LawmError(f"{world}: no simulator of that name; expected navigation or panda")


def check_world(simulator: str | None) -> None:
    """Raises LawmError where the labels' simulator is none that can be acted in."""
    if simulator is None or simulator.partition(":")[0] not in WORLDS:
        known = ", ".join(WORLDS)
        raise LawmError(
            f"plan.goal_after_s asks for a closed loop, and the labels name {simulator or 'no simulator'}; there are "
            f"{known}. Without plan.goal_after_s plans are judged by their actions"
        )


def world_at(simulator: str, recorded: VideoLabels, first: int, parts: int, size: int) -> World:
    """The world as it was at state `first` of a recorded episode, one action of which is `parts` of the recorded ones,
    with pictures of `size` pixels. Raises LawmError for a simulator that there is not, or in which the episode does not
    play as it was recorded."""
    check_world(simulator)
    world, _, seed = simulator.partition(":")
    match world:
        case "navigation":
            return NavigationWorld(recorded, first, size, int(seed))
        case "panda":
            return PandaWorld(recorded, first, parts, size, int(seed))
    return PushTWorld(recorded, first, parts, size)
