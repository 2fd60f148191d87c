"""How latents are used: with codes that are given, the answers are known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from known_models import CONFIG, batch_of, clips_for
from small_runs import BOTTLENECKS, new_objective, tiny_kind
from torch import Tensor, nn

from lawm.evaluation import LatentUsage, Missing, latent_usage
from lawm.training import LatentActionObjective


class Says(nn.Module):
    """Codes [T-1, K] that are the same for every clip."""

    def __init__(self, codes: Any) -> None:
        super().__init__()
        self.codes = torch.as_tensor(codes, dtype=torch.float32)

    def forward(self, states_BTND: Tensor) -> Tensor:
        return self.codes.expand(len(states_BTND), *self.codes.shape)


def used(kind: str, codes: Any, **fields: Any) -> LatentUsage:
    model = new_objective(tiny_kind(kind, data__clip__size=16, **fields)).eval()
    model.latent_action.idm = Says(codes)
    found = latent_usage(model, [clips_for(model), clips_for(model, batch_of(4))])
    assert isinstance(found, LatentUsage)
    return found


def row(*values: float) -> list[float]:
    return [*values, *[0.0] * (8 - len(values))]


def test_numbers_in_use() -> None:
    found = used("none", [row(1, -1, 0.5), row(-2, 0.1), row()])
    assert found.active_M.tolist() == [3, 1, 0] * 16  # a twentieth of the largest is not in use, and zero never
    wanted = np.array([row(1, -1, 0.5), row(-2, 0.1), row()]).std(axis=0)
    np.testing.assert_allclose(found.spread_Z, wanted, rtol=1e-6)
    assert found.kind == "none" and found.videos == 12 and 1 < found.rank <= 3
    assert isinstance(found.kl_Z, Missing) and isinstance(found.counts_K, Missing) and math.isnan(found.perplexity)


@pytest.mark.parametrize("kind", ["noisy", "adaptive"])
def test_nats_of_each_number_are_those_of_its_gaussian(kind: str) -> None:
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - ln s^2) / 2."""
    mean, deviation = row(3, 0, 0, -1), [1.0, 0.1, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    found = used(kind, [[*mean, *(2 * math.log(s) for s in deviation)]] * 3)
    wanted = [(m * m + s * s - 1 - math.log(s * s)) / 2 for m, s in zip(mean, deviation, strict=True)]
    np.testing.assert_allclose(found.kl_Z, wanted, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["noisy", "adaptive"])
def test_nats_of_all_numbers_are_the_rate(kind: str) -> None:
    model = new_objective(tiny_kind(kind, data__clip__size=16)).eval()
    clips = clips_for(model)
    found = latent_usage(model, [clips])
    assert isinstance(found, LatentUsage) and isinstance(found.kl_Z, np.ndarray) and clips.rate is not None
    assert found.kl_Z.sum() == pytest.approx(float(clips.rate.mean()), rel=1e-5)


def test_codes_that_are_taken() -> None:
    model = new_objective(tiny_kind("discrete", data__clip__size=16)).eval()
    bottleneck: Any = model.latent_action.bottleneck
    with torch.no_grad():
        bottleneck.codebook.copy_(torch.arange(16.0)[:, None].expand(16, 8))
    model.latent_action.idm = Says([[2.1] * 8, [1.9] * 8, [7.0] * 8])
    found = latent_usage(model, [clips_for(model, batch_of(4))])
    assert isinstance(found, LatentUsage) and isinstance(found.counts_K, np.ndarray)
    assert len(found.counts_K) == 16 and found.counts_K[2] == 8 and found.counts_K[7] == 4 == 12 - found.counts_K[2]
    shares = np.array([2 / 3, 1 / 3])
    assert found.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_every_kind_has_its_usage_or_says_why_not(kind: str) -> None:
    model: LatentActionObjective = new_objective(tiny_kind(kind, data__clip__size=16)).eval()
    found = latent_usage(model, [clips_for(model)])
    if kind in ("deterministic", "true_actions"):
        assert isinstance(found, Missing) and found.reason
        return
    assert isinstance(found, LatentUsage)
    assert found.active_M.shape == (36,) and found.spread_Z.shape == (CONFIG.data.clip.frames * 2,)
    assert isinstance(found.kl_Z, np.ndarray) == (kind in ("noisy", "adaptive"))
    assert isinstance(found.counts_K, np.ndarray) == (kind == "discrete")
