"""Every clip of an epoch is trained on once, none lost, none twice, through kill -9 of any process of a run and
another number of workers; read from the log of clips and compared with the plan."""

import json
import os
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
from small_runs import index_folder, tiny_with

from jobs import train
from lawm.checkpoint import newest_checkpoint, step_of
from lawm.clip_log import read_clip_log
from lawm.clips import MixedReader, open_reader
from lawm.cluster.fit import fit
from lawm.cluster.session import Session
from lawm.config import Config, differing_fields
from lawm.recipes import tiny

ROOT = Path(__file__).parent.parent
BAD = "03.mp4"
STEPS, BATCH = 60, 8


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> str:
    """The index of ten videos, one of which broke after it was indexed. They take some time to decode, so that decode
    workers are still at it when they are killed."""
    root = tmp_path_factory.mktemp("once")
    for i in range(10):
        make_video(root / "videos" / f"{i:02d}.mp4", size=(256, 192), gop=30, seed=i)
    where = index_folder(root / "videos", root / "index.parquet")
    broken = root / "videos" / BAD
    broken.write_bytes(bytes(broken.stat().st_size))
    return where


def config_of(index: str, **more: Any) -> Config:
    """An epoch is 400 clips, 40 of them refused: 45 of the 60 steps."""
    return tiny_with(
        data__index=index,
        data__clips_per_video=40,
        data__val_fraction=0.0,
        data__max_bad_fraction=0.5,
        train__steps=STEPS,
        train__batch=BATCH,
        train__log_every=1,
        train__checkpoint_every=10,
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


def test_decode_and_training_workers_are_killed(ray_cluster: Session, videos: str, tmp_path: Path) -> None:
    config = config_of(videos, cluster__workers=2, cluster__max_failures=1)
    killed: dict[str, int] = {}

    def watch(figures: dict[str, Any]) -> None:
        for name, after in (("decode_rows", 1), ("RayTrainWorker", 25)):
            if name not in killed and after <= figures["step"] and kill_one(name):
                killed[name] = figures["step"]

    run = str(tmp_path / "run")
    fit(config, "latent_action", run, progress=watch)
    assert set(killed) == {"decode_rows", "RayTrainWorker"} and max(killed.values()) < STEPS, killed
    log = check_once(run, config, epoch=400)
    assert set(log["rank"].to_pylist()) == {0, 1}


def command(config: Config, run: Path, *more: str) -> list[str]:
    settings = differing_fields(tiny(), config)
    argv = ["--recipe", "tiny", "--out", str(run), *more]
    return argv + [part for name, (_, value) in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def killed_at(argv: Sequence[str], run: Path, step: int, log: Path, address: str = "") -> int:
    """Runs `lawm train` until there is a checkpoint of `step` or a later one, and kills it; the step it was at."""
    with open(log, "w") as said:
        asked = [sys.executable, "-m", "jobs", "train", *argv]
        env = os.environ | {"RAY_ADDRESS": address}
        child = subprocess.Popen(asked, cwd=ROOT, env=env, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while (at := step_of(newest_checkpoint(str(run)) or "") or 0) < step:
                assert child.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return at


def test_the_driver_is_killed_and_the_number_of_workers_changes(
    ray_cluster: Session, videos: str, tmp_path: Path
) -> None:
    """The same command again at once, while Ray still ends the dead driver's workers: with 1, 2, and 1 of them."""
    config, run = config_of(videos, cluster__max_failures=0), tmp_path / "run"
    argv = command(config, run)
    for workers, step in ((1, 10), (2, 30)):
        asked = [*argv, "--set", f"cluster.workers={workers}"]
        assert killed_at(asked, run, step, tmp_path / f"log{workers}", ray_cluster.address) < STEPS
    assert train.main(argv) == 0
    log = check_once(str(run), config, epoch=400)
    ranks = [set(log.filter(pc.equal(log["step"], step))["rank"].to_pylist()) for step in range(1, STEPS + 1)]
    assert ranks[0] == ranks[-1] == {0} and {0, 1} in ranks
