"""In words: do the latents carry actions at all? From the controls, with their intervals.

A model whose latents nobody reads has a perfect cycle ratio and a controller as good as its inverse dynamics. So the
verdict rests on what such a model fails: latents of another video have to cost something, the deterministic twin has
to be worse, and the true action has to be readable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lawm.evaluation.results import Result

State = Literal["yes", "no", "not decided"]


@dataclass(frozen=True)
class Evidence:
    """One control: what it would show, and from which value on it shows it (the whole interval beyond `landmark`)."""

    name: str
    claim: str
    against: str
    landmark: float
    above: bool = True

    def state(self, result: Result) -> State:
        if result.low is None or result.high is None:
            return "not decided"
        beyond = result.low > self.landmark if self.above else result.high < self.landmark
        short = result.high < self.landmark if self.above else result.low > self.landmark
        return "yes" if beyond else "no" if short else "not decided"


# A tenth is the least that is called an effect: with many videos, an interval clears 1.0 for next to nothing.
EVIDENCE = (
    Evidence(
        "shuffled_vs_error", "the world model uses the latents",
        "the world model does as well with another video's", 1.1,
    ),
    Evidence(
        "error_vs_deterministic", "they tell what the past does not",
        "a model without latents does as well", 0.95, above=False,
    ),
    Evidence(
        "probe_r2_linear", "the true action can be read from them",
        "the true action cannot be read from them", 0.1,
    ),
)  # fmt: skip
LEAST = 1.1
"""What a ratio that checks another figure has to exceed."""
LEAKS = 0.5
"""Leakage score from which latents are said to carry frames."""


@dataclass(frozen=True)
class Verdict:
    """`carries`: whether the latents carry actions; `headline` says it, `lines` why and what it means for others."""

    carries: State
    headline: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join((self.headline, *self.lines))


def said(result: Result) -> str:
    """`name value [low, high]`."""
    span = "no interval" if result.low is None else f"[{result.low:.3g}, {result.high:.3g}]"
    return f"{result.name} {result.value:.3g} {span}"


def judge(results: Sequence[Result]) -> Verdict:
    """The verdict on results of one checkpoint on one data set."""
    by_name = {result.name: result for result in results}
    lines: list[str] = []
    states: list[State] = []
    for one in EVIDENCE:
        if one.name not in by_name:
            lines.append(f"Not measured: {one.name} (would show that {one.claim}).")
            continue
        state = one.state(by_name[one.name])
        states.append(state)
        words = {"yes": one.claim, "no": one.against, "not decided": f"not decided whether {one.claim}"}[state]
        lines.append(f"{words[0].upper()}{words[1:]}: {said(by_name[one.name])}.")
    carries: State = "not decided"
    if "no" in states:
        carries = "no"
    elif states.count("yes") >= 2 and "not decided" not in states:
        carries = "yes"
    headline = {
        "yes": "The latents carry actions.",
        "no": "The latents do not carry actions, or the world model does not use them.",
        "not decided": "It is not decided whether the latents carry actions.",
    }[carries]
    return Verdict(
        carries,
        headline,
        (
            *lines,
            *_qualified(by_name),
            *_leakage(by_name),
            *_going_over(by_name),
            *_drawn(by_name),
            *_planning(by_name),
        ),
    )


def _qualified(by_name: dict[str, Result]) -> list[str]:
    """Figures that look good, and whose control says that they say nothing, or cannot say that they do."""
    lines = []
    for result in by_name.values():
        check = by_name.get(result.checked_by)
        if check is None or check.unit != "ratio" or (check.low is not None and check.low > LEAST):
            continue
        if check.high is not None and check.high <= LEAST:
            lines.append(f"{said(result)} says nothing here, because its control is near 1: {said(check)}.")
        else:
            lines.append(
                f"Not decided whether {said(result)} says anything, for its control may be near 1: {said(check)}."
            )
    return lines


def _leakage(by_name: dict[str, Result]) -> list[str]:
    score = by_name.get("leakage_score")
    if score is None:
        return []
    if score.low is not None and score.low > LEAKS:
        return [f"The latents carry frames, not only what changes: {said(score)} (0 cannot leak, 1 copies)."]
    return [f"Of a scene cut the latents carry {max(score.value, 0):.0%}: {said(score)} (0 cannot leak, 1 copies)."]


def _going_over(by_name: dict[str, Result]) -> list[str]:
    """Whether actions of one video are the same on another, and change what they changed there; and whether rollouts
    heed them at all over time."""
    lines = []
    for name, yes, no in (
        ("transfer_cosine", "Actions go over to other videos", "Actions do not go over to other videos"),
        (
            "locality",
            "They change there what they changed in their own",
            "What they change there is no more than chance",
        ),
    ):
        own, control = by_name.get(name), by_name.get(f"{name}_shuffled")
        if own is None or control is None or own.low is None or control.high is None:
            continue
        apart = own.low > control.high
        near = own.high is not None and control.low is not None and own.high <= control.high and own.value < 0.1
        words = yes if apart else no if near else f"Not decided ({name})"
        lines.append(f"{words}: {said(own)}, by chance {said(control)}.")
    for result in by_name.values():
        if result.name.startswith("controllability_") and result.unit == "ratio" and result.low is not None:
            seconds = result.name.removeprefix("controllability_")
            heeded = "heed" if result.low > LEAST else "do not heed, or hardly,"
            lines.append(f"Rollouts of {seconds} {heeded} the latents: {said(result)}.")
    return lines


def _drawn(by_name: dict[str, Result]) -> list[str]:
    score = by_name.get("sampling_score")
    if score is None or score.low is None or score.high is None:
        return []
    words = "look like inferred ones" if score.high < 0.6 else "are unlike inferred ones" if score.low > 0.75 else ""
    return [f"Drawn latents {words or 'can partly be told from inferred ones'}: {said(score)} (0.5: cannot be told)."]


def _planning(by_name: dict[str, Result]) -> list[str]:
    lines = []
    others = {"no_action": "doing nothing", "mean_action": "the mean action", "random": "another clip's actions"}
    for baseline, other in others.items():
        name = f"planning_vs_{baseline}"
        result = by_name.get(name)
        if result is not None and result.high is not None and result.low is not None:
            word = "beats" if result.high < 1 else "loses to" if result.low > 1 else "cannot be told from"
            lines.append(f"Planning {word} {other}: {said(result)}.")
    return lines
