"""Which clip an episode is planned on, where some cannot be read."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_runs import SmallSet, tiny_with

from lawm.cluster.plan import every_episode
from lawm.config import LawmError, override
from lawm.data import BadClip, ClipReader, shown_by
from lawm.planning import Episodes, Task, Used, episode_config, remarks
from lawm.training import fit_local

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


def test_a_planner_hands_back_what_it_cannot_read(small_set: SmallSet, tmp_path: Path) -> None:
    """A held-out video that has been cut short since it was indexed."""
    config = tiny_with(train__steps=1, controller__train__steps=1, data__index=small_set.index)
    config = override(config, "data.labels", small_set.labels)
    model, controller = str(tmp_path / "model"), str(tmp_path / "controller")
    fit_local(config, "latent_action", model)
    fit_local(config, "controller", controller, model)
    table = pq.read_table(small_set.index)
    shutil.copytree(small_set.folder, tmp_path / "videos")
    moved = [str(tmp_path / "videos" / Path(source).name) for source in table["source"].to_pylist()]
    table = table.set_column(table.column_names.index("source"), "source", [moved])
    pq.write_table(table, tmp_path / "index.parquet")
    config = override(config, "data.index", str(tmp_path / "index.parquet"))
    clips = episode_config(config)
    held_out = ClipReader(clips, "val", labelled=True)
    keys = [held_out.sample(p).key for p in range(len(held_out.plan))]
    broken = tmp_path / "videos" / keys[0]
    broken.write_bytes(broken.read_bytes()[:200])
    shown = shown_by(ClipReader(clips, "train", labelled=True), config.plan.percentiles)
    planner = Episodes(config, Used(model, controller), shown)
    (refused,) = planner.run([Task(0, 0)])
    assert isinstance(refused, BadClip) and refused.key == keys[0]
    spare = next(p for p, key in enumerate(keys) if key != keys[0])
    (row,) = planner.run([Task(0, spare, refused.message)])
    assert not isinstance(row, BadClip)
    assert (row["episode"], row["position"], row["key"]) == (0, spare, keys[spare])
    assert any("1 of 1 episodes are of other clips" in line for line in remarks([row], {}, (0.5, 99.5)))
