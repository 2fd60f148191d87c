"""Episodes for the Rerun viewer, read back by Rerun's own reader."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lawm.config import LawmError
from lawm.evaluation import Episode, PictureRow
from lawm.report import write_rerun
from lawm.report.rerun_file import entity


def episodes() -> list[Episode]:
    rng = np.random.default_rng(0)

    def row(label: str, first: int = 0) -> PictureRow:
        return PictureRow(label, rng.integers(0, 256, (4 - first, 8, 8, 3), dtype=np.uint8), first)

    return [
        Episode("a.mp4, 0.25 s", (row("true frames"), row("rollout, inferred latents")), rng.normal(size=(3, 5)), None),
        Episode("b.mp4", (row("true frames"), row("predicted", 1)), rng.normal(size=(1, 5)), np.ones((1, 2))),
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'lawm[rerun]'")
    from rerun.chunk import RrdReader

    where = tmp_path / "episodes.rrd"
    given = episodes()
    assert write_rerun(str(where), "lawm: mine", given, fps=4.0) == str(where)
    (recording,) = RrdReader(where).recordings()
    assert recording.application_id == "lawm" and recording.recording_id == "lawm: mine"
    rows: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    pictures: dict[str, list[bytes]] = {}
    for chunk in RrdReader(where).stream().to_chunks():
        if chunk.entity_path.startswith("/__"):
            continue
        batch = chunk.to_record_batch()
        rows[chunk.entity_path] = rows.get(chunk.entity_path, 0) + batch.num_rows
        if "time" in batch.schema.names:
            seconds = [value.total_seconds() for value in batch.column("time").to_pylist()]
            times.setdefault(chunk.entity_path, []).extend(seconds)
        for name in batch.schema.names:
            if name.endswith("Image:buffer"):
                found = [bytes(one[0]) for one in batch.column(name).to_pylist()]
                pictures.setdefault(chunk.entity_path, []).extend(found)
    assert rows == {
        "/episode_0/name": 1, "/episode_1/name": 1,
        "/episode_0/pictures/true_frames": 4, "/episode_0/pictures/rollout_inferred_latents": 4,
        "/episode_1/pictures/true_frames": 4, "/episode_1/pictures/predicted": 3,
        "/episode_0/latent": 3, "/episode_1/latent": 1, "/episode_1/action": 1,
    }  # fmt: skip
    assert times["/episode_0/pictures/true_frames"] == [0.0, 0.25, 0.5, 0.75]
    assert times["/episode_1/pictures/predicted"] == [0.25, 0.5, 0.75]  # its first frame is the second of the clip
    assert times["/episode_0/latent"] == [0.0, 0.25, 0.5]
    for number, episode in enumerate(given):
        for row in episode.rows:
            shown = pictures[f"/episode_{number}/pictures/{entity(row.label)}"]
            assert shown == [image.tobytes() for image in row.frames]


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(LawmError, match=r"needs the package rerun-sdk: pip install 'lawm\[rerun\]'"):
        write_rerun(str(tmp_path / "e.rrd"), "t", episodes(), 4.0)
    assert not list(tmp_path.iterdir())


def test_names_of_entities() -> None:
    assert entity("rollout, another video's latents") == "rollout_another_video_s_latents"
    assert entity("?!") == "_"
