"""95 % intervals that resample videos: clips of one video are not independent, so the video is what is drawn.

Cluster bootstrap: whole videos are drawn with replacement, the figure is made anew of their clips, and its standard
error s over the draws gives value +- t s sqrt(V / (V - 1)), t the 97.5 % quantile of Student's law with V - 1 degrees
of freedom, V videos. Percentiles of the same draws are too narrow for few videos, by sqrt((V - 1) / V) and by the
normal law's quantile for Student's (Hesterberg 2015, section 4; Cameron, Gelbach & Miller 2008, sections III and IV):
at 16 videos they cover 91 % (`benchmarks.intervals`). Figures that are positive by nature (errors and their ratios) get
theirs on a log scale, which keeps them positive and serves skewed ones better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lawm.config import LawmError

Statistic = Callable[..., float]
"""Equally long arrays, one entry a clip -> a figure."""


@dataclass(frozen=True)
class Interval:
    """A figure of `clips` clips of `videos` videos; without `low` and `high` where `note` says why."""

    value: float
    low: float | None
    high: float | None
    clips: int
    videos: int
    note: str = ""


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """Ratio of means (not mean of ratios: a still clip would dominate that)."""
    bottom = below.mean()
    return float(above.mean() / bottom) if bottom > 0 else float("nan")


def share_explained(error: np.ndarray, without: np.ndarray) -> float:
    """1 - mean error over the mean error without what is judged: 0 explains nothing, 1 everything."""
    return 1.0 - ratio(error, without)


def interval(
    statistic: Statistic,
    arrays: Sequence[np.ndarray],
    groups: Sequence[str],
    resamples: int,
    seed: int = 0,
    positive: bool = False,
) -> Interval:
    """A statistic of equally long arrays (one entry a clip) and its 95 % interval over the clips' `groups` (videos;
    for cameras of one episode the episode). Entries of a clip are drawn together (paired).

    Clips without a finite value are left out, and said. `positive`: the figure is an error or a ratio of errors.
    Raises LawmError where nothing is left.
    """
    lengths = {len(groups), *(len(a) for a in arrays)}
    if len(lengths) > 1:
        raise ValueError(f"arrays and groups of {sorted(lengths)} entries; one number of clips was expected")
    keep = np.all([np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in arrays], axis=0)
    if not keep.any():
        raise LawmError(f"none of {len(groups)} clips has a finite value; look at the training's losses")
    arrays = [a[keep] for a in arrays]
    left_out = int((~keep).sum())
    note = f"{left_out} of {len(groups)} clips left out: no finite value" if left_out else ""
    _, which = np.unique(np.asarray(groups, dtype=object)[keep].astype(str), return_inverse=True)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    clips, videos = len(which), len(members)
    value = float(statistic(*arrays))

    def without(why: str) -> Interval:
        return Interval(value, None, None, clips, videos, "; ".join(filter(None, (note, f"no interval: {why}"))))

    if videos < 2:
        return without("one video, and an interval needs two or more")
    picks = np.random.default_rng(seed).integers(0, videos, size=(resamples, videos))
    if len({len(rows) for rows in members}) == 1:
        rows = (picked.ravel() for picked in np.stack(members)[picks])
    else:
        rows = (np.concatenate([members[v] for v in pick]) for pick in picks)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.array([statistic(*[a[r] for a in arrays]) for r in rows])
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(draws) < resamples / 2:
        return without("the figure is not finite on most draws of videos")
    widen = student(videos - 1) * np.sqrt(videos / (videos - 1))
    if positive and value > 0 and (draws > 0).all():
        half = float(np.exp(widen * np.log(draws).std()))
        return Interval(value, value / half, value * half, clips, videos, note)
    half = float(widen * draws.std())
    return Interval(value, value - half, value + half, clips, videos, note)


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t with that many degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
