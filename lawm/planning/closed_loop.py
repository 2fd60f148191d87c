"""Episodes in a simulator, in closed loop: act, look, and act again, until the goal is reached or the time is up.

Protocol: stable-worldmodel's (spec section 8, swm-pusht): the goal is what the recorded episode shows some time later.
Legend: H actions of one decision, A action width.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lawm.data import VideoLabels
from lawm.simulation import World, world_at

Way = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]
"""(pictures so far, one after each action, the latest last; the goal's picture) -> the next actions [H, A]."""
Ways = Mapping[str, Way]
GOAL = "goal"


def driven(
    simulator: str, recorded: VideoLabels, between: tuple[int, int], parts: int, size: int, budget: int, ways: Ways
) -> dict[str, dict[str, Any]]:
    """For each way: whether it reached the goal, after how many actions, and how far from it it ended. From one state
    of the recorded episode to what it shows at another (`between`), by at most `budget` actions, of which each stands
    for `parts` of the recorded ones; pictures have `size` pixels a side. Raises LawmError where the episode does not
    play as it was recorded. `pictures` uint8 [actions + 1, size, size, 3] is what was seen; that of `goal` its own."""
    at_goal = world_at(simulator, recorded, between[1], parts, size)
    wanted, goal = at_goal.state(), at_goal.picture()
    begin = between[0]
    found: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        found[name] = _one(world_at(simulator, recorded, begin, parts, size), budget, way, wanted, goal)
    return found | {GOAL: {"pictures": goal[None]}}


def _one(world: World, budget: int, way: Way, wanted_S: np.ndarray, goal: np.ndarray) -> dict[str, Any]:
    pictures, taken, began = [world.picture()], 0, time.perf_counter()
    reached = world.reached(wanted_S)
    while taken < budget and not reached:
        for action in way(pictures, goal):
            reached = world.act(action, wanted_S)
            taken += 1
            pictures.append(world.picture())
            if reached or taken == budget:
                break
    seconds = (time.perf_counter() - began) / max(taken, 1)
    return {
        "pictures": np.stack(pictures),
        "reached": reached,
        "actions": taken,
        "distance": world.distance(wanted_S),
        "seconds_per_action": seconds,
    }
