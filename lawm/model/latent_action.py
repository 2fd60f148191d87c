"""Inverse dynamics g: (s_t, s_{t+1}) -> codes, and the bottlenecks that limit what a latent action holds.

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
Equations: Garrido et al. 2026, section 3, as read in the spec of each config class.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import (
    Adaptive,
    BottleneckConfig,
    Deterministic,
    Discrete,
    IDMConfig,
    MlpIDM,
    ModelConfig,
    Noisy,
    Sparse,
    TransformerIDM,
    TrueActions,
    Unconstrained,
)
from lawm.model.layers import Block, grid_positions, linear_weights, rope_tables


@dataclass(frozen=True)
class LatentActions:
    """z_BTZ for the T-1 transitions (None: no latent at all), what they cost, and figures to log.

    `rate_B`: nats per transition of each clip, where the bottleneck has a rate. `multiplier_B`: log of the
    adaptive bottleneck's multipliers, before they are limited.
    """

    z_BTZ: Tensor | None
    penalty: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    rate_B: Tensor | None = None
    multiplier_B: Tensor | None = None


# ---------------------------------------------------------------- inverse dynamics
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
        self.mlp = make_mlp(2 * state_width, config.hidden, code_width, config.layers)

    def hidden_matrices(self) -> Iterator[Tensor]:
        yield from linear_weights(self.mlp)[1:-1]

    def forward(self, states_BTND: Tensor) -> Tensor:
        """states [B, T, N, D] -> codes [B, T-1, K]."""
        pooled = states_BTND.mean(dim=2)
        return self.mlp(torch.cat([pooled[:, :-1], pooled[:, 1:] - pooled[:, :-1]], dim=-1))


def make_mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """`layers` linear layers with GELU between them."""
    widths = [inputs] + [hidden] * (layers - 1) + [outputs]
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        parts += [nn.Linear(a, b)] + ([nn.GELU()] if i < layers - 1 else [])
    return nn.Sequential(*parts)


# ---------------------------------------------------------------- bottlenecks
class SparseBottleneck(nn.Module):
    """L = VCM(Z) + mean_i E(z_i); statistics over the global batch, with gradients."""

    def __init__(self, config: Sparse, latent: int) -> None:
        super().__init__()
        self.config, self.code_width = config, latent

    def energy(self, z: Tensor) -> Tensor:
        """E(z) of each latent, [...]: lambda_l2 max(sqrt(D) - ||z||^2, 0) + lambda_l1 ||z||_1."""
        norm = z.square().sum(-1)
        if self.config.hinge == "norm":
            norm = norm.clamp_min(1e-12).sqrt()
        hinge = (z.shape[-1] ** 0.5 - norm).clamp_min(0)
        return self.config.lambda_l2 * hinge + self.config.lambda_l1 * z.abs().sum(-1)

    def forward(self, codes_BTK: Tensor) -> LatentActions:
        with torch.autocast(codes_BTK.device.type, enabled=False):  # bfloat16 is too coarse for the statistics
            return self._penalised(codes_BTK)

    def _penalised(self, codes_BTK: Tensor) -> LatentActions:
        c = self.config
        z = gather_with_gradient(codes_BTK.float().flatten(0, 1))
        n, d = z.shape
        mean = z.mean(dim=0)
        centred = z - mean
        covariance = centred.T @ centred / max(n - 1, 1)
        variance = covariance.diagonal()
        spread = (1 - (variance + 1e-4).sqrt()).clamp_min(0).mean()
        crossed = (covariance.square().sum() - variance.square().sum()) / max(d * (d - 1), 1)
        centre = mean.square().mean() if c.mean == "squared" else mean.mean()
        energy = self.energy(z).mean()
        penalty = c.lambda_v * spread + c.lambda_c * crossed + c.lambda_m * centre + energy
        metrics = {"vcm_variance": spread, "vcm_covariance": crossed, "vcm_mean": centre, "energy": energy}
        metrics["latent_l1"] = z.abs().sum(-1).mean()
        return LatentActions(codes_BTK, penalty, {k: v.detach() for k, v in metrics.items()})


class NoisyBottleneck(nn.Module):
    """z = mu + sigma * eps in training, mu in evaluation; beta * KL(q || N(0, I)) in nats."""

    def __init__(self, config: Noisy, latent: int) -> None:
        super().__init__()
        self.config, self.code_width = config, 2 * latent

    def forward(self, codes_BTK: Tensor) -> LatentActions:
        z, mu, kl_BT = gaussian(codes_BTK, self.training)
        kl = kl_BT.mean()
        metrics = {"kl_nats": kl.detach(), "latent_l1": mu.detach().abs().sum(-1).mean()}
        return LatentActions(z, self.config.beta * kl, metrics, kl_BT.detach().mean(1))


def gaussian(codes_BTK: Tensor, sample: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (mu, log sigma^2) -> z [B, T, Z] (drawn, or mu), mu, and KL(q || N(0, I)) in nats, [B, T]."""
    mu, log_variance = codes_BTK.float().chunk(2, dim=-1)
    log_variance = log_variance.clamp(-20, 10)
    kl_BT = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    z = mu + (0.5 * log_variance).exp() * torch.randn_like(mu) if sample else mu
    return z, mu, kl_BT


class AdaptiveBottleneck(nn.Module):
    """Noisy latents with a multiplier for each clip: mean_i beta_i KL_i, log beta_i = log start + gain * h(clip).

    h sees how far each channel of the states moves, so that clips that are never seen again have a multiplier
    too. `dual` trains it: beta_i rises while the clip is better than its target asks for, and falls while it is worse.
    """

    DUAL = 1e-3
    """Weight of the dual's gradient: out of sight of the clipping of the primal's, and nothing to Adam."""

    def __init__(self, config: Adaptive, latent: int, state_width: int) -> None:
        super().__init__()
        self.config, self.code_width = config, 2 * latent
        self.multiplier = nn.Sequential(nn.Linear(state_width, config.hidden), nn.GELU())
        self.multiplier.append(nn.Linear(config.hidden, 1))
        for parameter in self.multiplier[2].parameters():
            nn.init.zeros_(parameter)

    def log_multiplier(self, states_BTND: Tensor) -> Tensor:
        """log beta of each clip, [B], not yet limited to [least, most]."""
        with torch.autocast(states_BTND.device.type, enabled=False):
            states = states_BTND.detach().float()
            moved = (states[:, 1:] - states[:, :-1]).abs().mean(dim=(1, 2)).log1p()
            h = self.multiplier(moved).squeeze(-1)
        return math.log(self.config.start) + self.config.gain * h

    def forward(self, codes_BTK: Tensor, states_BTND: Tensor) -> LatentActions:
        z, mu, kl_BT = gaussian(codes_BTK, self.training)
        rate = kl_BT.mean(1)
        raw = self.log_multiplier(states_BTND)
        beta = raw.detach().clamp(math.log(self.config.least), math.log(self.config.most)).exp()
        metrics = {
            "kl_nats": rate.detach().mean(),
            "latent_l1": mu.detach().abs().sum(-1).mean(),
            "multiplier": beta.log().mean().exp(),
            "multiplier_spread": beta.log().std(correction=0),
        }
        return LatentActions(z, (beta * rate).mean(), metrics, rate, raw)

    def dual(self, latents: LatentActions, error_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A term of value 0 whose gradient moves the multipliers, and figures to log; `error_B`: each clip's L1.

        A multiplier that would leave its limits is drawn back to them.
        """
        c = self.config
        assert latents.rate_B is not None and latents.multiplier_B is not None
        found = latents.rate_B if c.constraint == "rate" else error_B
        excess = (found.detach().float().clamp_min(1e-12) / c.target).log().clamp(-3, 3)
        up = excess if c.constraint == "rate" else -excess
        raw = latents.multiplier_B
        limited = raw.detach().clamp(math.log(c.least), math.log(c.most))
        beyond = raw.detach() - limited
        stuck = beyond * up > 0
        up = torch.where(stuck, -beyond, up)
        ascent = -(raw * up).mean() * self.DUAL
        figures = {"target_missed": excess.abs().mean(), "at_limit": stuck.float().mean()}
        return ascent - ascent.detach(), figures


class DiscreteBottleneck(nn.Module):
    """Vector quantisation, straight-through. A code unused for `reset_after` latents, over all ranks,
    is re-seeded from a live output by `maintain`; every code starts unused, so that the first batch
    seeds the codebook."""

    unused_for: Tensor

    def __init__(self, config: Discrete, latent: int) -> None:
        super().__init__()
        self.config, self.code_width = config, latent
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, latent) / latent**0.5)
        self.register_buffer("unused_for", torch.full((config.codebook_size,), config.reset_after))
        self._live: Tensor | None = None

    def forward(self, codes_BTK: Tensor) -> LatentActions:
        flat = codes_BTK.float().flatten(0, 1)
        with torch.no_grad():
            index = torch.cdist(flat, self.codebook.float()).argmin(dim=-1)
        quantised = self.codebook.float()[index]
        c = self.config
        penalty = c.codebook_loss * F.mse_loss(quantised, flat.detach())
        penalty = penalty + c.commitment * F.mse_loss(flat, quantised.detach())
        z = flat + (quantised - flat).detach()
        counts = sum_over_ranks(torch.bincount(index, minlength=c.codebook_size))
        share = counts.float() / counts.sum()
        metrics = {
            "perplexity": torch.special.entr(share).sum().exp(),
            "used_share": (counts > 0).float().mean(),
            "latent_l1": quantised.detach().abs().sum(-1).mean(),
        }
        if self.training:
            with torch.no_grad():
                self.unused_for.add_(counts.sum()).masked_fill_(counts > 0, 0)
            metrics["alive_share"] = (self.unused_for < c.reset_after).float().mean()
            self._live = flat.detach()
        return LatentActions(z.unflatten(0, codes_BTK.shape[:2]).to(codes_BTK.dtype), penalty, metrics)

    @torch.no_grad()
    def maintain(self, optimizer_state: dict[Any, dict[str, Any]]) -> int:
        """Re-seeds dead codes once, the same on every rank, and clears their optimiser moments.

        Called after the optimiser's step. Returns how many codes were re-seeded.
        """
        dead = (self.unused_for >= self.config.reset_after).nonzero().flatten()
        if len(dead) == 0 or self._live is None:
            return 0
        pick = torch.randint(len(self._live), (len(dead),), device=dead.device)
        seeds = self._live[pick]
        noise = torch.randn_like(seeds) * self._live.std(dim=0, correction=0) * self.config.reset_noise
        seeds = seeds + noise
        if dist.is_initialized():
            dist.broadcast(seeds, src=0)
        self.codebook[dead] = seeds.to(self.codebook.dtype)
        self.unused_for[dead] = 0
        for value in optimizer_state.get(self.codebook, {}).values():
            if isinstance(value, Tensor) and value.shape == self.codebook.shape:
                value[dead] = 0
        return len(dead)


class UnconstrainedBottleneck(nn.Module):
    """z = codes: the upper end of the capacity axis."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.code_width = latent

    def forward(self, codes_BTK: Tensor) -> LatentActions:
        metrics = {"latent_l1": codes_BTK.detach().abs().sum(-1).mean()}
        return LatentActions(codes_BTK, codes_BTK.new_zeros(()), metrics)


Bottleneck = SparseBottleneck | NoisyBottleneck | AdaptiveBottleneck | DiscreteBottleneck | UnconstrainedBottleneck


def build_bottleneck(config: BottleneckConfig, latent: int, state_width: int) -> Bottleneck:
    """The bottleneck of that config; it names the `code_width` that it wants from the IDM."""
    match config:
        case Sparse():
            return SparseBottleneck(config, latent)
        case Noisy():
            return NoisyBottleneck(config, latent)
        case Adaptive():
            return AdaptiveBottleneck(config, latent, state_width)
        case Discrete():
            return DiscreteBottleneck(config, latent)
        case Unconstrained():
            return UnconstrainedBottleneck(latent)
        case _:
            raise TypeError(f"{config.kind}: no bottleneck stands between states and latents")


def build_inverse_dynamics(config: IDMConfig, state_width: int, code_width: int) -> nn.Module:
    match config:
        case TransformerIDM():
            return TransformerInverseDynamics(config, state_width, code_width)
        case MlpIDM():
            return MlpInverseDynamics(config, state_width, code_width)


class LatentActionModel(nn.Module):
    """Inverse dynamics and bottleneck in one; `deterministic` has neither, `true_actions` reads labels."""

    action_std: Tensor

    def __init__(self, config: ModelConfig, state_width: int) -> None:
        super().__init__()
        self.kind = config.bottleneck.kind
        self.idm: nn.Module | None = None
        self.bottleneck: Bottleneck | None = None
        self.embed: nn.Module | None = None
        match config.bottleneck:
            case Deterministic():
                pass
            case TrueActions(action_dim=width):
                self.register_buffer("action_std", torch.ones(width))
                self.embed = nn.Linear(width, config.latent_dim)
            case other:
                self.bottleneck = build_bottleneck(other, config.latent_dim, state_width)
                self.idm = build_inverse_dynamics(config.idm, state_width, self.bottleneck.code_width)

    def forward(self, states_BTND: Tensor, actions_BTA: Tensor | None = None) -> LatentActions:
        """states [B, T, N, D] (and, for `true_actions`, actions [B, T-1, A]) -> LatentActions."""
        zero = states_BTND.new_zeros(())
        if self.kind == "deterministic":
            return LatentActions(None, zero)
        if self.embed is not None:
            if actions_BTA is None:
                raise ValueError("a world model on true actions needs labelled clips (data.labels)")
            return LatentActions(self.embed(actions_BTA / self.action_std), zero)
        assert self.idm is not None and self.bottleneck is not None
        codes = self.idm(states_BTND)
        if isinstance(self.bottleneck, AdaptiveBottleneck):
            return self.bottleneck(codes, states_BTND)
        return self.bottleneck(codes)


# ---------------------------------------------------------------- over ranks
class _Gather(torch.autograd.Function):
    """all_gather whose backward sums every rank's gradient for this rank's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(x_ND: Tensor) -> Tensor:
    """Rows of all ranks, [world * N, D]. DDP's averaging then gives the gradient of the global loss."""
    return _Gather.apply(x_ND) if dist.is_initialized() and dist.get_world_size() > 1 else x_ND


def sum_over_ranks(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def effective_rank(z_ND: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred rows (Roy & Vetterli 2007)."""
    z = z_ND.float() - z_ND.float().mean(dim=0)
    values = torch.linalg.svdvals(z)
    total = values.sum()
    if total <= 1e-12:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def collapse_warning(metrics: Mapping[str, float]) -> str:
    """What to tell the user where a run's latents carry (nearly) nothing, by its logged figures; else empty.

    One code in use (perplexity under 1.5), a posterior that is the prior (under 0.1 nats), or sparse latents on
    a line (effective rank under 1.2).
    """
    if metrics.get("perplexity", math.inf) < 1.5:
        return (
            f"the codebook has collapsed (perplexity {metrics['perplexity']:.2f}): lower "
            "model.bottleneck.reset_after, so that unused codes are re-seeded, or take another codebook_size"
        )
    if metrics.get("kl_nats", math.inf) < 0.1:
        nats = f"{metrics['kl_nats']:.3f} nats"
        if "multiplier" in metrics:
            return f"the target is met by latents that hold next to nothing ({nats}): change model.bottleneck.target"
        return f"the noisy latents hold next to nothing ({nats}): train longer, or lower model.bottleneck.beta"
    if "vcm_variance" in metrics and metrics.get("effective_rank", math.inf) < 1.2:
        return (
            f"the sparse latents use one dimension at most (effective rank {metrics['effective_rank']:.2f}): lower "
            "model.bottleneck.lambda_l1"
        )
    return ""
