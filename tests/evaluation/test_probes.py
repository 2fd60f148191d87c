"""Probes recover what is there and nothing else, with dimensions that do not vary left out and named."""

from typing import Any

import numpy as np
import pytest

from lawm.evaluation import Missing, Probed, r_squared, summarize
from lawm.evaluation.probes import FIGURES as FIGURES
from lawm.evaluation.probes import Probes, fit_probes, left_out, mlp_probe, per_dimension, varying


def probed(kind: str, videos: int, seed: int, width: int = 4, noise: float = 0.1) -> Probed:
    """Clips of `videos` videos, four each; the actions are a function of two of the latents."""
    rng = np.random.default_rng(seed)
    count = 4 * videos
    z = rng.normal(size=(count, 3, width))
    if kind == "linear":
        actions = z[..., :2] @ np.array([[2.0, 0.3], [-1.0, 0.5]]) + 5
        actions = actions + noise * actions.std(axis=(0, 1)) * rng.normal(size=(count, 3, 2))
    elif kind == "even":  # no linear part
        actions = np.abs(z[..., :2]) + 0.05 * rng.normal(size=(count, 3, 2))
    else:
        actions = rng.normal(size=(count, 3, 2))
    return Probed(np.repeat([f"{seed}-{v}" for v in range(videos)], 4).astype(object), z, actions)


def scored(fit: Probed, held_out: Probed) -> dict[str, Any]:
    fitted = fit_probes([fit], 0)
    partner = np.roll(np.arange(len(held_out)), 4)
    assert not isinstance(fitted.mlp, Missing)
    values = Probes(
        held_out.groups,
        truth=held_out.actions,
        shuffled=held_out.actions[partner],
        linear=fitted.linear(held_out.z),
        mlp=fitted.mlp(held_out.z),
        varies=np.tile(fitted.varies, (len(held_out), 1)),
    )
    names = [f"action {d + 1}" for d in range(held_out.actions.shape[-1])]
    figures = (*FIGURES, *per_dimension(values, names))
    return {r.name: r for r in summarize(figures, values, "set", 3, 100, 0, left_out(values, names)).results}


@pytest.mark.parametrize(
    ("kind", "linear", "mlp"),
    [("linear", (0.97, 1.0), (0.9, 1.0)), ("even", (-0.2, 0.15), (0.6, 1.0)), ("none", (-0.3, 0.1), (-0.1, 0.1))],
)
def test_probes_recover_what_is_there_and_nothing_else(kind: str, linear: Any, mlp: Any) -> None:
    results = scored(probed(kind, 50, 0), probed(kind, 25, 1))
    assert linear[0] <= results["probe_r2_linear"].value <= linear[1]
    assert mlp[0] <= results["probe_r2_mlp"].value <= mlp[1]
    for name in ("probe_r2_linear_shuffled", "probe_r2_mlp_shuffled"):
        assert results[name].value < 0.1 and results[name].control == "another video's actions"
    r = results["probe_r2_linear"]
    assert r.low is not None and r.high is not None and r.low <= r.value <= r.high
    assert (r.n, r.videos, r.better) == (100, 25, "higher")


def test_the_mlp_is_stopped_before_it_learns_the_clips_by_heart() -> None:
    """Many latents, few clips, much noise: where the truth is linear, the MLP is not far behind."""
    results = scored(probed("linear", 60, 0, width=32, noise=1.0), probed("linear", 60, 1, width=32, noise=1.0))
    linear, mlp = results["probe_r2_linear"].value, results["probe_r2_mlp"].value
    assert 0.4 < linear < 0.5 and linear - 0.06 < mlp < 0.5, (linear, mlp)


def test_a_network_is_stopped_on_videos_that_it_does_not_see() -> None:
    one = probed("linear", 1, 0)
    assert isinstance(mlp_probe(one, 0), Missing)
    found = mlp_probe(probed("linear", 3, 0), 0)
    assert not isinstance(found, Missing) and len(found.nets) == 3


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_dimensions_that_do_not_vary_are_left_out_and_named(off: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(16, 3, 2))
    predicted = truth + rng.normal(size=truth.shape)
    constant = np.full((16, 3, 1), 0.5)
    both = np.concatenate([predicted, constant + off], -1), np.concatenate([truth, constant], -1)
    assert r_squared(*both) == pytest.approx(r_squared(predicted, truth))
    assert varying(both[1]).tolist() == [True, True, False]
    assert np.isnan(r_squared(constant + off, constant))
    rounded = np.float32(0.1) + np.float32(1e-9) * rng.normal(size=(16, 3, 1))
    assert not varying(rounded).any()


def with_gripper(one: Probed) -> Probed:
    return Probed(one.groups, one.z, np.concatenate([one.actions, np.ones((*one.actions.shape[:2], 1))], -1))


def test_per_dimension_and_without_those_that_do_not_vary() -> None:
    fit, held_out = probed("linear", 40, 0), probed("linear", 20, 1)
    plain, more = scored(fit, held_out), scored(with_gripper(fit), with_gripper(held_out))
    assert more["probe_r2_linear"].value == pytest.approx(plain["probe_r2_linear"].value)
    assert more["probe_r2_linear"].note == "without action 3, which does not vary"
    each = [more[f"probe_r2_linear[action {d}]"].value for d in (1, 2)]
    assert np.mean(each) == pytest.approx(more["probe_r2_linear"].value)
    assert "probe_r2_linear[action 3]" not in more and plain["probe_r2_linear"].note == ""


def test_actions_of_which_none_varies_are_an_omission() -> None:
    fit = probed("linear", 10, 0)
    still = Probed(fit.groups, fit.z, np.ones_like(fit.actions))
    measured = scored(still, still)
    assert not {"probe_r2_linear", "probe_r2_mlp"} & set(measured)


def test_r_squared() -> None:
    truth = np.array([[0.0, 1.0], [1.0, 5.0], [2.0, 9.0]])
    assert r_squared(truth, truth) == 1
    assert r_squared(np.broadcast_to(truth.mean(0), truth.shape), truth) == pytest.approx(0)
    assert r_squared(truth + [[1.0, 0.0]] * 3, truth) == pytest.approx(np.mean([1 - 3 / 2, 1]))
