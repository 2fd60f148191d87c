"""Vector quantisation by hand, straight-through gradients, re-seeding."""

from typing import Any

import numpy as np
import pytest
import torch
from small_runs import no_states

from lawm.config import Discrete
from lawm.model.latent_action.discrete import DiscreteBottleneck, nearest_codes


def test_nearest_code_and_both_losses() -> None:
    rng = np.random.default_rng(3)
    codes, book = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    bottleneck = DiscreteBottleneck(Discrete(codebook_size=7, commitment=0.4, codebook_loss=1.7), 3)
    with torch.no_grad():
        bottleneck.codebook.copy_(torch.from_numpy(book))
    out = bottleneck(torch.from_numpy(codes), no_states(2, 6))
    flat = codes.reshape(10, 3)
    nearest = np.array([min(range(7), key=lambda k: np.sum((x - book[k]) ** 2)) for x in flat])
    np.testing.assert_allclose(out.z_BTZ.detach().reshape(10, 3), book[nearest], atol=1e-6)
    distance = np.mean((flat - book[nearest]) ** 2)
    assert out.penalty.item() == pytest.approx((1.7 + 0.4) * distance, rel=1e-5)
    share = np.bincount(nearest, minlength=7) / 10
    entropy = -sum(p * np.log(p) for p in share if p > 0)
    assert float(out.metrics["perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-5)
    assert float(out.metrics["used_share"]) == pytest.approx(len(set(nearest)) / 7)


@pytest.mark.parametrize("offset", [0.0, 100.0, 3000.0])
def test_the_nearest_code_is_the_nearest_far_from_zero_too(offset: float) -> None:
    """Against all differences in float64. At an offset of 100 float32's fast distance takes others."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(512, 32, generator=generator) * 0.3 + offset
    z = torch.randn(2000, 32, generator=generator) * 0.3 + offset
    wanted = (z.double()[:, None] - codes.double()).square().sum(-1).argmin(-1)
    assert torch.equal(nearest_codes(z, codes), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_codes(z, codes), wanted)
    if offset:
        assert not torch.equal(torch.cdist(z, codes).argmin(-1), wanted)


def test_codes_of_clusters_far_apart_are_told_from_each_other() -> None:
    """Two clusters 2,000 apart: their common centre is far from both."""
    generator = torch.Generator().manual_seed(1)
    place = torch.tensor([-1000.0, 1000.0]).repeat(200)[:, None]
    codes = torch.randn(400, 16, generator=generator) * 0.3 + place
    z = codes + 0.02 * torch.randn(400, 16, generator=generator)
    wanted = (z.double()[:, None] - codes.double()).square().sum(-1).argmin(-1)
    assert torch.equal(nearest_codes(z, codes), wanted)


def test_straight_through_gradients() -> None:
    """The latent's gradient reaches the codes unchanged; commitment pulls codes, the codebook loss pulls the book."""
    torch.manual_seed(0)
    codes = torch.randn(1, 4, 3, requires_grad=True)
    bottleneck = DiscreteBottleneck(Discrete(codebook_size=5, commitment=0.25, codebook_loss=1.0), 3)
    out = bottleneck(codes, no_states(1, 5))
    upstream = torch.randn(1, 4, 3)
    out.z_BTZ.backward(upstream, retain_graph=True)
    assert torch.allclose(codes.grad, upstream)
    assert bottleneck.codebook.grad is None or not bottleneck.codebook.grad.any()
    codes.grad = None
    out.penalty.backward()
    chosen = out.z_BTZ.detach()
    assert torch.allclose(codes.grad, 0.25 * 2 * (codes.detach() - chosen) / 12, atol=1e-6)
    wanted = torch.zeros(5, 3)
    index = torch.cdist(codes.detach()[0], bottleneck.codebook.detach()).argmin(-1)
    for i, k in enumerate(index):
        wanted[k] += 2 * (bottleneck.codebook.detach()[k] - codes.detach()[0, i]) / 12
    assert torch.allclose(bottleneck.codebook.grad, wanted, atol=1e-6)


def test_the_first_batch_seeds_the_codebook() -> None:
    torch.manual_seed(0)
    bottleneck = DiscreteBottleneck(Discrete(codebook_size=8, reset_noise=0.0, reset_after=100), 3)
    codes = 5 + 0.1 * torch.randn(1, 30, 3)  # far from every random code
    used = torch.cdist(codes[0], bottleneck.codebook).argmin(-1).unique()
    bottleneck(codes, no_states(1, 31))
    reset = bottleneck.after_step({})["codes_reset"]
    assert reset == 8 - len(used)
    for k in set(range(8)) - set(used.tolist()):
        assert (codes[0] - bottleneck.codebook[k]).abs().sum(-1).min() < 1e-6
    assert bottleneck.after_step({}) == {"codes_reset": 0}
    assert float(bottleneck(codes, no_states(1, 31)).metrics["perplexity"]) > 3


def test_a_code_is_reseeded_after_so_many_unused_latents_and_its_moments_are_cleared() -> None:
    torch.manual_seed(0)
    bottleneck = DiscreteBottleneck(Discrete(codebook_size=4, reset_after=25), 2)
    with torch.no_grad():
        bottleneck.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0], [-9.0, -9.0]]))
    bottleneck.unused_for.zero_()
    optimizer = torch.optim.AdamW(bottleneck.parameters())
    near = torch.tensor([[0.1, 0.0], [0.9, 1.0]]).repeat(5, 1).unsqueeze(0)  # 10 latents, codes 0 and 1
    resets = []
    for _ in range(3):
        optimizer.zero_grad()
        bottleneck(near, no_states(1, 11)).penalty.backward()
        optimizer.step()
        state: Any = optimizer.state
        state[bottleneck.codebook]["exp_avg"][2:] = 7.0
        resets.append(bottleneck.after_step(optimizer.state)["codes_reset"])
        before = {k: v.clone() for k, v in state[bottleneck.codebook].items()}
    assert resets == [0, 0, 2]  # 10, 20, 30 latents without codes 2 and 3
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not before[moment][2:].any() and before[moment][:2].any(), moment
    assert bottleneck.codebook[2:].abs().max() < 3
    assert bottleneck.unused_for.tolist() == [0, 0, 0, 0]
    bottleneck.eval()(near, no_states(1, 11))
    assert bottleneck.unused_for.tolist() == [0, 0, 0, 0]  # evaluation is not use
