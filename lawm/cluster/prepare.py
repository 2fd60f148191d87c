"""Index -> training shards on Ray: a task a shard, each shard whole or not at all; a rerun makes what is missing.

Beside each tar lies its part of the new index, written last. A video whose transcoding takes its worker down is
found by trying the shard's videos one by one, and refused with the reason `crashed`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import exceptions as ray_errors

from lawm import storage
from lawm.cluster.session import DECODE, Need, decode_slots, label_selector
from lawm.config import Config, LawmError, VideoLimits
from lawm.data import (
    INDEX_SCHEMA,
    PrepareSpec,
    Shard,
    planned_shards,
    prepare_settings,
    prepare_shard,
    read_index,
    rows_to_table,
    transcode,
    write_index,
)
from lawm.parquet import read_parquet
from lawm.storage import absolute, exists, join, read_bytes, write_bytes
from lawm.video import VideoError, ref_of

ATTEMPTS = 2
"""How often a shard's worker may be lost (a node may have died) before its videos are tried one by one."""


@dataclass(frozen=True)
class PrepareReport:
    """Videos in the new index, those of them that can be used, seconds of video, bytes of the tars, shards that an
    earlier run had made, and refused videos by reason."""

    uri: str
    videos: int
    usable: int
    hours: float
    bytes: int
    kept_shards: int
    reasons: dict[str, int]


def prepare_needs(config: Config) -> list[Need]:
    return [Need("transcoding task", 1, config.cluster.decode_cpus, 0.0, DECODE, "cluster.decode_cpus=1")]


@dataclass
class _Attempt:
    shard: Shard
    lost: int = 0
    crashed: frozenset[str] = frozenset()


def prepare(
    config: Config, out: str, spec: PrepareSpec, progress: Callable[[int, int], None] | None = None
) -> PrepareReport:
    """Transcodes every usable video of `config.data.index` into tars in `out`, with `index.parquet` there.

    Keys and order stay, so that splits, labels and plans do. `progress(done, total)` counts videos. Raises LawmError:
    another prepared set in `out`, a spec that does not fit the clips, nothing that can be transcoded.
    """
    out, clip, limits = absolute(out), config.data.clip, config.data.limits
    spec.check(clip)
    if config.data.index is None:
        raise LawmError("no index: set data.index (see `lawm index`)")
    index = read_index(config.data.index)
    wanted = prepare_settings(index, clip, spec)
    claim(out, "prepare.json", wanted)
    todo, kept, done = [], 0, 0
    every = planned_shards(index)
    for shard in every:
        if exists(join(out, f"{shard.name}.parquet")):
            kept += 1
            done += shard.count
        else:
            todo.append(_Attempt(shard))
    if progress is not None:
        progress(done, len(index))
    selector = label_selector(config.cluster, DECODE)
    options: dict[str, Any] = {"num_cpus": config.cluster.decode_cpus, "max_retries": 0, "label_selector": selector}
    remote, alone = ray.remote(_prepare).options(**options), ray.remote(_survives).options(**options)
    running: dict[ray.ObjectRef, _Attempt] = {}
    try:
        while todo or running:
            while todo and len(running) < decode_slots(config.cluster) + 2:
                attempt = todo.pop(0)
                rows = index.table.slice(attempt.shard.first, attempt.shard.count)
                ref = remote.remote(rows, attempt.shard.name, out, clip.fps, spec, limits, attempt.crashed)
                running[ref] = attempt
            ready, _ = ray.wait(list(running), num_returns=1, timeout=2.0)
            for future in ready:
                attempt = running.pop(future)
                try:
                    ray.get(future)
                except (ray_errors.RayTaskError, ray_errors.RuntimeEnvSetupError, ray_errors.TaskUnschedulableError):
                    raise
                except ray_errors.RayError:
                    attempt.lost += 1
                    if attempt.lost > 2 * ATTEMPTS:
                        raise LawmError(
                            f"{attempt.shard.name} lost its worker {attempt.lost} times and no single video is to "
                            "blame; give transcoding more memory, and run the same command again"
                        ) from None
                    if attempt.lost >= ATTEMPTS:
                        rows = index.table.slice(attempt.shard.first, attempt.shard.count)
                        attempt.crashed = _to_blame(alone, rows, clip.fps, spec, limits)
                    todo.insert(0, attempt)
                else:
                    done += attempt.shard.count
                    if progress is not None:
                        progress(done, len(index))
    except BaseException:
        for future in running:
            ray.cancel(future, force=True)
        raise
    return _finish(out, [shard.name for shard in every], kept)


def claim(out: str, name: str, wanted: dict[str, Any]) -> None:
    """Takes `out` for these settings, by a file of that name, or finds it taken by the same. Raises LawmError where
    it is taken by others."""
    where = join(out, name)
    if exists(where):
        try:
            there = dict(json.loads(read_bytes(where)))
        except (ValueError, TypeError):
            raise LawmError(f"{where}: damaged; choose another --out, or remove it") from None
        differ = [f"{k} = {there.get(k)!r} there, {v!r} now" for k, v in wanted.items() if there.get(k) != v]
        if differ:
            raise LawmError(
                f"{out} was made with other settings ({'; '.join(differ)}); choose another --out, or remove it"
            )
    else:
        write_bytes(where, json.dumps(wanted, indent=1).encode())


def _prepare(
    rows: pa.Table,
    name: str,
    out: str,
    clip_fps: float,
    spec: PrepareSpec,
    limits: VideoLimits,
    crashed: frozenset[str],
) -> None:
    new = prepare_shard(rows.to_pylist(), name, out, clip_fps, spec, limits, crashed)
    buffer = BytesIO()
    pq.write_table(rows_to_table(new), buffer, compression="zstd")
    write_bytes(join(out, f"{name}.parquet"), buffer.getvalue())


def _survives(row: dict[str, Any], clip_fps: float, spec: PrepareSpec, limits: VideoLimits) -> None:
    try:
        transcode(ref_of(row), row, clip_fps, spec, limits)
    except VideoError:
        return


def _to_blame(alone: Any, rows: pa.Table, clip_fps: float, spec: PrepareSpec, limits: VideoLimits) -> frozenset[str]:
    """Keys of the videos that take a worker down when they are transcoded on their own."""
    found = set()
    for row in rows.to_pylist():
        if row["reason"] is None:
            try:
                ray.get(alone.remote(row, clip_fps, spec, limits))
            except (ray_errors.RayTaskError, ray_errors.RuntimeEnvSetupError, ray_errors.TaskUnschedulableError):
                raise
            except ray_errors.RayError:
                found.add(row["key"])
    return frozenset(found)


def _finish(out: str, names: list[str], kept: int) -> PrepareReport:
    tables = []
    for name in names:
        with storage.open_file(join(out, f"{name}.parquet")) as file:
            tables.append(read_parquet(file).cast(INDEX_SCHEMA))
    uri = join(out, "index.parquet")
    write_index(tables, uri)
    index = read_index(uri)
    usable = index.usable()
    if not len(usable):
        said = ", ".join(f"{reason} {count}" for reason, count in index.reasons().items())
        raise LawmError(f"none of {len(index)} videos could be prepared ({said})")
    hours = float(usable.column("duration_s").sum() / 3600)
    size = int(usable.column("size").sum())
    return PrepareReport(uri, len(index), len(usable), hours, size, kept, index.reasons())
