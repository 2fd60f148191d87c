"""How much later than it is decoded each frame of an mp4 is shown: the box `ctts`, which FFmpeg reads and keeps to
itself. Source: ISO/IEC 14496-12, section 8.6.1.3."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from lawm import storage
from lawm.video.ref import VideoRef

_MOST = 64 << 20
"""Bytes of a `moov` that are read, at most."""


def display_delays(ref: VideoRef, track: int, frames: int, version: int | None) -> np.ndarray | None:
    """Ticks by which each frame of a track is shown after it is decoded, int64 [frames] in decoding order; None where
    the file does not say it of so many. `version`: as `storage.open_part`. Raises StorageError."""
    if storage.is_s3(ref.source):
        file = storage.open_part(ref.source, ref.offset, ref.size, version).file
    else:
        file = storage.open_file(ref.source, ref.offset, ref.size)
    with file:
        moov = _moov(file, ref.size)
    for name, trak in _boxes(moov):
        header = _inside(trak, b"tkhd") if name == b"trak" else b""
        at = 20 if header[:1] == b"\1" else 12
        if len(header) >= at + 4 and struct.unpack_from(">I", header, at)[0] == track:
            ctts = _inside(trak, b"mdia", b"minf", b"stbl", b"ctts")
            if not ctts:
                return np.zeros(frames, np.int64)
            count = struct.unpack_from(">I", ctts, 4)[0] if len(ctts) >= 8 else 0
            if len(ctts) < 8 + 8 * count:
                return None
            runs = np.frombuffer(ctts, ">i4", 2 * count, 8).reshape(count, 2).astype(np.int64)
            fits = count and runs[:, 0].min() >= 0 and runs[:, 0].sum() == frames
            return np.repeat(runs[:, 1], runs[:, 0]) if fits else None
    return None


def _moov(file: BinaryIO, size: int) -> bytes:
    """What the first `moov` holds; nothing where there is none, or one that is not to be read."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        length, start = struct.unpack_from(">I", head)[0], 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack_from(">Q", head, 8)[0], 16
        length = length or size - at
        if length < start:
            break
        if head[4:8] == b"moov" and length <= _MOST:
            file.seek(at + start)
            return file.read(length - start)
        at += length
    return b""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        if length < 8:
            return
        yield data[at + 4 : at + 8], data[at + 8 : at + length]
        at += length


def _inside(data: bytes, *path: bytes) -> bytes:
    """What a box within boxes holds; nothing where it is not there."""
    for wanted in path:
        data = next((inner for name, inner in _boxes(data) if name == wanted), b"")
    return data
