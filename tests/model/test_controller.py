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
