"""Inverse dynamics g: (s_t, s_{t+1}) -> codes.

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import IDMConfig, MlpIDM, TransformerIDM
from lawm.model.layers import MLP, Block, grid_positions, rope_tables


class TransformerInverseDynamics(nn.Module):
    """Both states' tokens and a learned query per transition, through a few blocks."""

    def __init__(self, config: TransformerIDM, state_width: int, code_width: int) -> None:
        super().__init__()
        self.join = config.join
        self.head_dim = config.width // config.heads
        inputs = 2 * state_width if config.join == "channels" else state_width
        self.embed = nn.Linear(inputs, config.width)
        self.query = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, code_width)

    def forward(self, states_BTND: Tensor) -> Tensor:
        """states [B, T, N, D] -> codes [B, T-1, K]."""
        batch, steps, tokens, _ = states_BTND.shape
        before, after = states_BTND[:, :-1], states_BTND[:, 1:]
        if self.join == "channels":
            pair = torch.cat([before, after - before], dim=-1)
            positions = grid_positions(1, tokens, device=pair.device)
        else:
            pair = torch.cat([before, after], dim=2)
            positions = grid_positions(2, tokens, device=pair.device)
        x = self.embed(pair).flatten(0, 1)
        x = torch.cat([self.query.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        rope = rope_tables(F.pad(positions, (0, 0, 1, 0)), self.head_dim)
        for block in self.blocks:
            x = block(x, rope)
        return self.head(self.norm(x[:, 0])).unflatten(0, (batch, steps - 1))


class MlpInverseDynamics(nn.Module):
    """The report's: an MLP on the two pooled states."""

    def __init__(self, config: MlpIDM, state_width: int, code_width: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * state_width, config.hidden, code_width, config.layers)

    def forward(self, states_BTND: Tensor) -> Tensor:
        """states [B, T, N, D] -> codes [B, T-1, K]."""
        pooled = states_BTND.mean(dim=2)
        return self.mlp(torch.cat([pooled[:, :-1], pooled[:, 1:] - pooled[:, :-1]], dim=-1))


def build_inverse_dynamics(config: IDMConfig, state_width: int, code_width: int) -> nn.Module:
    match config:
        case TransformerIDM():
            return TransformerInverseDynamics(config, state_width, code_width)
        case MlpIDM():
            return MlpInverseDynamics(config, state_width, code_width)
