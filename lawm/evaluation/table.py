"""The table of results: every figure of every run is a row of a Parquet file, which can be read with anything.

It lies in the run's folder (`results.parquet`), and the values of single clips beside it (`values/`). A figure that is
measured again at the same step, on data of the same name, replaces its row; at another step it is a row more.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lawm.config import Adaptive, BottleneckConfig, Config, Discrete, LawmError, Noisy, Sparse
from lawm.evaluation.results import Kept, Measured
from lawm.evaluation.values_file import REMEDY, Said, values_from_bytes, values_to_bytes
from lawm.parquet import read_parquet
from lawm.storage import exists, join, last_part, list_files, read_bytes, write_bytes

TABLE, VALUES = "results.parquet", "values"
ABOUT = b"lawm.results"
FORMAT = 1


@dataclass(frozen=True)
class ResultRow:
    """A result and what it is of: the run, its step and its training's seed, its latents and how strongly they are
    limited, the hash of what it was trained with (the same for runs that differ in nothing but the seed)."""

    run: str
    step: int
    seed: int
    latents: str
    strength: float | None
    config: str
    dataset: str
    evaluation: str
    figure: str
    value: float
    low: float | None
    high: float | None
    clips: int
    videos: int
    unit: str
    better: str
    control: str
    one: str
    checked_by: str
    note: str
    drawn_with: int
    """The seed of the evaluation (partners, draws of videos)."""


COLUMNS = tuple(field.name for field in fields(ResultRow))


def strength_of(bottleneck: BottleneckConfig) -> float | None:
    """The one number that sets how much a bottleneck lets through; None where there is none."""
    match bottleneck:
        case Sparse(lambda_l1=strength) | Noisy(beta=strength) | Adaptive(target=strength):
            return strength
        case Discrete(codebook_size=size):
            return float(size)
        case _:
            return None


def config_hash(config: Config) -> str:
    """Of all that a latent action model's training depends on, but for the seed."""
    said = config.model_dump(mode="json", include={"data", "encoder", "model", "optimizer", "train", "fine_tune"})
    for name in ("seed", "log_every", "checkpoint_every", "keep", "compile", "log_clips"):
        said["train"].pop(name)
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()


def rows_of(measured: Measured, run: str, config: Config) -> list[ResultRow]:
    """A row of every result of `run`, which was trained with `config`."""
    bottleneck = config.model.bottleneck
    own: dict[str, Any] = {"run": run, "seed": config.train.seed, "config": config_hash(config)}
    own |= {"latents": bottleneck.kind, "strength": strength_of(bottleneck)}
    renamed = {"figure": "name", "clips": "n", "drawn_with": "seed"}
    taken = {name: renamed.get(name, name) for name in COLUMNS if name not in own}
    return [ResultRow(**own, **{k: getattr(r, name) for k, name in taken.items()}) for r in measured.results]


def merged(old: Sequence[ResultRow], new: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows of both. A new one replaces all old ones of its evaluation, data and step: figures that the evaluation
    no longer gives would otherwise stay."""

    def key(row: ResultRow) -> tuple[str, int, str, str]:
        return row.run, row.step, row.dataset, row.evaluation

    again = {key(row) for row in new}
    return [*(row for row in old if key(row) not in again), *new]


def newest_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Of each figure of a run on one data set, the row of the newest step."""
    last: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        key = (row.run, row.dataset, row.evaluation, row.figure)
        last[key] = max(last.get(key, row.step), row.step)
    return [row for row in rows if row.step == last[row.run, row.dataset, row.evaluation, row.figure]]


# ---------------------------------------------------------------- which rows
def matching_rows(rows: Sequence[ResultRow], filters: Sequence[str]) -> list[ResultRow]:
    """The rows that agree with every `COLUMN=PATTERN` (`*` and `?` stand for anything; `!=` for those that do not).
    `evaluation` is also a figure's name. Raises LawmError for a column that is not there."""
    for one in filters:
        column, equals, pattern = one.partition("=")
        other = column.endswith("!")
        column = column.rstrip("!").strip()
        if not equals or column not in COLUMNS:
            raise LawmError(f"--filter {one}: expected COLUMN=PATTERN; the columns are {', '.join(COLUMNS)}")
        rows = [row for row in rows if any(_fits(text, pattern) for text in _texts(row, column)) != other]
    return list(rows)


def _texts(row: ResultRow, column: str) -> tuple[str, ...]:
    value = getattr(row, column)
    if column == "evaluation":
        return value, row.figure
    if column == "run":
        return value, last_part(value)
    return (f"{value:g}" if isinstance(value, float) else "" if value is None else str(value),)


def _fits(text: str, pattern: str) -> bool:
    return fnmatchcase(text, pattern.strip())


# ---------------------------------------------------------------- files
_TYPES: dict[Any, pa.DataType] = {
    int: pa.int64(), float: pa.float64(), float | None: pa.float64(), str: pa.string()
}  # fmt: skip
SCHEMA = pa.schema([(field.name, _TYPES[field.type]) for field in fields(ResultRow)])


def table_of(rows: Sequence[ResultRow]) -> pa.Table:
    """The rows as a table of SCHEMA."""
    about = {ABOUT: json.dumps({"format": FORMAT}).encode()}
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA).replace_schema_metadata(about)


def read_table(where: str) -> list[ResultRow]:
    """The rows of a results table. Raises LawmError for another file, and for the table of another version."""
    try:
        table = read_parquet(pa.BufferReader(read_bytes(where)))
    except pa.ArrowInvalid as error:
        raise LawmError(f"{where}: not a results table ({error}); remove it, and {REMEDY}") from error
    about = (table.schema.metadata or {}).get(ABOUT)
    if about is None or json.loads(about)["format"] != FORMAT or set(table.column_names) != set(COLUMNS):
        raise LawmError(f"{where}: not a results table of this version of lawm; remove it, and {REMEDY}")
    return [ResultRow(**row) for row in table.select(list(COLUMNS)).to_pylist()]


def write_table(where: str, rows: Sequence[ResultRow]) -> None:
    """The rows as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table_of(rows), sink)
    write_bytes(where, sink.getvalue())


def record_results(folder: str, measured: Measured, run: str, config: Config) -> str:
    """Adds the results of `run` to the table in `folder`, with the values of single clips beside it; where the table
    is. Raises LawmError for a table of another version."""
    where = join(folder, TABLE)
    old = read_table(where) if exists(where) else []
    for kept in measured.kept:
        write_bytes(join(folder, VALUES, values_name(kept.evaluation, kept.dataset, kept.step)), values_to_bytes(kept))
    write_table(where, merged(old, rows_of(measured, run, config)))
    return where


def values_name(evaluation: str, dataset: str, step: int) -> str:
    """The name of the file with the values of an evaluation."""
    return f"{evaluation}-{step:08d}-{hashlib.blake2b(dataset.encode(), digest_size=4).hexdigest()}.parquet"


def kept_values(folder: str, row: ResultRow, says: dict[str, Said]) -> Kept:
    """The values of single clips that a row was made of. Raises LawmError where they are not there."""
    where = join(folder, VALUES, values_name(row.evaluation, row.dataset, row.step))
    if row.evaluation not in says or not exists(where):
        raise LawmError(f"{where}: the values of single clips are not there; {REMEDY}")
    return values_from_bytes(read_bytes(where), where, says)


def tables_below(folders: Sequence[str]) -> Iterator[tuple[str, list[ResultRow]]]:
    """(folder, rows) of every results table in or below the folders, local or s3://. Raises LawmError where a folder is
    not there, or holds results that are in no table, with the remedy."""
    for folder in folders:
        if folder.endswith(".parquet"):
            yield folder.rpartition("/")[0], read_table(folder)
            continue
        if not exists(folder):
            raise LawmError(f"{folder}: no such folder. Expected a run, or a folder of runs")
        names = [uri for uri, _ in list_files(folder, (TABLE, "evaluation.json"))]
        found = sorted(uri for uri in names if uri.rpartition("/")[2] == TABLE)
        if not found:
            old = next((uri for uri in names if uri.endswith("/evaluation.json")), "")
            why = f"{old} is of a lawm that kept no table" if old else "nothing has been measured there"
            run = old.rpartition("/")[0] if old else folder
            raise LawmError(f"{folder}: no {TABLE}: {why}; run lawm evaluate --checkpoint {run}")
        for where in found:
            yield where.rpartition("/")[0], read_table(where)
