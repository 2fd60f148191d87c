"""Windows of videos, and the parts of the table of latents: every transition once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lawm.config import LawmError
from lawm.data import Cut, Index, Inferred, Taken, inferred_rows, plan_windows, refused_rows, rows_to_table
from lawm.data.latents import TRANSITIONS_SCHEMA, done_windows, part_uri, read_parts, write_part
from lawm.video import VideoRef, empty_row


def index(*videos: tuple[float, float] | str) -> Index:
    """Videos of so many seconds at so many frames a second; of a string, refused for that reason."""
    rows = []
    for i, video in enumerate(videos):
        row = empty_row(VideoRef("/v", i, 1, f"{i}.mp4"), video if isinstance(video, str) else None)
        rows.append(row if isinstance(video, str) else row | {"duration_s": video[0], "rate": video[1]})
    return Index(rows_to_table(rows))


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize(("states", "past"), [(2, 0), (8, 0), (8, 3), (8, 6), (65, 0), (5, 1)])
def test_every_transition_is_taken_once_with_the_past_that_is_asked_for(states: int, past: int, each: int) -> None:
    cut = Cut(4.0, states, past, each)
    lengths = [*range(2, 40), 64, 65, 66, 129, 300]
    plan = plan_windows(index(*((each * n / 4, 4.0) for n in lengths)), cut)
    assert plan.states.tolist() == lengths
    taken: dict[int, list[int]] = {row: [] for row in range(len(lengths))}
    for number in range(len(plan)):
        window = plan.window(number)
        assert window.number == number and 2 <= window.states <= states
        assert not past or window.states == min(states, lengths[window.row])
        assert window.begin >= 0 and window.begin + window.states <= lengths[window.row]
        for t in range(window.first, window.first + window.take):
            assert window.begin + min(past, t) <= t < window.begin + window.states - 1
            taken[window.row].append(t)
    assert taken == {row: list(range(n - 1)) for row, n in enumerate(lengths)}
    assert plan.transitions == sum(lengths) - len(lengths) == plan.taken(np.arange(len(plan)))
    assert len(plan) == sum(1 + max(0, -(-(n - states) // (states - 1 - past))) for n in lengths)


def test_rates_that_do_not_divide_and_videos_that_cannot_be_used() -> None:
    """25 pictures a second for 10 s hold 40 at 4 a second; 5 Hz is enough for 4; 3.9 Hz is not."""
    plan = plan_windows(index((10.0, 25.0), (2.0, 5.0), (9.0, 3.9), "corrupt: damaged", (0.3, 30.0)), Cut(4.0, 8, 3))
    assert plan.states.tolist() == [40, 8, 0, 0, 2]
    windows = [plan.window(number) for number in range(len(plan))]
    assert [w.row for w in windows] == [0] * 9 + [1, 2, 3, 4]
    assert windows[-3].reason == "too_slow: 3.9 frames a second, and the model's clips have 4"
    assert windows[-2].reason == "corrupt: damaged" and windows[-1].reason is None
    tubelets = plan_windows(index((0.7, 30.0)), Cut(4.0, 8, 3, 2))
    assert tubelets.window(0).reason == "too_short: 0.7 s, and two states take 0.75 s"


def test_windows_that_take_nothing() -> None:
    with pytest.raises(LawmError, match=r"windows of 8 states with 7 states of past take no transition; .* most 6"):
        Cut(4.0, 8, 7)


def rows(low: int, high: int) -> pa.Table:
    """A transition for each window, with its number as the latent."""
    cut = Cut(4.0, 2)
    tables = [
        inferred_rows(Taken("a.mp4", n, n, np.array([n, n + 1.0])), Inferred(np.full((1, 3), n, np.float32)), cut)
        for n in range(low, high)
    ]
    return pa.concat_tables(tables)


def test_parts_say_which_windows_are_done(tmp_path: Path) -> None:
    out = str(tmp_path)
    assert not done_windows(out, 9).any()
    write_part(out, 5, 7, rows(5, 7), {"step": 3})
    write_part(out, 0, 4, rows(0, 4), {"step": 3})
    assert done_windows(out, 9).tolist() == [True] * 4 + [False, True, True, False, False]
    found = pa.concat_tables(read_parts(out))
    assert found["transition"].to_pylist() == [0, 1, 2, 3, 5, 6] and found["z"].to_pylist()[-1] == [6.0] * 3
    assert found.schema.equals(TRANSITIONS_SCHEMA)
    write_part(out, 6, 9, rows(6, 9), {})
    with pytest.raises(LawmError, match="its windows are in another part too"):
        done_windows(out, 9)
    Path(part_uri(out, 6, 9)).rename(tmp_path / "transitions/mine.parquet")
    with pytest.raises(LawmError, match=r"mine\.parquet: no part of a table of latents"):
        done_windows(out, 9)


def test_rows_of_what_there_is_and_of_what_there_is_not() -> None:
    taken = Taken("a.mp4", 4, 2, np.array([2.0, np.nan, 3.0]))
    cut = Cut(4.0, 8, 1, 2)
    code, nats = np.array([7, 9]), np.array([0.5, 1.5])
    good = inferred_rows(taken, Inferred(np.ones((2, 3)), code, nats, np.full((2, 3), 0.1)), cut).to_pylist()
    assert [(r["transition"], r["time_s"], r["next_s"], r["window_s"], r["past"]) for r in good] == [
        (4, 2.0, 2.5, 1.0, 2), (5, 2.5, 3.0, 1.0, 3),
    ]  # fmt: skip
    assert [(r["shown_s"], r["next_shown_s"]) for r in good] == [(2.0, None), (None, 3.0)]
    assert [r["code"] for r in good] == [7, 9] and good[1]["nats"] == 1.5 and len(good[0]["spread"]) == 3
    bad = refused_rows(taken, cut, "corrupt: damaged").to_pylist()
    assert [(r["transition"], r["z"], r["reason"]) for r in bad] == [
        (4, None, "corrupt: damaged"),
        (5, None, "corrupt: damaged"),
    ]
    (whole,) = refused_rows(Taken("b.mp4", 0, 0, np.zeros(1)), cut, "too_short: 0 s").to_pylist()
    assert {name: value for name, value in whole.items() if value is not None} == {
        "key": "b.mp4",
        "reason": "too_short: 0 s",
    }
