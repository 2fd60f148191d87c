"""Episodes for the Rerun viewer (https://rerun.io), as one .rrd file. Needs the package `rerun-sdk`, an extra."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lawm import storage
from lawm.config import LawmError

if TYPE_CHECKING:
    from lawm.evaluation import Episode

APPLICATION = "lawm"
TIMELINE, FRAME = "time", "frame"
"""Seconds since the clip began; and the number of the frame in it."""


def entity(text: str) -> str:
    """A part of an entity path: letters, digits and underscores of the text."""
    return re.sub(r"\W+", "_", text).strip("_") or "_"


def write_rerun(uri: str, title: str, episodes: "Sequence[Episode]", fps: float) -> str:
    """Writes the episodes to `uri` (local path or s3://), whole or not at all; returns `uri`.

    Entities, N the episode's number: `episode_N/name` (text), `episode_N/pictures/ROW` (an image a frame),
    `episode_N/latent` and `episode_N/action` (bars a transition, at the frame that it leads from), on the timelines
    `time` (seconds) and `frame`. Raises LawmError without the package.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise LawmError("a file for the Rerun viewer needs the package rerun-sdk: pip install 'lawm[rerun]'") from error
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "episodes.rrd"
        with rr.RecordingStream(APPLICATION, recording_id=title, send_properties=True) as stream:
            stream.save(where)
            for number, episode in enumerate(episodes):
                _log(stream, f"episode_{number}", episode, fps)
            stream.flush()
            stream.disconnect()
        storage.write_bytes(uri, where.read_bytes())
    return uri


def _log(stream: "object", place: str, episode: "Episode", fps: float) -> None:
    import rerun as rr

    assert isinstance(stream, rr.RecordingStream)
    stream.log(f"{place}/name", rr.TextDocument(episode.name), static=True)
    for row in episode.rows:
        for i, image in enumerate(row.frames):
            _set_time(stream, i + row.first, fps)
            stream.log(f"{place}/pictures/{entity(row.label)}", rr.Image(image))
    for name, values in (("latent", episode.z), ("action", episode.actions)):
        if values is None:
            continue
        each = len(episode.rows[0].frames) // (len(values) + 1)  # frames of a state
        for i, one in enumerate(values):
            _set_time(stream, i * each, fps)
            stream.log(f"{place}/{name}", rr.BarChart(one))


def _set_time(stream: "object", frame: int, fps: float) -> None:
    import rerun as rr

    assert isinstance(stream, rr.RecordingStream)
    stream.set_time(TIMELINE, duration=frame / fps)
    stream.set_time(FRAME, sequence=frame)
