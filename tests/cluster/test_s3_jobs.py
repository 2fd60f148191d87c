"""Every job with all that it reads and writes on S3, on a server that checks signatures; data sets on another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from data_sets import LENGTHS, droid_raw, lerobot, recon_folder
from made_videos import write_video

from benchmarks._servers import KEY, SECRET, rclone
from jobs.__main__ import main
from lawm.cluster.session import Session
from lawm.data import read_index

JOBS = """
import sys
from jobs.__main__ import main
from lawm.cluster.session import start

if __name__ == "__main__":
    tiny = ["--recipe", "tiny"]
    b = "s3://bucket"
    with start(num_cpus=4, object_store_bytes=200 * 2**20):
        for argv in (
            ["index", f"{b}/videos", "--out", f"{b}/index.parquet"],
            ["inspect", f"{b}/index.parquet", "--out", f"{b}/inspect.html", "--clips", "2", *tiny],
            ["prepare", f"{b}/index.parquet", "--out", f"{b}/prepared", *tiny],
            ["encode", "--index", f"{b}/prepared/index.parquet", "--out", f"{b}/cache", *tiny],
            # More checkpoints than failures are forgiven: none may end the workers.
            ["train", "--cache", f"{b}/cache", "--out", f"{b}/run", *tiny, "--set", "train.steps=12",
             "--set", "train.checkpoint_every=2", "--set", "train.keep=10", "--set", "cluster.max_failures=0"],
            ["evaluate", "--checkpoint", f"{b}/run", "--cache", f"{b}/cache", "--out", f"{b}/results.json",
             "--set", "evaluate.split=all"],
            ["report", "--checkpoint", f"{b}/run", "--results", f"{b}/results.json", "--out", f"{b}/report.html"],
        ):
            print("----", *argv, flush=True)
            if main(argv):
                sys.exit(1)
"""


def test_every_job_from_s3_to_s3(tmp_path: Path) -> None:
    (tmp_path / "store/bucket/videos").mkdir(parents=True)
    for i in range(6):
        write_video(tmp_path / f"store/bucket/videos/{i}.mp4", 90 + 10 * i, gop=30)
    (tmp_path / "jobs_on_s3.py").write_text(JOBS)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_ADDRESS"))}
    root = str(Path(__file__).parents[2])
    environment |= {"PYTHONPATH": root, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with rclone(tmp_path / "store") as url:
        environment |= {"AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": "us-east-1"}
        asked = [sys.executable, str(tmp_path / "jobs_on_s3.py")]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=550, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    there = tmp_path / "store/bucket"
    assert len(json.loads((there / "results.json").read_text())["results"]) > 3
    assert "<html" in (there / "report.html").read_text() and "<html" in (there / "inspect.html").read_text()
    saved = sorted(path.parent.name for path in (there / "run").glob("step_*/checkpoint.json"))
    assert saved == [f"step_{step:08d}" for step in range(2, 13, 2)]
    assert list((there / "cache").glob("*.arrow")) and list((there / "prepared").glob("*.tar"))
    assert [path.name for path in tmp_path.iterdir() if "s3" in path.name] == ["jobs_on_s3.py"]  # no folder named s3:


@pytest.mark.ray
def test_data_sets_on_s3(ray_cluster: Session, s3: str, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket="data-sets")
    lerobot(tmp_path / "lerobot")
    droid_raw(tmp_path / "droid/LAB/success/day/one", 60, 59)
    recon_folder(tmp_path / "recon/t0", 20, 20)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "data-sets", str(path.relative_to(tmp_path)))
    for kind, frames in (("lerobot", list(LENGTHS)), ("droid", [59]), ("recon", [20])):
        assert main(["dataset", kind, f"s3://data-sets/{kind}", "--out", f"s3://data-sets/out-{kind}"]) == 0
        index = read_index(f"s3://data-sets/out-{kind}/index.parquet")
        assert index.table["frames"].to_pylist() == frames and not index.reasons()
        assert all(version is not None for version in index.table["version"].to_pylist())
