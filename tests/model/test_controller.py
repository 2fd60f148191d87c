"""Controllers see one action and its state, in the data's units."""

from dataclasses import replace

import pytest
import torch
from small_runs import made_batch, new_objective, scales_of, tiny_kind, tiny_with

from lawm.config import AttentionController, ControllerConfig, LawmError, MlpController
from lawm.model import Controller
from lawm.training import ControllerObjective


@pytest.mark.parametrize("kind", [AttentionController(width=16, depth=1, heads=2), MlpController(hidden=16)])
def test_controllers_see_one_action_and_its_state(kind: AttentionController | MlpController) -> None:
    torch.manual_seed(0)
    controller = Controller(ControllerConfig(model=kind), 6, 2, 5)
    actions, states = torch.randn(2, 4, 2), torch.randn(2, 4, 9, 6)
    z = controller(actions, states)
    assert z.shape == (2, 4, 5)
    other = actions.clone()
    other[:, 2] += 1
    assert ((controller(other, states) - z).abs().amax((0, 2)) > 1e-6).tolist() == [False, False, True, False]
    moved = states.clone()
    moved[:, 1] += torch.randn(9, 6)
    sees = isinstance(kind, AttentionController)
    assert ((controller(actions, moved) - z).abs().amax((0, 2)) > 1e-6).tolist() == [False, sees, False, False]


def test_controller_works_in_the_datas_units() -> None:
    """Rescaled actions, recalibrated: the same latents, and an inverse in the new units."""
    config = tiny_with()
    torch.manual_seed(0)
    objective = ControllerObjective(config, new_objective(config), 2)
    batch = made_batch(range(8), config)
    objective.scale_actions(scales_of(batch))
    first = objective(batch)
    assert batch.actions_BTA is not None
    scaled = replace(batch, actions_BTA=batch.actions_BTA * 50 + 7)
    z = torch.randn(1, 2, 8)
    before = objective.controller.inverse(z)
    objective.scale_actions(scales_of(scaled))
    second = objective(scaled)
    assert second.prediction.item() == pytest.approx(first.prediction.item(), rel=1e-4)
    assert second.penalty.item() == pytest.approx(first.penalty.item(), rel=1e-4)
    torch.testing.assert_close(objective.controller.inverse(z), before * 50 + 7, rtol=1e-3, atol=1e-3)
    with pytest.raises(LawmError, match="labels"):
        objective(replace(batch, actions_BTA=None))
    three = replace(batch, actions_BTA=batch.actions_BTA.repeat(1, 1, 2)[..., :3])
    with pytest.raises(LawmError, match="labels have 3 numbers an action, the model was made for 2"):
        objective.scale_actions(scales_of(three))


def test_a_deterministic_model_has_nothing_to_control() -> None:
    config = tiny_kind("deterministic")
    with pytest.raises(LawmError, match="no latent actions"):
        ControllerObjective(config, new_objective(config), 2)


def test_standardised_latents_weigh_every_dimension_alike() -> None:
    """A dimension that varies a hundredth as much counts as much; its scale is that of all latents seen in training,
    and is kept with the weights."""
    torch.manual_seed(0)
    kind = ControllerConfig(model=MlpController(hidden=16), latents="standardised")
    controller = Controller(kind, 6, 2, 3)
    z = torch.randn(40, 2, 4, 3) * torch.tensor([1.0, 0.05, 0.0]) + torch.tensor([3.0, -1.0, 2.0])
    for batch in z:
        controller.note_latents(batch)
    expected = z.double().flatten(0, 2).std(0, unbiased=False)
    torch.testing.assert_close(controller.latent_std[:2].double(), expected[:2], rtol=1e-5, atol=0)
    assert controller.latent_std[2] == pytest.approx(0.01 * float(expected[0]), rel=1e-4)  # does not vary: not blown up
    torch.testing.assert_close(controller.latent_mean.float(), z.flatten(0, 2).mean(0), rtol=1e-5, atol=1e-6)
    again = Controller(kind, 6, 2, 3)
    again.load_state_dict(controller.state_dict())
    actions, states = torch.randn(1, 4, 2), torch.randn(1, 4, 9, 6)
    torch.testing.assert_close(again(actions, states), controller(actions, states))
    plain = Controller(ControllerConfig(model=MlpController(hidden=16)), 6, 2, 3)
    plain.load_state_dict(controller.state_dict())  # notes latents too, and does not measure in them
    unscaled = (again(actions, states) - z.flatten(0, 2).mean(0)) / controller.latent_std
    torch.testing.assert_close(plain(actions, states), unscaled, rtol=1e-3, atol=1e-3)


def test_a_standardised_objective_notes_latents_in_training_alone() -> None:
    config = tiny_with(controller__latents="standardised")
    torch.manual_seed(0)
    objective = ControllerObjective(config, new_objective(config), 2)
    batch = made_batch(range(8), config)
    objective.scale_actions(scales_of(batch))
    objective.eval()
    objective(batch)
    assert objective.controller.latents_seen == 0
    objective.train()
    loss = objective(batch).prediction
    assert objective.controller.latents_seen == 1
    with torch.no_grad():
        states = objective.model.states(batch)
        target = objective.model.infer(states, batch.actions_BTA).z_BTZ
        predicted = objective.controller(batch.actions_BTA.float(), states[:, :-1])
    each = target.double().flatten(0, 1).std(0, unbiased=False)
    each = torch.maximum(each, 0.01 * each.max())
    assert loss.item() == pytest.approx(((predicted - target) / each).square().mean().item(), rel=1e-3)
