"""What is held out: whole groups, by their hash; of few videos, one."""

import hashlib

import pytest

from lawm.config import Config, DataConfig, LawmError, PixelsEncoder
from lawm.data import ClipReader, Index, rows_to_table, write_index
from lawm.data.splitting import Splitter
from lawm.video import VideoRef, empty_row


def table(names: dict[str, str | None]) -> Index:
    rows = [empty_row(VideoRef("/v", 0, 1, key, group=group)) for key, group in names.items()]
    return Index(rows_to_table([row | {"duration_s": 9.0, "rate": 10.0} for row in rows]))


def share(name: str) -> float:
    """Where the hash of a name lies in [0, 1), by the rule as documented."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") / 2**64


def sides(index: Index, fraction: float, pieces: int = 1) -> tuple[list[str], list[str]]:
    found = []
    for which in ("train", "val"):
        splitter = Splitter(which, fraction)  # type: ignore[arg-type]
        for i in range(pieces):
            splitter.add(Index(index.table.take(list(range(i, len(index), pieces)))))
        found.append(sorted(splitter.part().keys()))
    return found[0], found[1]


def test_a_group_is_on_one_side_and_its_name_decides() -> None:
    index = table({f"{camera}/e{e}": f"e{e}" for e in range(40) for camera in ("wrist", "left", "right")})
    for pieces in (1, 3):
        train, val = sides(index, 0.3, pieces)
        assert val == sorted(f"{c}/e{e}" for e in range(40) for c in ("wrist", "left", "right") if share(f"e{e}") < 0.3)
        assert sorted(train + val) == sorted(index.keys()) and val and train
    assert index.group(4) == "e1" and list(table({"a": None, "b": "x"}).groups()) == ["a", "x"]


def test_without_groups_the_split_is_by_the_keys_hash_as_ever() -> None:
    index = table({f"{n}.mp4": None for n in range(200)})
    older = Index(index.table.drop_columns(["group"]))
    for each in (index, older):
        assert sorted(each.split("val", 0.1).keys()) == sorted(filter(lambda k: share(k) < 0.1, index.keys()))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
@pytest.mark.parametrize("pieces", [1, 2])
def test_of_few_videos_one_is_held_out_and_one_is_trained_on(fraction: float, pieces: int) -> None:
    index = table({"a": "film 1", "b": "film 1", "c": None, "d": "film 2"})
    lonely = min(["film 1", "c", "film 2"], key=share) if fraction < 0.5 else max(["film 1", "c", "film 2"], key=share)
    small = sorted(k for k, g in zip(index.keys(), index.groups(), strict=True) if g == lonely)
    others = sorted(set(index.keys()) - set(small))
    assert sides(index, fraction, pieces) == ((others, small) if fraction < 0.5 else (small, others))


def test_one_group_alone_and_nothing_held_out_on_purpose_stay_as_they_are() -> None:
    for fraction in (0.001, 0.999):  # whatever its hash, a single film is trained on
        assert sides(table({"a": "film", "b": "film"}), fraction) == (["a", "b"], [])
    assert sides(table({"a": None, "b": None}), 0.0) == (["a", "b"], [])


def test_readers_split_alike_and_clips_say_their_group(tmp_path: object) -> None:
    uri = f"{tmp_path}/i.parquet"
    write_index(table({"a": "film 1", "b": "film 1", "c": None}), uri)
    data = DataConfig(index=uri, val_fraction=0.001)

    def keys(which: str, **changed: object) -> list[str]:
        config = Config(data=data.model_copy(update=changed), encoder=PixelsEncoder())
        return sorted(ClipReader(config, which).index.keys())  # type: ignore[arg-type]

    held_out = ["a", "b"] if share("film 1") < share("c") else ["c"]
    assert keys("val") == held_out and keys("train") == sorted({"a", "b", "c"} - set(held_out))
    assert keys("all") == ["a", "b", "c"]
    assert keys("all", keys="[ab]") == ["a", "b"]
    with pytest.raises(LawmError, match=r"matches no usable video of .*; \[ begins a set of characters: write \[\[\]"):
        keys("all", keys="[xyz]")
    write_index(table({"take [1].mp4": None, "take 1.mp4": None}), uri)
    assert keys("all", keys="take [1].mp4") == ["take 1.mp4", "take [1].mp4"]  # the pattern, and the name as written
    assert keys("all", keys="take [[]*") == ["take [1].mp4"]
