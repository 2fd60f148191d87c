"""How the numbers that a search varies steer the world model, and which real actions they stand for.

Real actions through a controller (Garrido et al. 2026, section 7), real actions that the world model was trained on
(V-JEPA 2-AC's role), latents themselves, or the noise that a learned prior makes likely latents of.

Legend: E episodes, S candidates of each, B = E * S, H horizon, T states given, N tokens, D state width, A numbers of a
step, Z latent width, C width of what is looked at.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lawm.config import LawmError
from lawm.training import ControllerObjective, LatentActionObjective, PriorObjective


class Steering(ABC):
    """A way from numbers to latents. `memory` is what it looks at of a state: computed once for all candidates that
    share the state."""

    def memory(self, state_BND: Tensor) -> Tensor | None:
        """[B, N, C], or None where it looks at no state."""
        return None

    @abstractmethod
    def latents(self, numbers_ESA: Tensor, memory_ENC: Tensor | None) -> Tensor:
        """Numbers of S candidates in each of E states -> z [E, S, Z]."""

    def actions(self, numbers_EHA: Tensor, latents_EHZ: Tensor) -> Tensor:
        """The real actions, in the labels' units, of a sequence of numbers and the latents that it led to."""
        return numbers_EHA


class ByController(Steering):
    """Numbers are real actions; the controller makes latents of them."""

    def __init__(self, controller: ControllerObjective) -> None:
        self.controller = controller.controller

    def memory(self, state_BND: Tensor) -> Tensor | None:
        return self.controller.memory(state_BND)

    def latents(self, numbers_ESA: Tensor, memory_ENC: Tensor | None) -> Tensor:
        return self.controller.from_memory(numbers_ESA, memory_ENC)


class ByTrueActions(Steering):
    """Numbers are real actions, and the world model was trained on them."""

    def __init__(self, model: LatentActionObjective) -> None:
        if model.latent_action.embed is None:
            raise LawmError("a model that was not trained on real actions is steered by a controller: --controller")
        self.embed, self.std = model.latent_action.embed, model.latent_action.action_std

    def latents(self, numbers_ESA: Tensor, memory_ENC: Tensor | None) -> Tensor:
        return self.embed(numbers_ESA / self.std)


class ByLatents(Steering):
    """Numbers are latents; the inverse controller says which actions they are."""

    def __init__(self, model: LatentActionObjective, controller: ControllerObjective | None) -> None:
        if model.latent_action.bottleneck is None:
            raise LawmError(f"a {model.latent_action.kind} model has no latents to search among: plan.over=actions")
        self.bottleneck = model.latent_action.bottleneck
        self.controller = None if controller is None else controller.controller

    def latents(self, numbers_ESA: Tensor, memory_ENC: Tensor | None) -> Tensor:
        return self.bottleneck.allowed(numbers_ESA)

    def actions(self, numbers_EHA: Tensor, latents_EHZ: Tensor) -> Tensor:
        return latents_EHZ if self.controller is None else self.controller.inverse(latents_EHZ)


class ByPrior(ByLatents):
    """Numbers are noise, of which the prior makes latents that are likely in the state."""

    def __init__(
        self, model: LatentActionObjective, controller: ControllerObjective | None, prior: PriorObjective
    ) -> None:
        super().__init__(model, controller)
        self.prior = prior.prior

    def memory(self, state_BND: Tensor) -> Tensor:
        return self.prior.memory(state_BND)

    def latents(self, numbers_ESA: Tensor, memory_ENC: Tensor | None) -> Tensor:
        assert memory_ENC is not None
        return self.bottleneck.allowed(self.prior.drawn(numbers_ESA, memory_ENC))


class Followed:
    """What sequences lead to: states [B, H, N, D] and latents [B, H, Z], step by step."""

    def __init__(self, states: list[Tensor], latents: list[Tensor]) -> None:
        self._states, self._latents = states, latents

    @property
    def states_BHND(self) -> Tensor:
        return torch.stack(self._states, dim=1)

    @property
    def last_BND(self) -> Tensor:
        return self._states[-1]

    @property
    def latents_BHZ(self) -> Tensor:
        return torch.stack(self._latents, dim=1)


def follow(
    model: LatentActionObjective, steering: Steering, start_ETND: Tensor, numbers_BHA: Tensor, every: bool = True
) -> Followed:
    """Unrolls each sequence from its start, S sequences for each of E starts, in the batch one after another. The
    context's own transitions, where it has more than one state, are inferred from it; it is computed once for all S,
    and so is what the steering looks at of its last state. `every` False: only the last state is kept. Gradients of the
    sequences go through where they are asked for; the rollout is then computed without the memory of keys and values.
    """
    starts, steps = len(start_ETND), numbers_BHA.shape[1]
    each, world_model = len(numbers_BHA) // starts, model.world_model
    with torch.no_grad():
        before = model.infer(start_ETND).z_BTZ if start_ETND.shape[1] > 1 else None

    def steer(i: int, state_BND: Tensor) -> Tensor:
        if i == 0:  # all candidates of a start are still there
            numbers = numbers_BHA[:, 0].unflatten(0, (starts, each))
            return steering.latents(numbers, steering.memory(start_ETND[:, -1])).flatten(0, 1)
        return steering.latents(numbers_BHA[:, i].unsqueeze(1), steering.memory(state_BND))[:, 0]

    found: list[Tensor] = []
    latents: list[Tensor] = []
    if not (torch.is_grad_enabled() and numbers_BHA.requires_grad):
        with torch.no_grad():
            past = world_model.prefill(start_ETND, before, steps).repeat(each)
            for i in range(steps):
                latents.append(steer(i, past.now_BND))
                found = [*(found if every else ()), world_model.step(past, latents[-1])]
        return Followed(found, latents)
    states = start_ETND.repeat_interleave(each, dim=0)
    so_far = [] if before is None else [before.repeat_interleave(each, dim=0)]
    for i in range(steps):
        latents.append(steer(i, states[:, -1]))
        so_far.append(latents[-1].unsqueeze(1))
        following = world_model(states, torch.cat(so_far, dim=1))[:, -1:]
        states = torch.cat([states, following.to(states.dtype)], dim=1)
        found.append(states[:, -1])
    return Followed(found, latents)
