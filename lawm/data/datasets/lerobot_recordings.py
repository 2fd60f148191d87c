"""A new LeRobot v3 data set, episode by episode: one mp4 and one part of numbers each, joined at the end.

Legend: F frames of an episode, W width of a feature.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lawm import storage
from lawm.data.datasets.lerobot_writer import Feature, statistics, together
from lawm.data.dimensions import Dimension

CHUNK = 1000
"""Episodes of a folder of videos, and of a file of numbers."""
PARTS = "parts"


@dataclass(frozen=True)
class NewDataSet:
    """What a data set is: `features`: the dimensions of each number column; `task`: what its episodes do; `hints`: what
    lawm's own reader takes from meta/info.json beyond LeRobot's (`simulator`, `actions`: the ActionKind)."""

    robot: str
    fps: int
    camera: str
    size: tuple[int, int]
    task: str
    features: Mapping[str, tuple[Dimension, ...]]
    hints: Mapping[str, Any] = field(default_factory=dict)


def episode_files(out: str, camera: str, episode: int) -> tuple[str, str]:
    """(video, part of numbers) of an episode."""
    place = f"chunk-{episode // CHUNK:03d}/file-{episode % CHUNK:03d}"
    video = storage.join(out, "videos", camera, *f"{place}.mp4".split("/"))
    return video, storage.join(out, PARTS, f"{episode:06d}.parquet")


def write_episode(
    out: str, about: NewDataSet, episode: int, mp4: bytes, frames_FHWC: np.ndarray, columns: Mapping[str, np.ndarray]
) -> None:
    """Writes one episode's video, then its numbers [F, W] by feature: with these it is there."""
    video, part = episode_files(out, about.camera, episode)
    storage.write_bytes(video, mp4)
    arrays = {name: Feature("float32", len(d)).column(columns[name]) for name, d in about.features.items()}
    pixels = frames_FHWC[:: max(1, len(frames_FHWC) // 4), ::4, ::4].reshape(-1, 3) / 255.0
    said = {b"images": json.dumps(statistics(pixels)).encode()}
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays).replace_schema_metadata(said), sink)
    storage.write_bytes(part, sink.getvalue())


def written(out: str) -> set[int]:
    """The episodes that are there."""
    folder = storage.join(out, PARTS)
    names = [uri.rpartition("/")[2] for uri, _ in storage.list_files(folder)] if storage.exists(folder) else []
    return {int(name[:6]) for name in names if name[:6].isdigit() and name.endswith(".parquet")}


def join_episodes(out: str, about: NewDataSet, episodes: int) -> None:
    """Makes the data set of its parts: data/, meta/episodes, meta/tasks, meta/stats.json and, last, meta/info.json."""
    rows: list[dict[str, Any]] = []
    stats: list[dict[str, dict[str, list[float]]]] = []
    first = 0
    for chunk in range(0, episodes, CHUNK):
        tables = []
        for e in range(chunk, min(chunk + CHUNK, episodes)):
            table = pq.read_table(io.BytesIO(storage.read_bytes(episode_files(out, about.camera, e)[1])))
            found = {name: np.stack(table[name].to_pylist()).reshape(len(table), -1) for name in about.features}
            images = json.loads((table.schema.metadata or {})[b"images"])
            stats.append({name: statistics(values) for name, values in found.items()} | {about.camera: images})
            rows.append(_episode_row(about, e, len(table), first) | _flat(stats[-1], about.camera))
            tables.append(_with_counts(table.replace_schema_metadata(None), about.fps, e, first))
            first += len(table)
        _write_table(
            pa.concat_tables(tables), storage.join(out, "data", "chunk-000", f"file-{chunk // CHUNK:03d}.parquet")
        )
    _write_table(pa.Table.from_pylist(rows), storage.join(out, "meta", "episodes", "chunk-000", "file-000.parquet"))
    sink = io.BytesIO()
    pd.DataFrame({"task_index": [0]}, index=pd.Index([about.task], name="task")).to_parquet(sink)
    storage.write_bytes(storage.join(out, "meta", "tasks.parquet"), sink.getvalue())
    whole: dict[str, dict[str, Any]] = {name: together([of[name] for of in stats]) for name in stats[0]}
    whole[about.camera] = {k: v if k == "count" else [[[x]] for x in v] for k, v in whole[about.camera].items()}
    storage.write_bytes(storage.join(out, "meta", "stats.json"), json.dumps(whole, indent=4).encode())
    storage.write_bytes(
        storage.join(out, "meta", "info.json"), json.dumps(_info(about, episodes, first), indent=4).encode()
    )


def _info(about: NewDataSet, episodes: int, frames: int) -> dict[str, Any]:
    height, width = about.size
    video = {"video.fps": about.fps, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False}
    features: dict[str, Any] = {
        about.camera: {
            "dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"],
            "info": video | {"video.height": height, "video.width": width, "video.channels": 3},
        }
    }  # fmt: skip
    for name, dimensions in about.features.items():
        names, units = [d.name for d in dimensions], [d.unit for d in dimensions]
        features[name] = {"dtype": "float32", "shape": [len(dimensions)], "names": names, "units": units}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "codebase_version": "v3.0", "robot_type": about.robot, "total_episodes": episodes, "total_frames": frames,
        "total_tasks": 1, "chunks_size": CHUNK, "fps": about.fps, "splits": {"train": f"0:{episodes}"},
        "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features, "lawm": dict(about.hints),
    }  # fmt: skip


def _episode_row(about: NewDataSet, e: int, length: int, first: int) -> dict[str, Any]:
    video = f"videos/{about.camera}"
    return {
        "episode_index": e, "tasks": [about.task], "length": length,
        "data/chunk_index": 0, "data/file_index": e // CHUNK,
        "dataset_from_index": first, "dataset_to_index": first + length,
        f"{video}/chunk_index": e // CHUNK, f"{video}/file_index": e % CHUNK,
        f"{video}/from_timestamp": 0.0, f"{video}/to_timestamp": length / about.fps,
        "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
    }  # fmt: skip


def _flat(stats: Mapping[str, dict[str, list[float]]], camera: str) -> dict[str, Any]:
    found = {f"stats/{name}/{each}": value for name, of in stats.items() for each, value in of.items()}
    shaped = {k: [[[x]] for x in v] for k, v in found.items() if k.startswith(f"stats/{camera}/") and "count" not in k}
    return found | shaped


def _with_counts(table: pa.Table, fps: int, e: int, first: int) -> pa.Table:
    n = len(table)
    more: Sequence[tuple[str, pa.Array]] = (
        ("timestamp", pa.array(np.arange(n, dtype=np.float32) / np.float32(fps))),
        ("frame_index", pa.array(np.arange(n))),
        ("episode_index", pa.array(np.full(n, e))),
        ("index", pa.array(np.arange(first, first + n))),
        ("task_index", pa.array(np.zeros(n, np.int64))),
    )
    for name, values in more:
        table = table.append_column(name, values)
    return table


def _write_table(table: pa.Table, uri: str) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue())
