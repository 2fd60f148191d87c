"""Batches in the plan's order: nothing lost or twice, bad clips replaced and counted, too many of them refused."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import SmallSet, index_folder, tiny_with

from lawm.config import LawmError, override
from lawm.data import (
    BadClip,
    ClipReader,
    Cursor,
    Index,
    Piece,
    Sample,
    cache_key,
    finish_cache,
    first_clips,
    part_bytes,
    part_name,
    plan_positions,
    read_index,
)
from lawm.training import collate, local_batches


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, small_set: SmallSet) -> tuple[str, str]:
    """(index, key of a training video whose file is cut short after it was indexed)."""
    import shutil

    root = tmp_path_factory.mktemp("broken")
    shutil.copytree(small_set.folder, root / "videos")
    index = index_folder(root / "videos", root / "index.parquet")
    key = read_index(index).split("train", 0.25).table["key"].to_pylist()[0]
    path = root / "videos" / key
    path.write_bytes(path.read_bytes()[:600])
    return index, key


def test_ranks_share_the_positions_that_are_left() -> None:
    for cursor in (Cursor(), Cursor(3, (5, 6))):
        parts = [list(itertools.islice(plan_positions(cursor, r, 3), 8)) for r in range(3)]
        assert sorted(itertools.chain(*parts)) == cursor.remaining(24).tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_the_plans_order_with_the_right_clips(small_set: SmallSet, threads: int) -> None:
    config = tiny_with(data__index=small_set.index, data__labels=small_set.labels)
    reader = ClipReader(config)
    found = list(itertools.islice(local_batches(reader, 4, Cursor(2, (4,)), threads=threads), 3))
    positions = Cursor(2, (4,)).remaining(12)
    assert torch.cat([b.positions_B for b in found]).tolist() == positions.tolist()
    rows = reader.plan.rows(positions)
    for i, position in enumerate(positions):
        batch, k = found[i // 4], i % 4
        sample = reader.sample(int(position))
        assert (sample.key, sample.start_s) == (list(reader.index.keys())[rows.video[i]], rows.start_s[i])
        assert batch.frames_BFCHW is not None and batch.actions_BTA is not None and batch.refused == ()
        assert torch.equal(batch.frames_BFCHW[k], torch.from_numpy(sample.frames))
        first = round(sample.start_s * 4)
        wanted = reader.labels.of(sample.key).actions[first : first + 3]  # type: ignore[union-attr]
        np.testing.assert_array_equal(batch.actions_BTA[k], wanted)


def test_bad_clips_are_replaced_and_said_to_be_consumed(broken: tuple[str, str]) -> None:
    index, key = broken
    reader = ClipReader(tiny_with(data__index=index))
    bad: list[BadClip] = []
    found = list(itertools.islice(local_batches(reader, 4, Cursor(), on_bad=bad.append), 6))
    assert all(len(b) == 4 for b in found)  # the run is not shortened
    good = torch.cat([b.positions_B for b in found]).tolist()
    refused = [p for b in found for p in b.refused]
    assert refused and sorted(good + refused) == list(range(len(good) + len(refused)))
    assert {reader.sample(p).key for p in good[:6]}.isdisjoint({key})
    assert {b.key for b in bad} == {key} and all(b.reason and b.source.endswith(key) for b in bad)
    # From the cursor of what was consumed the rest goes on without a gap, and the bad clips are not met again.
    cursor = Cursor().add(good).add(refused)
    assert not cursor.ahead
    assert next(local_batches(reader, 4, cursor)).positions_B.tolist()[0] >= cursor.low


def test_too_many_bad_clips_stop_the_run(broken: tuple[str, str]) -> None:
    index, key = broken
    only = read_index(index)
    rows = [k == key for k in only.table["key"].to_pylist()]
    import pyarrow as pa

    reader = ClipReader(
        tiny_with(data__index=index, data__val_fraction=0.0), index=Index(only.table.filter(pa.array(rows)))
    )
    said = r"20 of 20 clips were refused, more than data.max_bad_fraction = 0.5 allows; the last: .*"
    with pytest.raises(LawmError, match=said + key):
        next(local_batches(reader, 4, Cursor()))
    with pytest.raises(LawmError, match=r"none of the first \d+ clips can be read; the first: "):
        first_clips(reader, 5)


def test_first_clips_are_each_good_and_each_once(broken: tuple[str, str]) -> None:
    reader = ClipReader(tiny_with(data__index=broken[0]))
    found = first_clips(reader, 1000)
    assert len({s.position for s in found}) == len(found) < len(reader.plan)
    assert broken[1] not in {s.key for s in found}


def test_splits_share_no_video_and_labels_limit_them(small_set: SmallSet, tmp_path: Path) -> None:
    from small_runs import write_labels

    config = tiny_with(data__index=small_set.index, data__val_fraction=0.5)
    train, val = (set(ClipReader(config, which).index.keys()) for which in ("train", "val"))
    assert not train & val and train | val == set(ClipReader(config, "all").index.keys()) == set(small_set.keys)
    some = sorted(train)[:2]
    labels = write_labels(some, tmp_path / "some.parquet")
    partly = tiny_with(data__index=small_set.index, data__val_fraction=0.5, data__labels=labels)
    assert set(ClipReader(partly, "train", labelled=True).index.keys()) == set(some)
    assert set(ClipReader(partly, "train").index.keys()) == train  # actions where there are some
    samples = [ClipReader(partly, "train").sample(p) for p in range(len(ClipReader(partly, "train").plan))]
    assert {s.key for s in samples if s.actions is not None} == set(some)


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({}, {}, "set data.index"),
        ({"data__val_fraction": 0.0}, {"split": "val"}, "the val split is empty: 12 usable videos"),
        ({"data__keys": "nothing*"}, {}, r"data.keys = 'nothing\*' matches no usable video"),
        ({}, {"labelled": True}, "labelled clips are needed: set data.labels"),
        ({"data__clip__frames": 300}, {}, "no clip of 300 frames at 4 fps .* fits"),
    ],
)
def test_data_that_cannot_serve_is_one_line(small_set: SmallSet, fields: dict, options: dict, said: str) -> None:
    config = tiny_with(**({} if said == "set data.index" else {"data__index": small_set.index}), **fields)
    with pytest.raises(LawmError, match=said) as caught:
        ClipReader(config, **options)
    assert "\n" not in str(caught.value)


def test_keys_choose_videos(small_set: SmallSet) -> None:
    reader = ClipReader(tiny_with(data__index=small_set.index, data__keys="0[0-4]*"), "all")
    assert sorted(reader.index.keys()) == [f"{i:02d}.mp4" for i in range(5)]


def test_labels_that_do_not_cover_the_index_are_refused(small_set: SmallSet, tmp_path: Path) -> None:
    from small_runs import write_labels

    labels = write_labels(["of/another/set.mp4"], tmp_path / "labels.parquet")
    with pytest.raises(LawmError, match="covers none of the videos"):
        ClipReader(tiny_with(data__index=small_set.index, data__labels=labels), labelled=True)


def test_a_batch_has_actions_only_if_all_its_clips_do() -> None:
    frames, actions = np.zeros((2, 3, 4, 4), np.uint8), np.ones((1, 2), np.float32)
    one, two = Sample(3, "a", 0.0, frames, None, actions, "a"), Sample(9, "b", 0.0, frames, None, None, "b")
    assert collate([one, one]).actions_BTA is not None and collate([one, two]).actions_BTA is None
    bad = [BadClip(p, "c", "/c", 0.5, "damaged", "cannot be read") for p in (4, 5)]
    batch = collate([one, two], bad).to(torch.device("cpu"))
    assert (batch.positions_B.tolist(), batch.refused, len(batch)) == ([3, 9], (4, 5), 2)
    assert batch.clips == ((3, "a", 0.0, False), (9, "b", 0.0, False), (4, "c", 0.5, True), (5, "c", 0.5, True))


@pytest.mark.parametrize("from_cache", [False, True])
def test_labels_that_end_early_cost_their_clips_and_not_the_run(
    small_set: SmallSet, tmp_path: Path, from_cache: bool
) -> None:
    """Of one training video 2 s of 3 are labelled: its late clips are refused by name, all others are there."""
    config = tiny_with(data__labels=str(tmp_path / "labels.parquet"))
    table = pq.read_table(small_set.labels)
    short = next(iter(read_index(small_set.index).split("train", 0.25).keys()))
    actions = [row["actions"][:8] if row["key"] == short else row["actions"] for row in table.to_pylist()]
    pq.write_table(table.set_column(2, "actions", [actions]), tmp_path / "labels.parquet")
    if from_cache:
        index = read_index(small_set.index)
        pieces = [Piece(key, 0, 12) for key in small_set.keys]
        name = part_name(pieces)
        (tmp_path / name).write_bytes(part_bytes(pieces, [np.zeros((12, 16, 192), np.float16) for _ in pieces]))
        finish_cache(str(tmp_path), cache_key(config, "", "index"), index, {name: pieces}, (16, 192))
        config = override(config, "data.cache", str(tmp_path))
    else:
        config = override(config, "data.index", small_set.index)
    reader = ClipReader(config, labelled=True)
    rows = reader.plan.rows(np.arange(len(reader.plan)))
    keys = np.array(list(reader.index.keys()))[rows.video]
    late = np.flatnonzero((keys == short) & (rows.start_s + (config.data.clip.frames - 1) / 4 > 2.0)).tolist()
    bad: list[BadClip] = []
    batches = local_batches(reader, 1, Cursor(), on_bad=bad.append)
    good = [int(next(batches).positions_B[0]) for _ in range(len(reader.plan) - len(late))]
    assert late and sorted(good + late) == list(range(len(reader.plan)))
    assert [b.position for b in bad] == late and {b.reason for b in bad} == {"labels"}
    assert all(f"{short} has 8 actions; a clip of 4 frames" in b.message for b in bad)
    assert len(first_clips(reader, len(reader.plan))) == len(good)
