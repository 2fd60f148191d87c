"""Differences between runs: paired where the clips are the same, and what their intervals cover."""

from dataclasses import dataclass

import numpy as np
import pytest

from lawm.evaluation import Figure, Kept, Missing, PerClip, Said, compare, mean
from lawm.evaluation.comparison import independent
from lawm.evaluation.intervals import Interval
from lawm.evaluation.results import Values, ratio_figure


@dataclass(frozen=True)
class Errors(PerClip):
    error: np.ndarray
    control: Values


SAYS = Said(
    Errors,
    lambda values, names: (
        Figure("error", lambda v: (v.error,), mean, better="lower"),
        ratio_figure("ratio", lambda v: (v.error, v.control), better="lower"),
        Figure("control", lambda v: (v.control,), control="control"),
    ),
)


def made(
    error: np.ndarray, clips: np.ndarray, per_video: int = 4, control: Values | None = None, step: int = 3
) -> Kept:
    groups = np.array([f"v{i // per_video}" for i in clips], dtype=object)
    values = Errors(groups, error, np.full(len(clips), 2.0) if control is None else control)
    return Kept("capacity", "held-out", 3, tuple(f"v{i // 4}@{i}" for i in clips), values)


def hard_clips(generator: np.random.Generator, videos: int = 12, each: int = 4) -> np.ndarray:
    """Errors that vary by tenfold between videos, and little between models."""
    return np.repeat(generator.lognormal(0.0, 1.0, videos), each)


def test_what_makes_a_clip_hard_for_both_cancels_where_they_are_paired() -> None:
    generator = np.random.default_rng(0)
    hard, clips = hard_clips(generator), np.arange(48)
    first, second = made(hard + 0.1, clips), made(hard + generator.normal(0, 0.01, 48), clips)
    found = {d.figure: d for d in compare(first, second, SAYS, 400)[0]}
    one = found["error"]
    assert one.paired and (one.clips, one.videos) == (48, 12)
    assert one.value == pytest.approx(one.first - one.second) == pytest.approx(0.1, abs=0.01)
    assert one.low is not None and one.high is not None and 0.08 < one.low < one.high < 0.12
    assert one.verdict == "second is better" and found["control"].verdict == "cannot be told apart"
    shuffled = generator.permutation(48)  # whatever the order of the clips
    turned = Kept("capacity", "held-out", 3, tuple(second.clips[i] for i in shuffled), SAYS.values(
        second.values.groups[shuffled], second.values.error[shuffled], np.full(48, 2.0)  # type: ignore[attr-defined]
    ))  # fmt: skip
    assert compare(first, turned, SAYS, 400)[0] == compare(first, second, SAYS, 400)[0]
    # The same numbers on other clips cannot be paired, and say next to nothing.
    others, omitted = compare(first, made(np.asarray(second.values.error), clips + 1000), SAYS, 400)  # type: ignore[attr-defined]
    apart = others[0]
    assert not apart.paired and "not paired" in apart.note and not omitted
    assert apart.low is not None and apart.high is not None and apart.high - apart.low > 10 * (one.high - one.low)
    assert apart.verdict == "cannot be told apart"


def test_on_clips_that_only_one_has_nothing_is_compared() -> None:
    generator = np.random.default_rng(1)
    hard = hard_clips(generator)
    both = compare(made(hard, np.arange(48)), made(hard[:40] * 2, np.arange(40)), SAYS)[0][0]
    assert both.paired and both.clips == 40 and both.first == pytest.approx(hard[:40].mean())
    assert "on the 40 clips that both have; 8 others left out" in both.note


def test_values_that_are_missing_or_not_finite() -> None:
    error, clips = np.arange(1.0, 9.0), np.arange(8)
    broken = np.where(clips == 0, np.nan, error * 2)
    found, omitted = compare(made(error, clips), made(broken, clips, control=Missing("no twin")), SAYS, 100)
    assert {o.name: o.reason for o in omitted} == {"ratio": "no twin", "control": "no twin"}
    assert (found[0].clips, found[0].first, found[0].second) == (7, error[1:].mean(), error[1:].mean() * 2)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_differences_cover_the_truth(paired: bool) -> None:
    """The truth is 0.3, by construction; 10 videos of 4 clips, half of the variance between videos."""
    covered, trials = 0, 120
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        shared = np.repeat(generator.normal(0, 1, 10), 4)
        own = np.repeat(generator.normal(0, 1, 10), 4)
        first = made(5.3 + shared + generator.normal(0, 1, 40), np.arange(40))
        second = made(
            5.0 + (shared if paired else own) + generator.normal(0, 1, 40), np.arange(40) + (0 if paired else 99)
        )
        one = compare(first, second, SAYS, 200, trial)[0][0]
        assert one.paired == paired and one.low is not None and one.high is not None
        covered += one.low <= 0.3 <= one.high
    assert 0.90 <= covered / trials <= 0.99


def test_independent_variances_are_added() -> None:
    one = Interval(5.0, 4.0, 6.0, 40, 10)
    both = independent(one, Interval(3.0, 2.0, 4.0, 40, 10))
    # Equal standard errors s give sqrt(2) s, with twice the degrees of freedom (Welch).
    from scipy.stats import t

    half = (1 / t.ppf(0.975, 9)) * np.sqrt(2) * t.ppf(0.975, 18)
    assert both.value == 2.0 and both.high == pytest.approx(2.0 + half)
    assert independent(one, Interval(3.0, None, None, 4, 1)).low is None
