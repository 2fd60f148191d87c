"""Which weights Muon has, the schedule, clipping, and a state that is kept by name."""

import itertools
import math

import pytest
import torch
from small_runs import BOTTLENECKS, fine_tuned_config, made_batch, new_objective, tiny_kind

from lawm.config import Config, LawmError, OptimizerConfig, override
from lawm.training.objective import ControllerObjective, DecoderObjective, Objective
from lawm.training.optimizer import Optimizer, parameter_groups, schedule


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


ATTENTION = ("attention.q.weight", "attention.kv.weight", "attention.proj.weight")
BLOCK = (*ATTENTION, "mlp.0.weight", "mlp.2.weight")


def hidden_names(objective: Objective) -> set[str]:
    names = {p: n for n, p in objective.named_parameters()}
    return {names[p] for p in parameter_groups(objective, objective.learning_rates()).hidden}


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_hidden_matrices_of_a_latent_action_model(kind: str) -> None:
    """Jordan et al. 2024: what maps a network's inside to itself. Not what reads states or latents, not what writes
    states or latents, no codebook, query, gain or bias."""
    expected = {f"world_model.blocks.{i}.{name}" for i in range(2) for name in (*BLOCK, "modulation.weight")}
    expected.add("world_model.final_modulation.weight")
    if kind not in ("deterministic", "true_actions"):
        expected |= {f"latent_action.idm.blocks.0.{name}" for name in BLOCK}
    assert hidden_names(new_objective(tiny_kind(kind))) == expected


def test_hidden_matrices_of_networks_made_of_mlps() -> None:
    config = override(tiny_kind("noisy"), "model.idm.kind", "mlp")
    model = new_objective(config)
    assert {n for n in hidden_names(model) if "idm" in n} == {"latent_action.idm.mlp.2.weight"}
    attention = {"controller.inverse_map.2.weight", "controller.forward_map.embed_action.2.weight"}
    attention |= {f"controller.forward_map.blocks.0.{name}" for name in BLOCK}
    attention |= {f"controller.forward_map.cross.{name.removeprefix('attention.')}" for name in ATTENTION}
    attention |= {"controller.forward_map.mlp.0.weight", "controller.forward_map.mlp.2.weight"}
    assert hidden_names(ControllerObjective(config, model, 2)) == attention
    plain = override(config, "controller.model.kind", "mlp")
    middle = {"controller.forward_map.mlp.2.weight", "controller.inverse_map.2.weight"}
    assert hidden_names(ControllerObjective(plain, model, 2)) == middle
    assert hidden_names(DecoderObjective(config, model)) == {f"decoder.blocks.0.{name}" for name in BLOCK}


def test_every_parameter_is_in_one_group() -> None:
    def groups_of(config: Config) -> None:
        objective = new_objective(config)
        groups = parameter_groups(objective, objective.learning_rates())
        everything = [*groups.hidden, *groups.rest, *(p for own in groups.apart.values() for p in own)]
        trainable = [p for p in objective.parameters() if p.requires_grad]
        assert len(everything) == len(trainable) and set(everything) == set(trainable)

    for kind in BOTTLENECKS:
        groups_of(tiny_kind(kind))
    groups_of(fine_tuned_config())

    class Wrong(torch.nn.Module):
        def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            self.matrices = matrices

        def hidden_matrices(self):
            return iter([getattr(self, name).weight for name in self.matrices])

    assert parameter_groups(Wrong(["a"])).hidden  # right, that is
    with pytest.raises(ValueError, match=r"a\.weight to none or to several"):
        parameter_groups(Wrong(["a", "a"]))
    twice = Wrong([])
    with pytest.raises(ValueError, match=r"b\.weight, b\.bias to none or to several"):
        parameter_groups(twice, {twice.b: 0.1, twice: 0.2, twice.a: 0.3})
    flat = Wrong([])
    flat.hidden_matrices = lambda: iter([flat.a.bias])  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"two dimensions, and a\.bias"):
        parameter_groups(flat)


def test_a_learning_encoder_is_adamw_s_at_its_own_rate() -> None:
    """The encoder's hidden matrices too: it was trained before, by another optimiser."""
    objective = new_objective(fine_tuned_config(fine_tune__lr=3e-5))
    groups = parameter_groups(objective, objective.learning_rates())
    online = {p for n, p in objective.named_parameters() if n.startswith("online.") and p.requires_grad}
    assert list(groups.apart) == [3e-5] and set(groups.apart[3e-5]) == online and online
    assert any(p.ndim == 2 for p in online)


def test_moments_of_another_optimiser_are_refused() -> None:
    """As in checkpoints of before the embedding of the latent was AdamW's."""
    config = tiny_kind("noisy")
    objective = new_objective(config)
    optimizer = Optimizer(objective, config.optimizer, 10)
    with pytest.raises(
        LawmError, match=r"momentum_buffer of world_model\.embed_latent\.0\.weight, which AdamW has now"
    ):
        optimizer.load_named_tensors({"world_model.embed_latent.0.weight/momentum_buffer": torch.zeros(32, 8)})


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
