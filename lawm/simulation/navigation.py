"""Ego navigation, simulated: a camera that drives over a lawn with things on it, the mirror of RECON.

MiniWorld draws; the motion is exact: a step turns, then drives ahead where nothing is in the way. Poses are x, y
(metres) and yaw (radians, to the left), actions the steps between them as seen from the camera (planar_delta, as NWM
has RECON's).
Legend: F frames, A = 3.
"""

import contextlib
import dataclasses
import io
import math
import os
from typing import Any

import numpy as np

from lawm.config import LawmError
from lawm.data import PLANAR, NewDataSet, VideoLabels
from lawm.simulation.recorded import Recorded, check_frames

CAMERA = "observation.images.front"
TO_A_VIEW = 0.75
"""Share of the drives that head for one of the things, or a place of the lawn; the others wander."""
SIDE = 14.0  # metres of the lawn
MOST_STEP = 0.35  # metres
MOST_TURN = 0.35  # radians
HEIGHT = {
    "barrel": 1.2,
    "cone": 0.9,
    "tree": 3.0,
    "tree_pine": 3.5,
    "office_chair": 1.2,
    "duckie": 0.8,
}
THINGS = 12
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
NEAR, ALIKE = 0.5, math.radians(20)
"""A goal view is reached within so many metres and such an angle."""


@dataclasses.dataclass(frozen=True)
class NavigationSpec:
    """One drive: `states` frames, `rate_hz` a second, square pictures of `size` pixels."""

    states: int = 32
    rate_hz: float = 4.0
    size: int = 128

    def __post_init__(self) -> None:
        check_frames(self.states, self.size)
        if self.rate_hz < 1 or self.rate_hz % 1:
            raise LawmError(f"rate {self.rate_hz:g} Hz; expected a whole number (LeRobot's fps)")

    def data_set(self, seed: int) -> NewDataSet:
        """What the data set of that seed is."""
        names = ("forward", "left", "turn")
        steps = tuple(dataclasses.replace(d, name=n, frame="body") for n, d in zip(names, PLANAR, strict=True))
        hints = {"simulator": f"navigation:{seed}", "actions": "planar_delta"}
        features = {"observation.state": PLANAR, "action": steps}
        task = "drive to a view"
        return NewDataSet(
            "camera on wheels", round(self.rate_hz), CAMERA, (self.size, self.size), task, features, hints
        )


def _lawn(size: int) -> Any:
    """The world, whose things are placed by the seed of `reset`. Raises LawmError where it cannot be drawn."""
    os.environ.setdefault("PYGLET_HEADLESS", "1")
    try:
        import pyglet

        pyglet.options["headless"] = True
        with contextlib.redirect_stdout(io.StringIO()):
            from miniworld.entity import Box, MeshEnt
            from miniworld.miniworld import MiniWorldEnv
    except ModuleNotFoundError as error:
        raise LawmError(f"the navigation simulator needs {error.name}: pip install 'lawm[navigation]'") from None
    except Exception as error:  # pyglet raises what the system's libraries make it raise
        raise LawmError(
            f"the navigation simulator cannot draw ({str(error) or type(error).__name__}): it needs EGL (Debian, "
            "Ubuntu: apt install libegl1 libgl1 libglu1-mesa libgl1-mesa-dri)"
        ) from None

    class Lawn(MiniWorldEnv):
        def __init__(self) -> None:
            super().__init__(max_episode_steps=10**9, obs_width=size, obs_height=size)

        def _gen_world(self) -> None:
            half = SIDE / 2
            self.add_rect_room(
                min_x=-half, max_x=half, min_z=-half, max_z=half, wall_tex="brick_wall", floor_tex="grass",
                no_ceiling=True,
            )  # fmt: skip
            for i in range(THINGS):
                if i % 3 == 2:
                    colour = COLOURS[int(self.np_random.integers(len(COLOURS)))]
                    thing = Box(colour, size=float(self.np_random.uniform(0.4, 1.0)))
                else:
                    name = list(HEIGHT)[int(self.np_random.integers(len(HEIGHT)))]
                    thing = MeshEnt(mesh_name=name, height=HEIGHT[name])
                    thing.radius = min(float(thing.radius), 0.6)  # one may drive under the leaves of a tree
                self._put_somewhere(thing)
            self._put_somewhere(self.agent)

        def _put_somewhere(self, thing: Any) -> None:
            """Where there is room; in the middle where that is not found, so that a world is always made."""
            if len(self.wall_segs) == 0:
                self._gen_static_data()
            half = SIDE / 2 - 1.0
            for _ in range(100):
                place = np.array([self.np_random.uniform(-half, half), 0.0, self.np_random.uniform(-half, half)])
                if not self.intersect(thing, place, float(thing.radius) + 0.3):
                    break
            self.place_entity(thing, pos=place, dir=float(self.np_random.uniform(-math.pi, math.pi)))

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return Lawn()
    except Exception as error:
        raise LawmError(f"the navigation simulator cannot draw: {str(error) or type(error).__name__}") from None


class NavigationSimulator:
    """Drives over lawns: episode e of a seed is on a lawn of its own."""

    def __init__(self, spec: NavigationSpec = NavigationSpec()) -> None:
        self.spec, self._lawn = spec, _lawn(spec.size)

    def episode(self, seed: int, number: int) -> Recorded:
        """Depends on these two (and the spec) alone."""
        self.place(seed, number)
        rng = np.random.default_rng([seed, number])
        frames, poses, steps = [self.picture()], [self.pose()], []
        aim, slow = self._aim(rng), rng.uniform(0.5, 1.0)
        for _ in range(self.spec.states - 1):
            x, y, yaw = poses[-1]
            if aim is not None:
                towards = math.remainder(math.atan2(aim[1] - y, aim[0] - x) - yaw, 2 * math.pi)
                turn = np.clip(towards, -MOST_TURN, MOST_TURN) + rng.normal(0, 0.03)
                ahead = MOST_STEP * slow * max(0.0, math.cos(towards))
            else:
                turn, ahead = rng.normal(0, 0.15), MOST_STEP * slow
            moved = self.drive(max(0.0, ahead + rng.normal(0, 0.02)), float(np.clip(turn, -MOST_TURN, MOST_TURN)))
            arrived = aim is not None and math.hypot(aim[0] - x, aim[1] - y) < 1.0
            if arrived or not moved:
                aim, slow = self._aim(rng), rng.uniform(0.5, 1.0)
            frames.append(self.picture())
            poses.append(self.pose())
            steps.append(_step(poses[-2], poses[-1]))
        actions = np.array([*steps, [0.0, 0.0, 0.0]], np.float32)
        columns = {"observation.state": np.array(poses, np.float32), "action": actions}
        return Recorded(np.stack(frames), columns)

    def place(self, seed: int, number: int) -> None:
        """The lawn of that episode, the camera where it begins."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._lawn.reset(seed=int(np.random.default_rng([seed, number, 1]).integers(2**31)))

    def pose(self) -> np.ndarray:
        """x, y (metres), yaw (radians), float64 [3]."""
        agent = self._lawn.agent
        yaw = math.remainder(float(agent.dir), 2 * math.pi)
        return np.array([float(agent.pos[0]), -float(agent.pos[2]), yaw])

    def put(self, pose: np.ndarray) -> None:
        """The camera at a pose."""
        agent = self._lawn.agent
        agent.pos, agent.dir = np.array([float(pose[0]), 0.0, -float(pose[1])]), float(pose[2])

    def drive(self, ahead: float, turn: float) -> bool:
        """Turns, then drives ahead; False where something is in the way (it has turned then)."""
        agent = self._lawn.agent
        agent.dir = float(agent.dir) + turn
        wanted = agent.pos + ahead * agent.dir_vec
        if self._lawn.intersect(agent, wanted, agent.radius):
            return False
        agent.pos = wanted
        return True

    def take(self, step_A: np.ndarray) -> None:
        """A step as actions have it, as seen from where it begins: forward and to the left, then the turn; what is in
        the way ends it where it begins."""
        agent, (forward, left, turn) = self._lawn.agent, (float(v) for v in step_A[:3])
        yaw = float(agent.dir)
        x, y = math.cos(yaw) * forward - math.sin(yaw) * left, math.sin(yaw) * forward + math.cos(yaw) * left
        wanted = agent.pos + np.array([x, 0.0, -y])
        if not self._lawn.intersect(agent, wanted, agent.radius):
            agent.pos = wanted
        agent.dir = yaw + turn

    def picture(self) -> np.ndarray:
        """uint8 RGB [size, size, 3]."""
        return np.ascontiguousarray(self._lawn.render_obs())

    def _aim(self, rng: np.random.Generator) -> np.ndarray | None:
        """A place to head for: a thing, or anywhere; None: wander."""
        if rng.random() >= TO_A_VIEW:
            return None
        things = [e for e in self._lawn.entities if e is not self._lawn.agent]
        if rng.random() < 0.5:
            thing = things[int(rng.integers(len(things)))]
            return np.array([thing.pos[0], -thing.pos[2]]) + rng.normal(0, 1.0, 2)
        return rng.uniform(-0.4 * SIDE, 0.4 * SIDE, 2)


def _step(one: np.ndarray, other: np.ndarray) -> list[float]:
    """From one pose to another, as seen from the first."""
    x, y, yaw = other[0] - one[0], other[1] - one[1], one[2]
    turn = math.remainder(other[2] - yaw, 2 * math.pi)
    return [math.cos(yaw) * x + math.sin(yaw) * y, math.cos(yaw) * y - math.sin(yaw) * x, turn]


class NavigationWorld:
    """Driving to a goal view: reached within half a metre and 20 degrees."""

    def __init__(self, recorded: VideoLabels, first: int, size: int, seed: int) -> None:
        assert recorded.states is not None
        self._simulator = NavigationSimulator(NavigationSpec(size=size))
        self._simulator.place(seed, episode_of(recorded.key))
        self._simulator.put(recorded.states[first])

    def state(self) -> np.ndarray:
        return self._simulator.pose()

    def picture(self) -> np.ndarray:
        return self._simulator.picture()

    def act(self, action_A: np.ndarray, wanted_S: np.ndarray) -> bool:
        self._simulator.take(action_A)
        return self.reached(wanted_S)

    def reached(self, wanted_S: np.ndarray) -> bool:
        turned = abs(math.remainder(float(self.state()[2] - wanted_S[2]), 2 * math.pi))
        return self.distance(wanted_S) < NEAR and turned < ALIKE

    def distance(self, wanted_S: np.ndarray) -> float:
        return float(np.linalg.norm(self.state()[:2] - wanted_S[:2]))


def episode_of(key: str) -> int:
    """The number of a LeRobot episode, by its key (.../episode_000012). Raises LawmError."""
    digits = key.rpartition("episode_")[2][:6]
    if not digits.isdigit():
        raise LawmError(f"{key}: not an episode of `lawm simulate` (episode_000012)")
    return int(digits)
