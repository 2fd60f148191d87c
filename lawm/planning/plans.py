"""Plans: one search through the world model for each of several episodes at once.

Legend: E episodes, S candidates, H horizon, T states given, N tokens, D state width, A action width, Z latent width.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.config import PlanConfig
from lawm.planning.problem import ActionSpace, rollout_cost
from lawm.planning.solvers import AT_THE_START, SOLVERS, Chunked, Given
from lawm.planning.steering import Steering, follow
from lawm.training import LatentActionObjective, autocast

ON_A_CPU = 256
"""Candidates that a CPU rolls out at once, where `plan.chunk` does not say: more leave its caches, and take longer."""
NO_NUMBER = "every candidate's predicted cost is infinite or no number: is the model trained?"


@dataclass(frozen=True)
class Plan:
    """The planned actions [H, A] in the data's units, what was searched [1 or H, numbers of a step], the predicted cost
    of the best sequence that was tried (infinite: there was none that has a number, and the plan is of no use), the
    cosine between the imagined end and the goal, the imagined end [N, D] (normalised), and the seconds it took (of a
    batch of episodes: its share)."""

    actions_HA: np.ndarray
    numbers_HA: np.ndarray
    cost: float
    confidence: float
    end_ND: np.ndarray
    seconds: float

    @property
    def trouble(self) -> str:
        """Why there is no plan; else empty."""
        return "" if np.isfinite(self.cost) and np.isfinite(self.actions_HA).all() else NO_NUMBER


def plan(
    model: LatentActionObjective,
    steering: Steering,
    start_ETND: Tensor,
    goal_END: Tensor,
    space: ActionSpace,
    config: PlanConfig,
    generators: Sequence[torch.Generator],
    given: Given = AT_THE_START,
) -> list[Plan]:
    """Normalised start states [E, T, N, D] and goal states [E, N, D] -> a Plan for each episode, the same whatever the
    others of the batch are. `config`: with its `preset` applied."""
    began, horizon = time.perf_counter(), config.horizon

    def cost(numbers_ESHA: Tensor) -> Tensor:
        flat = space.steps_of(numbers_ESHA.flatten(0, 1), horizon)
        with autocast(flat.device, "auto"):
            found = rollout_cost(model, steering, start_ETND, goal_END, flat, config.cost)
        return found.view(numbers_ESHA.shape[:2])

    most = config.chunk or (ON_A_CPU if space.scale.device.type == "cpu" else 0)
    chunked = Chunked(cost, len(generators), most)
    found, costs = SOLVERS[config.solver](chunked, space, config, generators, given)
    with torch.no_grad(), autocast(found.device, "auto"):
        every = space.steps_of(found.detach(), horizon)
        led = follow(model, steering, start_ETND, every)
        actions = steering.actions(every, led.latents_BHZ).float()
        cosine = torch.cosine_similarity(led.last_BND.float().flatten(1), goal_END.float().flatten(1), dim=-1)
    each = (time.perf_counter() - began) / len(generators)
    numbers, ends = found.detach().float().cpu().numpy(), led.last_BND.float().cpu().numpy()
    rows = zip(actions.cpu().numpy(), numbers, costs.tolist(), cosine.tolist(), ends, strict=True)
    return [Plan(*row, each) for row in rows]
