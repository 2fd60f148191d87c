"""Parquet as everything here reads it: in the thread that asks.

A thread of Arrow's own pool may still hold the last of a file when the table is long there. Where the file is
Python's (an S3 window, a buffer of bytes) and the process ends just then, that thread asks a dead interpreter to let it
go, and a job that has done its work is aborted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from lawm.config import LawmError


def open_parquet(file: IO[bytes] | pa.NativeFile, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """An open Parquet file; read it with `use_threads=False`. `dictionaries`: columns to leave encoded as such. Raises
    what `parquet_errors` makes LawmError of."""
    return pq.ParquetFile(file, read_dictionary=list(dictionaries), pre_buffer=False)


def read_parquet(file: IO[bytes] | pa.NativeFile, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table, or some columns of it. Raises as `open_parquet`; ArrowInvalid where it lacks one of them."""
    found = open_parquet(file)
    lacking = set(columns or ()) - set(found.schema_arrow.names)
    if lacking:
        raise pa.ArrowInvalid(f"no column {', '.join(sorted(lacking))}")
    return found.read(columns=None if columns is None else list(columns), use_threads=False)


@contextmanager
def parquet_errors(uri: str, hint: str = "") -> Iterator[None]:
    """What pyarrow says of a file that is no Parquet file, or a damaged one, as LawmError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = next(iter(str(error).splitlines()), "")[:200]
        raise LawmError(f"{uri}: not a Parquet file, or damaged ({said}){hint}") from None
