"""How many videos fit a clip, why others do not, and advice that holds when it is taken."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_videos import ref_to, write_video

from lawm.config import ClipSpec, Config, DataConfig, LawmError, PixelsEncoder, VideoLimits, override
from lawm.data import ClipReader, Index, data_lines, fit_lines, held_out_reader, rows_to_table, write_index
from lawm.storage import StorageError
from lawm.video import VideoRef, empty_row, probe

CLIP = ClipSpec(frames=16, fps=4.0, size=64)


def index_of(videos: dict[str, tuple[float, float]]) -> Index:
    """By name, seconds and frames a second."""
    return Index(
        rows_to_table(
            [
                empty_row(VideoRef("/v", 0, 1, key)) | {"duration_s": seconds, "rate": rate}
                for key, (seconds, rate) in videos.items()
            ]
        )
    )


def advised(line: str, clip: ClipSpec) -> ClipSpec:
    config = Config(data=DataConfig(clip=clip))
    for path, value in re.findall(r"--set (\S+)=(\S+)", line):
        config = override(config, path, value)
    return config.data.clip


def test_all_fit() -> None:
    assert fit_lines([index_of({"a": (9.0, 30.0)})], CLIP) == ["all 1 fit clips of 16 frames at 4 fps (3.75 s)"]


def test_too_short_and_too_slow_are_told_apart_with_advice_that_holds() -> None:
    videos = {f"long{i}": (10.0, 30.0) for i in range(4)} | {f"short{i:02d}": (3.0, 30.0) for i in range(16)}
    said, short, slow = fit_lines([index_of(videos), index_of({"tree.avi": (40.0, 0.5)})], CLIP)
    assert said == "4 of 21 usable videos fit clips of 16 frames at 4 fps (3.75 s)"
    assert short == "16 are too short, for example short00 (3 s): --set data.clip.frames=12 fits 20 of 21"
    assert slow.startswith("1 is too slow, the pictures further apart than 0.25 s, tree.avi (one in 2 s): --set ")
    for line, fit in ((short, 20), (slow, 1)):
        told = fit_lines([index_of(videos), index_of({"tree.avi": (40.0, 0.5)})], advised(line, CLIP))[0]
        assert told.startswith(f"{fit} of 21 ") and f"fits {fit} of 21" in line


def test_videos_of_no_use_are_said_to_be() -> None:
    assert fit_lines([index_of({"blink": (0.4, 30.0), "long": (9, 30)})], CLIP)[1] == (
        "1 is too short, blink (0.4 s): of no use for clips of 4 frames or more"
    )
    assert fit_lines([index_of({})], CLIP) == ["no video can be used for clips of 16 frames at 4 fps (3.75 s)"]


def test_pictures_far_apart_give_clips_with_the_advice(tmp_path: Path) -> None:
    """A real file of one picture in three seconds, from the index to decoded clips."""
    write_video(tmp_path / "tree.mp4", 20, times=[3.0 * i for i in range(20)])
    row = probe(ref_to(tmp_path / "tree.mp4"), VideoLimits())
    write_index(rows_to_table([row]), str(tmp_path / "i.parquet"))
    data = DataConfig(index=str(tmp_path / "i.parquet"), clip=CLIP, val_fraction=0.0)
    with pytest.raises(LawmError, match=r"1 have too few frames per second\. --set data\.clip\.fps=0\.33 fits 1 of 1"):
        ClipReader(Config(data=data, encoder=PixelsEncoder()))
    line = fit_lines([Index(rows_to_table([row]))], CLIP)[1]
    clip = advised(line, CLIP)
    reader = ClipReader(Config(data=data.model_copy(update={"clip": clip}), encoder=PixelsEncoder()))
    assert reader.sample(0).frames.shape == (clip.frames, 3, 64, 64)  # type: ignore[union-attr]


def test_gaps_within_videos_are_said(tmp_path: Path) -> None:
    """Thirty frames a second, and two seconds without any."""
    times = [i / 30 for i in range(120)] + [6 + i / 30 for i in range(120)]
    write_video(tmp_path / "gap.mp4", 240, times=times)
    row = probe(ref_to(tmp_path / "gap.mp4"), VideoLimits())
    said = fit_lines([Index(rows_to_table([row])), index_of({"even": (9.0, 30.0)})], CLIP)
    assert said[0].startswith("all 2 fit ") and said[1].startswith("1 has gaps longer than 0.25 s, gap.mp4 (2.03 s ")
    assert len(fit_lines([Index(rows_to_table([row]))], CLIP.model_copy(update={"fps": 0.4, "frames": 4}))) == 1


def test_training_says_what_it_trains_on_and_holds_out(tmp_path: Path) -> None:
    uri = str(tmp_path / "i.parquet")

    def lines(videos: dict[str, tuple[float, float]], fraction: float = 0.1) -> list[str]:
        write_index(index_of(videos), uri)
        data = DataConfig(index=uri, clip=CLIP, val_fraction=fraction)
        return data_lines(Config(data=data, encoder=PixelsEncoder()), "latent_action")

    few = {f"{i}.mp4": (8.0, 30.0) for i in (1, 2, 3)}
    assert lines(few)[:2] == [
        "trained on: 2 videos, 4 clips an epoch",
        "held out: 1 video, 2 clips an epoch (data.val_fraction = 0.1 alone would hold out none of so few)",
    ]
    assert lines(few)[2].startswith("one held-out video gives no intervals") and "take more videos" in lines(few)[2]
    some = {f"{i}.mp4": (8.0, 30.0) for i in range(12)}
    advice = re.search(r"val_fraction=(\S+) holds out (\d+)", lines(some, 0.001)[2])
    assert advice is not None and int(advice[2]) >= 3
    assert lines(some, float(advice[1]))[1].startswith(f"held out: {advice[2]} videos, ")
    assert lines(few, 0.0)[1].startswith("held out: nothing (data.val_fraction = 0); ")
    assert lines({"one.mp4": (8.0, 30.0)})[1].startswith("held out: nothing (the val split is empty: 1 usable videos")
    many = lines({f"{i}.mp4": (8.0, 30.0) for i in range(200)})
    counts = [int(re.search(r"(\d+) videos", line)[1]) for line in many[:2]]  # type: ignore[index]
    assert sum(counts) == 200 and 5 < counts[1] < 40 and "alone" not in many[1]
    assert np.isclose(counts[1] / 200, 0.1, atol=0.07) and many[2].startswith("all 200 fit ")


def test_a_storage_that_fails_is_not_nothing_held_out(tmp_path: Path) -> None:
    """The index goes away between the training split and the held-out one."""
    uri = str(tmp_path / "i.parquet")
    write_index(index_of({f"{i}.mp4": (8.0, 30.0) for i in range(20)}), uri)
    config = Config(data=DataConfig(index=uri, clip=CLIP), encoder=PixelsEncoder())
    reader, why = held_out_reader(config, "latent_action")
    assert reader is not None and not why
    Path(uri).unlink()
    with pytest.raises(StorageError, match=r"i\.parquet"):
        held_out_reader(config, "latent_action")
