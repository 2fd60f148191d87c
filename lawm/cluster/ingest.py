"""Index -> Ray Data -> batches: clips are decoded on CPU workers and streamed into training workers.

Ray Data 2.60 cannot resume within an epoch. Here the sampling plan can: the data set is a range of plan
positions from which those that the cursor names are left out, built anew at every start of the workers.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.data import DataContext, Dataset, Datasource, ExecutionOptions, ReadTask
from ray.data.block import BlockMetadata
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.train import DataConfig as RayDataConfig

from lawm.cluster.decode import CLIPS_PER_BLOCK, Table, decode_rows, read_ids
from lawm.cluster.session import DECODE, decode_slots, label_selector
from lawm.config import ClusterConfig, Config, LawmError
from lawm.data import LEAST_BAD, BadClip, Cursor, Index, Quarantine, Sample, open_reader
from lawm.training import ClipBatch, collate

TASK_BYTES = 192 << 20
"""Pixels that one decode task yields at most, a block at a time. A core waits about 0.3 s between two tasks (Ray's
executor looks ten times a second), so a task has to take seconds; in the order of the plan, what later tasks
have yielded waits in the object store, so it must not take minutes."""
TASKS_A_SLOT = 3
"""Tasks for each that the cluster runs at once, at least: many small clips are few bytes, and one task one core."""
MOST_TASKS = 20_000
"""Tasks of one data set at most; a longer plan gets more clips a task."""


def keeps_order(cluster: ClusterConfig) -> bool:
    """Order costs throughput with several workers; one worker's losses are to equal plain Python's."""
    return cluster.workers <= 1


def shard_options(cluster: ClusterConfig) -> RayDataConfig:
    """How Ray Train hands `clip_dataset` to its workers. It puts its own options over those of the data set, so the
    order has to be asked for here."""
    return RayDataConfig(
        enable_shard_locality=cluster.workers > 1,
        execution_options=ExecutionOptions(preserve_order=keeps_order(cluster)),
    )


def clip_dataset(config: Config, kind: str, cursor: Cursor, clips: int, index: Index | None = None) -> Dataset:
    """A lazy data set of decoded clips from the cursor on, enough of them for `clips` good ones.

    Rows beyond those are decoded only if they are asked for: the streaming executor holds back.
    """
    reader = open_reader(config, kind, index=index)
    table = Table(reader)
    # Quarantine lets LEAST_BAD refused clips pass on each worker before it looks at their share.
    spare = LEAST_BAD * max(config.cluster.workers, 1)
    rows = math.ceil((clips + spare) / (1 - config.data.max_bad_fraction)) + CLIPS_PER_BLOCK
    clip = config.data.clip
    clip_bytes = clip.frames * 3 * clip.size**2
    each = min(TASK_BYTES // clip_bytes, rows // (TASKS_A_SLOT * decode_slots(config.cluster)))
    ids = RowIds(rows, max(each, CLIPS_PER_BLOCK, math.ceil(rows / MOST_TASKS)))
    context = DataContext.get_current()
    context.target_max_block_size = CLIPS_PER_BLOCK * clip_bytes  # or blocks are put together again, up to 128 MiB
    context.execution_options.preserve_order = keeps_order(config.cluster)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    remote = {
        "num_cpus": config.cluster.decode_cpus,
        "label_selector": label_selector(config.cluster, DECODE) or None,
    }
    where = {"config_json": config.model_dump_json(), "kind": kind, "table": table}
    return ray.data.read_datasource(ids, override_num_blocks=ids.tasks, **remote).map_batches(
        decode_rows,
        batch_size=None,
        batch_format="numpy",
        fn_kwargs=where | {"low": cursor.low, "ahead": tuple(cursor.ahead)},
        **remote,
    )


class RowIds(Datasource):
    """Row ids 0, 1, ... `rows`-1, `each` of them a task.

    Not `ray.data.range`: that takes neither CPUs nor labels, and a read that differs from the map that follows in these
    is not joined with it but runs as tasks of its own, on any node, and has CPUs put aside for it.
    """

    def __init__(self, rows: int, each: int) -> None:
        self._starts = range(0, rows, each)

    @property
    def tasks(self) -> int:
        return len(self._starts)

    def estimate_inmemory_data_size(self) -> int:
        return 8 * self._starts.stop

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        found = []
        for start in self._starts:
            stop = min(start + self._starts.step, self._starts.stop)
            about = BlockMetadata(num_rows=stop - start, size_bytes=8 * (stop - start), exec_stats=None)
            found.append(ReadTask(partial(read_ids, start, stop), about))
        return found


def streamed_batches(
    shard: Any, batch: int, cursor: Cursor, max_bad_fraction: float, on_bad: Callable[[BadClip], None] | None
) -> Iterator[ClipBatch]:
    """Batches of exactly `batch` good clips from a worker's shard, through `iter_torch_batches`.

    What `cursor` has consumed is left out: the data set is built before the workers choose their checkpoint, and
    another one may have come in between.
    """
    ahead = frozenset(cursor.ahead)
    quarantine = Quarantine(max_bad_fraction, on_bad)
    good: list[Sample] = []
    refused: list[BadClip] = []
    for rows in shard.iter_torch_batches(batch_size=batch, prefetch_batches=2, collate_fn=_Rows()):
        for found in rows:
            if found.position < cursor.low or found.position in ahead:
                continue
            if quarantine.passed(found):
                good.append(found)
            else:
                refused.append(found)
        while len(good) >= batch:
            yield collate(good[:batch], refused)
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
                rows.append(Sample(position, key, start_s, batch["frames"][i], None, actions, str(batch["group"][i])))
            else:
                source, reason, message = (str(batch[k][i]) for k in ("source", "reason", "message"))
                rows.append(BadClip(position, key, source, start_s, reason, message))
        return rows
