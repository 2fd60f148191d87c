"""Index -> Ray Data -> batches: clips are decoded on CPU workers and streamed into training workers.

Ray Data 2.60 cannot resume within an epoch. Here the sampling plan can: the data set is a range of plan
positions from which those that the cursor names are left out, built anew at every start of the workers.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
import torch
from ray.data import DataContext, Dataset
from ray.data.collate_fn import NumpyBatchCollateFn

from lawm.batches import LEAST_BAD, BadClip, ClipReader, Quarantine, Sample, collate
from lawm.cluster.session import DECODE, label_selector
from lawm.config import ClusterConfig, Config, LawmError
from lawm.objective import ClipBatch
from lawm.sampling import Cursor
from lawm.shards import Index
from lawm.train import open_reader

CLIPS_PER_BLOCK = 8
MOST_TASKS = 20_000
"""Tasks of one data set at most; a longer plan gets more clips a task."""


@functools.lru_cache(maxsize=2)
def _reader(config_json: str, kind: str, table: Any) -> ClipReader:
    """The reader of a decode worker, opened once per process. The index comes from the object store."""
    return open_reader(Config.model_validate_json(config_json), kind, index=Index(ray.get(table.ref)))


class _Table:
    """An object reference that can be a cache key."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __hash__(self) -> int:
        return hash(self.ref)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and self.ref == other.ref


def decode_rows(
    batch: dict[str, np.ndarray], config_json: str, kind: str, table: _Table, low: int, ahead: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Row ids -> clips, a block at a time. A bad clip becomes a row with `ok` false, empty frames and its reason."""
    torch.set_num_threads(1)
    reader = _reader(config_json, kind, table)
    clip = reader.config.data.clip
    positions = nth_positions(Cursor(low, ahead), batch["id"])
    for i in range(0, len(positions), CLIPS_PER_BLOCK):
        found = [reader.try_sample(int(p)) for p in positions[i : i + CLIPS_PER_BLOCK]]
        empty = np.zeros((clip.frames, 3, clip.size, clip.size), np.uint8)
        block: dict[str, Any] = {
            "position": np.array([f.position for f in found], np.int64),
            "ok": np.array([isinstance(f, Sample) for f in found]),
            "frames": np.stack([f.frames if isinstance(f, Sample) and f.frames is not None else empty for f in found]),
            "key": np.array([f.key for f in found], dtype=object),
            "start_s": np.array([f.start_s for f in found]),
            "reason": np.array([f.reason if isinstance(f, BadClip) else "" for f in found], dtype=object),
            "source": np.array([f.source if isinstance(f, BadClip) else "" for f in found], dtype=object),
            "message": np.array([f.message if isinstance(f, BadClip) else "" for f in found], dtype=object),
        }
        if reader.labels is not None:
            width = reader.labels.action_dim
            none = np.full((clip.frames - 1, width), np.nan, np.float32)
            block["actions"] = np.stack(
                [f.actions if isinstance(f, Sample) and f.actions is not None else none for f in found]
            )
        yield block


def nth_positions(cursor: Cursor, ids: np.ndarray) -> np.ndarray:
    """The plan position of the id-th clip that the cursor has not consumed."""
    if not cursor.ahead:
        return cursor.low + ids
    free = np.setdiff1d(np.arange(cursor.low, max(cursor.ahead) + 1), np.array(cursor.ahead, np.int64))
    beyond = max(cursor.ahead) + 1 + ids - len(free)
    return np.where(ids < len(free), free[np.minimum(ids, len(free) - 1)] if len(free) else beyond, beyond)


def keeps_order(cluster: ClusterConfig) -> bool:
    """Order costs throughput with several workers; one worker's losses are to equal plain Python's."""
    return cluster.workers <= 1


def clip_dataset(config: Config, kind: str, cursor: Cursor, clips: int, index: Index | None = None) -> Dataset:
    """A lazy data set of decoded clips from the cursor on, enough of them for `clips` good ones.

    Rows beyond those are decoded only if they are asked for: the streaming executor holds back.
    """
    reader = open_reader(config, kind, index=index)
    table = _Table(ray.put(reader.index.table))
    # The executor must not see the plan's split again: the table is the split.
    whole = config.model_copy(update={"data": config.data.model_copy(update={"val_fraction": 0.0})})
    # Quarantine lets LEAST_BAD refused clips pass on each worker before it looks at their share.
    spare = LEAST_BAD * max(config.cluster.workers, 1)
    rows = math.ceil((clips + spare) / (1 - config.data.max_bad_fraction)) + CLIPS_PER_BLOCK
    tasks = min(math.ceil(rows / CLIPS_PER_BLOCK), MOST_TASKS)
    context = DataContext.get_current()
    context.execution_options.preserve_order = keeps_order(config.cluster)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    remote: dict[str, Any] = {"num_cpus": config.cluster.decode_cpus}
    selector = label_selector(config.cluster, DECODE)
    if selector:
        remote["label_selector"] = selector
    where = {"config_json": whole.model_dump_json(), "kind": kind, "table": table}
    return ray.data.range(rows, override_num_blocks=tasks).map_batches(
        decode_rows,  # type: ignore[arg-type]  # Ray's annotation knows no further arguments
        batch_size=None,
        batch_format="numpy",
        fn_kwargs=where | {"low": cursor.low, "ahead": tuple(cursor.ahead)},
        **remote,
    )


def streamed_batches(
    shard: Any, batch: int, max_bad_fraction: float, on_bad: Callable[[BadClip], None] | None
) -> Iterator[ClipBatch]:
    """Batches of exactly `batch` good clips from a worker's shard, through `iter_torch_batches`."""
    quarantine = Quarantine(max_bad_fraction, on_bad)
    good: list[Sample] = []
    refused: list[int] = []
    for rows in shard.iter_torch_batches(batch_size=batch, prefetch_batches=2, collate_fn=_Rows()):
        for found in rows:
            if quarantine.passed(found):
                good.append(found)
            else:
                refused.append(found.position)
        while len(good) >= batch:
            yield collate(good[:batch], tuple(refused))
            good, refused = good[batch:], []
    raise LawmError(
        f"the data set ended early: {quarantine.bad} of {quarantine.good + quarantine.bad} clips were refused; "
        "raise data.max_bad_fraction, or put the videos right"
    )


class _Rows(NumpyBatchCollateFn):
    """numpy batch -> samples and bad clips (views of Ray's read-only arrays)."""

    def __call__(self, batch: dict[str, np.ndarray]) -> list[Sample | BadClip]:  # type: ignore[override]
        rows: list[Sample | BadClip] = []
        for i, ok in enumerate(batch["ok"]):
            position, key, start_s = int(batch["position"][i]), str(batch["key"][i]), float(batch["start_s"][i])
            if ok:
                actions = batch["actions"][i] if "actions" in batch else None
                if actions is not None and np.isnan(actions).any():
                    actions = None
                rows.append(Sample(position, key, start_s, batch["frames"][i], None, actions))
            else:
                source, reason, message = (str(batch[k][i]) for k in ("source", "reason", "message"))
                rows.append(BadClip(position, key, source, start_s, reason, message))
        return rows
