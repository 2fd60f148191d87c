"""Goal-conditioned behaviour cloning: from a state and a goal to the actions between them, without a world model.

Legend: B batch, N tokens, D state width, K most steps to a goal, A action width.
Source: the role of NoMaD (Sridhar et al. 2024) and GCBC in the papers' tables; a few blocks over both states' tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import PolicyConfig
from lawm.model.layers import Block, grid_positions, rope_tables


class GoalPolicy(nn.Module):
    """(s_t, s_{t+k}, k) -> a_t ... a_{t+k-1}, in the data's units; what stands behind the k-th action is not meant."""

    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: PolicyConfig, state_width: int, action_dim: int, most_steps: int) -> None:
        super().__init__()
        width = config.width or state_width
        self.head_dim, self.most_steps, self.action_dim = width // config.heads, most_steps, action_dim
        self.embed = nn.Linear(2 * state_width, width)
        self.query = nn.Embedding(most_steps, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, most_steps * action_dim)
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))

    def forward(self, state_BND: Tensor, goal_BND: Tensor, steps_B: Tensor) -> Tensor:
        """States and goals [B, N, D], whole steps from one to the other [B], 1 to K -> actions [B, K, A]."""
        x = self.embed(torch.cat([state_BND, goal_BND - state_BND], dim=-1))
        x = torch.cat([self.query(steps_B - 1).unsqueeze(1).to(x.dtype), x], dim=1)
        positions = grid_positions(1, x.shape[1] - 1, device=x.device)
        rope = rope_tables(F.pad(positions, (0, 0, 1, 0)), self.head_dim)
        for block in self.blocks:
            x = block(x, rope)
        found = self.head(self.norm(x[:, 0])).unflatten(-1, (self.most_steps, self.action_dim))
        return found * self.action_std + self.action_mean
