"""Which way up, in which colours, and which of several streams: as ffmpeg shows the same file."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from ffmpeg import ffmpeg, pictures
from made_videos import LIMITS, ref_to, write_video

from lawm.config import ClipSpec
from lawm.video import VideoError, decode_clip, probe

ONE = 65536
MATRICES = {
    "upright": (ONE, 0, 0, ONE),
    "left to right": (-ONE, 0, 0, ONE),
    "upside down": (ONE, 0, 0, -ONE),
    "half": (-ONE, 0, 0, -ONE),
    "transposed": (0, ONE, ONE, 0),
    "right": (0, ONE, -ONE, 0),
    "left": (0, -ONE, ONE, 0),
    "transposed the other way": (0, -ONE, -ONE, 0),
}
"""a, b, c, d of a display matrix, in all eight orientations."""


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one.astype(float) - two) ** 2), 1e-9)))


def with_matrix(source: Path, path: Path, a: int, b: int, c: int, d: int) -> None:
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("name", MATRICES)
def test_all_eight_orientations_are_shown_as_ffmpeg_shows_them(name: str, tmp_path: Path) -> None:
    """In the whole picture, in its centre crop and in a random crop, a picture without any symmetry."""
    write_video(tmp_path / "plain.mp4", 30, rate=10, width=192, height=128)
    path = tmp_path / "turned.mp4"
    with_matrix(tmp_path / "plain.mp4", path, *MATRICES[name])
    wide, high = (128, 192) if MATRICES[name][0] == 0 else (192, 128)
    truth = pictures(path, wide, high)
    row = probe(ref_to(path), LIMITS)
    assert (row["reason"], row["width"], row["height"]) == (None, wide, high)
    size = 112  # 128 * 256 / 292: the short side is not resized
    clip = decode_clip(ref_to(path), 0.5, ClipSpec(frames=2, fps=5, size=size), LIMITS)
    y, x = (high - size) // 2, (wide - size) // 2
    for frame, number in zip(clip.frames_FCHW, (5, 7), strict=True):
        assert psnr(frame.transpose(1, 2, 0), truth[number, y : y + size, x : x + size]) > 40
    # Random crops lie at the same place of the picture as displayed, whichever way it is stored.
    upright = tmp_path / "upright.mkv"
    ffmpeg("-i", path, "-c:v", "ffv1", upright)
    spec = ClipSpec(frames=2, fps=5, size=64, crop="random_resized")
    stored, baked = (decode_clip(ref_to(p), 0.5, spec, LIMITS, seed=3).frames_FCHW for p in (path, upright))
    assert psnr(stored, baked) > 28  # resized along other lines, cut at the same place


def test_other_angles_are_refused_by_the_index(tmp_path: Path) -> None:
    write_video(tmp_path / "plain.mp4", 30)
    path = tmp_path / "askew.mp4"
    with_matrix(tmp_path / "plain.mp4", path, 46341, 46341, -46341, 46341)
    assert probe(ref_to(path), LIMITS)["reason"] == "bad_shape: turned by 45 degrees, which is no multiple of 90"
    with pytest.raises(VideoError, match="bad_shape"):
        decode_clip(ref_to(path), 0.0, ClipSpec(frames=2, size=64), LIMITS)


# ---------------------------------------------------------------- colours
LUMA = {709: (0.2126, 0.0722), 601: (0.299, 0.114), 240: (0.212, 0.087), 2020: (0.2627, 0.0593), 470: (0.3, 0.11)}
"""Kr and Kb of ITU-T H.273."""
NEAREST = {1: 709, 2: 601, 3: 601, 4: 470, 5: 601, 6: 601, 7: 240, 9: 2020, 10: 2020, 13: 601, 18: 601, 0: 601}
"""What each number in a file stands for; 2 and the reserved 3 and 18 say nothing, for which ffmpeg takes BT.601."""
CODED = ((0.4, -0.2, 0.15), (0.5, 0.1, -0.2), (0.6, 0.15, 0.1), (0.7, 0.0, 0.0))
"""Luma 0 to 1 and chroma -0.5 to 0.5, of the picture's quarters."""


def decoded(luma: float, blue: float, red: float, matrix: int) -> list[float]:
    """R, G, B, 0 to 255, by the equations of H.273."""
    if matrix == 8:
        return [255 * (luma - blue + red), 255 * (luma + blue), 255 * (luma - blue - red)]
    kr, kb = LUMA[NEAREST[matrix]]
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    return [255 * r, 255 * (luma - kr * r - kb * b) / (1 - kr - kb), 255 * b]


def write_coded(path: Path, pix_fmt: str, full: bool) -> None:
    """H.264 whose samples are CODED, without any loss."""
    depth = 10 if "10" in pix_fmt else 8
    unit = 2 ** (depth - 8)
    spans = (
        ((0, 2**depth - 1), (128 * unit, 2**depth - 1)) if full else ((16 * unit, 219 * unit), (128 * unit, 224 * unit))
    )
    halved = (2 if "420" in pix_fmt else 1), (2 if "420" in pix_fmt or "422" in pix_fmt else 1)
    raw = b""
    for plane in range(1 if "gray" in pix_fmt else 3):
        low, span = spans[min(plane, 1)]
        high, wide = (48, 64) if plane == 0 else (48 // halved[0], 64 // halved[1])
        values = np.array([low + span * colour[plane] for colour in CODED]).round().reshape(2, 2)
        samples = np.kron(values, np.ones((high // 2, wide // 2)))
        raw += samples.astype("<u2" if depth > 8 else np.uint8).tobytes()
    source = path.with_suffix(".yuv")
    source.write_bytes(raw * 6)
    ffmpeg(
        "-f", "rawvideo", "-pix_fmt", pix_fmt, "-s", "64x48", "-r", 4, "-i", source, "-c:v", "libx264", "-qp", 0, path
    )


def seen_colours(path: Path) -> np.ndarray:
    """[4, 3]: the middle of each quarter; the picture is as large as a clip of this size wants it."""
    frame = decode_clip(ref_to(path), 0.0, ClipSpec(frames=2, fps=4, size=42), LIMITS).frames_FCHW[0]
    return np.array([frame[:, y, x] for y, x in itertools.product((9, 32), (9, 32))], float)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le", "yuv422p", "gray"])
def test_every_colour_matrix_gives_its_colours_or_a_reason(pix_fmt: str, full: bool, tmp_path: Path) -> None:
    write_coded(tmp_path / "coded.mp4", pix_fmt, full)
    refused = {}
    for matrix in range(19) if pix_fmt == "yuv420p" else (1, 2, 3, 8, 9, 10, 14):
        path = tmp_path / f"{matrix}.mp4"
        said = f"h264_metadata=video_full_range_flag={int(full)}:matrix_coefficients={matrix}:colour_primaries=6"
        ffmpeg("-i", tmp_path / "coded.mp4", "-c", "copy", "-bsf:v", said + ":transfer_characteristics=6", path)
        reason = probe(ref_to(path), LIMITS)["reason"]
        if reason is not None:
            refused[matrix] = reason
            continue
        coded = [(luma, 0.0, 0.0) if pix_fmt == "gray" else (luma, *chroma) for luma, *chroma in CODED]
        matrix = 1 if pix_fmt == "gray" else 6 if matrix == 12 else matrix  # 12 follows the primaries: 6
        wanted = np.array([decoded(*colour, matrix) for colour in coded])
        assert np.abs(seen_colours(path) - wanted).max() < 4, (path.name, seen_colours(path), wanted)
    assert set(refused) == ({11, 14, 15, 16, 17} if pix_fmt == "yuv420p" else {14})
    assert all(reason.startswith("bad_colour: the colour matrix ") for reason in refused.values())


@pytest.mark.parametrize("pix_fmt", ["gbrp", "gbrp10le", "gbrap", "yuva444p", "rgb24", "rgba", "gray10le", "yuv410p"])
def test_pixel_formats_of_lossless_video(pix_fmt: str, tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    codec = "png" if pix_fmt in ("rgb24", "rgba") else "ffv1"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=192x128:r=10:d=1", "-pix_fmt", pix_fmt, "-c:v", codec, path)
    assert probe(ref_to(path), LIMITS)["reason"] is None
    clip = decode_clip(ref_to(path), 0.0, ClipSpec(frames=2, fps=5, size=112), LIMITS)
    truth = pictures(path, 192, 128)
    assert psnr(clip.frames_FCHW[1].transpose(1, 2, 0), truth[2, 8:120, 40:152]) > 30


# ---------------------------------------------------------------- several video streams
def stream_of(path: Path) -> tuple[int, int]:
    row = probe(ref_to(path), LIMITS)
    assert row["reason"] is None
    return row["width"], row["height"]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov", "ts"])
def test_the_film_is_taken_of_several_streams(suffix: str, tmp_path: Path) -> None:
    def joined(*options: object, streams: tuple[str, ...]) -> Path:
        path = tmp_path / f"joined.{suffix}"
        inputs = [part for name in streams for part in ("-i", tmp_path / name)]
        maps = [part for n in range(len(streams)) for part in ("-map", f"{n}:v")]
        ffmpeg(*inputs, *maps, "-c", "copy", *options, path)
        return path

    write_video(tmp_path / "small.mp4", 60, width=96, height=64)
    write_video(tmp_path / "large.mp4", 60, width=192, height=128)
    write_video(tmp_path / "thumbs.mkv", 3, rate=1, width=320, height=240, codec="mjpeg", pix_fmt="yuvj420p")
    write_video(tmp_path / "preview.mp4", 4, rate=1, width=64, height=48)
    write_video(tmp_path / "cover.mkv", 1, width=640, height=480, codec="mjpeg", pix_fmt="yuvj420p")
    assert stream_of(joined(streams=("small.mp4", "large.mp4"))) in [(192, 128), (96, 64)][: 2 if suffix != "ts" else 1]
    if suffix == "ts":  # says nothing of streams
        assert stream_of(joined(streams=("preview.mp4", "large.mp4"))) == (192, 128)
        return
    first, second = (
        ("-disposition:v:0", "default", "-disposition:v:1", 0),
        ("-disposition:v:0", 0, "-disposition:v:1", "default"),
    )
    assert stream_of(joined(*first, streams=("small.mp4", "large.mp4"))) == (96, 64)
    assert stream_of(joined(*second, streams=("small.mp4", "large.mp4"))) == (192, 128)
    for aside in ("preview.mp4", "thumbs.mkv"):
        assert stream_of(joined(*first, streams=(aside, "large.mp4"))) == (192, 128)
        assert stream_of(joined(*second, streams=(aside, "large.mp4"))) == (192, 128)
    assert stream_of(joined("-disposition:v:0", "attached_pic", streams=("cover.mkv", "small.mp4"))) == (96, 64)
    if suffix == "mkv":
        named = ("-metadata:s:v:0", "title=Preview of the film")
        assert stream_of(joined(*first, *named, streams=("large.mp4", "small.mp4"))) == (96, 64)
