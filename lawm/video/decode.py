"""Bytes -> Clip: physical time, one thread, and a refusal with a reason of whatever cannot be decoded.

A clip is decoded fast without a picture or a time being any different. The packets from the key frame before
the clip to its end are read first, without decoding; their time stamps say which pictures are wanted; then
only these and what they can depend on are decoded. Left out are pictures that nothing refers to (by the
header of their H.264 or HEVC slices), and everything between a wanted picture and the last key frame before
the next one. Where a stream does not keep the rules on which this rests, the clip is decoded again in the
plain way; where that does not give the wanted pictures whole, it is refused. What is trusted, and what is held
against the decoder, says docs/video.md.
"""

from __future__ import annotations  # Packet takes its parameter in annotations only

import contextlib
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import av
import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame

from lawm.config import ClipSpec, VideoLimits
from lawm.video import packets
from lawm.video.cutting import Cutter
from lawm.video.opening import Video, VideoError, open_video
from lawm.video.packets import Held
from lawm.video.ref import VideoRef
from lawm.video.timing import choose

_HELD_BYTES = 512 << 20
"""Compressed bytes of one clip, with what comes before it back to a key frame, that may be held in memory."""

_REORDERED = 17
"""Pictures that may be shown later than the next one in decoding order: 16 B-frames and the one before them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """frames_FCHW: uint8 RGB [F, 3, size, size]; seconds_F: float64 [F], the time stamps of these very frames;
    start_s: where the clip really starts. Times are in seconds from the video's first frame."""

    frames_FCHW: np.ndarray
    seconds_F: np.ndarray
    ref: VideoRef
    start_s: float


class Irregular(Exception):
    """The fast way has met something that it does not understand."""


# ---------------------------------------------------------------- packets, before any decoding
def _gather(video: Video, first_s: float, last_s: float) -> list[Held]:
    """Packets in decoding order from the last key frame at or before `first_s` until nothing at or before
    `last_s` can follow. Raises Irregular where there is no such key frame, VideoError."""
    near = video.near
    for back_s in (0.0, 2.0, 10.0, None):
        video.rewind(None if back_s is None else first_s - back_s)
        held: list[Held] = []
        size, lost, damaged, latest = 0, False, False, -math.inf
        for packet in video.packets():
            if video.lost(packet):
                lost = True
                continue
            if packet.pts is None:
                raise Irregular
            at, key = video.at(packet.pts), packet.is_keyframe
            if key and at < latest:
                raise Irregular  # no key frame, as what is decoded before one is shown before it: all may be called so
            latest = max(latest, at)
            if key and at <= first_s + near:
                held, size, lost, damaged = [], 0, False, False  # what came before it is not wanted, nor referred to
            elif not held:
                if key:
                    break  # too late: look further back
                continue
            held.append(Held(packet, at, key, shown=video.shows(packet)))
            size += packet.size
            damaged |= lost
            if size > _HELD_BYTES:
                raise video.error("too_large", f"more than {_HELD_BYTES >> 20} MiB from a key frame to the clip's end")
            if packet.dts is not None and video.at(packet.dts) > last_s + near:
                break
        if damaged:
            raise Irregular
        if held:
            return held
    raise Irregular


def _keyframe_starts(video: Video, start_s: float) -> list[float]:
    """The key frames around `start_s`, the nearest first; `start_s` itself where there is none."""
    before: float | None = None
    video.rewind(start_s)
    for packet in video.packets():
        enough = math.inf if before is None else 2 * start_s - before  # a key frame after this is further away
        if packet.dts is not None and video.at(packet.dts) > enough:
            break
        if packet.is_keyframe and packet.pts is not None and video.shows(packet):
            at = video.at(packet.pts)
            if at > start_s:
                return sorted({at, at if before is None else before}, key=lambda key: abs(key - start_s))
            before = at
    return [start_s if before is None else before]


def _choose(video: Video, times_N: np.ndarray, wanted_F: np.ndarray, fps: float) -> np.ndarray:
    """timing.choose, checked. Raises VideoError: too_short (the video ends before), bad_timestamps (a gap)."""
    half = 0.5 / fps
    chosen = choose(times_N, wanted_F, half, video.near)
    off = np.abs(times_N[chosen] - wanted_F)
    if np.any(off >= half):
        i = int(np.argmax(off))
        if wanted_F[i] > times_N[-1]:
            raise video.error("too_short", f"frame wanted at {wanted_F[i]:.3f} s, the last is at {times_N[-1]:.3f} s")
        said = f"{half:.3f} s are allowed at {fps:g} fps"
        raise video.error("bad_timestamps", f"at {wanted_F[i]:.3f} s the nearest frame is {off[i]:.3f} s away, {said}")
    return chosen


# ---------------------------------------------------------------- decoding
def fast(
    video: Video, wanted_F: np.ndarray, spec: ClipSpec, cut: Callable[[VideoFrame], T]
) -> Iterator[tuple[int, float, T]]:
    """(i, time, cut(frame)) for every wanted time, in the order of decoding. Raises Irregular, VideoError."""
    if video.by_dts:
        raise Irregular
    held = _gather(video, float(wanted_F[0]), float(wanted_F[-1]) + 0.5 / spec.fps)
    context = video.stream.codec_context
    spare = packets.disposability([h.packet for h in held], context.name, context.extradata or b"")
    # Frames that lead the first key frame cannot be decoded from there.
    shown = {h.at: (h.packet.pts, s) for h, s in zip(held, spare, strict=True) if h.shown and h.at >= held[0].at}
    if not shown:
        raise Irregular
    times_N = np.array(sorted(shown))
    chosen = _choose(video, times_N, wanted_F, spec.fps)
    if spec.start == "keyframe":
        spare_N = np.array([shown[at][1] for at in times_N])
        chosen = packets.prefer_referenced(chosen, times_N, wanted_F, 0.5 / spec.fps, video.near, spare_N)
    wanted: dict[int | None, list[int]] = {}
    for i, n in enumerate(chosen):
        wanted.setdefault(shown[times_N[n]][0], []).append(i)
    left = set(wanted)
    for run in packets.runs(held, left, spare):
        context.flush_buffers()
        first = latest = run[0].pts
        for packet in [*run, None]:
            video.check_time()
            try:
                frames = context.decode(packet)
            except (av.error.FFmpegError, ValueError):
                raise Irregular from None
            for frame in frames:
                if frame.pts is None or first is None or frame.pts < first:
                    continue
                if frame.is_corrupt or (frame.pts == first and not _is_key(frame)):
                    raise Irregular
                if latest is not None and frame.pts < latest:
                    raise Irregular  # shown in another order than the times say
                latest = frame.pts
                if frame.pts in left:
                    left.discard(frame.pts)
                    picture = cut(frame)
                    for i in wanted[frame.pts]:
                        yield i, video.at(frame.pts), picture
    if left:
        raise Irregular


def _is_key(frame: VideoFrame) -> bool:
    return frame.key_frame or frame.pict_type == PictureType.I


def plain(
    video: Video, wanted_F: np.ndarray, spec: ClipSpec, cut: Callable[[VideoFrame], T]
) -> Iterator[tuple[int, float, T]]:
    """The same as fast, frame after frame, by the times of the frames themselves. Raises VideoError.

    Errors are left to the decoder; a frame is refused if it, or another since the last key frame, is damaged.
    """
    near, half = video.near, 0.5 / spec.fps
    # Where times are dealt out, those of the first pictures after a key frame may be wrong.
    for back_s in (10.0 + _dealing_s(video), None):
        video.rewind(None if back_s is None else float(wanted_F[0]) - back_s)
        damages: list[tuple[float, int]] = []
        kept: list[tuple[float, float, int, T]] = []  # time, time of its key frame, place in the output, picture
        key_at = -math.inf
        for place, (at, frame) in enumerate(all_frames(video, damages)):
            key_at = at if _is_key(frame) else key_at
            # Only the frames before and after a wanted time can be chosen.
            if len(kept) >= 2 and not np.any((wanted_F + near >= kept[-2][0]) & (wanted_F <= at + near)):
                kept.pop()
            if at > max(wanted_F[0] - half, 0.0) - near:
                kept.append((at, key_at, place, cut(frame)))
            if at > wanted_F[-1] + half:
                break
        if kept and kept[0][0] <= wanted_F[0] + half:
            break
    if not kept:
        raise video.error("corrupt", "no frame could be decoded")
    kept.sort(key=lambda k: k[0])
    try:
        chosen = _choose(video, np.array([k[0] for k in kept]), wanted_F, spec.fps)
    except VideoError as error:
        raise video.error("corrupt", f"damaged; {error.detail}") if damages else error from None
    for i, n in enumerate(chosen):
        at, key_at, place, picture = kept[n]
        # A frame may refer to another that is shown later, but not by more than the 16 that a decoder keeps.
        if any(damage_at >= key_at and place >= damage_place - 17 for damage_at, damage_place in damages):
            raise video.error("corrupt", f"damaged between its key frame at {key_at:.3f} s and {at:.3f} s")
        yield i, at, picture


def _dealing_s(video: Video) -> float:
    """Seconds by which a packet's own time and that of its picture may differ."""
    return 2 * _REORDERED * video.interval * video.tick if video.by_dts else 0.0


def all_frames(
    video: Video, damages: list[tuple[float, int]], found: Iterable[Packet[Any]] | None = None
) -> Iterator[tuple[float, VideoFrame]]:
    """(time, frame) in the order in which the decoder shows them, from the packets `found`, or where the container
    stands; `damages` gets the time and the place of what was damaged. Raises VideoError: bad_timestamps where the times
    say another order.

    Where the container holds times of decoding alone, the k-th picture has the (k + delay)-th of the times whose
    packets gave a picture: a later packet's time is greater, and at most _REORDERED pictures are out before an earlier
    packet's is.
    """
    stamps: list[int] = []  # a heap
    frames: deque[VideoFrame] = deque()
    latest = -math.inf
    skipped = video.delay
    for frame in _decoded(video, damages, video.packets() if found is None else found):
        if frame.pts is None:
            raise video.error("bad_timestamps", "a picture has no time")
        heapq.heappush(stamps, frame.pts)
        frames.append(frame)
        if video.by_dts and len(frames) <= _REORDERED + video.delay:
            continue
        while skipped:
            heapq.heappop(stamps)
            skipped -= 1
        stamp = heapq.heappop(stamps)
        if stamp < latest and not damages:
            said = f"a picture of {video.at(stamp):.3f} s is shown after one of {video.at(int(latest)):.3f} s"
            raise video.error("bad_timestamps", f"{said}: the times say another order than the decoder; encode it anew")
        latest = max(latest, stamp)
        yield video.at(stamp), frames.popleft()
    stamps = sorted(stamps)[skipped:]
    while frames:
        latest = stamps.pop(0) if stamps else latest + video.interval
        yield video.at(int(latest)), frames.popleft()


def _decoded(video: Video, damages: list[tuple[float, int]], found: Iterable[Packet[Any]]) -> Iterator[VideoFrame]:
    context = video.stream.codec_context
    context.flush_buffers()
    late_s = _dealing_s(video)
    place = 0
    lost: list[tuple[float, int]] = []
    needed = itertools.takewhile(lambda p: p.dts is None or p.dts < video.stop, found)
    for packet in itertools.chain(needed, [None]):
        if packet is not None and video.by_dts:
            packet.pts = packet.dts  # the frame will have it
        stamp = None if packet is None else packet.pts
        if packet is not None and video.lost(packet):
            lost.append((math.inf if stamp is None else video.at(stamp) + late_s, place))
            continue
        if packet is not None:
            damages += lost  # what is decoded from here on may refer to it
            lost = []
        try:
            frames = context.decode(packet)
        except (av.error.FFmpegError, ValueError):
            damages.append((math.inf if stamp is None else video.at(stamp) + late_s, place))
            continue
        for frame in frames:
            if frame.pts is not None and frame.pts >= video.stop:
                continue
            if frame.is_corrupt:
                damages.append((math.inf if frame.pts is None else video.at(frame.pts) + late_s, place))
            place += 1
            yield frame


def decode_clip(ref: VideoRef, start_s: float, spec: ClipSpec, limits: VideoLimits, seed: int = 0) -> Clip:
    """Decodes `spec.frames` frames at `spec.fps` of physical time from `start_s` (seconds from the first frame).

    Frame i is the one on display at start_s + i / fps (see _choose; its own time, in `seconds_F`, is less than
    half a sampling interval away). With `spec.start == "keyframe"` the start first moves to the nearest key
    frame from which the clip fits; with `spec.loop_filter == "skip"` the pictures are approximate, their times are
    not. `seed` places a random crop. Raises VideoError; StorageError for S3 itself.
    """
    deadline = time.monotonic() + limits.timeout_s
    with contextlib.suppress(Irregular), open_video(ref, limits, deadline) as video:
        video.set_up_decoder(explode=True, loop_filter=spec.loop_filter)
        starts = _keyframe_starts(video, start_s) if spec.start == "keyframe" else [start_s]
        for n, start in enumerate(starts):
            try:
                return _clip(video, start, spec, seed, fast)
            except VideoError as error:
                if error.reason != "too_short" or n + 1 == len(starts):
                    raise
    with open_video(ref, limits, deadline) as video:
        video.set_up_decoder(explode=False, loop_filter=spec.loop_filter)
        return _clip(video, start_s, spec, seed, plain)


def _clip(video: Video, start_s: float, spec: ClipSpec, seed: int, decode: Any) -> Clip:
    wanted_F = start_s + np.arange(spec.frames) / spec.fps
    frames_FCHW = np.empty((spec.frames, 3, spec.size, spec.size), np.uint8)
    seconds_F = np.full(spec.frames, np.nan)
    for i, at, picture in decode(video, wanted_F, spec, Cutter(video.stream, video.limits, video.error, spec, seed)):
        frames_FCHW[i], seconds_F[i] = picture, at
    return Clip(frames_FCHW, seconds_F, video.ref, start_s)


def decode_whole(ref: VideoRef, times_F: np.ndarray, fps: float, short: int, limits: VideoLimits) -> np.ndarray:
    """The whole pictures on display at ascending `times_F` (seconds from the first frame; none may be half a
    sampling interval of `fps` away): uint8 RGB [F, 3, H, W], even H and W, the shorter `short` pixels or what the
    video has. Raises as `decode_clip`."""
    deadline, spec = time.monotonic() + limits.timeout_s, ClipSpec(fps=fps)
    for decode in (fast, plain):
        with contextlib.suppress(Irregular), open_video(ref, limits, deadline) as video:
            video.set_up_decoder(explode=decode is fast)
            found: dict[int, np.ndarray] = {}
            cut = Cutter(video.stream, limits, video.error, spec, whole=short)
            for i, _, picture in decode(video, times_F, spec, cut):
                found[i] = picture
            return np.stack([found[i] for i in range(len(times_F))])
    raise AssertionError("the plain way is never irregular")
