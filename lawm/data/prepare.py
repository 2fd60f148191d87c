"""Videos once into training shards: short side, few frames a second, many key frames, H.264 in tars.

What a clip shows does not change, only how fast it is decoded: frame i of a prepared video is the picture that the
original shows at i / fps seconds, and the sampling plan over the prepared index is that over the original one.
"""

import json
import math
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from lawm import storage
from lawm.config import ClipSpec, LawmError, VideoLimits
from lawm.data.index import Index
from lawm.data.listing import add_member
from lawm.video import VideoError, VideoRef, decode_whole, probe, ref_of

FRAMES_AT_ONCE = 64
SHARD_SECONDS = 1200.0
SHARD_VIDEOS = 256
FORMAT = 2


@dataclass(frozen=True)
class PrepareSpec:
    """`fps`: at most so many frames a second, a multiple of the clips'; `short`: the shorter side in pixels (never
    enlarged); `gop`: frames from one key frame to the next; `crf`: x264's rate factor."""

    fps: float = 8.0
    short: int = 292
    gop: int = 8
    crf: int = 20

    def check(self, clip: ClipSpec) -> None:
        """Raises LawmError where the spec does not fit the clips."""
        if self.fps < clip.fps or not math.isclose(self.fps / clip.fps, round(self.fps / clip.fps)):
            raise LawmError(
                f"--fps {self.fps:g}: expected a multiple of data.clip.fps = {clip.fps:g}, whose frames they hold"
            )
        if not 16 <= self.short <= 4320 or self.gop < 1 or not 0 <= self.crf <= 51:
            raise LawmError("expected --short of 16 to 4320 pixels, --gop of 1 or more, --crf of 0 to 51")


@dataclass(frozen=True)
class Shard:
    """Rows [first, first + count) of the index go into one tar."""

    number: int
    first: int
    count: int

    @property
    def name(self) -> str:
        return f"prepared-{self.number:06d}"


def planned_shards(index: Index) -> list[Shard]:
    """The index's rows in order, about SHARD_SECONDS of video in each; the same index gives the same shards."""
    seconds = np.nan_to_num(np.asarray(index.column("duration_s"), np.float64))
    found: list[Shard] = []
    first, held = 0, 0.0
    for row, duration in enumerate(seconds.tolist()):
        if row > first and (held + duration > SHARD_SECONDS or row - first == SHARD_VIDEOS):
            found.append(Shard(len(found), first, row - first))
            first, held = row, 0.0
        held += duration
    if len(seconds) > first:
        found.append(Shard(len(found), first, len(seconds) - first))
    return found


def prepare_settings(index: Index, clip: ClipSpec, spec: PrepareSpec) -> dict[str, Any]:
    """All that decides what `prepare` writes, for its manifest."""
    return {"format": FORMAT, "index": index.fingerprint(), "clip_fps": clip.fps, **asdict(spec)}


def wanted_times(row: dict[str, Any], clip_fps: float, fps: float) -> np.ndarray:
    """Times of the prepared frames, seconds: i / fps, as many as hold every frame that a clip at `clip_fps` can want;
    beyond the last frame's time, that."""
    last = row["duration_s"] - 1 / row["rate"]
    end = last + min(0.9 / row["rate"], 0.45 / clip_fps)
    count = max(math.floor(end * fps + 1e-6) + 1, 2)
    return np.minimum(np.arange(count) / fps, max(last, 0.0))


def transcode(ref: VideoRef, row: dict[str, Any], clip_fps: float, spec: PrepareSpec, limits: VideoLimits) -> bytes:
    """The video as an mp4 of its own. Sources with fewer frames a second than `spec.fps`, and those with gaps, get
    fewer. Raises VideoError; StorageError where S3 cannot be reached."""
    most = round(spec.fps / clip_fps)
    times = max(1, min(most, math.floor(1.01 * row["rate"] / clip_fps)))
    for each in sorted({times, 1}, reverse=True):
        try:
            return _encoded(ref, wanted_times(row, clip_fps, each * clip_fps), each * clip_fps, each, spec, limits)
        except VideoError as error:
            if error.reason != "bad_timestamps" or each == 1:
                raise
    raise AssertionError("not reached")


def _encoded(
    ref: VideoRef, times_N: np.ndarray, fps: float, each: int, spec: PrepareSpec, limits: VideoLimits
) -> bytes:
    # faststart (the table before the frames, for one ranged read on S3) needs a real file.
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        _encode(file.name, ref, times_N, fps, each, spec, limits)
        return Path(file.name).read_bytes()


def _encode(
    path: str, ref: VideoRef, times_N: np.ndarray, fps: float, each: int, spec: PrepareSpec, limits: VideoLimits
) -> None:
    # Of `each` frames one is a clip's; the others are B-frames that nothing refers to, which a decoder leaves out.
    options = {"crf": str(spec.crf), "preset": "fast", "tune": "fastdecode", "threads": "1"}
    options |= {"bf": str(each - 1), "b_strategy": "0", "sc_threshold": "0", "x264-params": "b-pyramid=none"}
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = math.ceil(spec.gop / each) * each
        stream.codec_context.thread_count = 1
        shape: tuple[int, ...] | None = None
        for first in range(0, len(times_N), FRAMES_AT_ONCE):
            frames = decode_whole(ref, times_N[first : first + FRAMES_AT_ONCE], fps, spec.short, limits)
            if shape is None:
                shape = frames.shape[2:]
                stream.height, stream.width = shape
            if frames.shape[2:] != shape:
                raise VideoError("bad_shape", str(ref), f"pictures change from {shape} to {frames.shape[2:]}")
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def prepare_shard(
    rows: list[dict[str, Any]],
    name: str,
    out: str,
    clip_fps: float,
    spec: PrepareSpec,
    limits: VideoLimits,
    crashed: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """Writes `out`/<name>.tar and returns the new index rows, in order. What is refused already, or cannot be
    transcoded, keeps its row and has a reason. `crashed`: keys of videos that took a worker down."""
    new: list[dict[str, Any]] = []
    made: list[tuple[int, dict[str, Any], bytes]] = []
    for row in rows:
        if row["reason"] is None and row["key"] in crashed:
            row = row | {"reason": "crashed: transcoding took its worker down"}
        elif row["reason"] is None:
            try:
                made.append((len(new), row, transcode(ref_of(row), row, clip_fps, spec, limits)))
            except VideoError as error:
                row = row | {"reason": error.why}
        new.append(row)
    if not made:
        return new
    uri = storage.join(out, f"{name}.tar")
    with storage.atomic_file(uri) as file:
        offsets = _write_tar(file, made)
    for (place, row, data), offset in zip(made, offsets, strict=True):
        new[place] = probe(VideoRef(uri, offset, len(data), row["key"], group=row["group"]), limits)
    return new


def _write_tar(file: Any, made: list[tuple[int, dict[str, Any], bytes]]) -> list[int]:
    """Members `000000.mp4` and `000000.json` (where it comes from, and its own time); the offset of each mp4."""
    offsets: list[int] = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for place, row, data in made:
            offsets.append(tar.offset + tarfile.BLOCKSIZE)
            add_member(tar, f"{place:06d}.mp4", data)
            kept = ("key", "source", "offset", "size", "codec", "width", "height", "rate", "start_s", "duration_s")
            add_member(tar, f"{place:06d}.json", json.dumps({name: row[name] for name in kept}).encode())
    return offsets
