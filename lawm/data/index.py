"""Where each video's bytes lie (a file, a tar member, an S3 object): the index, one Parquet table.

Tar shards follow the WebDataset / video2dataset layout (`000001.mp4` beside `000001.json`). They are
never unpacked: an index row holds the offset and the size of a member's data inside the tar.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import LawmError
from lawm.parquet import open_parquet, parquet_errors
from lawm.video import REF_COLUMNS, VideoRef, ref_of

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rate", pa.float64()),
        ("container_rate", pa.float64()),
        ("variable_rate", pa.bool_()),
        ("frames", pa.int64()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("keyframes_s", pa.list_(pa.float32())),
        ("reason", pa.string()),
        ("begin_s", pa.float64()),
        ("end_s", pa.float64()),
        ("true_rate", pa.float64()),
        ("version", pa.int64()),
        ("group", pa.string()),
        ("largest_gap_s", pa.float64()),
    ]
)
"""One row a video. Width and height as displayed (after rotation), pixels; `rate` in frames/s from the
time stamps, `container_rate` as the container claims; `start_s` the container's time of the first frame;
`duration_s` and `keyframes_s` in seconds from the first frame; `reason` null when the video can be used. From
`begin_s` to `group`, null for most: see VideoRef. Videos of one `group` are on one side of the split; null: a group of
its own. `largest_gap_s`: seconds between the neighbouring frames that are furthest apart, null where all are about
alike."""

_LATER = ("begin_s", "end_s", "true_rate", "version", "group", "largest_gap_s")
"""Columns that an index need not have, and that are not read where all are null."""


def rows_to_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)


@dataclass(frozen=True)
class Index:
    """An index table with INDEX_SCHEMA; rows keep their order."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def keys(self) -> Iterator[str]:
        """Every video's key, in order; a few at a time are strings, so that ten million take no memory."""
        for batch in self.table.select(["key"]).to_batches(max_chunksize=1 << 16):
            yield from batch.column(0).to_pylist()

    def groups(self) -> Iterator[str]:
        """What each video belongs to, in order: its `group`, else its key."""
        for batch in self._with_groups().to_batches(max_chunksize=1 << 16):
            yield from pc.coalesce(*batch.columns).to_pylist()

    def group(self, i: int) -> str:
        """What video `i` (row number) belongs to."""
        return next(name.as_py() for c in self._with_groups().columns if (name := c[i]).is_valid)

    def _with_groups(self) -> pa.Table:
        """The columns whose first that is not null is a video's group."""
        return self.table.select([name for name in ("group", "key") if name in self.table.column_names])

    def where(self, wanted: Callable[[str], bool]) -> "Index":
        """Only the videos whose key is `wanted`."""
        return self.filtered(np.fromiter(map(wanted, self.keys()), dtype=bool, count=len(self)))

    def filtered(self, keep: np.ndarray) -> "Index":
        """Only the videos for which `keep`, bool [videos], is true."""
        return self if keep.all() else Index(self.table.filter(pa.array(keep)))

    def usable(self) -> "Index":
        """Only the videos without a `reason`."""
        return self.filtered(np.asarray(self.table["reason"].is_null()))

    def reasons(self) -> dict[str, int]:
        """How many videos were refused, by reason (without its details), most frequent first."""
        said = (reason.partition(":")[0] for reason in self.table["reason"].to_pylist() if reason)
        return dict(Counter(said).most_common())

    def split(self, which: Literal["train", "val"], val_fraction: float) -> "Index":
        """The training or the held-out videos: by a hash of the group, so never by order, place or company. Of few
        videos that may be none: see `Splitter`."""
        if val_fraction == 0:
            return self if which == "train" else Index(self.table.slice(0, 0))
        held_out = self.hashes() < np.uint64(math.ceil(val_fraction * 2.0**64))
        return self.filtered(held_out if which == "val" else ~held_out)

    def hashes(self) -> np.ndarray:
        """64 bits of each video's group, uint64: held out are the lowest."""

        def short(group: str) -> int:
            return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "little")

        return np.fromiter(map(short, self.groups()), dtype=np.uint64, count=len(self))

    def ref(self, i: int) -> VideoRef:
        """Where video `i` (row number) lies."""
        there = [name for name in REF_COLUMNS if name in self.table.column_names]
        return ref_of({name: self.table[name][i].as_py() for name in there})

    def column(self, name: str) -> np.ndarray:
        """A numeric column as numpy; nulls are NaN (float64)."""
        return np.asarray(self.table[name].to_numpy())

    def fingerprint(self) -> str:
        """16 hex digits over keys, sizes and durations in order: the same data in the same order, wherever it lies."""
        digest = hashlib.blake2b(digest_size=8)
        for batch in self.table.select(["key"]).to_batches(max_chunksize=1 << 16):
            digest.update("".join(f"{key}\0" for key in batch.column(0).to_pylist()).encode())
        for name in ("size", "duration_s"):
            digest.update(np.ascontiguousarray(self.column(name), dtype=np.float64).tobytes())
        return digest.hexdigest()


PLAN_COLUMNS = ("key", "source", "offset", "size", "rate", "duration_s", "reason", *_LATER)
"""What a sampling plan and its clips need of an index."""


def read_index(uri: str) -> Index:
    """The index at `uri` (Parquet). Raises NotFoundError, StorageError, LawmError for another kind of file."""
    pieces = [piece.table.cast(INDEX_SCHEMA) for piece in read_pieces(uri, INDEX_SCHEMA.names)]
    return Index(pa.concat_tables(pieces) if pieces else INDEX_SCHEMA.empty_table())


def read_pieces(uri: str, columns: Sequence[str] = PLAN_COLUMNS) -> Iterator[Index]:
    """The index at `uri` piece by piece, or some columns of it, `source` then dictionary-encoded. Raises as
    `read_index`."""
    whole = len(columns) == len(INDEX_SCHEMA.names)
    with storage.open_file(uri) as file, parquet_errors(uri, ". Make one with `lawm index`"):
        found = open_parquet(file, [] if whole else ["source"])
        names = found.schema_arrow.names
        missing = [name for name in INDEX_SCHEMA.names if name not in (*names, *_LATER)]
        if missing:
            raise LawmError(
                f"{uri}: not an index, it lacks the columns {', '.join(missing)}. Make one with `lawm index`"
            )
        kept = columns if whole else [name for name in columns if name not in _LATER or _any(found, name)]
        schema = INDEX_SCHEMA if whole else pa.schema([_slim(INDEX_SCHEMA.field(name)) for name in kept])
        for group in range(found.num_row_groups):
            table = found.read_row_group(group, columns=[name for name in kept if name in names], use_threads=False)
            for name in kept:
                if name not in names:
                    table = table.append_column(name, pa.nulls(len(table)))
            yield Index(table.select(schema.names).cast(schema))


def _any(file: pq.ParquetFile, name: str) -> bool:
    """Whether a column of the file holds anything but nulls; what its footer does not say counts as yes."""
    if name not in file.schema_arrow.names:
        return False
    for group in range(file.metadata.num_row_groups):
        columns = file.metadata.row_group(group)
        column = next(c for i in range(columns.num_columns) if (c := columns.column(i)).path_in_schema == name)
        if column.statistics is None or column.statistics.null_count != column.num_values:
            return True
    return False


def _slim(field: pa.Field) -> pa.Field:
    return field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.name == "source" else field


def write_index(index: Index | pa.Table | Iterable[pa.Table], uri: str) -> None:
    """Writes an index, given whole or as tables one after another, all or nothing. Raises StorageError."""
    tables: Iterable[pa.Table]
    if isinstance(index, Index):
        tables = [index.table]
    elif isinstance(index, pa.Table):
        tables = [index]
    else:
        tables = index
    with storage.atomic_file(uri) as file, pq.ParquetWriter(file, INDEX_SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))
