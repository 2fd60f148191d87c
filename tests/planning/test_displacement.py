"""delta_xyz and its companions, against answers that are known beforehand."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lawm.config import ClipSpec, LawmError
from lawm.data import Dimension, Labels, Meaning, VideoLabels, labels_table
from lawm.data.dimensions import GRIPPER, PLANAR, POSE
from lawm.planning import Episode, displaced, measured_by, measured_dimensions, sequence_errors, units
from lawm.planning.displacement import compose_planar, errors, moved_by_actions
from lawm.simulation.pusht import MEANING, PushTSimulator, PushTSpec

ARM = (*POSE, GRIPPER)


def between(kind: str, dimensions: tuple[Dimension, ...], planned: np.ndarray, true: np.ndarray) -> dict[str, float]:
    found = errors(moved_by_actions(kind, dimensions, planned), moved_by_actions(kind, dimensions, true))
    return {str(k): v for k, v in found.items()}


def test_equal_translation_with_another_gripper_and_angle_is_no_translation_error() -> None:
    """Once everything was summed: the gripper's 1 and the angle's 0.3 made 1.30 of what is 0."""
    true = np.zeros((3, 7))
    true[:, :3] = [0.01, 0.02, -0.03]
    planned = true[::-1].copy()
    planned[0, 6] += 1.0
    planned[1, 5] += 0.3
    found = between("pose_delta", ARM, planned, true)
    assert found["translation"] == pytest.approx(0.0, abs=1e-12)
    assert found["gripper"] == pytest.approx(1.0) and found["rotation"] == pytest.approx(0.3)
    assert units(ARM) == {"translation": "m", "rotation": "rad", "gripper": "0..1"}


def test_translation_is_the_l1_of_equation_3_in_metres() -> None:
    in_mm = tuple(Dimension(d.name, d.kind, "mm") if d.kind == "translation" else d for d in ARM)
    planned, true = np.zeros((2, 7)), np.zeros((2, 7))
    planned[:, :3], true[0, :3] = [[30, 0, 0], [10, 5, 0]], [0, 0, -20]
    found = between("pose_delta", in_mm, planned, true)
    assert found["translation"] == pytest.approx(0.040 + 0.005 + 0.020)
    assert units(in_mm)["translation"] == "m"


def test_body_frame_steps_are_composed() -> None:
    """A metre forward, a quarter turn to the left, twice: two sides of a square, not two metres ahead."""
    quarter = [1.0, 0.0, math.pi / 2]
    np.testing.assert_allclose(compose_planar(np.array([quarter, quarter])), [1.0, 1.0, math.pi], atol=1e-12)
    np.testing.assert_allclose(compose_planar(np.array([quarter] * 4))[:2], [0.0, 0.0], atol=1e-12)
    # Another way to the same place: sums differ by 2, places do not.
    other = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, math.pi]])
    found = between("planar_delta", PLANAR, np.array([quarter, quarter]), other)
    assert found == pytest.approx({"translation": 0.0, "rotation": 0.0}, abs=1e-9)


BODY = tuple(Dimension(d.name, d.kind, d.unit, "body") for d in PLANAR)


def test_displacements_that_are_steps_of_the_body_are_composed_too() -> None:
    """Odometry of a walk: from any start, over any clip, what its poses show; what stands behind is added."""
    generator = np.random.default_rng(1)
    poses = np.cumsum(generator.normal(size=(17, 3)), axis=0)
    steps = Labels(labels_table([VideoLabels("v", 8.0, np.zeros((0, 1)), poses)], "planar_delta")).of("v").actions
    grip = generator.normal(size=(16, 1)).astype(np.float32)
    meaning = Meaning((*BODY, GRIPPER), displacements=True)
    labels = Labels(labels_table([VideoLabels("v", 8.0, np.hstack([steps, grip]))], "sum", meaning))
    clip = ClipSpec(frames=9, fps=4)  # two steps from frame to frame
    taken = labels.actions_for("v", 0.0, clip)
    np.testing.assert_array_equal(labels.whole("v", clip, 9), taken)

    def seen(start: int, end: int) -> np.ndarray:
        turn = Rotation.from_euler("z", -poses[start, 2]).as_matrix()[:2, :2]
        return turn @ (poses[end, :2] - poses[start, :2])

    np.testing.assert_allclose(taken[:, :2], [seen(2 * i, 2 * i + 2) for i in range(8)], atol=1e-5)
    np.testing.assert_allclose(taken[:, 3], grip.reshape(8, 2).sum(axis=1), atol=1e-6)
    straight = np.zeros((8, 4), np.float32)
    straight[0, :2], straight[0, 3] = seen(0, 16), grip.sum()
    straight[0, 2] = poses[16, 2] - poses[0, 2]
    found = sequence_errors(
        Episode(labels, "v", 0.0, clip, taken),
        measured_dimensions(labels),
        {"straight": straight, "none": 0 * straight},
    )
    assert found["straight"] == pytest.approx({"translation": 0, "rotation": 0, "gripper": 0}, abs=1e-4)
    assert found["none"]["translation"] == pytest.approx(np.abs(seen(0, 16)).sum(), abs=1e-4)


@pytest.mark.parametrize(
    ("dimensions", "displacements", "said"),
    [
        (BODY[::-1], True, "yaw is a displacement in the body's frame"),
        (BODY[:2], True, "x is a displacement in the body's frame"),
        ((GRIPPER, *BODY), True, "x is a displacement in the body's frame"),
        ((*BODY[:2], PLANAR[2]), True, "x is a displacement in the body's frame"),
        ((*BODY[:2], Dimension("yaw", "rotation", "deg", "body")), True, "angle yaw in deg; expected rad or unknown"),
        (BODY[::-1], False, ""),  # velocities add up to nothing
    ],
)
def test_body_frame_displacements_that_cannot_be_composed_are_refused(
    dimensions: tuple[Dimension, ...], displacements: bool, said: str
) -> None:
    rows = [VideoLabels("v", 4.0, np.zeros((4, len(dimensions)), np.float32))]
    table = labels_table(rows, "sum", Meaning(dimensions, displacements=displacements))
    if said:
        with pytest.raises(LawmError, match=said):
            Labels(table)
    else:
        assert not Labels(table).composed


def test_planar_steps_end_where_the_states_do() -> None:
    """Against the states themselves: any path, seen from its first pose."""
    generator = np.random.default_rng(0)
    states = np.cumsum(generator.normal(size=(9, 3)), axis=0)
    labels = Labels(labels_table([VideoLabels("v", 4.0, np.zeros((0, 1)), states)], "planar_delta"))
    end = compose_planar(labels.actions_for("v", 0.0, ClipSpec(frames=9, fps=4)))
    turn = Rotation.from_euler("z", -states[0, 2]).as_matrix()[:2, :2]
    np.testing.assert_allclose(end[:2], turn @ (states[-1, :2] - states[0, :2]), atol=1e-5)
    assert math.cos(end[2] - states[-1, 2] + states[0, 2]) == pytest.approx(1.0, abs=1e-6)


def test_rotations_are_composed_and_compared_as_rotations() -> None:
    """Two quarter turns about different axes do not commute; the sum of their Euler angles does."""
    x, z = [0, 0, 0, math.pi / 2, 0, 0, 0], [0, 0, 0, 0, 0, math.pi / 2, 0]
    first, second = np.array([x, z], float), np.array([z, x], float)
    wanted = (Rotation.from_euler("z", 90, degrees=True) * Rotation.from_euler("x", 90, degrees=True)).as_matrix()
    moved = moved_by_actions("pose_delta", ARM, first)
    assert moved.turn is not None
    np.testing.assert_allclose(moved.turn.as_matrix(), wanted, atol=1e-12)
    assert between("pose_delta", ARM, first, second)["rotation"] == pytest.approx(2 * math.pi / 3)
    assert between("pose_delta", ARM, first, first)["rotation"] == pytest.approx(0.0, abs=1e-7)


def test_angles_go_the_shorter_way_round() -> None:
    turn = (Dimension("yaw", "rotation", "deg"),)
    assert between("sum", turn, np.array([[350.0]]), np.array([[-5.0]]))["rotation"] == pytest.approx(math.radians(5))


def test_set_points_are_compared_where_they_end() -> None:
    set_points = (Dimension("x", "translation", "m"), Dimension("gripper", "gripper"))
    planned, true = np.array([[5.0, 0.0], [0.4, 1.0]]), np.array([[0.1, 1.0], [0.5, 1.0]])
    assert between("first", set_points, planned, true) == pytest.approx({"translation": 0.1, "gripper": 0.0})


# ---------------------------------------------------------------- where actions are no displacements
def pusht(episodes: int = 4) -> tuple[Labels, PushTSpec]:
    spec = PushTSpec(states=16)
    made = [PushTSimulator(spec).episode(3, e) for e in range(episodes)]
    rows = [VideoLabels(f"ep{i}", spec.rate_hz, e.actions, e.states) for i, e in enumerate(made)]
    return Labels(labels_table(rows, "sum", MEANING)), spec


def test_pusht_is_measured_by_what_the_simulator_makes_of_actions() -> None:
    labels, spec = pusht()
    clip = ClipSpec(frames=4, fps=spec.rate_hz)
    assert measured_by(labels) == "states"
    for key in labels.keys:
        for start in (0, 5, 12):
            true = labels.actions_for(key, start / 4, clip)
            states = labels.of(key).states
            assert states is not None
            moved = states[start + 3, :2] - states[start, :2]
            far = np.abs(true.sum(axis=0)).sum() - np.abs(moved).sum()
            episode = Episode(labels, key, start / 4, clip, true)
            found = sequence_errors(episode, labels.meaning.actions, {"same": true, "none": np.zeros_like(true)})
            assert found["same"]["translation"] < 0.05, "the recorded actions lead where the recording went"
            # The agent's own speed carries it on for a while; it does not stay where it was.
            assert found["none"]["translation"] == pytest.approx(np.abs(moved).sum(), abs=25)
            assert far > 1, "commanded targets are further away than the agent comes"


def test_an_action_of_several_labels_is_given_in_parts() -> None:
    labels, _ = pusht(1)
    clip = ClipSpec(frames=4, fps=2.0)
    true = labels.actions_for("ep0", 0.5, clip)
    episode = Episode(labels, "ep0", 0.5, clip, true)
    found = sequence_errors(episode, labels.meaning.actions, {"same": true, "none": np.zeros_like(true)})
    assert found["same"]["translation"] < found["none"]["translation"]


def test_an_episode_that_plays_otherwise_is_refused() -> None:
    labels, _ = pusht(1)
    row = labels.of("ep0")
    assert row.states is not None
    states = row.states.copy()
    states[4:, 0] += 9.0
    other = Labels(labels_table([VideoLabels("ep0", 4.0, row.actions, states)], "sum", MEANING))
    clip = ClipSpec(frames=3, fps=4)
    with pytest.raises(LawmError, match=r"ep0: played again, state 6 is .* recorded"):
        sequence_errors(Episode(other, "ep0", 1.5, clip, row.actions[6:8]), MEANING.actions, {"a": row.actions[6:8]})


def test_commands_without_a_simulator_are_called_commands() -> None:
    x = (Dimension("x", "translation", "m"),)
    row = VideoLabels("v", 4.0, np.ones((8, 1)), np.arange(9.0)[:, None])
    told = {name: Labels(labels_table([row], kind, Meaning(x, x, moves))) for name, kind, moves in (
        ("velocity", "sum", False), ("increment", "sum", True), ("set point", "first", False))}  # fmt: skip
    assert {name: measured_by(labels) for name, labels in told.items()} == {
        "velocity": "commands", "increment": "actions", "set point": "commands"}  # fmt: skip
    assert measured_by(Labels(labels_table([row]))) == "commands"  # nothing is said: nothing is assumed
    assert measured_by(Labels(labels_table([row], "state_delta"))) == "actions"
    assert [displaced(labels) for labels in told.values()] == [False, True, False]
    assert not displaced(Labels(labels_table([row], "state_delta")))  # moved, but nothing says that it is a place


def test_errors_have_the_unit_of_what_is_measured() -> None:
    """Velocities are commanded, and places are compared: metres, of which some files say centimetres."""
    speed = (Dimension("x", "translation", "m/s"), Dimension("grip", "gripper"))
    places = (Dimension("x", "translation", "cm"), Dimension("block x", "other", "cm"))
    row = VideoLabels("v", 4.0, np.ones((8, 2)), np.ones((9, 2)))
    shown = Labels(labels_table([row], "sum", Meaning(speed, places, simulator="pusht")))
    assert measured_dimensions(shown) == places[:1] and units(measured_dimensions(shown)) == {"translation": "m"}
    alone = Labels(labels_table([row], "sum", Meaning(speed, places)))
    assert units(measured_dimensions(alone)) == {"translation": "m/s", "gripper": "unknown"}
