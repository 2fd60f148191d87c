"""How often 95 % intervals hold the truth: resampling videos, and resampling clips, on made data whose truth is known.

Half of the variance is between videos. Means, ratios of means, and skewed errors (log-normal, between videos and
within); few videos and many, with equally many clips each and not. The figures of the last line are of the first
setting, 16 videos of 16 clips; `settings` has all.

    python -m benchmarks.intervals [--quick] [--trials N]
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._common import finish, parser
from lawm.evaluation import interval, mean, ratio

Arrays = list[np.ndarray]
SETTINGS = ((16, 16), (8, 32), (64, 4), (4, 16), (3, 16), (2, 16))
RESAMPLES = 500


def spread(rng: np.random.Generator, videos: int, clips: int) -> np.ndarray:
    """Standard normal [videos, clips], half of its variance between videos."""
    return (rng.normal(size=(videos, 1)) + rng.normal(size=(videos, clips))) / np.sqrt(2)


def normal(rng: np.random.Generator, videos: int, clips: int) -> tuple[Arrays, float]:
    return [3 + spread(rng, videos, clips)], 3.0


def skewed(rng: np.random.Generator, videos: int, clips: int, sigma: float = 0.7) -> tuple[Arrays, float]:
    """Errors: a few clips, and a few videos, have far larger ones than the others."""
    return [np.exp(sigma * spread(rng, videos, clips))], float(np.exp(sigma**2 / 2))


def ratios(rng: np.random.Generator, videos: int, clips: int) -> tuple[Arrays, float]:
    """Errors over errors of the same clips, which vary together."""
    below = np.exp(0.6 * spread(rng, videos, clips))
    return [below * np.exp(0.3 * spread(rng, videos, clips)), below], float(np.exp(0.3**2 / 2))


CASES: dict[str, tuple[Callable[..., tuple[Arrays, float]], Callable[..., float], bool]] = {
    "mean": (normal, mean, False),
    "skewed mean": (skewed, mean, True),
    "ratio": (ratios, ratio, True),
}
"""Data, statistic, and whether the figure is positive by nature."""


def covered(case: str, videos: int, clips: int, trials: int, uneven: bool = False) -> dict[str, Any]:
    """Share of trials whose interval holds the truth, by videos and by clips, and the median width of the former."""
    make, statistic, positive = CASES[case]
    rng = np.random.default_rng(0)
    hits = {"videos": 0, "clips": 0}
    widths = []
    for trial in range(trials):
        arrays, truth = make(rng, videos, clips)
        counts = rng.integers(1, clips + 1, (videos, 1)) if uneven else np.full((videos, 1), clips)
        kept = np.arange(clips)[None] < counts
        flat = [array[kept] for array in arrays]
        names = {"videos": np.nonzero(kept)[0].astype(str), "clips": np.arange(int(kept.sum())).astype(str)}
        for by, groups in names.items():
            found = interval(statistic, flat, groups.tolist(), RESAMPLES, trial, positive)
            assert found.low is not None and found.high is not None
            hits[by] += found.low <= truth <= found.high
            if by == "videos":
                widths.append(found.high - found.low)
    return {by: round(n / trials, 4) for by, n in hits.items()} | {"width": float(f"{np.median(widths):.3g}")}


def main(argv: list[str] | None = None) -> int:
    made: argparse.ArgumentParser = parser(__doc__)
    made.add_argument("--trials", type=int, default=0, metavar="N", help="of each setting (default: 2000)")
    args = made.parse_args(argv)
    trials = args.trials or (150 if args.quick else 2000)
    settings: dict[str, Any] = {}
    for case in CASES:
        for videos, clips in SETTINGS[:3] if args.quick else SETTINGS:
            for uneven in (False, True) if (videos, clips) == SETTINGS[0] else (False,):
                name = f"{case}, {videos} x {clips}" + (" at most" if uneven else "")
                settings[name] = covered(case, videos, clips, trials, uneven)
                print(f"{name:32s} {settings[name]}", flush=True)
    first = settings[f"mean, {SETTINGS[0][0]} x {SETTINGS[0][1]}"]
    figures = {
        "coverage_videos": first["videos"],
        "coverage_clips": first["clips"],
        "trials": trials,
        "settings": settings,
    }
    finish("intervals", figures, ("lawm", "numpy", "scipy"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
