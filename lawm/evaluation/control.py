"""Controller and probes, on labelled clips: is the latent a (linear) function of the true action, and
can a real action stand in for the inferred latent?

Protocol: spec section 6.6; Garrido et al. 2026, section 7 and table S1 (controller over IDM rollouts).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lawm.evaluation.capacity import per_clip_error
from lawm.evaluation.results import Figure, PerClip, Result, interval
from lawm.model import MLP
from lawm.training import ClipBatch, ControllerObjective, LatentActionObjective

FIGURES = [
    Figure("controller_vs_idm", "controller", "idm"),
    Figure("controller_rollout_error", "controller"),
    Figure("idm_rollout_error", "idm"),
    Figure("controller_shuffled_vs_idm", "controller_shuffled", "idm", control="shuffled actions"),
    Figure("controller_cosine", "cosine", unit="cosine"),
    Figure("controller_l2", "l2", unit="L2"),
    Figure("inverse_controller_mse", "inverse", unit="standardised"),
]


@torch.no_grad()
def evaluate(
    model: LatentActionObjective, objective: ControllerObjective, batch: ClipBatch, context: int = 1
) -> PerClip:
    """Per-clip rollout errors under the controller's and under the IDM's latents, and their distance.

    The controller sees the predicted states during the rollout, as a planner would.
    """
    assert batch.actions_BTA is not None
    states, actions = model.states(batch), batch.actions_BTA.float()
    z = model.infer(states, actions).z_BTZ
    assert z is not None
    steps = states.shape[1] - context
    target = states[:, context:]
    from_truth = objective.controller(actions, states[:, :-1])
    scale = objective.controller.action_std
    inverse = ((objective.controller.inverse(z) - actions) / scale).square().mean(dim=(1, 2))
    return {
        "idm": per_clip_error(model.world_model.rollout(states[:, :context], z, steps), target),
        "controller": per_clip_error(rollout_actions(model, objective, states[:, :context], actions), target),
        "controller_shuffled": per_clip_error(
            rollout_actions(model, objective, states[:, :context], actions.roll(1, dims=0)), target
        ),
        "cosine": F.cosine_similarity(from_truth, z, dim=-1).mean(dim=1).double().cpu().numpy(),
        "l2": (from_truth - z).norm(dim=-1).mean(dim=1).double().cpu().numpy(),
        "inverse": inverse.double().cpu().numpy(),
    }


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


# ---------------------------------------------------------------- probes
@dataclass(frozen=True)
class Probed:
    """Latents and true actions of clips: z [C, T, Z], a [C, T, A]."""

    z: np.ndarray
    actions: np.ndarray


@torch.no_grad()
def collect(model: LatentActionObjective, batch: ClipBatch) -> Probed:
    states = model.states(batch)
    z = model.infer(states, batch.actions_BTA).z_BTZ
    assert z is not None and batch.actions_BTA is not None
    return Probed(z.double().cpu().numpy(), batch.actions_BTA.double().cpu().numpy())


def probe_results(fit: Probed, held_out: Probed, dataset: str, step: int, resamples: int, seed: int) -> list[Result]:
    """R^2 of a ridge and of an MLP probe from latent to true action: fitted on training clips, scored
    on held-out ones, with a control whose actions are shuffled over clips. Intervals over clips."""
    results = []
    for name, predict in (("linear", ridge(fit)), ("mlp", mlp_probe(fit, seed))):
        predicted = predict(held_out.z)
        clips, truth = len(predicted), held_out.actions
        order = np.random.default_rng(seed).permutation(clips)
        for control, target in (("", truth), ("shuffled actions", truth[order])):
            index = np.arange(clips, dtype=np.float64)

            def score(picks: np.ndarray, target: np.ndarray = target, predicted: np.ndarray = predicted) -> float:
                rows = picks.astype(int)
                return r_squared(predicted[rows], target[rows])

            value, low, high = interval(score, [index], resamples, seed)
            label = f"probe_r2_{name}" + ("_shuffled" if control else "")
            results.append(Result(label, value, low, high, clips, "R^2", dataset, step, control, seed))
    return results


def r_squared(predicted: np.ndarray, truth: np.ndarray) -> float:
    """1 - residual over total variance, mean over action dims."""
    p, t = predicted.reshape(-1, truth.shape[-1]), truth.reshape(-1, truth.shape[-1])
    total = ((t - t.mean(0)) ** 2).sum(0)
    return float(np.mean(1 - ((t - p) ** 2).sum(0) / np.maximum(total, 1e-12)))


def ridge(fit: Probed, strength: float = 1e-2):
    """A linear map with an intercept; the penalty is relative to the latents' variance."""
    z, a = fit.z.reshape(-1, fit.z.shape[-1]), fit.actions.reshape(-1, fit.actions.shape[-1])
    mean, std = z.mean(0), z.std(0) + 1e-8
    x = np.concatenate([(z - mean) / std, np.ones((len(z), 1))], axis=1)
    penalty = strength * len(z) * np.eye(x.shape[1])
    penalty[-1, -1] = 0
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ a)

    def predict(latents: np.ndarray) -> np.ndarray:
        flat = (latents.reshape(-1, latents.shape[-1]) - mean) / std
        out = np.concatenate([flat, np.ones((len(flat), 1))], axis=1) @ weights
        return out.reshape(*latents.shape[:-1], a.shape[-1])

    return predict


def mlp_probe(fit: Probed, seed: int, steps: int = 300):
    """A 2-layer MLP of width 128, trained with weight decay for a fixed number of full-batch steps."""
    z, a = fit.z.reshape(-1, fit.z.shape[-1]), fit.actions.reshape(-1, fit.actions.shape[-1])
    z_mean, z_std, a_mean, a_std = z.mean(0), z.std(0) + 1e-8, a.mean(0), a.std(0) + 1e-8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(z.shape[1], 128, a.shape[1], 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    x, y = torch.tensor((z - z_mean) / z_std).float(), torch.tensor((a - a_mean) / a_std).float()
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()

    def predict(latents: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = net(torch.tensor((latents - z_mean) / z_std).float()).double().numpy()
        return out * a_std + a_mean

    return predict
