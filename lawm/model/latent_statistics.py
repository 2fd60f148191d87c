"""What latents a module has seen: their mean and scale, kept with its weights.

Legend: B batch, T transitions, Z latent width.
"""

import torch
from torch import Tensor, nn


class LatentStatistics(nn.Module):
    """Mean and standard deviation of each latent dimension, over all latents that were noted. `standardised`: whether
    numbers of the module are latents over these, or latents as they are."""

    latent_mean: Tensor
    latent_square: Tensor
    latents_seen: Tensor

    def __init__(self, latent: int, standardised: bool) -> None:
        super().__init__()
        self.standardised = standardised
        self.register_buffer("latent_mean", torch.zeros(latent, dtype=torch.float64))
        self.register_buffer("latent_square", torch.ones(latent, dtype=torch.float64))
        self.register_buffer("latents_seen", torch.zeros((), dtype=torch.float64))

    @property
    def latent_std(self) -> Tensor:
        """The scale of each latent dimension, [Z]: its standard deviation over the latents noted so far, at least a
        hundredth of the largest (a dimension that does not vary has nothing to say)."""
        std = (self.latent_square - self.latent_mean.square()).clamp(min=0).sqrt()
        return torch.maximum(std, 0.01 * std.max()).clamp(min=1e-6).float()

    @property
    def unit(self) -> Tensor:
        """What latents are measured in, [Z]: `latent_std`, or ones."""
        return self.latent_std if self.standardised else torch.ones_like(self.latent_mean, dtype=torch.float32)

    def to_latents(self, numbers: Tensor) -> Tensor:
        """The module's numbers [..., Z] -> latents."""
        if not self.standardised:
            return numbers
        return numbers * self.latent_std.to(numbers.dtype) + self.latent_mean.to(numbers.dtype)

    def from_latents(self, z: Tensor) -> Tensor:
        """Latents [..., Z] -> the module's numbers."""
        return (z - self.latent_mean.to(z.dtype)) / self.latent_std.to(z.dtype) if self.standardised else z

    @torch.no_grad()
    def note_latents(self, z_BTZ: Tensor) -> None:
        """Takes the latents of a batch into mean and standard deviation, which weigh all batches alike."""
        z = z_BTZ.detach().double().flatten(0, 1)
        self.latents_seen += 1
        self.latent_mean += (z.mean(0) - self.latent_mean) / self.latents_seen
        self.latent_square += (z.square().mean(0) - self.latent_square) / self.latents_seen
