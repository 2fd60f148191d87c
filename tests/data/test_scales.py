"""Scales of actions over the whole training split: known answers, and numbers that hardly vary."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SmallSet, tiny_kind, tiny_with

from lawm.config import LawmError, override
from lawm.data import ClipReader, VideoLabels, action_scales, data_lines, open_reader, write_labels
from lawm.training import fit_local


def reader_of(
    small_set: SmallSet, where: Path, actions: Any, kind: Any = "sum", rate: float = 4.0, **fields: Any
) -> Any:
    """A labelled reader of twelve videos of 3 s, whose labels are `actions(i)` (or states)."""
    states = kind != "sum" and kind != "first"
    rows = []
    for i, key in enumerate(small_set.keys):
        values = np.asarray(actions(i), np.float32)
        rows.append(VideoLabels(key, rate, values[:-1] if states else values, values if states else None))
    write_labels(rows, str(where), kind)
    settings = {"data__index": small_set.index, "data__labels": str(where), "data__val_fraction": 0.0}
    return ClipReader(tiny_with(**settings | fields), labelled=True)


def test_what_all_videos_show(small_set: SmallSet, tmp_path: Path) -> None:
    """Eleven transitions of each of twelve videos: half of the videos move by 1, half by 3; one number counts 0..11."""
    found = action_scales(
        reader_of(small_set, tmp_path / "l.parquet", lambda i: [[1 + 2 * (i % 2), n] for n in range(12)])
    )
    assert found.count == 12 * 11 and found.mean == pytest.approx([2, 5])
    assert found.deviation == pytest.approx([1, np.sqrt((11**2 - 1) / 12)])  # of 0..10
    assert (found.low.tolist(), found.high.tolist()) == ([1, 0], [3, 10])
    assert found.scale() == pytest.approx(found.deviation) and found.lines() == []


def test_actions_are_taken_as_clips_have_them(small_set: SmallSet, tmp_path: Path) -> None:
    """At twice the clips' rate 1 and 3 in turn add up to 4 each time, and a set point is the first of two."""

    def turns(i: int) -> list[list[float]]:
        return [[1 + 2 * (n % 2), n] for n in range(24)]

    sums = action_scales(reader_of(small_set, tmp_path / "s.parquet", turns, rate=8.0))
    assert sums.mean[0] == 4 and sums.deviation[0] == 0
    first = action_scales(reader_of(small_set, tmp_path / "f.parquet", turns, "first", 8.0))
    assert first.mean[0] == 1 and first.deviation[0] == 0
    # A robot that drives 0.5 m ahead and turns by 0.1 each time: so it is in its own frame, wherever it looks.
    yaw = 0.1 * np.arange(13)
    x = np.concatenate([[0], np.cumsum(0.5 * np.cos(yaw[:-1]))])
    y = np.concatenate([[0], np.cumsum(0.5 * np.sin(yaw[:-1]))])
    path = np.stack([x, y, yaw], axis=1)
    body = action_scales(reader_of(small_set, tmp_path / "p.parquet", lambda i: path, "planar_delta"))
    assert body.mean == pytest.approx([0.5, 0, 0.1], abs=1e-5) and body.deviation == pytest.approx([0, 0, 0], abs=1e-5)
    world = action_scales(reader_of(small_set, tmp_path / "d.parquet", lambda i: path, "state_delta"))
    assert world.deviation[1] == pytest.approx(np.std(0.5 * np.sin(yaw[:11])), rel=1e-4)


def test_videos_count_by_their_clips(small_set: SmallSet, tmp_path: Path) -> None:
    """Of a mixture, sources by their shares."""
    reader_of(small_set, tmp_path / "one.parquet", lambda i: [[1.0]] * 12)
    reader_of(small_set, tmp_path / "two.parquet", lambda i: [[5.0]] * 12)
    sources = [
        {"index": small_set.index, "labels": str(tmp_path / f"{name}.parquet"), "weight": weight}
        for name, weight in (("one", 3.0), ("two", 1.0))
    ]
    found = action_scales(open_reader(override(tiny_with(), "data.mixture", sources), "controller"))
    assert found.mean == pytest.approx([2.0]) and found.deviation == pytest.approx([np.sqrt(3.0)])
    with pytest.raises(LawmError, match="labelled clips are needed"):
        action_scales(open_reader(tiny_with(data__index=small_set.index), "latent_action"))


def test_what_hardly_varies_is_named_and_kept_within_ten_deviations(small_set: SmallSet, tmp_path: Path) -> None:
    def rare(i: int) -> list[list[float]]:
        noise = np.random.default_rng(i).normal(size=12)
        return [[noise[n], 0.0, 500.0 + 1e-5 * noise[n], float((i, n) == (3, 4))] for n in range(12)]

    reader = reader_of(small_set, tmp_path / "l.parquet", rare)
    found = action_scales(reader)
    assert found.constant.tolist() == [False, True, True, False]
    scale = found.scale()
    assert scale[:3] == pytest.approx([found.deviation[0], 1.0, 500.0], rel=1e-3)
    assert scale[3] == pytest.approx((1 - 1 / 132) / 10)  # 1 in one of 132 transitions: 11.4 deviations
    said = found.lines()
    assert len(said) == 3
    assert said[0].startswith("action 1") and "does not vary: it is 0 in all 132 labelled transitions" in said[0]
    assert said[1].startswith("action 2") and "does not vary: it is 500" in said[1]
    assert said[2].startswith("action 3") and "hardly varies" in said[2] and "between 0 and 1" in said[2]
    assert data_lines(reader.config, "controller")[-3:] == said
    # Where no mean is taken off, it is the values themselves that are kept within.
    assert found.scale(about_mean=False)[3] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["controller", "latent_action"])
def test_an_action_that_moves_in_late_videos_alone_breaks_no_training(
    small_set: SmallSet, tmp_path: Path, kind: str
) -> None:
    """A number that is 0 in all but one video: measured over the first clips it had no deviation at all, the loss of
    the other video was 1e10, and every gradient was clipped away."""
    reader = reader_of(small_set, tmp_path / "l.parquet", lambda i: [[np.sin(i + n), float(i == 7)] for n in range(12)])
    loop = {"steps": 12, "batch": 8, "log_every": 1, "checkpoint_every": 12}
    model = tiny_kind("true_actions" if kind == "latent_action" else "noisy", data=reader.config.data.model_dump())
    config = override(override(model, "train.steps", 2), "controller.train", loop)
    config = override(config, "train", loop) if kind == "latent_action" else config
    parent = None
    if kind == "controller":
        parent = fit_local(config, "latent_action", str(tmp_path / "model"))
    fit_local(config, kind, str(tmp_path / "run"), parent)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 12 and max(losses) < 10
