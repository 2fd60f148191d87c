"""Whether videos belong to a training's data: by what identifies them, and not by a name that every data set has."""

import numpy as np
import pytest

from lawm.data import Index, rows_to_table
from lawm.evaluation.standing import _Videos
from lawm.video import VideoRef
from lawm.video.ref import empty_row


def lerobot(camera: str, seconds: list[float], first: int = 0) -> Index:
    """Episodes of a LeRobot set, as it is indexed: `<camera>/episode_000042`, of the group `episode_000042`."""
    names = [f"episode_{first + i:06d}" for i in range(len(seconds))]
    refs = [VideoRef(f"/x/{camera}.mp4", 0, 100, f"{camera}/{name}", group=name) for name in names]
    rows = [empty_row(ref) | {"duration_s": s} for ref, s in zip(refs, seconds, strict=True)]
    return Index(rows_to_table(rows))


LASTING = np.random.default_rng(0).uniform(5, 8, (2, 40)).tolist()


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_episodes_of_another_set_are_other_data_whatever_they_are_called(camera: str) -> None:
    """Some of 40 episodes last about as long in both by chance."""
    mine, other = LASTING
    assert any(abs(a - b) <= 0.15 for a, b in zip(mine, other, strict=True))
    assert _Videos(lerobot("top", mine)).shared_with(lerobot(camera, other)) == set()


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_episodes_of_the_same_set_are_known_by_any_camera(camera: str) -> None:
    mine = LASTING[0]
    there = [seconds + 0.04 for seconds in mine[10:]]
    found = _Videos(lerobot("top", mine)).shared_with(lerobot(camera, there, first=10))
    assert found == {f"episode_{i:06d}" for i in range(10, 40)}


def test_videos_without_an_episode_are_known_by_key_and_duration() -> None:
    def plain(seconds: list[float]) -> Index:
        rows = [empty_row(VideoRef("/x", 0, 1, f"{i}.mp4")) | {"duration_s": s} for i, s in enumerate(seconds)]
        return Index(rows_to_table(rows))

    assert _Videos(plain([3.0, 4.0])).shared_with(plain([3.04, 5.0])) == {"0.mp4"}
