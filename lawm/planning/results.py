"""From the rows of planned episodes to figures with intervals, and what has to be said beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lawm.evaluation import (
    Figure,
    Interval,
    Kept,
    PerClip,
    Result,
    Said,
    interval,
    ratio,
    result_of,
)

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


@dataclass(frozen=True)
class Planned(PerClip):
    """Episodes: errors of the plan and of each baseline by kind of dimension, [B, K] each; predicted costs of the plan
    and of the true actions, whether the plan leaves the labels' range, seconds of planning, [B] each."""

    planned: np.ndarray
    random: np.ndarray
    no_action: np.ndarray
    mean_action: np.ndarray
    best_cost: np.ndarray
    true_cost: np.ndarray
    outside: np.ndarray
    seconds: np.ndarray


EVALUATION = "planning"


def episode_values(rows: list[Row], dataset: str, step: int) -> Kept:
    """The values of single episodes; its names are how displacement was had, and `kind unit` of each kind."""
    units: dict[str, str] = rows[0]["units"]

    def errors(which: str) -> np.ndarray:
        return np.stack([_column(rows, "errors", which, kind) for kind in units], axis=1)

    values = Planned(
        np.array([str(row["group"]) for row in rows], dtype=object),
        planned=errors("planned"),
        **{b: errors(b) for b in BASELINES},
        best_cost=_column(rows, "costs", "best"),
        true_cost=_column(rows, "costs", "true"),
        outside=np.array([bool(row["outside"]) for row in rows], dtype=np.float64),
        seconds=_column(rows, "seconds"),
    )
    clips = tuple(f"{row['key']}@{row.get('start_s', row['episode']):.6g}" for row in rows)
    names = (str(rows[0]["measured"]), *(f"{kind} {unit}" for kind, unit in units.items()))
    return Kept(EVALUATION, dataset, step, clips, values, names)


def episode_figures(values: Planned, names: Sequence[str]) -> tuple[Figure[Planned], ...]:
    """Errors by kind of dimension, ratios to the baselines, and costs."""
    prefix = "planning_command" if names[0] == "commands" else "planning"
    figures: list[Figure[Planned]] = []

    def add(name: str, *of: tuple[str, int | None], unit: str, control: str = "", **more: Any) -> None:
        def columns(v: Planned) -> tuple[np.ndarray, ...]:
            return tuple(getattr(v, field) if i is None else getattr(v, field)[:, i] for field, i in of)

        more |= {"statistic": ratio} if len(of) > 1 else {}
        figures.append(Figure(name, columns, unit=unit, control=control, **more, **_reading(name, control)))

    for i, (kind, _, unit) in enumerate(name.partition(" ") for name in names[1:]):
        of_kind = "" if kind == "translation" else f"_{kind}"
        add(f"{prefix}{of_kind}_error", ("planned", i), unit=unit)
        if i == 0:
            add(f"{prefix}{of_kind}_error_median", ("planned", i), unit=unit, statistic=_median)
            for b in BASELINES:
                add(f"{prefix}{of_kind}_vs_{b}", ("planned", i), (b, i), unit="ratio")
        for b in BASELINES:
            add(f"{b}{of_kind}_error", (b, i), unit=unit, control=BASELINES[b])
    add("planned_cost_vs_true_actions", ("best_cost", None), ("true_cost", None), unit="ratio")
    add("plans_outside_labels", ("outside", None), unit=SHARE)
    add("seconds_per_plan", ("seconds", None), unit="s")
    return tuple(figures)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


SHARE = "share of plans"
PLANNING_SAYS = {EVALUATION: Said(Planned, episode_figures)}
"""What the values of planned episodes are, beside those of the suite (`lawm.evaluation.suite_says`)."""


def summarize_episodes(rows: list[Row], dataset: str, step: int, resamples: int, seed: int) -> list[Result]:
    """Errors by kind of dimension, ratios to the baselines, and costs, with paired intervals over the
    episodes' videos.

    `planning_error` is delta_xyz: translations alone, in their SI unit; rotation, gripper and the rest have figures of
    their own (`planning_rotation_error`, ...). Where displacement cannot be had, the errors are of commands, and are
    called so (`planning_command_error`). Ratios are of translations, or of the first kind that there is."""
    kept = episode_values(rows, dataset, step)
    results = []
    for figure in episode_figures(kept.values, kept.names):  # type: ignore[arg-type]
        arrays: Any = figure.of(kept.values)  # type: ignore[arg-type]
        found = interval(figure.statistic, arrays, list(kept.values.groups), resamples, seed, positive=True)
        found = share_of(found) if figure.unit == SHARE else found
        said: dict[str, Any] = {"control": figure.control, "better": figure.better, "one": figure.one, "seed": seed}
        results.append(result_of(found, figure.name, figure.unit, dataset, step, evaluation=EVALUATION, **said))
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


def _reading(name: str, control: str) -> dict[str, Any]:
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
