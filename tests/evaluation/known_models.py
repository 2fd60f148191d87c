"""Models whose figures are known: an oracle, a code that copies, a latent that nobody reads."""

from typing import Any

import torch
from small_runs import made_batch, new_objective, tiny_kind
from torch import Tensor, nn

from lawm.evaluation import Clips
from lawm.model import WorldModel
from lawm.training import ClipBatch, LatentActionObjective

CONFIG = tiny_kind("none", data__clip__size=16, model__latent_dim=4 * 192)


class Adds(WorldModel):
    """s + z + bias: with a code of differences an oracle, up to the bias."""

    bias = 0.0

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, past: Any = None) -> Tensor:
        assert z_BTZ is not None
        return states_BTND + z_BTZ.view_as(states_BTND) + self.bias


class Shows(Adds):
    """z + bias: with a code that is the next state, the next state itself."""

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, past: Any = None) -> Tensor:
        return super().forward(torch.zeros_like(states_BTND), z_BTZ, past)


class Sums(Adds):
    """The first state and all latents from there on: exact only where every transition has its own."""

    def rollout(self, context_BTND: Tensor, z_BTZ: Tensor | None, steps: int, candidates: int = 1) -> Tensor:
        assert z_BTZ is not None
        moved = z_BTZ.unflatten(2, context_BTND.shape[2:]).cumsum(dim=1)
        return context_BTND[:, :1] + moved[:, context_BTND.shape[1] - 1 :][:, :steps]


class Still(nn.Module):
    """Latents that say nothing: with `Adds` the last state is copied."""

    def forward(self, states_BTND: Tensor) -> Tensor:
        return torch.zeros_like(states_BTND[:, 1:]).flatten(2)


class Difference(nn.Module):
    def forward(self, states_BTND: Tensor) -> Tensor:
        return (states_BTND[:, 1:] - states_BTND[:, :-1]).flatten(2)


class Next(nn.Module):
    def forward(self, states_BTND: Tensor) -> Tensor:
        return states_BTND[:, 1:].flatten(2)


def built(world: type[Adds], idm: nn.Module, bias: float = 0.0) -> LatentActionObjective:
    objective = new_objective(CONFIG)
    objective.world_model = world(CONFIG.model.world_model, 192, 4 * 192)
    objective.world_model.bias = bias
    objective.latent_action.idm = idm
    return objective.eval()


def fresh(kind: str, **fields: Any) -> LatentActionObjective:
    """An untrained, residual model: it predicts its last state."""
    return new_objective(tiny_kind(kind, data__clip__size=16, **fields)).eval()


def videos(count: int) -> list[str]:
    """Every clip a video of its own."""
    return [f"{i}.mp4" for i in range(count)]


def batch_of(count: int = 12) -> ClipBatch:
    return made_batch(range(count), CONFIG)


def clips_for(model: LatentActionObjective, batch: ClipBatch | None = None, seed: int = 0) -> Clips:
    batch = batch or batch_of()
    return Clips(model, batch, videos(len(batch)), seed)
