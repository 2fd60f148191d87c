"""The log of clips: what it holds, what its reader refuses, and whose a run folder is. In plain Python; the kills are
in test_exactly_once.py."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import SmallSet, losses_of, made_batches, spoiled_config, tiny_with

from lawm.config import Config, LawmError, override
from lawm.data import ClipId, Cursor, open_reader
from lawm.training import ClipBatch, RunTaken, checkpoint_name, fit_local, fit_population_local, load_checkpoint
from lawm.training.checkpoint import checkpoint_folders, claim_run
from lawm.training.clip_log import read_clip_log


def logged(small_set: SmallSet, **more: object) -> Config:
    settings = {"train__steps": 6, "train__checkpoint_every": 3, "train__log_every": 1, "train__log_clips": True}
    return tiny_with(data__index=small_set.index, **settings | more)


def names(run: str | Path) -> list[str]:
    return sorted(path.name for path in Path(run, "clips").iterdir())


def test_a_file_for_each_checkpoint_says_what_was_read(small_set: SmallSet, tmp_path: Path) -> None:
    config, run = logged(small_set), str(tmp_path / "run")
    fit_local(config, "latent_action", run)
    assert names(run) == ["step-00000003.parquet", "step-00000006.parquet"]
    log = read_clip_log(run)
    assert log.column_names == ["step", "rank", "position", "key", "start_s", "refused", "skipped"]
    assert log["step"].to_pylist() == [step for step in range(1, 7) for _ in range(4)]
    assert log["position"].to_pylist() == list(range(24)) and set(log["rank"].to_pylist()) == {0}
    reader = open_reader(config, "latent_action")
    for key, start_s, position in zip(*(log[n].to_pylist() for n in ("key", "start_s", "position")), strict=True):
        sample = reader.sample(position)
        assert (key, start_s) == (sample.key, sample.start_s)
    assert read_clip_log(run, ["refused"]).column_names == ["position", "refused"]
    # The losses are those of a run without the log, which writes none.
    bare = str(tmp_path / "bare")
    fit_local(override(config, "train.log_clips", False), "latent_action", bare)
    assert load_checkpoint(bare).fingerprint == load_checkpoint(run).fingerprint
    assert not Path(bare, "clips").exists()
    with pytest.raises(LawmError, match=r"no log of clips there; train with --set train\.log_clips=true"):
        read_clip_log(bare)
    with pytest.raises(LawmError, match="no checkpoint there"):
        read_clip_log(str(tmp_path / "nowhere"))
    # A log that began in the middle would be no history.
    with pytest.raises(LawmError, match=r"train\.log_clips = False there, True now"):
        fit_local(config, "latent_action", bare)


def test_the_reader_tells_what_came_twice_and_what_is_missing(small_set: SmallSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit_local(logged(small_set), "latent_action", str(run))
    last = run / "clips" / "step-00000006.parquet"
    rows = pq.read_table(last)
    # What a killed process logged for a checkpoint that never was has no weights.
    pq.write_table(rows, run / "clips" / "step-00000009.parquet")
    assert len(read_clip_log(str(run))) == 24
    pq.write_table(pa.concat_tables([rows, rows.slice(2, 1)]), last)
    with pytest.raises(LawmError, match=r"1 clips were consumed twice; the first: position 14 \(steps \[4, 4\]\)"):
        read_clip_log(str(run))
    pq.write_table(rows.slice(1), last)
    with pytest.raises(LawmError, match="of 24 clips that the checkpoint has consumed, 1 are not in the log, and 0 o"):
        read_clip_log(str(run))
    moved = rows.set_column(2, "position", pa.array(np.array(rows["position"]) + 1))
    pq.write_table(moved, last)
    with pytest.raises(LawmError, match="1 are not in the log, and 1 others are"):
        read_clip_log(str(run))


def test_a_resumed_run_forgets_what_never_reached_a_checkpoint(small_set: SmallSet, tmp_path: Path) -> None:
    config, run = logged(small_set, train__steps=9), tmp_path / "run"
    fit_local(config, "latent_action", str(run))
    # As if it had been killed between the log of step 9 and its checkpoint; then it saves at other steps.
    shutil.rmtree(run / checkpoint_name(9))
    fit_local(override(config, "train.checkpoint_every", 8), "latent_action", str(run))
    assert names(run) == [f"step-0000000{n}.parquet" for n in (3, 6, 8, 9)]
    assert read_clip_log(str(run))["position"].to_pylist() == list(range(36))
    shutil.rmtree(run / checkpoint_name(9))
    (run / "clips" / "step-00000009.parquet").rename(run / "clips" / "step-00000010.parquet")
    fit_local(config, "latent_action", str(run))
    assert names(run)[-1] == "step-00000009.parquet" and len(read_clip_log(str(run))) == 36


def test_clips_of_a_skipped_step_are_said(tmp_path: Path) -> None:
    config = override(spoiled_config(), "train.log_clips", True)

    def batches(cursor: Cursor) -> Iterator[ClipBatch]:
        for batch in made_batches(config, spoil=(8,))(cursor):
            yield replace(batch, clips=tuple(ClipId(p, f"{p}.mp4", 0.0, False) for p in batch.positions_B.tolist()))

    losses_of(config, tmp_path, batches=batches)
    log = read_clip_log(str(tmp_path))
    assert log.filter(log["skipped"])["position"].to_pylist() == list(range(8, 16)) and len(log) == 24


def test_members_of_a_population_have_one_history(small_set: SmallSet, tmp_path: Path) -> None:
    base = logged(small_set, train__steps=9, train__keep=4)
    configs = [override(base, "model.bottleneck.beta", beta) for beta in (1e-2, 1e-5)]
    runs = [str(tmp_path / str(i)) for i in range(2)]
    fit_population_local(configs, runs)
    assert read_clip_log(runs[0]).equals(read_clip_log(runs[1]))
    # A kill between two members' checkpoints: the first is one ahead. Then they save at other steps.
    for run, steps in zip(runs, ((9,), (9, 6)), strict=True):
        for step in steps:
            shutil.rmtree(Path(run) / checkpoint_name(step))
    fit_population_local([override(config, "train.checkpoint_every", 4) for config in configs], runs)
    for run in runs:
        assert names(run) == [f"step-0000000{n}.parquet" for n in (3, 4, 8, 9)]
        assert [uri[-1] for uri in checkpoint_folders(run)] == ["3", "4", "8", "9"]
        assert read_clip_log(run)["position"].to_pylist() == list(range(36))


def test_the_log_of_a_run_on_s3(small_set: SmallSet, s3: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="clip-log")
    config, run = logged(small_set), "s3://clip-log/runs/one"
    fit_local(override(config, "train.steps", 3), "latent_action", f"{run}-short")
    fit_local(config, "latent_action", run)
    assert read_clip_log(run)["position"].to_pylist() == list(range(24))
    assert len(read_clip_log(f"{run}-short")) == 12


def test_a_run_has_one_writer(small_set: SmallSet, tmp_path: Path) -> None:
    config, run = logged(small_set), str(tmp_path / "run")

    def taken(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            claim_run(run)

    with pytest.raises(RunTaken, match="another process trains this run now"):
        fit_local(config, "latent_action", run, progress=taken)
    assert [uri[-1] for uri in checkpoint_folders(run)] == ["3"] and names(run) == ["step-00000003.parquet"]
    fit_local(config, "latent_action", run)  # the last to start is the one that goes on
    assert load_checkpoint(run).cursor == Cursor(24) and len(read_clip_log(run)) == 24
