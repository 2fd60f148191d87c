"""What containers say against what decoders give: generated files, each against a full decode by ffmpeg.

The truth is ffmpeg's (see benchmarks/video_matrix.py) or was put into the file by hand; lawm is on one side only."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from ffmpeg import ffmpeg
from made_videos import LIMITS, number_of, ref_to, write_video

from benchmarks.video_matrix import Case, Workshop, cases, run
from lawm.config import ClipSpec
from lawm.video import VideoError, decode_clip, probe, probing

HERE = (
    "h264.avi", "h264 pyramid.flv", "h264 open.ts", "hevc open.mkv", "mpeg4 b.avi", "mpeg4 b.asf", "xvid b.avi",
    "mpeg2 b.vob", "h264.mpg", "vp8 hidden.ivf", "vp9 hidden.webm", "theora.ogv", "h264 at 24000_1001.ts",
    "uneven.mp4", "uneven.avi", "cut by an edit list open.mp4", "cut in a group.ts", "packed.avi",
    "black at times.avi", "h264 171x133.mp4", "every frame called a key mpeg4.mp4",
)  # fmt: skip
TABLES = (
    "h264 open.mp4", "hevc fields.mp4", "mpeg4 b.mov", "uneven.mp4", "every frame called a key.mp4", "svq1.mov",
    "h264 negative cts.mp4", "cut by an edit list open.mp4", "copied from avi.mp4", "h264 faststart.mp4",
)  # fmt: skip
"""Of which an mp4's own table does not say all, or not plainly."""
REFUSED = ("twice.ts", "twice.mpg", "twice.ogv", "copied from avi.mp4", "raw stream.h264")


def chosen(names: tuple[str, ...]) -> list[Case]:
    found = [case for case in cases() if case.name in names]
    assert len(found) == len(names)
    return found


def test_pictures_and_times_are_those_that_ffmpeg_shows(tmp_path: Path) -> None:
    said: list[str] = []
    figures = run(chosen(HERE), tmp_path, said.append)
    assert (figures["files"], figures["differences"], figures["refused"]) == (len(HERE), 0, 0), said


def test_rows_of_large_files_and_of_s3_are_those_of_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and times as ffmpeg shows them, and key frames as the packets (read below 64 MiB) say."""
    asked: list[Path] = []
    make = Workshop.make
    monkeypatch.setattr(Workshop, "make", lambda shop, case: asked.append(make(shop, case)) or asked[-1])
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(probing, "_TABLE_BYTES", 0)
        figures = run(chosen(TABLES), tmp_path, said.append)
        by_table = [probe(ref_to(path), LIMITS) for path in asked]
    assert (figures["differences"], set(figures["reasons"])) == (0, {"copied from avi.mp4"}), said
    for path, large in zip(asked, by_table, strict=True):
        small = probe(ref_to(path), LIMITS)
        assert large["keyframes_s"] == pytest.approx(small["keyframes_s"], abs=1e-5), path.name
        for name in small.keys() - {"keyframes_s"}:
            assert large[name] == (pytest.approx(small[name]) if isinstance(small[name], float) else small[name]), name


def test_streams_one_after_the_other_and_wrong_orders_are_refused_by_the_index(tmp_path: Path) -> None:
    reasons = run(chosen(REFUSED), tmp_path)["reasons"]
    assert set(reasons) == set(REFUSED)
    assert all("times start again" in reasons[name] for name in REFUSED[:3])
    assert "another order than the decoder" in reasons[REFUSED[3]] and reasons[REFUSED[4]].startswith("not_video")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_full_matrix(tmp_path: Path) -> None:
    said: list[str] = []
    figures = run(cases(), tmp_path, said.append)
    assert figures["files"] > 200 and figures["not_made"] == []
    assert figures["differences"] == 0, said


def test_the_table_of_an_mp4_says_what_its_packets_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on S3 and in large files: B-frames at an uneven rate, with and without an edit list."""
    uneven = [n / 30 + 0.008 * (n * 7 % 5) + (n // 20) * 0.1 for n in range(90)]
    for name, options in {"edit.mp4": {}, "no_edit.mp4": {"use_editlist": "0"}}.items():
        path = tmp_path / name
        bframes = {"bf": "3", "b_strategy": "0", "preset": "medium"}
        times = write_video(path, times=uneven, gop=30, options=bframes, container_options=options)
        gap = max(np.diff(times))
        with monkeypatch.context() as patch:
            patch.setattr(probing, "_TABLE_BYTES", 0)
            row = probe(ref_to(path), LIMITS)
        assert (row["reason"], row["frames"], row["variable_rate"]) == (None, 90, True)
        assert row["largest_gap_s"] == pytest.approx(gap, abs=1e-4)
        assert row["duration_s"] - 1 / row["rate"] == pytest.approx(times[-1], abs=1e-4)


def test_the_largest_gap_is_said(tmp_path: Path) -> None:
    times = [n / 30 for n in range(40)] + [2 + n / 30 for n in range(40)]
    write_video(tmp_path / "gap.mkv", times=times)
    assert probe(ref_to(tmp_path / "gap.mkv"), LIMITS)["largest_gap_s"] == pytest.approx(2 - 39 / 30, abs=2e-3)
    write_video(tmp_path / "steady.mkv", 40)
    assert probe(ref_to(tmp_path / "steady.mkv"), LIMITS)["largest_gap_s"] is None


def test_holes_that_a_download_has_left_are_damage(tmp_path: Path) -> None:
    """A packet of zeros within a group of pictures: nothing after it until the next key frame is shown, in codecs whose
    decoders would go on without a word (MPEG-4)."""
    path = tmp_path / "v.mkv"
    write_video(path, 90, codec="mpeg4", gop=30)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, bytes(p)) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    at = data.index(packets[40][2])
    data[at : at + packets[40][1]] = bytes(packets[40][1])
    path.write_bytes(data)
    assert probe(ref_to(path), LIMITS)["reason"] is None
    spec = ClipSpec(frames=4, fps=10, size=64)
    for start, first in ((0.0, 0), (0.9, 27), (2.0, 60)):
        assert number_of(decode_clip(ref_to(path), start, spec, LIMITS).frames_FCHW[0]) == first
    for start in (1.2, 1.5):
        with pytest.raises(VideoError, match="corrupt"):
            decode_clip(ref_to(path), start, spec, LIMITS)


def test_a_picture_of_zeros_is_a_picture(tmp_path: Path) -> None:
    """Black, in raw RGB: every byte of the packet is 0."""
    path = tmp_path / "black.avi"
    picture = "color=black:s=64x48:r=10:d=1,format=bgr24"
    ffmpeg("-f", "lavfi", "-i", picture, "-c:v", "rawvideo", path)
    row = probe(ref_to(path), LIMITS)
    assert (row["reason"], row["frames"]) == (None, 10)
    assert not decode_clip(ref_to(path), 0.2, ClipSpec(frames=4, fps=10, size=32), LIMITS).frames_FCHW.any()


def test_an_episode_of_a_file_without_display_times_is_refused(tmp_path: Path) -> None:
    import dataclasses

    write_video(tmp_path / "v.avi", 60, options={"bf": "2", "b_strategy": "0"})
    ref = dataclasses.replace(ref_to(tmp_path / "v.avi"), begin_s=0.5, end_s=1.5)
    assert probe(ref, LIMITS)["reason"].startswith("bad_timestamps: an episode")


@pytest.mark.parametrize("name", ["dropped.avi", "dropped.mp4"])
def test_dropped_pictures_of_mpeg4_are_not_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that hold no picture (N-VOPs), which other encoders write where nothing has changed; of the mp4 the table
    is asked, as on S3."""
    monkeypatch.setattr(probing, "_TABLE_BYTES", 0)
    write_video(tmp_path / "whole.avi", 60, codec="mpeg4", gop=1)
    path = tmp_path / name
    with av.open(str(tmp_path / "whole.avi")) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(p for p in source.demux(video=0) if p.size):
            # P-picture, no whole second, 5 bits of time, vop_coded 0, stuffing
            empty = b"\0\0\1\xb6" + int("01" + "0" + "1" + f"{n % 30:05b}" + "1" + "0" + "01111", 2).to_bytes(2, "big")
            made = av.Packet(empty if n % 20 in (13, 14) else bytes(packet))
            made.stream, made.time_base, made.pts, made.dts = stream, Fraction(1, 30), n, n
            made.is_keyframe = n % 20 not in (13, 14)
            out.mux(made)
    told = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "framecrc", "-").decode().splitlines()
    assert probe(ref_to(path), LIMITS)["frames"] == sum(not line.startswith("#") for line in told) == 54
    for start, fps, shown in ((0.3, 10.0, [9, 12, 15, 18]), (13 / 30, 4.0, [12, 20, 28, 35])):
        clip = decode_clip(ref_to(path), start, ClipSpec(frames=4, fps=fps, size=64), LIMITS)
        assert [number_of(frame) for frame in clip.frames_FCHW] == shown
