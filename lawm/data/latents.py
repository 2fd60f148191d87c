"""Every transition of every video, once: in which windows they are inferred, and the table that they go into.

A video's states lie on the 1/fps grid from its first frame on. A window is what the model sees at once; windows follow
one another so that each transition is taken from exactly one of them. Where states do not depend on earlier frames,
neighbouring windows share one state, and a transition's latent is that of any clip that shows its two states. Where
they do (V-JEPA 2 with attention over time), a window is as long as the clips of the training, and begins `past` states
before the first transition that is taken from it (but for a video's beginning, which has no more past): no transition
is inferred with less past than that. The last of these windows is moved back to be as long as the others.
Legend: V videos, Z latent width.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import LawmError
from lawm.data.index import Index
from lawm.data.sampling import SLOWEST, grid_frames
from lawm.parquet import parquet_errors, read_parquet

FORMAT = 1
LATENTS_MANIFEST = "latents.json"
TRANSITIONS = "transitions"
"""The folder of the table, below the one that was asked for."""
LONGEST_FRAMES = 65
"""Frames of a window where states do not depend on earlier frames: 64 transitions are decoded in one go."""

TRANSITIONS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        ("transition", pa.int32()),
        ("time_s", pa.float64()),
        ("next_s", pa.float64()),
        ("shown_s", pa.float64()),
        ("next_shown_s", pa.float64()),
        ("z", pa.list_(pa.float32())),
        ("code", pa.int32()),
        ("nats", pa.float32()),
        ("spread", pa.list_(pa.float32())),
        ("window_s", pa.float64()),
        ("past", pa.int16()),
        ("reason", pa.string()),
    ]
)
"""One row a transition, in order: its video's `key`; its number, from state `transition` to the next; when these two
states begin, in seconds from the video's first frame, on the grid (`time_s`, `next_s`) and by the time stamps of the
frames that were on display then (`shown_s`, `next_shown_s`; null where the states come from a cache). `z` [Z] is the
latent action as in evaluation (of a Gaussian its mean); `code`: its number in the codebook (discrete latents); `nats`:
KL(q || N(0, I)), and `spread` [Z]: the posterior's standard deviation (noisy and adaptive ones); else null.
`window_s`: where the window began in which it was inferred, and `past`: how many states of it came before. `reason`:
why there is no `z`, which is null then; of a video that cannot be used at all there is one row without a number."""


@dataclass(frozen=True)
class Cut:
    """How videos are cut into windows: `states` at most, of which the first `past` are only looked back at, each of
    `frames_per_state` frames at `fps`. Raises LawmError where a window would take no transition."""

    fps: float
    states: int
    past: int = 0
    frames_per_state: int = 1

    def __post_init__(self) -> None:
        if self.past < 0 or self.states < 2 or self.stride < 1:
            raise LawmError(
                f"windows of {self.states} states with {self.past} states of past take no transition; expected at "
                f"most {max(self.states - 2, 0)} of past"
            )

    @property
    def stride(self) -> int:
        """States from one window to the next."""
        return self.states - 1 - self.past

    @property
    def seconds(self) -> float:
        """From one state to the next."""
        return self.frames_per_state / self.fps


class Window(NamedTuple):
    """Window `number` of the plan: of the video in row `row`, states `begin` .. `begin + states - 1`, of whose
    transitions `take` are taken from number `first` of the video on. No states: the video cannot be used (`reason`)."""

    number: int
    row: int
    begin: int
    states: int
    first: int
    take: int
    reason: str | None = None


@dataclass(frozen=True)
class WindowPlan:
    """The windows of an index's videos, numbered in order; a video that cannot be used has one that holds nothing.
    `ends` int64 [V]: the number after each video's last window; `states` int64 [V]: states of each video."""

    index: Index
    cut: Cut
    ends: np.ndarray
    states: np.ndarray

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def transitions(self) -> int:
        """Transitions of all videos that can be used."""
        return int(np.maximum(self.states - 1, 0).sum())

    def taken(self, numbers: np.ndarray) -> int:
        """Transitions that are taken from these windows."""
        return sum(self.window(int(number)).take for number in numbers)

    def window(self, number: int) -> Window:
        """Window `number`, 0 <= number < len(plan)."""
        row = int(np.searchsorted(self.ends, number, side="right"))
        at = number - (int(self.ends[row - 1]) if row else 0)
        n, cut = int(self.states[row]), self.cut
        if n < 2:
            return Window(number, row, 0, 0, 0, 0, self._reason(row))
        end = min(at * cut.stride + cut.states, n)
        first = 0 if at == 0 else (at - 1) * cut.stride + cut.states - 1  # what the window before ends with
        begin = max(end - cut.states, 0) if cut.past else first
        return Window(number, row, begin, end - begin, first, end - 1 - first)

    def _reason(self, row: int) -> str:
        said = self.index.table["reason"][row].as_py()
        if said:
            return str(said)
        rate, duration = (float(self.index.table[name][row].as_py() or 0) for name in ("rate", "duration_s"))
        if 0 < rate < SLOWEST * self.cut.fps:
            return f"too_slow: {rate:g} frames a second, and the model's clips have {self.cut.fps:g}"
        two = (2 * self.cut.frames_per_state - 1) / self.cut.fps
        return f"too_short: {duration:.3g} s, and two states take {two:g} s"


def plan_windows(index: Index, cut: Cut) -> WindowPlan:
    """The windows of all videos of the index, usable or not."""
    duration, rate = index.column("duration_s"), index.column("rate")
    good = np.asarray(index.table["reason"].is_null()) & (rate >= SLOWEST * cut.fps) & np.isfinite(duration)
    frames = np.where(good, grid_frames(duration, rate, cut.fps), 0)
    states = frames // cut.frames_per_state
    more = np.maximum(states - cut.states, 0)
    return WindowPlan(index, cut, np.cumsum(1 + -(-more // cut.stride)), states)


# ---------------------------------------------------------------- the table's parts
def part_uri(out: str, low: int, high: int) -> str:
    """The part of the table that holds windows `low` .. `high - 1`."""
    return storage.join(out, TRANSITIONS, f"part-{low:09d}-{high:09d}.parquet")


def done_windows(out: str, windows: int) -> np.ndarray:
    """Whether each window is in a part that is there, bool [windows]. Raises LawmError for a window in two of them."""
    done = np.zeros(windows, bool)
    for uri, low, high in _parts(out):
        if done[low:high].any() or not low < high <= windows:
            raise LawmError(f"{uri}: its windows are in another part too, or there are none; remove one of the two")
        done[low:high] = True
    return done


def _parts(out: str) -> Iterator[tuple[str, int, int]]:
    folder = storage.join(out, TRANSITIONS)
    found = storage.list_files(folder, (".parquet",)) if storage.exists(folder) else iter(())
    for uri, _ in found:
        name = uri.rpartition("/")[2].removeprefix("part-").removesuffix(".parquet").split("-")
        if len(name) != 2 or not all(part.isdecimal() for part in name):
            raise LawmError(f"{uri}: no part of a table of latents; choose another --out, or remove it")
        yield uri, int(name[0]), int(name[1])


def write_part(out: str, low: int, high: int, rows: pa.Table, about: dict[str, Any]) -> None:
    """Writes the part of those windows, whole or not at all; `about` goes into its metadata (`lawm.latents`)."""
    table = rows.select(TRANSITIONS_SCHEMA.names).cast(TRANSITIONS_SCHEMA)
    table = table.replace_schema_metadata({b"lawm.latents": json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(part_uri(out, low, high), sink.getvalue().to_pybytes())


def read_parts(out: str, columns: Iterable[str] | None = None) -> Iterator[pa.Table]:
    """The table of latents below `out`, part by part, in order. Raises LawmError where there is none."""
    names = TRANSITIONS_SCHEMA.names if columns is None else list(columns)
    found = sorted(_parts(out), key=lambda part: part[1])
    if not found:
        raise LawmError(f"{out}: no table of latents is there; make one with `lawm latents`")
    for uri, _, _ in found:
        with storage.open_file(uri) as file, parquet_errors(uri):
            yield read_parquet(file, names)


def read_latents_about(out: str) -> dict[str, Any]:
    """What `lawm latents` has noted of the table below `out`: the model, the clips, the index. Raises LawmError."""
    where = storage.join(out, LATENTS_MANIFEST)
    try:
        return dict(json.loads(storage.read_bytes(where)))
    except storage.NotFoundError:
        raise LawmError(
            f"{out}: no table of latents is there ({LATENTS_MANIFEST}); make one with `lawm latents`"
        ) from None
    except (ValueError, TypeError):
        raise LawmError(f"{where}: damaged; run `lawm latents` again, into another folder") from None


# ---------------------------------------------------------------- rows
@dataclass(frozen=True)
class Inferred:
    """What a model says of n transitions: `z` float32 [n, Z], and (None: its bottleneck has none) `code` int [n],
    `nats` [n], `spread` [n, Z]."""

    z: np.ndarray
    code: np.ndarray | None = None
    nats: np.ndarray | None = None
    spread: np.ndarray | None = None


@dataclass(frozen=True)
class Taken:
    """Transitions `first` .. `first + n - 1` of a video, from a window that begins with state `begin`; `shown_s`
    float64 [n + 1]: the time stamps of their states (NaN: not known)."""

    key: str
    first: int
    begin: int
    shown_s: np.ndarray

    @property
    def n(self) -> int:
        return len(self.shown_s) - 1


def inferred_rows(taken: Taken, found: Inferred, cut: Cut) -> pa.Table:
    """Rows of the table for transitions that a model has inferred."""
    numbers = taken.first + np.arange(taken.n)
    nulls = pa.nulls(taken.n)
    return _rows(
        taken,
        cut,
        numbers,
        z=_lists(found.z),
        code=nulls if found.code is None else pa.array(found.code.astype(np.int32)),
        nats=nulls if found.nats is None else pa.array(found.nats.astype(np.float32)),
        spread=nulls if found.spread is None else _lists(found.spread),
        past=pa.array((numbers - taken.begin).astype(np.int16)),
        reason=nulls,
    )


def refused_rows(taken: Taken, cut: Cut, reason: str) -> pa.Table:
    """Rows for transitions that could not be had; with none of these, the one row of a video that cannot be used."""
    if taken.n == 0:
        row = dict.fromkeys(TRANSITIONS_SCHEMA.names) | {"key": taken.key, "reason": reason}
        return pa.Table.from_pylist([row], schema=TRANSITIONS_SCHEMA)
    nulls = pa.nulls(taken.n)
    more = dict.fromkeys(("z", "code", "nats", "spread", "past"), nulls)
    numbers = taken.first + np.arange(taken.n)
    return _rows(taken, cut, numbers, reason=pa.array([reason] * taken.n, pa.string()), **more)


def _rows(taken: Taken, cut: Cut, numbers: np.ndarray, **columns: pa.Array) -> pa.Table:
    shown = pa.array(taken.shown_s, from_pandas=True)  # NaN is null
    own = {
        "key": pa.array([taken.key] * taken.n, pa.string()),
        "transition": pa.array(numbers.astype(np.int32)),
        "time_s": pa.array(numbers * cut.seconds),
        "next_s": pa.array((numbers + 1) * cut.seconds),
        "shown_s": shown[:-1],
        "next_shown_s": shown[1:],
        "window_s": pa.array(np.full(taken.n, taken.begin * cut.seconds)),
    }
    every = own | columns
    return pa.Table.from_arrays(
        [every[field.name].cast(field.type) for field in TRANSITIONS_SCHEMA], schema=TRANSITIONS_SCHEMA
    )


def _lists(values_NZ: np.ndarray) -> pa.Array:
    offsets = np.arange(len(values_NZ) + 1, dtype=np.int32) * values_NZ.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values_NZ, np.float32).ravel()))


def check_finite(found: Inferred, key: str) -> None:
    """Raises LawmError where a model gives latents that are not numbers: its weights are damaged, not the clip."""
    if not np.isfinite(found.z).all():
        raise LawmError(f"{key}: the model's latent actions are not finite; the checkpoint cannot be used")


def about_latents(cut: Cut, **more: Any) -> dict[str, Any]:
    """What a table of latents depends on, as JSON can hold it."""
    return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(cut), **more}))


def latents_by_frame(table: pa.Table, fps: float, frames: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """One video's rows -> float32 [frames, width] and bool [frames], at `fps` frames a second: each frame has the
    latent of the transition that begins with the last frame shown to the model at or before it. Zeros, False: none."""
    z, valid = np.zeros((frames, width), np.float32), np.zeros(frames, bool)
    for row in table.to_pylist():
        if row["z"] is None:
            continue
        begin, end = (
            round(shown * fps) if shown is not None else int(grid * fps + 1e-2)
            for shown, grid in ((row["shown_s"], row["time_s"]), (row["next_shown_s"], row["next_s"]))
        )
        z[begin:end], valid[begin:end] = row["z"], True
    return z, valid
