"""V-JEPA 2's video encoder.

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
"""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lawm.config import ClipSpec, LawmError, VJepa2Encoder
from lawm.model.encoder.base import Encoder
from lawm.model.encoder.tubelets import TUBELET, looks_back, states_per_clip
from lawm.model.layers import Block, grid_positions, patchify, rope_tables

VJEPA2_SIZES = {
    "tiny": (80, 2, 2, 320),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 22, 6144),
    "G": (1664, 48, 26, 8192),
}
"""Width, depth, heads, hidden width of the MLP."""


class VJepa2States(Encoder):
    """V-JEPA 2's video encoder on lawm's own blocks. The released weights are bidirectional in time;
    `causality` says how a state is kept from seeing later frames (spec section 1; Garrido et al. 2026)."""

    PATCH = 16
    PRETRAINED_GRID = 16
    """Cells a side of 2.1's position grid: positions of other sizes are stretched to it."""
    recompute = False

    def __init__(self, config: VJepa2Encoder, clip: ClipSpec) -> None:
        super().__init__((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), config.mean, config.std)
        if clip.size % self.PATCH:
            raise LawmError(f"data.clip.size = {clip.size}: V-JEPA 2 needs a multiple of {self.PATCH}; set one")
        if config.causality != "duplicate" and clip.frames * clip.duplicate % TUBELET:
            raise LawmError(
                f"data.clip.frames = {clip.frames}: V-JEPA 2 makes one state of {TUBELET} frames; "
                "set an even number, or encoder.causality=duplicate"
            )
        if states_per_clip(config, clip) < 2:
            raise LawmError(
                f"data.clip.frames = {clip.frames} makes one state, and a transition needs two; set more frames"
            )
        width, depth, heads, hidden = VJEPA2_SIZES[config.size]
        self.config = config
        self.state_width, self.tokens = width, (clip.size // self.PATCH) ** 2
        self.looks_back = looks_back(config)
        self.frames_per_state = TUBELET if self.looks_back else 1
        self.head_dim = width // heads
        self.embed = nn.Linear(3 * TUBELET * self.PATCH**2, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden / width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.modality = nn.Parameter(torch.zeros(width)) if config.version == "2.1" else None

    def fingerprint(self) -> str:
        """As `Encoder.fingerprint`, of version and causality too: the same weights give other states."""
        said = f"{super().fingerprint()} {self.config.version} {self.config.causality}"
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def tubelets(self, frames_BFCHW: Tensor) -> Tensor:
        """[B, F, 3, S, S] -> [B, F / 2, N, 3 * 2 * 16 * 16], in the order of a Conv3d's weights."""
        pairs = frames_BFCHW.unflatten(1, (-1, TUBELET)).transpose(2, 3).flatten(2, 3)
        return patchify(pairs, self.PATCH)

    def transform(self, tubelets_BTNP: Tensor, causal: bool) -> Tensor:
        """The network on T tubelets at once: [B, T, N, P] -> [B, T, N, D]; `causal`: in blocks of a tubelet."""
        _, steps, tokens, _ = tubelets_BTNP.shape
        x = self.embed(tubelets_BTNP).flatten(1, 2)
        if self.modality is not None:
            x = x + self.modality
        positions = grid_positions(steps, tokens, device=x.device)
        if self.config.version == "2.1":
            positions[:, 1:] *= (self.PRETRAINED_GRID - 1) / max(math.isqrt(tokens) - 1, 1)
        rope = rope_tables(positions, self.head_dim, tiled=self.config.version == "2.0")
        block_tokens = tokens if causal else None
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, block_tokens, use_reentrant=False)
            else:
                x = block(x, rope, block_tokens)
        return self.norm(x).unflatten(1, (steps, tokens))

    def checkpoint_activations(self) -> None:
        self.recompute = True

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, T, N, D]; T = F for `duplicate`, else F / 2."""
        frames = self.normalized(frames_BFCHW)
        if self.config.causality == "duplicate":
            frames = frames.repeat_interleave(TUBELET, dim=1)
        tubelets = self.tubelets(frames)
        if self.config.causality == "block_causal":
            return self.transform(tubelets, causal=True)
        alone = self.transform(tubelets.flatten(0, 1).unsqueeze(1), causal=False)
        return alone.squeeze(1).unflatten(0, tubelets.shape[:2])
