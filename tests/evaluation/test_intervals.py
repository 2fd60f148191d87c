"""Intervals on data whose truth is known: they cover it as often as they say, and by videos."""

import numpy as np
import pytest
from scipy import stats

from lawm.config import LawmError
from lawm.evaluation import interval, mean, ratio
from lawm.evaluation.intervals import share_explained


def names(videos: int, clips: int) -> list[str]:
    return [f"v{v}" for v in range(videos) for _ in range(clips)]


def coverage(videos: int, clips: int, trials: int, by: str) -> float:
    """Of the mean of normal data, half of whose variance is between videos."""
    rng, hits = np.random.default_rng(0), 0
    groups = names(videos, clips) if by == "videos" else names(videos * clips, 1)
    for _ in range(trials):
        x = 3 + (rng.normal(size=(videos, 1)) + rng.normal(size=(videos, clips))) / np.sqrt(2)
        found = interval(mean, [x.ravel()], groups, 200)
        assert found.low is not None and found.high is not None
        hits += found.low <= 3 <= found.high
    return hits / trials


@pytest.mark.parametrize(("videos", "clips"), [(3, 8), (16, 16), (40, 4)])
def test_intervals_cover_the_truth_as_often_as_they_say(videos: int, clips: int) -> None:
    assert 0.92 <= coverage(videos, clips, 200, "videos") <= 0.985


def test_intervals_over_clips_of_few_videos_would_not() -> None:
    assert coverage(16, 16, 60, "clips") < 0.7


def test_of_balanced_videos_it_is_students_interval_of_their_means() -> None:
    """A known answer: with equally many clips, what is independent are the means of the videos."""
    x = np.random.default_rng(1).normal(size=(9, 5)) + np.arange(9)[:, None]
    found = interval(mean, [x.ravel()], names(9, 5), 20_000)
    low, high = stats.t.interval(0.95, 8, x.mean(1).mean(), stats.sem(x.mean(1)))
    assert (found.value, found.clips, found.videos) == (pytest.approx(x.mean()), 45, 9)
    assert found.low == pytest.approx(low, abs=0.05) and found.high == pytest.approx(high, abs=0.05)


def test_order_and_names_of_videos_do_not_matter() -> None:
    x = np.random.default_rng(2).normal(size=24)
    groups = names(6, 4)
    order = np.random.default_rng(3).permutation(24)
    one, two = interval(mean, [x], groups, 300), interval(mean, [x[order]], [groups[i] for i in order], 300)
    assert (two.low, two.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_ratios_pair_clips_and_stay_positive() -> None:
    """Numerator and denominator vary together: the paired interval is narrow, an unpaired one would not be."""
    base = np.random.default_rng(0).lognormal(0, 1, 100)
    found = interval(ratio, [2 * base, base], names(100, 1), 300, positive=True)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert ratio(np.array([1.0, 3.0]), np.array([0.1, 3.9])) == pytest.approx(1.0)  # of means, not mean of ratios
    assert np.isnan(ratio(np.ones(3), np.zeros(3)))
    assert share_explained(np.array([1.0, 2.0]), np.array([4.0, 2.0])) == pytest.approx(0.5)
    wild = np.array([0.01, 5.0, 0.02])
    found = interval(mean, [wild], names(3, 1), 300, positive=True)
    assert found.low is not None and 0 < found.low < found.value


def test_one_video_has_no_interval_and_says_so() -> None:
    found = interval(mean, [np.arange(5.0)], ["a"] * 5, 100)
    assert (found.value, found.low, found.high, found.clips, found.videos) == (2.0, None, None, 5, 1)
    assert found.note == "no interval: one video, and an interval needs two or more"


def test_what_is_not_finite_is_left_out_and_said() -> None:
    x = np.array([1.0, np.nan, 3.0, 5.0])
    found = interval(mean, [x, np.array([0.0, 0.0, np.inf, 0.0])][:1], ["a", "b", "c", "c"], 100)
    assert (found.value, found.clips, found.videos) == (3.0, 3, 2)
    assert found.note == "1 of 4 clips left out: no finite value"
    rows = np.array([[[1.0, 2.0]], [[np.nan, 2.0]], [[3.0, 4.0]]])
    assert interval(lambda a: float(a.mean()), [rows], ["a", "b", "c"], 100).clips == 2
    with pytest.raises(LawmError, match="none of 2 clips has a finite value"):
        interval(mean, [np.full(2, np.nan)], ["a", "b"], 100)
    with pytest.raises(ValueError, match="one number of clips"):
        interval(mean, [np.ones(3)], ["a", "b"], 100)
