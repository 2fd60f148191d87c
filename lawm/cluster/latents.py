"""Latent actions of every transition of an index's videos, as one table: decoding on CPU tasks, the model on actors.

The table's parts are written here, in the order of the windows (`lawm.data`, plan_windows), each whole or not at all; a
rerun after a kill makes the windows that are in no part. What cannot be decoded is rows with a reason.
"""

import functools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from lawm.cluster.ingest import RowIds
from lawm.cluster.prepare import claim
from lawm.cluster.session import DECODE, TRAIN, Need, decode_slots, label_selector
from lawm.config import Config, LawmError, parse_config
from lawm.data import (
    LATENTS_MANIFEST,
    LONGEST_FRAMES,
    Cut,
    Feature,
    Index,
    Inferred,
    StateCache,
    Taken,
    Window,
    WindowPlan,
    about_latents,
    add_features,
    check_finite,
    check_room,
    done_windows,
    inferred_rows,
    latents_by_frame,
    matches,
    plan_windows,
    read_lerobot_info,
    read_parts,
    read_pieces,
    refused_rows,
    write_part,
)
from lawm.model import past_counts, states_per_clip
from lawm.storage import absolute, join, sweep
from lawm.training import (
    LatentActionObjective,
    autocast,
    check_cache,
    check_free_of_the_past,
    config_in_use,
    load_model,
    pick_device,
    read_about,
)
from lawm.video import VideoError, VideoRef, decode_clip

_EPISODE = re.compile(r".+/episode_\d{6}")
BLOCK_BYTES = 64 << 20
"""Pixels (or states) that a decode task yields at a time."""
FRAMES_AT_ONCE = 64
"""Frames that the model is given at a time, at least one window's."""
WINDOWS_A_TASK = 64
CALLS_PER_WORKER = 500
ROWS_A_PART = 16_384
SECONDS_A_PART = 30.0
"""A part is written when it has so many rows, or so long after the last one: a kill costs no more."""
LOOK_CLOSER = ("bad_timestamps", "corrupt", "too_short")
"""Reasons that may hold for a part of a window alone: it is then tried in shorter pieces, down to a clip."""


@dataclass(frozen=True)
class LatentsReport:
    """The folder; transitions with a latent, and without, of how many videos (those of no use among them); rows that
    were there already; transitions a second of this run, from the first part of them on; refused rows by reason."""

    uri: str
    transitions: int
    refused: int
    videos: int
    unusable: int
    kept: int
    per_second: float
    reasons: dict[str, int]


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    return [
        Need("latents actor", cluster.encode_actors, 1.0, cluster.gpus_per_worker, TRAIN, "cluster.encode_actors=1"),
        Need("decode task", 1, cluster.decode_cpus, 0.0, DECODE, "cluster.decode_cpus=1"),
    ]


@dataclass(frozen=True)
class Job:
    """What is to be done: the model, the windows, and what the table will say of itself."""

    config: Config
    checkpoint: str
    plan: WindowPlan
    about: dict[str, Any]
    """What the table depends on."""


def plan_latents(config: Config, checkpoint: str, past: int | None = None) -> Job:
    """Looks at all that would be refused. `past`: states of past that every transition gets, where the encoder looks
    back (None: half of a clip's). Raises LawmError: no index, a model without latents, a cache that does not hold its
    states, nothing that is usable."""
    config = _exact(config)
    seen = read_about(checkpoint)
    trained = parse_config(seen["config"], checkpoint)
    config_in_use(trained, config, checkpoint)
    if trained.model.bottleneck.kind in ("deterministic", "true_actions"):
        raise LawmError(
            f"{checkpoint}: a {trained.model.bottleneck.kind} model infers no latent actions; give a checkpoint with "
            "another model.bottleneck.kind"
        )
    data = config.data
    cache = StateCache(data.cache) if data.cache else None
    check_free_of_the_past(cache, "lawm latents")
    if cache is None and data.index is None:
        raise LawmError("no clips: say with --index (or --cache) of which videos the latent actions are wanted")
    index = cache.index if cache is not None else _index(str(data.index))
    if data.keys is not None:
        index = index.where(lambda key: matches(key, str(data.keys)))
    plan = plan_windows(index, cut_of(config, past))
    if not plan.transitions:
        first = plan.window(0).reason if len(plan) else "there is none"
        raise LawmError(f"{data.index or data.cache}: none of {len(index)} videos has a transition; the first: {first}")
    about = about_latents(
        plan.cut,
        step=seen["step"],
        model=seen.get("fingerprint"),
        bottleneck=trained.model.bottleneck.kind,
        latent_dim=trained.model.latent_dim,
        size=data.clip.size,
        duplicate=data.clip.duplicate,
        precision=config.train.precision,
        index=index.fingerprint(),
        windows=len(plan),
    )
    return Job(config, checkpoint, plan, about)


def _exact(config: Config) -> Config:
    """The config with clips cut as they are measured: the picture's centre, exact starts, exact pictures."""
    clip = config.data.clip.model_copy(update={"crop": "center", "start": "exact", "loop_filter": "exact"})
    return config.model_copy(update={"data": config.data.model_copy(update={"clip": clip})})


def _index(uri: str) -> Index:
    return Index(pa.concat_tables([piece.table for piece in read_pieces(uri)]))


def cut_of(config: Config, past: int | None = None) -> Cut:
    """How videos are cut into windows for that model: see `lawm.data`, Cut. Raises LawmError for a `past` that there is
    no use for, or no room."""
    clip = config.data.clip
    states = states_per_clip(config.encoder, clip)
    each = clip.frames // states
    if not past_counts(config.encoder):
        if past:
            raise LawmError(f"--past {past}: this encoder's states do not depend on earlier frames; leave it out")
        return Cut(clip.fps, max(LONGEST_FRAMES // each, 2), 0, each)
    return Cut(clip.fps, states, (states - 1) // 2 if past is None else past, each)


# ---------------------------------------------------------------- decoding
class Held:
    """The plan of the windows, and which of them are to be made, in the object store; can be a cache key."""

    def __init__(self, plan: WindowPlan, todo: np.ndarray) -> None:
        self.cut = plan.cut
        self.refs = tuple(ray.put(part) for part in (plan.index.table, plan.ends, plan.states, todo))

    def __hash__(self) -> int:
        return hash(self.refs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.refs == other.refs


@functools.lru_cache(maxsize=2)
def _opened(held: Held) -> tuple[WindowPlan, np.ndarray]:
    table, ends, states, todo = ray.get(list(held.refs))
    return WindowPlan(Index(table), held.cut, ends, states), todo


@functools.lru_cache(maxsize=2)
def _cache(uri: str) -> StateCache:
    return StateCache(uri)


@dataclass(frozen=True)
class Piece:
    """Frames uint8 [F, 3, S, S] (or states [T, N, D]) of a window from state `begin` on, and the transitions that are
    taken from it; `reason`: why there are no frames."""

    number: int
    begin: int
    taken: Taken
    frames: np.ndarray
    reason: str = ""


def decode_windows(rows: dict[str, np.ndarray], config: Config, held: Held) -> Iterator[dict[str, Any]]:
    """Row ids -> pieces of their windows, a block at a time."""
    torch.set_num_threads(1)
    plan, todo = _opened(held)
    block: list[Piece] = []
    for id in rows["id"]:
        window = plan.window(int(todo[int(id)]))
        block += pieces_of(config, plan, window)
        if sum(piece.frames.nbytes for piece in block) >= BLOCK_BYTES:
            yield _block(block)
            block = []
    if block:
        yield _block(block)


def _block(pieces: list[Piece]) -> dict[str, Any]:
    def cells(values: list[Any]) -> np.ndarray:
        column = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            column[i] = value
        return column

    return {
        "number": np.array([p.number for p in pieces], np.int64),
        "begin": np.array([p.begin for p in pieces], np.int64),
        "key": np.array([p.taken.key for p in pieces], dtype=object),
        "first": np.array([p.taken.first for p in pieces], np.int64),
        "window": np.array([p.taken.begin for p in pieces], np.int64),
        "shown_s": cells([p.taken.shown_s for p in pieces]),
        "frames": cells([p.frames for p in pieces]),
        "reason": np.array([p.reason for p in pieces], dtype=object),
    }


def pieces_of(config: Config, plan: WindowPlan, window: Window) -> list[Piece]:
    """A window as one piece, as several where parts of it cannot be decoded, or as one without frames."""
    ref, data = plan.index.ref(window.row), config.data
    if window.reason is not None:
        nothing = Taken(ref.key, 0, 0, np.zeros(1))
        return [Piece(window.number, 0, nothing, _no_frames(config), window.reason)]
    if data.cache is None:
        return list(_decoded(config, plan.cut, ref, window, window.begin, window.states))
    cut = plan.cut
    first, frames = window.begin * cut.frames_per_state, window.states * cut.frames_per_state
    taken = Taken(ref.key, window.first, window.begin, np.full(window.take + 1, np.nan))
    return [Piece(window.number, window.begin, taken, _cache(data.cache).window(ref.key, first, frames))]


def _no_frames(config: Config) -> np.ndarray:
    """What stands for frames, or states, where there are none."""
    if config.data.cache is not None:
        cache = _cache(config.data.cache)
        return np.zeros((0, cache.tokens, cache.width), np.float16)
    side = config.data.clip.size
    return np.zeros((0, 3, side, side), np.uint8)


def _decoded(config: Config, cut: Cut, ref: VideoRef, window: Window, begin: int, states: int) -> Iterator[Piece]:
    """States `begin` .. `begin + states - 1` of the video, decoded; in two halves where that cannot be and the model
    does not need them together."""
    each, data = cut.frames_per_state, config.data
    first = max(window.first, begin)
    take = min(window.first + window.take, begin + states - 1) - first
    if take <= 0:
        return
    clip = data.clip.model_copy(update={"frames": states * each})
    try:
        found = decode_clip(ref, begin * each / cut.fps, clip, data.limits)
    except VideoError as error:
        if not past_counts(config.encoder) and states * each > data.clip.frames and error.reason in LOOK_CLOSER:
            half = states // 2
            yield from _decoded(config, cut, ref, window, begin, half + 1)  # they share a state
            yield from _decoded(config, cut, ref, window, begin + half, states - half)
            return
        taken = Taken(ref.key, first, window.begin, np.full(take + 1, np.nan))
        yield Piece(window.number, begin, taken, _no_frames(config), error.why)
        return
    shown = found.seconds_F[::each][first - begin : first - begin + take + 1]
    yield Piece(window.number, begin, Taken(ref.key, first, begin, shown), found.frames_FCHW)


# ---------------------------------------------------------------- the model
class Infer:
    """Holds the model; turns pieces into rows of the table, with the number of their window."""

    def __init__(self, config: Config, checkpoint: str, cut: Cut) -> None:
        if config.cluster.encode_actors > 1:
            torch.set_num_threads(1)
        self.config, self.cut, self.device = config, cut, pick_device()
        model, _ = load_model(checkpoint, config=config)
        if config.data.cache is not None:
            check_cache(StateCache(config.data.cache), config, model)
        self.model = model.to(self.device)

    def __call__(self, rows: dict[str, np.ndarray]) -> pa.Table:
        tables: dict[int, pa.Table] = {}
        alike: dict[tuple[int, ...], list[int]] = {}
        taken = [
            Taken(str(key), int(first), int(window), np.asarray(shown_s, np.float64))
            for key, first, window, shown_s in zip(
                rows["key"], rows["first"], rows["window"], rows["shown_s"], strict=True
            )
        ]
        frames = [np.asarray(cell) for cell in rows["frames"]]
        for i, reason in enumerate(rows["reason"]):
            if reason:
                tables[i] = refused_rows(taken[i], self.cut, str(reason))
            else:
                alike.setdefault(frames[i].shape, []).append(i)
        for those in alike.values():
            many = max(FRAMES_AT_ONCE // len(frames[those[0]]), 1)
            for n in range(0, len(those), many):
                some = those[n : n + many]
                found = infer_clips(self.model, np.stack([frames[i] for i in some]), self.config.train.precision)
                for i, one in zip(some, found, strict=True):
                    own = _part(one, taken[i].first - int(rows["begin"][i]), taken[i].n)
                    check_finite(own, taken[i].key)
                    tables[i] = inferred_rows(taken[i], own, self.cut)
        numbered = [
            tables[i].append_column("window", pa.array(np.full(len(tables[i]), number, np.int64)))
            for i, number in enumerate(rows["number"])
        ]
        return pa.concat_tables(numbered)


def _part(found: Inferred, at: int, n: int) -> Inferred:
    """Transitions `at` .. `at + n - 1`."""
    rest = (found.code, found.nats, found.spread)
    return Inferred(found.z[at : at + n], *(None if x is None else x[at : at + n] for x in rest))


@torch.no_grad()
def infer_clips(model: LatentActionObjective, clips: np.ndarray, precision: str = "auto") -> list[Inferred]:
    """What the model says of every transition of each clip, as in evaluation: uint8 frames [B, F, 3, S, S], or raw
    states [B, T, N, D] of its encoder."""
    device = next(model.parameters()).device
    given = torch.from_numpy(np.ascontiguousarray(clips)).to(device)
    with autocast(device, precision):
        raw = model.encode(given) if clips.ndim == 5 else given
        found = model.infer(model.state_norm(raw))
    assert found.z_BTZ is not None

    def each(values: torch.Tensor | None) -> list[Any]:
        return [None] * len(clips) if values is None else list(values.float().cpu().numpy())

    code = [None] * len(clips) if found.code_BT is None else list(found.code_BT.cpu().numpy())
    values = zip(each(found.z_BTZ), code, each(found.rate_BT), each(found.spread_BTZ), strict=True)
    return [Inferred(*value) for value in values]


# ---------------------------------------------------------------- doing it
def write_latents(job: Job, out: str, progress: Callable[[int, int], None] | None = None) -> LatentsReport:
    """Writes the table below `out`, inside `session.start`; goes on where an interrupted run ended. `progress(done,
    total)` counts transitions. Raises LawmError: a table of another model or index in `out`."""
    out, plan = absolute(out), job.plan
    claim(out, LATENTS_MANIFEST, job.about)
    sweep(join(out, "transitions"))
    todo = np.flatnonzero(~done_windows(out, len(plan)))
    total = plan.transitions
    kept = total - plan.taken(todo) if len(todo) < len(plan) else 0
    if progress is not None:
        progress(kept, total)
    writer = _Writer(out, job.about | {"checkpoint": job.checkpoint}, todo)
    done, began, first = kept, 0.0, 0
    try:
        for rows in _stream(job, todo) if len(todo) else ():
            done += len(rows) - rows["transition"].null_count
            if not began:  # what comes before is the start
                began, first = time.monotonic(), done
            writer.add(rows)
            if progress is not None:
                progress(done, total)
    except BaseException:
        writer.finish(whole=False)
        raise
    writer.finish()
    seconds = time.monotonic() - began
    rate = (done - first) / seconds if began and done > first and seconds > 0 else 0.0
    return _report(out, plan, kept, rate)


def _stream(job: Job, todo: np.ndarray) -> Iterator[pa.Table]:
    """Rows in the order of the windows."""
    config, cluster = job.config, job.config.cluster
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES  # or blocks are put together again
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    remote = {"num_cpus": cluster.decode_cpus, "label_selector": label_selector(cluster, DECODE) or None}
    # A decode worker is replaced now and then, lest what codecs leak add up; so Ray does not decode in the actors, too.
    own: dict[str, Any] = {"max_calls": CALLS_PER_WORKER}
    infer: dict[str, Any] = {"num_cpus": 1, "label_selector": label_selector(cluster, TRAIN) or None}
    if cluster.gpus_per_worker:
        infer["num_gpus"] = cluster.gpus_per_worker
    each = int(np.clip(len(todo) // (2 * decode_slots(cluster)), 1, WINDOWS_A_TASK))
    ids = RowIds(len(todo), each)
    data = (
        ray.data.read_datasource(ids, override_num_blocks=ids.tasks, **remote, ray_remote_args=own)
        .map_batches(
            decode_windows,
            batch_size=None,
            batch_format="numpy",
            fn_kwargs={"config": config, "held": Held(job.plan, todo)},
            **remote,
            **own,
        )
        .map_batches(
            Infer,
            fn_constructor_args=(config, job.checkpoint, job.plan.cut),
            batch_size=None,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=min(cluster.encode_actors, ids.tasks)),
            **infer,
        )
    )
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow")


def latent_features(job: Job, source: str, out: str, name: str) -> dict[str, Feature]:
    """The features `name` (`name.<camera>` where the index has several) and `name.valid` that the LeRobot data set at
    `source` is to get. Raises LawmError where there is no room for them, or the index is not of its episodes."""
    keys = job.plan.index.keys()
    cameras = sorted({key.rpartition("/")[0] for key in keys if _EPISODE.fullmatch(key)})
    if not cameras:
        raise LawmError(f"--lerobot {source}: no video of the index is one of its episodes; index it by `lawm dataset`")
    names = {name: cameras[0]} if len(cameras) == 1 else {f"{name}.{camera}": camera for camera in cameras}
    width = int(job.about["latent_dim"])
    found = {one: Feature("float32", width) for one in names}
    found |= {f"{one}.valid": Feature("bool", 1) for one in names}
    check_room(source, out, found)
    return found


def write_lerobot(job: Job, table: str, source: str, out: str, name: str) -> int:
    """Writes the LeRobot data set `source` with the latents of the table as features to `out`; the frames that have
    one, of all cameras. Raises LawmError as `latent_features`."""
    features = latent_features(job, source, out, name)
    fps, width = float(read_lerobot_info(source)["fps"]), int(job.about["latent_dim"])
    columns = ("key", "time_s", "next_s", "shown_s", "next_shown_s", "z")
    rows = pa.concat_tables(read_parts(table, columns))
    keys = rows["key"].to_pylist()
    edges = [i for i in range(len(keys)) if i == 0 or keys[i] != keys[i - 1]]
    places = {keys[a]: (a, b - a) for a, b in zip(edges, [*edges[1:], len(keys)], strict=True)}
    cameras = sorted({key.rpartition("/")[0] for key in places if _EPISODE.fullmatch(key)})
    count = 0

    def values(episode: int, frames: int) -> dict[str, np.ndarray]:
        nonlocal count
        found: dict[str, np.ndarray] = {}
        for camera in cameras:
            own = name if len(cameras) == 1 else f"{name}.{camera}"
            at, length = places.get(f"{camera}/episode_{episode:06d}", (0, 0))
            z, valid = latents_by_frame(rows.slice(at, length), fps, frames, width)
            found |= {own: z, f"{own}.valid": valid[:, None]}
            count += int(valid.sum())
        return found

    add_features(source, out, features, values)
    return count


class _Writer:
    """Puts rows, which come in the order of their windows, into parts of whole windows."""

    def __init__(self, out: str, about: dict[str, Any], todo: np.ndarray) -> None:
        self.out, self.about, self.todo = out, about, todo
        self.held: list[pa.Table] = []
        self.written = 0  # windows of `todo`
        self.since = time.monotonic()

    def add(self, rows: pa.Table) -> None:
        self.held.append(rows)
        if sum(map(len, self.held)) >= ROWS_A_PART or time.monotonic() - self.since > SECONDS_A_PART:
            self.write(int(rows["window"][-1].as_py()))  # of the last window more may come

    def write(self, before: int) -> None:
        """Writes what is held of windows before that number."""
        if not self.held:
            return
        rows = pa.concat_tables(self.held)
        numbers = np.asarray(rows["window"])
        stop = int(np.searchsorted(self.todo, before))
        for low, high in _runs(self.todo[self.written : stop]):
            a, b = np.searchsorted(numbers, [low, high])
            write_part(self.out, low, high, rows.slice(a, b - a), self.about)
        self.written = stop
        self.held = [rows.slice(int(np.searchsorted(numbers, before)))]
        self.since = time.monotonic()

    def finish(self, whole: bool = True) -> None:
        """Writes the rest; where it is not `whole`, without the last window, of which more would have come."""
        rows = [table for table in self.held if len(table)]
        if rows:
            self.write(int(rows[-1]["window"][-1].as_py()) + whole)


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """(low, high) of each run of numbers that follow one another."""
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1


def _report(out: str, plan: WindowPlan, kept: int, rate: float) -> LatentsReport:
    with_z = without = 0
    reasons: dict[str, int] = {}
    for table in read_parts(out, ("transition", "reason")):
        refused = len(table) - table["reason"].null_count
        with_z += len(table) - refused
        without += refused - table["transition"].null_count
        for said in table["reason"].drop_null().to_pylist() if refused else ():
            reasons[said.partition(":")[0]] = reasons.get(said.partition(":")[0], 0) + 1
    unusable = int(np.sum(plan.states < 2))
    return LatentsReport(out, with_z, without, len(plan.states), unusable, kept, rate, reasons)
