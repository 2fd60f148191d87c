"""The paper's claims about latent actions, each decided by what a sweep of all families measured.

A claim holds where it holds for every seed, and does not where it fails for every seed; else it is not decided. Values
of single models enter with their 95 % intervals where the claim is about single models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lawm.report import Table
from lawm.reproduction.tables import Model, newest

State = Literal["holds", "does not hold", "not decided"]
CONTINUOUS = ("sparse", "noisy")


@dataclass(frozen=True)
class Claim:
    """`decide(models of one seed)`: whether it holds (None: cannot be said), and the numbers in words."""

    words: str
    where: str
    decide: Callable[[Sequence[Model]], tuple[bool | None, str]]


def of(models: Sequence[Model], families: Sequence[str], name: str) -> list[tuple[Model, float]]:
    """The models of some families with the value of a figure."""
    return [
        (model, one.value)
        for model in models
        if model.variant.latents in families and (one := model.figure(name)) is not None
    ]


def spans(models: Sequence[Model]) -> tuple[bool | None, str]:
    said, holds = [], True
    for family in CONTINUOUS:
        values = [value for _, value in of(models, (family,), "normalized_capacity")]
        if len(values) < 2:
            return None, "no normalised capacity"
        holds &= min(values) < 0.2 and max(values) > 0.8
        said.append(f"{family} {min(values):.2f} to {max(values):.2f}")
    return holds, ", ".join(said)


def discrete_stays(models: Sequence[Model]) -> tuple[bool | None, str]:
    values = [value for _, value in of(models, ("discrete",), "normalized_capacity")]
    others = [value for _, value in of(models, CONTINUOUS, "normalized_capacity")]
    if not values or not others:
        return None, "no normalised capacity"
    return max(values) < 0.5 < max(others), f"discrete up to {max(values):.2f}, continuous up to {max(others):.2f}"


def cuts_rise(models: Sequence[Model]) -> tuple[bool | None, str]:
    found = [one for model in models if (one := model.figure("leakage_ratio")) is not None]
    scores = [one.value for model in models if (one := model.figure("leakage_score")) is not None]
    if not found:
        return None, "no leakage ratio"
    lowest = min(found, key=lambda one: one.value)
    twin = [one.value for model in models if (one := model.figure("leakage_ratio_no_latent")) is not None]
    said = f"lowest ratio {lowest.value:.2f}"
    said += f" (a model without latents: {np.mean(twin):.2f})" if twin else ""
    said += f", leakage scores {min(scores):.2f} to {max(scores):.2f}" if scores else ""
    return all((one.low if one.low is not None else one.value) > 1.5 for one in found), said


def cycles_within(models: Sequence[Model]) -> tuple[bool | None, str]:
    values = [value for _, value in of(models, (*CONTINUOUS, "discrete"), "cycle_ratio")]
    if not values:
        return None, "no cycle ratio"
    return min(values) >= 0.98 and max(values) <= 1.4, f"{min(values):.2f} to {max(values):.2f}"


def cycles_rise(models: Sequence[Model]) -> tuple[bool | None, str]:
    from scipy.stats import spearmanr

    said, holds = [], True
    for family in CONTINUOUS:
        both = [
            (-error, one.value)
            for model, error in of(models, (family,), "one_step_error")
            if (one := model.figure("cycle_ratio")) is not None
        ]
        if len(both) < 3:
            return None, "too few cycle ratios"
        if len({ratio for _, ratio in both}) == 1:
            return None, f"{family}: all cycle ratios are alike"
        rank = float(spearmanr(*zip(*both, strict=True)).statistic)
        holds &= rank > 0
        said.append(f"{family}: rank correlation with capacity {rank:.2f}")
    return holds, ", ".join(said)


def middle_best(name: str) -> Callable[[Sequence[Model]], tuple[bool | None, str]]:
    """Whether the lowest value of a figure lies at neither end of the sweep, for both continuous families."""

    def decide(models: Sequence[Model]) -> tuple[bool | None, str]:
        said, holds = [], True
        for family in CONTINUOUS:
            ordered = sorted(of(models, (family,), name), key=lambda one: one[0].variant.capacity)
            if len(ordered) < 3:
                return None, f"too few values of {name}"
            values = [value for _, value in ordered]
            best = int(np.argmin(values))
            holds &= 0 < best < len(values) - 1
            said.append(f"{family}: best {ordered[best][0].variant.said} ({values[best]:.3g}; ends {values[0]:.3g}, "
                        f"{values[-1]:.3g})")  # fmt: skip
        return holds, "; ".join(said)

    return decide


def noisy_against_sparse(models: Sequence[Model]) -> tuple[bool | None, str]:
    best = {
        family: min((value for _, value in of(models, (family,), "planning_error")), default=None)
        for family in (*CONTINUOUS, "discrete")
    }
    noisy, sparse = best["noisy"], best["sparse"]
    if noisy is None or sparse is None:
        return None, "no planning"
    said = ", ".join(f"{family} {value:.3g}" for family, value in best.items() if value is not None)
    return noisy <= sparse, f"best planning errors: {said}"


CLAIMS = (
    Claim("continuous latents span the range between deterministic and unconstrained", "figure 4", spans),
    Claim("discrete latents stay near the deterministic model", "figure 4", discrete_stays),
    Claim("the error at a scene cut rises by more than 1.5x at every capacity", "table 1", cuts_rise),
    Claim("the cycle ratio lies between 1.0 and 1.4", "table 2", cycles_within),
    Claim("the cycle ratio rises with capacity", "table 2", cycles_rise),
    Claim("a middle capacity gives the best controlled rollouts", "figure 11", middle_best("controller_rollout_error")),
    Claim("a middle capacity gives the best plans", "figure 11", middle_best("planning_error")),
    Claim("noisy latents plan at least as well as sparse ones", "table S1", noisy_against_sparse),
)


def decided(claim: Claim, models: Sequence[Model]) -> tuple[State, str]:
    """The verdict over all seeds, and the numbers of each."""
    seeds = sorted({model.seed for model in models})
    found = [claim.decide([model for model in newest(models) if model.seed == seed]) for seed in seeds]
    says = [holds for holds, _ in found if holds is not None]
    words = "; ".join(f"seed {seed}: {said}" for seed, (_, said) in zip(seeds, found, strict=True))
    if not says or len(says) < len(found):
        return "not decided", words
    return ("holds" if all(says) else "does not hold" if not any(says) else "not decided"), words


def claims_table(models: Sequence[Model]) -> Table:
    """Each claim, where the paper makes it, its verdict and the numbers."""
    rows = []
    for claim in CLAIMS:
        state, words = decided(claim, models)
        rows.append([claim.words, claim.where, state, words])
    caption = (
        "A claim holds where it holds for every seed, does not where it fails for every seed; else it is not decided."
    )
    return Table("The paper's claims", ["Claim", "Paper", "Verdict", "Numbers"], rows, caption=caption)
