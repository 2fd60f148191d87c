"""PushT, simulated with real physics: videos with true actions. Legend: n actions of an episode, H W pixels."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import json
import math
import os
import signal
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from itertools import islice
from multiprocessing import get_context
from types import FrameType
from typing import Any

import numpy as np

from lawm import storage
from lawm.config import LawmError
from lawm.data import Dimension, Meaning, VideoLabels, add_member, write_labels
from lawm.simulation.scene import (
    ARENA,
    MOST_DISTRACTORS,
    MOST_SHAKE,
    Scene,
    described,
    draw,
    make_scene,
    nuisance_names,
)


@dataclasses.dataclass(frozen=True)
class PushTSpec:
    """One PushT episode: `states` frames at `rate_hz` of physical time, square pictures of `size` pixels."""

    states: int = 16
    rate_hz: float = 4.0
    size: int = 128
    gop_s: float = 1.0
    """Seconds between key frames."""
    crf: int = 18
    """x264's constant rate factor (0 lossless ... 51)."""
    distractors: int = 0
    """Discs that move at random, half of them under the world and half over it (`scene.py`)."""
    shake: float = 0.0
    """How much the camera moves, turns and zooms; 1: by scene.SHAKE."""

    def __post_init__(self) -> None:
        if self.states < 2:
            raise LawmError(f"{self.states} states an episode; expected at least 2")
        if self.rate_hz < 1 or PHYSICS_HZ % self.rate_hz or self.rate_hz % 1:
            raise LawmError(f"rate {self.rate_hz:g} Hz; expected a whole number that divides {PHYSICS_HZ}, such as 4")
        if self.size % 2 or not 32 <= self.size <= 2048:
            raise LawmError(f"size {self.size}; expected an even number of pixels from 32 to 2048 (4:2:0 colour)")
        if not 0 <= self.distractors <= MOST_DISTRACTORS:
            raise LawmError(f"{self.distractors} distractors; expected 0 to {MOST_DISTRACTORS}")
        if not 0 <= self.shake <= MOST_SHAKE:
            raise LawmError(f"shake {self.shake:g}; expected 0 to {MOST_SHAKE:g} (1: some units, some degrees)")

    @property
    def scene(self) -> str:
        """What the pictures show besides the world; empty where there is nothing of it."""
        return described(self.distractors, self.shake)


PHYSICS_HZ = 100  # gym-pusht steps pymunk by 0.01 s
WALL = 48.0  # targets keep this far from the edge, so that the centre crop (256 / 292) shows the whole agent
TOWARDS_BLOCK = 0.65  # share of the moves that head for and through the block
MOVE = (30.0, 95.0)  # commanded distance of one action, arena units
MOVE_LASTS = (3, 6)  # actions until a new heading is drawn
REPLAY_OFF = 1.0  # arena units by which a recorded episode may be missed: its numbers are float32
AGENT_CLEAR = 20.0  # the agent (radius 15) starts at least this far outside the block


UNIT = "arena units"  # gym-pusht's, of which the arena's side has 512
_AGENT = (Dimension("agent x", "translation", UNIT), Dimension("agent y", "translation", UNIT))
MEANING = Meaning(
    actions=_AGENT,
    states=(
        *_AGENT,
        Dimension("block x", unit=UNIT),
        Dimension("block y", unit=UNIT),
        Dimension("block angle", unit="rad"),
    ),
    displacements=False,  # the agent is still on its way to the commanded target when the next action comes
    simulator="pusht",
)


@dataclasses.dataclass(frozen=True)
class Episode:
    """`frames` uint8 [n + 1, H, W, 3]; `actions` float32 [n, 2], the commanded target minus the agent's position, arena
    units; `states` float32 [n + 1, 5]: agent x, agent y, block x, block y (arena units), block angle (radians).
    `scene`: what else the pictures show; None: nothing."""

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    scene: Scene | None = None


class PushTSimulator:
    """gym-pusht's physics (pymunk at 0.01 s, its PD controller) under a random pushing policy."""

    def __init__(self, spec: PushTSpec = PushTSpec()):
        # pygame greets on stdout when it is imported.
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
            from gym_pusht.envs.pusht import PushTEnv
            from pymunk.vec2d import Vec2d
        except ModuleNotFoundError as error:
            raise LawmError(f"the PushT simulator needs {error.name}: pip install 'gym-pusht>=0.1.8'") from None
        except ImportError as error:
            # opencv-python, which gym-pusht pulls in, links against libGL; servers often have none.
            remedy = "pip install --force-reinstall --no-deps opencv-python-headless"
            raise LawmError(f"the PushT simulator cannot load ({error}): {remedy}") from None
        self.spec = spec
        self._pygame, self._vec = pygame, Vec2d
        self._env = PushTEnv(obs_type="state")
        self._env.control_hz = round(spec.rate_hz)  # physics steps an action: PHYSICS_HZ / rate_hz

    def episode(self, seed: int, number: int) -> Episode:
        """Episode `number` of `seed`: depends on these two (and the spec) alone. Ctrl-C is answered at its end."""
        with _interrupt_held_back():
            return self._episode(seed, number)

    def _episode(self, seed: int, number: int) -> Episode:
        rng = np.random.default_rng([seed, number])
        self._reset(rng)
        spec = self.spec
        seen = (spec.states, spec.rate_hz, spec.distractors, spec.shake)
        scene = make_scene(seed, number, *seen) if spec.scene else None
        frames, states, actions = [self._picture(scene, 0)], [self._state()], []
        left, heading = 0, 0.0
        for _ in range(self.spec.states - 1):
            agent, block = states[-1][:2], states[-1][2:4]
            if left == 0:
                left = int(rng.integers(MOVE_LASTS[0], MOVE_LASTS[1] + 1))
                if rng.random() < TOWARDS_BLOCK:
                    aim = block + rng.normal(0.0, 25.0, 2) - agent
                    heading = math.atan2(aim[1], aim[0])
                else:
                    heading = rng.uniform(-math.pi, math.pi)
            angle, distance = heading + rng.normal(0.0, 0.25), rng.uniform(*MOVE)
            wanted = agent + distance * np.array([math.cos(angle), math.sin(angle)])
            target = np.clip(wanted, WALL, ARENA - WALL)
            # A wall in the way ends the move.
            left = left - 1 if np.linalg.norm(target - agent) > 0.5 * distance else 0
            actions.append(target - agent)
            self._env.step(self._vec(*target.tolist()))
            frames.append(self._picture(scene, len(frames)))
            states.append(self._state())
        return Episode(np.stack(frames), np.asarray(actions, np.float32), np.asarray(states, np.float32), scene)

    def outcomes(self, recorded: VideoLabels, start: int, actions_SHA: np.ndarray, parts: int = 1) -> np.ndarray:
        """The states [S, H + 1, 5] that each of S action sequences leads through from state `start` of a recorded
        episode, each action given in `parts` equal ones. The episode is played again up to there: the agent's speed is
        no part of its states. Raises LawmError where it does not play as it was recorded."""
        assert recorded.states is not None
        with _interrupt_held_back():
            return np.stack([self._outcome(recorded, start, actions, parts) for actions in actions_SHA])

    def pictures(self, recorded: VideoLabels, start: int, actions_HA: np.ndarray) -> np.ndarray:
        """What H actions look like that are given from state `start` of a recorded episode on, uint8
        [H + 1, size, size, 3], without distractors and shake. Raises as `outcomes`."""
        with _interrupt_held_back():
            self._play(recorded, start)
            frames = [self._picture(None, 0)]
            for action in actions_HA:
                self._push(action)
                frames.append(self._picture(None, len(frames)))
            return np.stack(frames)

    def play(self, recorded: VideoLabels, start: int) -> np.ndarray:
        """Plays a recorded episode up to state `start`, [5], which it returns. Raises as `outcomes`."""
        with _interrupt_held_back():
            return self._play(recorded, start)

    def push_slowly(self, action_A: np.ndarray, looks: int) -> Iterator[np.ndarray]:
        """Takes one action; the state [5] after each of `looks` parts of the time that it lasts. The physics are those
        of the whole action: the target does not move meanwhile."""
        hz, target = self._env.control_hz, np.asarray(self._env.agent.position) + np.asarray(action_A, np.float64)
        aim = self._vec(*np.clip(target, 0.0, ARENA).tolist())
        with _interrupt_held_back():
            self._env.control_hz = hz * looks
            try:
                for _ in range(looks):
                    self._env.step(aim)
                    yield self._state()
            finally:
                self._env.control_hz = hz

    def state(self) -> np.ndarray:
        """Agent x, y, block x, y (arena units), block angle (radians)."""
        return self._state()

    def picture(self) -> np.ndarray:
        """uint8 RGB [size, size, 3], without distractors and shake."""
        with _interrupt_held_back():
            return self._picture(None, 0)

    def _outcome(self, recorded: VideoLabels, start: int, actions_HA: np.ndarray, parts: int) -> np.ndarray:
        states = [self._play(recorded, start)]
        for action in actions_HA:
            for _ in range(parts):
                self._push(action / parts)
            states.append(self._state())
        return np.stack(states)

    def _play(self, recorded: VideoLabels, start: int) -> np.ndarray:
        """Plays a recorded episode up to state `start`, which it returns."""
        assert recorded.states is not None
        self._set(recorded.states[0])
        for action in recorded.actions[:start]:
            self._push(action)
        here = self._state()
        off = np.abs(here - recorded.states[start])
        off[4] = (
            min(off[4] % (2 * math.pi), -off[4] % (2 * math.pi)) * 100
        )  # an angle, at an arm of about the block's size
        if off.max() > REPLAY_OFF:
            raise LawmError(
                f"{recorded.key}: played again, state {start} is {here.round(1).tolist()}, recorded "
                f"{recorded.states[start].round(1).tolist()}; simulate anew with this gym-pusht, or plan elsewhere"
            )
        return here

    def _push(self, action: np.ndarray) -> None:
        target = np.asarray(self._env.agent.position) + np.asarray(action, np.float64)
        self._env.step(self._vec(*np.clip(target, 0.0, ARENA).tolist()))

    def _set(self, state: np.ndarray) -> None:
        """A recorded state. gym-pusht's reset places the block, and then turns it about its centre of gravity: what it
        is asked for is the place before that turn."""
        values = [float(v) for v in state]
        if not hasattr(self._env, "block"):
            self._env.reset()
        centre = self._env.block.center_of_gravity
        place = self._vec(*values[2:4]) - centre + centre.rotated(values[4])
        self._env.reset(options={"reset_to_state": [*values[:2], *place, values[4]]})

    def _reset(self, rng: np.random.Generator) -> None:
        """A random start in which the agent does not overlap the block."""
        while True:
            start = [*rng.uniform(WALL, ARENA - WALL, 2), *rng.uniform(100, 400, 2), rng.uniform(-math.pi, math.pi)]
            self._env.reset(options={"reset_to_state": start})
            agent = self._env.agent.position
            if min(shape.point_query(agent).distance for shape in self._env.block.shapes) > AGENT_CLEAR:
                return

    def _state(self) -> np.ndarray:
        return np.asarray(self._env.get_obs(), np.float64)

    def _picture(self, scene: Scene | None, frame: int) -> np.ndarray:
        # The environment's own render() draws the commanded target as a red cross: the action would be in the picture.
        # Its observation resizes without antialiasing; smoothscale averages areas.
        side, drawn = self.spec.size, self._env._draw()
        seen = drawn if scene is None else draw(self._pygame, drawn, scene, frame)
        small = self._pygame.transform.smoothscale(seen, (side, side))
        return np.frombuffer(self._pygame.image.tobytes(small, "RGB"), np.uint8).reshape(side, side, 3)


class _HeldInterrupt:
    """A handler of Ctrl-C that waits until it is asked; it answers a second Ctrl-C at once."""

    def __init__(self, answer: Callable[[int, FrameType | None], Any]):
        self._answer = answer
        self._caught: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._caught is None:
            self._caught = number, frame
        else:
            self._answer(number, frame)  # may be lost, see below: the first one is kept

    def answer_now(self) -> None:
        caught, self._caught = self._caught, None
        if caught is not None:
            self._answer(*caught)


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[Callable[[], None]]:
    """Answers Ctrl-C when the (outermost) block ends or calls the function that it is given. The simulator calls back
    from C, and frees its objects, at any time, and what is raised there is printed and lost: the program would go on,
    with a picture half drawn."""
    answer = signal.getsignal(signal.SIGINT)
    if isinstance(answer, _HeldInterrupt):
        yield answer.answer_now
    elif threading.current_thread() is not threading.main_thread() or not callable(answer):
        yield lambda: None
    else:
        held = _HeldInterrupt(answer)
        signal.signal(signal.SIGINT, held)
        try:
            yield held.answer_now
        finally:
            signal.signal(signal.SIGINT, answer)
            held.answer_now()


def encode_mp4(frames: np.ndarray, rate_hz: float, gop_s: float = 1.0, crf: int = 18) -> bytes:
    """Frames uint8 [T, H, W, 3] (even H and W) as H.264 (yuv420p) in mp4; frame i is shown at i / rate_hz seconds.
    One thread, so that the same frames give the same bytes."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(rate_hz), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = max(1, round(gop_s * rate_hz))
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


# ---------------------------------------------------------------- writing a simulated data set
LABELS_NAME = "labels.parquet"
NUISANCES_NAME = "nuisances.parquet"
MANIFEST_NAME = "simulate.json"


def simulate_pusht(
    out: str,
    episodes: int,
    seed: int = 0,
    *,
    spec: PushTSpec = PushTSpec(),
    shard_size: int = 100,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write `episodes` PushT episodes to the folder `out` (local or s3://): tar shards `pusht-000000.tar` with members
    `ep_000000.mp4` and `ep_000000.json`, then `labels.parquet`, whose URI is returned. With distractors or a camera
    that shakes, `nuisances.parquet` beside it is a table of labels too, whose actions are how these move.

    `progress(done, written)` is called after every episode: episodes done so far, and how many of them this call made.
    A shard appears whole or not at all; a rerun with the same settings keeps the shards that are there. Raises
    LawmError for settings that cannot be, and for a folder that holds anything else.
    """
    _check_counts(episodes, seed, shard_size, processes)
    _open_folder(out, _manifest(episodes, seed, spec, shard_size))
    shards = [range(low, min(low + shard_size, episodes)) for low in range(0, episodes, shard_size)]
    kept = [_shard_labels(out, number, shard) for number, shard in enumerate(shards)]
    done, written = sum(len(rows) for rows in kept if rows), 0
    if progress:
        progress(done, written)
    missing = [e for shard, rows in zip(shards, kept, strict=True) if rows is None for e in shard]
    made = _encoded_episodes(missing, seed, spec, processes)
    labels: list[VideoLabels] = []
    nuisances: list[VideoLabels] = []
    with _interrupt_held_back() as answer_interrupt, contextlib.closing(made):
        for number, (shard, rows) in enumerate(zip(shards, kept, strict=True)):
            if rows is None:
                sink = io.BytesIO()
                with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for e, (mp4, info) in zip(shard, made, strict=False):  # strict would take one more from `made`
                        add_member(tar, f"ep_{e:06d}.mp4", mp4)
                        add_member(tar, f"ep_{e:06d}.json", info)
                        done, written = done + 1, written + 1
                        if progress:
                            progress(done, written)
                        answer_interrupt()
                storage.write_bytes(_shard_uri(out, number), sink.getvalue())
                answer_interrupt()
                rows = _shard_labels(out, number, shard)
                if rows is None:
                    raise RuntimeError(f"{_shard_uri(out, number)} cannot be read back")
            labels += [own for own, _ in rows]
            nuisances += [other for _, other in rows if other is not None]
    if spec.scene:
        named = tuple(Dimension(name) for name in nuisance_names(spec.distractors))
        meaning = Meaning(states=named, scene=spec.scene)
        write_labels(nuisances, storage.join(out, NUISANCES_NAME), "state_delta", meaning)
    uri = storage.join(out, LABELS_NAME)
    write_labels(labels, uri, "sum", dataclasses.replace(MEANING, scene=spec.scene))
    return uri


def pusht_settings(episodes: int, seed: int, spec: PushTSpec, shard_size: int) -> dict[str, Any]:
    """All that decides what `simulate_pusht` writes, for its manifest and for a dry run."""
    try:
        version = importlib.metadata.version("gym-pusht")
    except importlib.metadata.PackageNotFoundError:
        raise LawmError("the PushT simulator needs gym_pusht: pip install 'gym-pusht>=0.1.8'") from None
    return {
        "simulator": f"gym-pusht {version}",
        "episodes": episodes,
        "seed": seed,
        "shard_size": shard_size,
        **{name: value for name, value in dataclasses.asdict(spec).items() if value or name not in _ADDED},
    }


_ADDED = ("distractors", "shake")
"""Settings that came later, and are not written where they are off: folders of before are the same as those of now."""


def _manifest(episodes: int, seed: int, spec: PushTSpec, shard_size: int) -> bytes:
    return json.dumps(pusht_settings(episodes, seed, spec, shard_size), indent=2).encode() + b"\n"


def _check_counts(episodes: int, seed: int, shard_size: int, processes: int) -> None:
    for name, value, least in (("episodes", episodes, 1), ("shard size", shard_size, 1), ("processes", processes, 1)):
        if value < least:
            raise LawmError(f"{name} {value}; expected at least {least}")
    if seed < 0:
        raise LawmError(f"seed {seed}; expected 0 or more")
    if episodes > 1_000_000:
        raise LawmError(f"episodes {episodes}; expected at most 1000000 (names have six digits): use several seeds")


def _open_folder(out: str, manifest: bytes) -> None:
    """Claim `out` by its manifest, or find it claimed by the same settings."""
    uri = storage.join(out, MANIFEST_NAME)
    if storage.exists(uri):
        there = storage.read_bytes(uri)
        if there != manifest:
            changed = _difference(there, manifest)
            raise LawmError(f"{out} holds a simulation with other settings ({changed}); choose another folder")
        return
    entries: list[str] = []
    with contextlib.suppress(storage.NotFoundError):
        entries = [name for name, _ in islice(storage.list_files(out), 1)]
    if entries == [out]:
        raise LawmError(f"{out} is a file; expected a new or unfinished folder")
    if entries:
        raise LawmError(f"{out} is not empty ({entries[0]}) and is no unfinished simulation; choose another folder")
    storage.write_bytes(uri, manifest)


def _difference(there: bytes, wanted: bytes) -> str:
    try:
        old, new = json.loads(there), json.loads(wanted)
        names = dict.fromkeys([*new, *(name for name in old if name in _ADDED)])
        changed = [f"{n} {old.get(n, 0)} instead of {new.get(n, 0)}" for n in names if old.get(n) != new.get(n)]
    except (ValueError, AttributeError):
        return "its manifest cannot be read"
    return ", ".join(changed) or "written by another version"


def _shard_uri(out: str, number: int) -> str:
    return storage.join(out, f"pusht-{number:06d}.tar")


def _shard_labels(out: str, number: int, episodes: range) -> list[tuple[VideoLabels, VideoLabels | None]] | None:
    """Labels of a finished shard, and of what else moves in its pictures, from its members; None where it is missing or
    is not whole."""
    uri = _shard_uri(out, number)
    try:
        data = storage.read_bytes(uri)
    except storage.NotFoundError:
        return None
    rows = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            videos = {member.name for member in tar if member.name.endswith(".mp4") and member.size}
            for e in episodes:
                if f"ep_{e:06d}.mp4" not in videos:
                    return None
                info = json.load(tar.extractfile(f"ep_{e:06d}.json"))  # type: ignore[arg-type]
                key = f"pusht-{number:06d}/ep_{e:06d}.mp4"
                arrays = (np.asarray(info[name], np.float32) for name in ("actions", "states"))
                other = None
                if "nuisances" in info:
                    moved = np.asarray(info["nuisances"], np.float32)
                    other = VideoLabels(key, float(info["rate_hz"]), np.diff(moved, axis=0), moved)
                rows.append((VideoLabels(key, float(info["rate_hz"]), *arrays), other))
    except (tarfile.TarError, KeyError, ValueError):
        return None
    return rows


@functools.lru_cache(maxsize=1)
def _simulator(spec: PushTSpec) -> PushTSimulator:
    return PushTSimulator(spec)


def _encoded_episode(seed: int, number: int, spec: PushTSpec) -> tuple[bytes, bytes]:
    """One episode as its (mp4, json) members. float32 survives JSON exactly, since it is written as float64."""
    episode = _simulator(spec).episode(seed, number)
    info: dict[str, Any] = {
        "episode": number,
        "seed": seed,
        "rate_hz": spec.rate_hz,
        "actions": episode.actions.tolist(),
        "states": episode.states.tolist(),
    }
    if episode.scene is not None:
        info["nuisances"] = episode.scene.nuisances.tolist()
    return encode_mp4(episode.frames, spec.rate_hz, spec.gop_s, spec.crf), json.dumps(info).encode()


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _encoded_episodes(
    numbers: Sequence[int], seed: int, spec: PushTSpec, processes: int
) -> Generator[tuple[bytes, bytes]]:
    """The episodes `numbers` in their order, made here or in `processes` single-threaded processes."""
    if processes == 1 or len(numbers) < 2:
        for number in numbers:
            yield _encoded_episode(seed, number, spec)
        return
    _simulator(spec)  # says what is missing before any process starts
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_ignore_interrupt) as pool:
        waiting, todo = deque[Future[tuple[bytes, bytes]]](), iter(numbers)
        try:
            while True:
                # A bounded queue: memory does not grow with the number of episodes.
                for number in islice(todo, 4 * processes - len(waiting)):
                    waiting.append(pool.submit(_encoded_episode, seed, number, spec))
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise LawmError(
                "a simulation process was killed (memory?); go on by the same command, fewer processes"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
