"""The one transformer block: 3-D RoPE, frame-causal attention, frame-wise AdaLN-zero, keys and values kept.

A module whose weights hold hidden matrices names them in `hidden_matrices`, its children's of lawm's apart: weights
that map the inside of a network to itself. What reads inputs (states, latents, actions) or writes outputs is none,
and neither are embeddings, queries and codebooks (Jordan et al. 2024, Muon).

Legend: B batch, T states in time, N tokens of a state, C width, H heads, L = T * N tokens in all.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import ConfigError

SMALL_STATE = 32
"""Tokens of a state below which one masked attention call beats one call a state."""


def grid_positions(steps: int, tokens: int, start: int = 0, device: torch.device | None = None) -> Tensor:
    """(time, row, column) of every token of `steps` states from time `start`: float [steps * tokens, 3].

    A state's tokens are a square grid in row-major order where `tokens` is a square; otherwise a line.
    """
    side = math.isqrt(tokens)
    columns = side if side * side == tokens else tokens
    cell = torch.arange(tokens, device=device)
    time = torch.arange(start, start + steps, device=device).repeat_interleave(tokens)
    row, column = (cell // columns).repeat(steps), (cell % columns).repeat(steps)
    return torch.stack([time, row, column], dim=-1).float()


def rope_tables(positions_L3: Tensor, head_dim: int, tiled: bool = False) -> tuple[Tensor, Tensor]:
    """cos and sin, [L, head_dim]: a third of the head each for time, row and column (rounded down to
    pairs; for 64 dims 20 + 20 + 20), theta_i = 10000^(-i/(d/2)), what is left is not rotated.

    `tiled`: the angles of a third are laid out as theta_0..theta_k, theta_0..theta_k although neighbouring
    dims are the pairs: not a rotation, but what V-JEPA 2.0 was trained with (2.1 is not).
    """
    d = 2 * ((head_dim // 3) // 2)
    theta = 10000.0 ** (-torch.arange(d // 2, device=positions_L3.device).float() / max(d // 2, 1))
    theta = theta.repeat(2) if tiled else theta.repeat_interleave(2)
    angles = (positions_L3.unsqueeze(-1) * theta).flatten(1)
    angles = F.pad(angles, (0, head_dim - 3 * d))
    return angles.cos(), angles.sin()


def apply_rope(x_BHLd: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates pairs of neighbouring dims by the tables of `rope_tables`."""
    cos, sin = rope
    even, odd = x_BHLd[..., ::2], x_BHLd[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x_BHLd * cos + turned * sin).to(x_BHLd.dtype)


def attend(q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, tokens: int | None) -> Tensor:
    """Scaled dot-product attention; with `tokens` per state, a token sees its own state and earlier ones.

    Queries are those of the last states that the keys hold. Each state attends to its prefix of the keys
    in a call of its own: no mask, so every device's fused kernel takes it, and half of the work of a masked
    square is not done. Tiny states share one masked call, which is then cheaper than many.
    """
    steps = 1 if tokens is None else q_BHQd.shape[2] // tokens
    if tokens is None or steps == 1:
        return F.scaled_dot_product_attention(q_BHQd, k_BHLd, v_BHLd)
    known = k_BHLd.shape[2] - q_BHQd.shape[2]
    if tokens < SMALL_STATE:
        time = torch.arange(known + steps * tokens, device=q_BHQd.device) // tokens
        mask = time[known:].unsqueeze(1) >= time.unsqueeze(0)
        return F.scaled_dot_product_attention(q_BHQd, k_BHLd, v_BHLd, attn_mask=mask)
    ends = [known + (i + 1) * tokens for i in range(steps)]
    parts = [
        F.scaled_dot_product_attention(q, k_BHLd[:, :, :end], v_BHLd[:, :, :end])
        for q, end in zip(q_BHQd.split(tokens, dim=2), ends, strict=True)
    ]
    return torch.cat(parts, dim=2)


class KeysValues:
    """What attention has seen so far, in one block: keys and values [B, H, L, d], of which `filled` tokens are there.

    Allocated once and written in place; under autograd, which may not find changed what it has read, put together anew.
    """

    def __init__(self, keys_BHLd: Tensor, values_BHLd: Tensor, filled: int = 0) -> None:
        self.keys, self.values, self.filled = keys_BHLd, values_BHLd, filled

    @classmethod
    def empty(cls, shape_BHLd: tuple[int, int, int, int], like: Tensor) -> "KeysValues":
        """Room for L tokens, on the device of `like`, a weight, and in the type in which it computes."""
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        keys, values = (torch.empty(shape_BHLd, dtype=dtype, device=like.device) for _ in range(2))
        return cls(keys, values)

    def repeat(self, copies: int) -> "KeysValues":
        """Each sequence of the batch `copies` times in a row, in memory of its own and with as much room."""

        def copied(held: Tensor) -> Tensor:
            batch, *rest = held.shape
            made = held.new_empty(batch, copies, *rest)
            made[:, :, :, : self.filled] = held[:, None, :, : self.filled]
            return made.flatten(0, 1)

        return KeysValues(copied(self.keys), copied(self.values), self.filled)

    def extend(self, key_BHLd: Tensor, value_BHLd: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in the newest tokens' keys and values; returns those of all tokens so far."""
        start, end = self.filled, self.filled + key_BHLd.shape[2]
        if torch.is_grad_enabled():
            self.keys = torch.cat([self.keys[:, :, :start], key_BHLd, self.keys[:, :, end:]], dim=2)
            self.values = torch.cat([self.values[:, :, :start], value_BHLd, self.values[:, :, end:]], dim=2)
        else:
            self.keys[:, :, start:end] = key_BHLd
            self.values[:, :, start:end] = value_BHLd
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention where `memory` is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ConfigError(
                f"width = {width} with heads = {heads}: each head needs an even share of the width; set one to fit"
            )
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def hidden_matrices(self) -> Iterator[Tensor]:
        yield from (self.q.weight, self.kv.weight, self.proj.weight)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        x_BLC: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        tokens: int | None = None,
        past: KeysValues | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        q = self._split(self.q(x_BLC))
        k, v = map(self._split, self.kv(x_BLC if memory is None else memory).chunk(2, dim=-1))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if past is not None:
            k, v = past.extend(k, v)
        return self.proj(attend(q, k, v, tokens).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and MLP; frame-causal where `tokens` per state are given. With `conditioned`,
    both are modulated per state by AdaLN-zero (Peebles & Xie 2023, applied frame-wise as in the paper):
    affine-free norms; shift, scale and gate from the state's latent action, zero-initialised, so that the
    block starts as the identity."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, conditioned: bool = False) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not conditioned)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not conditioned)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.modulation = zero_linear(width, 6 * width) if conditioned else None

    def hidden_matrices(self) -> Iterator[Tensor]:
        yield from linear_weights(self.mlp)
        if self.modulation is not None:
            yield self.modulation.weight

    def forward(
        self,
        x_BLC: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        tokens: int | None = None,
        condition_BTC: Tensor | None = None,
        past: KeysValues | None = None,
    ) -> Tensor:
        if self.modulation is None:
            x_BLC = x_BLC + self.attention(self.norm1(x_BLC), rope, tokens, past)
            return x_BLC + self.mlp(self.norm2(x_BLC))
        assert condition_BTC is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition_BTC)).chunk(6, dim=-1)
        inner = self.attention(modulate(self.norm1(x_BLC), shift1, scale1), rope, tokens, past)
        x_BLC = x_BLC + per_state(inner, gate1)
        inner = self.mlp(modulate(self.norm2(x_BLC), shift2, scale2))
        return x_BLC + per_state(inner, gate2)


class MLP(nn.Sequential):
    """`layers` linear layers with an activation between them: the first reads, the last writes."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, layers: int, activation: type[nn.Module] = nn.GELU
    ) -> None:
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        parts: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            parts += [nn.Linear(a, b)] + ([activation()] if i < layers - 1 else [])
        super().__init__(*parts)

    def hidden_matrices(self) -> Iterator[Tensor]:
        yield from linear_weights(self)[1:-1]


def linear_weights(mlp: nn.Sequential) -> list[Tensor]:
    """The weights of its linear layers, in order."""
    return [layer.weight for layer in mlp if isinstance(layer, nn.Linear)]


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def per_state(x_BLC: Tensor, factor_BTC: Tensor) -> Tensor:
    """x times a factor that is the same for all N tokens of a state."""
    steps = factor_BTC.shape[1]
    return (x_BLC.unflatten(1, (steps, -1)) * factor_BTC.unsqueeze(2)).flatten(1, 2)


def modulate(x_BLC: Tensor, shift_BTC: Tensor, scale_BTC: Tensor) -> Tensor:
    """x * (1 + scale) + shift, per state."""
    steps = shift_BTC.shape[1]
    x = x_BLC.unflatten(1, (steps, -1)) * (1 + scale_BTC.unsqueeze(2)) + shift_BTC.unsqueeze(2)
    return x.flatten(1, 2)


def patchify(frames_BTCHW: Tensor, patch: int) -> Tensor:
    """[B, T, 3, S, S] -> [B, T, N, 3 * patch^2], row-major."""
    b, t, c, h, w = frames_BTCHW.shape
    x = frames_BTCHW.reshape(b, t, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(b, t, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(patches_BTNP: Tensor, channels: int = 3) -> Tensor:
    """The inverse of `patchify` for a square grid: [B, T, N, C * patch^2] -> [B, T, C, S, S]."""
    b, t, n, p = patches_BTNP.shape
    side, patch = math.isqrt(n), math.isqrt(p // channels)
    x = patches_BTNP.reshape(b, t, side, side, channels, patch, patch)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, t, channels, side * patch, side * patch)
