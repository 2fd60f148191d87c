"""Navigation and Panda: what is written is a LeRobot v3 data set that says what happened, and worlds play it again."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs import dataset, simulate
from lawm.cluster.session import Session
from lawm.config import LawmError
from lawm.data import read_index, read_labels
from lawm.planning import trajectory_errors
from lawm.planning.closed_loop import driven
from lawm.planning.trajectories import places
from lawm.simulation import NavigationSpec, PandaSpec, simulator_of, world_at

DRAWS = "from lawm.simulation import NavigationSpec, simulator_of; simulator_of('navigation', NavigationSpec())"


def drawable() -> bool:
    """In a process of its own: what draws keeps its window for good."""
    return subprocess.run([sys.executable, "-c", DRAWS], capture_output=True, timeout=120).returncode == 0


navigation = pytest.mark.skipif(not drawable(), reason="MiniWorld cannot draw here: it needs EGL")
panda = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")


@navigation
def test_drives_are_written_spread_over_ray_and_read_as_what_they_are(
    ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = str(tmp_path / "drives"), str(tmp_path / "data")
    argv = ["navigation", "--out", out, "--episodes", "3", "--states", "9", "--size", "64", "--seed", "5"]
    assert simulate.main(argv) == 0
    assert "3 episodes (3 new" in capsys.readouterr().out
    Path(out, "parts/000001.parquet").unlink()  # as if it had been killed before this one
    kept = Path(out, "parts/000000.parquet").read_bytes()
    assert simulate.main(argv) == 0
    assert "3 episodes (1 new" in capsys.readouterr().out and Path(out, "parts/000000.parquet").read_bytes() == kept
    assert simulate.main([*argv[:-1], "6"]) == 2
    assert "holds episodes of other settings" in capsys.readouterr().err

    assert dataset.main(["lerobot", out, "--out", data]) == 0
    index, labels = read_index(f"{data}/index.parquet"), read_labels(f"{data}/labels.parquet")
    assert index.table["frames"].to_pylist() == [9, 9, 9] and not index.reasons()
    assert (labels.kind, labels.composed, labels.meaning.simulator) == ("planar_delta", True, "navigation:5")
    assert [(d.kind, d.unit) for d in labels.meaning.actions] == [("translation", "m")] * 2 + [("rotation", "rad")]
    own = simulator_of("navigation", NavigationSpec(states=9, size=64)).episode(5, 2)
    recorded = labels.of("front/episode_000002")
    np.testing.assert_allclose(recorded.states, own.columns["observation.state"], atol=1e-6)
    np.testing.assert_allclose(recorded.actions, own.columns["action"][:-1], atol=1e-5)
    info = json.loads(Path(out, "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"], info["fps"]) == ("v3.0", 3, 27, 4)

    # The same steps lead there again; standing still does not.
    ways = {
        "true": lambda pictures, goal: recorded.actions[len(pictures) - 1 :][:1],
        "no_action": lambda pictures, goal: np.zeros((1, 3), np.float32),
    }
    world = world_at("navigation:5", recorded, 0, 1, 64)
    far = int(np.argmax(np.linalg.norm(recorded.states[:, :2] - recorded.states[0, :2], axis=1)))
    assert world.distance(recorded.states[far]) > 0.5, "the drive does not move"
    found = driven("navigation:5", recorded, (0, far), 1, 64, 9, ways)
    assert found["true"]["reached"] and not found["no_action"]["reached"]


@navigation
def test_the_seed_and_the_number_make_the_episode() -> None:
    simulator = simulator_of("navigation", NavigationSpec(states=5, size=64))
    first, other, again = (simulator.episode(0, n) for n in (0, 1, 0))
    np.testing.assert_array_equal(first.frames, again.frames)
    assert np.abs(first.frames.astype(int) - other.frames).mean() > 5
    with pytest.raises(LawmError, match="expected a whole number"):
        NavigationSpec(rate_hz=2.5)


@panda
@pytest.mark.slow
def test_the_arm_is_written_in_droids_columns_and_played_again(tmp_path: Path) -> None:
    from lawm.data import join_episodes
    from lawm.simulation import record

    simulator = simulator_of("panda", PandaSpec(states=8, size=64))
    out, data = str(tmp_path / "arm"), str(tmp_path / "data")
    for number in range(2):
        assert record(simulator, simulator.spec.data_set(3), out, 3, number) == 8
    join_episodes(out, simulator.spec.data_set(3), 2)
    assert dataset.main(["lerobot", out, "--out", data]) == 0
    labels = read_labels(f"{data}/labels.parquet")
    assert labels.kind == "pose_delta" and labels.meaning.simulator == "panda:3"
    assert [d.unit for d in labels.meaning.actions] == ["m"] * 3 + ["rad"] * 3 + ["0..1"]
    recorded = labels.of("exterior_1_left/episode_000001")
    assert np.abs(recorded.actions[:, :3]).max() > 0.005, "the hand does not move"
    begin, end = (world_at("panda:3", recorded, at, 1, 64) for at in (2, 6))
    np.testing.assert_allclose(begin.state()[:3], recorded.states[2, :3], atol=2e-3)
    wanted, off = end.state(), begin.distance(end.state())
    for action in recorded.actions[2:6]:
        begin.act(action, wanted)
    assert begin.distance(wanted) < max(0.5 * off, 0.05)  # the controller lags behind


def test_errors_of_ways_are_those_of_evo_and_known_by_hand() -> None:
    """A straight way of 1 m steps against one that turns left at its end: off by sqrt(2) at the last of four places."""
    true = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    planned = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, math.pi / 2], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(places(planned)[-1], [2.0, 1.0, math.pi / 2], atol=1e-12)
    found = trajectory_errors(planned, true)
    assert found["ate"] == pytest.approx(math.sqrt(2.0 / 4))
    # Each step as seen from where it begins: one of 1 m ahead, whichever way it faces.
    assert found["rpe"] == pytest.approx(0.0, abs=1e-9)
    side = trajectory_errors(np.array([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0]]), true[:2], metres=0.25)
    assert side["ate"] == pytest.approx(0.125 / math.sqrt(3)) and side["rpe"] == pytest.approx(0.125 / math.sqrt(2))
