"""From the rows of planned episodes to figures with intervals, and what has to be said beside them."""

from dataclasses import replace
from typing import Any

import numpy as np

from lawm.evaluation import Interval, Result, interval, mean, ratio, result_of

Row = dict[str, Any]
"""An episode as it is kept (lawm/cluster/plan.py, Planner.episode)."""
BASELINES = {"random": "random actions", "no_action": "no action", "mean_action": "mean action"}
"""What a plan is compared with, and what tables call it. Random actions are another clip's real ones."""
_HOW = {
    "actions": "displacement: what the actions add up to (steps in the body's frame are composed)",
    "states": "displacement: what the states show after the simulator has carried the actions out",
    "commands": "no displacement can be had, for these actions are commands and no simulator makes states of them: "
    "the errors are of the commands",
}


def summarize_episodes(rows: list[Row], dataset: str, step: int, resamples: int, seed: int) -> list[Result]:
    """Errors by kind of dimension, ratios to the baselines, and costs, with paired intervals over the
    episodes' videos.

    `planning_error` is delta_xyz: translations alone, in their SI unit; rotation, gripper and the rest have figures of
    their own (`planning_rotation_error`, ...). Where displacement cannot be had, the errors are of commands, and are
    called so (`planning_command_error`). Ratios are of translations, or of the first kind that there is."""
    units: dict[str, str] = rows[0]["units"]
    prefix = "planning_command" if rows[0]["measured"] == "commands" else "planning"
    figures: list[tuple[str, Any, list[np.ndarray], str, str]] = []
    for i, (kind, unit) in enumerate(units.items()):
        of_kind = "" if kind == "translation" else f"_{kind}"
        name, planned = f"{prefix}{of_kind}", _column(rows, "errors", "planned", kind)
        controls = {b: _column(rows, "errors", b, kind) for b in BASELINES}
        figures.append((f"{name}_error", mean, [planned], unit, ""))
        if i == 0:
            figures.append((f"{name}_error_median", lambda x: float(np.median(x)), [planned], unit, ""))
            figures += [(f"{name}_vs_{b}", ratio, [planned, errors], "ratio", "") for b, errors in controls.items()]
        figures += [(f"{b}{of_kind}_error", mean, [errors], unit, BASELINES[b]) for b, errors in controls.items()]
    outside = np.array([bool(row["outside"]) for row in rows], dtype=np.float64)
    costs = [_column(rows, "costs", name) for name in ("best", "true")]
    figures += [
        ("planned_cost_vs_true_actions", ratio, costs, "ratio", ""),
        ("plans_outside_labels", mean, [outside], "share of plans", ""),
        ("seconds_per_plan", mean, [_column(rows, "seconds")], "s", ""),
    ]
    groups = [str(row["group"]) for row in rows]
    results = []
    for name, statistic, arrays, what, control in figures:
        found = interval(statistic, arrays, groups, resamples, seed, positive=True)
        found = share_of(found) if what == "share of plans" else found
        said: dict[str, Any] = {"control": control, "seed": seed, **_reading(name, control)}
        results.append(result_of(found, name, what, dataset, step, **said))
    return results


def share_of(found: Interval) -> Interval:
    """The interval of a share, within 0 and 1. Where all videos agree, draws of them do not differ: there the exact
    binomial one, of as many trials as there are videos (Clopper & Pearson 1934)."""
    if found.low is None or found.high is None:
        return found
    if 0 < found.value < 1:
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
    reach = 1 - 0.025 ** (1 / found.videos)
    low, high = (0.0, reach) if found.value == 0 else (1 - reach, 1.0)
    return replace(found, low=low, high=high)


def _reading(name: str, control: str) -> dict[str, str]:
    """Which way of a figure is better, and what its landmark means."""
    baseline = next((words for b, words in BASELINES.items() if name.endswith(f"_vs_{b}")), "")
    if baseline:
        return {"better": "lower", "one": f"1.0: as good as {baseline}"}
    if name == "planned_cost_vs_true_actions":
        return {"one": "below 1.0: the model likes its plan better than what really led to the goal"}
    return {} if control or "error" not in name else {"better": "lower"}


def _column(rows: list[Row], *path: str) -> np.ndarray:
    found: list[Any] = list(rows)
    for name in path:
        found = [row[name] for row in found]
    return np.array(found, dtype=np.float64)


def remarks(rows: list[Row], ranges: dict[str, list[float]], percentiles: tuple[float, float]) -> list[str]:
    """What has to be said beside the figures: how displacement was had, what the training split's actions are
    (`ranges`: dimension -> its low and high percentile), and which plans leave that."""
    said = [_HOW[rows[0]["measured"]]]
    if "translation" not in rows[0]["units"]:
        said.append("the labels call no dimension a translation, so there is no delta_xyz: see docs/datasets.md")
    moved = [row for row in rows if row.get("refused")]
    if moved:
        why = f"the first, episode {moved[0]['episode']}: {moved[0]['refused']}"
        said.append(f"{len(moved)} of {len(rows)} episodes are of other clips, for theirs were refused; {why}")
    low, high = percentiles
    within = ", ".join(f"{name} {a:.3g} to {b:.3g}" for name, (a, b) in ranges.items())
    said.append(f"the training split's actions, {low:g} to {high:g} percentile: {within}")
    left = [row for row in rows if row["outside"]]
    if left:
        names = ", ".join(dict.fromkeys(name for row in left for name in row["outside"]))
        said.append(f"{len(left)} of {len(rows)} plans leave that, in {names}: the model has never been there")
    return said
