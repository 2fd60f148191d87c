"""What an evaluation measures, and what it says: values per clip -> figures with intervals, directions and controls.

An evaluation's values are a frozen dataclass of arrays, one entry a clip (`PerClip`). A value that was not asked for,
or cannot be had, is a `Missing` with its reason; a figure made of one becomes an `Omission` that says so. Nothing is
dropped for want of a name.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np

from lawm.config import LawmError
from lawm.evaluation.intervals import Interval, Statistic, interval, mean, ratio

Better = Literal["lower", "higher", ""]
"""Which way of a figure is better; empty for controls and facts, of which neither way is."""


@dataclass(frozen=True)
class Result:
    """One figure: a value with its 95 % interval over `n` clips or episodes of `videos` videos.

    `low` and `high` are None where there is no interval; `note` says why, and whatever else a reader should know.
    `one`: what 1.0 (or another landmark) means, in words; `checked_by`: the figure without which it says nothing.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    videos: int
    unit: str
    dataset: str
    step: int
    control: str = ""
    seed: int = 0
    better: Better = ""
    one: str = ""
    checked_by: str = ""
    note: str = ""
    evaluation: str = ""
    """Which evaluation it is a figure of."""


@dataclass(frozen=True)
class Missing:
    """Why a value is not there."""

    reason: str


Values = np.ndarray | Missing


@dataclass(frozen=True)
class Omission:
    """A figure, or a whole evaluation, that was not measured, and why."""

    name: str
    reason: str
    dataset: str = ""


@dataclass(frozen=True)
class PerClip:
    """Values per clip. `groups`: the video (or episode) of each clip, [B]; every array's first length is B. A field may
    hold values of the same clips in a group of their own (another PerClip)."""

    groups: np.ndarray

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Missing):
                continue
            if not isinstance(value, np.ndarray | PerClip):
                raise TypeError(f"{type(self).__name__}.{name} is a {type(value).__name__}; an array or Missing")
            if len(value) != len(self.groups):
                raise ValueError(f"{type(self).__name__}.{name}: {len(value)} values of {len(self.groups)} clips")

    def __len__(self) -> int:
        return len(self.groups)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The values of several units, one after another. A field is missing from all of them, or from none."""
        joined: dict[str, Any] = {}
        for one in dataclasses.fields(cls):
            found = [getattr(part, one.name) for part in parts]
            missing = [value for value in found if isinstance(value, Missing)]
            if missing and len(missing) < len(found):
                raise ValueError(f"{cls.__name__}.{one.name} is missing from {len(missing)} of {len(found)} units")
            if missing:
                joined[one.name] = missing[0]
            elif isinstance(found[0], PerClip):
                joined[one.name] = type(found[0]).join(found)
            else:
                joined[one.name] = np.concatenate(found)
        return cls(**joined)

    def at(self, which: np.ndarray) -> Self:
        """The values of some clips, in that order; `which`: indices, or whether, [B]."""
        fields: dict[str, Any] = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}

        def of(value: Any) -> Any:
            if isinstance(value, Missing):
                return value
            return value.at(which) if isinstance(value, PerClip) else value[which]

        return type(self)(**{name: of(value) for name, value in fields.items()})


T = TypeVar("T", bound=PerClip)


@dataclass(frozen=True)
class Figure(Generic[T]):
    """How a figure comes from values per clip, and how it is to be read.

    `of`: the arrays that `statistic` is given. `needs`: what the figure has to be given beside the model (for
    searches, which have no second model). `checked_by`: the control without which it says nothing.
    """

    name: str
    of: Callable[[T], tuple[Values, ...]]
    statistic: Statistic = mean
    unit: str = "L1"
    better: Better = ""
    one: str = ""
    control: str = ""
    checked_by: str = ""
    needs: Literal["", "deterministic", "unconstrained", "other videos", "another data set"] = ""
    positive: bool = True


def ratio_figure(name: str, of: Callable[[T], tuple[Values, ...]], **more: Any) -> Figure[T]:
    """A ratio of two means."""
    return Figure(name, of, ratio, "ratio", **more)


@dataclass(frozen=True)
class Kept:
    """The values that figures were made of: `clips` names each clip (or episode), in the order of the values; `names`
    is what the evaluation's `more` is given beside them."""

    evaluation: str
    dataset: str
    step: int
    clips: tuple[str, ...]
    values: PerClip
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.clips) != len(self.values):
            raise ValueError(f"{self.evaluation}: {len(self.clips)} names of {len(self.values)} clips")


@dataclass(frozen=True)
class Measured:
    """Results, what was not measured, and what else is to be said (clips refused or left out). `kept`: the values of
    single clips, which go into files of their own."""

    results: list[Result] = field(default_factory=list)
    omitted: list[Omission] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list, compare=False, repr=False)

    def __add__(self, other: "Measured") -> "Measured":
        notes = [*self.notes, *(note for note in other.notes if note not in self.notes)]
        return Measured(self.results + other.results, self.omitted + other.omitted, notes, self.kept + other.kept)


def result_of(found: Interval, name: str, unit: str, dataset: str, step: int, **more: Any) -> Result:
    """An interval as a result; `more`: other fields of `Result`."""
    notes = "; ".join(filter(None, (found.note, more.pop("note", ""))))
    place = (found.value, found.low, found.high, found.clips, found.videos)
    return Result(name, *place, unit, dataset, step, note=notes, **more)


def summarize(
    figures: Sequence[Figure[T]],
    values: T,
    dataset: str,
    step: int,
    resamples: int,
    seed: int,
    note: str = "",
    evaluation: str = "",
) -> Measured:
    """Every figure as a result, or as an omission with the reason of what it lacks."""
    measured = Measured()
    groups = list(values.groups)
    for figure in figures:
        found = figure.of(values)
        reason = next((value.reason for value in found if isinstance(value, Missing)), "")
        arrays = [np.asarray(value, dtype=np.float64) for value in found if isinstance(value, np.ndarray)]
        if not reason:
            try:
                made = interval(figure.statistic, arrays, groups, resamples, seed, figure.positive)
            except LawmError as error:
                reason = str(error)
        if reason:
            measured.omitted.append(Omission(figure.name, reason, dataset))
            continue
        said: dict[str, Any] = {"control": figure.control, "better": figure.better, "one": figure.one}
        said |= {"checked_by": figure.checked_by, "note": note, "evaluation": evaluation}
        measured.results.append(result_of(made, figure.name, figure.unit, dataset, step, seed=seed, **said))
    return measured


# ---------------------------------------------------------------- as JSON
FORMAT = 2


def to_json(measured: Measured) -> dict[str, Any]:
    """Plain data of a results file."""
    results, omitted = map(dataclasses.asdict, measured.results), map(dataclasses.asdict, measured.omitted)
    return {"format": FORMAT, "results": list(results), "omitted": list(omitted), "notes": list(measured.notes)}


def from_json(data: Any, where: str) -> Measured:
    """What `to_json` made. Raises LawmError for anything else, and for results of before videos were resampled."""
    if isinstance(data, list) and data and isinstance(data[0], dict) and {"name", "low", "n"} <= data[0].keys():
        raise LawmError(f"{where}: its intervals are over clips, as an older lawm made them; measure again")
    try:
        if data["format"] != FORMAT:
            raise LawmError(f"{where}: results of format {data['format']}, this lawm reads {FORMAT}")
        results, omitted = [Result(**row) for row in data["results"]], [Omission(**row) for row in data["omitted"]]
        return Measured(results, omitted, [str(note) for note in data["notes"]])
    except (KeyError, TypeError, ValueError) as error:
        raise LawmError(f"{where}: not a results file ({error})") from error
