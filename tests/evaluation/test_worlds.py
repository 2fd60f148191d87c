"""Every evaluation on worlds made by hand, in which its right answer is known (`made_worlds`)."""

import numpy as np
import pytest
import torch
from known_models import Adds, Difference
from made_worlds import CONFIG, FollowsDistractor, Moves, Pans, clips_of, made_model
from small_runs import new_objective

from lawm.evaluation import Clips, Missing, Subject, capacity, controllability, cycle, leakage, probes, transfer
from lawm.evaluation.probes import r_squared
from lawm.training import LatentActionObjective


def array(value: np.ndarray | Missing) -> np.ndarray:
    assert not isinstance(value, Missing)
    return value


def copies() -> LatentActionObjective:
    """A latent as wide as the state that holds how each cell changes."""
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"latent_dim": 64 * 48})})
    objective = new_objective(config)
    objective.world_model = Adds(config.model.world_model, 48, 64 * 48)
    objective.latent_action.idm = Difference()
    return objective.eval()


@pytest.mark.parametrize(("kind", "physics"), [("dot", Moves), ("pan", Pans)])
def test_a_latent_that_is_the_action(kind: str, physics: type[Pans]) -> None:
    model = made_model(physics)
    clips = clips_of(model, kind)
    assert clips.z is not None and torch.equal(clips.z, clips.actions)
    subject = Subject(model)
    assert array(capacity.measure(subject, clips).one_step).max() < 1e-6
    around = cycle.measure(subject, clips)
    assert array(around.original).max() < 1e-6 and array(around.transfer).max() < 1e-6
    assert array(around.shuffled).mean() > 0.005
    on_b = transfer.measure(subject, clips)
    assert array(on_b.cosine) == pytest.approx(1.0)  # the same action is seen on any other video
    assert abs(array(on_b.cosine_other).mean()) < 0.25  # chance: two random actions
    steer = controllability.measure(subject, clips)
    assert array(steer.own).max() < 1e-6 and array(steer.other).mean() > 0.005
    assert array(steer.own_psnr).min() > array(steer.other_psnr).mean() + 20
    # It acts on B's own dot, wherever A's was: no more local than chance.
    if kind == "dot":
        assert abs(np.nanmean(array(on_b.locality))) < 0.2
    found = probes.cross_validated(probes.collect(subject, clips), 0)
    assert r_squared(array(found.linear), found.truth) > 0.999
    assert r_squared(array(found.linear), array(found.shuffled)) < 0.1


def test_a_latent_that_holds_places_acts_where_the_source_moved() -> None:
    model = copies()
    clips = clips_of(model, "dot")
    on_b = transfer.measure(Subject(model), clips)
    assert array(on_b.locality) == pytest.approx(1.0)
    # Pixels end at black and white, where change is cut off.
    assert array(on_b.pixels).mean() > 0.5 and array(on_b.pixels_other).mean() < 0.3
    assert abs(array(on_b.locality_other).mean()) < 0.3
    # And it leaks: the next state after a cut is there, as after any motion.
    cut = leakage.measure(Subject(model), clips, Missing("no code"))
    assert array(cut.cut).max() < 1e-6


def test_a_latent_that_follows_a_distractor() -> None:
    """The world model heeds it, and rollouts depend on it; only the probe says that it is not the action."""
    right, wrong = made_model(Moves), made_model(FollowsDistractor, rank=1)
    r2, errors = [], []
    for model in (right, wrong):
        clips, subject = clips_of(model, "distractor", 40), Subject(model)
        found = probes.cross_validated(probes.collect(subject, clips), 0)
        r2.append(r_squared(array(found.linear), found.truth))
        steer = controllability.measure(subject, clips)
        errors.append(array(steer.other).mean() / array(steer.own).mean())
    assert r2[0] > 0.999 and r2[1] < 0.1
    assert min(errors) > 1.1


def test_horizons_that_clips_reach() -> None:
    model = made_model(Moves)
    clips = clips_of(model, "dot", 6)
    steer = controllability.measure(Subject(model, fps=4.0), clips)
    assert steer.seconds[0].tolist() == [1.0]
    assert controllability.note(steer, ()) == "the clips do not reach 2, 4 s"
    assert [f.name for f in controllability.at_horizons(steer, ())] == ["controllability_1s", "controllability_1s_psnr"]
    steer = controllability.measure(Subject(model, fps=1.0), clips)
    assert steer.seconds[0].tolist() == [1.0, 2.0, 4.0] and controllability.note(steer, ()) == ""
    steer = controllability.measure(Subject(model, fps=16.0), clips)
    assert steer.seconds[0].tolist() == [0.25] and "do not reach 1, 2, 4 s" in controllability.note(steer, ())


def test_one_video_has_no_partner() -> None:
    model = made_model(Moves)
    one = clips_of(model, "dot", 4)
    clips = Clips(model, one.batch, ["a"] * 4)
    assert isinstance(transfer.measure(Subject(model), clips).cosine, Missing)
    steer = controllability.measure(Subject(model), clips)
    assert isinstance(steer.other, Missing) and array(steer.own).max() < 1e-6
