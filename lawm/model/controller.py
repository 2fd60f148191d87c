"""Real action + state -> latent action, and back.

Legend: B batch, T transitions, N tokens, D state width, A real-action width, Z latent width.
Source: Garrido et al. 2026, section 7 and appendix A; Yang 2026, section 3.5 for the MLPs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lawm.config import AttentionController, ControllerConfig, MlpController
from lawm.model.latent_statistics import LatentStatistics
from lawm.model.layers import MLP, Attention, Block, grid_positions, linear_weights, rope_tables


class CrossAttentionController(nn.Module):
    """Self-attention over the last state's patches, one cross-attention block from the embedded
    action (3-layer MLP), a linear layer to Z. Sees the last state only, not the whole past."""

    def __init__(self, config: AttentionController, state_width: int, action_dim: int, latent: int) -> None:
        super().__init__()
        width = config.width or state_width
        self.head_dim = width // config.heads
        self.embed_state = nn.Linear(state_width, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.embed_action = MLP(action_dim, width, width, 3)
        self.norm_memory = nn.LayerNorm(width, eps=1e-6)
        self.norm_query = nn.LayerNorm(width, eps=1e-6)
        self.cross = Attention(width, config.heads)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, latent)

    def hidden_matrices(self) -> Iterator[Tensor]:
        yield from linear_weights(self.mlp)

    def memory(self, states_BTND: Tensor) -> Tensor:
        """What the cross-attention looks at, [B, T, N, C]; depends on the state alone."""
        x = self.embed_state(states_BTND).flatten(0, 1)
        rope = rope_tables(grid_positions(1, x.shape[1], device=x.device), self.head_dim)
        for block in self.blocks:
            x = block(x, rope)
        return self.norm_memory(x).unflatten(0, states_BTND.shape[:2])

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        """actions [B, T, A] (standardised), states [B, T, N, D] that they are taken in -> z [B, T, Z]."""
        memory = self.memory(states_BTND).flatten(0, 1)
        z = self.from_memory(actions_BTA.flatten(0, 1).unsqueeze(1), memory)
        return z[:, 0].unflatten(0, actions_BTA.shape[:2])

    def from_memory(self, actions_BSA: Tensor, memory_BNC: Tensor) -> Tensor:
        """S actions taken in each of B states, whose memory is [B, N, C] -> z [B, S, Z]."""
        query = self.embed_action(actions_BSA)
        x = query + self.cross(self.norm_query(query), memory=memory_BNC)
        x = x + self.mlp(self.norm_mlp(x))
        return self.head(self.norm(x))


class MlpActionController(nn.Module):
    """Actions alone, a 3-layer MLP."""

    def __init__(self, config: MlpController, action_dim: int, latent: int) -> None:
        super().__init__()
        self.mlp = MLP(action_dim, config.hidden, latent, config.layers)

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        """actions [B, T, A] (standardised) -> z [B, T, Z]; states are not read."""
        return self.mlp(actions_BTA)


class Controller(LatentStatistics):
    """Controller and inverse controller, with the actions' own scale kept as buffers.

    `forward`: real actions (in the data's units) and states -> latents. `inverse`: latents -> actions.
    """

    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: ControllerConfig, state_width: int, action_dim: int, latent: int) -> None:
        super().__init__(latent, config.latents == "standardised")
        match config.model:
            case AttentionController():
                self.forward_map: nn.Module = CrossAttentionController(config.model, state_width, action_dim, latent)
            case MlpController():
                self.forward_map = MlpActionController(config.model, action_dim, latent)
        self.inverse_map = MLP(latent, 256, action_dim, 3)
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))
        self.action_dim = action_dim

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        return self.to_latents(self.forward_map(self._scaled(actions_BTA), states_BTND))

    def _scaled(self, actions: Tensor) -> Tensor:
        return (actions - self.action_mean) / self.action_std

    def memory(self, state_BND: Tensor) -> Tensor | None:
        """What `from_memory` needs to know of a state, [B, N, C]; None where it looks at none."""
        if isinstance(self.forward_map, CrossAttentionController):
            return self.forward_map.memory(state_BND.unsqueeze(1))[:, 0]
        return None

    def from_memory(self, actions_BSA: Tensor, memory_BNC: Tensor | None) -> Tensor:
        """S real actions in each of B states -> z [B, S, Z]: what `forward` says of each."""
        actions = self._scaled(actions_BSA)
        if isinstance(self.forward_map, CrossAttentionController):
            assert memory_BNC is not None
            return self.to_latents(self.forward_map.from_memory(actions, memory_BNC))
        assert isinstance(self.forward_map, MlpActionController)
        return self.to_latents(self.forward_map.mlp(actions))

    def inverse(self, z_BTZ: Tensor) -> Tensor:
        """z [B, T, Z] -> actions [B, T, A] in the data's units."""
        return self.inverse_map(z_BTZ) * self.action_std + self.action_mean
