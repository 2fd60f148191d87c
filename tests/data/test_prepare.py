"""Prepared shards: the same clips at the same positions, showing the same frames; kills and odd videos."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from made_videos import LIMITS, number_of, ref_to, write_video
from small_runs import tiny_with

from jobs.__main__ import main
from lawm.cluster.prepare import prepare
from lawm.cluster.session import Session
from lawm.config import ClipSpec, Config, LawmError
from lawm.data import (
    ClipReader,
    Index,
    PrepareSpec,
    grid_frames,
    list_videos,
    planned_shards,
    prepare_shard,
    read_index,
    rows_to_table,
    write_index,
)
from lawm.data.prepare import wanted_times
from lawm.data.sampling import SamplingPlan
from lawm.video import decode_clip, decode_whole, probe

SPEC = PrepareSpec(fps=8.0, short=110, gop=8)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rates that divide and do not, a slow one, B-frames, rotation, odd sizes, one refused, one in a tar."""
    root = tmp_path_factory.mktemp("prepare")
    at = root / "videos"
    at.mkdir()
    write_video(at / "25.mp4", 170, rate=25)
    write_video(at / "30b.mp4", 200, rate=30, options={"bf": "3"}, codec="libx264")
    write_video(at / "ntsc.mp4", 150, rate=Fraction(24000, 1001))
    write_video(at / "slow.mp4", 30, rate=5)
    write_video(at / "turned.mp4", 90, rate=30, rotation=90)
    write_video(at / "vp9.webm", 90, rate=30, codec="libvpx-vp9", width=134, height=126)
    write_video(
        at / "vary.mkv", 80, times=[Fraction(n, 20) + (Fraction(1, 60) if n % 3 == 0 else 0) for n in range(80)]
    )
    (at / "bad.mp4").write_bytes(b"no video at all" * 100)
    write_video(at / "tarred.mp4", 100, rate=20)
    with tarfile.open(at / "shard.tar", "w") as tar:
        tar.add(at / "tarred.mp4", "inside.mp4")
    (at / "tarred.mp4").unlink()
    rows = [probe(ref, LIMITS) for ref in list_videos([str(at)])]
    write_index(rows_to_table(rows), str(root / "index.parquet"))
    return root


@pytest.fixture(scope="module")
def prepared(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    out = str(tmp_path_factory.mktemp("shards"))
    rows = read_index(str(originals / "index.parquet")).table.to_pylist()
    return Index(rows_to_table(prepare_shard(rows, "prepared-000000", out, 4.0, SPEC, LIMITS)))


def test_keys_order_and_reasons_stay(originals: Path, prepared: Index) -> None:
    before = read_index(str(originals / "index.parquet"))
    assert list(prepared.keys()) == list(before.keys())
    assert prepared.table["reason"].to_pylist() == before.table["reason"].to_pylist()
    good = prepared.usable().table.to_pylist()
    assert {row["codec"] for row in good} == {"h264"} and len(good) == 8
    for row in good:
        assert row["rate"] == pytest.approx({"slow.mp4": 4.0}.get(row["key"], 8.0))
        assert min(row["width"], row["height"]) == 110 and not row["variable_rate"]
        assert np.diff(row["keyframes_s"]) == pytest.approx(8 / row["rate"])


def test_the_plan_is_the_same_and_every_clip_shows_the_same_frames(originals: Path, prepared: Index) -> None:
    before = read_index(str(originals / "index.parquet"))
    clip = ClipSpec(frames=4, fps=4.0, size=96)
    ours, theirs = SamplingPlan(prepared, clip, seed=5), SamplingPlan(before, clip, seed=5)
    assert len(ours) == len(theirs) > 10
    a, b = ours.rows(np.arange(2 * len(ours))), theirs.rows(np.arange(2 * len(ours)))
    np.testing.assert_array_equal(a.video, b.video)
    np.testing.assert_array_equal(a.start_s, b.start_s)
    seen = 0
    for video, start in sorted({(int(v), float(s)) for v, s in zip(b.video, b.start_s, strict=True)}):
        new = decode_clip(prepared.ref(video), start, clip, LIMITS).frames_FCHW
        old = decode_clip(before.ref(video), start, clip, LIMITS).frames_FCHW
        key = before.ref(video).key
        if key != "turned.mp4":  # its blocks are turned, and spell another number
            assert [number_of(f) for f in new] == [number_of(f) for f in old], (key, start)
            assert -1 not in [number_of(f) for f in new]
        assert np.abs(new.astype(float) - old).mean() < 8, key  # a block of another number would give far more
        seen += 1
    assert seen > 15


@pytest.mark.parametrize("rotation", [0, 90])
def test_the_whole_picture_has_the_very_pixels_of_the_clips(rotation: int, tmp_path: Path) -> None:
    """Also where the resized picture has an odd side, which no H.264 can have, as 16:9 often does."""
    odd = 0
    for width, height in ((320, 180), (324, 180), (326, 180), (180, 322), (330, 180), (240, 240), (222, 190)):
        path = tmp_path / f"{width}_{height}.mp4"
        write_video(path, 20, width=width, height=height, rotation=rotation)
        ref, times = ref_to(path), np.array([0.0, 0.25])
        row = probe(ref, LIMITS)
        for size in (96, 126, 128):
            short = round(size * 292 / 256)
            whole = decode_whole(ref, times, 4.0, short, LIMITS)
            assert min(whole.shape[2:]) == short and not any(side % 2 for side in whole.shape[2:])
            odd += round(max(row["width"], row["height"]) * short / min(row["width"], row["height"])) % 2
            clip = decode_clip(ref, 0.0, ClipSpec(frames=2, fps=4.0, size=size), LIMITS).frames_FCHW
            y, x = (round((side - size) / 2) for side in whole.shape[2:])
            np.testing.assert_array_equal(
                whole[:, :, y : y + size, x : x + size], clip, f"{width} x {height} to {size}"
            )
    assert odd >= 3


@pytest.mark.parametrize("clip_fps", [1.0, 4.0, 5.0])
@pytest.mark.parametrize("each", [1, 2, 3])
def test_as_many_grid_frames_as_the_original_for_any_length(clip_fps: float, each: int) -> None:
    """Over random rates and lengths, from what a prepared video's own probing gives."""
    generator = np.random.default_rng(0)
    fps = clip_fps * each
    for _ in range(3000):
        rate = float(generator.uniform(max(fps, 4.0), 61.0))
        frames = int(generator.integers(10, 400))
        row = {"duration_s": frames / rate, "rate": rate}
        times = wanted_times(row, clip_fps, fps)
        before = int(grid_frames(np.array([row["duration_s"]]), np.array([rate]), clip_fps)[0])
        after = int(grid_frames(np.array([len(times) / fps]), np.array([fps]), clip_fps)[0])
        if len(times) > 2:
            assert before == after, (rate, frames)
        assert np.all(np.diff(times) >= 0) and times[-1] <= (frames - 1) / rate + 1e-9


def test_members_say_where_they_come_from(originals: Path, prepared: Index) -> None:
    uri = next(row["source"] for row in prepared.usable().table.to_pylist())
    with tarfile.open(uri) as tar:
        said = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
        videos = [m for m in tar if m.name.endswith(".mp4")]
    before = {row["key"]: row for row in read_index(str(originals / "index.parquet")).table.to_pylist()}
    assert len(said) == len(videos) == 8
    for about in said:
        assert about["start_s"] == before[about["key"]]["start_s"] and about["source"] == before[about["key"]]["source"]
    rows = {(row["offset"], row["size"]) for row in prepared.usable().table.to_pylist()}
    assert rows == {(m.offset_data, m.size) for m in videos}


def test_a_video_that_breaks_in_the_middle_is_refused_with_a_reason(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 200, rate=25, gop=10, container_options={"movflags": "faststart"})
    row = probe(next(list_videos([str(tmp_path / "a.mp4")])), LIMITS)
    assert row["reason"] is None
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[len(data) // 3 : len(data) // 3 + 4000] = bytes(4000)
    (tmp_path / "a.mp4").write_bytes(data)
    (new,) = prepare_shard([row], "s", str(tmp_path / "out"), 4.0, SPEC, LIMITS)
    assert new["reason"].partition(":")[0] in ("corrupt", "bad_timestamps") and new["key"] == "a.mp4"
    assert not (tmp_path / "out/s.tar").exists()


def test_specs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LawmError, match=r"--fps 6: expected a multiple of data.clip.fps = 4"):
        PrepareSpec(fps=6.0).check(ClipSpec())
    with pytest.raises(LawmError, match="--crf"):
        PrepareSpec(crf=90).check(ClipSpec())


def config_for(originals: Path) -> Config:
    return tiny_with(data__index=str(originals / "index.parquet"), data__clip__size=96, data__val_fraction=0.0)


def test_the_job_goes_on_where_it_was_killed(
    ray_cluster: Session, originals: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("lawm.data.prepare.SHARD_VIDEOS", 2)
    out = str(tmp_path / "out")
    config = config_for(originals)
    seen: list[tuple[int, int]] = []
    report = prepare(config, out, SPEC, lambda done, total: seen.append((done, total)))
    assert (report.videos, report.usable, report.kept_shards) == (9, 8, 0)
    assert report.reasons == {"not_video": 1} and seen[-1] == (9, 9)
    whole = read_index(report.uri).table
    names = sorted(p.name for p in Path(out).glob("*.parquet") if p.name.startswith("prepared"))
    assert len(names) == 5
    # As a kill leaves it: a shard without its part, and no index.
    (Path(out) / names[1]).unlink()
    (Path(out) / "index.parquet").unlink()
    times = {p.name: p.stat().st_mtime_ns for p in Path(out).glob("*.tar")}
    again = prepare(config, out, SPEC)
    # x264's rate control (mbtree) gives a few bytes more or fewer from run to run, even on one thread: the shard that
    # is made again holds the same frames at the same times, not the same bytes.
    now = read_index(report.uri).table
    loose = ["size", "offset"]
    differ = [
        (a, b)
        for a, b in zip(whole.to_pylist(), now.to_pylist(), strict=True)
        if any(a[k] != b[k] for k in a if k not in loose or names[1].split(".")[0] not in a["source"])
    ]
    assert again.kept_shards == 4 and differ == []
    changed = {p.name for p in Path(out).glob("*.tar") if times[p.name] != p.stat().st_mtime_ns}
    assert changed == {names[1].replace("parquet", "tar")}
    with pytest.raises(LawmError, match=r"was made with other settings \(crf = 20 there, 30 now\)"):
        prepare(config, out, PrepareSpec(8.0, 110, 8, 30))
    reader = ClipReader(config.model_copy(update={"data": config.data.model_copy(update={"index": report.uri})}))
    assert reader.plan.rows([0]).start_s == ClipReader(config).plan.rows([0]).start_s


def test_a_killed_job_and_its_second_run(
    ray_cluster: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process is killed while it makes shards; the same command then finishes, and nothing is there twice."""
    out = tmp_path / "out"
    (tmp_path / "videos").mkdir()
    for i in range(20):
        write_video(tmp_path / f"videos/{i:02d}.mp4", 120)
    rows = [probe(ref, LIMITS) for ref in list_videos([str(tmp_path / "videos")])]
    write_index(rows_to_table(rows), str(tmp_path / "index.parquet"))
    code = (
        "import sys, lawm.data.prepare; lawm.data.prepare.SHARD_VIDEOS = 2\n"
        "from jobs.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    asked = ["prepare", str(tmp_path / "index.parquet"), "--out", str(out), "--recipe", "tiny"]
    how: dict[str, Any] = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    how["env"] = os.environ | {"RAY_ADDRESS": ray_cluster.address}
    with subprocess.Popen([sys.executable, "-c", code, *asked], **how) as first:
        deadline = time.monotonic() + 400
        while not list(out.glob("prepared-*.parquet")) and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
    made = len(list(out.glob("prepared-*.parquet")))
    assert 1 <= made < 10 and not (out / "index.parquet").exists()
    monkeypatch.setattr("lawm.data.prepare.SHARD_VIDEOS", 2)
    assert main(asked) == 0
    said = capsys.readouterr().out
    kept = int(said.partition(" shards were there already")[0].split()[-1])
    assert kept >= made and "20 of 20 videos" in said
    index = read_index(str(out / "index.parquet"))
    assert list(index.keys()) == [f"{i:02d}.mp4" for i in range(20)] and len(index.usable()) == 20


def test_the_command_line(originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(originals / "index.parquet")
    assert main(["prepare", where, "--out", str(tmp_path / "o"), "--fps", "5"]) == 2
    assert "multiple of data.clip.fps" in capsys.readouterr().err
    assert main(["prepare", where, "--out", str(tmp_path / "o"), "--dry-run"]) == 0
    assert "short: 128" in capsys.readouterr().out and not (tmp_path / "o").exists()
    assert main(["prepare", str(tmp_path / "none.parquet")]) == 2


def test_shards_are_runs_of_rows_in_order(originals: Path) -> None:
    index = read_index(str(originals / "index.parquet"))
    found = planned_shards(index)
    assert [s.first for s in found] == list(np.cumsum([0, *[s.count for s in found]])[:-1])
    assert sum(s.count for s in found) == len(index)
    empty = Index(index.table.slice(0, 0))
    assert planned_shards(empty) == []


def test_prepared_videos_are_plain_mp4(prepared: Index) -> None:
    row = prepared.usable().table.to_pylist()[0]
    with open(row["source"], "rb") as file:
        file.seek(row["offset"])
        data = file.read(row["size"])
    import io

    with av.open(io.BytesIO(data)) as container:
        stamps = [float(f.pts * f.time_base) for f in container.decode(video=0)]
    np.testing.assert_allclose(np.diff(stamps), 1 / row["rate"], atol=1e-6)
