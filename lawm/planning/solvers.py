"""The search for actions: the cross-entropy method, for several episodes at once.

Legend: E episodes, S candidates, H horizon, T states given, N tokens, D state width, A action width.
Source: Garrido et al. 2026, equations 1 to 3 and appendix A; Rubinstein 1997.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.config import LawmError, PlanConfig
from lawm.planning.problem import ActionSpace, rollout_cost
from lawm.training import ControllerObjective, LatentActionObjective

Cost = Callable[[Tensor], Tensor]
"""Actions [E, S, H, A] in the labels' units -> cost [E, S]."""


@dataclass(frozen=True)
class Plan:
    """The planned actions [H, A] in the data's units, the predicted cost of the best sequence that was tried, and the
    seconds it took (of a batch of episodes: its share)."""

    actions_HA: np.ndarray
    cost: float
    seconds: float


@torch.no_grad()
def cem(
    cost: Cost, space: ActionSpace, config: PlanConfig, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """(actions [E, H, A] in the labels' units, least cost [E]) of one search for each generator, which alone decides
    its episode's samples. The search runs in standardised actions. The best sequence ever seen is returned (`select:
    best`), or the mean of the last elites. Raises LawmError where an episode's costs are all no numbers."""
    episodes, device = len(generators), space.scale.device
    shape = (config.horizon, len(space.scale))
    mean = ((space.start - space.centre) / space.scale).expand(episodes, 1, *shape)
    std = (space.std / space.scale).expand(episodes, 1, *shape)
    best, best_cost = mean[:, 0], torch.full((episodes,), float("inf"), device=device)
    for _ in range(config.iterations):
        noise = torch.stack([torch.randn(config.samples, *shape, generator=g) for g in generators]).to(device)
        actions = space.kept_within((mean + std * noise) * space.scale + space.centre)
        candidates = (actions - space.centre) / space.scale
        costs = cost(actions)
        costs = costs.masked_fill(costs.isnan(), float("inf"))
        order = costs.argsort(dim=1)
        first = costs.gather(1, order[:, :1])[:, 0]
        if not torch.isfinite(first).all():
            raise LawmError("every candidate's predicted cost is infinite or no number: is the model trained?")
        ranked = candidates.gather(1, order[:, : config.elites, None, None].expand(-1, -1, *shape))
        mean = ranked.mean(dim=1, keepdim=True)
        std = ranked.std(dim=1, keepdim=True, correction=0).maximum(space.floor / space.scale)
        better = first < best_cost
        best = torch.where(better[:, None, None], ranked[:, 0], best)
        best_cost = torch.where(better, first, best_cost)
    chosen = best if config.select == "best" else mean[:, 0]
    return chosen * space.scale + space.centre, best_cost


@torch.no_grad()
def plan(
    model: LatentActionObjective,
    controller: ControllerObjective,
    start_ETND: Tensor,
    goal_END: Tensor,
    space: ActionSpace,
    config: PlanConfig,
    generators: Sequence[torch.Generator],
) -> list[Plan]:
    """CEM through controller and world model: normalised start states [E, T, N, D] and goal states [E, N, D] -> a Plan
    for each episode, the same whatever the others of the batch are. `config`: with its `preset` applied."""
    began = time.perf_counter()

    def cost(actions_ESHA: Tensor) -> Tensor:
        flat = actions_ESHA.flatten(0, 1)
        return rollout_cost(model, controller, start_ETND, goal_END, flat, config.cost).view(actions_ESHA.shape[:2])

    actions, costs = cem(cost, space, config, generators)
    each = (time.perf_counter() - began) / len(generators)
    return [Plan(a, float(c), each) for a, c in zip(actions.cpu().numpy(), costs, strict=True)]
