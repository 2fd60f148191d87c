"""Probes recover what is there and nothing else, with dimensions that do not vary left out and named."""

from typing import Any

import numpy as np
import pytest

from lawm.config import LawmError
from lawm.evaluation import Missing, Probed, r_squared, summarize
from lawm.evaluation.probes import FIGURES as FIGURES
from lawm.evaluation.probes import (
    OUTER_FOLDS,
    Probes,
    cross_validated,
    fit_probes,
    folds_of,
    left_out,
    mlp_probe,
    per_dimension,
    varying,
)


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
    fitted = fit_probes(fit, 0)
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


def test_folds_are_of_whole_videos_and_as_many_as_there_are() -> None:
    groups = np.repeat([f"v{i}" for i in range(12)], 3)
    folds = folds_of(groups, 5, 0)
    assert all(len(set(folds[groups == video])) == 1 for video in groups)
    assert sorted(set(folds)) == [0, 1, 2, 3, 4] and max(np.bincount(folds)) <= 9
    assert sorted(set(folds_of(groups[:9], 5, 0))) == [0, 1, 2]
    assert (folds != folds_of(groups, 5, 1)).any()


def test_every_clip_is_scored_by_probes_that_saw_nothing_of_its_video() -> None:
    """Clip for clip what a probe fitted by hand on the other folds says; in the clips' own order."""
    found = probed("linear", 11, 0)
    values = cross_validated(found, 3)
    assert isinstance(values.mlp, np.ndarray)
    np.testing.assert_array_equal(values.truth, found.actions)
    np.testing.assert_array_equal(values.groups, found.groups)
    folds = folds_of(found.groups, OUTER_FOLDS, 3)
    for fold in range(OUTER_FOLDS):
        fitted = fit_probes(found.at(folds != fold), 3)
        assert not set(found.groups[folds != fold]) & set(found.groups[folds == fold])
        np.testing.assert_allclose(values.linear[folds == fold], fitted.linear(found.z[folds == fold]))
        assert not isinstance(fitted.mlp, Missing)
        np.testing.assert_allclose(values.mlp[folds == fold], fitted.mlp(found.z[folds == fold]))


def test_latents_that_name_the_video_tell_nothing_of_actions() -> None:
    """Every video has an action of its own and latents of its own: a probe that had seen the video would tell its
    action exactly."""
    rng = np.random.default_rng(0)
    videos, each = 20, 6
    names, actions = rng.normal(size=(videos, 1, 1, 24)), rng.normal(size=(videos, 1, 1, 2))
    z = np.broadcast_to(names, (videos, each, 3, 24)).reshape(-1, 3, 24)
    z = z + 0.01 * rng.normal(size=z.shape)
    a = np.broadcast_to(actions, (videos, each, 3, 2)).reshape(-1, 3, 2)
    found = Probed(np.repeat([f"v{i}" for i in range(videos)], each).astype(object), z, a)
    assert r_squared(fit_probes(found, 0).linear(z), a) > 0.9  # what a fit on the same clips would have said
    values = cross_validated(found, 0)
    assert isinstance(values.mlp, np.ndarray)
    assert r_squared(values.linear, a) < 0.05 and r_squared(values.mlp, a) < 0.05


def test_one_video_is_too_few_and_two_have_no_mlp() -> None:
    with pytest.raises(LawmError, match="all clips are of one; measure on more"):
        cross_validated(probed("linear", 1, 0), 0)
    two = cross_validated(probed("linear", 2, 0), 0)
    assert isinstance(two.mlp, Missing) and "measure more videos" in two.mlp.reason


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
