"""CEM on a world whose dynamics are known: s_{t+1} = s_t + a_t, in the actions' units."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import made_batch, new_objective, tiny, tiny_with
from torch import Tensor, nn

from lawm.config import LawmError, PlanConfig, WorldModelConfig
from lawm.model import WorldModel
from lawm.planning import cumulative_error, plan, preset, rollout_cost
from lawm.planning.cem import Plan, goal_cost
from lawm.training import ControllerObjective


class Moves(WorldModel):
    """States [B, T, 1, 2] are places; z is the step taken."""

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, past: Any = None) -> Tensor:
        assert z_BTZ is not None
        return states_BTND + z_BTZ.unsqueeze(2)


class Straight(nn.Module):
    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.action_mean, self.action_std = torch.tensor(mean), torch.tensor(std)

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        return actions_BTA


def world(mean: list[float] | None = None, std: list[float] | None = None) -> tuple[Any, Any]:
    model = SimpleNamespace(world_model=Moves(WorldModelConfig(width=8, depth=1, heads=2), 2, 2))
    return model, SimpleNamespace(controller=Straight(mean or [0.0, 0.0], std or [1.0, 1.0]))


CEM = PlanConfig(preset="custom", horizon=3, samples=200, elites=10, iterations=20)


def planned(goal: list[float], config: PlanConfig = CEM, seed: int = 0, **scale: Any) -> Plan:
    model, controller = world(**scale)
    start = torch.tensor([[[1.0, -1.0]]])
    generator = torch.Generator().manual_seed(seed)
    return plan(model, controller, start, start[-1] + torch.tensor([goal]), config, generator)


@pytest.mark.parametrize("cost", ["l2", "l1", "mse"])
@pytest.mark.parametrize("select", ["best", "elite_mean"])
def test_cem_finds_the_goal(cost: Any, select: Any) -> None:
    found = planned([2.0, -3.0], CEM.model_copy(update={"cost": cost, "select": select}))
    assert found.actions_HA.shape == (3, 2) and found.seconds > 0
    np.testing.assert_allclose(found.actions_HA.sum(axis=0), [2.0, -3.0], atol=0.08)
    assert found.cost < 0.05
    assert cumulative_error(found.actions_HA, np.array([[1.0, -1.0]] * 2 + [[0.0, -1.0]])) < 0.15


def test_the_search_is_in_the_actions_own_units() -> None:
    found = planned([330.0, 0.02], mean=[100.0, 0.0], std=[10.0, 0.01])
    np.testing.assert_allclose(found.actions_HA.sum(axis=0), [330.0, 0.02], rtol=0.02, atol=0.5)
    assert abs(found.actions_HA[:, 1].sum() - 0.02) < 0.02  # small units are searched in small steps
    assert np.all(np.abs(found.actions_HA[:, 1]) < 0.1)


def test_a_limit_holds_for_every_action() -> None:
    found = planned([9.0, -9.0], CEM.model_copy(update={"action_limit": 0.5}))
    assert np.abs(found.actions_HA).max() <= 0.5 + 1e-6
    np.testing.assert_allclose(found.actions_HA.sum(axis=0), [1.5, -1.5], atol=0.1)


def test_more_iterations_come_closer_and_a_seed_gives_the_same_plan() -> None:
    costs = [
        np.mean([planned([2.0, -3.0], CEM.model_copy(update={"iterations": i}), seed=s).cost for s in range(3)])
        for i in (1, 4, 15)
    ]
    assert costs[0] > 3 * costs[1] and costs[1] > costs[2]
    assert np.array_equal(planned([1.0, 1.0], seed=4).actions_HA, planned([1.0, 1.0], seed=4).actions_HA)
    assert not np.array_equal(planned([1.0, 1.0], seed=4).actions_HA, planned([1.0, 1.0], seed=5).actions_HA)


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


def test_presets_are_the_published_protocols() -> None:
    same = {"horizon": 3, "samples": 300, "elites": 10, "iterations": 15}
    start = PlanConfig(preset="paper-droid", seed=5, episodes=9)
    paper = preset(start).model_dump()
    assert (
        paper.items() >= (same | {"cost": "l2", "select": "best", "initial_std": 1.0, "seed": 5, "episodes": 9}).items()
    )
    jepa = preset(start.model_copy(update={"preset": "jepa-wms-droid"})).model_dump()
    assert jepa.items() >= (same | {"cost": "mse", "select": "elite_mean", "initial_std": 0.1}).items()
    custom = start.model_copy(update={"preset": "custom", "horizon": 7})
    assert preset(custom) == custom
    with pytest.raises(LawmError, match=r"samples = 64: the protocol paper-droid fixes it at 300; set plan\.pr"):
        preset(start.model_copy(update={"samples": 64}))


@pytest.mark.parametrize("context", [1, 3])
def test_costs_of_a_batch_are_those_of_its_members(context: int) -> None:
    """On the real model, controller and rollout; with a context its own transitions are inferred."""
    config = tiny_with()
    torch.manual_seed(0)
    model = new_objective(config).eval()
    for parameter in model.world_model.parameters():
        nn.init.normal_(parameter, std=0.1)
    controller = ControllerObjective(config, model, 2).eval()
    batch = made_batch(range(5), config)
    states, actions = model.states(batch), torch.randn(5, 2, 2)
    start, goal = states[:, :context], states[:, -1]
    together = rollout_cost(model, controller, start, goal, actions, "l2")
    assert together.shape == (5,) and together.std() > 0
    for i in range(5):
        alone = rollout_cost(model, controller, start[i : i + 1], goal[i : i + 1], actions[i : i + 1], "l2")
        assert alone.item() == pytest.approx(together[i].item(), rel=1e-4)
    shared = rollout_cost(model, controller, start[:1], goal[:1], actions, "l2")
    repeated = rollout_cost(model, controller, start[:1].repeat(5, 1, 1, 1), goal[:1].repeat(5, 1, 1), actions, "l2")
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-4)
    other = rollout_cost(model, controller, start, goal, actions + 1, "l2")
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
