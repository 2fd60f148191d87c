"""Real action + state -> latent action, and back.

Legend: B batch, T transitions, N tokens, D state width, A real-action width, Z latent width.
Source: Garrido et al. 2026, section 7 and appendix A; Yang 2026, section 3.5 for the MLPs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lawm.config import AttentionController, ControllerConfig, MlpController
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
        return self.from_memory(actions_BTA, self.memory(states_BTND))

    def from_memory(self, actions_BTA: Tensor, memory_BTNC: Tensor) -> Tensor:
        query = self.embed_action(actions_BTA).flatten(0, 1).unsqueeze(1)
        x = query + self.cross(self.norm_query(query), memory=memory_BTNC.flatten(0, 1))
        x = x + self.mlp(self.norm_mlp(x))
        return self.head(self.norm(x[:, 0])).unflatten(0, actions_BTA.shape[:2])


class MlpActionController(nn.Module):
    """Actions alone, a 3-layer MLP."""

    def __init__(self, config: MlpController, action_dim: int, latent: int) -> None:
        super().__init__()
        self.mlp = MLP(action_dim, config.hidden, latent, config.layers)

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        """actions [B, T, A] (standardised) -> z [B, T, Z]; states are not read."""
        return self.mlp(actions_BTA)


class Controller(nn.Module):
    """Controller and inverse controller, with the actions' own scale kept as buffers.

    `forward`: real actions (in the data's units) and states -> latents. `inverse`: latents -> actions.
    """

    action_mean: Tensor
    action_std: Tensor
    latent_mean: Tensor
    latent_square: Tensor
    latents_seen: Tensor

    def __init__(self, config: ControllerConfig, state_width: int, action_dim: int, latent: int) -> None:
        super().__init__()
        match config.model:
            case AttentionController():
                self.forward_map: nn.Module = CrossAttentionController(config.model, state_width, action_dim, latent)
            case MlpController():
                self.forward_map = MlpActionController(config.model, action_dim, latent)
        self.inverse_map = MLP(latent, 256, action_dim, 3)
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))
        self.action_dim, self.latent = action_dim, latent
        self.standardised = config.latents == "standardised"
        if self.standardised:
            self.register_buffer("latent_mean", torch.zeros(latent, dtype=torch.float64))
            self.register_buffer("latent_square", torch.ones(latent, dtype=torch.float64))
            self.register_buffer("latents_seen", torch.zeros((), dtype=torch.float64))

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        z = self.forward_map((actions_BTA - self.action_mean) / self.action_std, states_BTND)
        return z * self.latent_std.to(z.dtype) + self.latent_mean.to(z.dtype) if self.standardised else z

    @property
    def latent_std(self) -> Tensor:
        """The scale of each latent dimension, [Z]: its standard deviation over the latents noted so far, at least a
        hundredth of the largest (a dimension that does not vary has nothing to say); ones where latents are plain."""
        if not self.standardised:
            return torch.ones(self.latent, device=self.action_std.device)
        std = (self.latent_square - self.latent_mean.square()).clamp(min=0).sqrt()
        return torch.maximum(std, 0.01 * std.max()).clamp(min=1e-6).float()

    @torch.no_grad()
    def note_latents(self, z_BTZ: Tensor) -> None:
        """Takes the latents of a batch into mean and standard deviation, which weigh all batches alike."""
        if self.standardised:
            z = z_BTZ.detach().double().flatten(0, 1)
            self.latents_seen += 1
            self.latent_mean += (z.mean(0) - self.latent_mean) / self.latents_seen
            self.latent_square += (z.square().mean(0) - self.latent_square) / self.latents_seen

    def inverse(self, z_BTZ: Tensor) -> Tensor:
        """z [B, T, Z] -> actions [B, T, A] in the data's units."""
        return self.inverse_map(z_BTZ) * self.action_std + self.action_mean
