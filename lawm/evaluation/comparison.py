"""Differences between two models, figure by figure, with intervals.

On the same clips the two are paired: a draw of videos takes the clips of both, so that what makes a clip hard for
either cancels (cluster bootstrap as in `intervals`, of the difference). On different clips each is drawn by itself, the
variances are added, and the degrees of freedom are Welch's (1947) for the two numbers of videos.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lawm.config import LawmError
from lawm.evaluation.intervals import Interval, interval, student
from lawm.evaluation.results import Better, Figure, Kept, Missing, Omission, PerClip
from lawm.evaluation.values_file import Said

LEAST_SHARED = 0.5
"""Share of the smaller set of clips that both have to have, for the two to be paired on them."""


@dataclass(frozen=True)
class Difference:
    """`first` - `second` of a figure, with its 95 % interval over the videos of the clips."""

    evaluation: str
    figure: str
    dataset: str
    first: float
    second: float
    value: float
    low: float | None
    high: float | None
    clips: int
    videos: int
    paired: bool
    unit: str
    better: Better = ""
    control: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Which of the two is better, where the interval tells; `differ` of figures of which neither way is."""
        if self.low is None or self.high is None:
            return ""
        if self.low <= 0 <= self.high:
            return "cannot be told apart"
        if not self.better:
            return "differ"
        return "first is better" if (self.value < 0) == (self.better == "lower") else "second is better"


def compare(
    first: Kept, second: Kept, said: Said, resamples: int = 1000, seed: int = 0
) -> tuple[list[Difference], list[Omission]]:
    """Every figure that both values give, and why the others have no difference."""
    rows = shared_clips(first, second)
    paired = rows is not None
    notes = [] if paired else ["other clips: not paired"]
    if rows is not None:
        left = len(first.clips) + len(second.clips) - 2 * len(rows[0])
        notes += [f"on the {len(rows[0])} clips that both have; {left} others left out"] if left else []
        first, second = (_only(kept, chosen) for kept, chosen in zip((first, second), rows, strict=True))
    figures = [{f.name: f for f in said.figures(kept.values, kept.names)} for kept in (first, second)]
    found: list[Difference] = []
    omitted = [
        Omission(name, "only one of the two has it", first.dataset) for name in figures[0].keys() ^ figures[1].keys()
    ]
    for name, figure in figures[0].items():
        if name not in figures[1]:
            continue
        try:
            arrays = [_arrays(f[name], kept.values) for f, kept in zip(figures, (first, second), strict=True)]
            groups = [list(first.values.groups), list(second.values.groups)]
            made, (one, other), more = _difference(figure.statistic, arrays, groups, paired, resamples, seed)
        except LawmError as error:
            omitted.append(Omission(name, str(error), first.dataset))
            continue
        note = "; ".join(filter(None, [*notes, *more, made.note]))
        place = (made.value, made.low, made.high, made.clips, made.videos, paired)
        said_too = (figure.unit, figure.better, figure.control, note)
        found.append(Difference(first.evaluation, name, first.dataset, one, other, *place, *said_too))
    return found, omitted


def shared_clips(first: Kept, second: Kept) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of the clips that both have, in the first's order; None where they share too few to be paired."""
    place = {clip: i for i, clip in enumerate(second.clips)}
    pairs = [(i, place[clip]) for i, clip in enumerate(first.clips) if clip in place]
    if len(pairs) < LEAST_SHARED * min(len(first.clips), len(second.clips)) or not pairs:
        return None
    mine, theirs = (np.array(rows) for rows in zip(*pairs, strict=True))
    return mine, theirs


def _only(kept: Kept, rows: np.ndarray) -> Kept:
    return replace(kept, clips=tuple(kept.clips[i] for i in rows), values=kept.values.at(rows))


def _arrays(figure: Figure[Any], values: PerClip) -> list[np.ndarray]:
    found = figure.of(values)
    for value in found:
        if isinstance(value, Missing):
            raise LawmError(value.reason)
    return [np.asarray(value, dtype=np.float64) for value in found]


def _difference(
    statistic: Callable[..., float],
    arrays: Sequence[list[np.ndarray]],
    groups: Sequence[list[str]],
    paired: bool,
    resamples: int,
    seed: int,
) -> tuple[Interval, tuple[float, float], list[str]]:
    """The difference, the two figures that it is of, and what else is to be said."""
    count = len(arrays[0])
    if paired:
        both = [*arrays[0], *arrays[1]]
        finite = np.all([np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in both], axis=0)
        made = interval(lambda *a: statistic(*a[:count]) - statistic(*a[count:]), both, groups[0], resamples, seed)
        one, other = (float(statistic(*(a[finite] for a in own))) for own in arrays)
        return made, (one, other), []
    each = [
        interval(statistic, own, g, resamples, seed + i) for i, (own, g) in enumerate(zip(arrays, groups, strict=True))
    ]
    notes = [one.note for one in each if one.note]
    return independent(*each), (each[0].value, each[1].value), notes


def independent(first: Interval, second: Interval) -> Interval:
    """The difference of two figures of different clips, from their symmetric intervals."""
    value, videos = first.value - second.value, min(first.videos, second.videos)
    clips = min(first.clips, second.clips)
    if first.low is None or second.low is None:
        return Interval(value, None, None, clips, videos)
    errors = [((one.value - float(one.low or 0.0)) / student(one.videos - 1)) ** 2 for one in (first, second)]
    below = sum(e**2 / (one.videos - 1) for e, one in zip(errors, (first, second), strict=True))
    freedom = sum(errors) ** 2 / below if below else 1.0
    half = student(freedom) * math.sqrt(sum(errors))
    return Interval(value, value - half, value + half, clips, videos)
