"""The decoder: causal, and all frames that a state was made of."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import made_batch, new_objective, tiny_with

from lawm.config import LawmError
from lawm.evaluation import Clips, Subject, prediction_episodes
from lawm.model import Decoder
from lawm.recipes import tiny
from lawm.training import decode_states
from lawm.training.objective import DecoderObjective


def test_decoder_is_causal_and_learns_from_frames_only() -> None:
    torch.manual_seed(0)
    decoder = Decoder(tiny().decoder, 6, 16, 30)  # 8-pixel patches, 32 pixels, resized to 30
    states = torch.randn(1, 3, 16, 6)
    frames = decoder(states)
    assert frames.shape == (1, 3, 3, 30, 30)
    other = states.clone()
    other[:, 2] += torch.randn(16, 6)
    assert torch.equal(decoder(other)[:, :2], frames[:, :2]) and not torch.equal(decoder(other)[:, 2], frames[:, 2])
    config = tiny()
    objective = DecoderObjective(config, new_objective(config))
    batch = made_batch(range(2), config)
    assert batch.frames_BFCHW is not None
    wanted = (objective.decoder(objective.model.states(batch)) - batch.frames_BFCHW / 255.0).abs().mean()
    assert objective(batch).total.item() == pytest.approx(wanted.item(), rel=1e-5)
    with pytest.raises(LawmError, match="learns from frames"):
        objective(replace(batch, frames_BFCHW=None, states_BTND=objective.model.states(batch)))


def tubelets(causality: str = "block_causal", **fields: Any) -> Any:
    """The tiny recipe on a small V-JEPA 2 of random weights."""
    encoder = {"kind": "vjepa2", "size": "tiny", "weights": "random", "causality": causality}
    return tiny_with(encoder=encoder, data__clip__size=32, **fields)


def test_a_tokens_pixels_stand_in_its_frames_and_its_patch() -> None:
    """What one token is decoded to, by a head that gives each pixel a number of its own."""
    torch.manual_seed(0)
    decoder = Decoder(tiny().decoder, 6, 4, 16, frames=2)  # a grid of 2 x 2, patches of 8 pixels
    with torch.no_grad():
        decoder.head.weight.zero_()
        decoder.head.bias.copy_(torch.arange(2 * 3 * 64.0))
        out = decoder(torch.randn(1, 3, 4, 6)) - 0.5
    assert out.shape == (1, 6, 3, 16, 16)
    wanted = torch.arange(2 * 3 * 64.0).view(2, 3, 8, 8).repeat(3, 1, 2, 2)
    torch.testing.assert_close(out[0], wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("causality", "duplicate"), [("block_causal", 1), ("frame_pairs", 1), ("duplicate", 1), ("block_causal", 2)]
)
def test_what_goes_in_comes_out(causality: str, duplicate: int) -> None:
    """As many frames are decoded as were encoded, and each is held against its own."""
    config = tubelets(causality, data__clip__frames=8, data__clip__duplicate=duplicate)
    model = new_objective(config)
    batch = made_batch(range(2), config)
    assert batch.frames_BFCHW is not None
    objective = DecoderObjective(config, model)
    states = model.states(batch)
    assert states.shape[1] == (8 if duplicate == 2 or causality == "duplicate" else 4)
    found = decode_states(model, objective.decoder, states)
    assert found.shape == batch.frames_BFCHW.shape
    wanted = (objective.decoder(states) - batch.frames_BFCHW / 255.0).abs().mean()
    assert objective(batch).prediction.item() == pytest.approx(wanted.item(), rel=1e-5)
    clips = Clips(model, batch, ["a", "b"])
    found = prediction_episodes(Subject(model, decoder=objective), clips, 1)
    assert isinstance(found, list)
    rows = found[0].rows
    assert len(rows) >= 3 and all(len(row.frames) == 8 for row in rows)
    assert (torch.from_numpy(rows[0].frames).permute(0, 3, 1, 2) == batch.frames_BFCHW[0]).all()


def test_both_frames_of_a_tubelet_are_learnt() -> None:
    """Frames of a tubelet that differ (black, then white) are told apart by what is decoded."""
    config = tubelets(data__clip__frames=4)
    torch.manual_seed(0)
    objective = DecoderObjective(config, new_objective(config))
    batch = made_batch(range(4), config)
    frames = torch.zeros_like(batch.frames_BFCHW)
    frames[:, 1::2] = 255
    batch = replace(batch, frames_BFCHW=frames)
    optimizer = torch.optim.Adam(objective.decoder.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        objective(batch).total.backward()
        optimizer.step()
    found = decode_states(objective.model, objective.decoder, objective.model.states(batch))
    assert found[:, ::2].mean() < 0.2 and found[:, 1::2].mean() > 0.8
