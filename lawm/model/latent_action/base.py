"""What a latent action is, and what every bottleneck does.

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LatentActions:
    """z_BTZ for the T-1 transitions (None: no latent at all), what they cost, and figures to log.

    `rate_B`: nats per transition of each clip, where the bottleneck has a rate. `multiplier_B`: log of the
    adaptive bottleneck's multipliers, before they are limited. Of each transition, detached: `rate_BT`, its nats;
    `spread_BTZ`, the standard deviation of its posterior; `code_BT`, the number of its code.
    """

    z_BTZ: Tensor | None
    penalty: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    rate_B: Tensor | None = None
    multiplier_B: Tensor | None = None
    rate_BT: Tensor | None = None
    spread_BTZ: Tensor | None = None
    code_BT: Tensor | None = None


@dataclass(frozen=True)
class Langevin:
    """How latents are drawn from an energy: z <- z - (step / 2) dE/dz + eps, eps ~ N(0, noise^2), `steps` times from
    N(0, I); `noise` None: sqrt(step) (Garrido et al. 2026, equation 4)."""

    steps: int = 200
    step: float = 0.01
    noise: float | None = None


class Bottleneck(nn.Module):
    """Limits what a latent action holds. `code_width`: what it wants from the inverse dynamics.

    A kind of bottleneck has all that is its own in its own file: what it makes of codes (`forward`), what that costs
    (`loss`), the upkeep after a step, which of its weights are hidden matrices, and how its collapse looks.
    """

    code_width: int

    def forward(self, codes_BTK: Tensor, states_BTND: Tensor) -> LatentActions:
        """Codes of T - 1 transitions [B, T-1, K], and the states [B, T, N, D] that they were inferred from."""
        raise TypeError(f"{type(self).__name__} makes no latent actions")

    def loss(self, latents: LatentActions, error_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the prediction loss, and detached figures to log; `error_B`: each clip's mean L1 error,
        detached."""
        return latents.penalty, latents.metrics

    def after_step(self, optimizer_state: dict[Any, dict[str, Any]]) -> dict[str, float]:
        """Upkeep after an optimiser step, on every rank; `optimizer_state`: by parameter. Returns figures to log."""
        return {}

    def allowed(self, z: Tensor) -> Tensor:
        """The nearest latents [..., Z] that there can be."""
        return z

    codebook_size = 0
    """Codes that there are to choose from; 0 without a codebook."""

    def kl_of_numbers(self, codes_BTK: Tensor) -> Tensor | None:
        """KL of each number of the latents against the prior, in nats, [B, T-1, Z]; None without a prior."""
        return None

    def codes_taken(self, codes_BTK: Tensor) -> Tensor | None:
        """Which code of the codebook each latent is, [B, T-1]; None without a codebook."""
        return None

    def drawn(self, shape: Sequence[int], generator: torch.Generator, dynamics: Langevin) -> Tensor:
        """Latents of that shape [..., Z] from the distribution that the bottleneck asks for, on the CPU. Raises
        TypeError where it asks for none."""
        raise TypeError(f"{type(self).__name__} names no distribution of its latents")

    def hidden_matrices(self) -> Iterator[Tensor]:
        """Its own weights that Muon may have (spec section 4)."""
        return iter(())

    @staticmethod
    def collapse_warning(metrics: Mapping[str, float]) -> str:
        """What to tell the user where logged figures, which may be of another kind, say that the latents carry
        (nearly) nothing; else empty."""
        return ""


def effective_rank(z_ND: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred rows (Roy & Vetterli 2007)."""
    z = z_ND.float() - z_ND.float().mean(dim=0)
    values = torch.linalg.svdvals(z)
    total = values.sum()
    if total <= 1e-12:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())
