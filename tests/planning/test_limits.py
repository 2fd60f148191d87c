"""A plan that leaves what the training data show is believed by the model alone (see benchmarks/limits.py)."""

from benchmarks.limits import MOST_TURN, compare


def test_without_limits_a_plan_loses_to_doing_nothing_and_within_them_it_wins() -> None:
    rows = [compare(seed) for seed in range(3)]
    without, within, nothing = (sum(row[name] for row in rows) for name in ("without", "within", "no_action"))
    # The search finds what the model believes to be better than the truth, outside of where it has been.
    assert all(row["without_cost_vs_true_actions"] < 1 for row in rows)
    assert all(row["without_furthest_turn"] > 1.2 * MOST_TURN >= 1.2 * row["within_furthest_turn"] for row in rows)
    assert without > nothing > 1.15 * within
