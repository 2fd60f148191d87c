"""Planning by the cross-entropy method over real actions, through controller and world model.

Legend: E episodes, S candidates, H horizon, N tokens, D state width, A action width.
Source: Garrido et al. 2026, equations 1 to 3 and appendix A; Rubinstein 1997.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lawm.config import LawmError, PlanConfig
from lawm.training import ControllerObjective, LatentActionObjective


@dataclass(frozen=True)
class Plan:
    """The planned actions [H, A] in the data's units, their predicted cost, and the seconds it took."""

    actions_HA: np.ndarray
    cost: float
    seconds: float


_PAPER = {"horizon": 3, "samples": 300, "elites": 10, "iterations": 15}
PRESETS: dict[str, dict[str, Any]] = {
    "custom": {},
    "paper-droid": _PAPER | {"cost": "l2", "select": "best", "initial_std": 1.0},
    "jepa-wms-droid": _PAPER | {"cost": "mse", "select": "elite_mean", "initial_std": 0.1},
}


def preset(config: PlanConfig) -> PlanConfig:
    """The config with a named protocol's settings put in (spec section 8); `custom` leaves it alone.

    paper-droid: H 3, 300 samples, 10 elites, 15 iterations, N(0, 1), L2 to the last state, best sequence.
    jepa-wms-droid: as above with initial std 0.1, MSE, mean of the elites. Raises LawmError where a field
    that the protocol fixes has been set to something else.
    """
    fixed, default = PRESETS[config.preset], PlanConfig()
    for name, value in fixed.items():
        given = getattr(config, name)
        if given not in (value, getattr(default, name)):
            raise LawmError(
                f"plan.{name} = {given}: the protocol {config.preset} fixes it at {value}; set plan.preset=custom first"
            )
    return config.model_copy(update=fixed)


def goal_cost(predicted_BND: Tensor, goal_BND: Tensor, kind: str) -> Tensor:
    """Distance of each predicted last state to the goal, [B]."""
    if kind == "cosine":
        return 1 - torch.cosine_similarity(predicted_BND.flatten(1), goal_BND.flatten(1), dim=-1)
    difference = (predicted_BND - goal_BND).flatten(1)
    if kind == "l1":
        return difference.abs().mean(dim=1)
    return difference.norm(dim=1) if kind == "l2" else difference.square().mean(dim=1)


@torch.no_grad()
def rollout_cost(
    model: LatentActionObjective,
    controller: ControllerObjective,
    start_BTND: Tensor,
    goal_BND: Tensor,
    actions_BHA: Tensor,
    kind: str,
) -> Tensor:
    """Cost [E * S] of unrolling each action sequence from its start, S sequences for each of E starts (in
    the batch one after another) and goals. The context's own transitions, where it has more than one
    state, are inferred from it; it is computed once for all S."""
    candidates, steps, world_model = len(actions_BHA) // len(start_BTND), actions_BHA.shape[1], model.world_model
    before = model.infer(start_BTND).z_BTZ if start_BTND.shape[1] > 1 else None
    past = world_model.prefill(start_BTND, before, steps).repeat(candidates)

    def policy(state_BND: Tensor, i: int) -> Tensor:
        return controller.controller(actions_BHA[:, i, None], state_BND.unsqueeze(1))[:, 0]

    last = world_model.rollout_policy(past, policy, steps)[:, -1]
    return goal_cost(last.float(), goal_BND.float().repeat_interleave(candidates, dim=0), kind)


@torch.no_grad()
def plan(
    model: LatentActionObjective,
    controller: ControllerObjective,
    start_TND: Tensor,
    goal_ND: Tensor,
    config: PlanConfig,
    generator: torch.Generator,
) -> Plan:
    """CEM for one episode: normalised start states [T, N, D] and goal state [N, D] -> Plan.

    The search runs in standardised actions; `config.initial_std` is in units of the actions' own
    standard deviation. The best sequence ever seen is returned (`select: best`), or the elites' mean.
    """
    began = time.perf_counter()
    config = preset(config)
    device = start_TND.device
    scale, centre = controller.controller.action_std, controller.controller.action_mean
    shape = (config.horizon, len(scale))
    mean = torch.zeros(shape, device=device)
    std = torch.full(shape, config.initial_std, device=device)
    starts, goals = start_TND.unsqueeze(0), goal_ND.unsqueeze(0)
    best, best_cost = mean, float("inf")
    for _ in range(config.iterations):
        noise = torch.randn(config.samples, *shape, generator=generator).to(device)
        candidates = mean + std * noise
        actions = candidates * scale + centre
        if config.action_limit is not None:
            actions = actions.clamp(-config.action_limit, config.action_limit)
            candidates = (actions - centre) / scale
        costs = rollout_cost(model, controller, starts, goals, actions, config.cost)
        order = costs.argsort()
        elites = candidates[order[: config.elites]]
        mean = elites.mean(dim=0)
        std = elites.std(dim=0, correction=0).clamp_min(1e-3)
        if float(costs[order[0]]) < best_cost:
            best, best_cost = candidates[order[0]], float(costs[order[0]])
    chosen = best if config.select == "best" else mean
    found = (chosen * scale + centre).cpu().numpy()
    return Plan(found, best_cost, time.perf_counter() - began)


def cumulative_error(planned_HA: np.ndarray, true_HA: np.ndarray) -> float:
    """|| sum a_plan - sum a_true ||_1, in the actions' units (Garrido et al. 2026, equation 3)."""
    return float(np.abs(planned_HA.sum(axis=0) - true_HA.sum(axis=0)).sum())
