"""The state cache: windows across pieces, what is foreign or damaged is refused by name, on disk and on S3."""

import json
from pathlib import Path

import boto3
import numpy as np
import pytest
from small_runs import tiny, tiny_with

from lawm.config import Config, LawmError
from lawm.data import Index, Piece, StateCache, cache_key, finish_cache, part_bytes, part_name, rows_to_table
from lawm.model import load_encoder
from lawm.storage import join, write_bytes
from lawm.video import VideoRef as Ref
from lawm.video import empty_row

TOKENS, WIDTH = 16, 192


def index() -> Index:
    return Index(rows_to_table([empty_row(Ref(f"/{k}", 0, 1, k)) for k in ("a", "b")]))


def states(piece: Piece) -> np.ndarray:
    """Frame f of a video holds f everywhere (b: 100 + f), but for its token number in the first channel."""
    value = np.arange(piece.first, piece.first + piece.frames) + (100 if piece.key == "b" else 0)
    out = np.broadcast_to(value[:, None, None], (piece.frames, TOKENS, WIDTH)).astype(np.float16)
    out[:, :, 0] = np.arange(TOKENS)
    return out


PARTS = [[Piece("a", 0, 5), Piece("b", 0, 3)], [Piece("a", 9, 2), Piece("a", 5, 4)], [Piece("b", 3, 4)]]


def write(uri: str, config: Config | None = None) -> str:
    config = config or tiny()
    parts = {part_name(pieces): pieces for pieces in PARTS}
    for name, pieces in parts.items():
        write_bytes(join(uri, name), part_bytes(pieces, [states(p) for p in pieces]))
    print_of = load_encoder(config.encoder, config.data.clip).fingerprint()
    finish_cache(uri, cache_key(config, print_of, "index"), index(), parts, (TOKENS, WIDTH))
    return uri


@pytest.fixture(params=["local", "s3"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> StateCache:
    if request.param == "local":
        return StateCache(write(str(tmp_path / "cache")))
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="state-cache")
    return StateCache(write("s3://state-cache/cache"))


def test_windows_within_and_across_pieces(cache: StateCache) -> None:
    for key, first, frames in [
        ("a", 0, 5),
        ("a", 1, 3),
        ("a", 3, 4),
        ("a", 0, 11),
        ("a", 8, 2),
        ("b", 2, 3),
        ("b", 6, 1),
    ]:
        found = cache.window(key, first, frames)
        assert found.shape == (frames, TOKENS, WIDTH) and found.dtype == np.float16
        np.testing.assert_array_equal(found, states(Piece(key, first, frames)))
    assert cache.index.table["key"].to_pylist() == ["a", "b"]
    for key, first, frames in [("a", 8, 4), ("b", -1, 2), ("c", 0, 1)]:
        with pytest.raises(IndexError, match=f"{key}: frames {first} to"):
            cache.window(key, first, frames)


def test_a_cache_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    cache = StateCache(write(str(tmp_path)))
    config = tiny()
    cache.check(config, load_encoder(config.encoder, config.data.clip).fingerprint())
    for fields, said in [
        ({"data__clip__fps": 8.0}, "fps: cache 4.0, config 8.0"),
        ({"data__clip__size": 64}, "size: cache 32, config 64"),
        ({"data__clip__crop": "random_resized"}, "crop: cache 'center', config 'random_resized'"),
        ({"encoder__patch": 4}, "encoder: cache '[0-9a-f]{16}', config '[0-9a-f]{16}'"),
    ]:
        other = tiny_with(**fields)
        with pytest.raises(LawmError, match=f"a cache of something else .*{said}"):
            cache.check(other, load_encoder(other.encoder, other.data.clip).fingerprint())


def test_missing_and_damaged_caches_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(LawmError, match=r"no state cache there .*lawm encode"):
        StateCache(str(tmp_path / "nowhere"))
    uri = write(str(tmp_path / "cache"))
    part = tmp_path / "cache" / part_name(PARTS[0])
    whole = part.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", None):
        if damaged is None:
            part.unlink()
        else:
            part.write_bytes(damaged)
        cache = StateCache(uri)
        with pytest.raises(LawmError, match=f"{part.name}: missing or damaged part"):
            cache.window("a", 0, 2)
        np.testing.assert_array_equal(cache.window("a", 6, 2), states(Piece("a", 6, 2)))  # the others can be read
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    others = [json.dumps(manifest | {"parts": parts}) for parts in ([], {"a": 3}, {"a": [[1]]})]
    for text in ("{", "[]", json.dumps({"key": {}}), "[" * 200_000, *others):
        (tmp_path / "cache/manifest.json").write_text(text)
        with pytest.raises(LawmError, match="damaged manifest"):
            StateCache(uri)


def test_part_names_follow_from_what_is_in_them() -> None:
    assert part_name(PARTS[0]) == part_name(list(PARTS[0])) != part_name(PARTS[1])
    assert len({part_name(p) for p in PARTS}) == 3
