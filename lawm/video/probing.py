"""What a video holds: one row of an index, from its packets, which the decoder confirms at both ends."""

from __future__ import annotations  # VideoFrame takes its parameter in annotations only

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from av.video.frame import VideoFrame

from lawm import storage
from lawm.config import ClipSpec, VideoLimits
from lawm.video.cutting import Cutter
from lawm.video.decode import Irregular, all_frames, fast, plain
from lawm.video.delays import display_delays
from lawm.video.opening import Video, VideoError, open_video
from lawm.video.ref import VideoRef, empty_row

T = TypeVar("T")

_TABLE_BYTES = 64 << 20
"""From this size on, and on S3, `probe` takes times from an mp4's own table and does not read the whole file."""
_ONE_EACH = (
    "h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libaom-av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg",
    "prores",
)  # fmt: skip
"""Decoders that give one picture for each packet, save for what its header says. With others every frame is decoded."""
_NO_VOP = 19
"""Bytes up to which a packet of MPEG-4 may be one that holds no picture (MAX_NVOP_SIZE in FFmpeg's mpeg4videodec)."""
_AT_START, _AT_END = 8, 4
"""Pictures that are decoded at the beginning of a video, and from its last key frame on, to see whether the packets
have said the truth."""


def probe(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
    """One index row (`empty_row`). Reads packets, decodes some frames at both ends, and all of
    them where packets do not say which pictures there are (docs/video.md).

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
    video.set_up_decoder(explode=False)
    found = _times(video)
    times_N, keys_K = found.times_N, found.keys_K
    start_s = video.zero * float(stream.time_base or 1)
    row |= {"frames": len(times_N), "start_s": start_s, "keyframes_s": keys_K.astype(np.float32)}
    if len(times_N) < 2:
        raise video.error("too_short", "a single frame")
    gaps = np.diff(times_N)
    last = float(times_N[-1])
    if last <= times_N[0]:
        raise video.error("zero_duration", f"all {len(times_N)} frames at the same time")
    usual = float(np.median(gaps))
    row["rate"] = (len(times_N) - 1) / (last - float(times_N[0]))
    row["variable_rate"] = bool(np.max(np.abs(gaps - usual)) > max(0.1 * usual, 1.5 * video.tick))
    row["duration_s"] = last + 1 / row["rate"]
    if row["variable_rate"] or np.max(gaps) > 1.5 * usual:
        row["largest_gap_s"] = float(np.max(gaps))
    ends = (times_N[0], *keys_K[-1:])  # what is shown may begin and end between two key frames
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


@dataclass(frozen=True)
class _Times:
    """Ascending times of all frames that are shown and of the key frames, in seconds from the first frame."""

    times_N: np.ndarray
    keys_K: np.ndarray
    doubt: bool = False
    """Whether packets alone do not say which pictures there are."""


def _times(video: Video) -> _Times:
    """As the packets say; where these cannot be trusted, or the decoder disagrees at an end, as a full decode says."""
    found = None
    if storage.is_s3(video.ref.source) or video.ref.size >= _TABLE_BYTES:
        found = _times_from_table(video)
        if found is not None and not _agrees(video, found):
            found = None
    if found is None:
        found = _times_from_packets(video)
        if len(found.times_N) > 1 and (found.doubt or not _agrees(video, found)):
            found = _times_from_pictures(video)
    return found


def _times_from_packets(video: Video) -> _Times:
    stamps: list[int] = []
    keys: list[int] = []
    delays: set[int] = set()
    context = video.stream.codec_context
    doubt = video.by_dts or context.name not in _ONE_EACH
    whole = video.ref.begin_s is None and video.ref.end_s is None
    video.rewind(None)
    for packet in video.packets() if whole else video.packets_around(0.0):
        stamp = video.stamp(packet)
        if stamp is None:
            doubt = True
            continue
        if video.shows(packet):
            if packet.is_keyframe:
                keys.append(stamp)
            stamps.append(stamp)
            _check_length(video, video.at(stamp))
            doubt |= context.name == "mpeg4" and packet.size <= _NO_VOP
            if packet.dts is not None:
                delays.add(stamp - packet.dts)
        if packet.dts is not None and packet.dts >= video.stop:
            break
    # The codec announces that it reorders, and the times do not: perhaps they are those of decoding.
    doubt |= bool(context.has_b_frames) and len(delays) == 1
    return _Times(_seconds(video, stamps), _seconds(video, keys), doubt)


def _times_from_pictures(video: Video) -> _Times:
    """By decoding everything: what is shown, in the order in which it is shown."""
    times: list[float] = []
    keys: list[float] = []
    whole = video.ref.begin_s is None and video.ref.end_s is None
    video.rewind(None)
    for at, frame in all_frames(video, [], None if whole else video.packets_around(0.0)):
        if at < -video.near:
            continue
        times.append(at)
        if frame.key_frame:
            keys.append(at)
        _check_length(video, at)
    if not times:
        raise video.error("corrupt", "no frame could be decoded")
    return _Times(np.array(times), np.array(keys))


def _agrees(video: Video, said: _Times) -> bool:
    """Whether the decoder shows just the pictures that are said, at the beginning and from the last key frame on. True
    where it meets damage: the clips that contain it will be refused."""
    whole = video.ref.begin_s is None and video.ref.end_s is None
    last = said.keys_K[said.keys_K <= said.times_N[-1]] if len(said.keys_K) else said.keys_K
    for at in sorted({0.0, *last[-1:].tolist()}):
        if whole and at == 0.0:
            video.rewind(None)
        damages: list[tuple[float, int]] = []
        shown = all_frames(video, damages, None if whole and at == 0.0 else video.packets_around(at))
        count = _AT_START if at == 0.0 else _AT_END
        pictures = itertools.islice((t for t, _ in shown if t >= at - video.near), count)
        try:
            found = np.array(list(pictures))
        except VideoError as error:
            if error.reason != "bad_timestamps":
                raise
            return False
        wanted = said.times_N[said.times_N >= at - video.near][:count]
        same = len(found) == len(wanted) and np.all(np.abs(found - wanted) <= 2 * video.near)
        if not (same or damages):
            return False
    return True


def _seconds(video: Video, stamps: list[int]) -> np.ndarray:
    return np.array([video.at(stamp) for stamp in sorted(stamps)])


def _times_from_table(video: Video) -> _Times | None:
    """Times from an mp4's sample table, without reading the frames; None where it has no whole one, or where packets
    would not be trusted either.

    The table is in decoding order with decoding times; how much later each frame is shown is a table of its own.
    """
    entries = video.stream.index_entries
    if "mp4" not in video.container.format.name or len(entries) == 0 or len(entries) != video.stream.frames:
        return None
    codec = video.stream.codec_context.name
    if codec not in _ONE_EACH or (codec == "mpeg4" and any(e.size <= _NO_VOP for e in entries)):
        return None
    later = np.zeros(len(entries), np.int64)
    if video.stream.codec_context.has_b_frames:
        said = display_delays(video.ref, video.stream.id, len(entries), video.version)
        if said is None or all(e.is_keyframe for e in entries):
            return None
        later = said
    whole = ((e, d) for e, d in zip(entries, later.tolist(), strict=True) if e.pos + e.size <= video.ref.size)
    there = [(e.timestamp + d, e.is_keyframe) for e, d in whole if not e.is_discard]
    if not there:
        return None
    late = video.first - min(stamp for stamp, _ in there)
    stamps = [(stamp + late, key) for stamp, key in there if video.zero <= stamp + late < video.stop]
    keys = [stamp for stamp, key in stamps if key]
    if not stamps or (not keys and video.ref.begin_s is None):
        return None
    _check_length(video, video.at(max(stamp for stamp, _ in stamps)))
    return _Times(_seconds(video, [stamp for stamp, _ in stamps]), _seconds(video, keys))


def _check_length(video: Video, seconds: float) -> None:
    if seconds > video.limits.max_seconds:
        raise video.error("too_long", f"longer than the limit of {video.limits.max_seconds:g} s")
