"""Values of single clips as a Parquet file: what figures were made of, for differences between runs.

A row is a clip: `clip` (its name), `group` (its video) and a column for each value; arrays of several numbers a clip
are lists, whose shape stands in the file's metadata. A value that is missing has no column, but a reason there.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm.config import LawmError
from lawm.evaluation.results import Figure, Kept, Missing, PerClip
from lawm.parquet import read_parquet

if TYPE_CHECKING:
    from lawm.evaluation.subject import Evaluation

FORMAT = 1
ABOUT = b"lawm.values"
REMEDY = "measure again with this lawm"


@dataclass(frozen=True)
class Said:
    """What the values of an evaluation are, and the figures that they say: `figures(values, names)`."""

    values: type[PerClip]
    figures: Callable[[Any, Sequence[str]], tuple[Figure[Any], ...]]


def said_by(evaluation: "Evaluation[Any]") -> Said:
    """What an evaluation of the suite says; the type of its values is what its `measure`, or `pool`, returns."""
    values = get_type_hints(evaluation.pool or evaluation.measure)["return"]
    return Said(values, lambda found, names: (*evaluation.figures, *evaluation.more(found, names)))


def suite_says() -> dict[str, Said]:
    """`Said` of every evaluation of the suite, by name."""
    from lawm.evaluation.suite import SUITE  # reading a table of results does not wait for torch

    return {name: said_by(evaluation) for name, evaluation in SUITE.items()}


def values_to_bytes(kept: Kept) -> bytes:
    """The Parquet file of `kept`."""
    columns: dict[str, Any] = {"clip": pa.array(kept.clips, pa.string())}
    columns["group"] = pa.array([str(group) for group in kept.values.groups], pa.string())
    shapes: dict[str, list[int]] = {}
    missing: dict[str, str] = {}
    for field in fields(kept.values):
        value = getattr(kept.values, field.name)
        if field.name == "groups":
            continue
        if isinstance(value, Missing):
            missing[field.name] = value.reason
            continue
        flat = pa.array(value.reshape(-1))
        shapes[field.name] = list(value.shape[1:])
        each = int(np.prod(value.shape[1:]))
        columns[field.name] = flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, each)
    about = {"format": FORMAT, "evaluation": kept.evaluation, "dataset": kept.dataset, "step": kept.step}
    about |= {"names": list(kept.names), "shapes": shapes, "missing": missing}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(about).encode()}), sink)
    return sink.getvalue()


def values_from_bytes(data: bytes, where: str, says: dict[str, Said]) -> Kept:
    """What `values_to_bytes` wrote. Raises LawmError, with the remedy, for another file and for values that this lawm's
    evaluations do not have."""
    try:
        table = read_parquet(pa.BufferReader(data))
        about = json.loads((table.schema.metadata or {})[ABOUT])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise LawmError(f"{where}: not a file of values per clip; remove it, and {REMEDY}") from error
    name = about["evaluation"]
    wanted = {field.name for field in fields(says[name].values)} if name in says else set()
    if about["format"] != FORMAT or wanted != {"groups", *about["shapes"], *about["missing"]}:
        raise LawmError(f"{where}: values of {name} as another version of lawm made them; {REMEDY}")
    values: dict[str, Any] = {"groups": np.array(table["group"].to_pylist(), dtype=object)}
    for field, shape in about["shapes"].items():
        column = table[field].combine_chunks()
        flat = (column.flatten() if shape else column).to_numpy(zero_copy_only=False)
        values[field] = flat.reshape(len(table), *shape)
    values |= {field: Missing(reason) for field, reason in about["missing"].items()}
    clips = tuple(table["clip"].to_pylist())
    place = about["dataset"], about["step"]
    return Kept(name, *place, clips, says[name].values(**values), tuple(about["names"]))
