"""Several nodes on one machine, with the labels of cluster.yaml: what runs where, and what a lost node costs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from made_videos import write_video
from small_runs import index_folder, losses

from benchmarks._nodes import ROOT, Nodes
from benchmarks._servers import KEY, SECRET, FaultProxy, rclone, wait_for
from jobs import __main__ as lawm
from lawm.cluster.session import DECODE
from lawm.data import Cursor

pytestmark = pytest.mark.xdist_group("nodes")  # one cluster for the file
LABELS = ["--recipe", "tiny", "--set", "cluster.use_labels=true", "--set", "cluster.max_failures=0"]
VIDEOS = 24
FAR_S = 0.06
"""What the way to the videos takes for each request: decoding then waits, as it does for S3, instead of computing."""


@pytest.fixture(scope="module")
def far_away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of videos that is also s3://bucket/videos, for every process that starts now."""
    folder = tmp_path_factory.mktemp("bucket")
    (folder / "bucket/videos").mkdir(parents=True)
    for i in range(VIDEOS):
        write_video(folder / f"bucket/videos/{i:02d}.mp4", 90, width=96, height=64, gop=30)
    with rclone(folder) as url, pytest.MonkeyPatch.context() as patch:
        where = urlsplit(url)
        proxy = FaultProxy((str(where.hostname), int(where.port or 0)), delay_s=FAR_S)
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield folder / "bucket/videos"
        proxy.close()


@pytest.fixture(scope="module")
def nodes(far_away: Path) -> Iterator[Nodes]:
    """A train node and, at first, nothing else."""
    soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
    with Nodes(dashboard=True, system=soon) as made:
        yield made


def start_job(nodes: Nodes, *argv: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *argv],
        cwd=ROOT,
        env=os.environ | nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_job(nodes: Nodes, *argv: str) -> tuple[int, str, str]:
    with start_job(nodes, *argv) as job:
        out, err = job.communicate(timeout=400)
    return job.returncode, out, err


def training(index: Path, run: Path, steps: int) -> list[str]:
    settings = {"train.steps": steps, "train.checkpoint_every": steps, "train.log_every": 5, "train.batch": 8}
    settings |= {"data.val_fraction": 0}  # the training worker reads those by itself, one after the other
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["train", *LABELS, *sets, "--index", str(index), "--out", str(run)]


def places(tasks: list[dict[str, Any]], name: str) -> list[str]:
    """The nodes of the tasks of that name, those not placed yet left out."""
    return [task["node_id"] for task in tasks if name in task["name"] and task["node_id"]]


@pytest.mark.slow  # test_session.py has the same of a Ray without labels
def test_no_decode_node_is_said_in_one_line(nodes: Nodes, far_away: Path, tmp_path: Path) -> None:
    code, out, err = run_job(nodes, "index", *LABELS, str(far_away), "--out", str(tmp_path / "index.parquet"))
    assert code == 2 and not out and err.count("\n") == 1, err
    assert "too little room in the cluster for 1 x probe task" in err
    assert "labelled lawm-role=decode" in err and "lawm-role=train" in err and "cluster.use_labels=false" in err


@pytest.mark.slow  # two minutes; that labels are asked for: test_session.py
def test_decoding_stays_on_decode_nodes_even_when_one_is_lost(nodes: Nodes, far_away: Path, tmp_path: Path) -> None:
    local, remote = tmp_path / "local.parquet", tmp_path / "remote.parquet"
    lost, kept = nodes.add(DECODE, 2), nodes.add(DECODE, 2)
    code, _, err = run_job(nodes, "index", *LABELS, "s3://bucket/videos/", "--out", str(remote))
    assert code == 0, err
    assert set(places(nodes.tasks(), "_probe_chunk")) == {lost, kept}

    steps = 30
    with start_job(nodes, *training(remote, tmp_path / "run", steps)) as job:
        assert wait_for(lambda: lost in places(nodes.tasks(), "decode_rows"), 300)
        time.sleep(1.0)  # let it yield some clips, and keep it in the middle of others
        assert job.poll() is None
        nodes.kill(lost)
        came = nodes.add(DECODE, 2)
        err = job.communicate(timeout=400)[1]
    assert job.returncode == 0, err
    decoded = [task for task in nodes.tasks() if "decode_rows" in task["name"]]
    assert {task["node_id"] for task in decoded if task["node_id"]} == {lost, kept, came}
    assert any(task["state"] == "FAILED" for task in decoded if task["node_id"] == lost)
    assert set(places(nodes.tasks(), "run_train_fn")) == {nodes.head}

    # Each clip once and right: the same losses as a run in plain Python over the same files.
    index_folder(far_away, local)
    assert lawm.main([*training(local, tmp_path / "plain", steps), "--plain"]) == 0
    assert losses(str(tmp_path / "run")) == pytest.approx(losses(str(tmp_path / "plain")), rel=1e-4)
    cursor = json.loads(next((tmp_path / "run").glob("step_*/checkpoint.json")).read_text())["cursor"]
    assert Cursor.from_json(cursor) == Cursor(8 * steps)
