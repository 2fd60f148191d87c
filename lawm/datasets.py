"""Labelled sources: the table of true actions beside the videos, and simulators that write both.

Labels are one Parquet table, one row per video (LABELS_SCHEMA). Action i of a video is the one taken from
time i / rate_hz to (i + 1) / rate_hz; state i is the world at time i / rate_hz.
Shape legend: n actions of a video, A action width, S state width, F frames of a clip, H W pixels.
"""

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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import ClipSpec, LawmError

LABELS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("rate_hz", pa.float64()),
        ("actions", pa.list_(pa.list_(pa.float32()))),
        ("states", pa.list_(pa.list_(pa.float32()))),
    ]
)


# ---------------------------------------------------------------- labels
@dataclasses.dataclass(frozen=True)
class VideoLabels:
    """What is known about one video: `actions` float32 [n, A], `states` float32 [n or n + 1, S] or None."""

    key: str
    rate_hz: float
    actions: np.ndarray
    states: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Ragged:
    """Rows of different length in one array: row i is values[starts[i]:starts[i + 1]]."""

    values: np.ndarray  # float32 [total, width]
    starts: np.ndarray  # int64 [rows + 1]

    def row(self, i: int) -> np.ndarray:
        return self.values[self.starts[i] : self.starts[i + 1]]


class Labels:
    """Actions (and, where known, states) of many videos, looked up by the video's key."""

    def __init__(self, table: pa.Table, where: str = "labels"):
        """`table` has the columns of LABELS_SCHEMA; `where` names it in errors. Raises LawmError for a missing or
        mistyped column, a repeated key, a rate that is not positive, ragged or non-finite values."""
        self._where = where
        keys = _column(table, "key", where).to_pylist()
        self._rate = _column(table, "rate_hz", where).to_numpy(zero_copy_only=False)
        self._row = {key: i for i, key in enumerate(keys)}
        if len(self._row) != len(keys):
            twice = next(key for i, key in enumerate(keys) if self._row[key] != i)
            raise LawmError(f"{where}: key {twice!r} has more than one row; expected one row per video")
        bad = np.flatnonzero(~(np.isfinite(self._rate) & (self._rate > 0)))
        if len(bad):
            raise LawmError(
                f"{where}: rate_hz of {keys[bad[0]]!r} is {self._rate[bad[0]]}; expected actions per second"
            )
        self._actions = _ragged(_column(table, "actions", where), keys, f"{where}: actions")
        states = _column(table, "states", where) if "states" in table.column_names else None
        self._states = None if states is None or states.null_count else _ragged(states, keys, f"{where}: states")

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, key: str) -> bool:
        return key in self._row

    @property
    def keys(self) -> list[str]:
        """Every labelled video's key, in the table's order."""
        return list(self._row)

    @property
    def action_dim(self) -> int:
        return self._actions.values.shape[1]

    @property
    def state_dim(self) -> int | None:
        """Width of the states; None where the table has none (or only for some videos)."""
        return None if self._states is None else self._states.values.shape[1]

    def of(self, key: str) -> VideoLabels:
        """All that is known of one video; raises LawmError for a key that is not in the table."""
        i = self._find(key)
        return VideoLabels(
            key, float(self._rate[i]), self._actions.row(i), None if self._states is None else self._states.row(i)
        )

    def actions_for(self, key: str, start_s: float, clip: ClipSpec) -> np.ndarray:
        """The F - 1 actions between the frames of a clip that starts at `start_s` seconds: float32 [F - 1, A].

        Labels at a multiple k of the clip's rate are summed k by k. Raises LawmError where the rates do not divide,
        the clip starts between two actions, or the video's actions end before the clip does.
        """
        i = self._find(key)
        each, first = self._steps(i, start_s, clip.fps)
        actions = self._actions.row(i)
        needed = (clip.frames - 1) * each
        if first + needed > len(actions):
            raise self._too_short(key, len(actions), "actions", clip, start_s, first + needed)
        taken = actions[first : first + needed].reshape(clip.frames - 1, each, -1)
        return taken.sum(axis=1, dtype=np.float32)

    def states_for(self, key: str, start_s: float, clip: ClipSpec) -> np.ndarray:
        """The world's state at each frame of the clip: float32 [F, S]. Raises LawmError as `actions_for` does, and
        where the table has no states."""
        i = self._find(key)
        if self._states is None:
            raise LawmError(f"{self._where}: no states for every video; fill the column `states` to use them")
        each, first = self._steps(i, start_s, clip.fps)
        states = self._states.row(i)
        last = first + (clip.frames - 1) * each
        if last >= len(states):
            raise self._too_short(key, len(states), "states", clip, start_s, last + 1)
        return states[first : last + 1 : each].copy()

    def action_std(self, keys: Iterable[str], fps: float | None = None) -> np.ndarray:
        """Standard deviation of each action dimension over the videos `keys`: float32 [A].

        With `fps`, of the actions as clips at that rate see them (sub-actions summed). Raises LawmError for an unknown
        key, or where no video has an action.
        """
        parts = []
        for key in keys:
            i = self._find(key)
            each = 1 if fps is None else self._steps(i, 0.0, fps)[0]
            actions = self._actions.row(i)
            whole = len(actions) // each * each
            parts.append(actions[:whole].reshape(-1, each, actions.shape[1]).sum(axis=1, dtype=np.float64))
        joined = np.concatenate(parts) if parts else np.zeros((0, self.action_dim))
        if not len(joined):
            raise LawmError(f"{self._where}: no actions in the {len(parts)} videos asked for; label at least one")
        return joined.std(axis=0).astype(np.float32)

    def _find(self, key: str) -> int:
        i = self._row.get(key)
        if i is None:
            example = f", such as {next(iter(self._row))!r}" if self._row else ""
            raise LawmError(
                f"{self._where}: no row for video {key!r} among its {len(self._row)} keys{example}."
                " A key is the video's path within its source, or <tar stem>/<member name>"
            )
        return i

    def _too_short(self, key: str, has: int, what: str, clip: ClipSpec, start_s: float, needs: int) -> LawmError:
        return LawmError(
            f"{self._where}: {key} has {has} {what}; a clip of {clip.frames} frames at {clip.fps:g} fps"
            f" from {start_s:g} s needs {needs}. Take shorter clips or an earlier start"
        )

    def _steps(self, i: int, start_s: float, fps: float) -> tuple[int, int]:
        """(labels per frame, index of the first label) for a clip at `fps` from `start_s`."""
        rate = float(self._rate[i])
        each = round(rate / fps)
        if each < 1 or not math.isclose(rate, each * fps, rel_tol=1e-6):
            raise LawmError(
                f"{self._where}: actions at {rate:g} Hz do not divide into clips at {fps:g} fps;"
                f" choose data.clip.fps = {rate:g} divided by a whole number"
            )
        first = round(start_s * rate)
        if start_s < 0 or abs(start_s * rate - first) > 1e-2:
            raise LawmError(
                f"{self._where}: a clip from {start_s:g} s starts between two actions;"
                f" expected a start of at least 0 and a multiple of {1 / rate:g} s"
            )
        return each, first


def labels_table(rows: Iterable[VideoLabels]) -> pa.Table:
    """Rows as a table of LABELS_SCHEMA, in their order."""
    rows = list(rows)

    def column(values: list[np.ndarray | None]) -> pa.Array:
        plain = [None if v is None else np.asarray(v, np.float32).tolist() for v in values]
        return pa.array(plain, LABELS_SCHEMA.field("actions").type)

    return pa.Table.from_arrays(
        [
            pa.array([row.key for row in rows], pa.string()),
            pa.array([row.rate_hz for row in rows], pa.float64()),
            column([row.actions for row in rows]),
            column([row.states for row in rows]),
        ],
        schema=LABELS_SCHEMA,
    )


def write_labels(rows: Iterable[VideoLabels], uri: str) -> Labels:
    """Write one Parquet table of labels, atomically; rows are checked first, as `Labels` does. Returns them."""
    table = labels_table(rows)
    labels = Labels(table, uri)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
    return labels


def read_labels(uri: str) -> Labels:
    """Read a table of labels (local path or s3://). Raises LawmError where it is missing, not Parquet or malformed."""
    with storage.open_file(uri) as file:
        try:
            table = pq.read_table(file)
        except pa.ArrowException as error:
            said = str(error).splitlines()[0][:200]
            raise LawmError(f"{uri}: not a Parquet file, a table of labels was expected ({said})") from None
    return Labels(table, uri)


def _column(table: pa.Table, name: str, where: str) -> Any:
    if name not in table.column_names:
        found = ", ".join(table.column_names)
        raise LawmError(f"{where}: no column {name!r}; expected {', '.join(LABELS_SCHEMA.names)}, found {found}")
    wanted = LABELS_SCHEMA.field(name).type
    try:
        column = table.column(name).cast(wanted).combine_chunks()
    except pa.ArrowException:
        raise LawmError(f"{where}: column {name!r} is {table.schema.field(name).type}; expected {wanted}") from None
    if isinstance(column, pa.ChunkedArray):  # no chunk at all, or more than one array can hold
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], wanted)
    if name != "states" and column.null_count:
        raise LawmError(f"{where}: column {name!r} has {column.null_count} empty cells; fill them, or drop the rows")
    return column


def _ragged(column: Any, keys: Sequence[str], what: str) -> _Ragged:
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    inner = column.flatten()
    widths = pc.list_value_length(inner).to_numpy(zero_copy_only=False)
    flat = inner.flatten()

    def whose(i: int) -> str:
        return keys[int(np.searchsorted(starts, i, side="right")) - 1]

    if len(widths) and (widths[0] < 1 or not (widths == widths[0]).all()):
        odd = int(np.flatnonzero((widths != widths[0]) | (widths < 1) | np.isnan(widths))[0])
        raise LawmError(
            f"{what} of {whose(odd)!r} hold {widths[odd]} numbers; expected {widths[0]:g}, as in the first row"
        )
    values = flat.to_numpy(zero_copy_only=False).reshape(len(widths), -1 if len(widths) else 0)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise LawmError(f"{what} of {whose(int(np.flatnonzero(~finite)[0]))!r} are not finite; expected numbers")
    return _Ragged(np.ascontiguousarray(values, np.float32), starts)


# ---------------------------------------------------------------- PushT: 2-D pushing with true actions
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

    def __post_init__(self) -> None:
        if self.states < 2:
            raise LawmError(f"{self.states} states an episode; expected at least 2")
        if self.rate_hz < 1 or PHYSICS_HZ % self.rate_hz or self.rate_hz % 1:
            raise LawmError(f"rate {self.rate_hz:g} Hz; expected a whole number that divides {PHYSICS_HZ}, such as 4")
        if self.size % 2 or not 32 <= self.size <= 2048:
            raise LawmError(f"size {self.size}; expected an even number of pixels from 32 to 2048 (4:2:0 colour)")


PHYSICS_HZ = 100  # gym-pusht steps pymunk by 0.01 s
ARENA = 512.0  # side of the arena, in arena units
WALL = 48.0  # targets keep this far from the edge, so that the centre crop (256 / 292) shows the whole agent
TOWARDS_BLOCK = 0.65  # share of the moves that head for and through the block
MOVE = (30.0, 95.0)  # commanded distance of one action, arena units
MOVE_LASTS = (3, 6)  # actions until a new heading is drawn
AGENT_CLEAR = 20.0  # the agent (radius 15) starts at least this far outside the block


@dataclasses.dataclass(frozen=True)
class Episode:
    """`frames` uint8 [n + 1, H, W, 3]; `actions` float32 [n, 2], the commanded target minus the agent's position, arena
    units; `states` float32 [n + 1, 5]: agent x, agent y, block x, block y (arena units), block angle (radians)."""

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray


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
        """Episode `number` of `seed`: depends on these two (and the spec) alone."""
        rng = np.random.default_rng([seed, number])
        self._reset(rng)
        frames, states, actions = [self._picture()], [self._state()], []
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
            frames.append(self._picture())
            states.append(self._state())
        return Episode(np.stack(frames), np.asarray(actions, np.float32), np.asarray(states, np.float32))

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

    def _picture(self) -> np.ndarray:
        # The environment's own render() draws the commanded target as a red cross: the action would be in the picture.
        # Its observation resizes without antialiasing; smoothscale averages areas.
        side = self.spec.size
        small = self._pygame.transform.smoothscale(self._env._draw(), (side, side))
        return np.frombuffer(self._pygame.image.tobytes(small, "RGB"), np.uint8).reshape(side, side, 3)


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
    `ep_000000.mp4` and `ep_000000.json`, then `labels.parquet`, whose URI is returned.

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
    for number, (shard, rows) in enumerate(zip(shards, kept, strict=True)):
        if rows is None:
            sink = io.BytesIO()
            with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for e, (mp4, info) in zip(shard, made, strict=False):  # strict would take one more from `made`
                    _add_member(tar, f"ep_{e:06d}.mp4", mp4)
                    _add_member(tar, f"ep_{e:06d}.json", info)
                    done, written = done + 1, written + 1
                    if progress:
                        progress(done, written)
            storage.write_bytes(_shard_uri(out, number), sink.getvalue())
            rows = _shard_labels(out, number, shard)
            if rows is None:
                raise RuntimeError(f"{_shard_uri(out, number)} cannot be read back")
        labels += rows
    uri = storage.join(out, LABELS_NAME)
    write_labels(labels, uri)
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
        **dataclasses.asdict(spec),
    }


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
        changed = [f"{name} {old.get(name)} instead of {new[name]}" for name in new if old.get(name) != new[name]]
    except (ValueError, AttributeError):
        return "its manifest cannot be read"
    return ", ".join(changed) or "written by another version"


def _shard_uri(out: str, number: int) -> str:
    return storage.join(out, f"pusht-{number:06d}.tar")


def _shard_labels(out: str, number: int, episodes: range) -> list[VideoLabels] | None:
    """Labels of a finished shard, from its members; None where it is missing or is not whole."""
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
                rows.append(VideoLabels(key, float(info["rate_hz"]), *arrays))
    except (tarfile.TarError, KeyError, ValueError):
        return None
    return rows


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: the same episodes give the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@functools.lru_cache(maxsize=1)
def _simulator(spec: PushTSpec) -> PushTSimulator:
    return PushTSimulator(spec)


def _encoded_episode(seed: int, number: int, spec: PushTSpec) -> tuple[bytes, bytes]:
    """One episode as its (mp4, json) members. float32 survives JSON exactly, since it is written as float64."""
    episode = _simulator(spec).episode(seed, number)
    info = {
        "episode": number,
        "seed": seed,
        "rate_hz": spec.rate_hz,
        "actions": episode.actions.tolist(),
        "states": episode.states.tolist(),
    }
    return encode_mp4(episode.frames, spec.rate_hz, spec.gop_s, spec.crf), json.dumps(info).encode()


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _encoded_episodes(
    numbers: Sequence[int], seed: int, spec: PushTSpec, processes: int
) -> Iterator[tuple[bytes, bytes]]:
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
