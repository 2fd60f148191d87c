"""LeRobot v3: Parquet tables, and mp4 files that hold many episodes each."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import LawmError
from lawm.data.datasets.common import Batch, ReadSpec, Recording, limited, read_json, refusal, refuse_options
from lawm.data.dimensions import GRIPPER, PLANAR, POSE, UNKNOWN, Dimension, Meaning, named, unnamed
from lawm.data.index import parquet_errors
from lawm.data.labels import ActionKind, VideoLabels
from lawm.video import VideoRef

LONGEST_FILE_S = 1e7
DROID_STATE = ("observation.state.cartesian_position", "observation.state.gripper_position")


def _info(source: str) -> dict[str, Any]:
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
    info = _info(source)
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
    kind: ActionKind = spec.actions or ("pose_delta" if state == DROID_STATE else "first")
    action = spec.action or ("action" if kind in ("sum", "first") else None)
    for name in (*state, *([action] if action else [])):
        if name not in features:
            known = [n for n, f in features.items() if str(f.get("dtype", "")).startswith("float")]
            raise LawmError(f"{source}: no feature {name}; expected some of {', '.join(known)}")
    return ReadSpec(spec.kind, tuple(cameras or (outside or videos)[:1]), kind, action, tuple(state), None, spec.limit)


def meaning(source: str, spec: ReadSpec) -> Meaning:
    """Names from meta/info.json; LeRobot says no units, and DROID's are known."""
    features = _info(source)["features"]
    if spec.state == DROID_STATE:
        states: tuple[Dimension, ...] = (*POSE, GRIPPER)
    else:
        states = tuple(d for name in spec.state for d in _named(features, name))
        pose = {"pose_delta": POSE, "planar_delta": PLANAR}.get(str(spec.actions), ())
        # What the user says to be a pose is one, whatever its columns are called.
        turned = [
            replace(d, kind=p.kind, unit=UNKNOWN if p.kind == "translation" else p.unit)
            for d, p in zip(states, pose, strict=False)
        ]
        states = (*turned, *states[len(turned) :])
    return Meaning(_named(features, spec.action) if spec.action else (), states)


def _named(features: dict[str, Any], name: str) -> tuple[Dimension, ...]:
    """A feature's dimensions, by its `names`: a list, or a dict that holds one, as LeRobot's versions write them."""
    names, shape = features[name].get("names"), features[name].get("shape") or [1]
    width = math.prod(n for n in shape if isinstance(n, int))
    while isinstance(names, dict) and names:
        names = next(iter(names.values()))
    if not isinstance(names, list) or len(names) != width:
        return unnamed(width, name)
    return named([str(n) for n in names])


def batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    """A batch for each Parquet file of data: its episodes, and where each is in its video files."""
    info = _info(source)
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for row in limited(_lerobot_episodes(source, spec.cameras), spec.limit):
        data = storage.join(source, _path(info["data_path"], row, "data"))
        videos = []
        for camera in spec.cameras:
            uri = storage.join(source, _path(info["video_path"], row, f"videos/{camera}", video_key=camera))
            if uri not in sizes:
                sizes[uri] = storage.size_of(uri) if storage.exists(uri) else 0
            begin, end = (row[f"videos/{camera}/{name}_timestamp"] for name in ("from", "to"))
            videos.append((camera, uri, sizes[uri], begin, end))
        if not all(isinstance(row[name], int) and row[name] >= 0 for name in ("episode_index", "length")):
            raise LawmError(f"{source}/meta/episodes: an episode whose number or length is no whole number")
        found[data].append({"episode": row["episode_index"], "length": row["length"], "videos": videos})
    for number, (data, episodes) in enumerate(found.items()):
        yield Batch(number, {"data": data, "fps": float(info["fps"]), "episodes": episodes}, len(episodes))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _short(camera: str) -> str:
    return camera.removeprefix("observation.").removeprefix("images.")


def _path(form: str, row: dict[str, Any], prefix: str, **names: str) -> str:
    try:
        return form.format(chunk_index=row[f"{prefix}/chunk_index"], file_index=row[f"{prefix}/file_index"], **names)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise LawmError(f"meta/info.json: cannot make a path of {form!r} ({error!r})") from None


def _lerobot_episodes(source: str, cameras: Sequence[str]) -> Iterator[dict[str, Any]]:
    wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    wanted += [f"videos/{camera}/{part}" for camera in cameras for part in parts]
    folder = storage.join(source, "meta/episodes")
    for uri, _ in storage.list_files(folder, (".parquet",)):
        table = _parquet(uri, wanted)
        yield from table.to_pylist()


def _parquet(uri: str, columns: Sequence[str]) -> pa.Table:
    with storage.open_file(uri) as file, parquet_errors(uri):
        found = pq.ParquetFile(file)
        missing = [name for name in columns if name not in found.schema_arrow.names]
        if missing:
            raise LawmError(f"{uri}: no column {', '.join(missing)}")
        return found.read(columns=list(columns))


def read(batch: Batch, spec: ReadSpec, out: str) -> list[Recording]:
    what = batch.what
    columns = [*spec.state, *([spec.action] if spec.action else [])]
    trouble, episode_N, frame_N, values = None, np.zeros(0), np.zeros(0), {}
    try:
        table = _parquet(what["data"], ["episode_index", "frame_index", *columns])
        episode_N, frame_N = (table[name].to_numpy() for name in ("episode_index", "frame_index"))
        values = {name: _matrix(table[name], what["data"], name) for name in columns}
    except LawmError as error:
        trouble = refusal(error, "")
    recordings = []
    for episode in what["episodes"]:
        rows = np.flatnonzero(episode_N == episode["episode"])
        rows = rows[np.argsort(frame_N[rows], kind="stable")]
        length, wrong = episode["length"], trouble
        if wrong is None and len(rows) != length:
            wrong = f"labels: {len(rows)} of {length} steps are in its table"
        elif wrong is None and not np.array_equal(frame_N[rows], np.arange(length)):
            wrong = f"labels: its steps are not numbered from 0 to {length - 1}"
        actions, states = np.zeros((0, 1), np.float32), None
        if wrong is None:  # once for all cameras
            actions = values[spec.action][rows] if spec.action else actions
            states = np.concatenate([values[name][rows] for name in spec.state], axis=1) if spec.state else None
        for camera, uri, size, begin, end in episode["videos"]:
            key = f"{_short(camera)}/episode_{episode['episode']:06d}"
            reason = wrong
            if reason is None and not (_number(begin) and _number(end) and 0 <= begin < end < LONGEST_FILE_S):
                reason = f"labels: from {begin} s to {end} s of {uri} by meta/episodes"
            if reason is not None:
                recordings.append(Recording(VideoRef(uri, 0, size, key), reason=reason))
                continue
            ref = VideoRef(uri, 0, size, key, begin_s=float(begin), end_s=float(end))
            recordings.append(Recording(ref, VideoLabels(key, what["fps"], actions, states)))
    return recordings


def _matrix(column: pa.ChunkedArray, uri: str, name: str) -> np.ndarray:
    """A column of numbers, or of lists of equally many, as float32 [rows, width]."""
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    if array.null_count:
        raise LawmError(f"{uri}: column {name} has {array.null_count} empty cells")
    rows = len(array)
    said = LawmError(f"{uri}: column {name} is {column.type}; expected as many numbers in each row")
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        widths = pc.list_value_length(array)
        if len(widths) and (widths.null_count or pc.min_max(widths)["min"] != pc.min_max(widths)["max"]):
            raise said
        array = array.flatten()
    try:
        flat = array.to_numpy(zero_copy_only=False).astype(np.float32)
        return flat.reshape(rows, -1) if rows else flat.reshape(0, 1)
    except (ValueError, TypeError):
        raise said from None
