"""The sparse penalty against the paper's sums, written out."""

import numpy as np
import pytest
import torch
from small_runs import no_states

from lawm.config import Sparse
from lawm.model.latent_action.sparse import SparseBottleneck


def sparse_by_hand(z: np.ndarray, c: Sparse) -> float:
    """The paper's section 3, sum by sum."""
    n, d = z.shape
    variance_term = covariance_term = mean_term = 0.0
    for i in range(d):
        variance_term += max(1 - np.sqrt(np.var(z[:, i], ddof=1) + 1e-4), 0) / d
        m = np.mean(z[:, i])
        mean_term += (m**2 if c.mean == "squared" else m) / d
        for j in range(d):
            if i != j:
                covariance = sum((z[k, i] - z[:, i].mean()) * (z[k, j] - z[:, j].mean()) for k in range(n)) / (n - 1)
                covariance_term += covariance**2 / (d * (d - 1))
    energy = 0.0
    for row in z:
        length = np.sum(row**2) if c.hinge == "squared" else np.sqrt(np.sum(row**2))
        energy += (c.lambda_l2 * max(np.sqrt(d) - length, 0) + c.lambda_l1 * np.sum(np.abs(row))) / n
    return c.lambda_v * variance_term + c.lambda_c * covariance_term + c.lambda_m * mean_term + energy


@pytest.mark.parametrize("hinge", ["squared", "norm"])
@pytest.mark.parametrize("mean", ["squared", "literal"])
@pytest.mark.parametrize("scale", [0.3, 1.5], ids=["short", "long"])
def test_sparse_penalty_equals_the_papers_sums(hinge: str, mean: str, scale: float) -> None:
    config = Sparse(lambda_l1=0.07, lambda_l2=0.9, lambda_v=0.4, lambda_c=0.3, lambda_m=0.5, hinge=hinge, mean=mean)  # type: ignore[arg-type]
    z = np.random.default_rng(1).normal(0.2, scale, (2, 6, 4)).astype(np.float32)
    z[..., 1] += z[..., 0]  # some covariance
    out = SparseBottleneck(config, 4)(torch.from_numpy(z), no_states(2, 7))
    assert float(out.penalty) == pytest.approx(sparse_by_hand(z.reshape(12, 4).astype(np.float64), config), rel=1e-5)
    assert torch.equal(out.z_BTZ, torch.from_numpy(z))


def test_each_weight_of_the_sparse_penalty_does_what_it_says() -> None:
    z = torch.from_numpy(np.random.default_rng(2).normal(0.1, 0.5, (3, 5, 6)).astype(np.float32))
    off = dict.fromkeys(("lambda_l1", "lambda_l2", "lambda_v", "lambda_c", "lambda_m"), 0.0)
    for name in off:
        config = Sparse(**(off | {name: 2.0}))
        once = float(SparseBottleneck(config, 6)(z, no_states(3, 6)).penalty)
        assert once == pytest.approx(sparse_by_hand(z.reshape(15, 6).double().numpy(), config), rel=1e-4)
        assert once > 0
    assert float(SparseBottleneck(Sparse(**off), 6)(z, no_states(3, 6)).penalty) == 0


def test_sparse_penalty_has_finite_gradients_at_zero() -> None:
    for hinge in ("squared", "norm"):
        z = torch.zeros(2, 3, 4, requires_grad=True)
        SparseBottleneck(Sparse(hinge=hinge), 4)(z, no_states(2, 4)).penalty.backward()  # type: ignore[arg-type]
        assert torch.isfinite(z.grad).all(), hinge


def test_sparse_statistics_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    codes = torch.randn(16, 3, 8)
    bottleneck = SparseBottleneck(Sparse(), 8)
    plain = bottleneck(codes, no_states(16, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = bottleneck(codes, no_states(16, 4))
    assert cast.penalty.dtype == torch.float32
    torch.testing.assert_close(cast.penalty, plain.penalty, rtol=1e-6, atol=0)
