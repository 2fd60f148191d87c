"""`lawm simulate`: what it writes, that it is the same however it is made, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import boto3
import numpy as np
import pytest
from moto import mock_aws

from jobs.simulate import main
from lawm import storage
from lawm.data import list_videos
from lawm.data.labels import read_labels

ROOT = Path(__file__).parents[2]
SMALL = ["--episodes", "5", "--shard-size", "2", "--states", "6", "--size", "64", "--seed", "7"]
FILES = ["labels.parquet", "pusht-000000.tar", "pusht-000001.tar", "pusht-000002.tar", "simulate.json"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulate") / "pusht"
    assert main(["--out", str(out), *SMALL]) == 0
    return out


def test_shards_and_labels_belong_together(made: Path) -> None:
    assert sorted(os.listdir(made)) == FILES
    refs = list(list_videos([str(made)]))
    labels = read_labels(str(made / "labels.parquet"))
    assert [ref.key for ref in refs] == labels.keys
    assert labels.keys[0] == "pusht-000000/ep_000000.mp4" and labels.keys[-1] == "pusht-000002/ep_000004.mp4"
    for ref in refs:
        with open(ref.source, "rb") as file:
            file.seek(ref.offset)
            data = file.read(ref.size)
        with tarfile.open(ref.source) as tar:
            name = ref.key.partition("/")[2]
            assert data == tar.extractfile(name).read()  # type: ignore[union-attr]
            info = json.load(tar.extractfile(name.replace(".mp4", ".json")))  # type: ignore[arg-type]
        of = labels.of(ref.key)
        assert of.rate_hz == 4.0 and of.actions.shape == (5, 2)
        assert of.states is not None and of.states.shape == (6, 5)
        np.testing.assert_array_equal(np.asarray(info["actions"], np.float32), of.actions)
        (copy := made.parent / "one.mp4").write_bytes(data)
        with av.open(str(copy)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 6 and frames[0].shape == (64, 64, 3)


def test_processes_and_a_rerun_give_the_same_bytes(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "parallel"
    assert main(["--out", str(out), *SMALL, "--processes", "2"]) == 0
    whole = content(made)
    assert content(out) == whole
    # As a kill leaves it: a shard lost, another cut short, no labels yet, a temporary file left behind.
    (out / "labels.parquet").unlink()
    (out / "pusht-000001.tar").unlink()
    (out / "pusht-000002.tar").write_bytes(whole["pusht-000002.tar"][:3000])
    kept = (out / "pusht-000000.tar").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["--out", str(out), *SMALL]) == 0
    assert "3 new" in capsys.readouterr().out
    assert content(out) == whole
    assert (out / "pusht-000000.tar").stat().st_mtime_ns == kept


def test_into_a_bucket(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="lawm-simulate")
        assert main(["--out", "s3://lawm-simulate/pusht", *SMALL]) == 0
        assert {name: storage.read_bytes(f"s3://lawm-simulate/pusht/{name}") for name in FILES} == content(made)
        assert main(["--out", "s3://lawm-nowhere/pusht", *SMALL]) == 2


def test_an_interrupt_leaves_whole_shards_and_can_go_on(tmp_path: Path) -> None:
    out = tmp_path / "pusht"
    command = [sys.executable, "-m", "jobs.simulate", "--out", str(out), "--episodes", "5000", "--shard-size", "2"]
    restore = (
        "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:];"
        " runpy.run_module('jobs.simulate', run_name='__main__', alter_sys=True)"
    )
    command[1:3] = ["-c", restore, "simulate"]
    process = subprocess.Popen(
        [*command, "--states", "4", "--size", "32"], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stderr is not None
        while not (out / "pusht-000001.tar").exists():
            assert process.poll() is None, process.stderr.read()
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                pass
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=400)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said and "go on" in said
    assert not (out / "labels.parquet").exists()
    for path in out.glob("*"):
        assert path.name == "simulate.json" or path.suffix == ".tar", path
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                assert len(tar.getnames()) == 4


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "Traceback" not in said
    return said


def test_refusals_are_one_line_and_write_nothing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = content(made)
    assert "seed 7 instead of 8" in refused(["--out", str(made), *SMALL, "--seed", "8"], capsys)
    assert content(made) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "is not empty" in refused(["--out", str(tmp_path / "mine"), *SMALL], capsys)
    assert "is a file" in refused(["--out", str(tmp_path / "mine" / "thesis.txt"), *SMALL], capsys)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    new = str(tmp_path / "new")
    for extra, said in {
        ("--episodes", "0"): "episodes 0; expected at least 1",
        ("--episodes", "2000000"): "at most 1000000",
        ("--seed", "-1"): "seed -1; expected 0 or more",
        ("--shard-size", "0"): "shard size 0",
        ("--processes", "0"): "processes 0",
        ("--size", "33"): "even number of pixels",
        ("--set", "data.clip.fps=3"): "rate 3 Hz",
        ("--set", "data.clip.nonsense=3"): "nonsense",
        ("--episodes", "many"): "many",
    }.items():
        assert said in refused(["--out", new, *SMALL, *extra], capsys)
    assert not os.path.exists(new)


def test_a_dry_run_says_what_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "pusht"
    assert main(["--out", str(out), *SMALL, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "clips: 5" in said and "episodes: 5" in said and "gym-pusht" in said  # one 4-frame clip of 6 frames each
    assert not out.exists()
