"""Capacity, leakage, cycle and control of models whose figures are known."""

from typing import Any

import numpy as np
import pytest
import torch
from known_models import CONFIG, Adds, Difference, Next, Shows, Still, Sums, batch_of, built, clips_for, fresh
from small_runs import fine_tuned_config, made_batch, new_objective
from torch import Tensor, nn

from lawm.evaluation import Clips, Missing, Subject, deal, derange, summarize
from lawm.evaluation import capacity as capacity_of
from lawm.evaluation import control as control_of
from lawm.evaluation import cycle as cycle_of
from lawm.evaluation import leakage as leakage_of
from lawm.evaluation.capacity import Capacity
from lawm.evaluation.cycle import Cycle
from lawm.evaluation.leakage import CopyingCode, Leakage
from lawm.training import ClipBatch, ControllerObjective, LatentActionObjective

NO_CODE = Missing("no other videos")


def capacity(model: LatentActionObjective, **more: Any) -> Capacity:
    return capacity_of.measure(Subject(model, **more), clips_for(model))


def leakage(model: LatentActionObjective, code: Any = NO_CODE, batch: ClipBatch | None = None, **more: Any) -> Leakage:
    return leakage_of.measure(Subject(model, **more), clips_for(model, batch), code)


def cycle(model: LatentActionObjective, **more: Any) -> Cycle:
    return cycle_of.measure(Subject(model, **more), clips_for(model))


def figures(evaluation: Any, values: Any) -> dict[str, float]:
    return {r.name: r.value for r in summarize(evaluation.FIGURES, values, "made", 0, 100, 0).results}


# ---------------------------------------------------------------- capacity
def test_capacity_of_an_oracle() -> None:
    model = built(Adds, Difference(), bias=0.01)
    found, clips = capacity(model), clips_for(model)
    states = clips.states
    np.testing.assert_allclose(found.one_step, 0.01, rtol=1e-3)
    np.testing.assert_allclose(found.unrolled, 0.02, rtol=1e-3)  # 0.01, 0.02, 0.03: errors add up when fed back
    np.testing.assert_allclose(found.unrolled_last, 0.03, rtol=1e-3)
    moves = states[:, 1:] - states[:, :-1]
    np.testing.assert_allclose(found.copy, moves.abs().mean(dim=(1, 2, 3)).numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.zero, found.copy, atol=0.0101)  # without its latents the oracle copies
    partner = clips.partners()
    assert partner is not None and isinstance(found.shuffled, np.ndarray)
    wanted = (moves[partner] - moves).abs().mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(found.shuffled, wanted, atol=0.0101)
    assert found.shuffled.mean() > 5 * found.one_step.mean()
    np.testing.assert_allclose(capacity(model, context=2).unrolled, 0.015, rtol=1e-3)


def test_capacity_beside_its_two_ends() -> None:
    own, none = built(Adds, Difference(), bias=0.02), built(Adds, Difference(), bias=0.01)
    found = capacity(own, deterministic=fresh("deterministic"), unconstrained=none)
    np.testing.assert_allclose(found.deterministic, found.copy, rtol=1e-5)  # type: ignore[arg-type]
    expected = (found.copy.mean() - 0.02) / (found.copy.mean() - 0.01)
    assert figures(capacity_of, found)["normalized_capacity"] == pytest.approx(expected, rel=1e-3)
    assert np.isnan(capacity_of.normalized(found.copy, found.copy, found.one_step))


def test_what_was_not_given_is_said() -> None:
    found = capacity(built(Adds, Difference()))
    assert isinstance(found.deterministic, Missing)
    assert found.deterministic.reason.startswith("no deterministic twin was given (--deterministic URI); train one")
    assert "--set model.bottleneck.kind=deterministic" in found.deterministic.reason
    det = capacity(fresh("deterministic"))
    assert det.zero == det.shuffled == Missing("a deterministic model has no latent actions")
    assert isinstance(det.rate, Missing) and isinstance(capacity(fresh("noisy")).rate, np.ndarray)


def test_errors_of_a_model_with_other_channel_statistics_are_in_our_units() -> None:
    own, other = built(Adds, Difference()), fresh("deterministic", encoder__normalize_states="channel")
    found = capacity(own, deterministic=other)  # residual: copies in its own units, so in ours too
    np.testing.assert_allclose(found.deterministic, found.copy, rtol=1e-3)  # type: ignore[arg-type]
    leaks = leakage(own, deterministic=other)
    np.testing.assert_allclose(leaks.deterministic_cut, leaks.copy_cut, rtol=1e-3)  # type: ignore[arg-type]


def test_partners_are_of_other_videos_and_one_video_has_none() -> None:
    model, batch = built(Adds, Difference()), batch_of(6)
    same = Clips(model, batch, ["a.mp4"] * 6)
    for values in (
        capacity_of.measure(Subject(model), same).shuffled,
        leakage_of.measure(Subject(model), same, NO_CODE).cut,
        cycle_of.measure(Subject(model), same).original,
    ):
        assert isinstance(values, Missing) and "all clips are of one video" in values.reason
    pairs = Clips(model, batch, list("aabbcc"))
    for turn in range(5):
        partner = pairs.partners(turn)
        assert partner is not None and all("aabbcc"[i] != "aabbcc"[j] for i, j in enumerate(partner.tolist()))


# ---------------------------------------------------------------- leakage
def test_a_bottleneck_as_wide_as_the_state_leaks_everything_and_the_twin_nothing() -> None:
    """Known answers of the score: a code that is the next state has 1, a model without latents 0."""
    twin = fresh("deterministic")
    wide = figures(leakage_of, leakage(built(Shows, Next()), deterministic=twin))
    assert wide["leakage_score"] == pytest.approx(1) and wide["motion_explained"] == pytest.approx(1)
    assert figures(leakage_of, leakage(built(Shows, Next(), bias=0.01)))["leakage_ratio"] == pytest.approx(1, rel=1e-3)
    none = figures(leakage_of, leakage(twin, deterministic=twin))
    assert none["leakage_score"] == none["motion_explained"] == 0
    blind = figures(leakage_of, leakage(fresh("noisy"), deterministic=twin))  # AdaLN-zero: latents are not read
    assert blind["leakage_score"] == pytest.approx(0, abs=1e-5)


def test_leakage_of_a_model_that_only_copies_its_last_state_is_what_the_cut_costs() -> None:
    model = fresh("noisy")
    clips = clips_for(model)
    found = leakage(model, deterministic=fresh("deterministic"))
    partner = clips.partners()
    assert partner is not None
    before, after = clips.states[partner, :-1], clips.states[:, 1:]
    np.testing.assert_allclose(found.cut, (after - before).abs().mean((2, 3)).numpy(), rtol=1e-4)  # type: ignore[arg-type]
    uncut = (after - clips.states[:, :-1]).abs().mean((2, 3)).numpy()
    for values in (found.uncut, found.copy_uncut, found.deterministic_uncut):
        np.testing.assert_allclose(values, uncut, rtol=1e-4)  # type: ignore[arg-type]
    assert figures(leakage_of, found)["leakage_ratio"] > 2


def test_leakage_is_measured_at_every_cut_or_in_the_middle() -> None:
    model, twin = built(Adds, Difference(), bias=0.01), fresh("deterministic")
    every = leakage(model, deterministic=twin)
    middle = leakage(model, deterministic=twin, cut_positions="middle")
    assert every.cuts[0].tolist() == [1, 2, 3] and middle.cuts[0].tolist() == [2]
    for name in ("cut", "uncut", "copy_cut", "deterministic_cut", "deterministic_uncut"):
        np.testing.assert_allclose(getattr(every, name)[:, 1:2], getattr(middle, name), rtol=1e-4)
    said = {r.name: r for r in summarize(leakage_of.at_each_cut(every, ()), every, "made", 0, 100, 0).results}
    assert set(said) == {f"leakage_{what}[cut at state {cut}]" for what in ("score", "ratio") for cut in (1, 2, 3)}
    one = figures(leakage_of, middle)
    assert said["leakage_score[cut at state 2]"].value == pytest.approx(one["leakage_score"], rel=1e-4)
    assert leakage_of.at_each_cut(middle, ()) == ()
    assert leakage_of.note(every, ()) == "mean over 3 cuts of each clip"
    assert leakage_of.note(middle, ()) == "cut at state 2"


def test_cuts_over_from_another_data_set() -> None:
    """The frame that is predicted stays the measured clip's, and so does the error without a cut; a code that is the
    next state carries any cut, and what copies pays the way from the other data set's picture."""
    model, twin, far = built(Shows, Next(), bias=0.01), fresh("deterministic"), batch_of(5)
    assert far.frames_BFCHW is not None
    other = clips_for(model, ClipBatch(255 - far.frames_BFCHW, None, None, far.positions_B))
    clips = Clips(model, batch_of(), [f"{i}.mp4" for i in range(12)], other=other)
    found = leakage_of.measure(Subject(model, deterministic=twin), clips, NO_CODE)
    past = other.states[torch.arange(12) % 5, :-1]
    np.testing.assert_allclose(found.across_copy_cut, (clips.states[:, 1:] - past).abs().mean((2, 3)), rtol=1e-4)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.across_deterministic_cut, found.across_copy_cut, rtol=1e-4)  # type: ignore[arg-type]
    said = figures(leakage_of, found)
    assert said["leakage_ratio_across"] == pytest.approx(1, rel=1e-3) and said["leakage_score_across"] > 0.97
    assert said["leakage_ratio_across_copy_last"] > said["leakage_ratio_copy_last"]
    alone = leakage_of.measure(Subject(model, deterministic=twin), clips_for(model), NO_CODE)
    np.testing.assert_array_equal(alone.uncut, found.uncut)
    assert isinstance(alone.across_cut, Missing) and "no other data set" in alone.across_cut.reason


def test_an_encoder_that_looks_back_encodes_the_cut_clips_up_to_the_cut() -> None:
    """State for state what the whole stitched clip gives, and no state of the clip without a cut."""
    config = fine_tuned_config(fine_tune__target="off", encoder__causality="block_causal", data__clip__frames=8)
    model = new_objective(config).eval()
    batch = made_batch(range(4), config)
    clips = Clips(model, batch, list("abcd"))
    assert model.encoder.looks_back and clips.states.shape[1] == 4 and batch.frames_BFCHW is not None
    partner = clips.partners()
    assert partner is not None
    before = leakage_of.taken(clips.batch, partner)
    for cut in (1, 2, 3):
        stitched = torch.cat([batch.frames_BFCHW[partner, : 2 * cut], batch.frames_BFCHW[:, 2 * cut :]], dim=1)
        wanted = model.encode(stitched)[:, cut]
        found = leakage_of.after_cut(model, before, clips, cut)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert clips.batch.states_BTND is not None
        assert (found - clips.batch.states_BTND[:, cut]).abs().max() > 1e-3


def test_leakage_is_filed_under_the_video_whose_frame_is_predicted() -> None:
    """Videos differ, clips of one do not: there an interval over videos covers the mean of all videos as often as it
    says, through the dealing of units and the pairing in them; filed under the other video it covers 53 % here."""
    model, videos, each, trials = built(Adds, Still()), 8, 4, 100
    rng, covered, groups = np.random.default_rng(0), 0, [f"v{i // 4}" for i in range(8 * 4)]
    for trial in range(trials):
        pace = np.repeat(rng.uniform(0.5, 1.5, videos), each)  # how far the clips of a video move in a step
        states = torch.from_numpy(pace[:, None, None, None] * np.arange(4)[None, :, None, None]).float()
        parts = []
        for number, unit in enumerate(deal(groups, 16)):
            batch = ClipBatch(None, states[unit].expand(-1, -1, 4, 192), None, torch.tensor(unit))
            clips = Clips(model, batch, [groups[i] for i in unit], trial * 1_000_003 + number)
            parts.append(leakage_of.measure(Subject(model), clips, NO_CODE))
            expected = {name: pace[groups.index(name)] for name in set(parts[-1].groups)}
            wanted = np.tile([[expected[g]] for g in parts[-1].groups], 3)
            np.testing.assert_allclose(parts[-1].uncut, wanted, rtol=1e-5)
        said = summarize(leakage_of.FIGURES, Leakage.join(parts), "made", 0, 200, trial).results
        found = next(r for r in said if r.name == "error_without_cut")
        assert found.low is not None and found.high is not None and found.videos == videos
        covered += found.low <= 1.0 <= found.high
    assert covered >= 88


def test_stitching_frames_and_cached_states_is_the_same() -> None:
    model, batch = built(Adds, Difference(), bias=0.01), batch_of()
    assert batch.frames_BFCHW is not None
    cached = ClipBatch(None, model.encode(batch.frames_BFCHW), None, batch.positions_B)
    one, two = leakage(model, batch=batch), leakage(model, batch=cached)
    for name in ("cut", "uncut", "copy_cut", "copy_uncut"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-5, atol=1e-7)


def states_of(generator: np.random.Generator, rank: int, count: int, noise: float = 0.0) -> leakage_of.States:
    """States that lie in a plane of `rank` directions, plus noise."""
    basis = np.random.default_rng(7).normal(size=(rank, 96))
    x = generator.normal(size=(count, 2, rank)) @ basis + noise * generator.normal(size=(count, 2, 96))
    return leakage_of.States(np.arange(count).astype(str).astype(object), x.astype(np.float32), np.full(count, 4))


@pytest.mark.parametrize(("rank", "noise", "share"), [(4, 0.0, 1.0), (12, 0.0, None), (96, 0.0, None)])
def test_a_copying_code_fitted_on_other_videos(rank: int, noise: float, share: float | None) -> None:
    """Of states in a plane of its width it copies everything, of others as much as its width allows, and the clips
    that it is scored on never teach it: of pure noise a code of 4 of 96 numbers keeps about 4 %, not all."""
    rng = np.random.default_rng(0)
    code = leakage_of.fit_code([states_of(rng, rank, 40), states_of(rng, rank, 40)], 0)
    other = states_of(rng, rank, 50, noise).states.reshape(100, 6, 16)
    x = torch.from_numpy(other)
    left = float((code(x) - x).square().mean() / x.square().mean())
    if share is not None:
        assert left < 1e-6
    else:
        assert 1 - 4 / rank - 0.1 - 0.25 * (rank == 12) < left < 1


def test_a_code_never_has_more_numbers_than_half_of_its_states() -> None:
    few = states_of(np.random.default_rng(0), 96, 3)
    assert len(leakage_of.fit_code([few], 0).basis) == 3  # of 6 states, where the latent has 4 numbers


def test_the_code_is_scored_in_states() -> None:
    model = built(Adds, Difference())
    width = clips_for(model).states[0, 0].numel()
    everything = CopyingCode(np.zeros(width, np.float32), np.eye(width, dtype=np.float32))
    nothing = CopyingCode(np.zeros(width, np.float32), np.zeros((1, width), np.float32))
    twin = fresh("deterministic")
    assert figures(leakage_of, leakage(model, everything, deterministic=twin))[
        "leakage_score_copying_code"
    ] == pytest.approx(1, abs=1e-5)
    assert figures(leakage_of, leakage(model, nothing, deterministic=twin))["leakage_score_copying_code"] < 0.5


# ---------------------------------------------------------------- cycle
def test_cycle_of_a_dead_latent_is_exactly_one() -> None:
    found = cycle(fresh("noisy"))  # AdaLN-zero: the fresh model ignores z
    for control in (found.transfer, found.shuffled, found.zero):
        np.testing.assert_array_equal(control, found.original)


def test_cycle_of_a_code_that_means_the_same_everywhere() -> None:
    """Differences carry over to another clip: z' = z + bias, and the shuffled control is far off."""
    found = cycle(built(Adds, Difference(), bias=0.01))
    np.testing.assert_allclose(found.original, 0.02, rtol=1e-3)  # type: ignore[arg-type]
    # Really re-inferred: the bias counts twice.
    np.testing.assert_allclose(found.transfer, 0.04, rtol=1e-3)  # type: ignore[arg-type]
    assert figures(cycle_of, found)["cycle_shuffled_vs_transfer"] > 3


def test_cycle_of_a_code_tied_to_its_clip_does_not_close() -> None:
    """A code of the mean brightness of the next state, read on B, says something else about A."""

    class Brightness(nn.Module):
        def forward(self, states_BTND: Tensor) -> Tensor:
            return (states_BTND[:, 1:] - states_BTND[:, :-1].mean((2, 3), keepdim=True)).flatten(2)

    tied, same = cycle(built(Adds, Brightness())), cycle(built(Adds, Difference(), bias=0.001))
    assert figures(cycle_of, tied)["cycle_transfer_error"] > 5 * figures(cycle_of, same)["cycle_transfer_error"]


def test_a_longer_context_keeps_its_own_latents() -> None:
    """A world model that adds up all latents from the first state on is exact only where every context has its own:
    the cycle closes, and the shuffled control differs by what is rolled out alone."""
    model = built(Sums, Difference())
    clips = clips_for(model)
    found = cycle_of.measure(Subject(model, context=2), clips)
    np.testing.assert_allclose(found.original, 0, atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.transfer, 0, atol=1e-5)  # type: ignore[arg-type]
    rolled, other = clips.states[:, 2:] - clips.states[:, 1:2], clips.partners(1)
    wanted = (rolled[other] - rolled).abs().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(found.shuffled, wanted, atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.zero, rolled.abs().mean((1, 2, 3)).numpy(), atol=1e-5)  # type: ignore[arg-type]


def test_cycles_go_over_what_was_asked_or_say_how_far_the_clips_go() -> None:
    model = built(Adds, Difference(), bias=0.01)  # clips of 4 states at 4 fps: 0.75 s
    short = cycle(model)
    assert isinstance(short.seconds, np.ndarray) and set(short.seconds) == {0.75}
    assert cycle_of.note(short, ()) == "over 0.75 s, the whole clip (table 2: 2 s)"
    asked = cycle(model, cycle_seconds=0.5)
    np.testing.assert_allclose(asked.original, 0.015, rtol=1e-3)  # type: ignore[arg-type]
    assert isinstance(asked.seconds, np.ndarray) and set(asked.seconds) == {0.5}
    assert cycle_of.note(asked, ()) == ""


def test_models_without_latents_have_neither_cycle_nor_controller() -> None:
    det = Subject(fresh("deterministic"))
    assert cycle_of.lacks(det) == "a deterministic model has no latent actions"
    assert cycle_of.lacks(Subject(built(Adds, Difference()))) == ""
    assert control_of.lacks(Subject(built(Adds, Difference()))) == "no controller was given (--controller URI)"


# ---------------------------------------------------------------- control
class PassOn(nn.Module):
    """A controller for actions that are the latents already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.action_std, self.action_mean = torch.ones(width), torch.zeros(width)

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        return actions_BTA

    def inverse(self, z_BTZ: Tensor) -> Tensor:
        return z_BTZ


def test_a_perfect_controller_is_as_good_as_the_idm() -> None:
    model, batch = built(Adds, Difference(), bias=0.01), batch_of()
    z = model.infer(model.states(batch)).z_BTZ
    assert z is not None
    labelled = clips_for(model, ClipBatch(batch.frames_BFCHW, None, z, batch.positions_B))
    objective = ControllerObjective(CONFIG, model, 4 * 192)
    objective.controller = PassOn(4 * 192)  # type: ignore[assignment]
    for context in (1, 2):
        found = control_of.measure(Subject(model, controller=objective, context=context), labelled)
        np.testing.assert_allclose(found.controller, found.idm, rtol=1e-5)
        still = (z == 0).all(dim=2).any(dim=1).numpy()  # no move, and so no direction
        np.testing.assert_allclose(found.cosine[~still], 1, rtol=1e-5)
        np.testing.assert_allclose(found.l2, 0, atol=1e-5)
        np.testing.assert_allclose(found.inverse, 0, atol=1e-6)
        assert figures(control_of, found)["controller_shuffled_vs_own"] > 3


def test_the_inverse_controller_is_set_beside_guessing_the_mean_of_what_varies() -> None:
    rng = np.random.default_rng(0)
    moves = rng.normal(size=(50, 3, 2)) ** 2
    guess = np.concatenate([moves, np.zeros((50, 3, 5))], axis=2).mean(axis=1)  # five dimensions that do not vary
    assert control_of.against_the_mean(guess, guess) == pytest.approx(1)
    spoilt = guess + np.array([0, 0, 9, 9, 9, 9, 9])  # what is said of those counts for nothing
    assert control_of.against_the_mean(spoilt, guess) == pytest.approx(1)
    assert control_of.against_the_mean(guess / 4, guess) == pytest.approx(0.25)
    assert np.isnan(control_of.against_the_mean(guess[:, 2:], guess[:, 2:]))


def test_states_of_a_clip_are_encoded_once_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = fresh("noisy"), fresh("deterministic")
    seen: list[int] = []
    encode = LatentActionObjective.encode
    monkeypatch.setattr(LatentActionObjective, "encode", lambda self, f: seen.append(len(f)) or encode(self, f))
    clips = clips_for(model)
    subject = Subject(model, deterministic=twin)
    capacity_of.measure(subject, clips)
    cycle_of.measure(subject, clips)
    assert seen == [12]
    leakage_of.measure(subject, clips, NO_CODE)
    assert seen == [12]  # this encoder does not look back: a stitched clip's states are there already
    assert derange(list(clips.groups), clips.seed * 31) is not None
