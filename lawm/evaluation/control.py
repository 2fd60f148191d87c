"""Controller, on labelled clips: can a real action stand in for the inferred latent?

Protocol: spec section 6.6; Garrido et al. 2026, section 7 and table S1 (controller over IDM rollouts).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lawm.evaluation.intervals import ratio
from lawm.evaluation.perceptual import Pictured, Shown, picture_figures, pictured
from lawm.evaluation.results import Figure, Missing, PerClip, Values, ratio_figure
from lawm.evaluation.subject import SHUFFLES, Clips, Evaluation, Subject, no_latents, per_clip_error, to_numpy
from lawm.training import ControllerObjective, LatentActionObjective


@dataclass(frozen=True)
class Control(PerClip):
    """Rollout errors under the IDM's latents, the controller's, and the controller's of another video's actions;
    cosine and L2 of the controller's latents to the IDM's; [B] each. Squared error of the inverse controller, and what
    guessing the training's mean action has, in squared scales of the actions; [B, A] each."""

    idm: np.ndarray
    controller: np.ndarray
    shuffled: Values
    cosine: np.ndarray
    l2: np.ndarray
    inverse: np.ndarray
    guess: np.ndarray
    idm_pictures: Pictured | Missing
    controller_pictures: Pictured | Missing


STILL = 1e-10
"""Squared scales that a dimension which does not vary departs from its mean by, at most: float32 leaves that much."""


def against_the_mean(errors_BA: np.ndarray, guess_BA: np.ndarray) -> float:
    """Squared errors over those of guessing the mean, of the dimensions that vary: any guess of the others is as good
    as another."""
    varies = guess_BA.mean(axis=0) > STILL
    return ratio(errors_BA[:, varies], guess_BA[:, varies]) if varies.any() else float("nan")


FIGURES: tuple[Figure[Control], ...] = (
    ratio_figure(
        "controller_vs_idm", lambda v: (v.controller, v.idm), better="lower",
        one="1.0: real actions do as well as inferred latents, or neither matters",
        checked_by="controller_shuffled_vs_own",
    ),
    ratio_figure(
        "controller_shuffled_vs_own", lambda v: (v.shuffled, v.controller), better="higher",
        one="1.0: another video's actions do as well, the actions are not used",
    ),
    Figure("controller_rollout_error", lambda v: (v.controller,), better="lower"),
    Figure("idm_rollout_error", lambda v: (v.idm,), better="lower"),
    ratio_figure("controller_shuffled_vs_idm", lambda v: (v.shuffled, v.idm), control="shuffled actions"),
    Figure("controller_cosine", lambda v: (v.cosine,), unit="cosine", better="higher", positive=False),
    Figure("controller_l2", lambda v: (v.l2,), unit="L2", better="lower"),
    Figure(
        "inverse_controller_vs_mean", lambda v: (v.inverse, v.guess), against_the_mean, "ratio", better="lower",
        one="1.0: as good as guessing the mean action",
    ),
)  # fmt: skip
SHOWN: tuple[Shown[Control], ...] = (
    Shown(
        "controller_vs_idm", lambda v: v.controller_pictures, lambda v: v.idm_pictures, "lower",
        "real actions do as well as inferred latents, or neither matters",
    ),
    Shown("controller_rollout", lambda v: v.controller_pictures),
    Shown("idm_rollout", lambda v: v.idm_pictures),
)  # fmt: skip


def in_pixels(values: Control, names: Sequence[str]) -> tuple[Figure[Control], ...]:
    """The figures of pictures (tables S1 and S2, left)."""
    return picture_figures("control", SHOWN, values)


@torch.no_grad()
def measure(subject: Subject, clips: Clips, fitted: None = None) -> Control:
    """Per-clip rollout errors under the controller's and under the IDM's latents, and their distance.

    The controller sees the predicted states during the rollout, as a planner would.
    """
    model, objective, context = subject.model, subject.controller, subject.context
    states, actions, z = clips.states, clips.actions, clips.z
    assert z is not None and not isinstance(objective, Missing)
    steps, start, target = states.shape[1] - context, states[:, :context], states[:, context:]
    from_truth = objective.controller(actions, states[:, :-1])
    scale = objective.controller.action_std
    inverse = ((objective.controller.inverse(z) - actions) / scale).square().mean(dim=1)
    guess = ((objective.controller.action_mean - actions) / scale).square().mean(dim=1)
    partner = clips.partners()
    shuffled: Values = SHUFFLES
    if partner is not None:
        shuffled = per_clip_error(rollout_actions(model, objective, start, actions[partner]), target)
    by_idm, by_actions = model.world_model.rollout(start, z, steps), rollout_actions(model, objective, start, actions)
    return Control(
        clips.groups,
        idm=per_clip_error(by_idm, target),
        controller=per_clip_error(by_actions, target),
        shuffled=shuffled,
        cosine=to_numpy(F.cosine_similarity(from_truth, z, dim=-1).mean(dim=1)),
        l2=to_numpy((from_truth - z).norm(dim=-1).mean(dim=1)),
        inverse=to_numpy(inverse),
        guess=to_numpy(guess),
        idm_pictures=pictured(subject, clips, torch.cat([start, by_idm], dim=1), context),
        controller_pictures=pictured(subject, clips, torch.cat([start, by_actions], dim=1), context),
    )


def rollout_actions(
    model: LatentActionObjective, objective: ControllerObjective, context_BTND: torch.Tensor, actions_BTA: torch.Tensor
) -> torch.Tensor:
    """Unrolls real actions through controller and world model -> [B, T_actions - (T_context - 1), N, D]."""
    own, world_model = context_BTND.shape[1] - 1, model.world_model
    steps = actions_BTA.shape[1] - own
    before = objective.controller(actions_BTA[:, :own], context_BTND[:, :-1]) if own else None
    past = world_model.prefill(context_BTND, before, steps)

    def policy(state_BND: torch.Tensor, i: int) -> torch.Tensor:
        return objective.controller(actions_BTA[:, own + i, None], state_BND.unsqueeze(1))[:, 0]

    return world_model.rollout_policy(past, policy, steps)


def lacks(subject: Subject) -> str:
    """A controller is needed, and latents that it can stand in for."""
    return subject.controller.reason if isinstance(subject.controller, Missing) else no_latents(subject)


EVALUATION = Evaluation("control", measure, FIGURES, labelled=True, lacks=lacks, more=in_pixels)
