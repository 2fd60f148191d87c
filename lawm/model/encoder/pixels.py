"""Patches as they are.

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
"""

from torch import Tensor

from lawm.config import ClipSpec, LawmError, PixelsEncoder
from lawm.model.encoder.base import Encoder
from lawm.model.layers import patchify


class PixelStates(Encoder):
    """Patches as they are, in [-1, 1]; exactly invertible by `unpatchify`."""

    def __init__(self, config: PixelsEncoder, clip: ClipSpec) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        if clip.size % config.patch:
            raise LawmError(
                f"data.clip.size = {clip.size} is not a multiple of encoder.patch = {config.patch}; set one to fit"
            )
        self.patch = config.patch
        self.state_width = 3 * config.patch**2
        self.tokens = (clip.size // config.patch) ** 2

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, F, N, D]."""
        return patchify(self.normalized(frames_BFCHW), self.patch)
