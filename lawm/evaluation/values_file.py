"""Values of single clips as a Parquet file: what figures were made of, for differences between runs.

A row is a clip: `clip` (its name), `group` (its video) and a column for each value; arrays of several numbers a clip
are lists, whose shape stands in the file's metadata. A value that is missing has no column, but a reason there; those
of a group within have its name before theirs (`pictured.psnr`).
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm.config import LawmError
from lawm.evaluation.results import Figure, Kept, Missing, PerClip, Values
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


def units_say(fits: bool = False) -> dict[str, Said]:
    """`Said` of what evaluations make of a unit of clips, by name: of what they measure, or (`fits`) collect for what
    they fit. Figures are made of whole evaluations only: there are none."""
    from lawm.evaluation.suite import SUITE

    made = {n: one.fit.collect if fits and one.fit is not None else one.measure for n, one in SUITE.items()}
    return {name: Said(get_type_hints(make)["return"], lambda found, names: ()) for name, make in made.items()}


def values_to_bytes(kept: Kept) -> bytes:
    """The Parquet file of `kept`."""
    columns: dict[str, Any] = {"clip": pa.array(kept.clips, pa.string())}
    columns["group"] = pa.array([str(group) for group in kept.values.groups], pa.string())
    shapes: dict[str, list[int]] = {}
    missing: dict[str, str] = {}
    for name, value in _flat(kept.values):
        if isinstance(value, Missing):
            missing[name] = value.reason
            continue
        flat = pa.array(value.reshape(-1))
        shapes[name] = list(value.shape[1:])
        each = int(np.prod(value.shape[1:]))
        columns[name] = flat if value.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, each)
    about = {"format": FORMAT, "evaluation": kept.evaluation, "dataset": kept.dataset, "step": kept.step}
    about |= {"names": list(kept.names), "shapes": shapes, "missing": missing}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(about).encode()}), sink)
    return sink.getvalue()


def _flat(values: PerClip, before: str = "") -> Iterator[tuple[str, Values]]:
    """Every value by its name; those of a group within as `group.name`."""
    for field in fields(values):
        value = getattr(values, field.name)
        if isinstance(value, PerClip):
            yield from _flat(value, f"{before}{field.name}.")
        elif field.name != "groups":
            yield f"{before}{field.name}", value


def _rebuilt(kind: type[PerClip], groups: np.ndarray, found: Mapping[str, Values], before: str = "") -> PerClip:
    """What `_flat` took apart. Raises KeyError where a value is neither there nor missing."""
    made: dict[str, Any] = {"groups": groups}
    for name, hint in get_type_hints(kind).items():
        within = next((t for t in get_args(hint) or (hint,) if isinstance(t, type) and issubclass(t, PerClip)), None)
        if name == "groups":
            continue
        if within is None or f"{before}{name}" in found:
            made[name] = found[f"{before}{name}"]
        else:
            made[name] = _rebuilt(within, groups, found, f"{before}{name}.")
    return kind(**made)


def values_from_bytes(data: bytes, where: str, says: dict[str, Said]) -> Kept:
    """What `values_to_bytes` wrote. Raises LawmError, with the remedy, for another file and for values that this lawm's
    evaluations do not have."""
    try:
        table = read_parquet(pa.BufferReader(data))
        about = json.loads((table.schema.metadata or {})[ABOUT])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise LawmError(f"{where}: not a file of values per clip; remove it, and {REMEDY}") from error
    name = about["evaluation"]
    values: dict[str, Values] = {}
    for field, shape in about["shapes"].items():
        column = table[field].combine_chunks()
        flat = (column.flatten() if shape else column).to_numpy(zero_copy_only=False)
        values[field] = flat.reshape(len(table), *shape)
    values |= {field: Missing(reason) for field, reason in about["missing"].items()}
    clips = tuple(table["clip"].to_pylist())
    place = about["dataset"], about["step"]
    groups = np.array(table["group"].to_pylist(), dtype=object)
    try:
        made = _rebuilt(says[name].values, groups, values)
        whole = about["format"] == FORMAT and {field for field, _ in _flat(made)} == values.keys()
    except KeyError:
        whole = False
    if not whole:
        raise LawmError(f"{where}: values of {name} as another version of lawm made them; {REMEDY}")
    return Kept(name, *place, clips, made, tuple(about["names"]))
