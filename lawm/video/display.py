"""How a decoded frame is to be shown: which way up, and by which colour matrix."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, VideoReformatter

_UNKNOWN, _BT2020, _YCGCO = 2, 9, 8
_KNOWN = (0, 1, _UNKNOWN, 4, 5, 6, 7, _BT2020)
"""Matrix coefficients (ITU-T H.273) that the converter knows; 0 is RGB."""
_NO_MATRIX = {11: "SMPTE 2085", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro"}
"""Those to which none that it knows is near."""
_UNREADABLE = ("yaf16", "yaf32")
"""Pixel formats on which the converter ends the process."""


class DisplayError(ValueError):
    """A frame that cannot be shown as it says: `reason` as of a VideoError, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """(quarter turns to the left, whether the turned picture is then put upside down) by the frame's display matrix, as
    ffmpeg and ffplay show it (`-autorotate`, fftools/ffmpeg_filter.c). Raises DisplayError for other angles."""
    side_data: Any = frame.side_data  # typed as having motion vectors alone
    found = next((data for data in side_data if data.type == SideDataType.DISPLAYMATRIX), None)
    if found is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(memoryview(found), np.int32, 9).astype(float)[:5]
    if not math.hypot(a, c) or not math.hypot(b, d):
        return 0, False
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360  # to the right
    quarter = round(degrees / 90) % 4
    if abs(degrees - 90 * round(degrees / 90)) > 1:
        raise DisplayError("bad_shape", f"turned by {degrees} degrees, which is no multiple of 90")
    if quarter in (1, 3):
        mirrored = c > 0 if quarter == 1 else c < 0
        return (1 if mirrored else 3) if quarter == 1 else (3 if mirrored else 1), mirrored
    return (2, d > 0) if quarter == 2 else (0, d < 0)


def turned(pixels: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    """[H, W] as `orientation` says; a view."""
    out = np.rot90(pixels, turns)
    return out[::-1] if mirrored else out


def displayed_size(frame: VideoFrame, aspect: Fraction | None, turns: int) -> tuple[int, int]:
    """(width, height) of a frame as it is to be displayed, pixels made square (`aspect`: of a pixel)."""
    width, height = frame.width, frame.height
    if aspect and Fraction(1, 4) <= aspect <= 4 and aspect != 1:
        width = max(1, round(width * aspect))
    return (height, width) if turns % 2 else (width, height)


def to_rgb(reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int) -> list[np.ndarray]:
    """Red, green and blue, each uint8 [height, width], resized straight from the decoder's format.

    A matrix that the converter does not know is replaced by the nearest that it knows; YCgCo is computed here. Raises
    DisplayError (bad_colour) where there is none near, or the pixel format cannot be read.
    """
    if frame.format.name.startswith(_UNREADABLE):
        raise DisplayError("bad_colour", f"pixel format {frame.format.name} cannot be converted")
    said = frame.colorspace
    coded = not frame.format.is_rgb and len(frame.format.components) >= 3
    frame.colorspace = _nearest(said, frame.color_primaries) if coded else _UNKNOWN
    try:
        if coded and said == _YCGCO:
            return _from_ycgco(reformatter, frame, width, height)
        green, blue, red = _planes(reformatter, frame, width, height, "gbrp")
    except (OSError, ValueError) as error:  # av.error.FFmpegError are OSErrors
        detail = f"pixel format {frame.format.name}, matrix {said}: {getattr(error, 'strerror', None) or error}"
        raise DisplayError("bad_colour", detail) from None
    finally:
        frame.colorspace = said
    return [red, green, blue]


def _nearest(matrix: int, primaries: int) -> int:
    if matrix in _NO_MATRIX:
        raise DisplayError("bad_colour", f"the colour matrix {_NO_MATRIX[matrix]} is not known")
    if matrix == 10:  # BT.2020 with constant luminance
        return _BT2020
    if matrix in (12, 13):  # derived from the primaries
        return {ColorPrimaries.BT709: 1, ColorPrimaries.BT2020: _BT2020}.get(ColorPrimaries(primaries), 6)
    return matrix if matrix in _KNOWN and matrix else _UNKNOWN


def _planes(
    reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int, form: str, dst_range: int | None = None
) -> list[np.ndarray]:
    small = reformatter.reformat(
        frame, width, height, form, interpolation="BILINEAR", src_color_range=frame.color_range or None,
        dst_color_range=dst_range, threads=1,
    )  # fmt: skip
    sizes = [np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in small.planes[:3]]
    return [plane[:height, :width] for plane in sizes]


def _from_ycgco(reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int) -> list[np.ndarray]:
    """ITU-T H.273, equations 46 to 49: G = Y + Cg, B = Y - Cg - Co, R = Y - Cg + Co."""
    span = frame.color_range or 1
    luma, cg, co = (p.astype(np.float32) for p in _planes(reformatter, frame, width, height, "yuv444p", span))
    low, y_scale, c_scale = (16, 255 / 219, 255 / 224) if span == 1 else (0, 1.0, 1.0)
    luma, cg, co = (luma - low) * y_scale, (cg - 128) * c_scale, (co - 128) * c_scale
    rgb = (luma - cg + co, luma + cg, luma - cg - co)
    return [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in rgb]
