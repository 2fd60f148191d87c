"""The plan: every clip once an epoch, the same for everyone, and resumable to the clip."""

import time

import numpy as np
import pytest

from lawm.config import ClipSpec, LawmError
from lawm.data import Cursor, Index, rows_to_table
from lawm.data.sampling import SamplingPlan, _mix, _permute
from lawm.video import VideoRef, empty_row

CLIP = ClipSpec(frames=16, fps=4.0)


def index_of(durations: list[float], rates: list[float] | None = None, reasons: dict[int, str] | None = None) -> Index:
    rows = []
    for n, duration in enumerate(durations):
        row = empty_row(VideoRef("/v", 0, 1, f"v{n}"), (reasons or {}).get(n))
        rows.append(row | {"duration_s": duration, "rate": (rates or [30.0] * len(durations))[n]})
    return Index(rows_to_table(rows))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection_for_every_key(n: int) -> None:
    for key in range(5):
        out = _permute(np.arange(n), n, _mix(np.full(n, key, np.uint64)))
        assert sorted(out) == list(range(n))
    if n >= 64:
        one, two = (_permute(np.arange(n), n, _mix(np.full(n, key, np.uint64))) for key in (1, 2))
        assert np.mean(one == two) < 0.1
        assert abs(np.corrcoef(np.arange(n), one)[0, 1]) < 0.3


def test_permutation_is_close_to_uniform() -> None:
    """Where the first of 50 items goes over 4000 keys: chi-square with 49 degrees of freedom, p > 1e-4."""
    keys = _mix(np.arange(4000, dtype=np.uint64))
    for place in (0, 17, 49):
        counts = np.bincount(_permute(np.full(4000, place), 50, keys), minlength=50)
        assert np.sum((counts - 80) ** 2 / 80) < 97


def test_every_clip_once_an_epoch() -> None:
    plan = SamplingPlan(index_of([5.0, 30.0, 10.0, 4.0, 61.7]), CLIP, seed=3)
    n = len(plan)
    assert n == 1 + 7 + 2 + 1 + 15  # as many as fit end to end, at 4 s each, the last one's end included
    rows = plan.rows(np.arange(3 * n))
    seen = []
    for epoch in range(3):
        part = slice(epoch * n, (epoch + 1) * n)
        assert np.bincount(rows.video[part]).tolist() == [1, 7, 2, 1, 15]
        clips = sorted(zip(rows.video[part].tolist(), rows.start_s[part].tolist(), strict=True))
        assert len(set(clips)) == n
        seen.append((clips, rows.video[part].tolist()))
    assert seen[0][1] != seen[1][1]  # another order
    assert seen[0][0] != seen[1][0]  # other starts


def test_starts_are_on_the_grid_inside_the_video_and_jittered() -> None:
    rng = np.random.default_rng(0)
    durations = rng.uniform(3.0, 40.0, 200).tolist()
    rates = rng.choice([4.0, 5.0, 15.0, 29.97, 60.0], 200).tolist()
    plan = SamplingPlan(index_of(durations, rates), CLIP)
    rows = plan.rows(np.arange(20 * len(plan)))
    assert np.all(rows.start_s >= 0)
    assert np.allclose(rows.start_s * 4, np.round(rows.start_s * 4))
    last_wanted = rows.start_s + CLIP.seconds
    last_frame = (np.array(durations) - 1 / np.array(rates))[rows.video]
    assert np.all(last_wanted - last_frame < np.minimum(1 / np.array(rates)[rows.video], 0.125))
    long = int(np.argmax(durations))
    starts = rows.start_s[rows.video == long]
    assert len(set(starts.tolist())) > 0.6 * (durations[long] - CLIP.seconds) * 4  # the epochs cover the video
    assert starts.min() < 1.0
    assert starts.max() > durations[long] - CLIP.seconds - 1.5


def test_too_short_too_slow_and_unusable_are_left_out_and_counted() -> None:
    index = index_of([3.0, 10.0, 10.0, 10.0], [30.0, 2.0, 30.0, 30.0], {3: "corrupt"})
    plan = SamplingPlan(index, CLIP)
    assert (plan.too_short, plan.too_slow, plan.unusable, plan.videos, len(plan)) == (1, 1, 1, 1, 2)
    assert set(plan.rows(range(50)).video.tolist()) == {2}
    with pytest.raises(LawmError, match="of 1 videos 0 cannot be used, 1 are too short"):
        SamplingPlan(index_of([3.0]), CLIP)
    with pytest.raises(LawmError, match="no clip"):
        SamplingPlan(index_of([]), CLIP)
    with pytest.raises(LawmError, match="clips_per_video = 0"):
        SamplingPlan(index_of([9.0]), CLIP, 0)


def test_a_video_of_exactly_one_clip_is_used() -> None:
    assert len(SamplingPlan(index_of([16 / 4], [4.0]), CLIP)) == 1  # 16 frames at 4 per second
    assert len(SamplingPlan(index_of([113 / 30], [30.0]), CLIP)) == 1  # the frame at 3.733 s is on display at 3.75 s
    with pytest.raises(LawmError, match="too short"):
        SamplingPlan(index_of([15 / 4], [4.0]), CLIP)


def test_clips_per_video() -> None:
    plan = SamplingPlan(index_of([5.0, 100.0]), CLIP, clips_per_video=3)
    assert len(plan) == 6
    assert np.bincount(plan.rows(np.arange(6)).video).tolist() == [3, 3]


def test_any_position_on_its_own_is_the_same() -> None:
    plan = SamplingPlan(index_of([5.0, 30.0, 10.0]), CLIP, seed=1)
    everything = plan.rows(np.arange(100))
    order = np.random.default_rng(0).permutation(100)
    again = SamplingPlan(index_of([5.0, 30.0, 10.0]), CLIP, seed=1).rows(order)
    for one, two in zip(everything, again, strict=True):
        assert np.array_equal(one[order], two)
    single = plan.rows([42])
    assert (single.video[0], single.start_s[0]) == (everything.video[42], everything.start_s[42])
    other = SamplingPlan(index_of([5.0, 30.0, 10.0]), CLIP, seed=2)
    assert other.fingerprint() != plan.fingerprint()
    assert not np.array_equal(other.rows(np.arange(100)).video, everything.video)
    assert len(set(everything.seed.tolist())) == 100
    assert len(plan.rows(np.array([], dtype=np.int64))) == 0
    with pytest.raises(ValueError, match="positions start at 0"):
        plan.rows([-1])


def test_a_million_rows_in_two_seconds() -> None:
    plan = SamplingPlan(index_of([5.0 + n % 60 for n in range(3000)]), CLIP)
    began = time.process_time()
    rows = plan.rows(np.arange(1_000_000))
    assert time.process_time() - began < 2.0
    assert len(rows) == 1_000_000


def test_far_positions() -> None:
    plan = SamplingPlan(index_of([5.0, 30.0]), CLIP, seed=-7)
    rows = plan.rows(np.array([10**15, 2**62]))
    assert np.all(rows.start_s >= 0)


# ---------------------------------------------------------------- cursors
def test_cursor_knows_what_was_consumed() -> None:
    cursor = Cursor()
    assert len(cursor) == 0
    cursor = cursor.add([0, 1, 5, 3])
    assert cursor == Cursor(2, (3, 5))
    assert len(cursor) == 4
    assert [p in cursor for p in range(7)] == [True, True, False, True, False, True, False]
    assert cursor.remaining(4).tolist() == [2, 4, 6, 7]
    assert cursor.add(np.array([2])) == Cursor(4, (5,))
    assert cursor.add([1, 3]) == cursor  # nothing counts twice
    assert cursor.remaining(0).tolist() == []
    assert Cursor.from_json(cursor.to_json()) == cursor


def test_resuming_anywhere_sees_each_remaining_clip_once() -> None:
    """Workers consume out of order and stop anywhere: before and after together make whole epochs."""
    plan = SamplingPlan(index_of([5.0, 30.0, 10.0, 25.0]), CLIP)
    n = 3 * len(plan)
    rng = np.random.default_rng(0)
    for _ in range(20):
        cursor = Cursor()
        consumed: list[int] = []
        while len(consumed) < n:
            window = cursor.remaining(8)
            window = window[window < n]
            taken = rng.permutation(window)[: rng.integers(1, 6)]
            consumed += taken.tolist()
            cursor = Cursor.from_json(cursor.add(taken).to_json())  # a stop and a resume
        assert sorted(consumed) == list(range(n))
        assert cursor == Cursor(n, ())


NO_CURSORS = ["", "[]", "{}", '{"low": "x", "ahead": []}', '{"low": 5, "ahead": [3]}', '{"low": -1, "ahead": []}']


@pytest.mark.parametrize("text", NO_CURSORS)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(LawmError, match="not a cursor"):
        Cursor.from_json(text)


def test_aligned_clips_start_at_multiples_of_their_length() -> None:
    clip = CLIP.model_copy(update={"placement": "aligned"})
    index = index_of([4.0, 5.0, 30.0, 3.0])
    plan = SamplingPlan(index, clip)
    assert len(plan) == 1 + 1 + 7 and plan.too_short == 1
    n = len(plan)
    rows = plan.rows(np.arange(2 * n))
    for epoch in (rows.start_s[:n], rows.start_s[n:]):
        assert sorted(epoch) == [0, 0, *np.arange(7) * 4.0]  # the same clips each epoch
    assert rows.video[:n].tolist() != rows.video[n:].tolist()  # in another order
    some = SamplingPlan(index, clip, clips_per_video=2)
    starts = some.rows(np.arange(200)).start_s
    assert np.all(starts % 4 == 0) and starts.max() == 24
    assert plan.fingerprint() != SamplingPlan(index, CLIP).fingerprint()
