"""Drawn latents against inferred ones: known answers of the classifier, and of each bottleneck's way of drawing."""

import numpy as np
import pytest
import torch
from known_models import clips_for, fresh
from small_runs import tiny_kind

from lawm.config import LawmError
from lawm.evaluation import Missing, Subject, sampling
from lawm.evaluation.sampling import Drawn, told_apart
from lawm.model import Langevin
from lawm.model.latent_action.sparse import SparseBottleneck


def made(inferred: np.ndarray, drawn: np.ndarray, videos: int = 20) -> Drawn:
    groups = np.array([f"{i % videos}" for i in range(len(inferred))], dtype=object)
    return Drawn(groups, inferred, drawn, np.ones(len(inferred)), np.ones(len(inferred)))


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("same", 0.42, 0.58), ("shifted", 0.9, 1.0), ("wider", 0.75, 1.0), ("sparse", 0.8, 1.0)],
)
def test_the_classifier_on_distributions_that_are_known(kind: str, low: float, high: float) -> None:
    """The same distribution cannot be told apart; another mean, another spread or numbers that are mostly zero can."""
    rng = np.random.default_rng(0)
    inferred, drawn = rng.normal(size=(2, 40, 4, 12))
    if kind == "shifted":
        drawn = drawn + 1.5
    if kind == "wider":
        drawn = 1.6 * drawn
    if kind == "sparse":
        inferred = inferred * (rng.random(inferred.shape) < 0.2)
    told = told_apart(made(inferred, drawn), 0).told
    assert not isinstance(told, Missing) and low <= told.mean() <= high


def test_one_video_cannot_be_cross_validated() -> None:
    x = np.zeros((4, 2, 3))
    with pytest.raises(LawmError, match="all clips are of one"):
        told_apart(made(x, x, videos=1), 0)


def test_langevin_of_a_known_energy() -> None:
    """E = 1/2 ||z||^2 k has N(0, 1/k); with noise 0 it is a descent."""
    config = tiny_kind("sparse").model.bottleneck
    bottleneck = SparseBottleneck(config, 4)  # type: ignore[arg-type]
    bottleneck.energy = lambda z: 2.0 * z.square().sum(-1)  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(0)
    z = bottleneck.drawn((4000, 4), generator, Langevin(400, 0.02))
    assert float(z.var()) == pytest.approx(0.25, rel=0.06) and abs(float(z.mean())) < 0.03
    assert float(bottleneck.drawn((50, 4), generator, Langevin(400, 0.05, 0.0)).abs().max()) < 1e-3
    begun = bottleneck.drawn((4000, 4), generator, Langevin(0))
    assert float(begun.var()) == pytest.approx(1.0, rel=0.06)


@pytest.mark.parametrize("kind", ["sparse", "noisy", "adaptive", "discrete"])
def test_every_bottleneck_that_names_a_distribution(kind: str) -> None:
    model = fresh(kind)
    subject, clips = Subject(model), clips_for(model)
    found = sampling.measure(subject, clips)
    assert found.inferred.shape == found.drawn.shape and np.isfinite(found.drawn).all()
    again = sampling.measure(subject, clips_for(model))
    np.testing.assert_array_equal(found.drawn, again.drawn)
    if kind == "discrete":
        codes = model.latent_action.bottleneck.codebook.detach().numpy()  # type: ignore[union-attr]
        away = np.abs(found.drawn.reshape(-1, 1, codes.shape[1]) - codes).max(axis=2).min(axis=1)
        assert away.max() < 1e-6
    if kind == "noisy":
        assert clips.z is not None
        assert np.abs(found.inferred - clips.z.detach().numpy()).mean() > 0.1  # draws of the posterior, not its mean


def test_what_has_no_distribution_says_so() -> None:
    assert "no distribution" in sampling.lacks(Subject(fresh("none")))
    assert "no latent actions" in sampling.lacks(Subject(fresh("deterministic")))
    assert sampling.lacks(Subject(fresh("sparse"))) == ""
