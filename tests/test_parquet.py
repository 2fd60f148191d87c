"""Reading Parquet leaves no thread behind that could outlive the interpreter."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawm.config import LawmError
from lawm.parquet import open_parquet, parquet_errors, read_parquet

THREADS = """
import os, sys
import pyarrow as pa, pyarrow.parquet as pq
from lawm.parquet import open_parquet, read_parquet

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
with open(sys.argv[1], "rb") as file:
    whole = read_parquet(file)
with open(sys.argv[1], "rb") as file:
    groups = open_parquet(file, ["b"])
    parts = [groups.read_row_group(i, use_threads=False) for i in range(groups.num_row_groups)]
own = threads() - before
with open(sys.argv[1], "rb") as file:
    pq.read_table(file)
print(len(whole), sum(map(len, parts)), own, threads() > before)
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pq.write_table(
        pa.table({"a": range(1000), "b": ["x"] * 1000, "c": [1.5] * 1000}), tmp_path / "t.parquet", row_group_size=100
    )
    return tmp_path / "t.parquet"


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_arrows_pool_is_asked(table: Path) -> None:
    """pyarrow's own way starts some; one that lets go of a Python file after the end of the interpreter aborts it."""
    done = subprocess.run([sys.executable, "-c", THREADS, str(table)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1000", "1000", "0", "True"], done.stdout + done.stderr


def test_columns_and_errors(table: Path) -> None:
    with table.open("rb") as file:
        assert read_parquet(file, ["c", "a"]).column_names == ["c", "a"]
    with (
        table.open("rb") as file,
        pytest.raises(LawmError, match=r"t\.parquet: .*no column z"),
        parquet_errors("t.parquet"),
    ):
        read_parquet(file, ["a", "z"])
    table.write_bytes(table.read_bytes()[:-100])
    with table.open("rb") as file, pytest.raises(LawmError, match=r"damaged .*; look"), parquet_errors("t", "; look"):
        open_parquet(file)
