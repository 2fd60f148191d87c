"""The world model p: (s_0..t, z_t) -> s_{t+1}: teacher forcing over a clip, and rollouts.

Legend: B batch, T states, N tokens, D state width, Z latent-action width, C model width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lawm.config import WorldModelConfig
from lawm.model.layers import MLP, Block, KeysValues, grid_positions, modulate, rope_tables, zero_linear

Policy = Callable[[Tensor, int], Tensor]
"""(state [B, N, D] that a transition starts in, number of the transition after the context, from 0) -> its latent
[B, Z]."""


@dataclass
class Past:
    """The states up to now, inside the world model: keys and values of all but the newest, and the newest state, which
    goes in with the latent that is taken in it."""

    blocks: list[KeysValues]
    now_BND: Tensor

    def repeat(self, candidates: int) -> "Past":
        """That many continuations of each sequence, one after another in the batch; this one stays as it is."""
        return Past(
            [block.repeat(candidates) for block in self.blocks], self.now_BND.repeat_interleave(candidates, dim=0)
        )


class WorldModel(nn.Module):
    """A ViT over all patches of all past states, frame-causal, conditioned by frame-wise AdaLN-zero.

    Source: Garrido et al. 2026, section 4; spec section 2. The final norm is modulated too.
    `latent` None: a deterministic model, whose modulations are learned constants.
    """

    def __init__(self, config: WorldModelConfig, state_width: int, latent: int | None) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.width // config.heads
        self.embed = nn.Linear(state_width, config.width)
        self.embed_latent = None
        if latent is not None:
            self.embed_latent = MLP(latent, config.width, config.width, 2, nn.SiLU)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, conditioned=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = zero_linear(config.width, 2 * config.width)
        self.head = (zero_linear if config.residual else nn.Linear)(config.width, state_width)

    def hidden_matrices(self) -> Iterator[Tensor]:
        yield self.final_modulation.weight

    def condition(self, z_BTZ: Tensor | None, like_BTND: Tensor) -> Tensor:
        """The conditioning vector of each state, [B, T, C]; zeros where there is no latent."""
        if z_BTZ is None or self.embed_latent is None:
            return like_BTND.new_zeros(*like_BTND.shape[:2], self.config.width)
        return self.embed_latent(z_BTZ)

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, past: list[KeysValues] | None = None) -> Tensor:
        """States s_0..s_{T-1} and z_0..z_{T-1} -> predictions of s_1..s_T, [B, T, N, D].

        With a `past`, one a block, the states are those that follow the ones already in it.
        """
        batch, steps, tokens, _ = states_BTND.shape
        if z_BTZ is not None and z_BTZ.shape[:2] != (batch, steps):
            raise ValueError(f"{batch} x {steps} states need as many latents, not {z_BTZ.shape[0]} x {z_BTZ.shape[1]}")
        done = past[0].filled // tokens if past is not None else 0
        x = self.embed(states_BTND).flatten(1, 2)
        rope = rope_tables(grid_positions(steps, tokens, done, x.device), self.head_dim)
        condition = self.condition(z_BTZ, states_BTND)
        # What a past has taken in, it cannot take in again when a block is computed again.
        recompute = self.config.activation_checkpointing and self.training and torch.is_grad_enabled() and past is None
        for i, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, rope, tokens, condition, use_reentrant=False)
            else:
                x = block(x, rope, tokens, condition, past[i] if past is not None else None)
        shift, scale = self.final_modulation(nn.functional.silu(condition)).chunk(2, dim=-1)
        out = self.head(modulate(self.norm(x), shift, scale)).unflatten(1, (steps, tokens))
        return states_BTND + out if self.config.residual else out

    def prefill(self, context_BTND: Tensor, z_BTZ: Tensor | None, steps: int) -> Past:
        """Takes in a context of T states and the latents of its own T - 1 transitions, with room for `steps` more."""
        batch, known, tokens, _ = context_BTND.shape
        shape = (batch, self.config.heads, (known - 1 + steps) * tokens, self.head_dim)
        past = Past([KeysValues.empty(shape, self.embed.weight) for _ in self.blocks], context_BTND[:, -1])
        if known > 1:
            self(context_BTND[:, :-1], z_BTZ, past.blocks)
        return past

    def step(self, past: Past, z_BZ: Tensor | None) -> Tensor:
        """The state [B, N, D] that follows under that latent; it is the newest of `past` from now on."""
        z_B1Z = None if z_BZ is None else z_BZ.unsqueeze(1)
        predicted = self(past.now_BND.unsqueeze(1), z_B1Z, past.blocks)[:, 0]
        past.now_BND = predicted.to(past.now_BND.dtype)
        return past.now_BND

    def rollout(self, context_BTND: Tensor, z_BTZ: Tensor | None, steps: int, candidates: int = 1) -> Tensor:
        """Unrolls `steps` predictions from the context, each fed back; -> [B * candidates, steps, N, D].

        `z_BTZ`: [B * candidates, T_context - 1 + steps, Z], the context's own transitions too (None: a deterministic
        model). `candidates`: that many continuations of each context, one after another in the batch; what they
        share is computed once, and its latents are those of the first.
        """
        own = context_BTND.shape[1] - 1
        past = self.prefill(context_BTND, None if z_BTZ is None else z_BTZ[::candidates, :own], steps)
        if candidates > 1:
            past = past.repeat(candidates)
        found = [self.step(past, None if z_BTZ is None else z_BTZ[:, own + i]) for i in range(steps)]
        return torch.stack(found, dim=1)

    def rollout_policy(self, past: Past, policy: Policy, steps: int) -> Tensor:
        """Unrolls `steps` predictions from `past` under the latents that the policy gives; -> [B, steps, N, D]."""
        return torch.stack([self.step(past, policy(past.now_BND, i)) for i in range(steps)], dim=1)
