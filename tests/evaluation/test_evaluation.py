"""Evaluations on models whose figures are known: an oracle, a code that copies, a latent that nobody reads."""

from typing import Any

import numpy as np
import pytest
import torch
from small_runs import made_batch, new_objective, tiny_kind, tiny_with
from torch import Tensor, nn

from lawm.evaluation import capacity, control, cycle, interval, leakage, mean, ratio, summarize
from lawm.evaluation.results import Figure, derange
from lawm.model import WorldModel
from lawm.training import ClipBatch, ControllerObjective, LatentActionObjective


# ---------------------------------------------------------------- statistics
def test_derange_has_no_fixed_point_and_is_a_permutation() -> None:
    for n in range(2, 40):
        for seed in range(5):
            order = derange(n, seed)
            assert sorted(order) == list(range(n)) and not (order == np.arange(n)).any()
    assert derange(30, 0).tolist() != derange(30, 1).tolist()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        value, low, high = interval(mean, [rng.normal(3.0, 1.0, 40)], 200, seed=trial)
        assert low < value < high
        hits += low <= 3.0 <= high
    assert 0.88 <= hits / 200 <= 0.985, hits


def test_ratios_pair_clips() -> None:
    """Numerator and denominator vary together: the paired interval is narrow, an unpaired one would not be."""
    base = np.random.default_rng(0).lognormal(0, 1, 100)
    value, low, high = interval(ratio, [2 * base, base], 300)
    assert (value, low, high) == pytest.approx((2, 2, 2))
    assert ratio(np.array([1.0, 3.0]), np.array([0.1, 3.9])) == pytest.approx(1.0)  # of means, not mean of ratios
    assert np.isnan(ratio(np.ones(3), np.zeros(3)))


def test_summaries_leave_out_what_is_missing_and_not_a_number() -> None:
    figures = [Figure("a", "x"), Figure("r", "x", "y", control="c"), Figure("gone", "z"), Figure("also gone", "x", "z")]
    values = {"x": np.array([1.0, np.nan, 3.0, 8.0]), "y": np.array([2.0, 5.0, np.nan, 7.0])}
    a, r = summarize(figures, values, "set", 7, 100, 0)
    assert (a.name, a.value, a.n, a.unit, a.dataset, a.step) == ("a", 4.0, 3, "L1", "set", 7)
    assert (r.name, r.n, r.unit, r.control) == ("r", 2, "ratio", "c") and r.value == pytest.approx(9 / 9)


# ---------------------------------------------------------------- models whose figures are known
class Adds(WorldModel):
    """s + z + bias: with a code of differences an oracle, up to the bias."""

    bias = 0.0

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, past: Any = None) -> Tensor:
        assert z_BTZ is not None
        return states_BTND + z_BTZ.view_as(states_BTND) + self.bias


class Shows(Adds):
    """z + bias: with a code that is the next state, the next state itself."""

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, past: Any = None) -> Tensor:
        return super().forward(torch.zeros_like(states_BTND), z_BTZ, past)


class Difference(nn.Module):
    def forward(self, states_BTND: Tensor) -> Tensor:
        return (states_BTND[:, 1:] - states_BTND[:, :-1]).flatten(2)


class Next(nn.Module):
    def forward(self, states_BTND: Tensor) -> Tensor:
        return states_BTND[:, 1:].flatten(2)


CONFIG = tiny_kind("none", data__clip__size=16, model__latent_dim=4 * 192)


def built(world: type[Adds], idm: nn.Module, bias: float = 0.0) -> LatentActionObjective:
    objective = new_objective(CONFIG)
    objective.world_model = world(CONFIG.model.world_model, 192, 4 * 192)
    objective.world_model.bias = bias
    objective.latent_action.idm = idm
    return objective.eval()


def clips(count: int = 12) -> ClipBatch:
    return made_batch(range(count), CONFIG)


def test_capacity_of_an_oracle() -> None:
    model, batch = built(Adds, Difference(), bias=0.01), clips()
    found = capacity.evaluate(model, batch, seed=0)
    states = model.states(batch)
    np.testing.assert_allclose(found["one_step"], 0.01, rtol=1e-3)
    np.testing.assert_allclose(found["unrolled"], 0.02, rtol=1e-3)  # 0.01, 0.02, 0.03: errors add up when fed back
    np.testing.assert_allclose(found["unrolled_last"], 0.03, rtol=1e-3)
    copy = (states[:, 1:] - states[:, :-1]).abs().mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(found["copy"], copy, rtol=1e-4)
    np.testing.assert_allclose(found["zero"], copy, atol=0.0101)  # without its latents the oracle copies
    partner = torch.from_numpy(derange(12, 0))
    moves = states[:, 1:] - states[:, :-1]
    np.testing.assert_allclose(
        found["shuffled"], (moves[partner] - moves).abs().mean(dim=(1, 2, 3)).numpy(), atol=0.0101
    )
    assert found["shuffled"].mean() > 5 * found["one_step"].mean()
    later = capacity.evaluate(model, batch, seed=0, context=2)
    np.testing.assert_allclose(later["unrolled"], 0.015, rtol=1e-3)


def test_capacity_beside_its_two_ends() -> None:
    batch = clips()
    own, none = built(Adds, Difference(), bias=0.02), built(Adds, Difference(), bias=0.01)
    det = new_objective(tiny_kind("deterministic", data__clip__size=16)).eval()  # fresh and residual: copies
    found = capacity.evaluate(own, batch, 0, deterministic=det, unconstrained=none)
    np.testing.assert_allclose(found["deterministic"], found["copy"], rtol=1e-5)
    expected = (found["copy"].mean() - 0.02) / (found["copy"].mean() - 0.01)
    ends = [found[k] for k in ("deterministic", "unconstrained", "one_step")]
    assert capacity.normalized(*ends) == pytest.approx(expected, rel=1e-3)
    assert np.isnan(capacity.normalized(ends[0], ends[0], ends[2]))


def test_groups_take_all_clips_and_leave_none_alone() -> None:
    from lawm.cluster.evaluate import groups

    for clips, batch in ((3, 32), (64, 32), (65, 32), (66, 32), (2, 2), (7, 2)):
        tasks = groups("val", clips, batch)
        assert [p for t in tasks for p in range(t.start, t.stop)] == list(range(clips))
        assert all(t.stop - t.start >= 2 for t in tasks)


def test_errors_of_a_model_with_other_channel_statistics_are_in_our_units() -> None:
    batch = clips()
    own = built(Adds, Difference())
    other = new_objective(tiny_kind("deterministic", data__clip__size=16, encoder__normalize_states="channel")).eval()
    found = capacity.evaluate(own, batch, 0, deterministic=other)  # residual: copies in its own units, so in ours too
    np.testing.assert_allclose(found["deterministic"], found["copy"], rtol=1e-3)


def test_leakage_of_a_code_that_copies_is_one() -> None:
    found = leakage.evaluate(built(Shows, Next(), bias=0.01), clips(), seed=0)
    assert found["cut"].mean() / found["uncut"].mean() == pytest.approx(1.0, rel=1e-3)
    assert found["pca_cut"].mean() / found["pca_uncut"].mean() == pytest.approx(1.0, rel=1e-3)


def test_leakage_of_a_model_that_only_copies_its_last_state_is_what_the_cut_costs() -> None:
    batch = clips()
    model = new_objective(tiny_kind("noisy", data__clip__size=16)).eval()  # fresh and residual
    det = new_objective(tiny_kind("deterministic", data__clip__size=16)).eval()
    found = leakage.evaluate(model, batch, seed=0, deterministic=det)
    for name in ("cut", "uncut"):
        np.testing.assert_allclose(found[name], found[f"copy_{name}"], rtol=1e-4)
        np.testing.assert_allclose(found[f"det_{name}"], found[f"copy_{name}"], rtol=1e-4)
    assert found["cut"].mean() / found["uncut"].mean() > 2
    states, partner = model.states(batch), torch.from_numpy(derange(12, 0))
    np.testing.assert_allclose(found["cut"], (states[partner, 2] - states[:, 1]).abs().mean((1, 2)).numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        found["uncut"], (states[partner, 2] - states[partner, 1]).abs().mean((1, 2)).numpy(), rtol=1e-4
    )


def test_stitching_frames_and_cached_states_is_the_same() -> None:
    model, batch = built(Adds, Difference(), bias=0.01), clips()
    assert batch.frames_BFCHW is not None
    cached = ClipBatch(None, model.encode(batch.frames_BFCHW), None, batch.positions_B)
    one, two = leakage.evaluate(model, batch, 3), leakage.evaluate(model, cached, 3)
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-7)


def test_cycle_of_a_dead_latent_is_exactly_one() -> None:
    model = new_objective(tiny_with(data__clip__size=16)).eval()  # AdaLN-zero: the fresh model ignores z
    found = cycle.evaluate(model, clips(), seed=0)
    for control_of in ("transfer", "shuffled", "zero"):
        np.testing.assert_array_equal(found[control_of], found["original"])


def test_cycle_of_a_code_that_means_the_same_everywhere() -> None:
    """Differences carry over to another clip: z' = z + bias, and the shuffled control is far off."""
    found = cycle.evaluate(built(Adds, Difference(), bias=0.01), clips(), seed=0)
    np.testing.assert_allclose(found["original"], 0.02, rtol=1e-3)
    np.testing.assert_allclose(found["transfer"], 0.04, rtol=1e-3)  # really re-inferred: the bias counts twice
    assert found["shuffled"].mean() > 3 * found["transfer"].mean()


def test_cycle_of_a_code_tied_to_its_clip_does_not_close() -> None:
    """A code of the mean brightness of the next state, read on B, says something else about A."""

    class Brightness(nn.Module):
        def forward(self, states_BTND: Tensor) -> Tensor:
            return (states_BTND[:, 1:] - states_BTND[:, :-1].mean((2, 3), keepdim=True)).flatten(2)

    found = cycle.evaluate(built(Adds, Brightness()), clips(), seed=0)
    same = cycle.evaluate(built(Adds, Difference(), bias=0.001), clips(), seed=0)
    assert found["transfer"].mean() > 5 * same["transfer"].mean()


def test_evaluations_without_latents_are_left_out() -> None:
    det = new_objective(tiny_kind("deterministic", data__clip__size=16)).eval()
    assert cycle.evaluate(det, clips(), 0) == {}
    assert not {"zero", "shuffled"} & set(capacity.evaluate(det, clips(), 0))


# ---------------------------------------------------------------- control
class PassOn(nn.Module):
    """A controller for actions that are the latents already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.action_std = torch.ones(width)

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        return actions_BTA

    def inverse(self, z_BTZ: Tensor) -> Tensor:
        return z_BTZ


def test_a_perfect_controller_is_as_good_as_the_idm() -> None:
    model, batch = built(Adds, Difference(), bias=0.01), clips()
    z = model.infer(model.states(batch)).z_BTZ
    labelled = ClipBatch(batch.frames_BFCHW, None, z, batch.positions_B)
    objective = ControllerObjective(CONFIG, model, 4 * 192)
    objective.controller = PassOn(4 * 192)  # type: ignore[assignment]
    for context in (1, 2):
        found = control.evaluate(model, objective, labelled, context)
        np.testing.assert_allclose(found["controller"], found["idm"], rtol=1e-5)
        assert z is not None
        still = (z == 0).all(dim=2).any(dim=1).numpy()  # no move, and so no direction
        np.testing.assert_allclose(found["cosine"][~still], 1, rtol=1e-5)
        np.testing.assert_allclose(found["l2"], 0, atol=1e-5)
        np.testing.assert_allclose(found["inverse"], 0, atol=1e-6)
        assert found["controller_shuffled"].mean() > 3 * found["controller"].mean()


def probed(kind: str, count: int, seed: int) -> control.Probed:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 3, 4))
    if kind == "linear":
        actions = z[..., :2] @ np.array([[2.0, 0.3], [-1.0, 0.5]]) + 5 + 0.1 * rng.normal(size=(count, 3, 2))
    elif kind == "even":  # no linear part
        actions = np.abs(z[..., :2]) + 0.05 * rng.normal(size=(count, 3, 2))
    else:
        actions = rng.normal(size=(count, 3, 2))
    return control.Probed(z, actions)


@pytest.mark.parametrize(
    ("kind", "linear", "mlp"),
    [("linear", (0.97, 1.0), (0.9, 1.0)), ("even", (-0.2, 0.15), (0.6, 1.0)), ("none", (-0.3, 0.1), (-2.0, 0.1))],
)
def test_probes_recover_what_is_there_and_nothing_else(kind: str, linear: Any, mlp: Any) -> None:
    results = {r.name: r for r in control.probe_results(probed(kind, 200, 0), probed(kind, 100, 1), "set", 3, 100, 0)}
    assert linear[0] <= results["probe_r2_linear"].value <= linear[1]
    assert mlp[0] <= results["probe_r2_mlp"].value <= mlp[1]
    for name in ("probe_r2_linear_shuffled", "probe_r2_mlp_shuffled"):
        assert results[name].value < 0.05 and results[name].control == "shuffled actions"
    r = results["probe_r2_linear"]
    assert r.low <= r.value <= r.high and r.n == 100


def test_r_squared() -> None:
    truth = np.array([[0.0, 1.0], [1.0, 5.0], [2.0, 9.0]])
    assert control.r_squared(truth, truth) == 1
    assert control.r_squared(np.broadcast_to(truth.mean(0), truth.shape), truth) == pytest.approx(0)
    assert control.r_squared(truth + [[1.0, 0.0]] * 3, truth) == pytest.approx(np.mean([1 - 3 / 2, 1]))
