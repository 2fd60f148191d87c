"""Costs, spaces of actions, and what labels show."""

import numpy as np
import pytest
import torch
from small_runs import made_batch, new_objective, tiny, tiny_with
from torch import nn

from lawm.config import LawmError, PlanConfig
from lawm.data import ClipReader, Dimension, Shown, VideoLabels, shown_by, write_labels
from lawm.planning import ByController, ByLatents, action_space, in_units, outside, preset, rollout_cost
from lawm.planning.problem import amounts, goal_cost
from lawm.training import ControllerObjective

DIMENSIONS = (
    Dimension("x", "translation", "cm"),
    Dimension("yaw", "rotation", "deg"),
    Dimension("grip", "gripper", "0..1"),
    Dimension("lamp"),
)


def test_costs() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    difference = (a - b).reshape(3, 20)
    wanted = {
        "l2": np.sqrt((difference**2).sum(1)),
        "l1": np.abs(difference).mean(1),
        "mse": (difference**2).mean(1),
        "cosine": [
            1 - x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a.reshape(3, 20), b.reshape(3, 20), strict=True)
        ],
    }
    for kind, value in wanted.items():
        np.testing.assert_allclose(goal_cost(torch.from_numpy(a), torch.from_numpy(b), kind), value, rtol=1e-4)


@pytest.mark.parametrize("context", [1, 3])
def test_costs_of_a_batch_are_those_of_its_members(context: int) -> None:
    """On the real model, controller and rollout; with a context its own transitions are inferred."""
    config = tiny_with()
    torch.manual_seed(0)
    model = new_objective(config).eval()
    for parameter in model.world_model.parameters():
        nn.init.normal_(parameter, std=0.1)
    controller = ControllerObjective(config, model, 2).eval()
    steering = ByController(controller)
    batch = made_batch(range(5), config)
    states, actions = model.states(batch), torch.randn(5, 2, 2)
    start, goal = states[:, :context], states[:, -1]
    together = rollout_cost(model, steering, start, goal, actions, "l2")
    assert together.shape == (5,) and together.std() > 0
    for i in range(5):
        alone = rollout_cost(model, steering, start[i : i + 1], goal[i : i + 1], actions[i : i + 1], "l2")
        assert alone.item() == pytest.approx(together[i].item(), rel=1e-4)
    shared = rollout_cost(model, steering, start[:1], goal[:1], actions, "l2")
    repeated = rollout_cost(model, steering, start[:1].repeat(5, 1, 1, 1), goal[:1].repeat(5, 1, 1), actions, "l2")
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-4)
    walking = actions.clone().requires_grad_(True)  # without the memory of keys and values: the same costs
    costs = rollout_cost(model, steering, start, goal, walking, "l2")
    torch.testing.assert_close(costs.detach(), together, rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(costs.sum(), walking)
    at, small = (2, 1, 0), 1e-2
    ends = []
    for sign in (1, -1):
        moved = actions.clone()
        moved[at] += sign * small
        ends.append(rollout_cost(model, steering, start, goal, moved, "l2")[2].item())
    assert slope[at].item() == pytest.approx((ends[0] - ends[1]) / (2 * small), rel=0.05, abs=1e-3)
    latents = torch.randn(5, 2, 8)  # sequences of latents, without a controller
    if context == 1:
        last = model.world_model.rollout(start, latents, 2)[:, -1]
        by_hand = goal_cost(last, goal, "l2")
        torch.testing.assert_close(
            rollout_cost(model, ByLatents(model, None), start, goal, latents, "l2"), by_hand, rtol=1e-4, atol=1e-4
        )
    other = rollout_cost(model, steering, start, goal, actions + 1, "l2")
    assert (other != together).all()
    # By hand, one state after another.
    now = start
    inferred = model.infer(start).z_BTZ if context > 1 else None
    zs = [] if inferred is None else [inferred[:, t] for t in range(context - 1)]
    for h in range(2):
        zs.append(controller.controller(actions[:, h : h + 1], now[:, -1:])[:, 0])
        now = torch.cat([now, model.world_model(now, torch.stack(zs, 1))[:, -1:]], dim=1)
    wanted = (now[:, -1] - goal).flatten(1).norm(dim=1)
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-4)


def test_tiny_plans_within_its_recipe() -> None:
    assert preset(tiny().plan).horizon + 1 <= tiny().data.clip.frames


# ---------------------------------------------------------------- spaces of actions
def test_amounts_are_in_si_units_where_the_labels_unit_is_one() -> None:
    none = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(amounts(0.1, DIMENSIONS, none, "f"), [10.0, np.degrees(0.1), 0.1, 0.1])
    np.testing.assert_allclose(amounts((0.1, np.pi, 0.5, 7.0), DIMENSIONS, none, "f"), [10.0, 180.0, 0.5, 7.0])
    given = {"translation": 0.2, "lamp": 9.0, "gripper": 0.75}
    np.testing.assert_allclose(amounts(given, DIMENSIONS, none, "f"), [20.0, 2.0, 0.75, 9.0])
    np.testing.assert_allclose(amounts({"x": 0.3, "translation": 0.2}, DIMENSIONS, none, "f")[0], 30.0)
    with pytest.raises(LawmError, match=r"plan\.std has 2 numbers; the actions have 4"):
        amounts((0.1, 0.2), DIMENSIONS, none, "plan.std")
    with pytest.raises(LawmError, match="'z' is neither a kind nor one of x, yaw, grip, lamp"):
        amounts({"z": 0.1}, DIMENSIONS, none, "plan.std")


def test_plans_stay_where_the_labels_have_been_unless_told_otherwise() -> None:
    shown = Shown(np.zeros(4), np.array([-1.0, -2.0, -3.0, -4.0]), np.array([5.0, 6.0, 7.0, 8.0]), 100)
    scales = torch.zeros(4), torch.ones(4)

    def space(**fields: object):
        return action_space(PlanConfig(preset="custom", **fields), DIMENSIONS, *scales, shown)  # type: ignore[arg-type]

    default = space()
    np.testing.assert_allclose(default.low, shown.low_A)
    np.testing.assert_allclose(default.high, shown.high_A)
    given = space(action_limit={"translation": 0.1, "gripper": 0.75})
    np.testing.assert_allclose(given.high, [10.0, 6.0, 0.75, 8.0])
    np.testing.assert_allclose(given.low, [-10.0, -2.0, -0.75, -4.0])
    assert torch.isinf(space(action_limit="none").high).all()
    still = space(searched=("translation",))
    assert still.kept_within(torch.full((3, 4), 2.0)).tolist() == [[2.0, 0.0, 0.0, 0.0]] * 3
    with pytest.raises(LawmError, match="no dimension of that kind"):
        action_space(PlanConfig(searched=("gripper",)), DIMENSIONS[:2], torch.zeros(2), torch.ones(2), None)
    with pytest.raises(LawmError, match="labels with 4 numbers an action, and a controller for 2"):
        action_space(PlanConfig(), DIMENSIONS, torch.zeros(2), torch.ones(2), None)


def test_a_norm_shortens_the_translation_alone() -> None:
    plane = (Dimension("x", "translation", "cm"), Dimension("y", "translation", "cm"), Dimension("grip", "gripper"))
    config = PlanConfig(preset="custom", action_limit="none", step_norm=0.05)
    space = action_space(config, plane, torch.zeros(3), torch.ones(3), None)
    moved = space.kept_within(torch.tensor([[30.0, 40.0, 9.0], [3.0, 4.0, 9.0], [0.3, 0.4, 9.0]]))
    np.testing.assert_allclose(moved, [[3.0, 4.0, 9.0], [3.0, 4.0, 9.0], [0.3, 0.4, 9.0]], rtol=1e-6)


def test_a_unit_is_given_only_to_translations_that_have_none() -> None:
    given = in_units((Dimension("x", "translation"), Dimension("y", "translation", "px"), Dimension("grip")), "m")
    assert [d.unit for d in given] == ["m", "px", "unknown"]
    assert in_units(DIMENSIONS, None) == DIMENSIONS


def test_what_leaves_the_labels_is_found() -> None:
    shown = Shown(np.zeros(2), np.array([-1.0, -1.0]), np.array([1.0, 1.0]), 10)
    assert outside(np.array([[0.5, 0.0], [1.0, -1.0]]), shown).tolist() == [False, False]
    assert outside(np.array([[0.5, 0.0], [1.1, -1.0]]), shown).tolist() == [True, False]


def test_labels_of_the_training_split_show_their_percentiles(small_set, tmp_path) -> None:
    """Against numpy over the actions of the training videos themselves: 3 s at 8 Hz, clips of 4 Hz."""
    generator = np.random.default_rng(0)
    rows = [VideoLabels(key, 8.0, generator.normal(size=(24, 2)) * [1.0, 5.0]) for key in small_set.keys]
    write_labels(rows, str(tmp_path / "labels.parquet"))
    config = tiny_with(data__index=small_set.index, data__labels=str(tmp_path / "labels.parquet"))
    reader = ClipReader(config, "train", labelled=True)
    shown = shown_by(reader, (10.0, 90.0))
    trained = set(reader.index.keys())
    actions = [np.float64(row.actions).reshape(12, 2, 2).sum(axis=1) for row in rows if row.key in trained]
    # The last frame of 3 s is at 2.9: ten transitions and a little more of each video can be in a clip.
    within = np.concatenate([a[: shown.transitions // len(trained)] for a in actions])
    assert 0 < len(trained) < len(rows) and len(within) == shown.transitions >= 10 * len(trained)
    low, high = np.percentile(within, (10.0, 90.0), axis=0)
    np.testing.assert_allclose([shown.low_A, shown.high_A], [low, high], rtol=1e-5)
    np.testing.assert_allclose(shown.mean_A, within.mean(axis=0), rtol=1e-4, atol=1e-6)
