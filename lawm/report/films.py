"""Short videos as bytes that a page can hold: H.264 in mp4, or a GIF where there is no encoder."""

import io
from fractions import Fraction
from typing import Any

import numpy as np

from lawm.report.sections import Film

ENCODER = "libx264"
GAP = 4
"""Pixels between videos that play side by side."""
GREY = 128
LEAST_SIDE = 160
"""Smaller pictures are shown larger, each pixel as a square of them."""
HOLD_S = 0.5
"""How long the last frame stands before a film begins again, in seconds."""


def side_by_side(film: Film) -> np.ndarray:
    """The film's frames as one video's, uint8 [F, H, W, 3], H and W even; small ones enlarged."""
    parts = [np.asarray(one, np.uint8) for one in film.frames]
    count, height, width, _ = parts[0].shape
    times = max(1, -(-LEAST_SIDE // min(height, width)))
    gap = np.full((count, height * times, GAP, 3), GREY, np.uint8)
    columns: list[np.ndarray] = []
    for part in parts:
        columns += [gap, part.repeat(times, axis=1).repeat(times, axis=2)]
    whole = np.concatenate(columns[1:], axis=2)
    odd = [(0, 0), (0, whole.shape[1] % 2), (0, whole.shape[2] % 2), (0, 0)]
    return np.pad(whole, odd, mode="edge")


def film_bytes(film: Film, fps: float) -> tuple[str, bytes]:
    """(media type, file): the film at `fps` frames a second, its last frame held for half a second."""
    frames = side_by_side(film)
    held = np.concatenate([frames, frames[-1:].repeat(max(1, round(HOLD_S * fps)), axis=0)])
    return ("video/mp4", _mp4(held, fps)) if _encodes() else ("image/gif", _gif(held, fps))


def _encodes() -> bool:
    """Whether PyAV is there, and was built with an H.264 encoder."""
    try:
        import av
    except ImportError:
        return False
    return ENCODER in av.codecs_available


def _mp4(frames_FHWC: np.ndarray, fps: float) -> bytes:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = container.add_stream(ENCODER, rate=rate, options={"crf": "20", "bf": "0", "preset": "slow"})
        stream.height, stream.width = frames_FHWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        # Said, since players guess otherwise, and not all the same.
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # BT.709
        context.color_range = ColorRange.MPEG
        for image in frames_FHWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return sink.getvalue()


def _gif(frames_FHWC: np.ndarray, fps: float) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(image) for image in frames_FHWC)
    sink = io.BytesIO()
    first.save(sink, "GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return sink.getvalue()
