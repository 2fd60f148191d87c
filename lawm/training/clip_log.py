"""Which clips a run's weights were trained on: RUN/clips, a Parquet file for each checkpoint (`train.log_clips`).

A file lies there before its checkpoint does, and those beyond the checkpoint that a run resumes from are removed.
So the files up to the newest checkpoint are the history of its weights. What was trained on after that and died with
the process left no trace in any weights: it is trained on again, and logged then.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm.config import LawmError
from lawm.data import Cursor
from lawm.parquet import read_parquet
from lawm.storage import delete, exists, join, list_files, open_file, write_bytes
from lawm.training.batches import ClipBatch
from lawm.training.checkpoint import find_checkpoint, read_about

FOLDER = "clips"
SCHEMA = pa.schema(
    {
        "step": pa.int64(),  # 1 is the first
        "rank": pa.int32(),
        "position": pa.int64(),  # in the sampling plan
        "key": pa.string(),
        "start_s": pa.float64(),
        "refused": pa.bool_(),  # a bad clip: consumed, listed in quarantine.jsonl, not trained on
        "skipped": pa.bool_(),  # its step's loss or gradient was not finite: consumed, no weight changed
    }
)


class ClipLog:
    """One rank's rows since the last checkpoint, kept as Arrow: a large run has a million between two of them."""

    def __init__(self) -> None:
        self._steps: list[pa.RecordBatch] = []

    def add(self, step: int, rank: int, batch: ClipBatch, skipped: bool) -> None:
        """The clips of `step`, as they were read."""
        n = len(batch.clips)
        columns = [[step] * n, [rank] * n, *zip(*batch.clips, strict=True), [skipped] * n] if n else [[]] * len(SCHEMA)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._steps.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))

    def take(self) -> bytes:
        """All rows since the last call, as an Arrow stream."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_table(pa.Table.from_batches(self._steps, SCHEMA))
        self._steps = []
        return bytes(sink.getvalue())


def merged(parts: list[bytes]) -> pa.Table:
    """What the ranks' logs gave, in order of step, then rank."""
    found = pa.concat_tables(pa.ipc.open_stream(part).read_all() for part in parts)
    return found.sort_by([("step", "ascending"), ("rank", "ascending")])


def write_clips(run: str, step: int, rows: pa.Table) -> None:
    """The file of the checkpoint after `step` steps, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    write_bytes(join(run, FOLDER, f"step-{step:08d}.parquet"), bytes(sink.getvalue()))


def drop_clips(run: str, beyond: int) -> None:
    """Removes what was logged after `beyond` steps: those weights are gone."""
    for step, uri in _files(run):
        if step > beyond:
            delete(uri)


def read_clip_log(run: str, columns: list[str] | None = None) -> pa.Table:
    """The history of the newest checkpoint of `run`, a row for each clip (see SCHEMA), in order of step and rank.

    `columns`: only these, and position. Raises LawmError: no log, no checkpoint, a position that was consumed twice,
    or a log that does not hold exactly what the checkpoint's cursor has consumed.
    """
    about = read_about(find_checkpoint(run))
    files = [uri for step, uri in _files(run) if step <= about["step"]]  # one beyond it has no weights
    if not files:
        raise LawmError(f"{run}: no log of clips there; train with --set train.log_clips=true from the first step on")
    wanted = None if columns is None else ["position", *(name for name in columns if name != "position")]
    tables = []
    for uri in files:
        with open_file(uri) as file:
            tables.append(read_parquet(file, wanted))
    found = pa.concat_tables(tables)
    _check(run, found, Cursor.from_json(about["cursor"]))
    return found


def _files(run: str) -> list[tuple[int, str]]:
    """(step, file), ascending."""
    folder = join(run, FOLDER)
    files = [uri for uri, _ in list_files(folder, (".parquet",))] if exists(folder) else []
    return sorted((int(uri.rsplit("-", 1)[-1].split(".")[0]), uri) for uri in files)


def _check(run: str, found: pa.Table, cursor: Cursor) -> None:
    position = np.sort(found["position"].to_numpy())
    twice = np.unique(position[1:][position[1:] == position[:-1]])
    if len(twice):
        at = found.filter(pa.compute.equal(found["position"], int(twice[0])))
        steps = f" (steps {at['step'].to_pylist()})" if "step" in found.column_names else ""
        raise LawmError(f"{run}: {len(twice)} clips were consumed twice; the first: position {twice[0]}{steps}")
    low = int(np.searchsorted(position - np.arange(len(position)), 0, side="right"))  # ascending: where gaps begin
    if (low, position[low:].tolist()) != (cursor.low, list(cursor.ahead)):
        below = int(np.searchsorted(position, cursor.low))
        missing = cursor.low - below + len(np.setdiff1d(cursor.ahead, position))
        others = len(position) - len(cursor) + missing
        raise LawmError(
            f"{run}: the log and the newest checkpoint do not belong together: of {len(cursor)} clips that the "
            f"checkpoint has consumed, {missing} are not in the log, and {others} others are"
        )
