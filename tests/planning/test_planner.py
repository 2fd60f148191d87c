"""Plans from pictures, against the batch job's; episodes that fail; closed loop in the real simulator."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import SmallSet, tiny_with

from lawm.cluster.plan import as_parquet
from lawm.config import Config, LawmError, PlanConfig, override
from lawm.data import ClipReader, read_labels, shown_by
from lawm.planning import Episodes, Planner, Task, Used, episode_config, preset, remarks, summarize_episodes
from lawm.planning.closed_loop import driven
from lawm.planning.problem import action_space
from lawm.simulation import PushTSpec, simulate_pusht, world_at
from lawm.training import fit_local


@pytest.fixture(scope="module")
def trained(small_set: SmallSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Used]:
    root = tmp_path_factory.mktemp("planner")
    config = tiny_with(train__steps=1, data__index=small_set.index, data__labels=small_set.labels)
    for kind in ("controller", "prior", "policy"):
        config = override(config, f"{kind}.train.steps", 2)
    model = str(root / "model")
    fit_local(config, "latent_action", model)
    for kind in ("controller", "prior", "policy"):
        fit_local(config, kind, str(root / kind), model)
    return config, Used(model, *(str(root / kind) for kind in ("controller", "prior", "policy")))


def episodes_of(config: Config, used: Used) -> Episodes:
    shown = shown_by(ClipReader(episode_config(config), "train", labelled=True), config.plan.percentiles)
    return Episodes(config, used, shown)


@pytest.mark.parametrize("over", ["actions", "latents", "prior"])
def test_ten_lines_plan_as_the_batch_job_does(trained: tuple[Config, Used], over: str) -> None:
    config, used = trained
    config = override(config, "plan.over", over)
    job = episodes_of(config, used)
    (row,) = job.run([Task(3, 1)])
    assert isinstance(row, dict) and {*row["errors"]} >= {"planned", "goal_idm", "oracle", "policy"}
    assert used.controller is not None
    planner = Planner.load(used.model, used.controller, prior=used.prior, settings=config.plan)
    sample = job.held_out.sample(1)
    start, goal = (planner.states([sample.frames[i].transpose(1, 2, 0)]) for i in (0, -1))
    size = config.data.clip.size
    assert sample.frames.shape[-2:] == (size, size)
    direct = planner.search(*job._states(sample)[:2], [job._seed(Task(3, 1))])[0]
    np.testing.assert_allclose(direct.actions_HA, row["planned"], rtol=1e-3, atol=1e-4)
    assert start.shape == goal.shape and start.shape[:2] == (1, 1)
    assert [d.name for d in planner.dimensions] == [d.name for d in job.dimensions]


def test_a_film_shows_what_is_imagined_beside_what_was(trained: tuple[Config, Used]) -> None:
    config, used = trained
    (row,) = episodes_of(override(config, "plan.films", 1), used).run([Task(0, 0)])
    assert isinstance(row, dict)
    film, size = row["film"], config.data.clip.size
    assert {n: len(f) for n, f in film.items()} == {"planned": 3, "true": 3, "goal": 1}
    assert all(f.dtype == np.uint8 and f.shape[1:] == (size, size, 3) for f in film.values())
    # The pixels encoder decodes by itself: both begin with the same picture.
    assert np.abs(film["planned"][0].astype(int) - film["true"][0]).max() <= 1
    (later,) = episodes_of(override(config, "plan.films", 1), used).run([Task(1, 1)])
    assert isinstance(later, dict) and later["film"] is None


def test_a_budget_of_time_is_kept_and_a_seed_gives_the_same_plan(trained: tuple[Config, Used]) -> None:
    config, used = trained
    settings = config.plan.model_copy(update={"iterations": 100_000})
    planner = Planner.load(used.model, used.controller, settings=settings)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    planner.plan(pictures[0], pictures[1], budget_s=0.0)  # one iteration is always made
    began = time.perf_counter()
    found = planner.plan(pictures[0], pictures[1], budget_s=0.5)
    assert time.perf_counter() - began < 1.5 and found.shape == (2, 2) and found.dtype == np.float32
    quick = Planner.load(used.model, used.controller)
    first, same = (quick.plan(*pictures, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, quick.plan(*pictures, seed=8))
    assert (first <= quick.space.high.numpy() + 1e-5).all() and (first >= quick.space.low.numpy() - 1e-5).all()
    for wrong in (pictures[0].astype(np.float32), pictures[0][..., :1], pictures[0][0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(LawmError, match="a picture is uint8"):
            quick.plan(wrong, pictures[1])


def test_an_episode_that_fails_is_a_row_and_the_others_go_on(trained: tuple[Config, Used]) -> None:
    config, used = trained
    job = episodes_of(config, used)
    whole = job.run([Task(0, 0), Task(1, 1)])
    spoilt, real = job.planner.search, job.planner.search

    def search(start: torch.Tensor, goal: torch.Tensor, *more: Any) -> Any:
        return real(start, torch.cat([goal[:1] * float("nan"), goal[1:]]), *more)

    job.planner.search = search  # type: ignore[method-assign]
    rows = job.run([Task(0, 0), Task(1, 1)])
    job.planner.search = spoilt  # type: ignore[method-assign]
    assert all(isinstance(row, dict) for row in rows)
    assert "every candidate's predicted cost is infinite or no number" in rows[0]["failed"]
    np.testing.assert_allclose(rows[1]["planned"], whole[1]["planned"], rtol=1e-4, atol=1e-5)
    said = remarks(rows, {}, (0.5, 99.5))
    assert any(line.startswith("1 of 2 episodes failed and are in no figure; the first, episode 0") for line in said)
    assert {r.n for r in summarize_episodes(rows, "d", 1, 100, 0)} == {1}
    with pytest.raises(LawmError, match="all 1 episodes failed"):
        summarize_episodes(rows[:1], "d", 1, 100, 0)
    table = pq.read_table(__import__("io").BytesIO(as_parquet(rows)))
    assert table.num_rows == 2 and table["failed"].to_pylist()[1] is None


def test_a_protocol_gives_its_horizon_in_seconds() -> None:
    settings = preset(PlanConfig(preset="swm-pusht"), 2.0)
    assert (settings.horizon, settings.samples, settings.iterations, settings.elites) == (5, 300, 30, 30)
    with pytest.raises(LawmError, match=r"are 7\.5 steps at data\.clip\.fps = 3; expected whole steps"):
        preset(PlanConfig(preset="swm-pusht"), 3.0)


def test_a_straight_line_turns_at_its_end() -> None:
    """nwm-recon: x, y, yaw of one step, eight times, the yaw at the last alone; constants in metres."""
    from lawm.data import Dimension

    planar = (
        Dimension("forward", "translation", "m", "body"),
        Dimension("left", "translation", "m", "body"),
        Dimension("turn", "rotation", "rad", "body"),
    )
    settings = preset(PlanConfig(preset="nwm-recon"))
    space = action_space(settings, planar, torch.zeros(3), torch.ones(3), None)
    np.testing.assert_allclose(space.start, [0.21875, 0.0, 0.0])
    np.testing.assert_allclose(space.std, [0.01875, 0.1, 0.1])
    steps = space.steps_of(torch.tensor([[[0.2, 0.1, 0.5]]]), settings.horizon)
    assert steps.shape == (1, 8, 3)
    np.testing.assert_allclose(steps[0, :, 0], 0.2)
    np.testing.assert_allclose(steps[0, :, 2], [0.0] * 7 + [0.5])


# ---------------------------------------------------------------- closed loop
@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = str(tmp_path_factory.mktemp("pusht"))
    simulate_pusht(out, 3, 0, spec=PushTSpec(states=12, rate_hz=2.0, size=64))
    return read_labels(f"{out}/labels.parquet")


def test_success_is_what_recorded_actions_reach_and_waiting_does_not(pusht: Any) -> None:
    for key in pusht.keys:
        recorded = pusht.of(key)
        ways = {
            "true": lambda pictures, goal, actions=recorded.actions: actions[2 + len(pictures) - 1 :][:1],
            "no_action": lambda pictures, goal: np.zeros((1, 2), np.float32),
        }
        found = driven("pusht", recorded, (2, 7), 1, 64, 10, ways)
        assert found["true"]["reached"] and 0 < found["true"]["actions"] <= 5
        assert not found["no_action"]["reached"] and found["no_action"]["actions"] == 10
        assert found["no_action"]["distance"] > 20 > found["true"]["distance"]


def test_looking_more_often_changes_no_physics(pusht: Any) -> None:
    recorded = pusht.of(pusht.keys[0])
    world = world_at("pusht", recorded, 3, 1, 64)
    np.testing.assert_allclose(world.state(), recorded.states[3], atol=0.1)
    far = np.full(5, 1e4)
    for action in recorded.actions[3:8]:
        assert not world.act(action, far)
    np.testing.assert_allclose(world.state(), recorded.states[8], atol=0.5)
    assert world.picture().shape == (64, 64, 3)
    halves = world_at("pusht", recorded, 3, 2, 64)
    halves.act(recorded.actions[3], far)
    assert np.abs(halves.state()[:2] - recorded.states[3][:2]).max() > 1


@pytest.mark.parametrize("warm", [False, True])
def test_plans_that_arrive_get_shorter_and_go_on_from_what_is_left(trained: tuple[Config, Used], warm: bool) -> None:
    from lawm.planning.episodes import _Planning

    config, used = trained
    settings = config.plan.model_copy(update={"arrive": True, "warm_start": warm, "horizon": 3, "iterations": 1})
    planner = Planner.load(used.model, used.controller, settings=settings)
    asked: list[tuple[int | None, Any]] = []
    real = planner.search

    def search(start: Any, goal: Any, seeds: Any, given: Any, horizon: int | None = None) -> Any:
        asked.append((horizon, given.begin))
        return real(start, goal, seeds, given, horizon)

    planner.search = search  # type: ignore[method-assign]
    way = _Planning(planner, 0, taken=1)
    pictures = list(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8))
    for seen in range(1, 6):
        assert len(way(pictures[:seen], pictures[-1])) == 1
    assert [horizon for horizon, _ in asked] == [3, 2, 1, 1, 1]
    begun = [begin for _, begin in asked]
    assert begun[0] is None and all((begin is None) != warm for begin in begun[1:])
    if warm:
        assert [begin.shape[1] for begin in begun[1:]] == [2, 1, 1, 1]


def test_a_policy_of_shorter_ways_than_the_plans_is_refused(trained: tuple[Config, Used]) -> None:
    config, used = trained
    short = override(config, "data.clip.frames", 2)
    policy = f"{used.policy}-short"
    fit_local(short, "policy", policy, used.model)
    with pytest.raises(LawmError, match=r"was taught goals up to 1 steps away, and plan\.horizon = 2"):
        episodes_of(config, replace(used, policy=policy))


def test_a_closed_loop_without_a_simulator_is_refused(trained: tuple[Config, Used]) -> None:
    config, used = trained
    with pytest.raises(LawmError, match="the labels name no simulator; there are pusht"):
        episodes_of(override(config, "plan.goal_after_s", 0.5), used)


def test_pictures_are_cut_as_clips_are(small_set: SmallSet) -> None:
    from lawm.config import ClipSpec, VideoLimits
    from lawm.data import read_index
    from lawm.video import cut_picture, decode_clip
    from lawm.video.decode import decode_whole

    ref = read_index(small_set.index).ref(0)
    spec = ClipSpec(frames=2, fps=4.0, size=32)
    clip = decode_clip(ref, 0.0, spec, VideoLimits()).frames_FCHW
    whole = decode_whole(ref, np.array([0.0, 0.25]), 4.0, 48, VideoLimits())
    for picture, wanted in zip(whole, clip, strict=True):
        difference = np.abs(cut_picture(picture.transpose(1, 2, 0), spec).astype(int) - wanted)
        assert difference.mean() < 4  # resized from RGB there, from the decoder's own format here


def test_used_names_what_is_given(tmp_path: Path) -> None:
    assert Used("m", "c").given == {"model": "m", "controller": "c"}
