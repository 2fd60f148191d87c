"""Where each video's bytes lie (a file, a tar member, an S3 object): the index, one Parquet table.

Tar shards follow the WebDataset / video2dataset layout (`000001.mp4` beside `000001.json`). They are
never unpacked: an index row holds the offset and the size of a member's data inside the tar.
"""

import hashlib
import io
import math
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import LawmError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg",
    ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".3gp", ".ogv",
)  # fmt: skip
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Compressed tars are listed too, as one entry each, so that the index can say why they are of no use."""

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
    ]
)
"""One row a video. Width and height as displayed (after rotation), pixels; `rate` in frames/s from the
time stamps, `container_rate` as the container claims; `start_s` the container's time of the first frame;
`duration_s` and `keyframes_s` in seconds from the first frame; `reason` null when the video can be used. The last
four, null for most: see VideoRef."""

_LATER = ("begin_s", "end_s", "true_rate", "version")
"""Columns that an index need not have, and that are not read where all are null."""


@dataclass(frozen=True)
class VideoRef:
    """Bytes [offset, offset + size) of `source` hold one video, known everywhere as `key`."""

    source: str
    offset: int
    size: int
    key: str
    begin_s: float | None = None
    """The video is what the file shows from here on (seconds by the container's own clock), for files that hold many
    episodes."""
    end_s: float | None = None
    """... until here, exclusively."""
    true_rate: float | None = None
    """Frames per second of physical time, where it is known that the container's clock runs at another pace."""
    version: int | None = None
    """Of an S3 object, a hash of its ETag when it was probed; None: any will do."""

    def __str__(self) -> str:
        return f"{self.source}:{self.key}" if self.offset or self.begin_s is not None else self.source

    @property
    def place(self) -> tuple[Any, ...]:
        """All but the key, as JSON can hold it."""
        return (self.source, self.offset, self.size, self.begin_s, self.end_s, self.true_rate, self.version)

    @staticmethod
    def at(place: Sequence[Any], key: str) -> "VideoRef":
        """The ref with that `place`."""
        source, offset, size, begin_s, end_s, true_rate, version = place
        return VideoRef(source, offset, size, key, begin_s, end_s, true_rate, version)

    @property
    def is_tar(self) -> bool:
        return self.offset == 0 and self.source.lower().endswith(TAR_SUFFIXES)


# ---------------------------------------------------------------- listing
def list_files(sources: Sequence[str]) -> Iterator[VideoRef]:
    """Every video file and every tar (as one ref, see `expand`) in files, folders and S3 prefixes, in order.

    The key is the path relative to the source, so that a moved data set keeps its keys. Nothing is
    opened. Raises NotFoundError for a source that does not exist.
    """
    for source in sources:
        root = storage.absolute(source)
        if storage.is_s3(root):
            folder = root[: root.rfind("/") + 1] if root.endswith("*") else root.rstrip("/") + "/"
        else:
            folder = os.path.join(root, "")
        for uri, size in storage.list_files(root, VIDEO_SUFFIXES + TAR_SUFFIXES):
            key = uri.removeprefix(folder) if uri.startswith(folder) else uri.rstrip("/").rpartition("/")[2]
            yield VideoRef(uri, 0, size, key)


def expand(ref: VideoRef) -> Iterator[VideoRef]:
    """The videos of a tar (`<tar's key without .tar>/<member>`), read header by header; any other ref as it is.

    Folders, links, sparse members and other suffixes are left out; a member that occurs twice gets `#2`.
    A tar that is compressed or no tar is yielded as it is, for `probe` to refuse with a reason; if one
    breaks off in the middle, the rest is yielded as a last entry, for the same purpose.
    """
    if not ref.is_tar:
        yield ref
        return
    stem = ref.key[: -len(".tar")]
    seen: Counter[str] = Counter()
    with storage.open_file(ref.source) as file:
        try:
            # Not "r": that would unpack compressed tars, whose members have no offset.
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        except tarfile.TarError:
            yield ref
            return
        member: tarfile.TarInfo | None = None
        while True:
            try:
                member = tar.next()
            except tarfile.TarError:
                break
            if member is None:
                break
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has read
            if member.isreg() and not member.issparse() and member.name.lower().endswith(VIDEO_SUFFIXES):
                name = f"{stem}/{member.name.removeprefix('./').lstrip('/')}"
                seen[name] += 1
                key = name if seen[name] == 1 else f"{name}#{seen[name]}"
                yield VideoRef(ref.source, member.offset_data, member.size, key)
        end = int(tar.offset)
        if member is None:
            # tarfile takes a damaged header for the end; a true end is a block of zeros, or the file's.
            file.seek(end)
            if not file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                return
        yield VideoRef(ref.source, end, max(0, ref.size - end), f"{stem}/(unreadable from byte {end} on)")


def list_videos(sources: Sequence[str]) -> Iterator[VideoRef]:
    """Every video in files, folders, tars and S3 prefixes, in a fixed order, each with a key of its own.

    Raises NotFoundError, StorageError.
    """
    return unique_keys(ref for file in list_files(sources) for ref in expand(file))


def unique_keys(refs: Iterable[VideoRef]) -> Iterator[VideoRef]:
    """The refs in order; a key that an earlier one has already used gets `#2`, `#3`, ..."""
    used: dict[int, int] = {}

    def short(key: str) -> int:
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")

    for ref in refs:
        plain = short(ref.key)
        used[plain] = used.get(plain, 0) + 1
        if used[plain] > 1:
            while short(f"{ref.key}#{used[plain]}") in used:
                used[plain] += 1
            ref = replace(ref, key=f"{ref.key}#{used[plain]}")
            used[short(ref.key)] = 1
        yield ref


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to an open tar, with no time and no owner: the same files give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# ---------------------------------------------------------------- the index
def empty_row(ref: VideoRef, reason: str | None = None) -> dict[str, Any]:
    """An index row of which only the place (and the reason) is known."""
    row: dict[str, Any] = dict.fromkeys(INDEX_SCHEMA.names)
    return row | {name: getattr(ref, name) for name in REF_COLUMNS} | {"reason": reason}


REF_COLUMNS = tuple(field.name for field in fields(VideoRef))


def ref_of(row: dict[str, Any]) -> VideoRef:
    """Where the video of an index row lies."""
    return VideoRef(**{name: row.get(name) for name in REF_COLUMNS})  # type: ignore[arg-type]


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

    def where(self, wanted: Callable[[str], bool]) -> "Index":
        """Only the videos whose key is `wanted`."""
        return self._filtered(np.fromiter(map(wanted, self.keys()), dtype=bool, count=len(self)))

    def _filtered(self, keep: np.ndarray) -> "Index":
        return self if keep.all() else Index(self.table.filter(pa.array(keep)))

    def usable(self) -> "Index":
        """Only the videos without a `reason`."""
        return self._filtered(np.asarray(self.table["reason"].is_null()))

    def reasons(self) -> dict[str, int]:
        """How many videos were refused, by reason (without its details), most frequent first."""
        said = (reason.partition(":")[0] for reason in self.table["reason"].to_pylist() if reason)
        return dict(Counter(said).most_common())

    def split(self, which: Literal["train", "val"], val_fraction: float) -> "Index":
        """The training or the held-out videos: by a hash of the key, so never by order, place or company."""
        if val_fraction == 0:
            return self if which == "train" else Index(self.table.slice(0, 0))
        least = math.ceil(val_fraction * 2.0**64)

        def held_out(key: str) -> bool:
            return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") < least

        return self.where(held_out if which == "val" else lambda key: not held_out(key))

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
        found = pq.ParquetFile(file, read_dictionary=[] if whole else ["source"])
        names = found.schema_arrow.names
        missing = [name for name in INDEX_SCHEMA.names if name not in (*names, *_LATER)]
        if missing:
            raise LawmError(
                f"{uri}: not an index, it lacks the columns {', '.join(missing)}. Make one with `lawm index`"
            )
        kept = columns if whole else [name for name in columns if name not in _LATER or _any(found, name)]
        schema = INDEX_SCHEMA if whole else pa.schema([_slim(INDEX_SCHEMA.field(name)) for name in kept])
        for group in range(found.num_row_groups):
            table = found.read_row_group(group, columns=[name for name in kept if name in names])
            for name in kept:
                if name not in names:
                    table = table.append_column(name, pa.nulls(len(table)))
            yield Index(table.select(schema.names).cast(schema))


@contextmanager
def parquet_errors(uri: str, hint: str = "") -> Iterator[None]:
    """What pyarrow says of a file that is no Parquet file, or a damaged one, as LawmError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = next(iter(str(error).splitlines()), "")[:200]
        raise LawmError(f"{uri}: not a Parquet file, or damaged ({said}){hint}") from None


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
