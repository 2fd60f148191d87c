"""One and two ranks give the same figures, gradients, codebook and weights."""

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
    latents_of,
    made_batch,
    made_batches,
    new_objective,
    reseeded,
    sparse_config,
    tiny_kind,
    without_noise,
)
from torch import Tensor, nn

from lawm.model.latent_action.ranks import gather_with_gradient, sum_over_ranks
from lawm.training import train


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
    objective = new_objective(config)
    objective = without_noise(objective) if kind == "adaptive" else objective
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


def test_codes_are_reseeded_from_the_latents_of_both_ranks(two_ranks: list[dict[str, Any]]) -> None:
    """4,095 dead codes from 112 latents a rank: each latent of either rank is a code, as often as any other."""
    first, second = (found["reseeded"] for found in two_ranks)
    assert torch.equal(first["codebook"], second["codebook"])
    assert first["codes_reset"] == second["codes_reset"] == 4095
    latents = torch.cat([latents_of(rank).flatten(0, 1) for rank in range(2)])
    codes, counts = first["codebook"][1:].unique(dim=0, return_counts=True)
    assert torch.equal(codes, latents.unique(dim=0))
    assert set(counts.tolist()) == {18, 19}  # 4,095 of 224
    # One rank's latents alone are half of the codes, and serve fewer of both ranks' next latents.
    alone = reseeded(0)
    assert len(alone["codebook"][1:].unique(dim=0)) == 112
    assert first["perplexity"] > 1.5 * alone["perplexity"]


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
    x: Tensor = nn.Parameter(torch.randn(3, 2))
    assert gather_with_gradient(x) is x
    assert sum_over_ranks(torch.tensor(3)).item() == 3
