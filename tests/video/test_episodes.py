"""Many episodes in one file, and containers whose clock is wrong: the frames and times of the right ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from made_videos import LIMITS, number_of, ref_to, write_video

from lawm.config import ClipSpec
from lawm.data import Index, read_index, rows_to_table, write_index
from lawm.data.index import read_pieces
from lawm.data.inspection import duplicates
from lawm.video import VideoError, decode_clip, decode_whole, opening, probe, probing, ref_of
from lawm.video import decode as video

SPEC = ClipSpec(frames=4, fps=4.0, size=96)
ENDS = [(0.0, 3.0), (3.0, 4.6), (4.6, 10.0)]
"""Seconds of three episodes in a file of 150 frames at 15 a second."""
FORMS = {
    "key frame at each": ("v.mp4", {"options": {"force_key_frames": "expr:gte(t,n_forced*1.5)", "bf": "2"}}),
    "one key frame in all": ("v.mp4", {"gop": 250, "options": {"bf": "3"}}),
    "no edit list": ("v.mp4", {"gop": 4, "options": {"bf": "3"}, "container_options": {"use_editlist": "0"}}),
    "fragments": (
        "v.mp4",
        {
            "codec": "libx265",
            "gop": 4,
            "options": {"x265-params": "bframes=3:log-level=none"},
            "container_options": {"movflags": "frag_keyframe+empty_moov"},
        },
    ),
    "av1": ("v.mp4", {"codec": "libsvtav1", "gop": 2, "options": {"crf": "30", "preset": "12"}}),
    "vp9 in webm": ("v.webm", {"codec": "libvpx-vp9", "gop": 20, "options": {"crf": "30", "b": "0", "cpu-used": "8"}}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("table", [False, True])
def test_each_episode_is_a_video_of_its_own(
    form: str, table: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = FORMS[form]
    write_video(tmp_path / name, 150, rate=15, **options)  # type: ignore[arg-type]
    if table:
        monkeypatch.setattr(probing, "_TABLE_BYTES", 0)
    first_s = probe(ref_to(tmp_path / name), LIMITS)["start_s"]  # B-frames without an edit list begin late
    for begin, end in ENDS:
        # Tables of episodes say these times rounded, or summed up with an error.
        ref = dataclasses.replace(ref_to(tmp_path / name), begin_s=first_s + begin + 1e-3, end_s=first_s + end - 1e-3)
        row = probe(ref, LIMITS)
        count = round((end - begin) * 15)
        assert row["reason"] is None
        assert row["frames"] == count
        assert row["duration_s"] == pytest.approx(end - begin, abs=0.01)
        assert row["start_s"] == pytest.approx(begin + first_s, abs=0.01)
        assert row["rate"] == pytest.approx(15, rel=1e-3)
        assert all(-1e-6 <= at < end - begin for at in row["keyframes_s"])
        assert ref_of(row) == ref
        for start in (0.0, (count - 12) // 15 * 0.5, (count - 12) / 15):
            clip = decode_clip(ref, start, SPEC, LIMITS)
            want = [round(begin * 15) + int((start + i / 4) * 15 + 1e-6) for i in range(4)]
            assert [number_of(frame) for frame in clip.frames_FCHW] == want
            assert clip.seconds_F == pytest.approx([(n - round(begin * 15)) / 15 for n in want], abs=2e-3)
        # The last frame is shown; the next episode's first is not.
        with pytest.raises(VideoError, match="too_short"):
            decode_clip(ref, end - begin - 0.6, SPEC, LIMITS)


def test_key_frame_starts_stay_in_the_episode(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 150, rate=15, gop=20)  # key frames each 1.333 s
    ref = dataclasses.replace(ref_to(tmp_path / "v.mp4"), begin_s=4.6, end_s=10.0)
    spec = ClipSpec(frames=4, fps=4.0, size=96, start="keyframe")
    for start, want in (
        (0.0, 80),
        (0.9, 80),
        (4.0, 120),
    ):  # 80 / 15 = 5.33 s, not 60 / 15 = 4.0 s, in the episode before
        assert number_of(decode_clip(ref, start, spec, LIMITS).frames_FCHW[0]) == want


def test_an_episode_can_be_transcoded(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 150, rate=15)
    ref = dataclasses.replace(ref_to(tmp_path / "v.mp4"), begin_s=3.0, end_s=4.5)
    frames = decode_whole(ref, np.arange(6) / 4, 4.0, 96, LIMITS)
    whole = decode_whole(ref_to(tmp_path / "v.mp4"), 3.0 + np.arange(6) / 4, 4.0, 96, LIMITS)
    assert np.array_equal(frames, whole)


def test_a_damaged_file_is_not_read_beyond_the_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "v.mp4", 600, rate=15, gop=30)
    ref = dataclasses.replace(ref_to(tmp_path / "v.mp4"), begin_s=0.0, end_s=3.0)
    times: list[float] = []
    real = opening.Video.at
    monkeypatch.setattr(opening.Video, "at", lambda self, stamp: times.append(real(self, stamp)) or times[-1])

    def irregular(*_: object) -> None:
        raise video.Irregular

    monkeypatch.setattr(video, "fast", irregular)  # as a damaged slice makes it
    clip = decode_clip(ref, 2.0, SPEC, LIMITS)
    assert [number_of(frame) for frame in clip.frames_FCHW] == [30, 33, 37, 41]
    assert max(times) < 4.0


def test_nothing_there(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 30, rate=15)
    for begin, end in ((5.0, 6.0), (1.0, 1.0), (1.5, 1.0), (0.5, 0.55)):
        row = probe(dataclasses.replace(ref_to(tmp_path / "v.mp4"), begin_s=begin, end_s=end), LIMITS)
        assert row["reason"].startswith("too_short")


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_the_true_rate_stands_above_the_containers(name: str, tmp_path: Path) -> None:
    write_video(tmp_path / name, 60, rate=60, gop=12)  # it says one second; it was four, at 15 frames a second
    ref = dataclasses.replace(ref_to(tmp_path / name), true_rate=15.0)
    row = probe(ref, LIMITS)
    assert (row["reason"], row["frames"]) == (None, 60)
    assert row["container_rate"] == pytest.approx(60, rel=0.02)
    assert row["rate"] == pytest.approx(15, rel=0.02)
    assert row["duration_s"] == pytest.approx(4.0, rel=0.02)
    clip = decode_clip(ref, 2.0, SPEC, LIMITS)
    assert [number_of(f) for f in clip.frames_FCHW] == [30, 33, 37, 41]
    assert clip.seconds_F == pytest.approx([30 / 15, 33 / 15, 37 / 15, 41 / 15], abs=0.02)


def test_an_index_keeps_where_episodes_are(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 150, rate=15, gop=15)
    whole = ref_to(tmp_path / "v.mp4")
    refs = [dataclasses.replace(whole, key=f"{n}", begin_s=n * 5.0, end_s=n * 5.0 + 5.0) for n in range(2)]
    rows = [probe(ref, LIMITS) for ref in refs]
    write_index(rows_to_table(rows), str(tmp_path / "i.parquet"))
    index = read_index(str(tmp_path / "i.parquet"))
    assert [index.ref(i) for i in range(2)] == refs
    (piece,) = read_pieces(str(tmp_path / "i.parquet"))
    assert [piece.ref(i) for i in range(2)] == refs
    assert "version" not in piece.table.column_names  # all null: ten million videos are not to pay for it
    assert duplicates(index) == []  # of one file, and as long, but not the same

    old = Index(rows_to_table([probe(whole, LIMITS)]).drop_columns(["begin_s", "end_s", "true_rate", "version"]))
    import pyarrow.parquet as pq

    pq.write_table(old.table, tmp_path / "old.parquet")  # written before these columns were
    assert read_index(str(tmp_path / "old.parquet")).ref(0) == whole
    (piece,) = read_pieces(str(tmp_path / "old.parquet"))
    assert piece.ref(0) == whole
