"""`lawm index` on real Ray and real videos: what it writes, what it refuses, and what a kill leaves."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest

from jobs.index import main
from lawm.cluster import index as cluster_index
from lawm.cluster.index import build_index
from lawm.cluster.session import Session
from lawm.config import LawmError, VideoLimits, override
from lawm.data import INDEX_SCHEMA, read_index
from lawm.recipes import tiny
from lawm.video import VideoRef, probe

CONFIG = tiny()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Any) -> Path:
    """Ten good videos in a folder, three of them in a tar as well, and five files of no use."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(10):
        make_video(root / f"sub/{i:02d}.mp4", seconds=1 + 0.5 * i, seed=i)
    with tarfile.open(root / "shard-000.tar", "w") as tar:
        for i in range(3):
            tar.add(root / f"sub/{i:02d}.mp4", arcname=f"{i:06d}.mp4")
    (root / "bad").mkdir()
    (root / "bad/empty.mp4").write_bytes(b"")
    (root / "bad/text.mp4").write_text("no video at all\n" * 100)
    (root / "bad/cut.mp4").write_bytes((root / "sub/09.mp4").read_bytes()[:1500])
    (root / "notes.txt").write_text("not listed")
    return root


def test_every_video_has_a_row_with_its_place_and_its_length(
    videos: Path, tmp_path: Path, ray_cluster: Session, capsys
) -> None:
    out = tmp_path / "index.parquet"
    assert main([str(videos), "--out", str(out)]) == 0
    table = pq.read_table(out)
    assert table.schema.names == INDEX_SCHEMA.names
    rows = {row["key"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows == 16
    good = [f"sub/{i:02d}.mp4" for i in range(10)] + [f"shard-000/{i:06d}.mp4" for i in range(3)]
    assert {key for key, row in rows.items() if row["reason"] is None} == set(good)
    for i, key in enumerate(good):
        assert rows[key]["duration_s"] == pytest.approx(1 + 0.5 * (i % 10), abs=0.11), key
        assert rows[key]["rate"] == pytest.approx(10)
        assert (rows[key]["width"], rows[key]["height"], rows[key]["codec"]) == (64, 48, "h264")
    member = rows["shard-000/000002.mp4"]
    with open(member["source"], "rb") as file:
        file.seek(member["offset"])
        assert file.read(member["size"]) == (videos / "sub/02.mp4").read_bytes()
    assert len(read_index(str(out)).usable()) == 13
    said = capsys.readouterr().out
    assert "usable" in said and "13" in said and "refused: empty" in said and "bad/empty.mp4" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet"]


def test_a_failure_is_one_line_and_writes_nothing(videos: Path, tmp_path: Path, ray_cluster: Session, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.tar").write_bytes(b"\0" * 10240)
    out = tmp_path / "out/index.parquet"
    for source, said in {
        str(tmp_path / "nowhere"): "no such file or folder",
        str(tmp_path / "empty"): "no video found",
        str(tmp_path / "none.tar"): "no video found",
        str(videos / "bad"): "none of 3 videos can be used",
    }.items():
        assert main([source, "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert said in captured.err and source in captured.err
        assert captured.err.count("\n") == 1 and not captured.out
        assert not out.exists() and not Path(f"{out}.parts").exists()
    assert main([str(videos), "--out", str(videos / "notes.txt" / "index.parquet")]) == 2
    assert "no folder that can be written to" in capsys.readouterr().err


def test_s3_in_and_out(videos: Path, s3: str, ray_cluster: Session, capsys) -> None:
    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket="index-job")
    for name in ("shard-000.tar", "sub/04.mp4"):
        client.upload_file(str(videos / name), "index-job", f"data/{name}")
    assert main(["s3://index-job/data", "--out", "s3://index-job/out/index.parquet"]) == 0
    index = read_index("s3://index-job/out/index.parquet")
    assert index.table["key"].to_pylist() == [*(f"shard-000/{i:06d}.mp4" for i in range(3)), "sub/04.mp4"]
    assert len(index.usable()) == 4
    listed = client.list_objects_v2(Bucket="index-job", Prefix="out/")["Contents"]
    assert [item["Key"] for item in listed] == ["out/index.parquet"]
    capsys.readouterr()
    assert main(["s3://no-such-bucket/data", "--out", "s3://index-job/out/index.parquet"]) == 2
    assert "no-such-bucket" in capsys.readouterr().err
    assert main([str(videos), "--out", "s3://no-such-bucket/index.parquet"]) == 2
    assert "no-such-bucket" in capsys.readouterr().err


def test_a_video_that_kills_its_process_is_refused_alone(videos: Path, tmp_path: Path, ray_cluster: Session) -> None:
    def deadly(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
        if ref.key == "sub/05.mp4":
            os.kill(os.getpid(), signal.SIGKILL)
        return probe(ref, limits)

    report = build_index([str(videos / "sub")], str(tmp_path / "index.parquet"), CONFIG, probe=_in_sub(deadly))
    index = read_index(report.uri)
    assert (report.videos, report.usable, report.reasons) == (10, 9, {"crashed": 1})
    assert index.table["key"].to_pylist() == [f"{i:02d}.mp4" for i in range(10)]
    assert [bool(reason) for reason in index.table["reason"].to_pylist()] == [i == 5 for i in range(10)]


def test_a_video_that_hangs_is_refused_alone(videos: Path, tmp_path: Path, ray_cluster: Session) -> None:
    def sleepy(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
        if ref.key == "sub/03.mp4":
            time.sleep(3600)
        return probe(ref, limits)

    config = override(CONFIG, "data.limits.timeout_s", 2.0)
    started = time.monotonic()
    report = build_index([str(videos / "sub")], str(tmp_path / "index.parquet"), config, probe=_in_sub(sleepy))
    assert (report.usable, report.reasons) == (9, {"timeout": 1})
    assert time.monotonic() - started < 200


def test_a_bug_in_a_probe_is_not_hidden(videos: Path, tmp_path: Path, ray_cluster: Session) -> None:
    def buggy(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_index([str(videos / "sub")], str(tmp_path / "index.parquet"), CONFIG, probe=buggy)


def _in_sub(function: Any) -> Any:
    """`function` as seen by refs whose keys lack the folder that is the source here."""

    def probed(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
        row = function(VideoRef(ref.source, ref.offset, ref.size, f"sub/{ref.key}"), limits)
        return row | {"key": ref.key}

    return probed


KILLED = """
import sys, time
from lawm.cluster.index import build_index
from lawm.cluster.session import start
from lawm.recipes import tiny
from lawm.video import probe
def slow(ref, limits):
    if ref.key == "sub/09.mp4":
        time.sleep(600)  # until the kill
    return probe(ref, limits)
if __name__ == "__main__":
    with start():
        build_index([sys.argv[1]], sys.argv[2], tiny(), probe=slow)
"""


def test_a_killed_run_goes_on_where_it_stopped(videos: Path, tmp_path: Path, ray_cluster: Session) -> None:
    script, out = tmp_path / "killed.py", tmp_path / "index.parquet"
    script.write_text(KILLED)
    with open(tmp_path / "log", "wb") as log:
        asked = [sys.executable, str(script), str(videos), str(out)]
        env = os.environ | {"RAY_ADDRESS": ray_cluster.address}
        process = subprocess.Popen(asked, env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 400
            while not list(tmp_path.glob("index.parquet.parts/*.parquet")):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    assert not out.exists()
    probed = sum(pq.read_metadata(part).num_rows for part in tmp_path.glob("index.parquet.parts/*.parquet"))
    assert 0 < probed < 16

    resumed = build_index([str(videos)], str(out), CONFIG)
    whole = build_index([str(videos)], str(tmp_path / "whole.parquet"), CONFIG)
    assert resumed.resumed == probed and whole.resumed == 0
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"))
    assert (resumed.videos, resumed.usable, resumed.reasons) == (whole.videos, whole.usable, whole.reasons)


def test_other_limits_do_not_reuse_parts(tmp_path: Path, videos: Path) -> None:
    uri = str(tmp_path / "index.parquet")
    refs = [VideoRef(str(videos / "sub/00.mp4"), 0, 10, "00.mp4")]
    first = cluster_index._Parts(uri, CONFIG.data.limits).place(refs)
    assert cluster_index._Parts(uri, CONFIG.data.limits).place(refs) == first
    assert cluster_index._Parts(uri, VideoLimits(max_pixels=10)).place(refs) != first


def test_the_dry_run_counts_and_probes_nothing(videos: Path, tmp_path: Path, capsys) -> None:
    assert main([str(videos), "--out", str(tmp_path / "index.parquet"), "--recipe", "tiny", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "videos: 16" in said and "recipe: tiny" in said and "1 x probe task (1 CPU)" in said
    assert not list(tmp_path.iterdir())


def test_chunks_grow_and_lose_nothing() -> None:
    refs = [VideoRef("s", i, 1, str(i)) for i in range(2000)]
    chunks = list(cluster_index._chunked(refs))
    assert [ref for chunk in chunks for ref in chunk] == refs
    assert len(chunks[0]) == 4 and len(chunks[32]) == 16 and len(chunks[128]) == 64


def test_no_usable_video_says_why(videos: Path, tmp_path: Path, ray_cluster: Session) -> None:
    with pytest.raises(LawmError, match=r"none of 3 videos can be used \(.*empty 1"):
        build_index([str(videos / "bad")], str(tmp_path / "index.parquet"), CONFIG)
