"""Bytes -> Clip: physical time, one thread, and a refusal with a reason of whatever cannot be decoded.

A clip is decoded fast without a picture or a time being any different. The packets from the key frame before
the clip to its end are read first, without decoding; their time stamps say which pictures are wanted; then
only these and what they can depend on are decoded. Left out are pictures that nothing refers to (by the
header of their H.264 or HEVC slices), and everything between a wanted picture and the last key frame before
the next one. Where a stream does not keep the rules on which this rests, the clip is decoded again in the
plain way; where that does not give the wanted pictures whole, it is refused.
"""

from __future__ import annotations  # Packet takes its parameter in annotations only

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from lawm import packets, storage
from lawm.config import ClipSpec, LawmError, VideoLimits
from lawm.cutting import Cutter, shape
from lawm.packets import Held
from lawm.shards import VideoRef, empty_row

Reason = Literal[
    "missing", "unreadable", "tar", "empty", "truncated", "not_video", "no_video_stream", "unknown_codec", "corrupt",
    "bad_timestamps", "bad_shape", "zero_duration", "too_short", "too_large", "too_long", "timeout",
]  # fmt: skip

# Only demuxers that read one file: a playlist or an image pattern could open other files, or the network.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,ivf"
_ISO = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
_OTHERS = (b"\x1a\x45\xdf\xa3", b"RIFF", b"FLV\x01", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba", b"DKIF")
_HELD_BYTES = 512 << 20
"""Compressed bytes of one clip, with what comes before it back to a key frame, that may be held in memory."""
_TABLE_BYTES = 64 << 20
"""From this size on, and on S3, `probe` takes times from an mp4's own table and does not read the whole file."""
T = TypeVar("T")


class VideoError(LawmError):
    """A video, or a clip of it, that cannot be used: `reason` (one of Reason), `source`, in `detail` the figures."""

    def __init__(self, reason: Reason, source: str, detail: str = "") -> None:
        super().__init__(reason, source, detail)  # all three in args, so that it survives pickling
        self.reason, self.source, self.detail = reason, source, detail

    def __str__(self) -> str:
        return f"{self.source}: {self.why}"

    @property
    def why(self) -> str:
        """`reason: detail`, as it stands in an index."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Clip:
    """frames_FCHW: uint8 RGB [F, 3, size, size]; seconds_F: float64 [F], the time stamps of these very frames;
    start_s: where the clip really starts. Times are in seconds from the video's first frame."""

    frames_FCHW: np.ndarray
    seconds_F: np.ndarray
    ref: VideoRef
    start_s: float


class _Irregular(Exception):
    """The fast way has met something that it does not understand."""


# ---------------------------------------------------------------- opening
@dataclass(frozen=True)
class _Video:
    """An open video and the clock that limits what may be spent on it. Times are seconds from `zero`."""

    container: InputContainer
    stream: VideoStream
    ref: VideoRef
    limits: VideoLimits
    deadline: float
    tick: float
    """Seconds per unit of a time stamp."""
    zero: int = 0
    """Time stamp of the first frame that is shown."""

    @property
    def near(self) -> float:
        """Seconds by which two times may differ and still be the same: containers round to their tick, often 1 ms."""
        return min(self.tick / 2, 0.001) + 1e-6

    def at(self, stamp: int) -> float:
        return (stamp - self.zero) * self.tick

    def error(self, reason: Reason, detail: str = "") -> VideoError:
        return VideoError(reason, str(self.ref), detail)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise self.error("timeout", f"not done after {self.limits.timeout_s:g} s")

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets of the video stream from where the container stands to where it ends or breaks off."""
        try:
            for packet in self.container.demux(self.stream):
                self.check_time()
                # Left out: the flush packet, one that the file's end cuts short, a hole that a download has left.
                if packet.size and not packet.is_corrupt and any(memoryview(packet)[:16]):
                    yield packet
        except (av.error.ExitError, TimeoutError):
            raise self.error("timeout", f"not read after {self.limits.timeout_s:g} s") from None
        except (av.error.FFmpegError, IndexError):  # IndexError: PyAV, at the end, if a stream has turned up meanwhile
            return

    def rewind(self, at: float | None) -> None:
        """Moves to a key frame at or before `at` seconds, or near it; to the start for None."""
        if at is not None:
            with contextlib.suppress(av.error.FFmpegError):
                self.container.seek(self.zero + round(at / self.tick), stream=self.stream)
                return
        first = self.stream.start_time or 0
        for stamp in (min(0, first) - round(60 / self.tick), first, 0):  # some formats want it exact, some early
            with contextlib.suppress(av.error.FFmpegError):
                self.container.seek(stamp, stream=self.stream)
                return

    def set_up_decoder(self, explode: bool) -> None:
        """One thread; `explode`: a damaged slice is an error, not a guess."""
        context = self.stream.codec_context
        context.thread_type = "NONE"
        context.thread_count = 1
        context.options = {"max_pixels": str(self.limits.max_pixels)} | ({"err_detect": "explode"} if explode else {})


class _TimedFile:
    """A file for PyAV that stops answering when the time is up: PyAV's own clock watches only C protocols."""

    def __init__(self, file: Any, deadline: float) -> None:
        self._file, self._deadline = file, deadline
        self.name, self.seek, self.tell = "video", file.seek, file.tell

    def read(self, size: int) -> bytes:
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return bytes(self._file.read(size))


@contextlib.contextmanager
def _open(ref: VideoRef, limits: VideoLimits, deadline: float) -> Iterator[_Video]:
    """Opens a video; decodes nothing. Raises VideoError, and StorageError where S3 cannot be reached."""
    where = str(ref)
    if ref.is_tar:
        raise VideoError("tar", where, "compressed or damaged, members cannot be read in place; unpack it, tar it anew")
    with contextlib.ExitStack() as stack:
        head = b""
        try:
            if remote := storage.is_s3(ref.source):
                file, whole = storage.open_sized(ref.source, ref.offset, ref.size)
                stack.enter_context(file)
            else:
                whole = storage.size_of(ref.source)
            there = whole - ref.offset
            if min(ref.size, there) <= 0:
                raise VideoError("empty", where, "0 bytes")
            if there < ref.size:
                raise VideoError("truncated", where, f"{there} of {ref.size} bytes are there")
            if ref.size > limits.max_bytes:
                raise VideoError("too_large", where, f"{ref.size} bytes, the limit is {limits.max_bytes}")
            if remote:
                head = file.read(12)
                file.seek(0)
                target: Any = _TimedFile(file, deadline)
            else:
                head = storage.read_bytes(ref.source, ref.offset, 12)
                target = _local_url(ref, there)
            options = {"format_whitelist": _DEMUXERS, "max_pixels": str(limits.max_pixels)}
            left = max(0.01, deadline - time.monotonic())
            container = stack.enter_context(
                av.open(target, "r", options=options, metadata_errors="replace", buffer_size=1 << 16, timeout=left)
            )
        except storage.NotFoundError:
            raise VideoError("missing", where, "there is nothing at this place") from None
        except storage.StorageError as error:
            if storage.is_s3(ref.source):
                raise  # a network that is down says nothing about the video
            raise VideoError("unreadable", where, str(error)) from None
        except (av.error.ExitError, TimeoutError):
            raise VideoError("timeout", where, f"not open after {limits.timeout_s:g} s") from None
        except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            said = getattr(error, "strerror", None) or str(error)
            if head[4:8] in _ISO:
                raise VideoError("truncated", where, f"the table of contents (moov) is not there: {said}") from None
            known = head.startswith(_OTHERS)
            raise VideoError("corrupt" if known else "not_video", where, said) from None
        video = _video_of(container, ref, limits, deadline)
        yield replace(video, zero=_first_pts(video))


def _local_url(ref: VideoRef, there: int) -> str:
    """A name that FFmpeg reads by itself: no Python between it and the disk, no protocol guessed from the name."""
    path = f"file:{storage.absolute(ref.source)}"
    if ref.offset == 0 and ref.size == there:
        return path
    return f"subfile,,start,{ref.offset},end,{ref.offset + ref.size},,:{path}"


def _video_of(container: InputContainer, ref: VideoRef, limits: VideoLimits, deadline: float) -> _Video:
    where = str(ref)
    streams = [s for s in container.streams.video if not int(s.disposition) & int(av.stream.Disposition.attached_pic)]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams}))
        raise VideoError("no_video_stream", where, f"streams: {kinds or 'none'}")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError("unknown_codec", where, "no decoder for it is built in")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.max_pixels:
        raise VideoError("too_large", where, f"{width} x {height} pixels, the limit is {limits.max_pixels}")
    if not stream.time_base:
        raise VideoError("bad_timestamps", where, "no time base")
    return _Video(container, stream, ref, limits, deadline, float(stream.time_base))


def _first_pts(video: _Video) -> int:
    """Time stamp of the first frame that is shown, from the first few packets of a video just opened.

    Frames before the first key frame, or before the start of an edit list, are never shown.
    """
    first: int | None = None
    key: int | None = None
    count = 0
    for packet in video.packets():
        count += 1
        if packet.is_keyframe and key is None:
            key = packet.pts
        if key is None or packet.pts is None or packet.pts < key or packet.is_discard:
            continue
        first = packet.pts if first is None else min(first, packet.pts)
        # Packets come in the order of dts, and pts >= dts: nothing earlier can follow.
        if (packet.dts is not None and packet.dts >= first) or count > 4096:
            break
    if count == 0:
        raise video.error("truncated", "no frame can be read")
    if first is None:
        raise video.error(*(("corrupt", "no key frame") if key is None else ("bad_timestamps", "no frame is shown")))
    return first


# ---------------------------------------------------------------- packets, before any decoding
def _gather(video: _Video, first_s: float, last_s: float) -> list[Held]:
    """Packets in decoding order from the last key frame at or before `first_s` until nothing at or before
    `last_s` can follow. Raises _Irregular where there is no such key frame, VideoError."""
    near = video.near
    for back_s in (0.0, 2.0, 10.0, None):
        video.rewind(None if back_s is None else first_s - back_s)
        held: list[Held] = []
        size = 0
        for packet in video.packets():
            if packet.pts is None:
                raise _Irregular
            at, key = video.at(packet.pts), packet.is_keyframe
            if key and at <= first_s + near:
                held, size = [], 0  # what came before it cannot be wanted, nor referred to by what is
            elif not held:
                if key:
                    break  # too late: look further back
                continue
            held.append(Held(packet, at, key, shown=not packet.is_discard))
            size += packet.size
            if size > _HELD_BYTES:
                raise video.error("too_large", f"more than {_HELD_BYTES >> 20} MiB from a key frame to the clip's end")
            if packet.dts is not None and video.at(packet.dts) > last_s + near:
                break
        if held:
            return held
    raise _Irregular


def _keyframe_starts(video: _Video, start_s: float) -> list[float]:
    """The key frames around `start_s`, the nearest first; `start_s` itself where there is none."""
    before: float | None = None
    video.rewind(start_s)
    for packet in video.packets():
        enough = math.inf if before is None else 2 * start_s - before  # a key frame after this is further away
        if packet.dts is not None and video.at(packet.dts) > enough:
            break
        if packet.is_keyframe and packet.pts is not None and not packet.is_discard:
            at = video.at(packet.pts)
            if at > start_s:
                return sorted({at, at if before is None else before}, key=lambda key: abs(key - start_s))
            before = at
    return [start_s if before is None else before]


def _choose(video: _Video, times_N: np.ndarray, wanted_F: np.ndarray, fps: float) -> np.ndarray:
    """packets.choose, checked. Raises VideoError: too_short (the video ends before), bad_timestamps (a gap)."""
    half = 0.5 / fps
    chosen = packets.choose(times_N, wanted_F, half, video.near)
    off = np.abs(times_N[chosen] - wanted_F)
    if np.any(off >= half):
        i = int(np.argmax(off))
        if wanted_F[i] > times_N[-1]:
            raise video.error("too_short", f"frame wanted at {wanted_F[i]:.3f} s, the last is at {times_N[-1]:.3f} s")
        said = f"{half:.3f} s are allowed at {fps:g} fps"
        raise video.error("bad_timestamps", f"at {wanted_F[i]:.3f} s the nearest frame is {off[i]:.3f} s away, {said}")
    return chosen


# ---------------------------------------------------------------- decoding
def _fast(
    video: _Video, wanted_F: np.ndarray, spec: ClipSpec, cut: Callable[[VideoFrame], T]
) -> Iterator[tuple[int, float, T]]:
    """(i, time, cut(frame)) for every wanted time, in the order of decoding. Raises _Irregular, VideoError."""
    held = _gather(video, float(wanted_F[0]), float(wanted_F[-1]) + 0.5 / spec.fps)
    context = video.stream.codec_context
    spare = packets.disposability([h.packet for h in held], context.name, context.extradata or b"")
    # Frames that lead the first key frame cannot be decoded from there.
    shown = {h.at: (h.packet.pts, s) for h, s in zip(held, spare, strict=True) if h.shown and h.at >= held[0].at}
    if not shown:
        raise _Irregular
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
        first = run[0].pts
        for packet in [*run, None]:
            video.check_time()
            try:
                frames = context.decode(packet)
            except (av.error.FFmpegError, ValueError):
                raise _Irregular from None
            for frame in frames:
                if frame.pts is None or first is None or frame.pts < first:
                    continue
                if frame.is_corrupt or (frame.pts == first and not _is_key(frame)):
                    raise _Irregular
                if frame.pts in left:
                    left.discard(frame.pts)
                    picture = cut(frame)
                    for i in wanted[frame.pts]:
                        yield i, video.at(frame.pts), picture
    if left:
        raise _Irregular


def _is_key(frame: VideoFrame) -> bool:
    return frame.key_frame or frame.pict_type == PictureType.I


def _plain(
    video: _Video, wanted_F: np.ndarray, spec: ClipSpec, cut: Callable[[VideoFrame], T]
) -> Iterator[tuple[int, float, T]]:
    """The same as _fast, frame after frame, by the times of the frames themselves. Raises VideoError.

    Errors are left to the decoder; a frame is refused if it, or another since the last key frame, is damaged.
    """
    near, half = video.near, 0.5 / spec.fps
    for back_s in (10.0, None):
        video.rewind(None if back_s is None else float(wanted_F[0]) - back_s)
        damages: list[tuple[float, int]] = []
        kept: list[tuple[float, float, int, T]] = []  # time, time of its key frame, place in the output, picture
        key_at = -math.inf
        for place, (at, frame) in enumerate(_all_frames(video, damages)):
            key_at = at if _is_key(frame) else key_at
            # Only the frames before and after a wanted time can be chosen.
            if len(kept) >= 2 and not np.any((wanted_F + near >= kept[-2][0]) & (wanted_F <= at + near)):
                kept.pop()
            if at > wanted_F[0] - half - near:
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


def _all_frames(video: _Video, damages: list[tuple[float, int]]) -> Iterator[tuple[float, VideoFrame]]:
    """(time, frame) from where the container stands; `damages` gets the time and the place of what was damaged."""
    context = video.stream.codec_context
    context.flush_buffers()
    place = 0
    for packet in itertools.chain(video.packets(), [None]):
        try:
            frames = context.decode(packet)
        except (av.error.FFmpegError, ValueError):
            stamp = None if packet is None else packet.pts
            damages.append((math.inf if stamp is None else video.at(stamp), place))
            continue
        for frame in frames:
            if frame.pts is None:
                continue
            if frame.is_corrupt:
                damages.append((video.at(frame.pts), place))
            place += 1
            yield video.at(frame.pts), frame


def decode_clip(ref: VideoRef, start_s: float, spec: ClipSpec, limits: VideoLimits, seed: int = 0) -> Clip:
    """Decodes `spec.frames` frames at `spec.fps` of physical time from `start_s` (seconds from the first frame).

    Frame i is the one on display at start_s + i / fps (see _choose; its own time, in `seconds_F`, is less than
    half a sampling interval away). With `spec.start == "keyframe"` the start first moves to the nearest key
    frame from which the clip fits. `seed` places a random crop. Raises VideoError; StorageError for S3 itself.
    """
    deadline = time.monotonic() + limits.timeout_s
    with contextlib.suppress(_Irregular), _open(ref, limits, deadline) as video:
        video.set_up_decoder(explode=True)
        starts = _keyframe_starts(video, start_s) if spec.start == "keyframe" else [start_s]
        for n, start in enumerate(starts):
            try:
                return _clip(video, start, spec, seed, _fast)
            except VideoError as error:
                if error.reason != "too_short" or n + 1 == len(starts):
                    raise
    with _open(ref, limits, deadline) as video:
        video.set_up_decoder(explode=False)
        return _clip(video, start_s, spec, seed, _plain)


def _clip(video: _Video, start_s: float, spec: ClipSpec, seed: int, decode: Any) -> Clip:
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
    for decode in (_fast, _plain):
        with contextlib.suppress(_Irregular), _open(ref, limits, deadline) as video:
            video.set_up_decoder(explode=decode is _fast)
            found: dict[int, np.ndarray] = {}
            cut = Cutter(video.stream, limits, video.error, spec, whole=short)
            for i, _, picture in decode(video, times_F, spec, cut):
                found[i] = picture
            return np.stack([found[i] for i in range(len(times_F))])
    raise AssertionError("the plain way is never irregular")


# ---------------------------------------------------------------- probing
def probe(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
    """One index row (INDEX_SCHEMA). Reads packets, decodes the first and the last key frame.

    A video that cannot be used gets a `reason` ("reason: detail") and whatever could be found out; only
    StorageError (S3 cannot be reached) is raised.
    """
    row = empty_row(ref)
    try:
        with _open(ref, limits, time.monotonic() + limits.timeout_s) as video:
            _fill(row, video)
    except VideoError as error:
        row["reason"] = error.why
    return row


def _fill(row: dict[str, Any], video: _Video) -> None:
    stream = video.stream
    rate = stream.average_rate or stream.guessed_rate
    row |= {
        "container": video.container.format.name,
        "codec": stream.codec_context.name,
        "width": stream.codec_context.width,
        "height": stream.codec_context.height,
        "container_rate": float(rate) if rate else None,
    }
    times_N, keys_K = _times(video)
    row |= {"frames": len(times_N), "start_s": video.zero * video.tick, "keyframes_s": keys_K.astype(np.float32)}
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
    for at in sorted({float(keys_K[0]), float(keys_K[-1])}):
        row["width"], row["height"], _ = _decode_one(video, at, lambda frame: shape(frame, stream))


def _decode_one(video: _Video, at: float, cut: Callable[[VideoFrame], T]) -> T:
    """cut(the frame at `at` seconds). Raises VideoError."""
    for decode in (_fast, _plain):
        with contextlib.suppress(_Irregular):
            return next(decode(video, np.array([at]), ClipSpec(), cut))[2]
    raise video.error("corrupt", f"the frame at {at:.3f} s cannot be decoded")


def _times(video: _Video) -> tuple[np.ndarray, np.ndarray]:
    """Ascending times of all frames that are shown and of the key frames, in seconds from the first frame."""
    if storage.is_s3(video.ref.source) or video.ref.size >= _TABLE_BYTES:
        table = _times_from_table(video)
        if table is not None:
            return table
    stamps: list[int] = []
    keys: list[int] = []
    video.rewind(None)
    for packet in video.packets():
        if packet.pts is None:
            continue
        if packet.is_keyframe:
            keys.append(packet.pts)
        if packet.pts >= video.zero and not packet.is_discard:
            stamps.append(packet.pts)
            _check_length(video, video.at(packet.pts))
    return video.at(np.sort(np.array(stamps))), video.at(np.sort(np.array(keys)))  # type: ignore[arg-type, return-value]


def _times_from_table(video: _Video) -> tuple[np.ndarray, np.ndarray] | None:
    """Times from an mp4's sample table, without reading the frames; None where it has no whole one.

    The table is in decoding order with decoding times. Their differences are those of the display times, save
    for frames that are reordered at a variable rate.
    """
    entries = video.stream.index_entries
    if "mp4" not in video.container.format.name or len(entries) == 0 or len(entries) != video.stream.frames:
        return None
    there = [e for e in entries if not e.is_discard and e.pos + e.size <= video.ref.size]
    keys = [e.timestamp for e in there if e.is_keyframe]
    if not there or not keys:
        return None
    first = there[0].timestamp
    _check_length(video, (there[-1].timestamp - first) * video.tick)
    return (np.array([e.timestamp for e in there]) - first) * video.tick, (np.array(keys) - first) * video.tick


def _check_length(video: _Video, seconds: float) -> None:
    if seconds > video.limits.max_seconds:
        raise video.error("too_long", f"longer than the limit of {video.limits.max_seconds:g} s")
