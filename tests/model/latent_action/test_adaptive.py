"""The adaptive bottleneck: multipliers find their targets, and change nothing else."""

import math

import pytest
import torch
from pydantic import ValidationError
from small_runs import adaptive_config, made_batch, made_batches, new_objective, tiny_kind

from lawm.config import Adaptive
from lawm.model import LatentActions, collapse_warning
from lawm.model.latent_action.adaptive import AdaptiveBottleneck
from lawm.training import train


def moving_states(speeds: torch.Tensor) -> torch.Tensor:
    """States [B, 3, 2, 4] that differ in how fast they move."""
    steps = torch.arange(3.0).view(1, 3, 1, 1)
    return (speeds.view(-1, 1, 1, 1) * steps).expand(-1, 3, 2, 4)


def settle(
    config: Adaptive, response: float, steps: int = 1500
) -> tuple[torch.Tensor, torch.Tensor, AdaptiveBottleneck]:
    """Dual ascent where a clip's rate is speed / beta and its error `response` * beta * speed: what they come to."""
    torch.manual_seed(0)
    bottleneck = AdaptiveBottleneck(config, latent=3, state_width=4)
    speeds = torch.tensor([0.5, 1.0, 2.0, 4.0])
    states = moving_states(speeds)
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=1e-3)
    rate = error = torch.zeros(4)
    for _ in range(steps):
        raw = bottleneck.log_multiplier(states)
        beta = raw.detach().clamp(math.log(config.least), math.log(config.most)).exp()
        rate, error = speeds / beta, response * beta * speeds
        latents = LatentActions(None, torch.zeros(()), {}, rate, raw)
        dual, _ = bottleneck.dual(latents, error)
        optimizer.zero_grad()
        dual.backward()
        optimizer.step()
    return rate, error, bottleneck


def test_every_clip_comes_to_its_target_rate() -> None:
    rate, _, _ = settle(Adaptive(constraint="rate", target=8.0, start=1e-2), 1.0)
    assert rate.tolist() == pytest.approx([8.0] * 4, rel=0.1)


def test_every_clip_comes_to_its_target_distortion() -> None:
    rate, error, _ = settle(Adaptive(constraint="distortion", target=0.05, start=1e-2), 1.0)
    assert error.tolist() == pytest.approx([0.05] * 4, rel=0.1)
    assert rate[3] > 30 * rate[0]  # harder clips get the nats


def test_a_multiplier_at_its_limit_does_not_wind_up() -> None:
    config = Adaptive(constraint="rate", target=1e-6, start=1e-2, most=0.1)
    _, _, bottleneck = settle(config, 1.0)
    raw = bottleneck.log_multiplier(moving_states(torch.tensor([0.5, 1.0, 2.0, 4.0])))
    assert raw.detach().tolist() == pytest.approx([math.log(0.1)] * 4, abs=0.5)
    figures = bottleneck.dual(LatentActions(None, torch.zeros(()), {}, torch.ones(4), raw + 1), torch.ones(4))[1]
    assert float(figures["at_limit"]) == 1.0


def test_one_multiplier_for_all_is_noisy() -> None:
    fixed = {"start": 1e-4, "least": 1e-4, "most": 1e-4}
    config = tiny_kind("adaptive", **{f"model__bottleneck__{k}": v for k, v in {"most": 1e-4, **fixed}.items()})
    other = tiny_kind("noisy", model__bottleneck__beta=1e-4)
    start = {k: v.clone() for k, v in new_objective(other).state_dict().items()}
    found = []
    for own in (other, config):
        objective = new_objective(own)
        objective.load_state_dict(start, strict=False)
        seen: list[float] = []
        train(objective, made_batches(own), own, lambda step, m, c, seen=seen: seen.append(m["loss"]))
        found.append(seen)
    assert found[0] == pytest.approx(found[1], rel=1e-4) and len(found[0]) == 6


def test_gradients_of_model_and_multiplier_do_not_mix() -> None:
    config = adaptive_config()
    objective = new_objective(config)
    batch = made_batch(range(8), config)
    states = objective.states(batch)
    bottleneck = objective.latent_action.bottleneck
    assert isinstance(bottleneck, AdaptiveBottleneck)
    latents = objective.infer(states)
    latents.penalty.backward(retain_graph=True)
    assert all(p.grad is None for p in bottleneck.multiplier.parameters())
    objective.zero_grad()
    dual, _ = bottleneck.dual(latents, torch.ones(8))
    assert dual.item() == 0.0
    dual.backward()
    assert {n.split(".")[2] for n, p in objective.named_parameters() if p.grad is not None} == {"multiplier"}


def test_the_penalty_is_each_clips_own() -> None:
    torch.manual_seed(0)
    bottleneck = AdaptiveBottleneck(Adaptive(start=1e-2), latent=3, state_width=4).eval()
    with torch.no_grad():
        for parameter in bottleneck.multiplier.parameters():
            parameter.normal_(std=0.1)
    codes, states = torch.randn(5, 2, 6), moving_states(torch.rand(5) * 4)
    latents = bottleneck(codes, states)
    mu, log_variance = codes.chunk(2, dim=-1)
    prior = torch.distributions.Normal(0.0, 1.0)
    posterior = torch.distributions.Normal(mu, (0.5 * log_variance).exp())
    rate = torch.distributions.kl_divergence(posterior, prior).sum(-1).mean(1)
    assert latents.rate_B is not None and torch.allclose(latents.rate_B, rate, atol=1e-5)
    beta = bottleneck.log_multiplier(states).exp()
    assert (beta.max() / beta.min()).item() > 1.2
    assert float(latents.penalty.detach()) == pytest.approx(float((beta * rate).mean().detach()), rel=1e-5)


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="least <= start <= most"):
        Adaptive(start=2.0)
    assert "target" in collapse_warning({"kl_nats": 0.01, "multiplier": 1.0})
