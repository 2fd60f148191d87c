"""The latent action model: inverse dynamics and a bottleneck, or what stands in their place.

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lawm.config import (
    Adaptive,
    BottleneckConfig,
    Deterministic,
    Discrete,
    ModelConfig,
    Noisy,
    Sparse,
    TrueActions,
    Unconstrained,
)
from lawm.model.latent_action.adaptive import AdaptiveBottleneck
from lawm.model.latent_action.base import Bottleneck, LatentActions
from lawm.model.latent_action.discrete import DiscreteBottleneck
from lawm.model.latent_action.inverse_dynamics import build_inverse_dynamics
from lawm.model.latent_action.noisy import NoisyBottleneck
from lawm.model.latent_action.sparse import SparseBottleneck
from lawm.model.latent_action.unconstrained import UnconstrainedBottleneck


def build_bottleneck(config: BottleneckConfig, latent: int, state_width: int) -> Bottleneck:
    """The bottleneck of that config; it names the `code_width` that it wants from the IDM."""
    match config:
        case Sparse():
            return SparseBottleneck(config, latent)
        case Noisy():
            return NoisyBottleneck(config, latent)
        case Adaptive():
            return AdaptiveBottleneck(config, latent, state_width)
        case Discrete():
            return DiscreteBottleneck(config, latent)
        case Unconstrained():
            return UnconstrainedBottleneck(latent)
        case _:
            raise TypeError(f"{config.kind}: no bottleneck stands between states and latents")


class LatentActionModel(nn.Module):
    """Inverse dynamics and bottleneck in one; `deterministic` has neither, `true_actions` reads labels."""

    action_std: Tensor

    def __init__(self, config: ModelConfig, state_width: int) -> None:
        super().__init__()
        self.kind = config.bottleneck.kind
        self.idm: nn.Module | None = None
        self.bottleneck: Bottleneck | None = None
        self.embed: nn.Module | None = None
        match config.bottleneck:
            case Deterministic():
                pass
            case TrueActions(action_dim=width):
                self.register_buffer("action_std", torch.ones(width))
                self.embed = nn.Linear(width, config.latent_dim)
            case other:
                self.bottleneck = build_bottleneck(other, config.latent_dim, state_width)
                self.idm = build_inverse_dynamics(config.idm, state_width, self.bottleneck.code_width)

    def forward(self, states_BTND: Tensor, actions_BTA: Tensor | None = None) -> LatentActions:
        """states [B, T, N, D] (and, for `true_actions`, actions [B, T-1, A]) -> LatentActions."""
        zero = states_BTND.new_zeros(())
        if self.kind == "deterministic":
            return LatentActions(None, zero)
        if self.embed is not None:
            if actions_BTA is None:
                raise ValueError("a world model on true actions needs labelled clips (data.labels)")
            return LatentActions(self.embed(actions_BTA / self.action_std), zero)
        assert self.idm is not None and self.bottleneck is not None
        codes = self.idm(states_BTND)
        return self.bottleneck(codes, states_BTND)

    def loss(self, latents: LatentActions, error_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Bottleneck.loss`."""
        if self.bottleneck is None:
            return latents.penalty, latents.metrics
        return self.bottleneck.loss(latents, error_B)

    def after_step(self, optimizer_state: dict[Any, dict[str, Any]]) -> dict[str, float]:
        """As `Bottleneck.after_step`."""
        return self.bottleneck.after_step(optimizer_state) if self.bottleneck is not None else {}


def collapse_warning(metrics: Mapping[str, float]) -> str:
    """What to tell the user where a run's latents carry (nearly) nothing, by its logged figures; else empty.

    Each kind of bottleneck knows its own figures, so that these need not come with a config.
    """
    said = (kind.collapse_warning(metrics) for kind in Bottleneck.__subclasses__())
    return next(filter(None, said), "")
