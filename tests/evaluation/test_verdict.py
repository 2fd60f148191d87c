"""The verdict in words: a model whose latents nobody reads is found out, however good its cycle and its controller."""

from typing import Any

from lawm.evaluation import Result, judge


def made(name: str, value: float, half: float = 0.02, **more: Any) -> Result:
    return Result(name, value, value - half, value + half, 64, 16, "ratio", "held-out", 7, **more)


GOOD = [made("shuffled_vs_error", 1.9), made("error_vs_deterministic", 0.7), made("probe_r2_linear", 0.45)]
DEAD = [made("shuffled_vs_error", 1.01), made("error_vs_deterministic", 0.99), made("probe_r2_linear", 0.01)]
PRETTY = [
    made("cycle_ratio", 1.02, checked_by="cycle_shuffled_vs_transfer"),
    made("cycle_shuffled_vs_transfer", 1.0),
    made("controller_vs_idm", 1.06, checked_by="controller_shuffled_vs_own"),
    made("controller_shuffled_vs_own", 1.01),
]


def test_latents_that_carry_actions() -> None:
    found = judge(GOOD)
    assert (found.carries, found.headline) == ("yes", "The latents carry actions.")
    assert found.lines[0] == "The world model uses the latents: shuffled_vs_error 1.9 [1.88, 1.92]."


def test_latents_that_nobody_reads() -> None:
    found = judge([*DEAD, *PRETTY])
    assert found.carries == "no" and "do not carry actions" in found.headline
    assert "A model without latents does as well: error_vs_deterministic 0.99 [0.97, 1.01]." in found.lines
    idle = [line for line in found.lines if "says nothing here" in line]
    assert len(idle) == 2 and idle[0].startswith("cycle_ratio 1.02 [1, 1.04] says nothing here")
    one_bad = judge([*GOOD[:2], DEAD[2]])
    assert one_bad.carries == "no" and one_bad.lines[2].startswith("The true action cannot be read from them")


def test_what_intervals_do_not_decide_is_not_decided() -> None:
    assert judge([*GOOD[:2], made("probe_r2_linear", 0.12, 0.2)]).carries == "not decided"
    alone = judge(GOOD[:1])
    assert alone.carries == "not decided"
    assert "Not measured: error_vs_deterministic (would show that they tell what the past does not)." in alone.lines
    one_video = Result("shuffled_vs_error", 1.9, None, None, 8, 1, "ratio", "d", 7)
    assert judge([one_video]).carries == "not decided"


def test_a_control_that_decides_nothing_is_not_called_near_1() -> None:
    cycle = made("cycle_ratio", 1.02, checked_by="cycle_shuffled_vs_transfer")
    alone = Result("cycle_shuffled_vs_transfer", 5.0, None, None, 8, 1, "ratio", "d", 7)
    for check in (alone, made("cycle_shuffled_vs_transfer", 2.0, 0.95)):
        lines = judge([*GOOD, cycle, check]).lines
        assert not any("says nothing here" in line for line in lines)
        assert sum(line.startswith("Not decided whether cycle_ratio 1.02") for line in lines) == 1
    assert len(judge([*GOOD, cycle, made("cycle_shuffled_vs_transfer", 2.0)]).lines) == len(judge(GOOD).lines)


def test_transfer_control_and_drawing_are_said() -> None:
    over = [made("transfer_cosine", 0.8), made("transfer_cosine_shuffled", 0.2)]
    assert any(line.startswith("Actions go over to other videos: transfer_cosine 0.8") for line in judge(over).lines)
    chance = [made("locality", 0.05, 0.05), made("locality_shuffled", 0.06, 0.05)]
    assert any("no more than chance: locality 0.05" in line for line in judge(chance).lines)
    between = [made("transfer_cosine", 0.3, 0.2), made("transfer_cosine_shuffled", 0.2, 0.2)]
    assert any("Not decided (transfer_cosine)" in line for line in judge(between).lines)
    for value, words in ((1.5, "Rollouts of 2s heed"), (1.0, "Rollouts of 2s do not heed")):
        assert any(line.startswith(words) for line in judge([made("controllability_2s", value)]).lines)
    for value, words in ((0.52, "look like"), (0.95, "are unlike"), (0.68, "can partly")):
        assert any(f"Drawn latents {words}" in line for line in judge([made("sampling_score", value)]).lines)


def test_leakage_and_planning_are_said_too() -> None:
    lines = judge([*GOOD, made("leakage_score", 0.8), made("planning_vs_no_action", 1.2, 0.1)]).lines
    assert any(line.startswith("The latents carry frames") for line in lines)
    assert "Planning loses to doing nothing: planning_vs_no_action 1.2 [1.1, 1.3]." in lines
    lines = judge([made("leakage_score", 0.2), made("planning_vs_random", 1.0, 0.1)]).lines
    assert any(line.startswith("Of a scene cut the latents carry 20%") for line in lines)
    assert any(line.startswith("Planning cannot be told from another clip's actions") for line in lines)
