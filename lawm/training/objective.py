"""The losses: latent action model, controller, prior, policy, decoder. Each is one nn.Module with one forward.

Legend: B batch, F frames, T states, N tokens, D state width, Z latent width, A action width.
"""

import copy
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import Config, FineTuneConfig, LawmError, PixelsEncoder
from lawm.data import ActionScales
from lawm.model import (
    Controller,
    Decoder,
    Encoder,
    GoalPolicy,
    LatentActionModel,
    LatentActions,
    LatentPrior,
    StateNorm,
    WorldModel,
    check_keys,
    check_state_a_frame,
    encode_clips,
    frames_per_state,
    load_encoder,
    unpatchify,
)
from lawm.training.batches import ClipBatch
from lawm.training.perceptual import load_lpips


@dataclass(frozen=True)
class LossTerms:
    """What is minimised (`total`), its parts, and detached figures to log.

    `states`: of a learning encoder and of the original, normalised and detached.
    """

    prediction: Tensor
    penalty: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    latents: Tensor | None = None
    states: tuple[Tensor, Tensor] | None = None

    @property
    def total(self) -> Tensor:
        return self.prediction + self.penalty


class Objective(nn.Module):
    """What the training loop needs of a loss: forward, weights to keep, upkeep after a step."""

    kind = ""

    def kept(self) -> dict[str, Tensor]:
        """Weights that a checkpoint keeps: everything but what is frozen and rebuilt from the config."""
        return {self.kept_name(k): v for k, v in self.state_dict().items() if not k.startswith(self.rebuilt())}

    def kept_name(self, name: str) -> str:
        """What a checkpoint calls the weight of that name."""
        return name

    def rebuilt(self) -> tuple[str, ...]:
        """Prefixes of state_dict keys that a checkpoint does not hold."""
        return ("encoder.",)

    def load_kept(self, weights: dict[str, Tensor], where: str) -> None:
        """Strict load; raises LawmError listing missing, unexpected and misshapen keys."""
        check_keys(self.kept(), weights, where)
        own = {k: weights[self.kept_name(k)] for k in self.state_dict() if not k.startswith(self.rebuilt())}
        self.load_state_dict(own, strict=False)

    @property
    def calibrates(self) -> bool:
        """Whether `calibrate` has anything to measure (reading clips for it costs time)."""
        return False

    def calibrate(self, batch: ClipBatch) -> None:
        """Measures data statistics that the model keeps, from the first clips of the plan."""

    @property
    def reads_actions(self) -> bool:
        """Whether it has a scale of actions, to be given to `scale_actions`."""
        return False

    def scale_actions(self, scales: ActionScales) -> None:
        """Keeps the scale of each number of an action."""

    def maintain(self, optimizer_state: dict[Any, dict[str, Any]]) -> dict[str, float]:
        """Upkeep after an optimiser step; returns figures to log."""
        return {}

    def learning_rates(self) -> dict[nn.Module, float]:
        """Modules within it that learn at rates of their own."""
        return {}

    def trouble(self, metrics: dict[str, float]) -> str:
        """Why the run has to stop, by its figures; else empty."""
        return ""

    def forward(self, batch: ClipBatch) -> LossTerms:
        raise TypeError(f"{type(self).__name__} has no loss")


def _keep(buffer: Tensor, values_A: np.ndarray) -> None:
    if len(values_A) != len(buffer):
        raise LawmError(f"the labels have {len(values_A)} numbers an action, the model was made for {len(buffer)}")
    buffer.copy_(torch.from_numpy(values_A))


class LatentActionObjective(Objective):
    """mean |s_{t+1} - p(s_0..t, z_t)| plus the bottleneck's penalty, by teacher forcing over the clip.

    The encoder is frozen. `lawm.training.fine_tune` wraps it all where the encoder learns too.
    """

    kind = "latent_action"

    def __init__(self, config: Config, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.encoder = encoder if encoder is not None else load_encoder(config.encoder, config.data.clip)
        self.encoder_fingerprint = self.encoder.fingerprint
        """Of the encoder that the config names, whatever fine-tuning has made of it."""
        self.fine_tuned = False
        width, model = self.encoder.state_width, config.model
        self.state_norm = StateNorm(config.encoder.normalize_states, width)
        self.latent_action = LatentActionModel(model, width)
        latent = None if self.latent_action.kind == "deterministic" else model.latent_dim
        self.world_model = WorldModel(model.world_model, width, latent)
        self.latent_dim = model.latent_dim
        self.action_dropout = model.action_dropout
        self.duplicate = config.data.clip.duplicate
        if self.latent_action.embed is not None:
            check_state_a_frame(config.encoder, config.data.clip)

    def own_encoder(self) -> Encoder:
        """Gives the model an encoder of its own, a copy, whose weights a checkpoint keeps; returns the one before."""
        original, said = self.encoder, self.encoder.fingerprint()
        self.encoder_fingerprint = lambda: said
        self.encoder, self.fine_tuned = copy.deepcopy(original), True
        return original

    @property
    def frames_per_state(self) -> int:
        """Frames of a clip that make one state."""
        return frames_per_state(self.encoder, self.duplicate)

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """uint8 frames -> raw states, one of `frames_per_state` frames."""
        return encode_clips(self.encoder, frames_BFCHW, self.duplicate)

    def states(self, batch: ClipBatch) -> Tensor:
        """The batch's normalised states [B, T, N, D], float32."""
        raw = batch.states_BTND
        if raw is None:
            if batch.frames_BFCHW is None:
                raise ValueError("a batch needs frames or states")
            raw = self.encode(batch.frames_BFCHW)
        return self.state_norm(raw)

    @property
    def calibrates(self) -> bool:
        return self.state_norm.kind == "channel"

    @torch.no_grad()
    def calibrate(self, batch: ClipBatch) -> None:
        if self.state_norm.kind == "channel" and not bool(self.state_norm.calibrated):
            raw = batch.states_BTND if batch.states_BTND is not None else self.encode(batch.frames_BFCHW)  # type: ignore[arg-type]
            self.state_norm.calibrate(raw)

    @property
    def reads_actions(self) -> bool:
        return self.latent_action.embed is not None

    def scale_actions(self, scales: ActionScales) -> None:
        _keep(self.latent_action.action_std, scales.scale(about_mean=False))

    def infer(self, states_BTND: Tensor, actions_BTA: Tensor | None = None) -> LatentActions:
        """Latent actions of normalised states."""
        return self.latent_action(states_BTND, actions_BTA)

    def rebuilt(self) -> tuple[str, ...]:
        return () if self.fine_tuned else ("encoder.",)

    def forward(self, batch: ClipBatch) -> LossTerms:
        states = self.states(batch)
        return self.terms(states, states, batch.actions_BTA)

    def terms(self, states_BTND: Tensor, targets_BTND: Tensor, actions_BTA: Tensor | None) -> LossTerms:
        """The loss where latents are inferred from `states`, and the next ones of `targets` are predicted."""
        latents = self.infer(states_BTND, actions_BTA)
        z = latents.z_BTZ
        if z is not None and self.training and self.action_dropout > 0:
            keep = torch.rand(*z.shape[:2], 1, device=z.device) >= self.action_dropout
            z = z * keep
        predicted = self.world_model(states_BTND[:, :-1], z)
        error = (predicted.float() - targets_BTND[:, 1:]).abs()
        prediction = error.mean()
        penalty, figures = self.latent_action.loss(latents, error.detach().mean(dim=(1, 2, 3)))
        metrics = {"prediction": prediction.detach(), **figures}
        with torch.no_grad():
            metrics["copy_last_state"] = (targets_BTND[:, 1:] - targets_BTND[:, :-1]).abs().mean()
        kept = latents.z_BTZ.detach().flatten(0, 1) if latents.z_BTZ is not None else None
        return LossTerms(prediction, penalty, metrics, kept)

    def maintain(self, optimizer_state: dict[Any, dict[str, Any]]) -> dict[str, float]:
        return self.latent_action.after_step(optimizer_state)


class ChildObjective(Objective):
    """What learns on a frozen latent action model, which a checkpoint rebuilds from its parent."""

    def __init__(self, model: LatentActionObjective) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.eval()
        return self

    def rebuilt(self) -> tuple[str, ...]:
        return ("model.",)


class ControllerObjective(ChildObjective):
    """L2 from the controller's latents to the frozen IDM's, and the inverse controller's action error."""

    kind = "controller"

    def __init__(self, config: Config, model: LatentActionObjective, action_dim: int) -> None:
        if model.latent_action.kind == "deterministic":
            raise LawmError("a deterministic model has no latent actions: there is nothing to control")
        check_state_a_frame(config.encoder, config.data.clip)
        super().__init__(model)
        self.controller = Controller(config.controller, model.encoder.state_width, action_dim, config.model.latent_dim)

    @property
    def reads_actions(self) -> bool:
        return True

    def scale_actions(self, scales: ActionScales) -> None:
        _keep(self.controller.action_mean, scales.mean)
        _keep(self.controller.action_std, scales.scale())

    def forward(self, batch: ClipBatch) -> LossTerms:
        if batch.actions_BTA is None:
            raise LawmError("a clip without actions came to the controller: data.labels does not cover the index")
        with torch.no_grad():
            states = self.model.states(batch)
            target = self.model.infer(states, batch.actions_BTA).z_BTZ
        assert target is not None
        actions = batch.actions_BTA.float()
        if self.training:
            self.controller.note_latents(target)
        predicted = self.controller(actions, states[:, :-1]).float()
        each = self.controller.unit
        loss = F.mse_loss(predicted / each, target / each)
        scale = self.controller.action_std
        inverse = F.mse_loss(self.controller.inverse(target).float() / scale, actions / scale)
        cosine = F.cosine_similarity(predicted, target, dim=-1).mean()
        metrics = {"prediction": loss.detach(), "inverse_mse": inverse.detach(), "cosine": cosine.detach()}
        return LossTerms(loss, inverse, metrics)


class PriorObjective(ChildObjective):
    """Flow matching: mean squared error of the velocity from noise to the frozen IDM's latents, on the straight way
    (Lipman et al. 2023, with x_t = (1 - t) noise + t z)."""

    kind = "prior"

    def __init__(self, config: Config, model: LatentActionObjective) -> None:
        if model.latent_action.idm is None:
            kind = model.latent_action.kind
            raise LawmError(f"a {kind} model infers no latent actions: there is nothing that a prior could learn")
        check_state_a_frame(config.encoder, config.data.clip)
        super().__init__(model)
        self.prior = LatentPrior(config.prior, model.encoder.state_width, config.model.latent_dim)

    def forward(self, batch: ClipBatch) -> LossTerms:
        with torch.no_grad():
            states = self.model.states(batch)
            z = self.model.infer(states, batch.actions_BTA).z_BTZ
        assert z is not None
        if self.training:
            self.prior.note_latents(z)
        wanted = self.prior.from_latents(z).float().flatten(0, 1).unsqueeze(1)
        generator = None if self.training else torch.Generator(wanted.device).manual_seed(0)
        noise = torch.randn(wanted.shape, generator=generator, device=wanted.device)
        time = torch.rand(*wanted.shape[:2], 1, generator=generator, device=wanted.device)
        memory = self.prior.memory(states[:, :-1].flatten(0, 1))
        velocity = self.prior.velocity((1 - time) * noise + time * wanted, time, memory).float()
        loss = F.mse_loss(velocity, wanted - noise)
        return LossTerms(loss, loss.new_zeros(()), {"prediction": loss.detach()})


class PolicyObjective(ChildObjective):
    """L2 of the goal policy's standardised actions, to a goal a random number of steps on (in evaluation: as far as
    clips go), from every state that has one."""

    kind = "policy"

    def __init__(self, config: Config, model: LatentActionObjective, action_dim: int) -> None:
        check_state_a_frame(config.encoder, config.data.clip)
        super().__init__(model)
        steps = config.data.clip.frames - 1
        self.policy = GoalPolicy(config.policy, model.encoder.state_width, action_dim, steps)

    @property
    def reads_actions(self) -> bool:
        return True

    def scale_actions(self, scales: ActionScales) -> None:
        _keep(self.policy.action_mean, scales.mean)
        _keep(self.policy.action_std, scales.scale())

    def forward(self, batch: ClipBatch) -> LossTerms:
        if batch.actions_BTA is None:
            raise LawmError("a clip without actions came to the policy: data.labels does not cover the index")
        with torch.no_grad():
            states = self.model.states(batch)
        actions, most = batch.actions_BTA.float(), states.shape[1] - 1
        k = int(torch.randint(1, most + 1, ())) if self.training else most
        starts = most + 1 - k
        true = actions.unfold(1, k, 1).transpose(2, 3).flatten(0, 1)  # [B * starts, k, A]
        steps = torch.full((len(true),), k, device=true.device)
        found = self.policy(states[:, :starts].flatten(0, 1), states[:, k:].flatten(0, 1), steps).float()[:, :k]
        loss = F.mse_loss(found / self.policy.action_std, true / self.policy.action_std)
        return LossTerms(loss, loss.new_zeros(()), {"prediction": loss.detach()})


class DecoderObjective(ChildObjective):
    """L1 (+ weight * LPIPS, with its real backbone) from decoded states to the true frames in [0, 1]."""

    kind = "decoder"

    def __init__(self, config: Config, model: LatentActionObjective) -> None:
        super().__init__(model)
        encoder = model.encoder
        size, frames = config.data.clip.size, model.frames_per_state
        self.decoder = Decoder(config.decoder, encoder.state_width, encoder.tokens, size, frames)
        self.lpips_weight = config.decoder.lpips
        self.lpips = load_lpips() if self.lpips_weight > 0 else None

    def rebuilt(self) -> tuple[str, ...]:
        return ("model.", "lpips.")

    def forward(self, batch: ClipBatch) -> LossTerms:
        if batch.frames_BFCHW is None:
            raise LawmError("the decoder learns from frames: train it from videos, not from a state cache")
        with torch.no_grad():
            states = self.model.states(batch)
        frames = batch.frames_BFCHW.float() / 255.0
        decoded = self.decoder(states).float()
        l1 = (decoded - frames).abs().mean()
        perceptual = l1.new_zeros(())
        if self.lpips is not None:
            perceptual = self.lpips(decoded.flatten(0, 1) * 2 - 1, frames.flatten(0, 1) * 2 - 1).mean()
        metrics = {"prediction": l1.detach(), "lpips": perceptual.detach()}
        return LossTerms(l1, self.lpips_weight * perceptual, metrics)


CHILDREN = ("controller", "prior", "policy", "decoder")
"""Kinds that stand on a latent action model; each has the settings of its name in a config."""


def decode_states(model: LatentActionObjective, decoder: Decoder | None, states_BTND: Tensor) -> Tensor:
    """Normalised states -> all their frames [B, F, 3, S, S] in [0, 1]. The pixels encoder needs no decoder."""
    if decoder is None:
        frames = unpatchify(model.state_norm.inverse(states_BTND)) * model.encoder.std + model.encoder.mean
    else:
        frames = decoder(states_BTND)
    return frames.clamp(0, 1)


def parameter_counts(config: Config) -> dict[str, int]:
    """Parameters of each part of the latent action model, without allocating or downloading weights."""
    encoder = config.encoder
    if not isinstance(encoder, PixelsEncoder):
        encoder = encoder.model_copy(update={"weights": "random"})
    with torch.device("meta"):
        model = LatentActionObjective(config.model_copy(update={"encoder": encoder, "fine_tune": FineTuneConfig()}))
    parts = {
        f"encoder ({'frozen' if config.fine_tune.target == 'off' else 'learns'})": model.encoder,
        "inverse dynamics": model.latent_action.idm,
        "bottleneck": model.latent_action.bottleneck,
        "world model": model.world_model,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
