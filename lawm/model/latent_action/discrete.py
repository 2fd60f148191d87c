"""Discrete latents: vector quantisation (Garrido et al. 2026, section 3; van den Oord et al. 2017).

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import Discrete
from lawm.model.latent_action.base import Bottleneck, Langevin, LatentActions
from lawm.model.latent_action.ranks import from_first_rank, rows_of_all_ranks, sum_over_ranks


class DiscreteBottleneck(Bottleneck):
    """Vector quantisation, straight-through. A code unused for `reset_after` latents, over all ranks,
    is re-seeded by `after_step` from what the inverse dynamics puts out; every code starts unused, so that the first
    batch seeds the codebook."""

    unused_for: Tensor

    def __init__(self, config: Discrete, latent: int) -> None:
        super().__init__()
        self.config, self.code_width, self.codebook_size = config, latent, config.codebook_size
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, latent) / latent**0.5)
        self.register_buffer("unused_for", torch.full((config.codebook_size,), config.reset_after))
        self._live: Tensor | None = None

    def forward(self, codes_BTK: Tensor, states_BTND: Tensor) -> LatentActions:
        flat = codes_BTK.float().flatten(0, 1)
        index = nearest_codes(flat.detach(), self.codebook.detach())
        quantised = self.codebook.float()[index]
        c = self.config
        penalty = c.codebook_loss * F.mse_loss(quantised, flat.detach())
        penalty = penalty + c.commitment * F.mse_loss(flat, quantised.detach())
        z = flat + (quantised - flat).detach()
        counts = torch.bincount(index, minlength=c.codebook_size)
        if self.training:  # in evaluation a rank may have other batches than the others, or none
            counts = sum_over_ranks(counts)
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
        each = codes_BTK.shape[:2]
        return LatentActions(
            z.unflatten(0, each).to(codes_BTK.dtype), penalty, metrics, code_BT=index.unflatten(0, each)
        )

    def drawn(self, shape: Sequence[int], generator: torch.Generator, dynamics: Langevin) -> Tensor:
        """The codes in use at the end of training (all, where none was), each as likely."""
        used = (self.unused_for < self.config.reset_after).nonzero().flatten().cpu()
        pick = used if len(used) else torch.arange(len(self.codebook))
        chosen = pick[torch.randint(len(pick), tuple(shape[:-1]), generator=generator)]
        return self.codebook.detach().float().cpu()[chosen]

    def codes_taken(self, codes_BTK: Tensor) -> Tensor:
        flat = codes_BTK.float().flatten(0, 1)
        return nearest_codes(flat.detach(), self.codebook.detach()).unflatten(0, codes_BTK.shape[:2])

    def allowed(self, z: Tensor) -> Tensor:
        """Each latent's nearest code; its gradient is handed through."""
        flat = z.float().reshape(-1, z.shape[-1])
        found = self.codebook.detach().float()[nearest_codes(flat.detach(), self.codebook.detach())].view(z.shape)
        return (z + (found - z).detach()).to(z.dtype)

    @torch.no_grad()
    def after_step(self, optimizer_state: dict[Any, dict[str, Any]]) -> dict[str, float]:
        """Re-seeds dead codes, once, from the latents of all ranks, and clears their optimiser moments.

        `codes_reset`: how many they were.
        """
        dead = (self.unused_for >= self.config.reset_after).nonzero().flatten()
        if len(dead) == 0 or self._live is None:
            return {"codes_reset": 0.0}
        live = rows_of_all_ranks(self._live)
        # Each latent is taken once before one is taken again.
        rounds = -(-len(dead) // len(live))
        pick = torch.cat([torch.randperm(len(live), device=live.device) for _ in range(rounds)])[: len(dead)]
        noise = torch.randn(len(dead), live.shape[1], device=live.device) * self.config.reset_noise
        seeds = from_first_rank(live[pick] + noise * live.std(dim=0, correction=0))
        self.codebook[dead] = seeds.to(self.codebook.dtype)
        self.unused_for[dead] = 0
        for value in optimizer_state.get(self.codebook, {}).values():
            if isinstance(value, Tensor) and value.shape == self.codebook.shape:
                value[dead] = 0
        return {"codes_reset": float(len(dead))}

    @staticmethod
    def collapse_warning(metrics: Mapping[str, float]) -> str:
        """One code in use: perplexity under 1.5."""
        if metrics.get("perplexity", math.inf) >= 1.5:
            return ""
        return (
            f"the codebook has collapsed (perplexity {metrics['perplexity']:.2f}): lower "
            "model.bottleneck.reset_after, so that unused codes are re-seeded, or take another codebook_size"
        )


def nearest_codes(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """The index of each row's nearest code, [N]. In float64: of the squares that a fast distance is made of, float32
    leaves nothing of a distance that is small beside the rows' common offset."""
    codes = codebook_KD.double()
    centre = codes.mean(dim=0)
    parts = [torch.cdist(part.double() - centre, codes - centre).argmin(dim=-1) for part in z_ND.split(1024)]
    return torch.cat(parts)
