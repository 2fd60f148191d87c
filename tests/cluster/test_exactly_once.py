"""Every clip of an epoch is trained on once, none lost, none twice, through kill -9 of any process of a run and
another number of workers; read from the log of clips and compared with the plan."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from small_runs import index_folder, losses, tiny_with

from jobs import train
from lawm.cluster.fit import fit
from lawm.cluster.ingest import clip_dataset, streamed_batches
from lawm.cluster.session import Session
from lawm.config import Config, LawmError, differing_fields, override
from lawm.data import Cursor, open_reader
from lawm.data.clips import MixedReader
from lawm.recipes import tiny
from lawm.training import load_checkpoint, newest_checkpoint
from lawm.training.checkpoint import claim_run, step_of
from lawm.training.clip_log import read_clip_log

ROOT = Path(__file__).parents[2]
BAD = "03.mp4"
STEPS, BATCH, EPOCH = 36, 8, 240


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> str:
    """They take some time to decode, so that decode workers are still at it when they are killed."""
    return write_set(tmp_path_factory.mktemp("once"), make_video, size=(256, 192), gop=30)


@pytest.fixture(scope="module")
def light_videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> str:
    return write_set(tmp_path_factory.mktemp("light"), make_video)


def write_set(root: Path, make_video: Callable[..., Path], **how: Any) -> str:
    """The index of ten videos, one of which broke after it was indexed."""
    for i in range(10):
        make_video(root / "videos" / f"{i:02d}.mp4", seed=i, **how)
    where = index_folder(root / "videos", root / "index.parquet")
    broken = root / "videos" / BAD
    broken.write_bytes(bytes(broken.stat().st_size))
    return where


def config_of(index: str | None, **more: Any) -> Config:
    """An epoch is 240 clips, 24 of them refused: 27 of the 36 steps."""
    return tiny_with(
        data__index=index,
        data__clips_per_video=24,
        data__val_fraction=0.0,
        data__max_bad_fraction=0.5,
        train__steps=STEPS,
        train__batch=BATCH,
        train__log_every=1,
        train__checkpoint_every=6,
        train__log_clips=True,
        **more,
    )


def check_once(run: str, config: Config, epoch: int) -> pa.Table:
    """The log against the plan, clip by clip."""
    log = read_clip_log(run)
    reader = open_reader(config, "latent_action")
    position, refused = log["position"].to_numpy(), np.array(log["refused"])
    assert np.bincount(position).max() == 1, "a clip was used twice"
    assert np.setdiff1d(np.arange(epoch), position).tolist() == [], "clips of the epoch were lost"
    step = log["step"].to_numpy()
    assert step.max() == config.train.steps and not np.array(log["skipped"]).any()
    assert np.bincount(step[~refused])[1:].tolist() == [config.train.batch] * config.train.steps
    # What was read at a position is what the plan has there.
    found = list(zip(log["key"].to_pylist(), log["start_s"].to_pylist(), strict=True))
    assert found == [planned(reader, p) for p in position.tolist()]
    assert {key for (key, _), bad in zip(found, refused, strict=True) if bad} == {BAD}
    assert not any(key == BAD for (key, _), bad in zip(found, refused, strict=True) if not bad)
    refusals = [json.loads(line) for line in Path(run, "quarantine.jsonl").read_text().splitlines()]
    assert all(row["key"] == BAD and row["reason"] and row["message"] for row in refusals)
    listed = [row["position"] for row in refusals]
    assert len(listed) == len(set(listed)), "a refused clip is listed twice"
    # Clips are read ahead of the last step: some that are listed were not consumed.
    assert set(position[refused].tolist()) == set(listed) & set(position.tolist()), "refused, and not listed"
    return log


def planned(reader: Any, position: int) -> tuple[str, float]:
    if isinstance(reader, MixedReader):
        source, local = reader.plan.locate([position])
        return planned(reader.readers[int(source[0])], int(local[0]))
    rows = reader.plan.rows([position])
    return reader.index.ref(int(rows.video[0])).key, float(rows.start_s[0])


def below_this_process(named: str) -> list[int]:
    """Processes that this one started, or theirs did, by a part of the title that Ray gives them."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # ended meanwhile
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid, title in titles.items() if title.startswith("ray::") and named in title and ours(pid)]


def kill_one(named: str) -> bool:
    """SIGKILL for a process of that title, if there is one."""
    found = below_this_process(named)
    if found:
        os.kill(found[-1], signal.SIGKILL)
    return bool(found)


@pytest.mark.slow  # two minutes; a killed driver, below, goes the same way back
def test_decode_and_training_workers_are_killed(ray_cluster: Session, videos: str, tmp_path: Path, capfd) -> None:
    config = config_of(videos, cluster__workers=2, cluster__max_failures=1)
    killed: dict[str, int] = {}

    def watch(figures: dict[str, Any]) -> None:
        for name, after in (("decode_rows", 1), ("RayTrainWorker", 15)):
            if name not in killed and after <= figures["step"] and kill_one(name):
                killed[name] = figures["step"]

    run = str(tmp_path / "run")
    fit(config, "latent_action", run, progress=watch)
    assert set(killed) == {"decode_rows", "RayTrainWorker"} and max(killed.values()) < STEPS, killed
    log = check_once(run, config, epoch=EPOCH)
    assert set(log["rank"].to_pylist()) == {0, 1} and list(losses(run)) == [*range(1, STEPS + 1)]
    # No restart in silence: on the terminal and in the run folder, with the step and the reason.
    said = capfd.readouterr().err
    (told,) = [json.loads(line) for line in Path(run, "events.jsonl").read_text().splitlines()]
    assert told["event"] == "restart" and told["number"] == 1 and 12 <= told["step"] < STEPS
    assert re.match(r"worker \d: .*actor died", told["reason"]), told["reason"]
    assert f"lawm: training was started again at step {told['step']}" in said and told["reason"] in said


def command(config: Config, run: Path, *more: str) -> list[str]:
    """Arguments of `lawm train` for that config."""
    asked = config.model_dump(mode="json")
    argv = ["--recipe", "tiny", "--out", str(run), *more]
    for name in differing_fields(tiny(), config):
        value = functools.reduce(lambda part, key: part[key], name.split("."), asked)
        argv += ["--set", f"{name}={json.dumps(value)}"]
    return argv


def killed_at(argv: Sequence[str], run: Path, step: int, log: Path, address: str = "") -> int:
    """Runs `lawm train` until there is a checkpoint of `step` or a later one, and kills it; the step it was at."""
    with open(log, "w") as said:
        asked = [sys.executable, "-m", "jobs", "train", *argv]
        env = os.environ | {"RAY_ADDRESS": address}
        child = subprocess.Popen(asked, cwd=ROOT, env=env, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + 400
            while (at := step_of(newest_checkpoint(str(run)) or "") or 0) < step:
                assert child.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return at


@pytest.mark.slow  # a plain run that is killed: below
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    ray_cluster: Session, light_videos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of the whole driver; what follows is what the uninterrupted run did."""
    config, run = config_of(light_videos, cluster__max_failures=0), tmp_path / "run"
    argv = command(config, run)
    at = killed_at(argv, run, 6, tmp_path / "log", ray_cluster.address)
    assert at < STEPS, "the run was over before the kill"
    wait_until_still(run / "metrics.jsonl")

    capsys.readouterr()
    assert train.main(argv) == 0
    assert f"checkpoint: {run}/step_{STEPS:08d}" in capsys.readouterr().out
    check_once(str(run), config, epoch=EPOCH)
    whole = str(tmp_path / "whole")
    assert train.main(command(config, Path(whole), "--plain")) == 0
    assert losses(str(run)) == pytest.approx(losses(whole), rel=1e-4)
    end, want = load_checkpoint(str(run)), load_checkpoint(whole)
    for name, weight in end.weights.items():
        np.testing.assert_allclose(weight.float(), want.weights[name].float(), rtol=1e-2, atol=1e-3, err_msg=name)
    # The same run folder under another config is refused in one line.
    assert train.main([*argv, "--set", "train.batch=4"]) == 2
    assert "holds a run of another config" in capsys.readouterr().err


def wait_until_still(file: Path) -> None:
    """Ray ends a dead driver's workers; what they still write counts."""
    before, quiet = "", 0
    while quiet < 8:
        now = file.read_text()
        before, quiet = now, quiet + 1 if now == before else 0
        time.sleep(0.25)


@pytest.mark.slow
def test_the_driver_is_killed_twice_and_the_number_of_workers_changes(
    ray_cluster: Session, light_videos: str, tmp_path: Path
) -> None:
    """The same command again at once, with 1, 2, and 1 workers. At the second kill the first checkpoints are pruned."""
    config, run = config_of(light_videos, cluster__max_failures=0), tmp_path / "run"
    argv = command(config, run)
    for workers, step in ((1, 6), (2, 24)):
        asked = [*argv, "--set", f"cluster.workers={workers}"]
        assert killed_at(asked, run, step, tmp_path / f"log{workers}", ray_cluster.address) < STEPS
    assert train.main(argv) == 0
    log = check_once(str(run), config, epoch=EPOCH)
    ranks = [set(log.filter(pc.equal(log["step"], step))["rank"].to_pylist()) for step in range(1, STEPS + 1)]
    assert ranks[0] == ranks[-1] == {0} and {0, 1} in ranks


def test_a_plain_run_on_a_mixture_is_killed(light_videos: str, tmp_path: Path) -> None:
    """An epoch is a thousand positions, in which the second source has gone through its clips three times."""
    mixture = [
        {"index": light_videos, "keys": keys, "weight": weight} for keys, weight in (("0[0-4]*", 1), ("0[5-9]*", 3))
    ]
    config = config_of(None, data__mixture=mixture, data__clip__size=16)
    config = override(override(config, "train.batch", 32), "train.steps", 35)
    run = tmp_path / "run"
    argv = command(config, run, "--plain")
    at = killed_at(argv, run, 10, tmp_path / "log")
    assert at < 35 and train.main(argv) == 0
    log = check_once(str(run), config, epoch=1000)
    source = np.array([key < "05" for key in log["key"].to_pylist()])
    assert np.bincount(source[log["position"].to_numpy().argsort()][:1000]).tolist() == [750, 250]


def test_clips_that_the_data_set_has_too_much_are_left_out(ray_cluster: Session, light_videos: str) -> None:
    """It was built from an older checkpoint than the one that the workers then found."""
    config = config_of(light_videos)
    stale = clip_dataset(config, "latent_action", Cursor(), 60)
    stream: Any = streamed_batches(stale.iterator(), BATCH, Cursor(17, (19, 20, 33)), 0.5, None)
    used = [clip.position for _ in range(4) for clip in next(stream).clips]
    stream.close()
    assert len(set(used)) == len(used) and min(used) == 17
    assert set(used) >= set(Cursor(17, (19, 20, 33)).remaining(32).tolist()) and not {19, 20, 33} & set(used)


def test_a_second_command_on_the_same_run_ends_the_first(ray_cluster: Session, videos: str, tmp_path: Path) -> None:
    config, run = config_of(videos, cluster__workers=0), str(tmp_path / "run")

    def second(figures: dict[str, Any]) -> None:
        if 6 <= figures["step"] < 12 and not took:
            took.append(claim_run(run))

    took: list[str] = []
    with pytest.raises(LawmError, match="another process trains this run now"):
        fit(config, "latent_action", run, progress=second)
    assert took and (step_of(newest_checkpoint(run) or "") or 0) < STEPS
    read_clip_log(run)
