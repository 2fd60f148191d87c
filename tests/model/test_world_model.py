"""The world model sees no future, and a rollout is what predictions from the whole past are."""

import pytest
import torch
from small_runs import made_batch, new_objective, tiny_kind

from lawm.config import WorldModelConfig
from lawm.model import WorldModel
from lawm.recipes import tiny


def model(residual: bool = False, latent: int | None = 5) -> WorldModel:
    torch.manual_seed(0)
    found = WorldModel(WorldModelConfig(width=24, depth=2, heads=2, residual=residual), 6, latent)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found.eval()


def test_a_prediction_sees_only_the_states_and_latents_up_to_it() -> None:
    world = model()
    states, z = torch.randn(2, 5, 4, 6), torch.randn(2, 5, 5)
    out = world(states, z)
    assert out.shape == states.shape
    for t in range(5):
        for what in ("states", "z"):
            changed = {"states": states.clone(), "z": z.clone()}
            changed[what][:, t] += torch.randn_like(changed[what][:, t])
            moved = world(changed["states"], changed["z"])
            assert torch.equal(moved[:, :t], out[:, :t]), (what, t)
            assert not torch.equal(moved[:, t], out[:, t]), (what, t)


def by_hand(world: WorldModel, start: torch.Tensor, z: torch.Tensor | None, steps: int) -> torch.Tensor:
    """Each prediction is made from the whole past anew, and fed back."""
    states = start
    for _ in range(steps):
        now = None if z is None else z[:, : states.shape[1]]
        states = torch.cat([states, world(states, now)[:, -1:].to(states.dtype)], dim=1)
    return states[:, -steps:]


@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("latent", [5, None])
@pytest.mark.parametrize("tokens", [4, 36])  # one masked attention call, and a call a state
@torch.no_grad()
def test_rollout_equals_predictions_from_the_whole_past(context: int, latent: int | None, tokens: int) -> None:
    world = model(residual=True, latent=latent)
    start = torch.randn(2, context, tokens, 6)
    z = torch.randn(2, context + 3, 5) if latent else None
    found = world.rollout(start, z, 4)
    assert found.shape == (2, 4, tokens, 6)
    torch.testing.assert_close(found, by_hand(world, start, z, 4), rtol=1e-4, atol=1e-5)
    # The first unrolled step is what teacher forcing predicts there.
    forced = world(start, None if z is None else z[:, :context])[:, -1]
    torch.testing.assert_close(found[:, 0], forced, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [1, 3])
@torch.no_grad()
def test_candidates_share_what_they_have_in_common(context: int) -> None:
    """Three continuations of each of two contexts equal six rollouts; the past is computed for two, not six."""
    world = model(residual=True)
    start, z = torch.randn(2, context, 4, 6), torch.randn(6, context + 3, 5)
    z[:, : context - 1] = z[::3, : context - 1].repeat_interleave(3, dim=0)
    sizes: list[tuple[int, int]] = []
    world.embed.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape[:2])))
    found = world.rollout(start, z, 4, candidates=3)
    assert sizes == ([(2, context - 1)] if context > 1 else []) + [(6, 1)] * 4
    alone = by_hand(world, start.repeat_interleave(3, dim=0), z, 4)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_past_is_taken_in_once_and_continued_many_times() -> None:
    world = model()
    start, z = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 5)
    past = world.prefill(start, z[:, :2], 3)
    for copies in (1, 4, 1):
        ours = past.repeat(copies)
        found = torch.stack([world.step(ours, z[:, 2 + i].repeat_interleave(copies, 0)) for i in range(3)], dim=1)
        wanted = by_hand(world, start, z, 3).repeat_interleave(copies, 0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(past.now_BND, start[:, -1])
    with pytest.raises(RuntimeError):  # room for three steps, not for four
        world.step(ours, z[:, 0])


@torch.no_grad()
def test_keys_and_values_are_allocated_once() -> None:
    world = model()
    past = world.prefill(torch.randn(2, 3, 4, 6), torch.randn(2, 2, 5), 5)
    where = [(block.keys.data_ptr(), block.values.data_ptr()) for block in past.blocks]
    for _ in range(5):
        world.step(past, torch.randn(2, 5))
    assert where == [(block.keys.data_ptr(), block.values.data_ptr()) for block in past.blocks]
    assert [block.filled for block in past.blocks] == [7 * 4] * 2


def test_gradients_of_a_rollout_equal_those_of_predictions_from_the_whole_past() -> None:
    """As a planner by gradients takes them: with respect to latents and context, also with candidates."""
    world = model(residual=True)
    start = torch.randn(2, 3, 4, 6)
    z = torch.randn(4, 5, 5)
    z[:, :2] = z[::2, :2].repeat_interleave(2, dim=0)
    found = []
    for unroll in (
        lambda s, z: world.rollout(s, z, 3, candidates=2),
        lambda s, z: by_hand(world, s.repeat_interleave(2, dim=0), z, 3),
    ):
        s, own = start.clone().requires_grad_(), z.clone().requires_grad_()
        unroll(s, own).square().mean().backward()
        assert s.grad is not None and own.grad is not None
        found.append((s.grad, own.grad[:, 2:]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_rollouts_under_autocast_and_compiled() -> None:
    start, z = torch.randn(2, 2, 4, 6), torch.randn(2, 5, 5)
    world = model()
    plain = world.rollout(start, z, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        past = world.prefill(start, z[:, :1], 4)
        cast, wanted = world.rollout(start, z, 4), by_hand(world, start, z, 4)
    assert past.blocks[0].keys.dtype == torch.bfloat16 and cast.dtype == torch.float32
    torch.testing.assert_close(cast, wanted, rtol=0.05, atol=0.05)
    for block in world.blocks:
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(world.rollout(start, z, 4), plain, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_policy_is_asked_in_each_state_for_its_latent() -> None:
    world = model()
    start, z = torch.randn(2, 2, 4, 6), torch.randn(2, 5, 5)
    asked: list[torch.Tensor] = []

    def policy(state: torch.Tensor, i: int) -> torch.Tensor:
        asked.append(state)
        return z[:, 1 + i]

    found = world.rollout_policy(world.prefill(start, z[:, :1], 4), policy, 4)
    assert torch.equal(found, world.rollout(start, z, 4))
    assert torch.equal(torch.stack(asked, dim=1), torch.cat([start[:, -1:], found[:, :-1]], dim=1))


def test_latents_that_do_not_match_the_states_are_refused() -> None:
    with pytest.raises(ValueError, match="2 x 4 states need as many latents, not 2 x 3"):
        model()(torch.randn(2, 4, 4, 6), torch.randn(2, 3, 5))


def test_residual_models_start_by_copying_and_others_do_not() -> None:
    states, z = torch.randn(1, 3, 4, 6), torch.randn(1, 3, 5)
    for residual in (True, False):
        fresh = WorldModel(WorldModelConfig(width=24, depth=2, heads=2, residual=residual), 6, 5)
        assert torch.equal(fresh(states, z), states) == residual


def test_prediction_loss_is_the_mean_absolute_difference_and_dropout_zeroes_whole_latents() -> None:
    config = tiny_kind("none", model__action_dropout=0.5)
    objective = new_objective(config)
    for parameter in objective.world_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = made_batch(range(4), config)
    states = objective.states(batch)
    z = objective.infer(states).z_BTZ
    assert z is not None
    seen: list[torch.Tensor] = []
    objective.world_model.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    wanted = (objective.world_model(states[:, :-1], z) - states[:, 1:]).abs().mean().item()
    assert objective.eval()(batch).prediction.item() == pytest.approx(wanted, rel=1e-5)
    torch.manual_seed(0)
    objective.train()(batch)
    dropped = (seen[-1] == 0).all(-1)
    assert 0 < dropped.sum() < dropped.numel() and torch.equal(seen[-1][~dropped], z[~dropped])


def test_cached_states_and_frames_give_the_same_loss() -> None:
    config = tiny()
    objective = new_objective(config).eval()
    batch = made_batch(range(4), config)
    from lawm.training import ClipBatch

    assert batch.frames_BFCHW is not None
    cached = ClipBatch(None, objective.encode(batch.frames_BFCHW), batch.actions_BTA, batch.positions_B)
    assert torch.equal(objective(batch).total, objective(cached).total)


def test_activation_checkpointing_changes_memory_and_nothing_else() -> None:
    torch.manual_seed(0)
    states, z = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 5)
    results, saved = [], []
    for on in (False, True):
        torch.manual_seed(1)
        config = WorldModelConfig(width=24, depth=3, heads=2, activation_checkpointing=on)
        world = WorldModel(config, 6, 5).train()
        for parameter in world.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: (held.append(t.numel()), t)[1], lambda t: t):
            loss = world(states, z).square().mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in world.parameters())])
        saved.append(sum(held))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert saved[1] < saved[0] / 2


def test_recipes_of_every_size_build() -> None:
    """ViT-S, B, L, H: a plain ViT's parameters and half as many again for the modulation of every block."""
    from lawm.recipes import recipe
    from lawm.training import parameter_counts

    plain = {"paper_vit_s": 21.3, "paper_vit_b": 85.1, "paper_noisy": 302.3, "paper_vit_h": 629.7}
    for name, millions in plain.items():
        found = parameter_counts(recipe(name))["world model"] / 1e6
        assert 1.4 * millions < found < 1.7 * millions, (name, found)


def test_a_rollout_while_training_with_checkpointed_activations_takes_each_state_in_once() -> None:
    """Gradients too: blocks that keep a past are not computed again."""
    start, z = torch.randn(2, 2, 4, 6), torch.randn(2, 4, 5)
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        config = WorldModelConfig(width=24, depth=2, heads=2, activation_checkpointing=on)
        world = WorldModel(config, 6, 5).train()
        for parameter in world.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        loss = world.rollout(start, z, 3).square().mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in world.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
