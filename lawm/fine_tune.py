"""Training the encoder along with the model on top of it: distillation, the EMA target encoder, and what a
collapse of its states looks like (Yang 2026, section 3.4; Grill et al. 2020 for the target).

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import ClipSpec, FineTuneConfig, LawmError
from lawm.encoder import Encoder
from lawm.latent_action import effective_rank

RANK_ROWS = 1024
"""Tokens of which the effective rank is taken."""


class FineTuning(nn.Module):
    """The encoder that learns (`online`), and the `original` that it is held against.

    The encoder that the model is used with afterwards stands outside: it follows `online`, at once or as a
    moving average, and with `target: ema` its states are what is predicted.
    """

    def __init__(self, config: FineTuneConfig, original: Encoder, clip: ClipSpec) -> None:
        super().__init__()
        self.config = config
        self.original = original
        self.online = thawed(original, clip)
        if config.gradient_checkpointing:
            self.online.checkpoint_activations()

    def distillation(self, online_BTND: Tensor, original_BTND: Tensor) -> Tensor:
        """alpha ||f(x) - f0(x)||_F^2 of normalised states, per element (`mean`) or per clip (`sum`)."""
        squared = F.mse_loss(online_BTND, original_BTND)
        if self.config.distillation_norm == "sum":
            squared = squared * online_BTND[0].numel()
        return self.config.distillation * squared

    @torch.no_grad()
    def follow(self, encoder: Encoder) -> None:
        """Moves `encoder` towards `online`: by the moving average, or all the way without one."""
        share = 1 - self.config.momentum if self.config.target == "ema" else 1.0
        for kept, new in zip(encoder.parameters(), self.online.parameters(), strict=True):
            kept.lerp_(new, share)


def thawed(encoder: Encoder, clip: ClipSpec) -> Encoder:
    """A copy whose weights learn: those that a state depends on (the layers behind `stage` do not)."""
    copied = copy.deepcopy(encoder).requires_grad_(True)
    if not any(True for _ in copied.parameters()):
        raise LawmError("fine_tune.target: this encoder has no weights to train; set it to off")
    frames = torch.zeros(1, 2, 3, clip.size, clip.size, dtype=torch.uint8, device=copied.mean.device)
    copied.encode(frames).sum().backward()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return copied


@torch.no_grad()
def state_health(online_BTND: Tensor, original_BTND: Tensor) -> dict[str, float]:
    """What the states have kept of the original's, as ratios: `state_std` (how clips and times differ, each token
    against itself), `state_change` (from one state to the next), `state_rank` (effective rank over tokens)."""

    def figures(states: Tensor) -> tuple[float, float, float]:
        states = states.float()
        spread = states.flatten(0, 1).std(dim=0, correction=0).mean()
        change = (states[:, 1:] - states[:, :-1]).abs().mean()
        rows = states.flatten(0, 2)
        rank = effective_rank(rows[:: max(len(rows) // RANK_ROWS, 1)][:RANK_ROWS].cpu())
        return float(spread), float(change), rank

    pairs = zip(figures(online_BTND), figures(original_BTND), strict=True)
    names = ("state_std", "state_change", "state_rank")
    return {name: now / max(then, 1e-12) for name, (now, then) in zip(names, pairs, strict=True)}


def collapsing(metrics: Mapping[str, float], config: FineTuneConfig) -> str:
    """Why a run has to stop because its encoder's states collapse; else empty."""
    kept = {name: metrics[name] for name in ("state_std", "state_change", "state_rank") if name in metrics}
    if not kept or min(kept.values()) >= config.stop_below:
        return ""
    said = ", ".join(f"{name} {value:.3g}" for name, value in kept.items())
    remedies = ["a lower fine_tune.lr", "more fine_tune.distillation"]
    if config.target != "ema":
        remedies.insert(0, "fine_tune.target=ema")
    return (
        f"the encoder is collapsing: of the original's states there are left {said} (fine_tune.stop_below = "
        f"{config.stop_below:g}); the last checkpoint is from before. Try {', '.join(remedies)}"
    )
