"""A Franka Panda at a table, simulated (robosuite on MuJoCo): the mirror of DROID.

A still camera at the side, commands to the end effector (operational space control, 20 a second, each held for a fifth
of one), poses and gripper in DROID's columns, so that actions are its pose deltas. Episodes follow a policy with a
purpose: reach a cube, push it, or wander; some do each.
Legend: F frames, A = 7.
"""

import contextlib
import dataclasses
import io
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from lawm.config import LawmError
from lawm.data import GRIPPER, POSE, Dimension, NewDataSet, VideoLabels
from lawm.simulation.navigation import episode_of
from lawm.simulation.recorded import Recorded, check_frames

CAMERA = "observation.images.exterior_1_left"
CONTROL_HZ = 20
REACH_M, TURN_RAD = 0.05, 0.5
"""What a command of 1 asks of the controller: metres, radians."""
MIXTURE = {"reach": 0.35, "push": 0.4, "wander": 0.25}
"""Shares of the purposes."""
TABLE = ((-0.15, 0.15), (-0.2, 0.2), (0.83, 1.05))
"""Where the gripper goes, x, y, z of the base's frame, metres."""
HAND_NEAR, CUBE_NEAR = 0.05, 0.04
"""A goal is reached with hand and cube within so many metres of where they were."""
REPLAY_OFF_M = 0.01


@dataclasses.dataclass(frozen=True)
class PandaSpec:
    """One episode: `states` frames, `rate_hz` a second (a whole number that divides 20), square pictures of `size`
    pixels; `distractors`: things on the table that no purpose is about (0 or 1)."""

    states: int = 30
    rate_hz: float = 5.0
    size: int = 128
    distractors: int = 0

    def __post_init__(self) -> None:
        check_frames(self.states, self.size)
        if self.rate_hz < 1 or self.rate_hz % 1 or CONTROL_HZ % self.rate_hz:
            raise LawmError(f"rate {self.rate_hz:g} Hz; expected a whole number that divides {CONTROL_HZ}, such as 5")
        if self.distractors not in (0, 1):
            raise LawmError(f"{self.distractors} distractors; the table has room for 0 or 1")

    def data_set(self, seed: int) -> NewDataSet:
        """What the data set of that seed is."""
        features = {
            "observation.state.cartesian_position": POSE,
            "observation.state.gripper_position": (GRIPPER,),
            "action": (*(Dimension(f"command {d.name}") for d in POSE), Dimension("command gripper")),
        }
        about = {"simulator": f"panda:{seed}", "actions": "pose_delta"}
        fps = round(self.rate_hz)
        return NewDataSet("Franka", fps, CAMERA, (self.size, self.size), "reach, push, wander", features, about)


def _table(distractors: int) -> Any:
    """robosuite's environment. Raises LawmError where it is not installed, or cannot draw."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    needs = "pip install 'lawm[panda]'; pip install --no-deps robosuite==1.5.1"
    try:
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            import robosuite
            from robosuite.controllers import load_composite_controller_config

            logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
            controller = load_composite_controller_config(controller=None, robot="Panda")
            return robosuite.make(
                "Stack" if distractors else "Lift", robots="Panda", controller_configs=controller, has_renderer=False,
                has_offscreen_renderer=True, use_camera_obs=False, control_freq=CONTROL_HZ, horizon=10**9,
                ignore_done=True, hard_reset=False,
            )  # fmt: skip
    except ModuleNotFoundError as error:
        raise LawmError(f"the Panda simulator needs {error.name}: {needs}") from None
    except Exception as error:  # what MuJoCo and the system's libraries make it raise
        raise LawmError(
            f"the Panda simulator cannot start ({str(error).splitlines()[0] if str(error) else type(error).__name__}): "
            "it draws with EGL (Debian, Ubuntu: apt install libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6), and "
            "robosuite 1.5 with mujoco 3.5"
        ) from None


class PandaSimulator:
    """Episodes at the table."""

    def __init__(self, spec: PandaSpec = PandaSpec()) -> None:
        self.spec, self._env = spec, _table(spec.distractors)

    def episode(self, seed: int, number: int) -> Recorded:
        frames, poses, grips, commands = [], [], [], []
        for command in self.run(seed, number, self.spec.states):
            frames.append(self.picture())
            state = self.state()
            poses.append(state[:6])
            grips.append(state[6:7])
            commands.append(command)
        columns = {
            "observation.state.cartesian_position": np.array(poses, np.float32),
            "observation.state.gripper_position": np.array(grips, np.float32),
            "action": np.array(commands, np.float32),
        }
        return Recorded(np.stack(frames), columns)

    def run(self, seed: int, number: int, frames: int) -> Iterator[np.ndarray]:
        """Plays an episode: at each frame the command [7] that follows it (zeros after the last). Physics go on when
        the next one is asked for."""
        rng = np.random.default_rng([seed, number])
        np.random.seed(int(rng.integers(2**31)))
        with contextlib.redirect_stdout(io.StringIO()):
            self._env.reset()
        self._env.sim.model.light_castshadow[:] = 0
        each, purpose = round(CONTROL_HZ / self.spec.rate_hz), _Purpose(rng)
        for frame in range(frames):
            last = frame == frames - 1
            command = np.zeros(7) if last else purpose.command(self.hand(), self.cube())
            yield command.astype(np.float32)
            if not last:
                for _ in range(each):
                    self._env.step(command)

    def servo(self, target: np.ndarray, turn: np.ndarray, gripper: float, steps: int) -> None:
        """Drives the hand to a place, turned by a rotation vector, for so many control steps."""
        orientation = Rotation.from_rotvec(turn) * self.turned()
        for _ in range(steps):
            off = np.clip((target - self.hand()) / REACH_M, -1, 1)
            twist = np.clip((orientation * self.turned().inv()).as_rotvec() / TURN_RAD, -1, 1)
            self._env.step(np.concatenate([off, twist, [gripper]]))

    def hand(self) -> np.ndarray:
        """Where the gripper is, [3], metres."""
        return np.array(self._observed()["robot0_eef_pos"], np.float64)

    def turned(self) -> Rotation:
        return Rotation.from_quat(self._observed()["robot0_eef_quat"])

    def cube(self) -> np.ndarray:
        """Where the cube is, [3], metres."""
        seen = self._observed()
        return np.array(seen["cubeA_pos" if "cubeA_pos" in seen else "cube_pos"], np.float64)

    def state(self) -> np.ndarray:
        """x y z, Euler angles (extrinsic xyz), gripper (0 open, 1 shut), as DROID has them, float64 [7]."""
        opening = float(np.clip(self._observed()["robot0_gripper_qpos"][0] / 0.04, 0, 1))
        return np.concatenate([self.hand(), self.turned().as_euler("xyz"), [1 - opening]])

    def picture(self) -> np.ndarray:
        """uint8 RGB [size, size, 3]."""
        size = self.spec.size
        seen = self._env.sim.render(camera_name="sideview", width=size, height=size)
        return np.ascontiguousarray(seen[::-1])

    def _observed(self) -> Any:
        return self._env._get_observations(force_update=True)


class _Purpose:
    """What an episode is about: a way of hands towards places, one after another."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.kind = rng, str(rng.choice(list(MIXTURE), p=list(MIXTURE.values())))
        self.aims: list[np.ndarray] = []
        self.speed = rng.uniform(0.4, 1.0)
        self.begun = False

    def command(self, hand: np.ndarray, cube: np.ndarray) -> np.ndarray:
        if not self.aims:
            self.aims = self._next(cube)
        off = self.aims[0] - hand
        if np.linalg.norm(off) < 0.02:
            self.aims.pop(0)
        move = np.clip(off / REACH_M, -1, 1) * self.speed + self.rng.normal(0, 0.08, 3)
        twist = self.rng.normal(0, 0.03, 3)
        return np.clip(np.concatenate([move, twist, [-1.0]]), -1, 1)

    def _next(self, cube: np.ndarray) -> list[np.ndarray]:
        anywhere = np.array([self.rng.uniform(*ends) for ends in TABLE])
        if self.kind == "wander" or self.begun:
            return [anywhere]
        self.begun = True
        if self.kind == "reach":
            return [cube + above(0.1), cube + above(0.02)]
        way = self.rng.uniform(-math.pi, math.pi)
        along = np.array([math.cos(way), math.sin(way), 0.0])
        low = np.array([cube[0], cube[1], cube[2] + 0.01])
        return [low - 0.1 * along + above(0.08), low - 0.1 * along, low + 0.12 * along]


def above(metres: float) -> np.ndarray:
    return np.array([0.0, 0.0, metres])


class PandaWorld:
    """Bringing hand and cube to where a goal shows them: both within some centimetres."""

    def __init__(self, recorded: VideoLabels, first: int, parts: int, size: int, seed: int) -> None:
        assert recorded.states is not None
        spec = PandaSpec(rate_hz=recorded.rate_hz, size=size)
        self._simulator = PandaSimulator(spec)
        played = self._simulator.run(seed, episode_of(recorded.key), len(recorded.states))
        for _ in range(first + 1):
            next(played)
        off = np.abs(self._simulator.state()[:3] - recorded.states[first, :3]).max()
        if off > REPLAY_OFF_M:
            raise LawmError(
                f"{recorded.key}: played again, the hand is {off:.3f} m off at state {first}; simulate anew with this "
                "robosuite, or plan elsewhere"
            )
        self._steps = max(1, round(CONTROL_HZ * parts / recorded.rate_hz))

    def state(self) -> np.ndarray:
        """Hand and cube, [6]."""
        return np.concatenate([self._simulator.hand(), self._simulator.cube()])

    def picture(self) -> np.ndarray:
        return self._simulator.picture()

    def act(self, action_A: np.ndarray, wanted_S: np.ndarray) -> bool:
        target, turn = self._simulator.hand() + action_A[:3], Rotation.from_euler("xyz", action_A[3:6]).as_rotvec()
        self._simulator.servo(target, turn, -1.0, self._steps)
        return self.reached(wanted_S)

    def reached(self, wanted_S: np.ndarray) -> bool:
        off = self.state() - wanted_S
        return bool(np.linalg.norm(off[:3]) < HAND_NEAR and np.linalg.norm(off[3:]) < CUBE_NEAR)

    def distance(self, wanted_S: np.ndarray) -> float:
        off = self.state() - wanted_S
        return float(np.linalg.norm(off[:3]) + np.linalg.norm(off[3:]))
