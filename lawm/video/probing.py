"""What a video holds: one row of an index, from its packets and the frames at its ends."""

from __future__ import annotations  # VideoFrame takes its parameter in annotations only

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from av.video.frame import VideoFrame

from lawm import storage
from lawm.config import ClipSpec, VideoLimits
from lawm.video.cutting import Cutter
from lawm.video.decode import Irregular, fast, plain
from lawm.video.opening import Video, VideoError, open_video
from lawm.video.ref import VideoRef, empty_row

T = TypeVar("T")

_TABLE_BYTES = 64 << 20
"""From this size on, and on S3, `probe` takes times from an mp4's own table and does not read the whole file."""


def probe(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
    """One index row (`empty_row`). Reads packets, decodes the first and the last key frame.

    A video that cannot be used gets a `reason` ("reason: detail") and whatever could be found out; only
    StorageError (S3 cannot be reached) is raised.
    """
    row = empty_row(ref)
    try:
        with open_video(ref, limits, time.monotonic() + limits.timeout_s) as video:
            _fill(row, video)
    except VideoError as error:
        row["reason"] = error.why
    return row


def _fill(row: dict[str, Any], video: Video) -> None:
    stream = video.stream
    rate = stream.average_rate or stream.guessed_rate
    row |= {
        "container": video.container.format.name,
        "codec": stream.codec_context.codec.canonical_name,
        "width": stream.codec_context.width,
        "height": stream.codec_context.height,
        "container_rate": float(rate) if rate else None,
        "version": video.version,
    }
    times_N, keys_K = _times(video)
    start_s = video.zero * float(stream.time_base or 1)
    row |= {"frames": len(times_N), "start_s": start_s, "keyframes_s": keys_K.astype(np.float32)}
    if len(times_N) < 2:
        raise video.error("too_short", "a single frame")
    gaps = np.diff(times_N)
    last = float(times_N[-1])
    if last <= 0:
        raise video.error("zero_duration", f"all {len(times_N)} frames at the same time")
    usual = float(np.median(gaps))
    row["rate"] = (len(times_N) - 1) / last
    row["variable_rate"] = bool(np.max(np.abs(gaps - usual)) > max(0.1 * usual, 1.5 * video.tick))
    row["duration_s"] = last + 1 / row["rate"]
    video.set_up_decoder(explode=False)
    ends = (keys_K[0], keys_K[-1]) if len(keys_K) else (0.0,)  # an episode may begin and end between two key frames
    cut = Cutter(stream, video.limits, video.error, ClipSpec())
    for at in sorted({float(end) for end in ends}):
        # Cut as for a clip: what no clip can be made of is refused here.
        row["width"], row["height"] = _decode_one(video, at, lambda frame: (cut(frame), cut.shape(frame)[:2])[1])


def _decode_one(video: Video, at: float, cut: Callable[[VideoFrame], T]) -> T:
    """cut(the frame at `at` seconds). Raises VideoError."""
    for decode in (fast, plain):
        with contextlib.suppress(Irregular):
            return next(decode(video, np.array([at]), ClipSpec(), cut))[2]
    raise video.error("corrupt", f"the frame at {at:.3f} s cannot be decoded")


def _times(video: Video) -> tuple[np.ndarray, np.ndarray]:
    """Ascending times of all frames that are shown and of the key frames, in seconds from the first frame."""
    if storage.is_s3(video.ref.source) or video.ref.size >= _TABLE_BYTES:
        table = _times_from_table(video)
        if table is not None:
            return table
    stamps: list[int] = []
    keys: list[int] = []
    whole = video.ref.begin_s is None and video.ref.end_s is None
    video.rewind(None)
    for packet in video.packets() if whole else video.packets_around(0.0):
        if packet.pts is None:
            continue
        if packet.is_keyframe and (whole or video.shows(packet)):
            keys.append(packet.pts)
        if video.shows(packet):
            stamps.append(packet.pts)
            _check_length(video, video.at(packet.pts))
        if packet.dts is not None and packet.dts >= video.stop:
            break
    return video.at(np.sort(np.array(stamps))), video.at(np.sort(np.array(keys)))  # type: ignore[arg-type, return-value]


def _times_from_table(video: Video) -> tuple[np.ndarray, np.ndarray] | None:
    """Times from an mp4's sample table, without reading the frames; None where it has no whole one.

    The table is in decoding order with decoding times. Their differences are those of the display times, save
    for frames that are reordered at a variable rate.
    """
    entries = video.stream.index_entries
    if "mp4" not in video.container.format.name or len(entries) == 0 or len(entries) != video.stream.frames:
        return None
    there = [e for e in entries if not e.is_discard and e.pos + e.size <= video.ref.size]
    if not there:
        return None
    late = video.first - there[0].timestamp
    stamps = [(e.timestamp + late, e.is_keyframe) for e in there if video.zero <= e.timestamp + late < video.stop]
    keys = [stamp for stamp, key in stamps if key]
    if not stamps or (not keys and video.ref.begin_s is None):
        return None
    _check_length(video, video.at(stamps[-1][0]))
    return video.at(np.array([stamp for stamp, _ in stamps])), video.at(np.array(keys))  # type: ignore[arg-type, return-value]


def _check_length(video: Video, seconds: float) -> None:
    if seconds > video.limits.max_seconds:
        raise video.error("too_long", f"longer than the limit of {video.limits.max_seconds:g} s")
