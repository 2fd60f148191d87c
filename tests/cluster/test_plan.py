"""Which clip an episode is planned on, where some cannot be read."""

from collections.abc import Sequence
from typing import Any

import pytest

from lawm.cluster.plan import Task, every_episode
from lawm.config import LawmError

BAD = {1, 3, 6}


def clips_of(rows: dict[int, Any], total: int, clips: int, bad: set[int], stop_after: int | None = None) -> Any:
    """Runs episodes into `rows`; killed after so many clips have been planned."""
    left = [10**6 if stop_after is None else stop_after]

    def run(tasks: Sequence[Task]) -> dict[int, str]:
        refused = {}
        for task in tasks:
            if task.position in bad:
                refused[task.episode] = f"clip {task.position} is corrupt"
                continue
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            rows[task.episode] = {"position": task.position, "refused": task.refused}
        return refused

    every_episode(total, clips, rows, run)
    return {e: row["position"] for e, row in sorted(rows.items())}


def test_a_clip_that_cannot_be_read_gives_way_to_one_that_no_other_episode_has() -> None:
    rows: dict[int, Any] = {}
    assert clips_of(rows, 5, 9, BAD) == {0: 0, 1: 5, 2: 2, 3: 7, 4: 4}  # 3 was given 6 first, which is bad too
    assert {e: row["refused"] for e, row in rows.items() if row["refused"]} == {
        1: "clip 1 is corrupt", 3: "clip 6 is corrupt",
    }  # fmt: skip


@pytest.mark.parametrize("planned", range(5))
def test_an_interruption_changes_no_clip(planned: int) -> None:
    rows: dict[int, Any] = {}
    with pytest.raises(KeyboardInterrupt):
        clips_of(rows, 5, 9, BAD, stop_after=planned)
    assert len(rows) == planned
    assert clips_of(rows, 5, 9, BAD) == {0: 0, 1: 5, 2: 2, 3: 7, 4: 4}


def test_more_episodes_later_share_no_clip_with_the_first() -> None:
    rows: dict[int, Any] = {}
    clips_of(rows, 5, 12, BAD)
    more = clips_of(rows, 9, 12, BAD)
    assert len(set(more.values())) == 9 and not BAD & set(more.values())
    assert rows[5]["refused"] == "its clip is episode 1's"


def test_where_no_clip_is_left_the_others_are_planned_first() -> None:
    rows: dict[int, Any] = {}
    with pytest.raises(LawmError, match=r"^1 of 5 episodes .* episode 3: clip 3 is corrupt\. Set plan.episodes=4$"):
        clips_of(rows, 5, 6, {1, 3})
    assert sorted(rows) == [0, 1, 2, 4]
    rows.pop(4)
    assert clips_of({e: r for e, r in rows.items() if e < 4}, 4, 6, {1, 3}) == {0: 0, 1: 5, 2: 2, 3: 4}
