"""Adaptive latents: noisy ones with a multiplier for each clip (beyond the paper; its limitation 1).

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lawm.config import Adaptive
from lawm.model.latent_action.base import Bottleneck, Langevin, LatentActions
from lawm.model.latent_action.noisy import LITTLE, gaussian, kl_of_gaussian


class AdaptiveBottleneck(Bottleneck):
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
        z, mu, sigma, kl_BT = gaussian(codes_BTK, self.training)
        rate = kl_BT.mean(1)
        raw = self.log_multiplier(states_BTND)
        beta = raw.detach().clamp(math.log(self.config.least), math.log(self.config.most)).exp()
        metrics = {
            "kl_nats": rate.detach().mean(),
            "latent_l1": mu.detach().abs().sum(-1).mean(),
            "multiplier": beta.log().mean().exp(),
            "multiplier_spread": beta.log().std(correction=0),
        }
        each = {"rate_BT": kl_BT.detach(), "spread_BTZ": sigma.detach()}
        return LatentActions(z, (beta * rate).mean(), metrics, rate, raw, **each)

    def loss(self, latents: LatentActions, error_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        dual, figures = self.dual(latents, error_B)
        return latents.penalty + dual, latents.metrics | figures

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

    def drawn(self, shape: Sequence[int], generator: torch.Generator, dynamics: Langevin) -> Tensor:
        """From the prior, N(0, I)."""
        return torch.randn(tuple(shape), generator=generator)

    def kl_of_numbers(self, codes_BTK: Tensor) -> Tensor:
        return kl_of_gaussian(codes_BTK)

    @staticmethod
    def collapse_warning(metrics: Mapping[str, float]) -> str:
        """A posterior that is the prior."""
        nats = metrics.get("kl_nats", math.inf)
        if nats >= LITTLE or "multiplier" not in metrics:
            return ""
        return (
            f"the target is met by latents that hold next to nothing ({nats:.3f} nats): change model.bottleneck.target"
        )
