"""Capacity: one-step and unrolled prediction error with the IDM's latents on held-out clips.

Controls: the deterministic model, zero latents, latents of another clip, copying the last state.
Protocol: spec section 6.1; Garrido et al. 2026, section 5 (figure 4's axis).
"""

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.results import Figure, PerClip, derange
from lawm.training import ClipBatch, LatentActionObjective

FIGURES = [
    Figure("one_step_error", "one_step"),
    Figure("unrolled_error", "unrolled"),
    Figure("unrolled_last_error", "unrolled_last"),
    Figure("error_vs_copy", "one_step", "copy"),
    Figure("error_vs_deterministic", "one_step", "deterministic"),
    Figure("unrolled_vs_deterministic", "unrolled", "deterministic_unrolled"),
    Figure("shuffled_vs_error", "shuffled", "one_step"),
    Figure("copy_error", "copy", control="copy last state"),
    Figure("deterministic_error", "deterministic", control="deterministic"),
    Figure("zero_latents_error", "zero", control="zero latents"),
    Figure("shuffled_latents_error", "shuffled", control="shuffled latents"),
    Figure("rate_nats", "rate", unit="nats"),
    Figure("none_error", "unconstrained", control="unconstrained"),
]


def per_clip_error(predicted: Tensor, target: Tensor) -> np.ndarray:
    """Mean |difference| of each clip, float64 [B]."""
    return (predicted.float() - target.float()).abs().flatten(1).mean(1).double().cpu().numpy()


@torch.no_grad()
def evaluate(
    model: LatentActionObjective,
    batch: ClipBatch,
    seed: int,
    context: int = 1,
    deterministic: LatentActionObjective | None = None,
    unconstrained: LatentActionObjective | None = None,
) -> PerClip:
    """Per-clip errors of one batch of at least two clips (the shuffled control needs a partner).

    Errors of all models are taken in the normalised states of `model`.
    """
    states = model.states(batch)
    after = states[:, 1:]
    latents = model.infer(states, batch.actions_BTA)
    z = latents.z_BTZ

    def one_step(actions: Tensor | None) -> np.ndarray:
        return per_clip_error(model.world_model(states[:, :-1], actions), after)

    steps = states.shape[1] - context
    unrolled = model.world_model.rollout(states[:, :context], z, steps)
    values = {
        "one_step": one_step(z),
        "unrolled": per_clip_error(unrolled, states[:, context:]),
        "unrolled_last": per_clip_error(unrolled[:, -1], states[:, -1]),
        "copy": per_clip_error(states[:, :-1], after),
    }
    if latents.rate_B is not None:
        values["rate"] = latents.rate_B.double().cpu().numpy()
    if z is not None:
        partner = torch.from_numpy(derange(len(states), seed)).to(z.device)
        values |= {"zero": one_step(torch.zeros_like(z)), "shuffled": one_step(z[partner])}
    for name, other in (("deterministic", deterministic), ("unconstrained", unconstrained)):
        if other is None:
            continue
        theirs = other.states(batch)
        their_z = other.infer(theirs, batch.actions_BTA).z_BTZ

        def in_our_units(x: Tensor, other: LatentActionObjective = other) -> Tensor:
            kinds = (model.state_norm.kind, other.state_norm.kind)
            return model.state_norm(other.state_norm.inverse(x)) if "channel" in kinds else x

        values[name] = per_clip_error(in_our_units(other.world_model(theirs[:, :-1], their_z)), after)
        rolled = other.world_model.rollout(theirs[:, :context], their_z, steps)
        values[f"{name}_unrolled"] = per_clip_error(in_our_units(rolled), states[:, context:])
    return values


def normalized(deterministic: np.ndarray, unconstrained: np.ndarray, own: np.ndarray) -> float:
    """(E_det - E) / (E_det - E_none): 0 is no latent, 1 an unconstrained one."""
    span = float(deterministic.mean() - unconstrained.mean())
    return float(deterministic.mean() - own.mean()) / span if span else float("nan")
