"""A video's bytes -> an open container with a clock, or a reason why not. Nothing is decoded here."""

from __future__ import annotations  # Packet takes its parameter in annotations only

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from lawm import storage
from lawm.config import LawmError, VideoLimits
from lawm.video import packets
from lawm.video.ref import VideoRef

Reason = Literal[
    "missing", "unreadable", "tar", "empty", "truncated", "not_video", "no_video_stream", "unknown_codec", "corrupt",
    "bad_timestamps", "bad_shape", "bad_colour", "zero_duration", "too_short", "too_large", "too_long", "timeout",
    "replaced",
]  # fmt: skip

# Only demuxers that read one file: a playlist or an image pattern could open other files, or the network.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,ivf"
LOOP_FILTERED = ("h264", "hevc")
"""Codecs whose in-loop filters can be left out, with pictures still like the true ones (VP8's depart further)."""
_ISO = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
_OTHERS = (b"\x1a\x45\xdf\xa3", b"RIFF", b"FLV\x01", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba", b"DKIF")
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
_ASIDE = ("thumbnail", "preview", "cover")
"""Words in a stream's title or handler that say that it is not the film."""
_PICTURE_CODECS = ("png", "bmp", "gif", "tiff", "webp", "jpeg2000", "mjpeg")
"""Beside a film, a stream in one of these with a fifth of its pictures a second is made of thumbnails."""
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
_RAW = (b"\0\0\1\x67", b"\0\0\0\1", b"\0\0\1\xb3", b"\0\0\1\xb0", b"\0\0\1\xb5", b"\0\0\1\x00", b"\x12\x00\x0a")
_JUMPING = ("mpegts", "mpeg", "ogg")
"""Containers of which FFmpeg takes a jump in time of _JUMP_S for the beginning of another film."""
_JUMP_S = 10.0
_REPLACED = "the object is not the one that was indexed; index again"


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
class Video:
    """An open video and the clock that limits what may be spent on it. Times are seconds from `zero`."""

    container: InputContainer
    stream: VideoStream
    ref: VideoRef
    limits: VideoLimits
    deadline: float
    tick: float
    """Seconds per unit of a time stamp."""
    first: int = 0
    """Time stamp of the first frame that the file shows."""
    zero: int = 0
    """Time stamp of the first frame that is shown."""
    stop: float = math.inf
    """Time stamp from which on nothing more is shown."""
    version: int | None = None
    by_dts: bool = False
    """The container holds times of decoding alone, and the codec reorders pictures: they are dealt out to the pictures
    in the order in which the decoder shows them."""
    delay: int = 0
    """With `by_dts`: packets that the decoder has taken in before the one with which it shows its first picture."""
    head: int | None = None
    """Decoding time of the file's first packet."""

    @property
    def near(self) -> float:
        """Seconds by which two times may differ and still be the same: containers round to their tick, often 1 ms."""
        return min(self.tick / 2, 0.001) + 1e-6

    @property
    def interval(self) -> int:
        """Ticks from a frame to the next, by the rate that the container tells."""
        rate = _rate(self.stream) * float(self.stream.time_base or 1)
        return max(1, round(1 / rate)) if rate else 1

    def at(self, stamp: int) -> float:
        return (stamp - self.zero) * self.tick

    def stamp(self, packet: Packet[VideoStream]) -> int | None:
        return packet.dts if self.by_dts else packet.pts

    def lost(self, packet: Packet[VideoStream]) -> bool:
        """Whether bytes of it are missing: cut short by the file's end, or never written."""
        return packet.is_corrupt or packets.is_hole(packet, self.stream.codec_context.name)

    def shows(self, packet: Packet[VideoStream]) -> bool:
        stamp = self.stamp(packet)
        if stamp is None or not self.zero <= stamp < self.stop or packet.is_discard:
            return False
        return not self.lost(packet) and not packets.hides(packet, self.stream.codec_context.name)

    def error(self, reason: Reason, detail: str = "") -> VideoError:
        return VideoError(reason, str(self.ref), detail)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise self.error("timeout", f"not done after {self.limits.timeout_s:g} s")

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets of the video stream from where the container stands to where it ends or breaks off. Raises
        VideoError: bad_timestamps where times start again, as in streams that were put one after the other."""
        latest, before = -math.inf, None
        try:
            for packet in self.container.demux(self.stream):
                self.check_time()
                if not packet.size:
                    continue  # the flush packet; in AVI and Ogg also "the picture before stays"
                if self.by_dts and packet.dts is None and before is not None:
                    packet.dts = before + self.interval
                stamp = self.stamp(packet)
                if stamp is not None and not packet.is_discard and not self.lost(packet):
                    back = before is None or packet.dts is None or packet.dts < before
                    if packet.is_keyframe and latest > -math.inf:
                        self._check_order(int(latest), stamp, back)
                    latest = max(latest, stamp)
                before = packet.dts
                yield packet
        except (av.error.ExitError, TimeoutError):
            raise self.error("timeout", f"not read after {self.limits.timeout_s:g} s") from None
        except (av.error.FFmpegError, IndexError):  # IndexError: PyAV, at the end, if a stream has turned up meanwhile
            return

    def _check_order(self, latest: int, key: int, back: bool) -> None:
        """Raises VideoError where a key frame cannot belong to the film before it. `back`: its decoding time is less
        than the last packet's; where a file calls every picture a key frame, those of display alone go to and fro."""
        jumps = self.container.format.name in _JUMPING and (key - latest) * self.tick > _JUMP_S
        # All that is decoded before a key frame is shown before it.
        if (key < latest and back) or jumps:
            said = (
                f"after {self.at(latest):.3f} s times {'jump to' if jumps else 'start again at'} {self.at(key):.3f} s"
            )
            raise self.error("bad_timestamps", f"{said}: videos put one after the other? remux it")

    def packets_around(self, at: float) -> Iterator[Packet[VideoStream]]:
        """Packets from a key frame on that is shown at or before `at` seconds; where there is none, from the first.
        Containers seek by decoding times, and may stop at a later one."""
        for back_s in (0.0, 2.0, 10.0, None):
            self.rewind(None if back_s is None else at - back_s)
            found = self.packets()
            key = next((p for p in found if p.is_keyframe and self.stamp(p) is not None), None)
            stamp = None if key is None else self.stamp(key)
            if key is not None and stamp is not None and (back_s is None or self.at(stamp) <= at + self.near):
                return itertools.chain([key], found)
        return iter(())

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
                if not self._at_start():
                    continue
                self.container.seek(stamp, stream=self.stream)
                return

    def _at_start(self) -> bool:
        """Whether the first packet comes next; ASF goes elsewhere when it is asked for a time before it."""
        if self.head is None or self.container.format.name in _INDEXED:
            return True
        found = next((packet for packet in self.container.demux(self.stream) if packet.size), None)
        return found is not None and found.dts is not None and found.dts <= self.head

    def set_up_decoder(self, explode: bool, loop_filter: Literal["exact", "skip"] = "exact") -> None:
        """One thread; `explode`: a damaged slice is an error, not a guess; with `loop_filter` "skip" the codecs of
        LOOP_FILTERED leave out deblocking (HEVC also its sample-adaptive offset)."""
        context = self.stream.codec_context
        context.thread_type = "NONE"
        context.thread_count = 1
        options = {"max_pixels": str(self.limits.max_pixels)}
        if explode:
            options["err_detect"] = "explode"
        if loop_filter == "skip" and context.codec.canonical_name in LOOP_FILTERED:
            options["skip_loop_filter"] = "all"
        context.options = options


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
def open_video(ref: VideoRef, limits: VideoLimits, deadline: float) -> Iterator[Video]:
    """Opens a video; decodes nothing. Raises VideoError, and StorageError where S3 cannot be reached."""
    where = str(ref)
    with contextlib.ExitStack() as stack:
        head = b""
        try:
            if storage.is_s3(ref.source):
                part = storage.open_part(ref.source, ref.offset, ref.size, ref.version)
                file = stack.enter_context(part.file)
                there, version = part.there, part.version
            else:
                file, there, version = None, storage.size_of(ref.source) - ref.offset, None
            if min(ref.size, there) <= 0:
                raise VideoError("empty", where, "0 bytes")
            if ref.is_tar:
                storage.read_bytes(ref.source, 0, 1)  # no right to read it is another reason
                said = "compressed or damaged, members cannot be read in place; unpack it, tar it anew"
                raise VideoError("tar", where, said)
            if there < ref.size:
                raise VideoError("truncated", where, f"{there} of {ref.size} bytes are there")
            if ref.size > limits.max_bytes:
                raise VideoError("too_large", where, f"{ref.size} bytes, the limit is {limits.max_bytes}")
            if file is not None:
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
        except storage.ReplacedError:
            raise VideoError("replaced", where, _REPLACED) from None
        except storage.StorageError as error:
            if not storage.tells_of_one(error, ref.source):
                raise  # a network that is down says nothing about the video
            raise VideoError("unreadable", where, str(error)) from None
        except (av.error.ExitError, TimeoutError):
            raise VideoError("timeout", where, f"not open after {limits.timeout_s:g} s") from None
        except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            said = getattr(error, "strerror", None) or str(error)
            if head[4:8] in _ISO:
                raise VideoError("truncated", where, f"the table of contents (moov) is not there: {said}") from None
            if head.startswith(_RAW):
                raise VideoError("not_video", where, "a raw stream has no times: put it into a container") from None
            known = head.startswith(_OTHERS)
            raise VideoError("corrupt" if known else "not_video", where, said) from None
        video = _video_of(container, ref, limits, deadline)
        try:
            video = replace(video, by_dts=_decoding_times_alone(video))
            if video.by_dts and (ref.begin_s is not None or ref.end_s is not None):
                raise video.error("bad_timestamps", "an episode of a file that holds no times of display; remux it")
            first, earliest = _first_stamps(video)
            video = replace(video, first=first, zero=first, head=earliest, version=version)
            if video.by_dts:
                video = _dealt(video)
            yield video if ref.begin_s is None and ref.end_s is None else _episode(video)
        except storage.ReplacedError:
            raise VideoError("replaced", where, _REPLACED) from None


def _local_url(ref: VideoRef, there: int) -> str:
    """A name that FFmpeg reads by itself: no Python between it and the disk, no protocol guessed from the name."""
    path = f"file:{storage.local_path(ref.source)}"
    if ref.offset == 0 and ref.size == there:
        return path
    return f"subfile,,start,{ref.offset},end,{ref.offset + ref.size},,:{path}"


def _video_of(container: InputContainer, ref: VideoRef, limits: VideoLimits, deadline: float) -> Video:
    where = str(ref)
    stream = _main_stream(container, where)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.max_pixels:
        raise VideoError("too_large", where, f"{width} x {height} pixels, the limit is {limits.max_pixels}")
    if not stream.time_base:
        raise VideoError("bad_timestamps", where, "no time base")
    tick = float(stream.time_base)
    if ref.true_rate is not None:
        if not stream.average_rate or not ref.true_rate > 0:
            raise VideoError("bad_timestamps", where, "frames a second are not told, and so not to be corrected")
        tick *= float(stream.average_rate) / ref.true_rate
    return Video(container, stream, ref, limits, deadline, tick)


def _main_stream(container: InputContainer, where: str) -> VideoStream:
    """The film among several video streams: the default one, or the largest, as ffmpeg chooses; never a cover, a
    thumbnail or a preview, unless there is nothing else."""
    streams = [stream for stream in container.streams.video if not stream.disposition & _PICTURES]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams}))
        raise VideoError("no_video_stream", where, f"streams: {kinds or 'none'}")
    if all(stream.codec_context is None for stream in streams):
        raise VideoError("unknown_codec", where, "no decoder for it is built in")

    def aside(stream: VideoStream) -> bool:
        context, said = stream.codec_context, " ".join(stream.metadata.values()).lower()
        if stream.frames == 1 or any(word in said for word in _ASIDE):
            return True
        quicker = [s.codec_context for s in streams if s.codec_context and _rate(s) >= 5 * _rate(stream) > 0]
        pixels = 0 if context.name in _PICTURE_CODECS else context.width * context.height
        return any(other.width * other.height >= pixels for other in quicker)

    def rank(stream: VideoStream) -> tuple[bool, bool, bool, int]:
        context = stream.codec_context
        if context is None:
            return False, False, False, 0
        default = bool(stream.disposition & Disposition.default)
        return True, not aside(stream), default, context.width * context.height

    return max(streams, key=rank)


def _rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _decoding_times_alone(video: Video) -> bool:
    """Whether display times are FFmpeg's guess, from times of decoding, for a codec that reorders."""
    form, context = video.container.format.name, video.stream.codec_context
    if not context.codec.reorder:
        return False
    if form == "mpeg":  # has the time of some pictures only, as DVDs do
        missing = any(packet.pts is None for packet in itertools.islice(video.packets(), 64))
        video.rewind(None)
        return missing
    compatible = "matroska" in form and context.codec_tag.strip("\0") != ""  # a track as in an AVI
    # MPEG-4 without B-frames is not reordered; H.264 says too little of that before it is decoded.
    return (form in ("avi", "asf") or compatible) and (context.has_b_frames or context.name != "mpeg4")


def _dealt(video: Video) -> Video:
    """The video, and what its decoder's delay is: encoders subtract it from the times of display. FFmpeg shows each
    picture at the time of the packet with which it comes out, which is the same."""
    context = video.stream.codec_context
    decoder: Any = av.CodecContext.create(context.name, "r")
    decoder.extradata, decoder.width, decoder.height = context.extradata, context.width, context.height
    decoder.thread_type, decoder.thread_count = "NONE", 1  # threads delay too
    decoder.options = {"max_pixels": str(video.limits.max_pixels)}
    video.rewind(None)
    stamps: list[int] = []
    for packet in itertools.islice(video.packets(), 64):
        if packet.dts is None:
            raise video.error("bad_timestamps", "packets have no times")
        stamps.append(packet.dts)
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            if not video.lost(packet) and decoder.decode(packet):
                return replace(video, delay=len(stamps) - 1, first=stamps[-1], zero=stamps[-1])
    return video


def _first_stamps(video: Video) -> tuple[int, int | None]:
    """Time stamps of the first frame that is shown (of display), and of the first packet (of decoding), from the first
    few packets of a video just opened.

    Frames before the first key frame, or before the start of an edit list, are never shown.
    """
    first: int | None = None
    key: int | None = None
    head: int | None = None
    count = 0
    for packet in video.packets():
        head = packet.dts if count == 0 else head
        if video.lost(packet):
            continue
        count += 1
        stamp = video.stamp(packet)
        if packet.is_keyframe and key is None:
            key = stamp
        if key is None or stamp is None or stamp < key or packet.is_discard:
            continue
        if packets.hides(packet, video.stream.codec_context.name):
            continue
        first = stamp if first is None else min(first, stamp)
        # Packets come in the order of dts, and pts >= dts: nothing earlier can follow.
        if (packet.dts is not None and packet.dts >= first) or count > 4096:
            break
    if count == 0:
        raise video.error("truncated", "no frame can be read")
    if first is None:
        raise video.error(*(("corrupt", "no key frame") if key is None else ("bad_timestamps", "no frame is shown")))
    return first, head


def _episode(video: Video) -> Video:
    """The video between `begin_s` and `end_s` of its file. These are rounded: a frame half an interval off is meant."""
    ref, stream = video.ref, video.stream
    unit = float(stream.time_base or 1)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    half = 0.5 / rate / unit if rate > 0 else 0.0
    begin = video.first if ref.begin_s is None else max(video.first, math.ceil(ref.begin_s / unit - half))
    stop = math.inf if ref.end_s is None else ref.end_s / unit - half
    zero: int | None = None
    for packet in video.packets_around((begin - video.first) * video.tick):
        if packet.pts is not None and begin <= packet.pts < stop and not packet.is_discard:
            zero = packet.pts if zero is None else min(zero, packet.pts)
        if packet.dts is not None and packet.dts >= (stop if zero is None else zero):
            break
    if zero is None:
        raise video.error("too_short", f"the file shows nothing from {ref.begin_s} s to {ref.end_s} s")
    return replace(video, zero=zero, stop=stop)
