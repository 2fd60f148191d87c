"""Noisy latents: a Gaussian and what it costs to be none of the prior's (Garrido et al. 2026, section 3).

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lawm.config import Noisy
from lawm.model.latent_action.base import Bottleneck, Langevin, LatentActions

LITTLE = 0.1
"""Nats under which a posterior is the prior."""


class NoisyBottleneck(Bottleneck):
    """z = mu + sigma * eps in training, mu in evaluation; beta * KL(q || N(0, I)) in nats."""

    def __init__(self, config: Noisy, latent: int) -> None:
        super().__init__()
        self.config, self.code_width = config, 2 * latent

    def forward(self, codes_BTK: Tensor, states_BTND: Tensor) -> LatentActions:
        z, mu, sigma, kl_BT = gaussian(codes_BTK, self.training)
        kl = kl_BT.mean()
        metrics = {"kl_nats": kl.detach(), "latent_l1": mu.detach().abs().sum(-1).mean()}
        each = {"rate_BT": kl_BT.detach(), "spread_BTZ": sigma.detach()}
        return LatentActions(z, self.config.beta * kl, metrics, kl_BT.detach().mean(1), **each)

    def drawn(self, shape: Sequence[int], generator: torch.Generator, dynamics: Langevin) -> Tensor:
        """From the prior, N(0, I)."""
        return torch.randn(tuple(shape), generator=generator)

    def kl_of_numbers(self, codes_BTK: Tensor) -> Tensor:
        return kl_of_gaussian(codes_BTK)

    @staticmethod
    def collapse_warning(metrics: Mapping[str, float]) -> str:
        """A posterior that is the prior; latents with multipliers say it themselves."""
        nats = metrics.get("kl_nats", math.inf)
        if nats >= LITTLE or "multiplier" in metrics:
            return ""
        return f"the noisy latents hold next to nothing ({nats:.3f} nats): train longer, or lower model.bottleneck.beta"


def gaussian(codes_BTK: Tensor, sample: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (mu, log sigma^2) -> z [B, T, Z] (drawn, or mu), mu, sigma, and KL(q || N(0, I)) in nats, [B, T]."""
    mu, log_variance = codes_BTK.float().chunk(2, dim=-1)
    log_variance = log_variance.clamp(-20, 10)
    kl_BT = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    sigma = (0.5 * log_variance).exp()
    z = mu + sigma * torch.randn_like(mu) if sample else mu
    return z, mu, sigma, kl_BT


def kl_of_gaussian(codes_BTK: Tensor) -> Tensor:
    """Codes (mu, log sigma^2) -> KL(q || N(0, 1)) of each number, in nats, [B, T, Z]; `gaussian` sums them."""
    mu, log_variance = codes_BTK.float().chunk(2, dim=-1)
    log_variance = log_variance.clamp(-20, 10)
    return 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance)
