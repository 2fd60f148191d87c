"""What every encoder is, and what is done to its states.

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(nn.Module):
    """What every encoder is: frozen, in eval mode for good, uint8 frames in, raw states out.

    `state_width` D and `tokens` N describe a state; `frames_per_state` is the tubelet length (1 for an
    image backbone). No state depends on a frame after it. `encode` is `forward` with gradients, for a copy
    whose weights learn (lawm/training/fine_tune.py).
    """

    state_width: int
    tokens: int
    frames_per_state: int = 1
    looks_back: bool = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        other_mean: tuple[float, ...] | None = None,
        other_std: tuple[float, ...] | None = None,
    ) -> None:
        """`mean`, `std`: of each colour in [0, 1], its own; `other_mean`, `other_std`: what is used instead."""
        super().__init__()
        used = (other_mean or mean, other_std or std)
        self.renormalised = used if used != (tuple(mean), tuple(std)) else None
        self.register_buffer("mean", torch.tensor(used[0]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(used[1]).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(False)

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, T, N, D], T = F / frames_per_state."""
        raise TypeError(f"{type(self).__name__} makes no states")

    @torch.no_grad()
    def forward(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, T, N, D], without gradients."""
        return self.encode(frames_BFCHW)

    def checkpoint_activations(self) -> None:
        """From now on keeps less for the backward pass and computes it again. Raises LawmError if it cannot."""

    def normalized(self, frames_BFCHW: Tensor) -> Tensor:
        """uint8 in [0, 255] -> float with the encoder's own mean and std, on the frames' device."""
        return (frames_BFCHW.float() / 255.0 - self.mean) / self.std

    def fingerprint(self) -> str:
        """A hash of the weights, of the shape of the states and of a mean or std that is not the encoder's own; equal
        encoders have equal ones."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(f"{type(self).__name__} {self.state_width} {self.tokens}".encode())
        if self.renormalised is not None:
            digest.update(f"mean and std {self.renormalised}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def encode_clips(encoder: Encoder, frames_BFCHW: Tensor, duplicate: int = 1, gradients: bool = False) -> Tensor:
    """uint8 frames -> raw states [B, T, N, D], each frame given to the encoder `duplicate` times."""
    if duplicate > 1:
        frames_BFCHW = frames_BFCHW.repeat_interleave(duplicate, dim=1)
    states = encoder.encode(frames_BFCHW) if gradients else encoder(frames_BFCHW)
    return states[:, ::duplicate] if encoder.frames_per_state == 1 else states


def frames_per_state(encoder: Encoder, duplicate: int = 1) -> int:
    """Frames of a clip that make one state: a tubelet's, fewer where the clip repeats its frames."""
    return max(encoder.frames_per_state // duplicate, 1)


class StateNorm(nn.Module):
    """What is done to raw states before anything sees them: nothing, an affine-free LayerNorm of each
    token, or each channel standardised by statistics measured once (`calibrate`) and then kept."""

    channel_mean: Tensor
    channel_std: Tensor
    calibrated: Tensor

    def __init__(self, kind: str, state_width: int) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("channel_mean", torch.zeros(state_width))
        self.register_buffer("channel_std", torch.ones(state_width))
        self.register_buffer("calibrated", torch.tensor(kind != "channel"))

    @torch.no_grad()
    def calibrate(self, states_BTND: Tensor) -> None:
        flat = states_BTND.float().flatten(0, -2)
        self.channel_mean.copy_(flat.mean(dim=0))
        std = flat.std(dim=0)
        self.channel_std.copy_(std.clamp_min(1e-3 * std.max().clamp_min(1e-6)))
        self.calibrated.fill_(True)

    def forward(self, states_BTND: Tensor) -> Tensor:
        if self.kind == "layer_norm":
            return F.layer_norm(states_BTND.float(), states_BTND.shape[-1:])
        if self.kind == "channel":
            return (states_BTND.float() - self.channel_mean) / self.channel_std
        return states_BTND.float()

    def inverse(self, states_BTND: Tensor) -> Tensor:
        """Raw states again (not for `layer_norm`, which forgets each token's mean and scale)."""
        return states_BTND * self.channel_std + self.channel_mean if self.kind == "channel" else states_BTND
