"""Which weights Muon has, the schedule, clipping, and a state that is kept by name."""

import itertools
import math

import pytest
import torch
from small_runs import made_batch, new_objective, tiny_kind

from lawm.config import OptimizerConfig
from lawm.training.optimizer import Optimizer, schedule


def test_warm_up_is_linear_and_the_rest_is_a_cosine_to_zero() -> None:
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90))) and factors[99] < 1e-3
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert schedule(0, 10, 0.0) == 1.0 and schedule(100, 100, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert schedule(0, 3, 1.0) == pytest.approx(1 / 3)


def muon_names(optimizer: Optimizer) -> set[str]:
    return {
        optimizer.names[p]
        for part, _ in optimizer.parts
        if isinstance(part, torch.optim.Muon)
        for group in part.param_groups
        for p in group["params"]
    }


def test_muon_has_the_hidden_matrices_and_adamw_the_rest() -> None:
    config = tiny_kind("discrete")
    objective = new_objective(config)
    optimizer = Optimizer(objective, config.optimizer, 10)
    names = muon_names(optimizer)
    for name in (
        "world_model.blocks.0.attention.q.weight",
        "world_model.blocks.1.mlp.2.weight",
        "world_model.blocks.0.modulation.weight",
        "latent_action.idm.blocks.0.attention.kv.weight",
    ):
        assert name in names
    for name in (
        "world_model.embed.weight",
        "world_model.head.weight",
        "latent_action.idm.embed.weight",
        "latent_action.idm.head.weight",
        "latent_action.idm.query",
        "latent_action.bottleneck.codebook",
        "world_model.blocks.0.attention.q.bias",
    ):
        assert name in dict(objective.named_parameters()) and name not in names
    everything = [p for part, _ in optimizer.parts for group in part.param_groups for p in group["params"]]
    assert len(everything) == len(set(everything)) == len([p for p in objective.parameters() if p.requires_grad])
    decay = {
        optimizer.names[p]: g["weight_decay"]
        for part, _ in optimizer.parts
        for g in part.param_groups
        for p in g["params"]
    }
    assert decay["world_model.blocks.0.attention.q.bias"] == 0 and decay["world_model.embed.weight"] == 0.04
    assert not muon_names(Optimizer(objective, OptimizerConfig(muon_lr=0.0), 10))


def test_both_learning_rates_follow_the_schedule() -> None:
    config = tiny_kind("none")
    objective = new_objective(config)
    optimizer = Optimizer(objective, OptimizerConfig(muon_lr=0.02, adamw_lr=1e-3, warmup=0.2), 10)
    objective(made_batch(range(2), config)).total.backward()
    optimizer.step(0)
    rates = {type(part).__name__: part.param_groups[0]["lr"] for part, _ in optimizer.parts}
    assert rates == pytest.approx({"Muon": 0.01, "AdamW": 5e-4})
    assert optimizer.learning_rate(0) == pytest.approx(5e-4) and optimizer.learning_rate(1) == pytest.approx(1e-3)


def test_clipping_returns_the_norm_before_it() -> None:
    layer = torch.nn.Linear(3, 1)
    for limit, after in ((1.0, 1.0), (100.0, 10.0), (0.0, 10.0)):  # 0: no limit
        optimizer = Optimizer(layer, OptimizerConfig(clip_norm=limit), 10)
        layer.weight.grad, layer.bias.grad = torch.tensor([[6.0, 0.0, 0.0]]), torch.tensor([8.0])
        assert float(optimizer.clip_gradients()) == pytest.approx(10.0)
        found = math.hypot(*layer.weight.grad.flatten().tolist(), layer.bias.grad.item())
        assert found == pytest.approx(after, rel=1e-4)


def test_named_state_round_trip_makes_the_next_step_the_same() -> None:
    config = tiny_kind("noisy")
    first = new_objective(config)
    optimizer = Optimizer(first, config.optimizer, 10)
    batch = made_batch(range(4), config)

    def step(objective: torch.nn.Module, own: Optimizer, number: int) -> None:
        torch.manual_seed(number)
        own.zero_grad()
        objective(batch).total.backward()
        own.step(number)

    for number in range(3):
        step(first, optimizer, number)
    saved = {k: v.clone() for k, v in optimizer.named_tensors().items()}
    assert {k.rsplit("/", 1)[1] for k in saved} == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}
    second = new_objective(config, seed=9)
    second.load_state_dict(first.state_dict())
    other = Optimizer(second, config.optimizer, 10)
    other.load_named_tensors(saved)
    step(first, optimizer, 3)
    assert all(torch.equal(v, saved[k]) for k, v in saved.items())  # copies: the first one's steps leave them alone
    step(second, other, 3)
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], weight, rtol=1e-6, atol=1e-8, msg=name)
    with pytest.raises(KeyError, match=r"no\.such"):
        other.load_named_tensors({"no.such/exp_avg": torch.zeros(1)})
