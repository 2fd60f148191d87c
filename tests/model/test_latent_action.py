"""Inverse dynamics and bottlenecks: each penalty against a second formula, and the same figures on 1 and 2 ranks."""

from typing import Any

import numpy as np
import pytest
import small_runs
import torch
import torch.multiprocessing
from small_runs import (
    adaptive_config,
    fine_tuned_config,
    gradients,
    made_batch,
    made_batches,
    new_objective,
    sparse_config,
    tiny_kind,
    without_noise,
)
from torch import Tensor, nn

from lawm.config import Discrete, MlpIDM, Noisy, Sparse, TransformerIDM
from lawm.model import DiscreteBottleneck, collapse_warning, effective_rank
from lawm.model.latent_action import NoisyBottleneck, SparseBottleneck, build_bottleneck, build_inverse_dynamics
from lawm.training import train


# ---------------------------------------------------------------- inverse dynamics
@pytest.mark.parametrize(
    "config",
    [
        MlpIDM(hidden=16),
        TransformerIDM(width=16, depth=1, heads=2, join="tokens"),
        TransformerIDM(width=16, depth=1, heads=2, join="channels"),
    ],
    ids=["mlp", "tokens", "channels"],
)
def test_a_code_depends_on_its_two_states_and_on_nothing_else(config: Any) -> None:
    torch.manual_seed(0)
    idm = build_inverse_dynamics(config, 6, 5)
    states = torch.randn(2, 5, 9, 6)
    codes = idm(states)
    assert codes.shape == (2, 4, 5)
    for changed in range(5):
        other = states.clone()
        other[:, changed] += 1 + torch.randn(2, 9, 6)
        moved = (idm(other) - codes).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [t in (changed - 1, changed) for t in range(4)], changed


def test_the_transformer_tells_the_order_of_the_states_and_the_place_of_a_change() -> None:
    torch.manual_seed(0)
    for join in ("tokens", "channels"):
        idm = build_inverse_dynamics(TransformerIDM(width=16, depth=2, heads=2, join=join), 6, 5)
        pair = torch.randn(1, 2, 9, 6)
        assert not torch.allclose(idm(pair), idm(pair.flip(1)), atol=1e-4)
        # The same change in another cell: a pooled code could not tell.
        still = torch.zeros(1, 2, 9, 6)
        left, right = still.clone(), still.clone()
        left[:, 1, 0], right[:, 1, 8] = 3.0, 3.0
        assert not torch.allclose(idm(left), idm(right), atol=1e-4)


# ---------------------------------------------------------------- sparse
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
    out = SparseBottleneck(config, 4)(torch.from_numpy(z))
    assert float(out.penalty) == pytest.approx(sparse_by_hand(z.reshape(12, 4).astype(np.float64), config), rel=1e-5)
    assert torch.equal(out.z_BTZ, torch.from_numpy(z))


def test_each_weight_of_the_sparse_penalty_does_what_it_says() -> None:
    z = torch.from_numpy(np.random.default_rng(2).normal(0.1, 0.5, (3, 5, 6)).astype(np.float32))
    off = dict.fromkeys(("lambda_l1", "lambda_l2", "lambda_v", "lambda_c", "lambda_m"), 0.0)
    for name in off:
        config = Sparse(**(off | {name: 2.0}))
        once = float(SparseBottleneck(config, 6)(z).penalty)
        assert once == pytest.approx(sparse_by_hand(z.reshape(15, 6).double().numpy(), config), rel=1e-4)
        assert once > 0
    assert float(SparseBottleneck(Sparse(**off), 6)(z).penalty) == 0


def test_sparse_penalty_has_finite_gradients_at_zero() -> None:
    for hinge in ("squared", "norm"):
        z = torch.zeros(2, 3, 4, requires_grad=True)
        SparseBottleneck(Sparse(hinge=hinge), 4)(z).penalty.backward()  # type: ignore[arg-type]
        assert torch.isfinite(z.grad).all(), hinge


# ---------------------------------------------------------------- noisy
def test_kl_equals_torch_distributions() -> None:
    codes = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0))
    mu, log_variance = codes.chunk(2, dim=-1)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mu, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    out = NoisyBottleneck(Noisy(beta=0.3), 5)(codes)
    assert float(out.penalty) == pytest.approx(0.3 * float(kl.sum(-1).mean()), rel=1e-5)


def test_noise_in_training_and_the_mean_in_evaluation() -> None:
    torch.manual_seed(0)
    bottleneck = NoisyBottleneck(Noisy(), 3)
    mu, log_variance = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, -2.0, 1.0])
    codes = torch.cat([mu, log_variance]).expand(200, 100, 6)
    z = bottleneck(codes).z_BTZ.flatten(0, 1)
    assert torch.allclose(z.mean(0), mu, atol=0.05)
    assert torch.allclose(z.std(0), (0.5 * log_variance).exp(), rtol=0.03)
    assert torch.equal(bottleneck.eval()(codes).z_BTZ, codes[..., :3])


def test_a_larger_beta_leaves_less_information() -> None:
    """The same model trained with a hundred times the beta has a smaller KL."""
    nats = []
    for beta in (1e-5, 1e-1):
        config = tiny_kind("noisy", model__bottleneck__beta=beta, train__steps=10, train__log_every=10)
        nats.append(small_runs.losses_of(config)[-1]["kl_nats"])
    assert nats[1] < 0.5 * nats[0]


# ---------------------------------------------------------------- discrete
def test_nearest_code_and_both_losses() -> None:
    rng = np.random.default_rng(3)
    codes, book = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    bottleneck = DiscreteBottleneck(Discrete(codebook_size=7, commitment=0.4, codebook_loss=1.7), 3)
    with torch.no_grad():
        bottleneck.codebook.copy_(torch.from_numpy(book))
    out = bottleneck(torch.from_numpy(codes))
    flat = codes.reshape(10, 3)
    nearest = np.array([min(range(7), key=lambda k: np.sum((x - book[k]) ** 2)) for x in flat])
    np.testing.assert_allclose(out.z_BTZ.detach().reshape(10, 3), book[nearest], atol=1e-6)
    distance = np.mean((flat - book[nearest]) ** 2)
    assert out.penalty.item() == pytest.approx((1.7 + 0.4) * distance, rel=1e-5)
    share = np.bincount(nearest, minlength=7) / 10
    entropy = -sum(p * np.log(p) for p in share if p > 0)
    assert float(out.metrics["perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-5)
    assert float(out.metrics["used_share"]) == pytest.approx(len(set(nearest)) / 7)


def test_straight_through_gradients() -> None:
    """The latent's gradient reaches the codes unchanged; commitment pulls codes, the codebook loss pulls the book."""
    torch.manual_seed(0)
    codes = torch.randn(1, 4, 3, requires_grad=True)
    bottleneck = DiscreteBottleneck(Discrete(codebook_size=5, commitment=0.25, codebook_loss=1.0), 3)
    out = bottleneck(codes)
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
    bottleneck(codes)
    reset = bottleneck.maintain({})
    assert reset == 8 - len(used)
    for k in set(range(8)) - set(used.tolist()):
        assert (codes[0] - bottleneck.codebook[k]).abs().sum(-1).min() < 1e-6
    assert bottleneck.maintain({}) == 0
    assert float(bottleneck(codes).metrics["perplexity"]) > 3


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
        bottleneck(near).penalty.backward()
        optimizer.step()
        state: Any = optimizer.state
        state[bottleneck.codebook]["exp_avg"][2:] = 7.0
        resets.append(bottleneck.maintain(optimizer.state))
        before = {k: v.clone() for k, v in state[bottleneck.codebook].items()}
    assert resets == [0, 0, 2]  # 10, 20, 30 latents without codes 2 and 3
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not before[moment][2:].any() and before[moment][:2].any(), moment
    assert bottleneck.codebook[2:].abs().max() < 3
    assert bottleneck.unused_for.tolist() == [0, 0, 0, 0]
    bottleneck.eval()(near)
    assert bottleneck.unused_for.tolist() == [0, 0, 0, 0]  # evaluation is not use


# ---------------------------------------------------------------- the others
def test_no_bottleneck_passes_codes_and_every_kind_names_its_code_width() -> None:
    codes = torch.randn(2, 3, 6)
    out = build_bottleneck(tiny_kind("none").model.bottleneck, 6, 4)(codes)
    assert torch.equal(out.z_BTZ, codes) and float(out.penalty) == 0
    for kind, width in (("sparse", 6), ("noisy", 12), ("adaptive", 12), ("discrete", 6), ("none", 6)):
        assert build_bottleneck(tiny_kind(kind).model.bottleneck, 6, 4).code_width == width
    for kind in ("deterministic", "true_actions"):
        with pytest.raises(TypeError, match=kind):
            build_bottleneck(tiny_kind(kind).model.bottleneck, 6, 4)


def test_collapsed_latents_are_said_with_the_remedy() -> None:
    """On figures that training logs: a codebook of which one code is used, and latents that do carry something."""
    assert collapse_warning({}) == ""
    assert "lambda_l1" in collapse_warning({"vcm_variance": 0.9, "effective_rank": 1.0})
    assert collapse_warning({"perplexity": 2.0, "effective_rank": 1.0}) == ""  # two codes lie on a line
    assert "beta" in collapse_warning({"kl_nats": 0.01, "effective_rank": 30.0})
    assert collapse_warning({"kl_nats": 40.0, "effective_rank": 26.9}) == ""
    alike = tiny_kind("discrete")
    bottleneck = build_bottleneck(alike.model.bottleneck, alike.model.latent_dim, 4)
    metrics = bottleneck(torch.ones(2, 3, alike.model.latent_dim)).metrics
    assert "reset_after" in collapse_warning({k: float(v) for k, v in metrics.items()})


def test_effective_rank() -> None:
    torch.manual_seed(0)
    assert effective_rank(torch.randn(5000, 6)) == pytest.approx(6, abs=0.05)
    assert effective_rank(torch.randn(500, 2) @ torch.randn(2, 6)) <= 2.01
    assert effective_rank(torch.ones(50, 6)) == 0


# ---------------------------------------------------------------- two ranks
@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(small_runs.rank_main, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(2)]


@pytest.mark.parametrize("kind", ["sparse", "adaptive"])
def test_two_ranks_give_the_loss_and_gradients_of_one_with_all_clips(
    two_ranks: list[dict[str, Any]], kind: str
) -> None:
    config = {"sparse": sparse_config, "adaptive": adaptive_config}[kind]()
    objective = without_noise(new_objective(config))
    terms = objective(made_batch(range(8), config))
    terms.total.backward()
    first, second = (found[kind] for found in two_ranks)
    assert (first["penalty"] + second["penalty"]) / 2 == pytest.approx(terms.penalty.item(), rel=1e-5)
    if kind == "sparse":
        assert first["penalty"] == second["penalty"]  # of the global batch
    assert (first["prediction"] + second["prediction"]) / 2 == pytest.approx(terms.prediction.item(), rel=1e-5)
    ours = gradients(objective)
    assert set(ours) == set(first["gradients"])
    for name, gradient in ours.items():
        np.testing.assert_allclose(first["gradients"][name], gradient, rtol=2e-4, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(first["gradients"][name], second["gradients"][name], err_msg=name)
    if kind == "adaptive":
        assert any("multiplier" in name and np.abs(g).max() > 0 for name, g in ours.items())
        return
    # The test can fail: a rank's own statistics give another penalty.
    alone = objective(made_batch(range(4), config)).penalty
    assert abs(alone.item() - first["penalty"]) > 1e-4


def test_two_ranks_keep_one_codebook_and_count_use_over_both(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (found["discrete"] for found in two_ranks)
    assert torch.equal(first["codebook"], second["codebook"])
    assert torch.equal(first["unused_for"], second["unused_for"])
    config = tiny_kind("discrete", train__batch=8, train__steps=3, train__checkpoint_every=3, train__log_every=1)
    seen: list[dict[str, float]] = []
    train(new_objective(config), made_batches(config), config, lambda step, m, c: seen.append(m))
    # The first step's use comes before any random re-seeding, so one rank and two must agree on it.
    for name in ("perplexity", "used_share", "codes_reset", "loss"):
        assert first["metrics"][0][name] == pytest.approx(seen[0][name], rel=1e-4), name
        assert first["metrics"][0][name] == second["metrics"][0][name], name


def test_two_ranks_train_one_encoder(two_ranks: list[dict[str, Any]]) -> None:
    config = fine_tuned_config(train__batch=8, train__steps=3, train__checkpoint_every=3, train__log_every=1)
    objective = new_objective(config)
    seen: list[dict[str, float]] = []
    train(objective, made_batches(config), config, lambda step, m, c: seen.append(m))
    first, second = (found["fine_tuned"] for found in two_ranks)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    for ours, theirs in zip(seen, first["metrics"], strict=True):
        for name in ("loss", "distillation"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-7), name
    assert [m["state_std"] for m in first["metrics"]] == [m["state_std"] for m in second["metrics"]]


def test_a_bad_clip_on_one_rank_is_skipped_on_both(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (found["spoiled"] for found in two_ranks)
    assert [m["bad_steps"] for m in first["metrics"]] == [m["bad_steps"] for m in second["metrics"]] == [0, 1, 1]
    assert [c is None for c in second["cursors"]] == [True] * 3  # rank 0 alone keeps checkpoints
    assert first["cursors"][-1].low == 24 and not first["cursors"][-1].ahead
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
        assert torch.isfinite(weight).all(), name


def test_ranks_see_gradients_of_the_gathered_batch_only_where_they_gather() -> None:
    """Without a process group gathering is the identity, so that one process needs none."""
    from lawm.model.latent_action import gather_with_gradient, sum_over_ranks

    x: Tensor = nn.Parameter(torch.randn(3, 2))
    assert gather_with_gradient(x) is x
    assert sum_over_ranks(torch.tensor(3)).item() == 3


def test_sparse_statistics_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    codes = torch.randn(16, 3, 8)
    bottleneck = SparseBottleneck(Sparse(), 8)
    plain = bottleneck(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = bottleneck(codes)
    assert cast.penalty.dtype == torch.float32
    torch.testing.assert_close(cast.penalty, plain.penalty, rtol=1e-6, atol=0)
