"""Capacity: one-step and unrolled prediction error with the IDM's latents on held-out clips.

Controls: the deterministic model, zero latents, latents of another video's clip, copying the last state; of pictures
what the decoder makes of the true states.
Protocol: spec section 6.1; Garrido et al. 2026, section 5 (figure 4's axis).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.perceptual import Pictured, Shown, picture_figures, pictured
from lawm.evaluation.results import Figure, Missing, PerClip, Values, ratio_figure
from lawm.evaluation.subject import (
    NO_LATENTS,
    SHUFFLES,
    Clips,
    Evaluation,
    Subject,
    other_states,
    per_clip_error,
    to_numpy,
)
from lawm.training import LatentActionObjective


@dataclass(frozen=True)
class Capacity(PerClip):
    """Mean |error| of normalised states, [B] each; `rate` in nats a transition."""

    one_step: np.ndarray
    unrolled: np.ndarray
    unrolled_last: np.ndarray
    copy: np.ndarray
    zero: Values
    shuffled: Values
    rate: Values
    deterministic: Values
    deterministic_unrolled: Values
    unconstrained: Values
    pictures: Pictured | Missing
    unrolled_pictures: Pictured | Missing
    deterministic_pictures: Pictured | Missing
    """Unrolled, as the model's own that stand beside them."""
    true_pictures: Pictured | Missing


def normalized(deterministic: np.ndarray, unconstrained: np.ndarray, own: np.ndarray) -> float:
    """(E_det - E) / (E_det - E_none): 0 is no latent, 1 an unconstrained one."""
    span = float(deterministic.mean() - unconstrained.mean())
    return float(deterministic.mean() - own.mean()) / span if span else float("nan")


COPIES = "1.0: no better than copying the last state"
FIGURES: tuple[Figure[Capacity], ...] = (
    Figure("one_step_error", lambda v: (v.one_step,), better="lower"),
    Figure("unrolled_error", lambda v: (v.unrolled,), better="lower"),
    Figure("unrolled_last_error", lambda v: (v.unrolled_last,), better="lower"),
    ratio_figure("error_vs_copy", lambda v: (v.one_step, v.copy), better="lower", one=COPIES),
    ratio_figure(
        "error_vs_deterministic", lambda v: (v.one_step, v.deterministic), better="lower",
        one="1.0: the latents tell nothing that the past does not", needs="deterministic",
    ),
    ratio_figure(
        "unrolled_vs_deterministic", lambda v: (v.unrolled, v.deterministic_unrolled), better="lower",
        one="1.0: the latents tell nothing that the past does not", needs="deterministic",
    ),
    ratio_figure(
        "shuffled_vs_error", lambda v: (v.shuffled, v.one_step), better="higher",
        one="1.0: another video's latents do as well, the latents are not used",
    ),
    Figure(
        "normalized_capacity", lambda v: (v.deterministic, v.unconstrained, v.one_step), normalized, "share",
        one="0: as without latents; 1: as without a limit", needs="unconstrained", positive=False,
    ),
    Figure("copy_error", lambda v: (v.copy,), control="copy last state"),
    Figure("deterministic_error", lambda v: (v.deterministic,), control="deterministic", needs="deterministic"),
    Figure("zero_latents_error", lambda v: (v.zero,), control="zero latents"),
    Figure("shuffled_latents_error", lambda v: (v.shuffled,), control="shuffled latents"),
    Figure("rate_nats", lambda v: (v.rate,), unit="nats", positive=False),
    Figure("none_error", lambda v: (v.unconstrained,), control="unconstrained", needs="unconstrained"),
)  # fmt: skip
SHOWN: tuple[Shown[Capacity], ...] = (
    Shown("one_step", lambda v: v.pictures),
    Shown("unrolled", lambda v: v.unrolled_pictures),
    Shown(
        "unrolled_vs_deterministic", lambda v: v.unrolled_pictures, lambda v: v.deterministic_pictures, "lower",
        "the latents tell nothing that the past does not",
    ),
    Shown("decoded_truth", lambda v: v.true_pictures, control="what the decoder makes of the true states"),
)  # fmt: skip


def in_pixels(values: Capacity, names: Sequence[str]) -> tuple[Figure[Capacity], ...]:
    """The figures of pictures."""
    return picture_figures("capacity", SHOWN, values)


@torch.no_grad()
def measure(subject: Subject, clips: Clips, fitted: None = None) -> Capacity:
    """Per-clip errors of a unit. Errors of all models are taken in the normalised states of the model."""
    model, states, z = subject.model, clips.states, clips.z
    after, context, steps = states[:, 1:], subject.context, states.shape[1] - subject.context

    def one_step(actions: Tensor | None) -> np.ndarray:
        return per_clip_error(model.world_model(states[:, :-1], actions), after)

    def shown(predicted: Tensor, since: int) -> Pictured | Missing:
        return pictured(subject, clips, torch.cat([states[:, :since], predicted], dim=1), since)

    def of(other: LatentActionObjective | Missing) -> tuple[Values, Values, Tensor | Missing]:
        """One-step and unrolled errors of another model, and its rollout."""
        if isinstance(other, Missing):
            return other, other, other
        theirs, their_z = other_states(other, clips)
        once = subject.in_model_units(other, other.world_model(theirs[:, :-1], their_z))
        rolled = subject.in_model_units(other, other.world_model.rollout(theirs[:, :context], their_z, steps))
        return per_clip_error(once, after), per_clip_error(rolled, states[:, context:]), rolled

    once, unrolled = model.world_model(states[:, :-1], z), model.world_model.rollout(states[:, :context], z, steps)
    partner = clips.partners()
    zero: Values = NO_LATENTS
    shuffled: Values = NO_LATENTS
    if z is not None:
        zero = one_step(torch.zeros_like(z))
        shuffled = SHUFFLES if partner is None else one_step(z[partner])
    deterministic, deterministic_unrolled, rolled = of(subject.deterministic)
    return Capacity(
        clips.groups,
        one_step=per_clip_error(once, after),
        unrolled=per_clip_error(unrolled, states[:, context:]),
        unrolled_last=per_clip_error(unrolled[:, -1], states[:, -1]),
        copy=per_clip_error(states[:, :-1], after),
        zero=zero,
        shuffled=shuffled,
        rate=Missing("the bottleneck has no rate") if clips.rate is None else to_numpy(clips.rate),
        deterministic=deterministic,
        deterministic_unrolled=deterministic_unrolled,
        unconstrained=of(subject.unconstrained)[0],
        pictures=shown(once, 1),
        unrolled_pictures=shown(unrolled, context),
        deterministic_pictures=rolled if isinstance(rolled, Missing) else shown(rolled, context),
        true_pictures=pictured(subject, clips, states, context),
    )


EVALUATION = Evaluation("capacity", measure, FIGURES, more=in_pixels)
