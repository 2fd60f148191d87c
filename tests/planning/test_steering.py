"""What numbers of a search steer: the same latents as their parts give alone; known answers of the learned prior."""

import numpy as np
import pytest
import torch
from small_runs import made_batch, new_objective, scales_of, tiny_kind, tiny_with

from lawm.config import LawmError, PlanConfig, PriorConfig
from lawm.model import LatentPrior
from lawm.planning import ByController, ByLatents, ByPrior, ByTrueActions, follow, latent_space, plan
from lawm.planning.planner import steering_of
from lawm.training import ControllerObjective, PolicyObjective, PriorObjective


def parts(kind: str = "noisy"):
    config = tiny_kind(kind)
    model = new_objective(config).eval()
    for parameter in model.world_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    controller = None if kind == "true_actions" else ControllerObjective(config, model, 2).eval()
    return config, model, controller, model.states(made_batch(range(3), config))


@pytest.mark.parametrize("way", ["controller", "latents", "prior", "true_actions"])
def test_candidates_that_share_a_start_are_what_they_are_alone(way: str) -> None:
    """Memory of the start once for all candidates, the states after it one for each."""
    config, model, controller, states = parts("true_actions" if way == "true_actions" else "noisy")
    if way == "controller":
        steering, width = ByController(controller), 2
    elif way == "true_actions":
        steering, width = ByTrueActions(model), 2
    elif way == "latents":
        steering, width = ByLatents(model, controller), 8
    else:
        steering, width = ByPrior(model, controller, PriorObjective(config, model).eval()), 8
    numbers = torch.randn(3 * 4, 2, width)
    together = follow(model, steering, states[:, :1], numbers)
    assert together.states_BHND.shape[:2] == (12, 2) and together.latents_BHZ.shape == (12, 2, 8)
    for i in range(12):
        alone = follow(model, steering, states[i // 4 : i // 4 + 1, :1], numbers[i : i + 1])
        torch.testing.assert_close(alone.states_BHND[0], together.states_BHND[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.latents_BHZ[0], together.latents_BHZ[i], rtol=1e-4, atol=1e-4)
    actions = steering.actions(numbers, together.latents_BHZ)
    if width == 2:
        torch.testing.assert_close(actions, numbers)
    else:
        torch.testing.assert_close(actions, controller.controller.inverse(together.latents_BHZ))


def test_latents_of_a_discrete_model_are_codes() -> None:
    _, model, controller, states = parts("discrete")
    z = follow(model, ByLatents(model, controller), states[:1, :1], torch.randn(5, 2, 8)).latents_BHZ.flatten(0, 1)
    codes = model.latent_action.bottleneck.codebook
    assert torch.cdist(z, codes).min(dim=1).values.max() < 1e-4


def test_what_is_missing_is_said() -> None:
    _, model, controller, _ = parts()
    with pytest.raises(LawmError, match="not trained on real actions is steered by a controller"):
        steering_of(PlanConfig(), model, None, None)
    with pytest.raises(LawmError, match="the inverse controller makes actions of latents"):
        steering_of(PlanConfig(over="latents"), model, None, None)
    with pytest.raises(LawmError, match="lawm prior"):
        steering_of(PlanConfig(over="prior"), model, controller, None)
    _, acting, _, _ = parts("true_actions")
    with pytest.raises(LawmError, match="a true_actions model has no latents to search among"):
        ByLatents(acting, None)
    with pytest.raises(LawmError, match="infers no latent actions"):
        PriorObjective(tiny_kind("true_actions"), acting)


def test_a_search_over_latents_begins_where_latents_have_been() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    seen = latent_space(PlanConfig(over="latents"), mean, std)
    assert (
        seen.start.tolist() == [1.0, -2.0] and seen.high.tolist() == [2.5, 7.0] and seen.low.tolist() == [-0.5, -11.0]
    )
    standard = latent_space(PlanConfig(over="latents", latent_draws="standard"), mean, std)
    assert standard.start.tolist() == [0.0, 0.0] and standard.std.tolist() == [1.0, 1.0]
    assert torch.isinf(standard.high).all()


def test_a_prior_learns_which_latents_a_state_has() -> None:
    """Two states, the latents of which are known: one mode at (2, 0), and two at (-2, +-1)."""
    torch.manual_seed(0)
    config = PriorConfig(model=tiny_with().prior.model, flow_steps=8)
    prior = LatentPrior(config, 4, 2)
    states = torch.tensor([[[1.0, 0.0, 0.0, 0.0]] * 4, [[0.0, 0.0, 0.0, 1.0]] * 4])
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)

    def latents(count: int) -> torch.Tensor:
        noise = 0.1 * torch.randn(2, count, 2, generator=generator)
        sign = 2.0 * torch.randint(2, (count,), generator=generator) - 1
        one, two = torch.tensor([2.0, 0.0]).expand(count, 2), torch.stack([torch.full_like(sign, -2.0), sign], dim=1)
        return torch.stack([one, two]) + noise

    for _ in range(20):
        prior.note_latents(latents(64))
    for _ in range(500):
        wanted = prior.from_latents(latents(64)).float()
        noise, time = torch.randn(wanted.shape, generator=generator), torch.rand(2, 64, 1, generator=generator)
        velocity = prior.velocity((1 - time) * noise + time * wanted, time, prior.memory(states))
        loss = (velocity - (wanted - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = prior.drawn(torch.randn(2, 1000, 2, generator=generator), prior.memory(states))
    np.testing.assert_allclose(drawn[0].mean(0), [2.0, 0.0], atol=0.15)
    assert drawn[0].std(0).max() < 0.4
    np.testing.assert_allclose(drawn[1].mean(0), [-2.0, 0.0], atol=0.2)
    assert (drawn[1][:, 1].abs() - 1).abs().median() < 0.3  # two modes, little between them
    assert 0.35 < (drawn[1][:, 1] > 0).float().mean() < 0.65


def test_a_policy_learns_the_actions_to_a_goal() -> None:
    """The made clips: a square that moves by the action, which states show."""
    config = tiny_with(policy__optimizer__adamw_lr=3e-3)
    model = new_objective(config)
    torch.manual_seed(0)
    objective = PolicyObjective(config, model, 2)
    objective.scale_actions(scales_of(made_batch(range(64), config)))
    optimizer = torch.optim.Adam(objective.policy.parameters(), lr=3e-3)
    source = made_batch(range(64), config)
    first = objective.eval()(source).prediction.item()
    for _ in range(150):
        objective.train()
        loss = objective(source).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    objective.eval()
    assert objective(source).prediction.item() < 0.5 * first
    assert objective(source).prediction.item() == objective(source).prediction.item()  # nothing drawn in evaluation


@pytest.mark.parametrize(("over", "solver"), [("actions", "cem"), ("latents", "icem")])
def test_plans_are_the_same_in_whatever_company(over: str, solver: str) -> None:
    """Episodes of a batch, and chunks of candidates."""
    _, model, controller, states = parts()
    settings = PlanConfig(
        preset="custom", over=over, solver=solver, horizon=2, samples=12, elites=3, iterations=3, noise_beta=0.5
    )
    steering, width = steering_of(settings, model, controller, None), 2 if over == "actions" else 8
    space = latent_space(settings.model_copy(update={"over": "prior"}), torch.zeros(width), torch.ones(width))

    def plans(which: list[int], chunk: int) -> list:
        own = settings.model_copy(update={"chunk": chunk})
        generators = [torch.Generator().manual_seed(i) for i in which]
        return plan(model, steering, states[which, :1], states[which, -1], space, own, generators)

    together = plans([0, 1, 2], 0)
    for i in range(3):
        for other in (plans([i], 0)[0], plans([0, 1, 2], 6)[i]):
            np.testing.assert_allclose(other.actions_HA, together[i].actions_HA, rtol=1e-3, atol=1e-3)
            assert other.cost == pytest.approx(together[i].cost, rel=1e-4)
    assert not any(p.trouble for p in together) and -1 <= together[0].confidence <= 1
