"""Which latent actions are likely in a state: p(z | s), learned without an action's label.

Legend: B batch of states, S latents of each, N tokens, D state width, C width, Z latent width.
Source: flow matching with straight paths (Lipman et al. 2023); proposals for planning in latent space, the open problem
of Garrido et al. 2026, limitation 2.
"""

import math

import torch
from torch import Tensor

from lawm.config import PriorConfig
from lawm.model.controller import CrossAttentionController
from lawm.model.latent_statistics import LatentStatistics

WAVES = 4
"""Sines and cosines of the time that the network is told."""


class LatentPrior(LatentStatistics):
    """A flow from N(0, I) to the standardised latents of a state."""

    def __init__(self, config: PriorConfig, state_width: int, latent: int) -> None:
        super().__init__(latent, standardised=True)
        self.flow_steps = config.flow_steps
        self.field = CrossAttentionController(config.model, state_width, latent + 2 * WAVES, latent)

    def memory(self, state_BND: Tensor) -> Tensor:
        """What the flow looks at of a state, [B, N, C]; the same at every step of it."""
        return self.field.memory(state_BND.unsqueeze(1))[:, 0]

    def velocity(self, x_BSZ: Tensor, time_BS1: Tensor, memory_BNC: Tensor) -> Tensor:
        """Where a point on the way goes, at a time from 0 (noise) to 1 (latent), [B, S, Z]."""
        angle = time_BS1 * math.pi * torch.arange(1, WAVES + 1, device=time_BS1.device)
        return self.field.from_memory(torch.cat([x_BSZ, angle.sin(), angle.cos()], dim=-1), memory_BNC)

    def drawn(self, noise_BSZ: Tensor, memory_BNC: Tensor) -> Tensor:
        """Noise from N(0, I) -> latents [B, S, Z]; a smooth map, one to one, of each state."""
        x, each = noise_BSZ, 1 / self.flow_steps
        for i in range(self.flow_steps):
            time = x.new_full((*x.shape[:2], 1), i * each)
            middle = x + 0.5 * each * self.velocity(x, time, memory_BNC)
            x = x + each * self.velocity(middle, time + 0.5 * each, memory_BNC)
        return self.to_latents(x)
