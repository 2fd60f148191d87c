"""The table of true actions beside the videos.

Labels are one Parquet table, one row per video (LABELS_SCHEMA). Action i of a video is the one taken from
time i / rate_hz to (i + 1) / rate_hz; state i is the world at time i / rate_hz. How the action between two frames of
a clip comes of these is said in the table's own metadata (`lawm.actions`, one of ActionKind), and what each number is,
with its unit, in `lawm.dimensions` (see `dimensions.py`).
Shape legend: n actions of a video, A action width, S state width, F frames of a clip.
"""

import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import ClipSpec, LawmError
from lawm.data.dimensions import (
    DIMENSIONS_KEY,
    PLANAR,
    POSE,
    UNKNOWN,
    Dimension,
    Meaning,
    compose_planar,
    read_meaning,
    unnamed,
)
from lawm.parquet import parquet_errors, read_parquet
from lawm.video import choose

ActionKind = Literal["sum", "first", "state_delta", "pose_delta", "planar_delta"]
"""The action from one frame of a clip to the next:

- sum: of the actions between them (increments, velocities); the clip's rate has to divide theirs. Displacements in the
  body's frame (forward, left, turn) are composed.
- first: the one taken at the first (set points).
- state_delta: the difference of the two states.
- pose_delta: states are x y z, Euler angles (extrinsic xyz, radians), and anything more such as the gripper:
  differences, but for the angles the Euler angles of R_{t+1} R_t^T (V-JEPA 2-AC, section 4; DROID).
- planar_delta: states are x, y (metres), yaw (radians): dx, dy as seen from the first frame, and the turn (NWM, RECON).

The last three and `first` go with clips of any rate: the state at a frame is the one on display then.
"""
FROM_STATES = ("state_delta", "pose_delta", "planar_delta")
KIND_KEY = b"lawm.actions"
NEAR_S = 1e-3
"""Seconds by which a frame may be early and its label still count as there: containers round their times."""

LABELS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("rate_hz", pa.float64()),
        ("actions", pa.list_(pa.list_(pa.float32()))),
        ("states", pa.list_(pa.list_(pa.float32()))),
    ]
)


class ClipLabelsError(LawmError):
    """The labels of one video do not fit a clip of it; those of the others may."""

    reason = "labels"


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


def deltas(kind: ActionKind, states_FS: np.ndarray) -> np.ndarray:
    """The actions between successive states, float32 [F - 1, A], by one of FROM_STATES."""
    states = np.asarray(states_FS, np.float64)
    change = np.diff(states, axis=0)
    if kind == "pose_delta":
        from scipy.spatial.transform import Rotation  # a quarter of a second, in every process that reads clips

        turned = Rotation.from_euler("xyz", states[:, 3:6]) if len(states) else None
        if len(change) and turned is not None:
            change[:, 3:6] = (turned[1:] * turned[:-1].inv()).as_euler("xyz")
    elif kind == "planar_delta":
        yaw = states[:-1, 2]
        x, y = change[:, 0], change[:, 1]
        turn = np.remainder(change[:, 2] + np.pi, 2 * np.pi) - np.pi
        change = np.stack([np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x, turn], axis=1)
    return change.astype(np.float32)


def _states_by_kind(kind: ActionKind, width: int) -> tuple[Dimension, ...]:
    """What the kind of action says of states that nobody has named: no unit of length."""
    known = {"pose_delta": POSE, "planar_delta": PLANAR}.get(kind, ())[:width]
    known = tuple(dataclasses.replace(d, unit=UNKNOWN) if d.kind == "translation" else d for d in known)
    return known + unnamed(width, "state")[len(known) :]


def _actions_by_kind(kind: ActionKind, states: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    if kind == "planar_delta":
        return tuple(dataclasses.replace(d, frame="body") for d in states[:3])
    return states if kind in FROM_STATES else ()


class Labels:
    """Actions (and, where known, states) of many videos, looked up by the video's key."""

    def __init__(self, table: pa.Table, where: str = "labels"):
        """`table` has the columns of LABELS_SCHEMA; `where` names it in errors. Raises LawmError for a missing or
        mistyped column, a repeated key, a rate that is not positive, ragged or non-finite values, an unknown kind."""
        self._where = where
        said = (table.schema.metadata or {}).get(KIND_KEY, b"sum").decode("utf-8", "replace")
        if said not in get_args(ActionKind):
            raise LawmError(f"{where}: actions of kind {said!r}; expected one of {', '.join(get_args(ActionKind))}")
        self.kind: ActionKind = said
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
        states = _column(table, "states", where) if "states" in table.column_names else None
        self._states = None if states is None or states.null_count else _ragged(states, keys, f"{where}: states")
        if self.kind in FROM_STATES:
            least = {"state_delta": 1, "pose_delta": 6, "planar_delta": 3}[self.kind]
            if self._states is None or (len(keys) and self._states.values.shape[1] < least):
                raise LawmError(f"{where}: {self.kind} is made of states; expected {least} numbers or more for each")
            if self.kind == "planar_delta" and len(keys) and self._states.values.shape[1] != least:
                raise LawmError(
                    f"{where}: planar_delta is made of x, y, yaw, and the states are of "
                    f"{self._states.values.shape[1]} numbers; a pose in space is pose_delta"
                )
            self._actions = self._states
        else:
            self._actions = _ragged(_column(table, "actions", where), keys, f"{where}: actions")
        self._name_dimensions(table, where)

    def _name_dimensions(self, table: pa.Table, where: str) -> None:
        said = (table.schema.metadata or {}).get(DIMENSIONS_KEY)
        meaning = read_meaning(said, where) if said is not None else Meaning()
        states = meaning.states or _states_by_kind(self.kind, self.state_dim or 0)
        # What is made of states has the states' dimensions.
        actions = _actions_by_kind(self.kind, states) or meaning.actions or unnamed(self.action_dim, "action")
        given = (("actions", actions, self.action_dim), ("states", states, self.state_dim or len(states)))
        for what, dimensions, width in given:
            if len(self) and len(dimensions) != width:
                raise LawmError(f"{where}: {width} numbers in its {what}, and {len(dimensions)} named dimensions")
        if self.kind == "first" and meaning.displacements:
            raise LawmError(f"{where}: actions of kind first are one of several, and cannot add up to displacements")
        wanted = [d.kind for d in {"pose_delta": POSE, "planar_delta": PLANAR}.get(self.kind, ())]
        if wanted and [d.kind for d in actions[: len(wanted)]] != wanted:
            has = ", ".join(f"{d.name} ({d.kind})" for d in actions[: len(wanted)])
            raise LawmError(f"{where}: {self.kind} is made of {', '.join(wanted)}; its states are {has}")
        displacements = self.kind in FROM_STATES or meaning.displacements
        # A gripper's opening is the same in any frame.
        body = [i for i, d in enumerate(actions) if d.frame == "body" and d.kind in ("translation", "rotation")]
        planar = body == [0, 1, 2] and [d.kind for d in actions[:3]] == [d.kind for d in PLANAR]
        self.composed = displacements and planar and self.kind in ("sum", "planar_delta")
        """Whether actions are steps (forward, left, turn), which are composed, and not added."""
        if displacements and body and not self.composed:
            raise LawmError(
                f"{where}: {actions[body[0]].name} is a displacement in the body's frame, and of those only two "
                "translations and a turn, in front of all others, can be composed; give states x, y, yaw with "
                "planar_delta, displacements in the world's frame, or say that they are none (displacements: false)"
            )
        angles = ("rad", UNKNOWN) if wanted or self.composed else ("rad", "deg", UNKNOWN)
        odd = next((d for d in actions if d.kind == "rotation" and d.unit not in angles), None)
        if odd is not None:
            raise LawmError(f"{where}: angle {odd.name} in {odd.unit}; expected {' or '.join(angles)}")
        self.meaning = Meaning(actions, states, displacements, meaning.simulator, meaning.scene)
        """What each number of the actions (as clips have them) and of the states is."""

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
        return 3 if self.kind == "planar_delta" else self._actions.values.shape[1]

    @property
    def state_dim(self) -> int | None:
        """Width of the states; None where the table has none (or only for some videos)."""
        return None if self._states is None else self._states.values.shape[1]

    def of(self, key: str) -> VideoLabels:
        """All that is known of one video; raises LawmError for a key that is not in the table."""
        i = self._find(key)
        states = None if self._states is None else self._states.row(i)
        if self.kind in FROM_STATES:
            assert states is not None
            return VideoLabels(key, float(self._rate[i]), deltas(self.kind, states), states)
        return VideoLabels(key, float(self._rate[i]), self._actions.row(i), states)

    def actions_for(self, key: str, start_s: float, clip: ClipSpec, seconds_F: np.ndarray | None = None) -> np.ndarray:
        """The F - 1 actions between the frames of a clip that starts at `start_s` seconds: float32 [F - 1, A].

        See ActionKind; `seconds_F` as for `states_for`. Raises ClipLabelsError where the video's actions end before the
        clip does, and for sums where its rate does not divide as others in the table do; LawmError where none does, or
        the clip starts between two actions.
        """
        if self.kind in FROM_STATES:
            return deltas(self.kind, self.states_for(key, start_s, clip, seconds_F))
        i = self._find(key)
        if self.kind == "first":
            at = self._on_display(i, start_s, clip, seconds_F)[:-1]
            if at[-1] >= len(self._actions.row(i)):
                raise self._too_short(key, len(self._actions.row(i)), "actions", clip, start_s, int(at[-1]) + 1)
            return self._actions.row(i)[at]
        each, first = self._steps(i, start_s, clip.fps)
        actions = self._actions.row(i)
        needed = (clip.frames - 1) * each
        if first + needed > len(actions):
            raise self._too_short(key, len(actions), "actions", clip, start_s, first + needed)
        taken = actions[first : first + needed].reshape(clip.frames - 1, each, -1)
        return self._added(taken)

    def whole(self, key: str, clip: ClipSpec, frames: int) -> np.ndarray:
        """The actions between the first `frames` frames of a video at the clip's rate, or between as many of them as
        its labels reach: float32 [frames - 1 or fewer, A], as clips of that video have them."""
        i = self._find(key)
        if self.kind == "sum":
            each, _ = self._steps(i, 0.0, clip.fps)
            actions = self._actions.row(i)
            n = min(frames - 1, len(actions) // each)
            return self._added(actions[: n * each].reshape(n, each, -1))
        at = self._on_display(i, 0.0, clip.model_copy(update={"frames": frames}), None)
        if self.kind == "first":
            known = self._actions.row(i)
            return known[at[:-1][at[:-1] < len(known)]]
        assert self._states is not None
        states = self._states.row(i)
        return deltas(self.kind, states[at[at < len(states)]])

    def _added(self, steps_FEA: np.ndarray) -> np.ndarray:
        """What E actions come to together, float32 [F, A]."""
        if self.composed:
            return compose_planar(steps_FEA).astype(np.float32)
        return steps_FEA.sum(axis=1, dtype=np.float32)

    def states_for(self, key: str, start_s: float, clip: ClipSpec, seconds_F: np.ndarray | None = None) -> np.ndarray:
        """The world's state at each frame of the clip, float32 [F, S]. `seconds_F`: the times of these very frames
        (`Clip.seconds_F`); without them, as frames at the rate of the labels are chosen (`timing.choose`). Raises
        ClipLabelsError where the states end before the clip does, LawmError where the table has none."""
        i = self._find(key)
        if self._states is None:
            raise LawmError(f"{self._where}: no states for every video; fill the column `states` to use them")
        at, states = self._on_display(i, start_s, clip, seconds_F), self._states.row(i)
        if at[-1] >= len(states):
            raise self._too_short(key, len(states), "states", clip, start_s, int(at[-1]) + 1)
        return states[at]

    def _on_display(self, i: int, start_s: float, clip: ClipSpec, seconds_F: np.ndarray | None) -> np.ndarray:
        """The number of the label at each frame."""
        if start_s < 0:
            raise LawmError(f"{self._where}: a clip from {start_s:g} s; expected a start of at least 0")
        rate = float(self._rate[i])
        if seconds_F is not None:
            return np.rint(seconds_F * rate).astype(np.int64)
        wanted_F = start_s + np.arange(clip.frames) / clip.fps
        grid = np.arange(int(wanted_F[-1] * rate) + 3) / rate
        return choose(grid, wanted_F, 0.5 / clip.fps, min(NEAR_S, 0.1 / rate))

    def first_label(self, key: str, start_s: float, fps: float) -> tuple[int, int]:
        """(number of the first label, labels per frame) of a clip at `fps` from `start_s`. Raises LawmError where the
        rates do not divide, or the clip starts between two labels."""
        each, first = self._steps(self._find(key), start_s, fps)
        return first, each

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
        return ClipLabelsError(
            f"{self._where}: {key} has {has} {what}; a clip of {clip.frames} frames at {clip.fps:g} fps"
            f" from {start_s:g} s needs {needs}. Take shorter clips or an earlier start"
        )

    def _steps(self, i: int, start_s: float, fps: float) -> tuple[int, int]:
        """(labels per frame, index of the first label) for a clip at `fps` from `start_s`."""
        rate = float(self._rate[i])
        each = round(rate / fps)
        if each < 1 or not math.isclose(rate, each * fps, rel_tol=1e-6):
            per_frame = np.rint(self._rate / fps)
            others_do = np.any((per_frame >= 1) & np.isclose(self._rate, per_frame * fps, rtol=1e-6, atol=0))
            whose = f" of {list(self._row)[i]}" if others_do else ""
            raise (ClipLabelsError if others_do else LawmError)(
                f"{self._where}: actions{whose} at {rate:g} Hz do not divide into clips at {fps:g} fps;"
                f" choose data.clip.fps = {rate:g} divided by a whole number"
            )
        first = round(start_s * rate)
        if start_s < 0 or abs(start_s * rate - first) > 1e-2:
            raise LawmError(
                f"{self._where}: a clip from {start_s:g} s starts between two actions;"
                f" expected a start of at least 0 and a multiple of {1 / rate:g} s"
            )
        return each, first


def _nested(values: Sequence[np.ndarray | None], kind: pa.DataType) -> pa.Array:
    """Arrays [n, width] as lists of lists, without a Python object for each number."""
    there = [np.zeros((0, 1), np.float32) if v is None else np.asarray(v, np.float32) for v in values]
    lengths = np.array([len(v) for v in there], np.int64)
    widths = np.repeat(np.array([v.shape[1] for v in there], np.int64), lengths)
    flat = np.concatenate([v.ravel() for v in there]) if there else np.zeros(0, np.float32)
    if len(flat) >= 2**31:
        raise LawmError("more than 2^31 numbers of labels; split the data set, and mix the parts")
    inner = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(widths)]), pa.int32()), pa.array(flat))
    missing = np.array([v is None for v in values], bool)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(
        pa.array(starts, pa.int32()), inner, mask=pa.array(missing) if missing.any() else None
    ).cast(kind)


def labels_table(rows: Iterable[VideoLabels], kind: ActionKind = "sum", meaning: Meaning | None = None) -> pa.Table:
    """Rows as a table of LABELS_SCHEMA, in their order; its metadata says how actions are meant, and (`meaning`) what
    their numbers are."""
    rows = list(rows)

    def column(values: list[np.ndarray | None]) -> pa.Array:
        return _nested(values, LABELS_SCHEMA.field("actions").type)

    return pa.Table.from_arrays(
        [
            pa.array([row.key for row in rows], pa.string()),
            pa.array([row.rate_hz for row in rows], pa.float64()),
            column([row.actions for row in rows]),
            column([row.states for row in rows]),
        ],
        schema=LABELS_SCHEMA,
    ).replace_schema_metadata(
        {KIND_KEY: kind.encode()} | ({} if meaning is None else {DIMENSIONS_KEY: meaning.to_json()})
    )


def write_labels(
    rows: Iterable[VideoLabels], uri: str, kind: ActionKind = "sum", meaning: Meaning | None = None
) -> Labels:
    """Write one Parquet table of labels, atomically; rows are checked first, as `Labels` does. Returns them."""
    table = labels_table(rows, kind, meaning)
    labels = Labels(table, uri)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
    return labels


def read_labels(uri: str) -> Labels:
    """Read a table of labels (local path or s3://). Raises LawmError where it is missing, not Parquet or malformed."""
    with storage.open_file(uri) as file, parquet_errors(uri, ". A table of labels was expected"):
        table = read_parquet(file)
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
