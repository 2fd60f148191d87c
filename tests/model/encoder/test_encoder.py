"""Encoders: pixels and their inverse, timm backbones, causality, normalisation."""

import math
from typing import Any

import pytest
import timm
import torch
from small_runs import made_batch, new_objective, noise_frames, tiny, tiny_with

from lawm.config import ClipSpec, ConfigError, PixelsEncoder, TimmEncoder, VJepa2Encoder, override
from lawm.model import Encoder, StateNorm, load_encoder
from lawm.training import decode_states

CLIP = ClipSpec(frames=4, size=32)


def encoders() -> dict[str, Encoder]:
    kinds = {
        "pixels": PixelsEncoder(patch=8),
        "vit": TimmEncoder(model="vit_tiny_patch16_224", weights="random"),
        "vit_block": TimmEncoder(model="vit_tiny_patch16_224", weights="random", stage=2),
        "cnn": TimmEncoder(model="resnet10t", weights="random"),
        "cnn_stage": TimmEncoder(model="tf_efficientnet_lite0", weights="random", stage=2),
    }
    return {name: load_encoder(kind, CLIP) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Encoder]:
    return encoders()


@pytest.mark.parametrize(
    ("name", "tokens", "width"),
    [("pixels", 16, 192), ("vit", 4, 192), ("vit_block", 4, 192), ("cnn", 1, 512), ("cnn_stage", 16, 40)],
)
def test_states_have_the_declared_shape_and_never_see_later_frames(
    loaded: dict[str, Encoder], name: str, tokens: int, width: int
) -> None:
    encoder = loaded[name]
    assert (encoder.tokens, encoder.state_width, encoder.frames_per_state) == (tokens, width, 1)
    clips = noise_frames()
    states = encoder(clips)
    assert states.shape == (2, 4, tokens, width)
    assert not states.requires_grad and not encoder.train().training  # frozen, in eval mode for good
    for t in range(4):
        other = clips.clone()
        other[:, t:] = 255 - other[:, t:]
        moved = encoder(other)
        assert torch.equal(moved[:, :t], states[:, :t])
        assert not torch.allclose(moved[:, t], states[:, t])


def test_tokens_stand_where_their_patch_does(loaded: dict[str, Encoder]) -> None:
    """A change in one corner moves the token of that corner most."""
    for name in ("pixels", "cnn_stage"):
        still = torch.full((1, 1, 3, 32, 32), 100, dtype=torch.uint8)
        side = math.isqrt(loaded[name].tokens)
        for corner, token in (
            ((0, 0), 0),
            ((0, 24), side - 1),
            ((24, 0), side * (side - 1)),
            ((24, 24), side * side - 1),
        ):
            moved = still.clone()
            moved[..., corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] = 250
            change = (loaded[name](moved) - loaded[name](still)).norm(dim=-1)[0, 0]
            assert change.argmax() == token, name


def test_pixels_are_exactly_invertible() -> None:
    config = tiny()
    model = new_objective(config)
    batch = made_batch(range(3), config)
    back = decode_states(model, None, model.states(batch))
    assert torch.equal((back * 255).round().to(torch.uint8), batch.frames_BFCHW)


def test_images_are_normalised_with_the_backbones_own_figures(loaded: dict[str, Encoder]) -> None:
    white = torch.full((1, 1, 3, 2, 2), 255, dtype=torch.uint8)
    for name in ("cnn", "cnn_stage"):
        backbone: Any = loaded[name].backbone
        data = timm.data.resolve_model_data_config(backbone)
        wanted = [(1 - m) / s for m, s in zip(data["mean"], data["std"], strict=True)]
        assert loaded[name].normalized(white)[0, 0, :, 0, 0].tolist() == pytest.approx(wanted, rel=1e-5)


def test_random_weights_and_fingerprints_are_the_same_everywhere(loaded: dict[str, Encoder]) -> None:
    again = encoders()
    prints = {name: encoder.fingerprint() for name, encoder in loaded.items()}
    assert prints == {name: encoder.fingerprint() for name, encoder in again.items()}
    assert len(set(prints.values())) == len(prints)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_encoder(TimmEncoder(model="resnet10t", weights="random"), CLIP)
    assert torch.equal(before, torch.get_rng_state())  # building an encoder leaves the run's random state alone


def test_another_block_of_the_same_backbone_is_another_encoder(loaded: dict[str, Encoder]) -> None:
    """Same weights, same shape of the states, other states: a cache of one must not serve the other."""
    other = load_encoder(TimmEncoder(model="vit_tiny_patch16_224", weights="random", stage=3), CLIP)
    assert not torch.allclose(other(noise_frames()), loaded["vit_block"](noise_frames()))
    assert other.fingerprint() != loaded["vit_block"].fingerprint()


# ---------------------------------------------------------------- normalisation
def test_weights_that_were_trained_with_another_mean_and_std_get_theirs() -> None:
    """By hand on one pixel; and another normalisation is another encoder, since it gives other states."""
    own = TimmEncoder(model="resnet10t", weights="random")
    other = own.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)})
    tiny_vjepa2 = VJepa2Encoder(size="tiny", weights="random")
    for one, changed in ((own, other), (tiny_vjepa2, tiny_vjepa2.model_copy(update={"std": (0.5, 1.0, 2.0)}))):
        encoder = load_encoder(changed, CLIP)
        pixel = torch.tensor([51, 102, 204], dtype=torch.uint8).view(1, 1, 3, 1, 1)
        mean = changed.mean or (0.485, 0.456, 0.406)
        wanted = [(v - m) / s for v, m, s in zip((0.2, 0.4, 0.8), mean, (0.5, 1.0, 2.0), strict=True)]
        assert encoder.normalized(pixel).flatten().tolist() == pytest.approx(wanted, rel=1e-5)
        before = load_encoder(one, CLIP)
        assert not torch.allclose(encoder(noise_frames()), before(noise_frames()))
        assert encoder.fingerprint() != before.fingerprint()
        same = one.model_copy(update={"mean": tuple(before.mean.flatten().tolist())})
        assert torch.equal(load_encoder(same, CLIP)(noise_frames()), before(noise_frames()))
    with pytest.raises(ConfigError, match=r"encoder.timm.std.1: Input should be greater than 0"):
        override(tiny_with(encoder__kind="timm"), "encoder.std", [0.1, 0, 0.1])


def test_state_norms() -> None:
    states = torch.randn(4, 3, 5, 6) * torch.arange(1, 7) + 3
    assert torch.equal(StateNorm("off", 6)(states), states)
    layer = StateNorm("layer_norm", 6)(states)
    torch.testing.assert_close(layer.mean(-1), torch.zeros(4, 3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.var(-1, correction=0), torch.ones(4, 3, 5), atol=1e-3, rtol=0)
    channel = StateNorm("channel", 6)
    assert not channel.calibrated
    channel.calibrate(states)
    out = channel(states)
    torch.testing.assert_close(out.flatten(0, 2).mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.flatten(0, 2).std(0), torch.ones(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(channel.inverse(out), states)
    channel.calibrate(torch.ones(4, 3, 5, 6))  # a constant channel
    assert torch.isfinite(channel(states)).all()


def test_channel_statistics_are_measured_once_and_kept() -> None:
    config = tiny_with(encoder__normalize_states="channel")
    objective = new_objective(config)
    kept = {k: v.clone() for k, v in objective.kept().items()}
    objective.calibrate(made_batch(range(100, 104), config))
    assert torch.equal(objective.kept()["state_norm.channel_mean"], kept["state_norm.channel_mean"])
    from lawm.training import LatentActionObjective

    fresh = LatentActionObjective(config)
    fresh.load_kept(kept, "here")
    fresh.calibrate(made_batch(range(100, 104), config))
    assert torch.equal(fresh.state_norm.channel_mean, kept["state_norm.channel_mean"])
