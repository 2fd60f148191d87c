"""Videos whose frames say which they are: a 4 x 4 grid of black and white blocks spells the frame's number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lawm.config import VideoLimits
from lawm.video import VideoRef

LIMITS = VideoLimits(timeout_s=20.0)


def picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: the grid in the middle 70 % of the short side, on a slowly moving gradient."""
    ramp = (np.arange(width)[None, :] + np.arange(height)[:, None] + 3 * number) % 256
    out = np.repeat((40 + ramp * 0.5).astype(np.uint8)[:, :, None], 3, axis=2)
    side = int(min(width, height) * 0.7) // 4 * 4
    bits = (number >> np.arange(16)) & 1
    grid = np.kron(bits.reshape(4, 4), np.ones((side // 4, side // 4))).astype(np.uint8) * 235 + 10
    y, x = (height - side) // 2, (width - side) // 2
    out[y : y + side, x : x + side] = grid[:, :, None]
    return out


def number_of(frame_CHW: np.ndarray) -> int:
    """The number that a frame of a centre-cropped clip spells; -1 if a block is neither black nor white."""
    size = frame_CHW.shape[-1]
    side = size * 0.7 * 292 / 256
    at = ((size - side) / 2 + side * (np.arange(4) + 0.5) / 4).astype(int)
    reach = max(1, int(side / 16))
    grey = frame_CHW.mean(axis=0)
    bits = np.array([[grey[y - reach : y + reach, x - reach : x + reach].mean() for x in at] for y in at]).ravel()
    if np.any((bits > 90) & (bits < 165)):
        return -1
    return int(np.sum((bits > 127) << np.arange(16)))


def write_video(
    path: Path,
    frames: int = 150,
    *,
    rate: Fraction | int = 30,
    times: Sequence[Fraction | float] | None = None,
    width: int = 160,
    height: int = 120,
    codec: str = "libx264",
    gop: int = 250,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    audio: bool = False,
    format: str | None = None,
) -> list[float]:
    """Writes frames 0, 1, ... at `times` (default: at a steady `rate`); returns the times, in seconds."""
    rate = Fraction(rate)
    stamps = [Fraction(n) / rate for n in range(frames)] if times is None else [Fraction(t) for t in times]
    tick = Fraction(1, 90000) if times is not None else 1 / rate
    with av.open(str(path), "w", format=format, container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = tick
        stream.codec_context.thread_count = 1
        fast = {"libx264": {"preset": "veryfast"}, "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"}}
        stream.options = fast.get(codec, {}) | (options or {})
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=48000, layout="mono") if audio else None
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 48000, 0
            container.mux(sound.encode(silence))
        for number, at in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame.pts, frame.time_base = round(at / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            container.mux(sound.encode())
    return [float(at) for at in stamps]


def ref_to(path: Path) -> VideoRef:
    return VideoRef(str(path), 0, path.stat().st_size, path.name)
