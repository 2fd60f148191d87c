"""From rows to figures, and what is said beside them."""

from typing import Any

import pytest

from lawm.planning import remarks, summarize_episodes


def row(number: int, **changes: Any) -> dict[str, Any]:
    """An episode whose plan misses by 0.1, no action by 0.2, random ones by 0.4, the mean action by 0.1 (metres)."""
    scale = number + 1
    misses = {"planned": 0.1, "no_action": 0.2, "random": 0.4, "mean_action": 0.1}
    base = {
        "episode": number,
        "key": f"v{number // 2}",
        "group": f"v{number // 2}",
        "protocol": "paper-droid",
        "measured": "actions",
        "units": {"translation": "m", "gripper": "0..1"},
        "errors": {name: {"translation": m * scale, "gripper": 1.0} for name, m in misses.items()},
        "costs": {"best": 1.0, "true": 2.0, "planned": 1.0, "random": 4.0, "no_action": 3.0, "mean_action": 3.0},
        "confidence": 0.9,
        "outside": [],
        "seconds": 0.5,
    }
    return base | changes


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {r.name: r for r in summarize_episodes(rows, "held-out", 7, 200, 0)}


def test_kinds_have_figures_of_their_own() -> None:
    found = figures([row(i) for i in range(4)])
    values = {name: r.value for name, r in found.items()}
    assert values["planning_error"] == pytest.approx(0.25) and found["planning_error"].unit == "m"
    assert values["planning_gripper_error"] == pytest.approx(1.0) and found["planning_gripper_error"].unit == "0..1"
    assert values["planning_error_median"] == pytest.approx(0.25)
    ratios = {"random": 0.25, "no_action": 0.5, "mean_action": 1.0}
    assert {b: values[f"planning_vs_{b}"] for b in ratios} == pytest.approx(ratios)
    assert values["planned_cost_vs_true_actions"] == pytest.approx(0.5) and values["plans_outside_labels"] == 0
    assert found["mean_action_error"].control == "mean action"
    assert (found["planning_error"].n, found["planning_error"].videos) == (4, 2)  # intervals resample videos
    assert found["planning_vs_no_action"].better == "lower" and found["planning_vs_no_action"].one.endswith("no action")
    assert found["no_action_gripper_error"].control == "no action"


def test_commands_and_unnamed_dimensions_are_never_called_delta_xyz() -> None:
    commands = figures([row(i, measured="commands") for i in range(3)])
    assert "planning_error" not in commands and "planning_command_error" in commands
    unnamed = [row(i, units={"other": "unknown"}) for i in range(3)]
    for r in unnamed:
        r["errors"] = {name: {"other": 1.0} for name in r["errors"]}
    found = figures(unnamed)
    assert "planning_error" not in found and found["planning_other_error"].unit == "unknown"
    assert any("no delta_xyz" in line for line in remarks(unnamed, {"action 0": [-1.0, 1.0]}, (0.5, 99.5)))


def test_limits_and_plans_that_leave_them_are_said() -> None:
    rows = [row(0), row(1, outside=["yaw"]), row(2, outside=["x", "yaw"])]
    said = remarks(rows, {"x": [-0.1, 0.2], "yaw": [-0.9, 0.9]}, (0.5, 99.5))
    assert "the training split's actions, 0.5 to 99.5 percentile: x -0.1 to 0.2, yaw -0.9 to 0.9" in said
    assert any(line.startswith("2 of 3 plans leave that, in yaw, x") for line in said)
    assert figures(rows)["plans_outside_labels"].value == pytest.approx(2 / 3)
    assert not any("leave" in line for line in remarks(rows[:1], {"x": [-1.0, 1.0]}, (0.5, 99.5)))


def test_episodes_of_other_clips_are_said() -> None:
    said = remarks([row(0), row(1, refused="b.mp4: corrupt")], {}, (0.5, 99.5))
    assert "1 of 2 episodes are of other clips, for theirs were refused; the first, episode 1: b.mp4: corrupt" in said
    assert not any("other clips" in line for line in remarks([row(0), row(1, refused="")], {}, (0.5, 99.5)))


def test_the_share_of_plans_that_leave_stays_a_share() -> None:
    rows = [row(i, group=f"v{i}", outside=["x"] if i else []) for i in range(5)]
    most = figures(rows)["plans_outside_labels"]
    assert most.low is not None and 0 <= most.low < 0.8 < (most.high or 0) <= 1
    none = figures([row(i, group=f"v{i}") for i in range(10)])["plans_outside_labels"]
    assert (none.low, none.high) == (0, pytest.approx(0.3085, abs=1e-4))  # Clopper & Pearson: 0 of 10
    every = figures([row(i, group=f"v{i}", outside=["x"]) for i in range(10)])["plans_outside_labels"]
    assert (every.low, every.high) == (pytest.approx(0.6915, abs=1e-4), 1)


def test_intervals_are_over_videos_and_say_which_way_is_better() -> None:
    rows = [row(i, group=f"v{i // 4}") for i in range(16)]
    found = figures(rows)
    error, ratio = found["planning_error"], found["planning_vs_no_action"]
    assert (error.n, error.videos) == (16, 4) and error.low is not None and error.low < error.value
    assert (error.better, ratio.better, ratio.one) == ("lower", "lower", "1.0: as good as no action")
    alone = figures([row(i, group="v0") for i in range(4)])["planning_error"]
    assert alone.low is None and "one video" in alone.note
