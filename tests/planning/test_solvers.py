"""CEM, and the protocols, on worlds that are known exactly: places that actions add up to."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lawm.config import PlanConfig
from lawm.data import Dimension, Shown
from lawm.planning import SOLVERS, action_space, preset
from lawm.planning.problem import goal_cost
from lawm.planning.solvers import Chunked, cem, coloured

CEM = PlanConfig(preset="custom", horizon=3, samples=200, elites=10, iterations=20, action_limit="none")
PLACE = (Dimension("x", "translation", "m"), Dimension("y", "translation", "m"))
ARM = (
    *(Dimension(name, "translation", "m") for name in "xyz"),
    *(Dimension(name, "rotation", "rad") for name in ("roll", "pitch", "yaw")),
    Dimension("gripper", "gripper", "0..1"),
)


class Found(NamedTuple):
    actions_HA: np.ndarray
    cost: float


def world(start_A: list[float], goal_EA: list[list[float]], kind: str) -> Any:
    """The cost of actions that add up to places, from a start to the goals."""
    start, goals = torch.tensor(start_A), torch.tensor(goal_EA)

    def cost(actions_ESHA: Tensor) -> Tensor:
        ends = (start + actions_ESHA.sum(dim=2)).flatten(0, 1).unsqueeze(1)
        wanted = goals.repeat_interleave(actions_ESHA.shape[1], dim=0).unsqueeze(1)
        return goal_cost(ends, wanted, kind).view(actions_ESHA.shape[:2])

    return cost


def planned(
    goal: list[float],
    config: PlanConfig = CEM,
    seed: int = 0,
    dimensions: tuple[Dimension, ...] = PLACE,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    shown: Shown | None = None,
) -> Found:
    """The plan from the origin to `goal`; `mean`, `std`: the actions' own over the training split."""
    width = len(goal)
    centre, scale = torch.tensor(mean or [0.0] * width), torch.tensor(std or [1.0] * width)
    config = preset(config)
    space = action_space(config, dimensions, centre, scale, shown)
    cost = world([0.0] * width, [goal], config.cost)
    actions, least = cem(cost, space, config, [torch.Generator().manual_seed(seed)])
    return Found(actions[0].numpy(), float(least[0]))


@pytest.mark.parametrize("cost", ["l2", "l1", "mse"])
@pytest.mark.parametrize("select", ["best", "elite_mean"])
def test_cem_finds_the_goal(cost: Any, select: Any) -> None:
    found = planned([2.0, -3.0], CEM.model_copy(update={"cost": cost, "select": select}))
    assert found.actions_HA.shape == (3, 2)
    np.testing.assert_allclose(found.actions_HA.sum(axis=0), [2.0, -3.0], atol=0.08)
    assert found.cost < 0.05


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


def test_episodes_of_a_batch_are_planned_as_if_alone() -> None:
    goals = [[2.0, -3.0], [-1.0, 0.5], [0.0, 4.0]]
    space = action_space(CEM, PLACE, torch.zeros(2), torch.ones(2), None)
    together, costs = cem(
        world([0.0, 0.0], goals, "l2"), space, CEM, [torch.Generator().manual_seed(s) for s in range(3)]
    )
    for i, goal in enumerate(goals):
        alone = planned(goal, seed=i)
        np.testing.assert_allclose(together[i].numpy(), alone.actions_HA, atol=1e-6)
        assert float(costs[i]) == pytest.approx(alone.cost, abs=1e-6)


BY_DEFAULT = {"icem": {"noise_beta": 1.0}, "gradient": {"learning_rate": 0.3}}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_goal_keeps_limits_and_treats_episodes_alone(solver: str) -> None:
    config = CEM.model_copy(update={"solver": solver, **BY_DEFAULT.get(solver, {})})
    goals, space = [[2.0, -3.0], [-1.0, 0.5]], action_space(config, PLACE, torch.zeros(2), torch.ones(2), None)
    generators = [torch.Generator().manual_seed(s) for s in range(2)]
    found, costs = SOLVERS[solver](world([0.0, 0.0], goals, "l2"), space, config, generators)
    atol = 0.3 if solver == "random" else 0.1
    np.testing.assert_allclose(found.sum(dim=1).numpy(), goals, atol=atol)
    for i, goal in enumerate(goals):
        one = [torch.Generator().manual_seed(i)]
        alone, cost = SOLVERS[solver](world([0.0, 0.0], [goal], "l2"), space, config, one)
        torch.testing.assert_close(alone[0], found[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cost[0], costs[i], rtol=1e-4, atol=1e-4)
    limited = config.model_copy(update={"action_limit": 0.5})
    space = action_space(limited, PLACE, torch.zeros(2), torch.ones(2), None)
    far, _ = SOLVERS[solver](world([0.0, 0.0], [[9.0, -9.0]], "l2"), space, limited, [torch.Generator().manual_seed(0)])
    assert far.abs().max() <= 0.5 + 1e-6


def test_coloured_noise_is_of_variance_one_and_smooth() -> None:
    white = torch.randn(20_000, 1, 8, 1, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    for beta, smooth in ((0.0, False), (2.0, True)):
        noise = coloured(white, beta)[0, :, :, 0]
        assert float(noise.var()) == pytest.approx(1.0, abs=0.05)
        steps = float((noise[:, 1:] * noise[:, :-1]).mean())
        assert (steps > 0.3) == smooth
    torch.testing.assert_close(coloured(white[:, :5, :1], 2.0), white[:, :5, :1])


def test_chunks_change_no_plan() -> None:
    space = action_space(CEM, PLACE, torch.zeros(2), torch.ones(2), None)
    cost, asked = world([0.0, 0.0], [[1.0, 2.0], [0.0, -1.0]], "l2"), []

    def counted(actions_ESHA: Tensor) -> Tensor:
        asked.append(actions_ESHA.shape[1])
        return cost(actions_ESHA)

    def found(most: int) -> Tensor:
        return cem(Chunked(counted, 2, most), space, CEM, [torch.Generator().manual_seed(s) for s in (0, 1)])[0]

    whole = found(0)
    assert set(asked) == {200}
    asked.clear()
    torch.testing.assert_close(found(60), whole)
    assert max(asked) == 30


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
def test_costs_that_are_no_numbers_are_never_chosen(hole: float) -> None:
    space = action_space(CEM, PLACE, torch.zeros(2), torch.ones(2), None)
    exact = world([0.0, 0.0], [[1.0, 1.0]], "l2")

    def holed(actions_ESHA: Tensor) -> Tensor:
        costs = exact(actions_ESHA)
        costs[:, ::2] = hole
        return costs

    actions, cost = cem(holed, space, CEM, [torch.Generator().manual_seed(0)])
    np.testing.assert_allclose(actions[0].sum(dim=0), [1.0, 1.0], atol=0.1)
    assert torch.isfinite(cost).all()
    _, cost = cem(lambda a: exact(a) * hole, space, CEM, [torch.Generator()])
    assert cost.isinf().all()  # nothing was found, which lawm.planning.plans.Plan.trouble says


# ---------------------------------------------------------------- protocols
DROID_STD = [0.03, 0.03, 0.03, 0.1, 0.1, 0.1, 0.2]
"""About what DROID's actions have at 4 fps: metres, radians, share of the gripper's opening."""


def test_jepa_wms_droid_is_in_metres_whatever_the_actions_scale_is() -> None:
    """Actions with a standard deviation of 0.03 m, a goal at 0.20 m: 0.1 of the actions' own would reach 0.05."""
    protocol = PlanConfig(preset="jepa-wms-droid")
    goal = [0.20, -0.15, 0.05, 0.1, 0.0, 0.0, 0.5]
    found = planned(goal, protocol, dimensions=ARM, std=DROID_STD)
    np.testing.assert_allclose(found.actions_HA.sum(axis=0), goal, atol=0.01)
    far = planned([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0], protocol, dimensions=ARM, std=DROID_STD)
    assert np.abs(far.actions_HA[:, :6]).max() <= 0.1 + 1e-6
    assert 0.1 < np.abs(far.actions_HA[:, 6]).max() <= 0.75 + 1e-6


def test_constants_in_metres_are_converted_to_the_labels_unit() -> None:
    millimetres = tuple(Dimension(d.name, d.kind, "mm" if d.kind == "translation" else d.unit) for d in ARM)
    goal, std = [200.0, -150.0, 50.0, 0.1, 0.0, 0.0, 0.5], [30.0, 30.0, 30.0, 0.1, 0.1, 0.1, 0.2]
    protocol = preset(PlanConfig(preset="jepa-wms-droid"))
    space = action_space(protocol, millimetres, torch.zeros(7), torch.tensor(std), None)
    np.testing.assert_allclose(space.std, [100.0] * 3 + [0.1] * 4, rtol=1e-6)
    np.testing.assert_allclose(space.high, [100.0] * 3 + [0.1] * 3 + [0.75], rtol=1e-6)
    # Where the cost weighs dimensions as these units do, millimetres drown angles; the translation is reached.
    found = planned(goal, PlanConfig(preset="jepa-wms-droid"), dimensions=millimetres, std=std)
    np.testing.assert_allclose(found.actions_HA.sum(axis=0)[:3], goal[:3], atol=30)


def test_paper_droid_searches_from_the_actions_own_distribution_within_what_labels_show() -> None:
    shown = Shown(np.zeros(7), np.array([-2.5 * s for s in DROID_STD]), np.array([2.5 * s for s in DROID_STD]), 999)
    goal = [0.15, -0.10, 0.05, 0.1, 0.0, 0.0, 0.3]
    found = planned(goal, PlanConfig(preset="paper-droid"), dimensions=ARM, std=DROID_STD, shown=shown)
    np.testing.assert_allclose(found.actions_HA.sum(axis=0), goal, atol=0.08)
    far = planned([9.0] * 7, PlanConfig(preset="paper-droid"), dimensions=ARM, std=DROID_STD, shown=shown)
    assert (far.actions_HA <= shown.high_A + 1e-5).all() and (far.actions_HA >= shown.low_A - 1e-5).all()


def test_vjepa2_ac_moves_x_y_z_and_gripper_within_its_norm() -> None:
    config = PlanConfig(preset="vjepa2-ac", horizon=3)
    near = [0.10, -0.08, 0.05, 0.0, 0.0, 0.0, 0.5]
    found = planned(near, config, dimensions=ARM, std=DROID_STD)
    np.testing.assert_allclose(found.actions_HA.sum(axis=0), near, atol=0.03)
    assert (found.actions_HA[:, 3:6] == 0).all()  # rotations are not searched
    far = planned([0.9, 0.9, 0.0, 0.5, 0.0, 0.0, 0.0], config, dimensions=ARM, std=DROID_STD)
    norms = np.linalg.norm(far.actions_HA[:, :3], axis=1)
    assert norms.max() <= 0.075 + 1e-6 and norms.min() > 0.06
    np.testing.assert_allclose(far.actions_HA.sum(axis=0)[:2], 3 * 0.075 / np.sqrt(2), atol=0.03)
