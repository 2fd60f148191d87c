"""From the rows of planned episodes to figures with intervals, and what has to be said beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lawm.config import LawmError
from lawm.evaluation import (
    Figure,
    Interval,
    Kept,
    Missing,
    PerClip,
    Result,
    Said,
    interval,
    ratio,
    result_of,
)

Row = dict[str, Any]
"""An episode as it is kept (lawm/planning/episodes.py)."""
BASELINES = {"random": "random actions", "no_action": "no action", "mean_action": "mean action"}
"""What a plan is compared with, and what tables call it. Random actions are another clip's real ones."""
BESIDE = {
    "goal_idm": "goal-idm: no search",
    "oracle": "true latents through the inverse controller",
    "policy": "behaviour cloning",
}
"""What stands beside where there is a controller, or a policy."""
_HOW = {
    "actions": "displacement: what the actions add up to (steps in the body's frame are composed)",
    "states": "displacement: what the states show after the simulator has carried the actions out",
    "commands": "no displacement can be had, for these actions are commands and no simulator makes states of them: "
    "the errors are of the commands",
}


@dataclass(frozen=True)
class Planned(PerClip):
    """Episodes: errors of the plan and of each baseline by kind of dimension, [B, K] each; ATE and RPE of the plan and
    of each of BASELINES, [B, 1 + 3], where actions are steps in the plane; predicted costs of the plan
    and of the true actions, the cosine of the imagined end and the goal, whether the plan leaves the labels' range,
    seconds of planning, [B] each."""

    planned: np.ndarray
    random: np.ndarray
    no_action: np.ndarray
    mean_action: np.ndarray
    goal_idm: np.ndarray | Missing
    oracle: np.ndarray | Missing
    policy: np.ndarray | Missing
    ate: np.ndarray | Missing
    rpe: np.ndarray | Missing
    best_cost: np.ndarray
    true_cost: np.ndarray
    confidence: np.ndarray
    outside: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Driven(PerClip):
    """Episodes in closed loop, of each way to act: whether the goal was reached, and how far it is at the end, [B, W]
    each; seconds an action of the plans, [B]."""

    reached: np.ndarray
    distance: np.ndarray
    seconds: np.ndarray


EVALUATION, CLOSED_LOOP = "planning", "closed_loop"
WAYS = {"true": "the recorded actions", **BASELINES, **BESIDE}


def episode_values(rows: list[Row], dataset: str, step: int) -> Kept:
    """The values of single episodes, of those that did not fail; its names are how displacement was had, and `kind
    unit` of each kind; of a closed loop, the ways to act. Raises LawmError where all have failed."""
    rows = finished(rows)
    if "closed_loop" in rows[0]:
        return _driven(rows, dataset, step)
    units: dict[str, str] = rows[0]["units"]

    def errors(which: str) -> np.ndarray:
        return np.stack([_column(rows, "errors", which, kind) for kind in units], axis=1)

    def beside(which: str) -> np.ndarray | Missing:
        there = which in rows[0]["errors"]
        return errors(which) if there else Missing(f"{BESIDE[which]}: not among these episodes")

    def trajectories(which: str) -> np.ndarray | Missing:
        if "trajectory" not in rows[0]:
            return Missing(rows[0].get("no_trajectory", "actions are no steps in the plane"))
        return np.stack([_column(rows, "trajectory", way, which) for way in ("planned", *BASELINES)], axis=1)

    values = Planned(
        _groups(rows),
        planned=errors("planned"),
        random=errors("random"),
        no_action=errors("no_action"),
        mean_action=errors("mean_action"),
        goal_idm=beside("goal_idm"),
        oracle=beside("oracle"),
        policy=beside("policy"),
        ate=trajectories("ate"),
        rpe=trajectories("rpe"),
        best_cost=_column(rows, "costs", "best"),
        true_cost=_column(rows, "costs", "true"),
        confidence=_column(rows, "confidence"),
        outside=np.array([bool(row["outside"]) for row in rows], dtype=np.float64),
        seconds=_column(rows, "seconds"),
    )
    names = (str(rows[0]["measured"]), *(f"{kind} {unit}" for kind, unit in units.items()))
    return Kept(EVALUATION, dataset, step, _clips(rows), values, names)


def _clips(rows: list[Row]) -> tuple[str, ...]:
    return tuple(f"{row['key']}@{row.get('start_s', row['episode']):.6g}" for row in rows)


def finished(rows: list[Row]) -> list[Row]:
    """The episodes that did not fail. Raises LawmError where all have."""
    good = [row for row in rows if not row.get("failed")]
    if not good:
        raise LawmError(f"all {len(rows)} episodes failed; the first: {rows[0]['failed']}")
    return good


def _driven(rows: list[Row], dataset: str, step: int) -> Kept:
    ways = tuple(rows[0]["closed_loop"])

    def column(what: str) -> np.ndarray:
        return np.array([[float(row["closed_loop"][way][what]) for way in ways] for row in rows])

    seconds = column("seconds_per_action")[:, ways.index("planned")]
    values = Driven(_groups(rows), column("reached"), column("distance"), seconds)
    return Kept(CLOSED_LOOP, dataset, step, _clips(rows), values, ways)


def driven_figures(values: Driven, names: Sequence[str]) -> tuple[Figure[Driven], ...]:
    """Success and distance of each way to act, and what plans reach of what the recorded actions do."""
    figures: list[Figure[Driven]] = [Figure("seconds_per_action", lambda v: (v.seconds,), unit="s", better="lower")]
    for i, way in enumerate(names):
        own, control = ("", "") if way == "planned" else (f"_{way}", WAYS[way])

        def reached(v: Driven, i: int = i) -> tuple[np.ndarray, ...]:
            return (v.reached[:, i],)

        def distance(v: Driven, i: int = i) -> tuple[np.ndarray, ...]:
            return (v.distance[:, i],)

        better: Any = "" if control else "higher"
        figures.append(Figure(f"success{own}", reached, unit=SHARE, control=control, better=better))
        lower: Any = "" if control else "lower"
        figures.append(Figure(f"goal_distance{own}", distance, unit="as the labels", control=control, better=lower))
    return tuple(figures)


def _groups(rows: list[Row]) -> np.ndarray:
    return np.array([str(row["group"]) for row in rows], dtype=object)


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
        beside = {b: said for b, said in BESIDE.items() if not isinstance(getattr(values, b), Missing)}
        for b, said in {**BASELINES, **beside}.items():
            add(f"{b}{of_kind}_error", (b, i), unit=unit, control=said)
    for which in ("ate", "rpe"):
        if not isinstance(getattr(values, which), Missing):
            add(f"planning_{which}", (which, 0), unit="m")
            for i, (b, said) in enumerate(BASELINES.items()):
                add(f"{b}_{which}", (which, 1 + i), unit="m", control=said)
    add("planned_cost_vs_true_actions", ("best_cost", None), ("true_cost", None), unit="ratio")
    add("plan_confidence", ("confidence", None), unit="cosine")
    add("plans_outside_labels", ("outside", None), unit=SHARE)
    add("seconds_per_plan", ("seconds", None), unit="s")
    return tuple(figures)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


SHARE = "share of plans"
PLANNING_SAYS = {EVALUATION: Said(Planned, episode_figures), CLOSED_LOOP: Said(Driven, driven_figures)}
"""What the values of planned episodes are, beside those of the suite (`lawm.evaluation.suite_says`)."""


def summarize_episodes(rows: list[Row], dataset: str, step: int, resamples: int, seed: int) -> list[Result]:
    """Errors by kind of dimension, ratios to the baselines, and costs, with paired intervals over the
    episodes' videos.

    `planning_error` is delta_xyz: translations alone, in their SI unit; rotation, gripper and the rest have figures of
    their own (`planning_rotation_error`, ...). Where displacement cannot be had, the errors are of commands, and are
    called so (`planning_command_error`). Ratios are of translations, or of the first kind that there is."""
    kept = episode_values(rows, dataset, step)
    results = []
    for figure in PLANNING_SAYS[kept.evaluation].figures(kept.values, kept.names):
        arrays: Any = figure.of(kept.values)
        found = interval(figure.statistic, arrays, list(kept.values.groups), resamples, seed, positive=True)
        found = share_of(found) if figure.unit == SHARE else found
        said: dict[str, Any] = {"control": figure.control, "better": figure.better, "one": figure.one, "seed": seed}
        results.append(result_of(found, figure.name, figure.unit, dataset, step, evaluation=kept.evaluation, **said))
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
    if name in ("planning_ate", "planning_rpe"):
        return {"better": "lower", "one": "NWM's unit on RECON is a waypoint of 0.25 m"}
    return {} if control or "error" not in name else {"better": "lower"}


def _column(rows: list[Row], *path: str) -> np.ndarray:
    found: list[Any] = list(rows)
    for name in path:
        found = [row[name] for row in found]
    return np.array(found, dtype=np.float64)


def remarks(rows: list[Row], ranges: dict[str, list[float]], percentiles: tuple[float, float]) -> list[str]:
    """What has to be said beside the figures: how displacement was had, what the training split's actions are
    (`ranges`: dimension -> its low and high percentile), and which plans leave that."""
    good = finished(rows)
    said = [] if "closed_loop" in good[0] else [_HOW[good[0]["measured"]]]
    if "no_trajectory" in good[0]:
        said.append(good[0]["no_trajectory"])
    failed = [row for row in rows if row.get("failed")]
    if failed:
        why = f"the first, episode {failed[0]['episode']}: {failed[0]['failed']}"
        said.append(f"{len(failed)} of {len(rows)} episodes failed and are in no figure; {why}")
    if "translation" not in good[0].get("units", ["translation"]):
        said.append("the labels call no dimension a translation, so there is no delta_xyz: see docs/datasets.md")
    moved = [row for row in rows if row.get("refused")]
    if moved:
        why = f"the first, episode {moved[0]['episode']}: {moved[0]['refused']}"
        said.append(f"{len(moved)} of {len(rows)} episodes are of other clips, for theirs were refused; {why}")
    low, high = percentiles
    within = ", ".join(f"{name} {a:.3g} to {b:.3g}" for name, (a, b) in ranges.items())
    said.append(f"the training split's actions, {low:g} to {high:g} percentile: {within}")
    left = [row for row in good if row.get("outside")]
    if left:
        names = ", ".join(dict.fromkeys(name for row in left for name in row["outside"]))
        said.append(f"{len(left)} of {len(good)} plans leave that, in {names}: the model has never been there")
    return said
