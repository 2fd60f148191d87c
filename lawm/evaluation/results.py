"""Evaluations: each turns clips into per-clip numbers, and per-clip numbers into results with intervals.

An evaluation is a function (model, batch) -> {name: values per clip, float64 [B]}; that part runs in
parallel. `summarize` then makes means, ratios of means and 95 % bootstrap intervals over clips.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Result:
    """One figure: a value with its 95 % interval over n clips or episodes."""

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    dataset: str
    step: int
    control: str = ""
    seed: int = 0


PerClip = dict[str, np.ndarray]


def interval(
    statistic: Callable[..., float], arrays: list[np.ndarray], resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """(value, low, high): a statistic of equally long arrays and its 95 % percentile interval.

    Clips are resampled together (paired bootstrap). Not-a-number values are left out of a clip's row.
    """
    keep = np.all([np.isfinite(a) for a in arrays], axis=0)
    arrays = [a[keep] for a in arrays]
    n = len(arrays[0])
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    value = statistic(*arrays)
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, n, size=(resamples, n))
    draws = np.array([statistic(*[a[p] for a in arrays]) for p in picks])
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(value), float(low), float(high)


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """Ratio of means (not mean of ratios: a still clip would dominate that)."""
    bottom = below.mean()
    return float(above.mean() / bottom) if bottom > 0 else float("nan")


@dataclass(frozen=True)
class Figure:
    """How a result comes from per-clip values: the mean of one, or the ratio of two means."""

    name: str
    above: str
    below: str | None = None
    unit: str = "L1"
    control: str = ""


def summarize(
    figures: list[Figure], values: PerClip, dataset: str, step: int, resamples: int, seed: int
) -> list[Result]:
    """Results of the figures whose values are there."""
    results = []
    for figure in figures:
        names = [figure.above] + ([figure.below] if figure.below else [])
        if any(name not in values for name in names):
            continue
        arrays = [np.asarray(values[name], dtype=np.float64) for name in names]
        value, low, high = interval(ratio if figure.below else mean, arrays, resamples, seed)
        n = int(np.all([np.isfinite(a) for a in arrays], axis=0).sum())
        unit = "ratio" if figure.below else figure.unit
        results.append(Result(figure.name, value, low, high, n, unit, dataset, step, figure.control, seed))
    return results


def derange(n: int, seed: int) -> np.ndarray:
    """A permutation of n >= 2 without fixed points: whose latents a clip gets in the shuffled control."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(n)
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner
