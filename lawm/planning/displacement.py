"""How far a sequence of actions leads, and by how much that misses another one: delta_xyz and its companions.

Translations, rotations, gripper and the rest are errors of their own, each in its SI unit (Garrido et al. 2026,
equation 3, || sum a_plan - sum a_true ||_1, which holds for translations).
Legend: S sequences, H horizon, A action width, F frames of an episode.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.spatial.transform import Rotation

from lawm.config import ClipSpec, LawmError
from lawm.data import Dimension, DimensionKind, Labels, compose_planar
from lawm.planning.problem import in_units
from lawm.simulation import outcomes

KINDS: tuple[DimensionKind, ...] = get_args(DimensionKind)
Measured = Literal["actions", "states", "commands"]
"""What the errors are of: displacements that the actions are, displacements that the states show of what a simulator
makes of the actions, or (where neither can be had) the commands themselves, which is no displacement."""


@dataclass(frozen=True)
class Moved:
    """What has changed from a sequence's start to its end: numbers by kind, in SI units; `turn`: the rotation where
    three angles are one."""

    values: dict[DimensionKind, np.ndarray]
    turn: Rotation | None = None


def units(dimensions: Sequence[Dimension]) -> dict[DimensionKind, str]:
    """The unit of each kind's error; kinds that the dimensions do not have are left out."""
    found = {kind: {d.si[0] for d in dimensions if d.kind == kind} for kind in KINDS}
    return {kind: names.pop() if len(names) == 1 else "mixed units" for kind, names in found.items() if names}


def _by_kind(values_A: np.ndarray, dimensions: Sequence[Dimension]) -> dict[DimensionKind, np.ndarray]:
    scaled = [float(v) * d.si[1] for v, d in zip(values_A, dimensions, strict=True)]
    found = {kind: [v for v, d in zip(scaled, dimensions, strict=True) if d.kind == kind] for kind in KINDS}
    return {kind: np.array(numbers) for kind, numbers in found.items() if numbers}


def moved_by_actions(kind: str, dimensions: Sequence[Dimension], actions_HA: np.ndarray) -> Moved:
    """Where actions lead that are displacements: their sum; steps in the body's frame (planar_delta, and sums that are
    `Labels.composed`) are composed, and so are rotations (pose_delta). Of set points (first), the last."""
    actions = np.asarray(actions_HA, np.float64)
    if kind == "planar_delta":
        return Moved(_by_kind(compose_planar(actions), dimensions))
    if kind == "first":
        return Moved(_by_kind(actions[-1], dimensions))
    turn = None
    if kind == "pose_delta":
        turn = Rotation.identity()
        for step in Rotation.from_euler("xyz", actions[:, 3:6]):
            turn = step * turn  # R_{t+1} R_t^T: the later one stands on the left
    return Moved(_by_kind(actions.sum(axis=0), dimensions), turn)


def errors(planned: Moved, true: Moved) -> dict[DimensionKind, float]:
    """L1 distance of each kind; angles by the shorter way round, three that make one rotation by the angle between the
    two rotations."""
    found: dict[DimensionKind, float] = {}
    for kind, values in true.values.items():
        difference = planned.values[kind] - values
        if kind == "rotation":
            if planned.turn is not None and true.turn is not None:
                found[kind] = float((planned.turn * true.turn.inv()).magnitude())
                continue
            difference = np.remainder(difference + np.pi, 2 * np.pi) - np.pi
        found[kind] = float(np.abs(difference).sum())
    return found


@dataclass(frozen=True)
class Episode:
    """One planning episode's labels: a clip of `clip.frames` = H + 1 frames of the video `key` from `start_s` on, and
    its true actions [H, A]."""

    labels: Labels
    key: str
    start_s: float
    clip: ClipSpec
    true_HA: np.ndarray


def measured_by(labels: Labels) -> Measured:
    """How displacement is had with those labels."""
    meaning = labels.meaning
    if meaning.displacements:
        return "actions"
    shown = {d.name for d in meaning.actions} & {d.name for d in meaning.states}
    return "states" if meaning.simulator is not None and shown and labels.state_dim is not None else "commands"


def measured_dimensions(labels: Labels, unit: str | None = None) -> tuple[Dimension, ...]:
    """The numbers that errors are of: actions, or the states that have actions' names. `unit`: of translations that do
    not say theirs."""
    meaning = labels.meaning
    if measured_by(labels) != "states":
        return in_units(meaning.actions, unit)
    names = {d.name for d in meaning.actions}
    return in_units(tuple(d for d in meaning.states if d.name in names), unit)


def displaced(labels: Labels) -> bool:
    """Whether delta_xyz can be had with those labels."""
    kinds = {d.kind for d in measured_dimensions(labels)}
    return "translation" in kinds and measured_by(labels) != "commands"


def sequence_errors(
    episode: Episode, dimensions: Sequence[Dimension], sequences: Mapping[str, np.ndarray]
) -> dict[str, dict[DimensionKind, float]]:
    """Errors of each named action sequence [H, A] against what really moved in the episode. `dimensions`: its labels'
    `measured_dimensions`. Raises LawmError where the simulator that made the labels cannot play the episode."""
    labels, how = episode.labels, measured_by(episode.labels)
    if how != "states":
        kind = "planar_delta" if labels.composed else labels.kind
        true = moved_by_actions(kind, dimensions, episode.true_HA)
        return {n: errors(moved_by_actions(kind, dimensions, a), true) for n, a in sequences.items()}
    recorded, meaning = labels.of(episode.key), labels.meaning
    first, each = labels.first_label(episode.key, episode.start_s, episode.clip.fps)
    last = first + each * len(episode.true_HA)
    if recorded.states is None or last >= len(recorded.states) or meaning.simulator is None:
        raise LawmError(f"{episode.key}: no state {last} in its labels, which shows where the episode ends")
    names = [d.name for d in meaning.states]
    at = [names.index(d.name) for d in dimensions]

    def moved(start: np.ndarray, end: np.ndarray) -> Moved:
        return Moved(_by_kind((end.astype(np.float64) - start)[at], dimensions))

    true = moved(recorded.states[first], recorded.states[last])
    led_SHS = outcomes(meaning.simulator, recorded, first, np.stack(list(sequences.values())), each)
    return {n: errors(moved(states[0], states[-1]), true) for n, states in zip(sequences, led_SHS, strict=True)}
