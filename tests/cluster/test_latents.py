"""`lawm latents`: each transition once, with the latent that the model gives for a clip that shows it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_videos import write_video
from small_runs import SmallSet, index_folder, tiny_kind, tiny_with

from jobs import __main__ as lawm
from lawm.cluster import latents
from lawm.cluster.encode import encode_index
from lawm.cluster.latents import Job, plan_latents, write_latents
from lawm.cluster.session import Session
from lawm.config import Config, LawmError, override
from lawm.data import ClipReader, read_index, read_parts
from lawm.evaluation import Clips
from lawm.training import collate, fit_local, load_model
from lawm.video import decode_clip


def trained(run: Path, config: Config) -> str:
    fields = {"train.steps": 2, "train.checkpoint_every": 2}
    for name, value in fields.items():
        config = override(config, name, value)
    fit_local(config, "latent_action", str(run))
    return str(run)


def table_of(out: Path) -> pd.DataFrame:
    return pa.concat_tables(read_parts(str(out))).to_pandas()


def in_this_process(job: Job) -> pd.DataFrame:
    """The rows of all windows, by the functions that Ray's tasks and actors call."""
    windows = [job.plan.window(i) for i in range(len(job.plan))]
    pieces = [piece for window in windows for piece in latents.pieces_of(job.config, job.plan, window)]
    found = latents.Infer(job.config, job.checkpoint, job.plan.cut)(latents._block(pieces))
    return found.drop_columns("window").to_pandas()


BLOCK_CAUSAL = {"kind": "vjepa2", "size": "tiny", "weights": "random", "causality": "block_causal"}


def looking_back(index: str, **encoder: Any) -> Config:
    """Clips of 16 frames, eight states."""
    fields = {"data__clip__frames": 16, "data__clip__size": 32, "encoder": BLOCK_CAUSAL | encoder}
    return tiny_with(data__index=index, **fields)


@pytest.fixture(scope="module")
def long_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Videos of odd rates and lengths, and two of no use. Returns the index."""
    root = tmp_path_factory.mktemp("long")
    (root / "v").mkdir()
    for name, frames, rate in (("a", 330, 30), ("b", 60, 5), ("c", 211, 25), ("d", 9, 4), ("slow", 9, 1)):
        write_video(root / "v" / f"{name}.mp4", frames, rate=rate, gop=40)
    (root / "v/broken.mp4").write_bytes(b"no video")
    return index_folder(root / "v", root / "index.parquet")


@pytest.mark.parametrize("causality", ["block_causal", "frame_pairs", "duplicate"])
def test_each_latent_is_what_the_model_says_of_a_clip_from_its_window(
    causality: str, long_set: str, tmp_path: Path
) -> None:
    config = looking_back(long_set, causality=causality)
    run = trained(tmp_path / "run", config)
    rows = in_this_process(plan_latents(config, run))
    each = 1 if causality == "duplicate" else 2
    states = {"a.mp4": 44 // each, "b.mp4": 48 // each, "c.mp4": 34 // each, "d.mp4": 9 // each}
    for key, count in states.items():
        assert rows[rows.key == key].transition.tolist() == list(range(count - 1))
    assert rows.transition.notna().sum() == sum(states.values()) - 4
    refused = rows[rows.transition.isna()]
    assert (
        refused.key.tolist() == ["broken.mp4", "slow.mp4"] and refused.reason.str.match("not_video: |too_slow: ").all()
    )
    assert refused.z.isna().all() and len(rows) == sum(states.values()) - 4 + 2
    index = read_index(long_set)
    ref = {key: index.ref(i) for i, key in enumerate(index.keys())}
    model, _ = load_model(run)
    good = rows[rows.z.notna()]
    for (key, at), part in good.groupby(["key", "window_s"]):
        # The clip that an evaluation would read there, as long as the model's clips where the video is.
        frames = min(config.data.clip.frames, states[key] * each - round(at * 4))
        clip = config.data.clip.model_copy(update={"frames": frames})
        while len(part):
            past = int(part.past.iloc[0]) if causality != "block_causal" else 0
            start = at + past * each / 4
            clip = clip.model_copy(update={"frames": min(frames, states[key] * each - round(start * 4))})
            found = decode_clip(ref[key], start, clip, config.data.limits)
            with torch.no_grad():
                z = model.infer(model.state_norm(model.encode(torch.from_numpy(found.frames_FCHW)[None]))).z_BTZ
            assert z is not None
            own = part[part.past - past < z.shape[1]]
            expected = z[0].numpy()[(own.past - past).to_numpy(int)]
            np.testing.assert_allclose(np.stack(own.z.tolist()), expected, atol=2e-5)
            shown = found.seconds_F[::each][(own.past - past).to_numpy(int)]
            np.testing.assert_array_equal(own.shown_s.to_numpy(float), shown)
            part = part[part.past - past >= z.shape[1]]
    # No transition has less past than it could have, or than half a clip's.
    least = np.minimum(good.transition.astype(int), 3 if causality == "block_causal" else 0)
    assert (good.past.astype(int) >= least).all()
    np.testing.assert_allclose(good.next_s - good.time_s, each / 4)
    assert ((good.shown_s - good.time_s).abs() < 0.125).all()


@pytest.mark.ray
def test_what_evaluations_see_of_a_clip_is_in_the_table(
    ray_cluster: Session, small_set: SmallSet, tmp_path: Path
) -> None:
    """Of every kind of bottleneck, with all that it says; from videos and from a cache."""
    cached = tmp_path / "cache"
    encode_index(tiny_with(data__index=small_set.index), str(cached))
    for kind in ("sparse", "noisy", "adaptive", "discrete", "none"):
        config = tiny_kind(kind, data__index=small_set.index, train__seed=1)
        run = trained(tmp_path / kind, config)
        rows = in_this_process(plan_latents(config, run)).set_index(["key", "transition"])
        assert len(rows) == 12 * 11 and rows.reason.isna().all()
        model, _ = load_model(run)
        reader = ClipReader(config, "val")
        found = [reader.sample(position) for position in range(min(len(reader.plan), 4))]
        clips = Clips(model, collate(found), [s.group for s in found])
        with torch.no_grad():
            latents, z = model.infer(clips.states), clips.z
        for b, sample in enumerate(found):
            own = rows.loc[[(sample.key, round(sample.start_s * 4) + t) for t in range(config.data.clip.frames - 1)]]
            np.testing.assert_allclose(np.stack(own.z.tolist()), z[b].numpy(), atol=2e-5)  # type: ignore[index]
            for name, values in (("nats", latents.rate_BT), ("code", latents.code_BT)):
                if values is None:
                    assert own[name].isna().all()
                else:
                    np.testing.assert_allclose(own[name].to_numpy(float), values[b].numpy(), rtol=1e-4)
        assert rows.spread.notna().all() == (kind in ("noisy", "adaptive")) and rows.code.notna().all() == (
            kind == "discrete"
        )
        if kind in ("noisy", "discrete"):
            from_states = override(override(config, "data.cache", str(cached)), "data.index", None)
            other = in_this_process(plan_latents(from_states, run)).set_index(["key", "transition"])
            assert (other.index == rows.index).all() and other.shown_s.isna().all()
            difference = np.abs(np.stack(other.z.tolist()) - np.stack(rows.z.tolist())).max(axis=1)
            assert np.quantile(difference, 0.9) < 5e-3  # states are held in float16


class Stopped(Exception):
    pass


@pytest.mark.ray
def test_a_run_that_is_stopped_goes_on_and_makes_each_window_once(
    ray_cluster: Session, long_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_with(data__index=long_set)
    run = trained(tmp_path / "run", config)
    monkeypatch.setattr(latents, "LONGEST_FRAMES", 5)
    monkeypatch.setattr(latents, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(latents, "ROWS_A_PART", 24)
    job = plan_latents(config, run)
    whole = write_latents(job, str(tmp_path / "whole"))
    assert len(list((tmp_path / "whole/transitions").iterdir())) > 3

    def stop(done: int, total: int) -> None:
        if done > 60:
            raise Stopped

    out = tmp_path / "out"
    with pytest.raises(Stopped):
        write_latents(job, str(out), stop)
    parts = {path.name: path.stat().st_mtime_ns for path in (out / "transitions").iterdir()}
    kept = len(table_of(out))
    assert 40 < kept < len(table_of(tmp_path / "whole"))
    (out / "transitions" / max(parts)).unlink()  # lost, and another half written
    (out / "transitions/.part-9.parquet.1.1.tmp").write_bytes(b"half")
    report = write_latents(job, str(out))
    left = {path.name: path.stat().st_mtime_ns for path in (out / "transitions").iterdir()}
    assert dict(parts.items() - {max(parts): parts[max(parts)]}.items()).items() <= left.items()
    assert report.kept > 0 and report.transitions == whole.transitions
    a, b = (
        table_of(tmp_path / name).sort_values(["key", "transition"]).reset_index(drop=True) for name in ("whole", "out")
    )
    pd.testing.assert_frame_equal(a, b, atol=1e-5)
    again = write_latents(job, str(out))
    assert again.kept == whole.transitions and again.per_second == 0
    other = dataclasses.replace(job, about=job.about | {"model": "another"})
    with pytest.raises(LawmError, match=r"was made with other settings .*model = .* there, 'another' now"):
        write_latents(other, str(out))


@pytest.mark.ray
def test_a_damaged_part_of_a_video_costs_what_it_damages(
    ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gap of two seconds in the midst of a video, and a video that is cut short after it was indexed."""
    (tmp_path / "v").mkdir()
    times = [i / 10 for i in range(200)]
    write_video(tmp_path / "v/gap.mp4", 200, times=[t if t < 9 else t + 2 for t in times], gop=10)
    write_video(tmp_path / "v/whole.mp4", 40, rate=10, gop=10)
    write_video(tmp_path / "v/cut.mp4", 40, rate=10, gop=10)
    config = tiny_with(data__index=index_folder(tmp_path / "v", tmp_path / "index.parquet"), data__val_fraction=0.0)
    run = trained(tmp_path / "run", config)
    (tmp_path / "v/cut.mp4").write_bytes((tmp_path / "v/cut.mp4").read_bytes()[:300])
    arguments = ["--checkpoint", run, "--index", str(tmp_path / "index.parquet"), "--out", str(tmp_path / "out")]
    assert lawm.main(["latents", *arguments]) == 0
    said = capsys.readouterr().out
    rows = table_of(tmp_path / "out")
    gap = rows[rows.key == "gap.mp4"]
    lost = gap[gap.reason.notna()]
    assert gap.transition.tolist() == list(range(len(gap))) and len(gap) > 80
    hidden = gap[(gap.next_s > 9.1) & (gap.time_s < 10.8)]
    assert set(hidden.transition) <= set(lost.transition) and len(lost) <= len(hidden) + 2 * config.data.clip.frames
    assert lost.reason.str.startswith("bad_timestamps: ").all() and lost.z.isna().all()
    cut = rows[rows.key == "cut.mp4"]
    assert len(cut) == 15 and cut.reason.notna().all()
    assert f"without a latent, with their reason: {len(lost) + 15} transitions, 0 videos" in said
    assert f"refused: bad_timestamps {len(lost)}" in said
    assert rows[rows.key == "whole.mp4"].z.notna().all()


def test_what_cannot_be_asked_for(
    small_set: SmallSet, long_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_with(data__index=small_set.index)
    twin = trained(tmp_path / "twin", override(config, "model.bottleneck.kind", "deterministic"))
    run = trained(tmp_path / "run", config)

    def refused(*arguments: str) -> str:
        assert lawm.main(["latents", "--out", str(tmp_path / "out"), *arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "Traceback" not in said
        return said

    assert "a deterministic model infers no latent actions" in refused("--checkpoint", twin)
    assert "--past 2: this encoder's states do not depend on earlier" in refused("--checkpoint", run, "--past", "2")
    assert "--past -1: expected 0 or more" in refused("--checkpoint", run, "--past", "-1")
    assert "data.keys" not in refused("--checkpoint", run, "--set", "data.keys=nothing*")
    long = index_of_short_videos(tmp_path, small_set)
    assert "none of 12 videos has a transition; the first: too_short" in refused("--checkpoint", run, "--index", long)
    assert lawm.main(["latents", "--checkpoint", run, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "transitions: 132" in capsys.readouterr().out and not (tmp_path / "out").exists()
    past = plan_latents(looking_back(long_set), trained(tmp_path / "back", looking_back(long_set)), 6)
    assert (past.plan.cut.past, past.plan.cut.states) == (6, 8)


def index_of_short_videos(root: Path, small_set: SmallSet) -> str:
    table = pq.read_table(small_set.index)
    at = table.column_names.index("duration_s")
    pq.write_table(table.set_column(at, "duration_s", pa.array([0.2] * len(table))), root / "short.parquet")
    return str(root / "short.parquet")
