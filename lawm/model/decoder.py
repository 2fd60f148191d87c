"""States -> pixels, for pictures.

Legend: B batch, T states, N tokens, D width, S image side, F frames: T times those of a state.
"""

import math

from torch import Tensor, nn

from lawm.config import DecoderConfig
from lawm.model.layers import Block, grid_positions, rope_tables, unpatchify


class Decoder(nn.Module):
    """A frame-causal ViT with a linear layer from token to pixels: of all `frames` that a state was made of."""

    def __init__(self, config: DecoderConfig, state_width: int, tokens: int, size: int, frames: int = 1) -> None:
        super().__init__()
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"the decoder needs a square grid of tokens, got {tokens}")
        self.size, self.frames = size, frames
        self.patch = math.ceil(size / side)
        self.head_dim = config.width // config.heads
        self.embed = nn.Linear(state_width, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, frames * 3 * self.patch**2)

    def forward(self, states_BTND: Tensor) -> Tensor:
        """states [B, T, N, D] -> frames in [0, 1] (unclamped), [B, F, 3, S, S]."""
        _, steps, tokens, _ = states_BTND.shape
        x = self.embed(states_BTND).flatten(1, 2)
        rope = rope_tables(grid_positions(steps, tokens, device=x.device), self.head_dim)
        for block in self.blocks:
            x = block(x, rope, tokens)
        patches = self.head(self.norm(x)).unflatten(1, (steps, tokens))
        frames = unpatchify(patches, 3 * self.frames).unflatten(2, (self.frames, 3)).flatten(1, 2)
        if frames.shape[-1] != self.size:
            frames = nn.functional.interpolate(
                frames.flatten(0, 1), size=self.size, mode="bilinear", antialias=True
            ).unflatten(0, (-1, steps * self.frames))
        return frames + 0.5
