"""Labels (the table of true actions) and the PushT simulator."""

import io
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawm.config import ClipSpec, LawmError
from lawm.datasets import (
    AGENT_CLEAR,
    ARENA,
    LABELS_SCHEMA,
    WALL,
    Episode,
    Labels,
    PushTSimulator,
    PushTSpec,
    VideoLabels,
    encode_mp4,
    labels_table,
    read_labels,
    write_labels,
)

CLIP = ClipSpec(frames=4, fps=4)


def rows() -> list[VideoLabels]:
    """Two videos at 4 and 8 Hz; every action and state has a value of its own."""
    slow = VideoLabels("a.mp4", 4.0, np.arange(20.0).reshape(10, 2), np.arange(33.0).reshape(11, 3))
    fast = VideoLabels("b.mp4", 8.0, 100 + np.arange(24.0).reshape(12, 2), np.arange(39.0).reshape(13, 3))
    return [slow, fast]


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    uri = str(tmp_path / "labels.parquet")
    write_labels(rows(), uri)
    assert pq.read_schema(uri).equals(LABELS_SCHEMA)
    return read_labels(uri)


# ---------------------------------------------------------------- reading
def test_actions_of_a_clip(labels: Labels) -> None:
    assert labels.keys == ["a.mp4", "b.mp4"] and len(labels) == 2 and "a.mp4" in labels and "c.mp4" not in labels
    assert (labels.action_dim, labels.state_dim) == (2, 3)
    taken = labels.actions_for("a.mp4", 0.5, CLIP)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, [[4, 5], [6, 7], [8, 9]])  # actions 2, 3, 4: from 0.5 s on
    np.testing.assert_array_equal(labels.states_for("a.mp4", 0.5, CLIP), np.arange(6, 18).reshape(4, 3))
    np.testing.assert_array_equal(labels.of("b.mp4").actions, rows()[1].actions)


def test_sub_actions_are_summed(labels: Labels) -> None:
    np.testing.assert_array_equal(labels.actions_for("b.mp4", 0.25, CLIP), [[210, 212], [218, 220], [226, 228]])
    np.testing.assert_array_equal(labels.states_for("b.mp4", 0.25, CLIP)[:, 0], [6, 12, 18, 24])


def test_the_last_clip_that_fits(labels: Labels) -> None:
    assert labels.actions_for("a.mp4", 1.75, CLIP)[-1, 0] == 18
    with pytest.raises(LawmError, match=r"a\.mp4 has 10 actions.*needs 11"):
        labels.actions_for("a.mp4", 2.0, CLIP)
    with pytest.raises(LawmError, match=r"a\.mp4 has 11 states.*needs 12"):
        labels.states_for("a.mp4", 2.0, CLIP)


def test_action_std(labels: Labels) -> None:
    a, b = (row.actions for row in rows())
    np.testing.assert_allclose(labels.action_std(["a.mp4"]), a.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(labels.action_std(["a.mp4", "b.mp4"]), np.concatenate([a, b]).std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(labels.action_std(["b.mp4"], fps=4), (b[::2] + b[1::2]).std(axis=0), rtol=1e-6)
    with pytest.raises(LawmError, match="no actions"):
        labels.action_std([])


@pytest.mark.parametrize(
    ("key", "start", "fps", "said"),
    [
        ("c.mp4", 0.0, 4.0, r"no row for video 'c\.mp4' among its 2 keys, such as 'a\.mp4'"),
        ("a.mp4", 0.1, 4.0, "starts between two actions"),
        ("a.mp4", -0.25, 4.0, "expected a start of at least 0"),
        ("a.mp4", 0.0, 8.0, "4 Hz do not divide into clips at 8 fps"),
        ("b.mp4", 0.0, 3.0, "8 Hz do not divide into clips at 3 fps"),
    ],
)
def test_what_cannot_be_answered(labels: Labels, key: str, start: float, fps: float, said: str) -> None:
    with pytest.raises(LawmError, match=said):
        labels.actions_for(key, start, ClipSpec(frames=3, fps=fps))


def test_videos_without_states(tmp_path: Path) -> None:
    table = labels_table(
        [VideoLabels("a", 4.0, np.ones((5, 2))), VideoLabels("b", 4.0, np.ones((5, 2)), np.ones((6, 3)))]
    )
    for partly in (table, table.drop_columns("states")):
        labels = Labels(partly)
        assert labels.state_dim is None and labels.of("b").states is None
        with pytest.raises(LawmError, match="no states"):
            labels.states_for("b", 0.0, CLIP)


def test_other_number_types_and_slices_are_taken() -> None:
    table = labels_table(rows())
    wide = table.set_column(2, "actions", table["actions"].cast(pa.list_(pa.list_(pa.float64()))))
    parts = pa.concat_tables([wide.slice(1, 1), wide.slice(0, 1)])
    labels = Labels(parts)
    np.testing.assert_array_equal(labels.of("b.mp4").actions, rows()[1].actions)
    np.testing.assert_array_equal(labels.of("a.mp4").states, rows()[0].states)
    assert len(Labels(table.slice(0, 0))) == 0


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([*rows(), rows()[0]], r"'a\.mp4' has more than one row"),
        ([VideoLabels("a", 0.0, np.ones((2, 2)))], "rate_hz of 'a' is 0.0"),
        ([VideoLabels("a", float("nan"), np.ones((2, 2)))], "rate_hz of 'a' is nan"),
        ([VideoLabels("a", 4.0, np.ones((2, 2))), VideoLabels("b", 4.0, np.ones((2, 3)))], "of 'b' hold 3.*expected 2"),
        (
            [VideoLabels("a", 4.0, np.ones((2, 2))), VideoLabels("b", 4.0, np.array([[1, np.inf]]))],
            "of 'b' are not finite",
        ),
    ],
)
def test_malformed_labels_are_not_written(tmp_path: Path, bad: list[VideoLabels], said: str) -> None:
    with pytest.raises(LawmError, match=said):
        write_labels(bad, str(tmp_path / "labels.parquet"))
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(LawmError, match=r"nowhere\.parquet: no such file"):
        read_labels(str(tmp_path / "nowhere.parquet"))
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(LawmError, match="not a Parquet file"):
        read_labels(str(tmp_path / "text.parquet"))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"key": ["a"], "rate_hz": [4.0]}), other)
    with pytest.raises(LawmError, match=r"no column 'actions'; expected key.*found key, rate_hz"):
        read_labels(str(other))
    pq.write_table(pa.table({"key": ["a"], "rate_hz": ["fast"], "actions": [[[1.0]]]}), other)
    with pytest.raises(LawmError, match="'rate_hz' is string; expected double"):
        read_labels(str(other))
    pq.write_table(
        pa.table({"key": ["a"], "rate_hz": [4.0], "actions": pa.array([None], pa.list_(pa.list_(pa.float32())))}), other
    )
    with pytest.raises(LawmError, match="'actions' has 1 empty cells"):
        read_labels(str(other))


# ---------------------------------------------------------------- PushT
@pytest.fixture(scope="module")
def simulator() -> PushTSimulator:
    return PushTSimulator(PushTSpec(size=64))


@pytest.fixture(scope="module")
def episodes(simulator: PushTSimulator) -> list[Episode]:
    return [simulator.episode(3, number) for number in range(6)]


def test_shapes_and_ranges(episodes: list[Episode]) -> None:
    for episode in episodes:
        assert episode.frames.shape == (16, 64, 64, 3) and episode.frames.dtype == np.uint8
        assert episode.actions.shape == (15, 2) and episode.states.shape == (16, 5)
        targets = episode.states[:-1, :2] + episode.actions
        assert (targets > WALL - 1e-3).all() and (targets < ARENA - WALL + 1e-3).all()
        assert ((episode.states[:, 4] >= 0) & (episode.states[:, 4] < 2 * np.pi + 1e-6)).all()
        assert np.linalg.norm(episode.states[0, :2] - episode.states[0, 2:4]) > AGENT_CLEAR


def test_actions_explain_what_the_agent_does(episodes: list[Episode]) -> None:
    actions = np.concatenate([episode.actions for episode in episodes])
    moved = np.concatenate([np.diff(episode.states[:, :2], axis=0) for episode in episodes])
    for axis in (0, 1):
        assert np.corrcoef(actions[:, axis], moved[:, axis])[0, 1] > 0.9
    # A critically damped controller covers 1 - e^-2.5 (1 + 2.5) = 0.71 of the way in 0.25 s; what is left of the
    # last move's speed adds a little.
    gain = (actions * moved).sum() / (actions**2).sum()
    assert 0.68 < gain < 0.82
    # The wrong pairing (the action before) explains less: the test can tell.
    late = np.corrcoef(actions[:-1, 0], moved[1:, 0])[0, 1]
    assert late < 0.9


def test_the_block_is_pushed_only_where_the_agent_is(episodes: list[Episode]) -> None:
    moved, distance = [], []
    for episode in episodes:
        moved += list(np.linalg.norm(np.diff(episode.states[:, 2:4], axis=0), axis=1) > 1.0)
        gaps = np.linalg.norm(episode.states[:, :2] - episode.states[:, 2:4], axis=1)
        distance += list(np.minimum(gaps[:-1], gaps[1:]))
    assert 0.1 < np.mean(moved) < 0.9
    # The T reaches at most about 110 units from its origin; add the agent's radius and half a move.
    assert np.asarray(distance)[np.asarray(moved)].max() < 110 + 15 + 50


def test_pictures_show_the_states(episodes: list[Episode]) -> None:
    for episode in episodes[:3]:
        for frame, state in zip(episode.frames, episode.states, strict=True):
            rgb = frame.astype(int)
            blue = (rgb[..., 2] > rgb[..., 0] + 100) & (rgb[..., 2] > 180)  # the agent; nothing else is that blue
            y, x = np.nonzero(blue)
            centre = (np.array([x.mean(), y.mean()]) + 0.5) * ARENA / 64
            assert np.abs(centre - state[:2]).max() < 6  # under one pixel of 8 units
            red = (rgb[..., 0] > rgb[..., 1] + 80) & (rgb[..., 0] > rgb[..., 2] + 80)
            assert not red.any()  # the environment's own rendering would mark the commanded target in red


def test_an_episode_depends_on_seed_and_number_alone(simulator: PushTSimulator, episodes: list[Episode]) -> None:
    fresh = PushTSimulator(PushTSpec(size=64)).episode(3, 4)
    np.testing.assert_array_equal(fresh.frames, episodes[4].frames)
    np.testing.assert_array_equal(fresh.actions, episodes[4].actions)
    np.testing.assert_array_equal(fresh.states, episodes[4].states)
    assert not np.array_equal(simulator.episode(4, 4).actions, fresh.actions)
    assert not np.array_equal(episodes[3].actions, fresh.actions)


def test_mp4_gives_the_frames_back_at_their_times(episodes: list[Episode]) -> None:
    frames = episodes[0].frames
    data = encode_mp4(frames, 4.0, gop_s=1.0)
    assert data == encode_mp4(frames, 4.0, gop_s=1.0)
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        decoded = list(container.decode(stream))
    assert [frame.time for frame in decoded] == [i / 4 for i in range(16)]
    assert [i for i, frame in enumerate(decoded) if frame.key_frame] == [0, 4, 8, 12]
    shown = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(int)
    errors = np.array([[np.abs(a - b).mean() for b in frames.astype(int)] for a in shown])
    assert (errors.argmin(axis=1) == np.arange(16)).all()  # each is nearest to its own
    assert errors.diagonal().max() < 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 63}, "size 63; expected an even number"),
        ({"size": 4096}, "size 4096"),
        ({"states": 1}, "1 states an episode; expected at least 2"),
        ({"rate_hz": 3.0}, "rate 3 Hz; expected a whole number that divides 100"),
        ({"rate_hz": 12.5}, "rate 12.5 Hz"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], said: str) -> None:
    with pytest.raises(LawmError, match=said):
        PushTSpec(**settings)  # type: ignore[arg-type]


def test_a_missing_simulator_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(LawmError, match="pip install 'gym-pusht"):
        PushTSimulator()
