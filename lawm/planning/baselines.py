"""What a plan is compared with: real actions of another clip, none, the mean one, and what is had without a search.

Legend: H horizon, T states, N tokens, D state width, A action width.
"""

import numpy as np
import torch
from torch import Tensor

from lawm.data import Labels, Shown
from lawm.training import ControllerObjective, LatentActionObjective, PolicyObjective


def no_action(labels: Labels, key: str, first: int, like_HA: np.ndarray) -> np.ndarray:
    """[H, A]: zero; of set points (`first`) the one that holds before the episode's first action, for all steps."""
    if labels.kind != "first":
        return np.zeros_like(like_HA)
    held = labels.of(key).actions[max(first - 1, 0)]
    return np.broadcast_to(held, like_HA.shape).astype(like_HA.dtype)


def mean_action(shown: Shown, like_HA: np.ndarray) -> np.ndarray:
    """[H, A]: the mean action of the training split, at every step."""
    return np.broadcast_to(shown.mean_A, like_HA.shape).astype(like_HA.dtype)


@torch.no_grad()
def goal_latents(
    model: LatentActionObjective,
    controller: ControllerObjective,
    start_1TND: Tensor,
    goal_1ND: Tensor,
    horizon: int,
) -> np.ndarray:
    """goal-idm, no search at all (spec section 8): the latent from the current state straight to the goal, its action
    by the inverse controller, and on from the state that the world model imagines; [H, A]."""
    before = model.infer(start_1TND).z_BTZ if start_1TND.shape[1] > 1 else None
    past, actions = model.world_model.prefill(start_1TND, before, horizon), []
    for _ in range(horizon):
        pair = torch.stack([past.now_BND, goal_1ND], dim=1)
        z = model.infer(pair).z_BTZ
        assert z is not None
        actions.append(controller.controller.inverse(z)[0, 0])
        model.world_model.step(past, z[:, 0])
    return torch.stack(actions).float().cpu().numpy()


@torch.no_grad()
def true_latents(
    model: LatentActionObjective, controller: ControllerObjective, states_1TND: Tensor, horizon: int
) -> np.ndarray:
    """The oracle: the actions [H, A] that the inverse controller makes of the latents of what really happens. What is
    wrong with these, no plan over latents can get right."""
    z = model.infer(states_1TND).z_BTZ
    assert z is not None
    return controller.controller.inverse(z)[0, -horizon:].float().cpu().numpy()


@torch.no_grad()
def cloned(policy: PolicyObjective, start_1ND: Tensor, goal_1ND: Tensor, horizon: int) -> np.ndarray:
    """Goal-conditioned behaviour cloning: the actions [H, A] to a goal H steps on, as far as the policy was taught."""
    within = min(horizon, policy.policy.most_steps)
    found = policy.policy(start_1ND, goal_1ND, torch.tensor([within], device=start_1ND.device))[0, :within]
    return found.float().cpu().numpy()
