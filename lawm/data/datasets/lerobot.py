"""LeRobot v3: Parquet tables, and mp4 files that hold many episodes each.

An empty or odd cell costs the episode whose it is, or its one camera; a table that cannot be read costs the episodes
whose steps are in it. Each is a recording with a reason.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import LawmError, VideoLimits
from lawm.data.datasets.common import Batch, ReadSpec, Recording, limited, read_json, refusal, refuse_options
from lawm.data.datasets.spans import InFile, Span, placed
from lawm.data.dimensions import GRIPPER, PLANAR, POSE, Dimension, Meaning, named, unnamed
from lawm.data.labels import ActionKind, VideoLabels
from lawm.parquet import open_parquet, parquet_errors
from lawm.video import VideoRef, probe

_JOINTS = re.compile(r"joint|shoulder|elbow|waist|forearm|wrist_(flex|roll|angle|rotate)|motor|servo|qpos")
MOST_MISSING = 10_000
"""Episodes that info.json counts and no table names are rows of their own up to here."""
DROID_STATE = ("observation.state.cartesian_position", "observation.state.gripper_position")


def read_lerobot_info(source: str) -> dict[str, Any]:
    try:
        info = read_json(storage.join(source, "meta/info.json"))
        if not isinstance(info, dict):
            raise LawmError(f"{source}/meta/info.json: expected an object")
    except storage.NotFoundError:
        raise LawmError(f"{source}: no LeRobot data set, meta/info.json is not there") from None
    version = str(info.get("codebase_version"))
    if not version.startswith("v3"):
        raise LawmError(
            f"{source}: LeRobot {version}; expected v3. Convert it with LeRobot's "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30"
        )
    missing = [name for name in ("fps", "features", "data_path", "video_path") if info.get(name) in (None, "", {})]
    if missing:
        raise LawmError(f"{source}/meta/info.json: no {', '.join(missing)}; a data set with videos was expected")
    kinds = {"fps": (int, float), "features": dict, "data_path": str, "video_path": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(info[name], kind)]  # type: ignore[arg-type]
    if wrong or not 0 < info["fps"] < 1e4 or not all(isinstance(f, dict) for f in info["features"].values()):
        name = wrong[0] if wrong else "fps" if not 0 < info["fps"] < 1e4 else "features"
        raise LawmError(f"{source}/meta/info.json: {name} is {str(info[name])[:80]}; not as LeRobot writes it")
    return dict(info)


def choices(source: str, spec: ReadSpec) -> ReadSpec:
    refuse_options(spec, "rate")
    info = read_lerobot_info(source)
    features: dict[str, Any] = info["features"]
    videos = [name for name, f in features.items() if f.get("dtype") == "video"]
    if not videos:
        raise LawmError(f"{source}: no feature is a video (images in Parquet are not read)")
    short = {_short(name): name for name in videos} | {name: name for name in videos}
    unknown = [camera for camera in spec.cameras if camera not in short and camera != "all"]
    if unknown:
        raise LawmError(f"--camera {unknown[0]}: not in {source}; expected all, or some of {', '.join(videos)}")
    # DROID is learnt from outside; elsewhere, too, the camera on the wrist is the odd one.
    outside = [name for name in videos if "wrist" not in name]
    cameras = list(dict.fromkeys(short[c] for c in spec.cameras)) if "all" not in spec.cameras else videos
    droid = all(name in features for name in DROID_STATE)
    state = spec.state or (DROID_STATE if droid else ("observation.state",) if "observation.state" in features else ())
    own = own_hints(info).get("actions")
    kind: ActionKind = spec.actions or own or ("pose_delta" if state == DROID_STATE else "first")
    action = spec.action or ("action" if kind in ("sum", "first") else None)
    for name in (*state, *([action] if action else [])):
        if name not in features:
            known = [n for n, f in features.items() if str(f.get("dtype", "")).startswith("float")]
            raise LawmError(f"{source}: no feature {name}; expected some of {', '.join(known)}")
    if kind in ("pose_delta", "planar_delta"):
        _no_joints(source, kind, state, features)
    return ReadSpec(spec.kind, tuple(cameras or (outside or videos)[:1]), kind, action, tuple(state), None, spec.limit)


def _no_joints(source: str, kind: str, state: Sequence[str], features: dict[str, Any]) -> None:
    """Raises LawmError for states that are joints' by name: as a pose they would be taken for metres and angles."""
    for name in state:
        names = [name, *(d.name for d in _named(features, name))]
        joints = [each for each in names if _JOINTS.search(each.lower())]
        if joints:
            said = f"--actions {kind} is of poses, and {name} is of joints by its names ({', '.join(joints[:3])})"
            raise LawmError(f"{source}: {said}; take other columns with --state, or --actions state_delta")


def meaning(source: str, spec: ReadSpec) -> Meaning:
    """Names from meta/info.json; LeRobot says no units, and DROID's are known. What lawm has written says its own."""
    info = read_lerobot_info(source)
    features = info["features"]
    if spec.state == DROID_STATE:
        states: tuple[Dimension, ...] = (*POSE, GRIPPER)
    else:
        parts = [_named(features, name) for name in spec.state]
        states = tuple(d for part in parts for d in part) if all(parts) else ()
        pose = {"pose_delta": POSE, "planar_delta": PLANAR}.get(str(spec.actions), ())
        # What the user says to be a pose is one, whatever its columns are called.
        turned = [
            replace(d, kind=p.kind, unit=d.unit if p.kind == "translation" else p.unit)
            for d, p in zip(states, pose, strict=False)
        ]
        states = (*turned, *states[len(turned) :])
    simulator = own_hints(info).get("simulator")
    return Meaning(_named(features, spec.action) if spec.action else (), states, simulator=simulator)


def own_hints(info: dict[str, Any]) -> dict[str, Any]:
    """What lawm wrote into meta/info.json for itself (`NewDataSet.hints`), where it did."""
    found = info.get("lawm")
    known = found if isinstance(found, dict) else {}
    actions = known.get("actions")
    kept = {"actions": actions} if actions in get_args(ActionKind) else {}
    return kept | ({"simulator": known["simulator"]} if isinstance(known.get("simulator"), str) else {})


def _named(features: dict[str, Any], name: str) -> tuple[Dimension, ...]:
    """A feature's dimensions, by its `names`: a list, or a dict that holds one, as LeRobot's versions write them; none
    where even their number is not said."""
    names, shape = features[name].get("names"), features[name].get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        return ()
    width = math.prod(shape)
    while isinstance(names, dict) and names:
        names = next(iter(names.values()))
    if not isinstance(names, list) or len(names) != width:
        return unnamed(width, name)
    found, units = named([str(n) for n in names]), features[name].get("units")
    if (
        isinstance(units, list)
        and len(units) == width
        and all(isinstance(u, str) and u.isprintable() and u for u in units)
    ):
        return tuple(replace(d, unit=unit) for d, unit in zip(found, units, strict=True))
    return found


# ---------------------------------------------------------------- meta/episodes
@dataclass(frozen=True)
class _Video:
    """One camera's video of an episode: seconds of its file; `reason`: why it cannot be used; `note`: what was put
    right."""

    camera: str
    uri: str
    size: int
    begin_s: Any
    end_s: Any
    reason: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Episode:
    """A row of meta/episodes; number and length where they are whole numbers, `data`: the table of its steps."""

    name: str
    number: int | None
    length: int | None
    data: str | None
    videos: tuple[_Video, ...]
    reason: str | None


def batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    """A batch for each Parquet file of data: its episodes, and where each is in its video files."""
    info = read_lerobot_info(source)
    fps = float(info["fps"])
    episodes = _in_their_files(_once([_episode(source, info, spec, row, at) for row, at in _rows(source, spec)]), fps)
    episodes += _unnamed(episodes, info, spec)
    found: defaultdict[str | None, list[_Episode]] = defaultdict(list)
    for episode in limited(episodes, spec.limit):
        found[episode.data].append(episode)
    widths = {name: _width(info["features"].get(name)) for name in (*spec.state, spec.action) if name}
    for number, (data, those) in enumerate(found.items()):
        yield Batch(number, {"data": data, "fps": fps, "episodes": those, "widths": widths}, len(those))


def _rows(source: str, spec: ReadSpec) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row of meta/episodes, and where it stands. A table that cannot be read is one row, `unreadable`. Raises
    LawmError where none can be."""
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    wanted += [f"videos/{camera}/{part}" for camera in spec.cameras for part in parts]
    folder = storage.join(source, "meta/episodes")
    found: list[tuple[str, pa.Table | None, str]] = []
    first: LawmError | None = None
    for uri, _ in storage.list_files(folder, (".parquet",), troubles=True):
        where = uri.removeprefix(source).strip("/")
        try:
            found.append((where, _parquet(uri, wanted), ""))
        except LawmError as error:
            first = first or error
            found.append((where, None, refusal(error, source)))
    if all(table is None for _, table, _ in found):
        raise first or LawmError(f"{folder}: no Parquet file; expected the table of episodes")
    for where, table, reason in found:
        if table is None:
            yield {"unreadable": reason}, where
        else:
            yield from ((row, f"row {i} of {where}") for i, row in enumerate(table.to_pylist()))


def _episode(source: str, info: dict[str, Any], spec: ReadSpec, row: dict[str, Any], where: str) -> _Episode:
    number, length = whole(row.get("episode_index")), whole(row.get("length"))
    reason, data = row.get("unreadable"), None
    reason = reason or _odd(row, ("episode_index", "length", "data/chunk_index", "data/file_index"), where)
    if reason is None:
        data = storage.join(source, _path(info["data_path"], row, "data"))
    videos = []
    for camera in spec.cameras:
        prefix = f"videos/{camera}"
        begin, end = (row.get(f"{prefix}/{which}_timestamp") for which in ("from", "to"))
        odd = None if "unreadable" in row else _odd(row, (f"{prefix}/chunk_index", f"{prefix}/file_index"), where)
        uri = storage.join(source, where.rpartition(" ")[2])  # to blame, where it does not say which file
        if odd is None and "unreadable" not in row:
            uri = storage.join(source, _path(info["video_path"], row, prefix, video_key=camera))
        videos.append(_Video(camera, uri, 0, begin, end, odd))
    name = f"episode ({where})" if number is None else f"episode_{number:06d}"
    return _Episode(name, number, length, data, tuple(videos), reason)


def _once(episodes: list[_Episode]) -> list[_Episode]:
    """The episodes, those refused that another row names, too: the later of equal ones, and all that differ."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        if episode.number is not None:
            rows[episode.number].append(i)
    found = list(episodes)
    for number, those in rows.items():
        same = all(episodes[i] == episodes[those[0]] for i in those)
        said = f"labels: meta/episodes has {len(those)} rows for episode {number}{'' if same else ', that differ'}"
        for i in those[1:] if same or len(those) == 1 else those:
            found[i] = replace(episodes[i], reason=episodes[i].reason or said)
    return found


def _in_their_files(episodes: list[_Episode], fps: float) -> list[_Episode]:
    """The episodes with their places in their video files, held against each other (`spans`)."""
    of: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    taken: set[tuple[int, str]] = set()
    for e, episode in enumerate(episodes):
        for v, video in enumerate(episode.videos):
            if video.reason is None and episode.number is not None and (episode.number, video.uri) not in taken:
                of[video.uri].append((e, v))
                taken.add((episode.number, video.uri))
    videos = [list(episode.videos) for episode in episodes]
    for uri, those in of.items():
        size = _size(uri)
        spans = [Span(episodes[e].name, videos[e][v].begin_s, videos[e][v].end_s, episodes[e].length) for e, v in those]
        for (e, v), place in zip(those, placed(spans, fps, uri, partial(_in_file, uri, size)), strict=True):
            note = f"{place.moved:+.2f} frames" if place.moved else None
            begin, end = (place.begin_s, place.end_s) if place.reason is None else (None, None)
            videos[e][v] = replace(videos[e][v], size=size, begin_s=begin, end_s=end, reason=place.reason, note=note)
    return [replace(episode, videos=tuple(videos[e])) for e, episode in enumerate(episodes)]


def _size(uri: str) -> int:
    """0 for a file that is not there, or may not be read: its probe says why."""
    try:
        return storage.size_of(uri)
    except storage.StorageError as error:
        if not storage.tells_of_one(error, uri):
            raise
        return 0


def _in_file(uri: str, size: int) -> InFile | None:
    row = probe(VideoRef(uri, 0, size, uri), VideoLimits())
    return InFile(row["frames"], row["rate"]) if row["reason"] is None else None


def _unnamed(episodes: list[_Episode], info: dict[str, Any], spec: ReadSpec) -> list[_Episode]:
    """Episodes that info.json counts and no row names."""
    total = whole(info.get("total_episodes"))
    if total is None or total > MOST_MISSING + len(episodes):
        return []
    named = {episode.number for episode in episodes}
    reason = f"labels: meta/info.json counts {total} episodes, and meta/episodes does not name this one"
    return [
        _Episode(
            f"episode_{number:06d}", number, None, None,
            tuple(_Video(camera, "", 0, None, None) for camera in spec.cameras), reason,
        )
        for number in range(total) if number not in named
    ]  # fmt: skip


def whole(value: Any) -> int | None:
    """A whole number of 0 or more, also where a column with empty cells has made it a float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or not 0 <= value < 2**53:
        return None
    return int(value) if int(value) == value else None


def _odd(row: dict[str, Any], cells: Sequence[str], where: str) -> str | None:
    """What is wrong with the first cell that holds no whole number."""
    for cell in cells:
        if whole(row.get(cell)) is None:
            said = "empty" if row.get(cell) is None else repr(row[cell])[:40]
            return f"labels: {cell} is {said} in {where}; a whole number was expected"
    return None


def _short(camera: str) -> str:
    return camera.removeprefix("observation.").removeprefix("images.")


def _path(form: str, row: dict[str, Any], prefix: str, **names: str) -> str:
    chunk, file = whole(row[f"{prefix}/chunk_index"]), whole(row[f"{prefix}/file_index"])
    try:
        return form.format(chunk_index=chunk, file_index=file, **names)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise LawmError(f"meta/info.json: cannot make a path of {form!r} ({error!r})") from None


def _parquet(uri: str, columns: Sequence[str]) -> pa.Table:
    with storage.open_file(uri) as file, parquet_errors(uri):
        found = open_parquet(file)
        missing = [name for name in columns if name not in found.schema_arrow.names]
        if missing:
            raise LawmError(f"{uri}: no column {', '.join(missing)}")
        return found.read(columns=list(columns), use_threads=False)


# ---------------------------------------------------------------- the steps
def read(batch: Batch, spec: ReadSpec, out: str) -> list[Recording]:
    what = batch.what
    columns = [*spec.state, *([spec.action] if spec.action else [])]
    steps, trouble = None, None
    if what["data"] is not None:
        try:
            steps = _Steps(what["data"], columns, what["widths"], what["fps"])
        except LawmError as error:
            trouble = refusal(error, "")
    recordings = []
    for episode in what["episodes"]:
        rows, reason = np.zeros(0, np.int64), episode.reason or trouble
        if reason is None and steps is not None:
            rows, reason = steps.of(episode)
        actions, states = np.zeros((0, 1), np.float32), None
        if reason is None and steps is not None:  # once for all cameras
            actions = steps.values[spec.action][rows] if spec.action else actions
            states = np.concatenate([steps.values[name][rows] for name in spec.state], axis=1) if spec.state else None
        for video in episode.videos:
            key = f"{_short(video.camera)}/{episode.name}"
            group = None if episode.number is None else episode.name
            ref = VideoRef(video.uri, 0, video.size, key, video.begin_s, video.end_s, group=group)
            if reason or video.reason:
                place = replace(ref, begin_s=None, end_s=None)
                recordings.append(Recording(place, reason=reason or video.reason))
            else:
                labels = VideoLabels(key, what["fps"], actions, states)
                recordings.append(Recording(ref, labels, note=video.note))
    return recordings


class _Steps:
    """A table of steps: which rows are an episode's, and what cannot be used of them."""

    def __init__(self, uri: str, columns: Sequence[str], widths: dict[str, int | None], fps: float) -> None:
        """Raises LawmError for a table that cannot be read, or of which a whole column is of another type."""
        names = pq_names(uri)
        timed = ["timestamp"] if "timestamp" in names else []
        table = _parquet(uri, ["episode_index", "frame_index", *timed, *columns])
        self.uri, self.fps = uri, fps
        self.episode_N, self.frame_N = (_numbers(table[name], uri, name) for name in ("episode_index", "frame_index"))
        self.time_N = _numbers(table["timestamp"], uri, "timestamp") if timed else None
        self.values: dict[str, np.ndarray] = {}
        self.bad: dict[str, np.ndarray] = {}
        for name in columns:
            self.values[name], self.bad[name] = _matrix(table[name], uri, name, widths.get(name))

    def of(self, episode: _Episode) -> tuple[np.ndarray, str | None]:
        """The rows of an episode in order, and why they cannot be used."""
        rows = np.flatnonzero(self.episode_N == episode.number)
        rows = rows[np.argsort(self.frame_N[rows], kind="stable")]
        length = episode.length or 0
        if len(rows) != length or length == 0:
            return rows, f"labels: {len(rows)} of {length} steps are in its table"
        if not np.array_equal(self.frame_N[rows], np.arange(length)):
            return rows, f"labels: its steps are not numbered from 0 to {length - 1}"
        for name, bad in self.bad.items():
            if bad[rows].any():
                step = int(np.argmax(bad[rows]))
                return rows, f"labels: {name} is empty at step {step}, or not as many numbers as elsewhere"
        if self.time_N is not None:
            off = np.abs(self.time_N[rows] * self.fps - np.arange(length))
            off = np.where(np.isfinite(off), off, np.inf)
            if off.max() > 0.5:
                step = int(np.argmax(off > 0.5))
                said = f"{self.time_N[rows][step]:g} s by its timestamp, expected {step / self.fps:g} s"
                return rows, f"labels: step {step} is at {said}"
        return rows, None


def pq_names(uri: str) -> list[str]:
    """The columns of a Parquet file. Raises LawmError."""
    with storage.open_file(uri) as file, parquet_errors(uri):
        return list(pq.read_schema(file).names)


def _numbers(column: pa.ChunkedArray, uri: str, name: str) -> np.ndarray:
    """A column of numbers as float64; empty cells are NaN."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise LawmError(f"{uri}: column {name} is {column.type}; expected numbers")
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _width(feature: Any) -> int | None:
    """Numbers a step of a feature, by its shape in info.json; None where that is not told."""
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or not all(whole(n) for n in shape):
        return None
    return math.prod(int(n) for n in shape)


def _matrix(column: pa.ChunkedArray, uri: str, name: str, width: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A column of numbers, or of lists of `width` (None: as most rows have), as float32 [rows, width], and bool [rows]:
    rows that are empty, or of another width (zeros, then)."""
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    counts = _leaves(array)
    there = counts[counts > 0]
    if len(there) and (width is None or width not in there):  # info.json is not always right
        width = int(np.bincount(there).argmax())
    good = counts == width
    if not good.any():
        raise LawmError(f"{uri}: column {name} is {column.type}; expected {width or 'some'} numbers in each row")
    array = array.filter(pa.array(good))
    while _is_list(array.type):
        array = array.flatten()
    try:
        flat = array.to_numpy(zero_copy_only=False).astype(np.float32)
    except (ValueError, TypeError):
        raise LawmError(f"{uri}: column {name} is {column.type}; expected numbers") from None
    values = np.zeros((len(counts), int(width or 1)), np.float32)
    values[good] = flat.reshape(int(good.sum()), -1)
    return values, ~good


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind))


def _leaves(array: pa.Array) -> np.ndarray:
    """How many numbers each row holds, int64; less than 0 where one is empty."""
    if not _is_list(array.type):
        return np.where(np.asarray(array.is_valid()), 1, -(2**32)).astype(np.int64)
    valid = np.asarray(array.is_valid())
    lengths = np.where(valid, pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False), 0)
    below = np.concatenate([[0], np.cumsum(_leaves(array.flatten()))])
    ends = np.cumsum(lengths.astype(np.int64))
    return np.where(valid, below[ends] - below[ends - lengths.astype(np.int64)], -(2**32))
