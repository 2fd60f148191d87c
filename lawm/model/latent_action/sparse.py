"""Sparse latents: a variance-covariance-mean penalty and an energy (Garrido et al. 2026, section 3).

Legend: B batch, T states, N tokens of a state, D state width, K code width, Z latent-action width.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lawm.config import Sparse
from lawm.model.latent_action.base import Bottleneck, Langevin, LatentActions
from lawm.model.latent_action.ranks import gather_with_gradient


class SparseBottleneck(Bottleneck):
    """L = VCM(Z) + mean_i E(z_i); in training, statistics over the global batch, with gradients."""

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

    def forward(self, codes_BTK: Tensor, states_BTND: Tensor) -> LatentActions:
        with torch.autocast(codes_BTK.device.type, enabled=False):  # bfloat16 is too coarse for the statistics
            return self._penalised(codes_BTK)

    def _penalised(self, codes_BTK: Tensor) -> LatentActions:
        c = self.config
        z = codes_BTK.float().flatten(0, 1)
        if self.training:  # in evaluation a rank may have other batches than the others, or none
            z = gather_with_gradient(z)
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

    def drawn(self, shape: Sequence[int], generator: torch.Generator, dynamics: Langevin) -> Tensor:
        """By Langevin dynamics of the energy."""
        z = torch.randn(tuple(shape), generator=generator)
        spread = dynamics.step**0.5 if dynamics.noise is None else dynamics.noise
        for _ in range(dynamics.steps):
            with torch.enable_grad():
                at = z.requires_grad_(True)
                (slope,) = torch.autograd.grad(self.energy(at).sum(), at)
            z = z.detach() - dynamics.step / 2 * slope + spread * torch.randn(z.shape, generator=generator)
        return z

    @staticmethod
    def collapse_warning(metrics: Mapping[str, float]) -> str:
        """Latents on a line: effective rank under 1.2."""
        if "vcm_variance" not in metrics or metrics.get("effective_rank", math.inf) >= 1.2:
            return ""
        return (
            f"the sparse latents use one dimension at most (effective rank {metrics['effective_rank']:.2f}): lower "
            "model.bottleneck.lambda_l1"
        )
