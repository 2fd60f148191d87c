"""Films: what plays is what was given, as H.264 that players know, or as a GIF where nothing encodes it."""

import io
import sys

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from lawm.report import Film
from lawm.report.films import GAP, film_bytes, side_by_side


def frames(count: int = 4, size: int = 40, hue: int = 0) -> np.ndarray:
    """A bright square that goes right, over a coloured ground."""
    found = np.full((count, size, size, 3), (20, 60, 100), np.uint8)
    for i in range(count):
        found[i, 10:20, 5 * i : 5 * i + 10] = (250, 220 - hue, 40 + hue)
    return found


FILM = Film("a.mp4, 0.25 s", ["true", "predicted"], [frames(), frames(hue=80)])


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-3, np.mean((found.astype(float) - wanted) ** 2))))


def test_small_pictures_are_enlarged_and_stand_side_by_side() -> None:
    whole = side_by_side(FILM)
    assert whole.shape == (4, 160, 160 + GAP + 160, 3)
    np.testing.assert_array_equal(whole[:, ::4, :160:4], FILM.frames[0])
    np.testing.assert_array_equal(whole[:, 3::4, 160 + GAP + 3 :: 4], FILM.frames[1])
    odd = Film("odd", ["a"], [np.zeros((2, 161, 163, 3), np.uint8)])
    assert side_by_side(odd).shape == (2, 162, 164, 3)


@pytest.mark.parametrize("fps", [4.0, 2.5])
def test_a_film_plays_what_was_given_at_its_pace(fps: float) -> None:
    kind, data = film_bytes(FILM, fps)
    assert kind == "video/mp4" and len(data) < 30_000
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1  # BT.709, said
        assert float(stream.average_rate or 0) == pytest.approx(fps)
    wanted = side_by_side(FILM)
    assert len(decoded) == 4 + max(1, round(fps / 2))
    times = [frame.time for frame in decoded]
    np.testing.assert_allclose(np.diff(times), 1 / fps, rtol=1e-3)  # type: ignore[arg-type]
    for i, frame in enumerate(decoded):
        shown = frame.to_ndarray(format="rgb24", src_colorspace="ITU709")
        assert psnr(shown, wanted[min(i, 3)]) > 30
    assert psnr(decoded[0].to_ndarray(format="rgb24", src_colorspace="ITU709"), wanted[3]) < 25  # the test can fail


def test_without_an_encoder_it_is_a_gif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    kind, data = film_bytes(FILM, 4.0)
    assert kind == "image/gif"
    image = Image.open(io.BytesIO(data))
    assert image.info["loop"] == 0
    durations, shown = [], []
    for frame in ImageSequence.Iterator(image):
        durations.append(frame.info["duration"])
        shown.append(np.asarray(frame.convert("RGB")))
    assert sum(durations) == 4 * 250 + 500
    assert all(psnr(found, wanted) > 30 for found, wanted in zip(shown, side_by_side(FILM), strict=False))


def test_films_of_several_shapes_are_a_bug() -> None:
    with pytest.raises(ValueError, match="2 labels of frames of shapes"):
        Film("f", ["a", "b"], [frames(4), frames(3)])
