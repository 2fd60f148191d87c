"""Pictures of states: of the pixels encoder as they are, else by a decoder; and the true frames beside them."""

import pytest
import torch
from known_models import batch_of, clips_for, fresh
from small_runs import fine_tuned_config, made_batch, new_objective, tiny_with

from lawm.evaluation import Clips, Missing, Subject
from lawm.training import ClipBatch, DecoderObjective


@pytest.mark.parametrize("norm", ["off", "channel"])
def test_states_of_the_pixels_encoder_are_the_true_frames(norm: str) -> None:
    model = fresh("noisy", encoder__normalize_states=norm)
    clips = clips_for(model)
    found, frames = Subject(model).pixels(clips.states), clips.frames
    assert isinstance(found, torch.Tensor) and isinstance(frames, torch.Tensor)
    assert found.shape == (12, 4, 3, 16, 16)
    torch.testing.assert_close(found, frames, atol=1e-5, rtol=0)
    batch = batch_of()
    assert batch.frames_BFCHW is not None
    cached = ClipBatch(None, model.encode(batch.frames_BFCHW), None, batch.positions_B)
    again = clips_for(model, cached).frames
    assert isinstance(again, torch.Tensor)
    torch.testing.assert_close(again, frames, atol=1e-5, rtol=0)


def test_why_there_are_no_pictures_is_said() -> None:
    flat = fresh("noisy", encoder__normalize_states="layer_norm")
    refused = Subject(flat).pixels(clips_for(flat).states)
    assert isinstance(refused, Missing) and "layer_norm cannot be undone" in refused.reason
    config = tiny_with(encoder=fine_tuned_config().encoder.model_dump())
    model = new_objective(config).eval()
    batch = made_batch(range(4), config)
    assert batch.frames_BFCHW is not None
    states = model.encode(batch.frames_BFCHW)
    clips = Clips(model, ClipBatch(None, states, None, batch.positions_B), list("abcd"))
    missing, frames = Subject(model).pixels(clips.states), clips.frames
    assert isinstance(missing, Missing) and "lawm decoder --checkpoint RUN" in missing.reason
    assert isinstance(frames, Missing) and "--index" in frames.reason
    decoder = DecoderObjective(config, model).eval()
    with torch.no_grad():
        found = Subject(model, decoder=decoder).pixels(clips.states)
    assert isinstance(found, torch.Tensor) and found.shape == batch.frames_BFCHW.shape
    assert float(found.min()) >= 0 and float(found.max()) <= 1
