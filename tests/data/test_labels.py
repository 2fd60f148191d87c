"""Labels, the table of true actions."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_videos import LIMITS, number_of, ref_to, write_video
from scipy.spatial.transform import Rotation

from lawm.config import ClipSpec, LawmError
from lawm.data import Dimension, Labels, Meaning, VideoLabels, labels_table, write_labels
from lawm.data.dimensions import GRIPPER, PLANAR, POSE, named
from lawm.data.labels import LABELS_SCHEMA, ClipLabelsError, read_labels
from lawm.video import VideoError, decode_clip

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


def test_one_video_whose_rate_does_not_divide_is_that_videos_fault(tmp_path: Path) -> None:
    """Where the rate of none divides, the clip's is wrong, and no clip can be had."""
    odd = write_labels([*rows(), VideoLabels("odd.mp4", 5.0, np.ones((20, 2)), np.ones((21, 3)))], str(tmp_path / "l"))
    with pytest.raises(ClipLabelsError, match=r"actions of odd\.mp4 at 5 Hz do not divide into clips at 4 fps"):
        odd.actions_for("odd.mp4", 0.0, CLIP)
    with pytest.raises(LawmError) as caught:
        odd.actions_for("odd.mp4", 0.0, ClipSpec(frames=4, fps=3))
    assert not isinstance(caught.value, ClipLabelsError)


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


# ---------------------------------------------------------------- kinds of action
def kept(tmp_path: Path, states: np.ndarray, kind: str, rate_hz: float = 15.0) -> Labels:
    uri = str(tmp_path / f"{kind}.parquet")
    write_labels([VideoLabels("v", rate_hz, np.zeros((0, 1)), states)], uri, kind)  # type: ignore[arg-type]
    found = read_labels(uri)
    assert found.kind == kind
    return found


def test_poses_turn_by_rotations_not_by_differences_of_angles(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    poses = np.concatenate(
        [generator.normal(size=(30, 3)), generator.uniform(-3, 3, (30, 3)), np.eye(30)[:, :1]], axis=1
    )
    found = kept(tmp_path, poses, "pose_delta").actions_for("v", 0.5, CLIP)
    assert found.shape == (3, 7)
    at = [7, 11, 15, 18]  # 0.5, 0.75, 1.0, 1.25 s at 15 Hz: the last state that is not after them
    for n, (one, two) in enumerate(itertools.pairwise(at)):
        np.testing.assert_allclose(found[n, :3], poses[two, :3] - poses[one, :3], atol=1e-5)
        a, b = (Rotation.from_euler("xyz", poses[i, 3:6]).as_matrix() for i in (one, two))
        turn = Rotation.from_euler("xyz", found[n, 3:6]).as_matrix()
        np.testing.assert_allclose(turn @ a, b, atol=1e-5)
        np.testing.assert_allclose(found[n, 6], poses[two, 6] - poses[one, 6], atol=1e-6)


def test_planar_actions_are_as_seen_from_the_robot(tmp_path: Path) -> None:
    # Facing +y, a metre forward is dx = 1, dy = 0; a turn across the cut of the angle is small.
    states = np.array([[0, 0, np.pi / 2], [0, 1, np.pi / 2], [-1, 1, np.pi - 0.1], [-1, 1, -np.pi + 0.1]])
    found = kept(tmp_path, states, "planar_delta", 4.0)
    assert found.action_dim == 3
    np.testing.assert_allclose(
        found.actions_for("v", 0.0, CLIP), [[1, 0, 0], [0, 1, np.pi / 2 - 0.1], [0, 0, 0.2]], atol=1e-6
    )


def test_deltas_and_first_go_with_any_rate(tmp_path: Path) -> None:
    found = kept(tmp_path, np.arange(40.0).reshape(20, 2), "state_delta", 15.0)
    np.testing.assert_array_equal(found.states_for("v", 0.0, CLIP)[:, 0], [0, 6, 14, 22])
    np.testing.assert_array_equal(found.actions_for("v", 0.0, CLIP), [[6, 6], [8, 8], [8, 8]])
    uri = str(tmp_path / "first.parquet")
    write_labels([VideoLabels("v", 15.0, np.arange(12.0)[:, None])], uri, "first")
    np.testing.assert_array_equal(read_labels(uri).actions_for("v", 0.0, CLIP), [[0], [3], [7]])
    with pytest.raises(LawmError, match=r"has 12 actions; a clip of 4 frames at 4 fps from 0\.5 s needs 16"):
        read_labels(uri).actions_for("v", 0.5, CLIP)


@pytest.mark.parametrize(("rate", "fps"), [(5.0, 4.0), (4.0, 3.0), (14.97, 4.0), (30.0, 7.0), (4.0, 4.0), (3.0, 4.0)])
def test_labels_belong_to_the_frames_that_are_shown(rate: float, fps: float, tmp_path: Path) -> None:
    """Where frames are further apart than the clip's, the next one is shown, and its label has to go with it."""
    write_video(tmp_path / "v.mp4", 120, times=[i / rate for i in range(120)], gop=12)
    found = kept(tmp_path, np.arange(120.0)[:, None], "state_delta", rate)
    clip = ClipSpec(frames=6, fps=fps, size=96)
    for start in np.arange(0, (119 - 6 * rate / fps) / rate, 0.25):
        try:
            shown = decode_clip(ref_to(tmp_path / "v.mp4"), float(start), clip, LIMITS)
        except VideoError:
            assert rate < fps  # frames too far apart
            continue
        numbers = [number_of(frame) for frame in shown.frames_FCHW]
        for seconds in (None, shown.seconds_F):  # as from a cache, and as decoded
            assert found.states_for("v", float(start), clip, seconds)[:, 0].tolist() == numbers


def test_a_large_table_takes_no_more_memory_than_its_numbers() -> None:
    import tracemalloc

    rows = [VideoLabels(str(i), 15.0, np.zeros((0, 1), np.float32), np.ones((350, 7), np.float32)) for i in range(500)]
    tracemalloc.start()
    table = labels_table(rows, "pose_delta")
    assert tracemalloc.get_traced_memory()[1] < 4 * 500 * 350 * 7 * 4
    tracemalloc.stop()
    assert table["states"][499].as_py() == [[1.0] * 7] * 350 and table["actions"][0].as_py() == []
    mixed = labels_table(
        [VideoLabels("a", 1.0, np.ones((2, 3))), VideoLabels("b", 1.0, np.ones((1, 3)), np.ones((2, 1)))]
    )
    assert mixed["states"].to_pylist() == [None, [[1.0], [1.0]]]


def test_kinds_that_cannot_be(tmp_path: Path) -> None:
    table = labels_table([VideoLabels("v", 4.0, np.zeros((3, 2)))])
    with pytest.raises(LawmError, match="actions of kind 'mean'; expected one of sum, first, state_delta"):
        Labels(table.replace_schema_metadata({b"lawm.actions": b"mean"}))
    with pytest.raises(LawmError, match="pose_delta is made of states; expected 6 numbers or more"):
        Labels(table.replace_schema_metadata({b"lawm.actions": b"pose_delta"}))
    with pytest.raises(LawmError, match=r"planar_delta is made of x, y, yaw, and the states are of 6 numbers"):
        write_labels([VideoLabels("v", 4.0, np.zeros((3, 2)), np.zeros((4, 6)))], str(tmp_path / "l"), "planar_delta")
    with pytest.raises(LawmError, match="planar_delta is made of states"):
        write_labels([VideoLabels("v", 4.0, np.zeros((3, 2)), np.zeros((4, 2)))], str(tmp_path / "l"), "planar_delta")


# ---------------------------------------------------------------- what each number is
def test_dimensions_are_kept_beside_the_kind_of_action(tmp_path: Path) -> None:
    place = (Dimension("x", "translation", "m"), Dimension("grip", "gripper", "0..1", "body"))
    meaning = Meaning(place, (*place, Dimension("lamp")), displacements=True, simulator="pusht")
    rows = [VideoLabels("v", 4.0, np.zeros((3, 2)), np.zeros((4, 3)))]
    uri = str(tmp_path / "labels.parquet")
    assert write_labels(rows, uri, "sum", meaning).meaning == meaning == read_labels(uri).meaning
    assert pq.read_schema(uri).metadata[b"lawm.dimensions"].startswith(b'{"actions": [{"name": "x"')


def test_what_is_made_of_states_has_their_dimensions() -> None:
    pose = [VideoLabels("v", 4.0, np.zeros((0, 1)), np.zeros((4, 7)))]
    found = Labels(labels_table(pose, "pose_delta", Meaning(states=(*POSE, GRIPPER)))).meaning
    assert found.actions == (*POSE, GRIPPER) and found.displacements
    plane = [VideoLabels("v", 4.0, np.zeros((0, 1)), np.zeros((4, 3)))]
    found = Labels(labels_table(plane, "planar_delta", Meaning(states=PLANAR))).meaning
    assert [(d.name, d.unit, d.frame) for d in found.actions] == [
        ("x", "m", "body"), ("y", "m", "body"), ("yaw", "rad", "body")]  # fmt: skip


def test_without_a_word_no_unit_of_length_is_assumed() -> None:
    found = Labels(labels_table(rows())).meaning
    assert [(d.kind, d.unit) for d in found.actions] == [("other", "unknown")] * 2 and not found.displacements
    pose = Labels(labels_table([VideoLabels("v", 4.0, np.zeros((0, 1)), np.zeros((4, 7)))], "pose_delta")).meaning
    kinds = [(d.kind, d.unit) for d in pose.actions]
    assert kinds == [("translation", "unknown")] * 3 + [("rotation", "rad")] * 3 + [("other", "unknown")]


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        ("sum", b"{", "lawm.dimensions cannot be read"),
        ("sum", b"[1]", "lawm.dimensions cannot be read"),
        ("sum", b'{"actions": [{"name": "x", "colour": "red"}]}', "cannot be read"),
        ("sum", b'{"actions": [{"name": "x", "kind": "place"}, {"name": "y"}]}', "kind 'place'; expected translation"),
        ("sum", b'{"actions": [{"name": "x"}]}', "2 numbers in its actions, and 1 named dimensions"),
        ("sum", b'{"states": [{"name": "x"}]}', "3 numbers in its states, and 1 named dimensions"),
        (
            "sum",
            b'{"actions": [{"name": "x", "kind": "translation", "unit": "rad"}, {"name": "y"}]}',
            "x: a translation in",
        ),
        ("sum", b'{"displacements": 3}', "displacements 3"),
        ("first", b'{"displacements": true}', "cannot add up to displacements"),
        ("planar_delta", b'{"states": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}', r"its states are a \(other\)"),
        (
            "planar_delta",
            b'{"states": [{"name": "a", "kind": "translation"}, {"name": "b", "kind": "translation"}, '
            b'{"name": "c", "kind": "rotation", "unit": "deg"}]}',
            "angle c in deg; expected rad",
        ),
    ],
)
def test_dimensions_that_cannot_be(kind: str, said: bytes, message: str) -> None:
    table = labels_table([rows()[0]])
    with pytest.raises(LawmError, match=message):
        Labels(table.replace_schema_metadata({b"lawm.actions": kind.encode(), b"lawm.dimensions": said}))


def test_names_say_a_kind_only_where_they_say_it_beyond_doubt() -> None:
    names = ["x", "Y", "ee_z", "yaw", "left_arm.gripper.pos", "gripper", "shoulder_pan.pos", "motor_0", "xylophone", ""]
    kinds = ["translation"] * 3 + ["rotation", "gripper", "gripper"] + ["other"] * 4
    assert [d.kind for d in named(names)] == kinds and all(d.unit == "unknown" for d in named(names))
    assert named(names)[-1].name == "number 9"
