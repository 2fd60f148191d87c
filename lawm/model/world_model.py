"""The world model p: (s_0..t, z_t) -> s_{t+1}: teacher forcing over a clip, and rollouts.

Legend: B batch, T states, N tokens, D state width, Z latent-action width, C model width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lawm.config import WorldModelConfig
from lawm.model.layers import MLP, Block, KVCache, grid_positions, modulate, rope_tables, zero_linear

Policy = Callable[[Tensor, int, int], Tensor]


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

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, cache: KVCache | None = None) -> Tensor:
        """States s_0..s_{T-1} and z_0..z_{T-1} -> predictions of s_1..s_T, [B, T, N, D].

        With a `cache`, the states are those that follow the ones already in it.
        """
        _, steps, tokens, _ = states_BTND.shape
        done = cache.steps if cache is not None else 0
        x = self.embed(states_BTND).flatten(1, 2)
        rope = rope_tables(grid_positions(steps, tokens, done, x.device), self.head_dim)
        condition = self.condition(z_BTZ, states_BTND)
        for i, block in enumerate(self.blocks):
            if self.config.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, tokens, condition, cache, i, use_reentrant=False)
            else:
                x = block(x, rope, tokens, condition, cache, i)
        if cache is not None:
            cache.steps += steps
        shift, scale = self.final_modulation(nn.functional.silu(condition)).chunk(2, dim=-1)
        out = self.head(modulate(self.norm(x), shift, scale)).unflatten(1, (steps, tokens))
        return states_BTND + out if self.config.residual else out

    def rollout(
        self,
        context_BTND: Tensor,
        latents: "Tensor | Policy | None",
        steps: int,
        cache: bool = True,
        candidates: int = 1,
    ) -> Tensor:
        """Unrolls `steps` predictions from the context, each fed back; -> [B * candidates, steps, N, D].

        `latents`: [B * candidates, T_context - 1 + steps, Z] (the context's own transitions too), or a
        function (states, start, stop) -> z of transitions start..stop-1, given the states that they start in.
        `candidates`: that many continuations of each context, one after another in the batch. What they
        share, the context without its last state, is computed once: there latents are those of the first.
        """
        known = context_BTND.shape[1]
        memory = KVCache(len(self.blocks)) if cache else None

        def z_of(past: Tensor, start: int, stop: int, every: int = 1) -> Tensor | None:
            if callable(latents):
                return latents(past, start, stop)
            return None if latents is None else latents[::every, start:stop]

        fed = 0
        if memory is not None and candidates > 1 and known > 1:
            fed = known - 1
            shared = context_BTND[:, :fed]
            self(shared, z_of(shared, 0, fed, candidates), memory)
            memory.repeat(candidates)
        states = context_BTND.repeat_interleave(candidates, dim=0) if candidates > 1 else context_BTND
        for now in range(known, known + steps):
            start = fed if memory is not None else 0
            past = states[:, start:now]
            states = torch.cat([states, self(past, z_of(past, start, now), memory)[:, -1:]], dim=1)
            fed = now
        return states[:, known:]
