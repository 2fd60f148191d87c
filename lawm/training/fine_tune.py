"""Training the encoder along with the model on top of it, as a wrapper around the model's objective: distillation, the
EMA target encoder, and what a collapse of its states looks like (Yang 2026, section 3.4; Grill et al. 2020 for the
target).

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import ClipSpec, Config, FineTuneConfig, LawmError, PixelsEncoder
from lawm.data import ActionScales
from lawm.model import Encoder, effective_rank, encode_clips
from lawm.training.batches import ClipBatch
from lawm.training.objective import LatentActionObjective, LossTerms, Objective

LEARNING = "fine_tuning."
"""How the names of the learning encoder's weights begin in a checkpoint."""
RANK_ROWS = 1024
"""Tokens of which the effective rank is taken."""


class FineTuning(Objective):
    """A latent action objective on the states of an encoder that learns (`online`), held against the `original`.

    The encoder that the `model` has from now on, and is used with afterwards, is a copy of its own: it follows
    `online`, at once or as a moving average, and with `target: ema` its states are what is predicted.
    """

    kind = LatentActionObjective.kind

    def __init__(self, model: LatentActionObjective, config: FineTuneConfig, clip: ClipSpec) -> None:
        super().__init__()
        self.config = config
        self.original = model.own_encoder()
        self.online = thawed(self.original, clip)
        self.model = model
        if config.gradient_checkpointing:
            self.online.checkpoint_activations()

    def rebuilt(self) -> tuple[str, ...]:
        return ("original.",)

    def kept_name(self, name: str) -> str:
        """The model's weights have the names that they have without the wrapper."""
        own = name.removeprefix("model.")
        return own if own != name else f"{LEARNING}{name}"

    @property
    def calibrates(self) -> bool:
        return self.model.calibrates

    def calibrate(self, batch: ClipBatch) -> None:
        self.model.calibrate(batch)

    @property
    def reads_actions(self) -> bool:
        return self.model.reads_actions

    def scale_actions(self, scales: ActionScales) -> None:
        self.model.scale_actions(scales)

    def learning_rates(self) -> dict[nn.Module, float]:
        return {self.online: self.config.lr}

    def trouble(self, metrics: dict[str, float]) -> str:
        return collapsing(metrics, self.config)

    def maintain(self, optimizer_state: dict[Any, dict[str, Any]]) -> dict[str, float]:
        self.follow(self.model.encoder)
        return self.model.maintain(optimizer_state)

    def forward(self, batch: ClipBatch) -> LossTerms:
        """In evaluation, the loss of the model as it is used afterwards."""
        model, frames = self.model, batch.frames_BFCHW
        if not self.training:
            return model(batch)
        if frames is None:
            raise LawmError("fine_tune learns from frames: train it from videos, not from a state cache")
        states = model.state_norm(encode_clips(self.online, frames, model.duplicate, gradients=True))
        targets = model.states(batch) if self.config.target == "ema" else states
        original = model.state_norm(encode_clips(self.original, frames, model.duplicate))
        terms = model.terms(states, targets, batch.actions_BTA)
        distillation = self.distillation(states, original)
        metrics = {**terms.metrics, "distillation": distillation.detach()}
        return replace(terms, penalty=terms.penalty + distillation, metrics=metrics, states=(states.detach(), original))

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


def build_latent_action(config: Config, encoder: Encoder | None = None) -> LatentActionObjective | FineTuning:
    """The objective that trains a config's latent action model: with `fine_tune` on, wrapped. Raises LawmError."""
    check_fine_tuning(config)
    model = LatentActionObjective(config, encoder)
    return model if config.fine_tune.target == "off" else FineTuning(model, config.fine_tune, config.data.clip)


def check_fine_tuning(config: Config) -> None:
    """Raises LawmError where fine-tuning is on and the encoder or the data cannot be learnt from."""
    if config.fine_tune.target == "off":
        return
    if isinstance(config.encoder, PixelsEncoder):
        raise LawmError("fine_tune.target: the pixels encoder has no weights to train; set it to off")
    if config.data.cached:
        raise LawmError("fine_tune learns from frames: train it from videos, not from a state cache")


def thawed(encoder: Encoder, clip: ClipSpec) -> Encoder:
    """A copy whose weights learn: those that a state depends on (the layers behind `stage` do not)."""
    copied = copy.deepcopy(encoder).requires_grad_(True)
    frames = torch.zeros(1, 2, 3, clip.size, clip.size, dtype=torch.uint8, device=copied.mean.device)
    copied.encode(frames).sum().backward()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return copied


KEPT = ("state_std", "state_change", "state_rank")


@torch.no_grad()
def state_figures(states_BTND: Tensor) -> dict[str, float]:
    """`state_std` (how clips and times differ, each token against itself), `state_change` (from one state to the
    next), `state_rank` (effective rank over tokens, the same ones for equal shapes), `state_scale` (mean size)."""
    states = states_BTND.float()
    rows = states.flatten(0, 2)
    pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:RANK_ROWS]
    return {
        "state_std": float(states.flatten(0, 1).std(dim=0, correction=0).mean()),
        "state_change": float((states[:, 1:] - states[:, :-1]).abs().mean()),
        "state_rank": effective_rank(rows[pick.to(rows.device)].cpu()),
        "state_scale": float(states.abs().mean()),
    }


def state_health(now: Mapping[str, float], then: Mapping[str, float]) -> dict[str, float]:
    """What the states have kept of the original's, as ratios of `state_figures`; left out where the original's own
    figure is nothing (still clips have no change to lose)."""
    floor = 1e-6 * then["state_scale"]
    return {name: now[name] / then[name] for name in KEPT if then[name] > max(floor, 1e-12)}


def collapsing(metrics: Mapping[str, float], config: FineTuneConfig) -> str:
    """Why a run has to stop because its encoder's states collapse; else empty."""
    kept = {name: metrics[name] for name in KEPT if name in metrics}
    if not kept or min(kept.values()) >= config.stop_below:
        return ""
    said = ", ".join(f"{name} {value:.3g}" for name, value in kept.items())
    remedies = ["a lower fine_tune.lr", "more fine_tune.distillation"]
    if config.target != "ema":
        remedies.insert(0, "fine_tune.target=ema")
    return (
        f"the encoder is collapsing: of the original's states there are left {said} (fine_tune.stop_below = "
        f"{config.stop_below:g}); a checkpoint, if there is one, is from before. Try {', '.join(remedies)}"
    )
