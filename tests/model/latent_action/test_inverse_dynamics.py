"""A code depends on its two states, on their order, and on where they differ."""

from typing import Any

import pytest
import torch

from lawm.config import MlpIDM, TransformerIDM
from lawm.model.latent_action.inverse_dynamics import build_inverse_dynamics


@pytest.mark.parametrize(
    "config",
    [
        MlpIDM(hidden=16),
        TransformerIDM(width=16, depth=1, heads=2, join="tokens"),
        TransformerIDM(width=16, depth=1, heads=2, join="channels"),
    ],
    ids=["mlp", "tokens", "channels"],
)
def test_a_code_depends_on_its_two_states_and_on_nothing_else(config: Any) -> None:
    torch.manual_seed(0)
    idm = build_inverse_dynamics(config, 6, 5)
    states = torch.randn(2, 5, 9, 6)
    codes = idm(states)
    assert codes.shape == (2, 4, 5)
    for changed in range(5):
        other = states.clone()
        other[:, changed] += 1 + torch.randn(2, 9, 6)
        moved = (idm(other) - codes).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [t in (changed - 1, changed) for t in range(4)], changed


def test_the_transformer_tells_the_order_of_the_states_and_the_place_of_a_change() -> None:
    torch.manual_seed(0)
    for join in ("tokens", "channels"):
        idm = build_inverse_dynamics(TransformerIDM(width=16, depth=2, heads=2, join=join), 6, 5)
        pair = torch.randn(1, 2, 9, 6)
        assert not torch.allclose(idm(pair), idm(pair.flip(1)), atol=1e-4)
        # The same change in another cell: a pooled code could not tell.
        still = torch.zeros(1, 2, 9, 6)
        left, right = still.clone(), still.clone()
        left[:, 1, 0], right[:, 1, 8] = 3.0, 3.0
        assert not torch.allclose(idm(left), idm(right), atol=1e-4)
