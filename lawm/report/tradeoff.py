"""Capacity against everything else, over several runs: the central trade-off (Garrido et al. 2026, sections 5 to 7)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lawm.report.sections import Estimate, PointGroup, Points, Section, Text

CAPACITIES = (
    ("normalized_capacity", "capacity: 0 as without latents, 1 as without a limit"),
    ("error_vs_deterministic", "one-step error / deterministic model's (less: more capacity)"),
    ("error_vs_copy", "one-step error / copy-last-state (less: more capacity)"),
    ("one_step_error", "one-step error, L1 (less: more capacity)"),
)
"""Figures that say how much latents tell, the best first."""
AGAINST = (
    ("unrolled_error", "unrolled error, L1"),
    ("cycle_ratio", "cycle ratio"),
    ("leakage_score", "leakage score (0 cannot leak, 1 copies)"),
    ("leakage_ratio", "error at a cut / without"),
    ("probe_r2_linear", "linear probe, latent to true action, R²"),
    ("controller_vs_idm", "rollout error, controller / IDM"),
    ("transfer_similarity", "similarity of transferred latents"),
    ("planning_error", "planning error"),
    ("planning_vs_random", "planning error / random actions"),
)
LEAST = 2
"""Points that make a plot."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one run: `group` gives its colour (the kind of bottleneck), `label` its setting."""

    run: str
    group: str
    label: str
    figures: Mapping[str, Estimate]


def capacity_sections(measured: Sequence[Measurement]) -> list[Section]:
    """A plot of capacity against each figure that at least two runs have; or why there is none."""
    title = "Capacity against everything"
    counts = {name: sum(name in one.figures for one in measured) for name, _ in CAPACITIES}
    name, x_label = max(CAPACITIES, key=lambda one: counts[one[0]])  # the first of those that most have
    having = [one for one in measured if name in one.figures]
    if len(having) < LEAST:
        return [
            Text(title, f"No plots: {len(having)} of {len(measured)} runs have a figure of capacity; it takes two.")
        ]
    without = [one.run for one in measured if name not in one.figures]
    left = f" Without {name}, and left out: {', '.join(without)}." if without else ""
    sections: list[Section] = []
    for figure, y_label in AGAINST:
        points = [one for one in having if figure in one.figures and math.isfinite(one.figures[figure].value)]
        if figure == name or len(points) < LEAST:
            continue
        groups = []
        for group in dict.fromkeys(one.group for one in points):
            own = sorted((one for one in points if one.group == group), key=lambda one: one.figures[name].value)
            x, y = [one.figures[name] for one in own], [one.figures[figure] for one in own]
            groups.append(PointGroup(group, x, y, [one.label for one in own]))
        caption = f"{len(points)} runs, 95 % intervals over videos where they are known.{left}"
        sections.append(Points(f"Capacity against {figure}", groups, x_label, y_label, caption))
    return sections or [Text(title, f"No plots: no two runs have another figure than {name}.")]
