"""Noisy latents: the KL against torch.distributions, noise in training alone."""

import pytest
import small_runs
import torch
from small_runs import no_states, tiny_kind

from lawm.config import Noisy
from lawm.model.latent_action.noisy import NoisyBottleneck


def test_kl_equals_torch_distributions() -> None:
    codes = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    mu, log_variance = codes.chunk(2, dim=-1)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mu, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    out = NoisyBottleneck(Noisy(beta=0.3), 5)(codes, no_states(3, 5))
    assert float(out.penalty) == pytest.approx(0.3 * float(kl.sum(-1).mean()), rel=1e-5)


def test_noise_in_training_and_the_mean_in_evaluation() -> None:
    torch.manual_seed(0)
    bottleneck = NoisyBottleneck(Noisy(), 3)
    mu, log_variance = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, -2.0, 1.0])
    codes = torch.cat([mu, log_variance]).expand(200, 100, 6)
    z = bottleneck(codes, no_states(200, 101)).z_BTZ.flatten(0, 1)
    assert torch.allclose(z.mean(0), mu, atol=0.05)
    assert torch.allclose(z.std(0), (0.5 * log_variance).exp(), rtol=0.03)
    assert torch.equal(bottleneck.eval()(codes, no_states(200, 101)).z_BTZ, codes[..., :3])


def test_a_larger_beta_leaves_less_information() -> None:
    """The same model trained with a hundred times the beta has a smaller KL."""
    nats = []
    for beta in (1e-5, 1e-1):
        config = tiny_kind("noisy", model__bottleneck__beta=beta, train__steps=10, train__log_every=10)
        nats.append(small_runs.losses_of(config)[-1]["kl_nats"])
    assert nats[1] < 0.5 * nats[0]
