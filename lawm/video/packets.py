"""Which frames make a clip, which packets of a compressed video have to be decoded for them, and which show nothing.

Only times and headers are looked at; nothing is read or decoded here.
"""

from __future__ import annotations  # Packet takes its parameter in annotations only

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

NEVER_ZEROS = (
    "h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "prores",
)  # fmt: skip
"""Decoders of which no packet can consist of zeros: there it is a hole that a download has left. Elsewhere (raw video)
it may be a black picture."""


@dataclass(frozen=True)
class Held:
    """A packet that was read but not decoded, and its time in seconds."""

    packet: Packet[VideoStream]
    at: float
    key: bool
    shown: bool
    """False for what an edit list cuts away: decoded, because others refer to it, and not shown."""


def prefer_referenced(
    chosen: np.ndarray, times_N: np.ndarray, wanted_F: np.ndarray, half: float, near: float, spare_N: np.ndarray
) -> np.ndarray:
    """`chosen`, with frames that nothing refers to (`spare_N`) given up for a neighbour that has to be decoded
    anyway, where that is at most one frame, and less than `half`, away from the wanted time."""
    frame_s = float(np.median(np.diff(times_N))) if len(times_N) > 1 else 0.0
    around = np.clip(chosen[:, None] + np.array([-1, 0, 1]), 0, len(times_N) - 1)
    off = np.abs(times_N[around] - wanted_F[:, None])
    off[spare_N[around] | (off > min(frame_s + near, half - near))] = np.inf
    found = np.isfinite(off.min(axis=1)) & spare_N[chosen]
    return np.where(found, around[np.arange(len(chosen)), np.argmin(off, axis=1)], chosen)


def runs(held: Sequence[Held], wanted: Set[int | None], spare: Sequence[bool]) -> list[list[Packet[VideoStream]]]:
    """The packets to decode for the pictures stamped `wanted`, in order, as runs that each start at a key frame
    with a fresh decoder. `held` starts with a key frame; `spare`: which of them nothing refers to."""
    starts = [i for i, h in enumerate(held) if h.key] + [len(held)]
    stops = [-1] * (len(starts) - 1)  # the last packet needed of each group of pictures
    borrows = [False] * len(stops)  # whether it needs the end of the group before it
    for group in reversed(range(len(stops))):
        low, high = starts[group], starts[group + 1]
        key_at = held[low].at
        for i in range(low, high):
            if held[i].packet.pts in wanted and held[i].shown:
                stops[group] = max(stops[group], i)
                borrows[group] |= held[i].at < key_at
        if group + 1 < len(stops) and borrows[group + 1]:
            stops[group] = high - 1
    found: list[list[Packet[VideoStream]]] = []
    run: list[Packet[VideoStream]] = []
    whole = False  # the group before has been taken to its end
    for group, stop in enumerate(stops):
        low = starts[group]
        if run and not (borrows[group] and whole):
            found.append(run)
            run = []
        for i in range(low, stop + 1):
            leading = held[i].at < held[low].at
            if held[i].packet.pts in wanted or not (spare[i] or (leading and not borrows[group])):
                run.append(held[i].packet)
        whole = stop == starts[group + 1] - 1
    return [*found, run] if run else found


def is_hole(packet: Packet[VideoStream], codec: str) -> bool:
    """Whether the packet's bytes were never written."""
    return codec in NEVER_ZEROS and not any(memoryview(packet)[:16]) and not any(memoryview(packet))


def hides(packet: Packet[VideoStream], codec: str) -> bool:
    """Whether a VP8 or VP9 packet says that its picture is not shown (RFC 6386, section 9.1; VP9 bitstream
    specification, section 6.2 and annex B); for other codecs False."""
    if codec in ("vp8", "libvpx"):
        return not memoryview(packet)[0] & 0x10
    return codec in ("vp9", "libvpx-vp9") and not any(map(_vp9_shows, _vp9_frames(bytes(packet))))


def _vp9_frames(data: bytes) -> list[bytes]:
    """The frames of a superframe, whose sizes stand at its end."""
    last = data[-1]
    count, width = (last & 7) + 1, (last >> 3 & 3) + 1
    start = len(data) - 2 - count * width
    if last & 0xE0 != 0xC0 or start < 0 or data[start] != last:
        return [data]
    sizes = [int.from_bytes(data[at : at + width], "little") for at in range(start + 1, len(data) - 1, width)]
    starts = [sum(sizes[:i]) for i in range(count)]
    return [data[at : at + size] for at, size in zip(starts, sizes, strict=True) if size]


def _vp9_shows(frame: bytes) -> bool:
    bits = int.from_bytes(frame[:2].ljust(2, b"\0"), "big")
    at = 16 - 4 - (bits >> 12 & 3 == 3)  # after the marker and the profile, and a reserved bit for profile 3
    return bool(bits >> at - 1 & 1 or bits >> at - 3 & 1)  # show_existing_frame; else frame_type, then show_frame


def disposability(packets: Sequence[Packet[VideoStream]], codec: str, extradata: bytes) -> list[bool]:
    """Whether no other picture refers to a packet's picture, from its slice headers (H.264, HEVC); else False."""
    if codec not in ("h264", "hevc"):
        return [False] * len(packets)
    framed = extradata[:1] == b"\x01"  # avcC / hvcC: units with a length before them; otherwise start codes
    length = (extradata[4 if codec == "h264" else 21] & 3) + 1 if framed and len(extradata) > 22 else 4
    headers = [list(_unit_headers(bytes(p), length if framed else 0)) for p in packets]
    if codec == "h264":  # slices are of type 1 to 5; nal_ref_idc is 0 when nothing refers to the picture
        slices = [[(h >> 13) & 3 for h in hs if 1 <= (h >> 8) & 31 <= 5] for hs in headers]
        return [bool(refs) and not any(refs) for refs in slices]
    # HEVC: slices are of type 0 to 31; the even ones up to 14 are not referred to within their temporal layer,
    # so not at all in the highest one.
    units = [[((h >> 9) & 63, h & 7) for h in hs if (h >> 9) & 63 < 32] for hs in headers]
    top = max((layer for us in units for _, layer in us), default=0)
    return [bool(us) and all(kind <= 14 and kind % 2 == 0 and layer == top for kind, layer in us) for us in units]


def _unit_headers(data: bytes, length: int) -> Iterator[int]:
    """The first two bytes of every NAL unit, as one number; `length` 0: units are set apart by start codes."""
    at = 0
    if length:
        while at + length + 2 <= len(data):
            size = int.from_bytes(data[at : at + length], "big")
            at += length
            yield data[at] << 8 | data[at + 1]
            at += max(size, 1)
        return
    while 0 <= (at := data.find(b"\0\0\1", at)) < len(data) - 4:
        at += 3
        yield data[at] << 8 | data[at + 1]
