"""A decoded frame -> pixels: resized straight from the decoder's format, turned as it is to be shown, cropped."""

from __future__ import annotations  # VideoStream takes its parameter in annotations only

import math
import random
from collections.abc import Callable

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lawm.config import ClipSpec, LawmError, VideoLimits
from lawm.video import display

_MAX_ASPECT = 16


class Cutter:
    """Frame -> uint8 [3, size, size] as the clip says; with `whole`, the whole picture [3, H, W] with even sides (see
    _place_whole), the shorter `whole` pixels or what the frame has. `error(reason, detail)` makes what is raised for
    frames too large."""

    def __init__(
        self,
        stream: VideoStream,
        limits: VideoLimits,
        error: Callable[..., Exception],
        spec: ClipSpec,
        seed: int = 0,
        whole: int | None = None,
    ) -> None:
        self.stream, self.limits, self.error, self.spec, self.whole = stream, limits, error, spec, whole
        self.reformatter = VideoReformatter()
        rng = random.Random(seed)
        # One crop for the whole clip: V-JEPA 2's area and aspect, and a place.
        self.area, self.ratio = rng.uniform(0.3, 1.0), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        self.place = rng.random(), rng.random()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        width, height, turns, mirrored = self.shape(frame)
        if frame.width * frame.height > self.limits.max_pixels:
            limit = self.limits.max_pixels
            raise self.error("too_large", f"{frame.width} x {frame.height} pixels, the limit is {limit}")
        if max(width, height) > _MAX_ASPECT * min(width, height):
            raise self.error("bad_shape", f"{width} x {height} pixels, longer than {_MAX_ASPECT} times its width")
        wide, high, x, y, out_w, out_h = self._place(width, height)
        across, down = (high, wide) if turns % 2 else (wide, high)
        try:
            planes = display.to_rgb(self.reformatter, frame, across, down)
        except display.DisplayError as error:
            raise self.error(error.reason, error.detail) from None
        out = np.empty((3, out_h, out_w), np.uint8)
        for channel, pixels in enumerate(planes):
            out[channel] = display.turned(pixels, turns, mirrored)[y : y + out_h, x : x + out_w]
        return out

    def shape(self, frame: VideoFrame) -> tuple[int, int, int, bool]:
        """(width, height, quarter turns to the left, upside down after them) of a frame as it is to be displayed."""
        try:
            turns, mirrored = display.orientation(frame)
        except display.DisplayError as error:
            raise self.error(error.reason, error.detail) from None
        return (*display.displayed_size(frame, self.stream.sample_aspect_ratio, turns), turns, mirrored)

    def _place(self, width: int, height: int) -> tuple[int, int, int, int, int, int]:
        """(width and height to resize to, left and upper edge of the crop, its width and height)."""
        size = self.spec.size
        if self.whole is not None:
            return self._place_whole(width, height, self.whole)
        if self.spec.crop == "center":
            wide, high = _resized(width, height, self.spec.short_side)
            return wide, high, _centre(wide, size), _centre(high, size), size, size
        cut_w = min(width, math.sqrt(self.area * width * height * self.ratio))
        cut_h = min(height, math.sqrt(self.area * width * height / self.ratio))
        wide, high = round(width * size / cut_w), round(height * size / cut_h)
        return wide, high, int(self.place[0] * (wide - size + 1)), int(self.place[1] * (high - size + 1)), size, size

    def _place_whole(self, width: int, height: int, short: int) -> tuple[int, int, int, int, int, int]:
        """The same for the whole picture. Where its shorter side becomes `short` = size * 292 / 256, an odd longer one
        loses its first or last line: the one that leaves a clip's centre crop the very pixels that it has of the
        original. Sides of smaller pictures are resized to even ones."""
        if short % 2 or short > min(width, height):
            scale = min(short / min(width, height), 1.0)
            wide, high = (max(2, 2 * round(side * scale / 2)) for side in (width, height))
            return wide, high, 0, 0, wide, high
        wide, high = _resized(width, height, short)
        even_w, even_h = wide - wide % 2, high - high % 2
        size = round(short * 256 / 292)
        left, upper = (_centre(side, size) - _centre(even, size) for side, even in ((wide, even_w), (high, even_h)))
        return wide, high, left, upper, even_w, even_h


def cut_picture(picture_HWC: np.ndarray, spec: ClipSpec) -> np.ndarray:
    """A picture as a clip would have it, uint8 [3, size, size], its middle. `picture_HWC`: uint8 RGB. Raises LawmError
    for anything else."""
    found = np.asarray(picture_HWC)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
        raise LawmError(f"a picture is uint8 [height, width, 3]; this is {found.dtype} {list(found.shape)}")
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(found), format="rgb24")
    height, width = found.shape[:2]
    wide, high = _resized(width, height, spec.short_side)
    planes = display.to_rgb(VideoReformatter(), frame, wide, high)
    x, y = _centre(wide, spec.size), _centre(high, spec.size)
    return np.stack([plane[y : y + spec.size, x : x + spec.size] for plane in planes])


def _resized(width: int, height: int, short: int) -> tuple[int, int]:
    """(width, height) with the shorter side `short`."""
    return round(width * short / min(width, height)), round(height * short / min(width, height))


def _centre(side: int, size: int) -> int:
    """Where the middle `size` pixels of a side begin."""
    return round((side - size) / 2)
