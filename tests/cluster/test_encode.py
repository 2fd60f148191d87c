"""States written once: training from them is training from the videos, for encoders that look back too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SmallSet, losses, made_batch, tiny_with

from lawm.cluster.encode import chunks, encode_index
from lawm.cluster.session import Session
from lawm.config import Config, LawmError
from lawm.data import ClipReader, StateCache, read_index, rounded
from lawm.data.state_cache import widened
from lawm.model import encode_clips, load_encoder
from lawm.training import check_free_of_the_past, fit_local


def looking_back(index: str, **fields: Any) -> Config:
    """A small V-JEPA 2 of random weights with attention over time: two states a clip of four frames."""
    encoder = {"kind": "vjepa2", "size": "tiny", "weights": "random", "causality": "block_causal"}
    steps = {"train__steps": 6, "train__log_every": 1, "train__checkpoint_every": 6}
    fields = {"encoder": encoder, "data__clip__placement": "aligned", "data__index": index, **steps, **fields}
    return tiny_with(**fields)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_training_from_the_cache_of_an_encoder_that_looks_back(
    ray_cluster: Session, small_set: SmallSet, tmp_path: Path, dtype: str
) -> None:
    config = looking_back(small_set.index, data__cache_dtype=dtype)
    uri = str(tmp_path / "cache")
    report = encode_index(config, uri)
    assert report.videos == 12 and report.frames == 12 * 12  # 3 s at 4 Hz: three clips each
    cached = config.model_copy(update={"data": config.data.model_copy(update={"cache": uri})})
    reader, videos = ClipReader(cached), ClipReader(config)
    assert reader.plan.fingerprint() == videos.plan.fingerprint()
    encoder = load_encoder(config.encoder, config.data.clip)
    for position in range(len(reader.plan) + 2):
        held, seen = reader.sample(position), videos.sample(position)
        assert (held.key, held.start_s) == (seen.key, seen.start_s) and held.start_s in (0.0, 1.0, 2.0)
        assert held.states is not None and seen.frames is not None
        expected = encode_clips(encoder, torch.from_numpy(seen.frames)[None])[0].numpy()
        np.testing.assert_allclose(held.states, expected, atol=4e-3 if dtype == "float16" else 3e-2)
    for run, found in (("videos", config), ("cached", cached)):
        fit_local(found, "latent_action", str(tmp_path / run))
    tolerance = 1e-3 if dtype == "float16" else 1e-2
    assert losses(str(tmp_path / "cached")) == pytest.approx(losses(str(tmp_path / "videos")), rel=tolerance)
    with pytest.raises(LawmError, match=r"another encoder, clip spec or index"):
        encode_index(looking_back(small_set.index, data__clip__frames=6), uri)


def test_what_the_cache_does_not_hold_is_refused(ray_cluster: Session, small_set: SmallSet, tmp_path: Path) -> None:
    config = looking_back(small_set.index)
    anywhere = looking_back(small_set.index, data__clip__placement="jittered")
    with pytest.raises(LawmError, match=r"set data.clip.placement=aligned, here and in training"):
        encode_index(anywhere, str(tmp_path / "no"))
    with pytest.raises(LawmError, match=r"set data.clip.loop_filter=exact"):
        encode_index(looking_back(small_set.index, data__clip__loop_filter="skip"), str(tmp_path / "no"))
    uri = str(tmp_path / "cache")
    encode_index(config, uri)
    for fields, said in (
        ({"data__clip__placement": "jittered"}, "placement: cache 'aligned', config 'jittered'"),
        ({"data__clip__frames": 6}, "frames: cache 4, config 6"),
        ({"data__clip__loop_filter": "skip"}, "set data.clip.loop_filter=exact"),
    ):
        other = looking_back(small_set.index, data__cache=uri, **fields)
        with pytest.raises(LawmError, match=said):
            fit_local(other, "latent_action", str(tmp_path / "run"))
    cache = StateCache(uri)
    assert cache.frames_per_state == 2 and cache.window("00.mp4", 4, 4).shape == (2, 4, 80)
    with pytest.raises(IndexError):
        cache.window("00.mp4", 1, 4)
    with pytest.raises(LawmError, match=r"^leakage encodes frames without those that came before them in the cache"):
        check_free_of_the_past(cache, "leakage")
    again = looking_back(small_set.index, data__cache_dtype="bfloat16")
    with pytest.raises(LawmError, match=r"\(dtype = 'float16' there, 'bfloat16' now\)"):
        encode_index(again, uri)


def test_pieces_are_whole_clips(small_set: SmallSet) -> None:
    index = read_index(small_set.index)
    pieces = [piece for chunk in chunks(index, 4.0, whole=5) for _, piece in chunk]
    assert {piece.frames for piece in pieces} == {10}  # of 12 frames
    longer = [piece.frames for chunk in chunks(index, 1000.0, whole=100) for _, piece in chunk]
    assert all(frames % 100 == 0 and frames <= 512 for frames in longer) and len(longer) > 24


def test_rounding() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=5000) * 10.0 ** np.arange(-5, 5).repeat(500), [3e38]])
    values = values.astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(widened(rounded(values, "bfloat16")), expected)
    assert rounded(values[:100], "float16").dtype == np.float16
    with pytest.raises(LawmError, match=r"set data\.cache_dtype=bfloat16"):
        rounded(values, "float16")


def test_frames_given_twice_make_a_state_each() -> None:
    config = looking_back("nowhere", data__clip__duplicate=2)
    encoder = load_encoder(config.encoder, config.data.clip)
    frames = made_batch(range(2), config).frames_BFCHW
    assert frames is not None
    assert encode_clips(encoder, frames, 2).shape[1] == 4 and encode_clips(encoder, frames).shape[1] == 2
