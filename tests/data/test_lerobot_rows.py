"""One bad row of LeRobot's tables costs one row: the others keep their frames, and the right one is blamed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import LENGTHS, lerobot
from made_videos import number_of, write_video

from lawm.config import ClipSpec, LawmError, VideoLimits
from lawm.data import ReadSpec, Recording, layout
from lawm.data.datasets.spans import InFile, Span, placed
from lawm.video import VideoError, decode_clip

CAMERA = "videos/observation.images.front"
NAMES = [f"front/episode_{e:06d}" for e in range(3)]
FPS = 15


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lerobot")
    lerobot(root / "d", droid=False)
    return root / "d"


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """The data set with tables of its own, and the same videos."""
    for path in original.rglob("*"):
        if path.is_file():
            (tmp_path / "d" / path.relative_to(original)).parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".mp4":
                (tmp_path / "d" / path.relative_to(original)).symlink_to(path)
            else:
                (tmp_path / "d" / path.relative_to(original)).write_bytes(path.read_bytes())
    return tmp_path / "d"


def read(root: Path, **options: Any) -> dict[str, Recording]:
    how = layout("lerobot")
    spec = how.choices(str(root), ReadSpec("lerobot", **options))
    return {r.ref.key: r for batch in how.batches(str(root), spec) for r in how.read(batch, spec, str(root / "o"))}


def change(path: Path, with_rows: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = pq.read_table(path).to_pylist()
    found = with_rows(rows)
    pq.write_table(pa.Table.from_pylist(rows if found is None else found), path)


def first_number(found: Recording) -> int:
    """The number in the first frame, less that of the file's first episode."""
    clip = decode_clip(found.ref, 0.0, ClipSpec(frames=4, fps=5.0, size=96), VideoLimits())
    return number_of(clip.frames_FCHW[0])


META = "meta/episodes/chunk-000/file-000.parquet"


@pytest.mark.parametrize("value", [None, float("nan"), -1, 0.5, "x"])
@pytest.mark.parametrize("cell", ["length", "data/file_index", f"{CAMERA}/chunk_index", "episode_index"])
def test_an_odd_cell_of_meta_episodes_costs_its_episode(cell: str, value: Any, data: Path) -> None:
    def changed(rows: list[dict[str, Any]]) -> None:
        if isinstance(value, str):  # a column of another type: all rows, one of which is no number
            for row in rows:
                row[cell] = str(row[cell])
        rows[1][cell] = value

    change(data / META, changed)
    found = read(data)
    if isinstance(value, str):
        assert all("a whole number was expected" in str(r.reason) for r in list(found.values())[:3])
        return
    bad = NAMES[1] if cell != "episode_index" else f"front/episode (row 1 of {META})"
    assert {key for key, r in found.items() if r.reason is None} == {NAMES[0], NAMES[2]}
    said = "empty" if value is None else repr(value)
    assert found[bad].reason == f"labels: {cell} is {said} in row 1 of {META}; a whole number was expected"
    assert [first_number(found[key]) for key in (NAMES[0], NAMES[2])] == [0, 512]
    assert [found[key].ref.group for key in (NAMES[0], NAMES[2])] == ["episode_000000", "episode_000002"]


@pytest.mark.parametrize("which", ["from", "to"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -3.0, 1e9])
def test_odd_times_cost_their_episode(which: str, value: Any, data: Path) -> None:
    change(data / META, lambda rows: rows[1].update({f"{CAMERA}/{which}_timestamp": value}))
    found = read(data)
    assert {key: r.reason is None for key, r in found.items()} == {NAMES[0]: True, NAMES[1]: False, NAMES[2]: True}
    assert "by meta/episodes" in str(found[NAMES[1]].reason) and first_number(found[NAMES[0]]) == 0


@pytest.mark.parametrize("cell", ["action", "observation.state", "frame_index", "episode_index"])
def test_an_empty_cell_of_the_steps_costs_its_episode(cell: str, data: Path) -> None:
    change(data / "data/chunk-000/file-000.parquet", lambda rows: rows[LENGTHS[0] + 7].update({cell: None}))
    found = read(data)
    assert {key: r.reason is None for key, r in found.items()} == {NAMES[0]: True, NAMES[1]: False, NAMES[2]: True}
    labels = found[NAMES[0]].labels
    assert labels is not None and labels.actions.shape == (LENGTHS[0], 7)
    if cell in ("action", "observation.state"):
        assert f"{cell} is empty at step 7" in str(found[NAMES[1]].reason)


def test_an_empty_number_within_an_action_costs_its_episode(data: Path) -> None:
    change(data / "data/chunk-000/file-000.parquet", lambda rows: rows[3]["action"].__setitem__(2, None))
    found = read(data)
    assert "action is empty at step 3" in str(found[NAMES[0]].reason)
    assert found[NAMES[1]].reason is None and found[NAMES[2]].reason is None


def test_episodes_that_no_row_names_are_rows(data: Path) -> None:
    change(data / META, lambda rows: [rows[0], rows[2]])
    found = read(data)
    said = "labels: meta/info.json counts 3 episodes, and meta/episodes does not name this one"
    assert found[NAMES[1]].reason == said and first_number(found[NAMES[2]]) == 512
    assert set(read(data, limit=1)) == {NAMES[0]}


def test_two_rows_for_an_episode(data: Path) -> None:
    change(data / META, lambda rows: [*rows, rows[0]])
    how = layout("lerobot")
    spec = how.choices(str(data), ReadSpec("lerobot"))
    found = [r for batch in how.batches(str(data), spec) for r in how.read(batch, spec, "")]
    reasons = [r.reason for r in found if r.ref.key == NAMES[0]]
    assert reasons == [None, "labels: meta/episodes has 2 rows for episode 0"]
    change(data / META, lambda rows: rows[3].update({"length": 39}))
    found = [r for batch in how.batches(str(data), spec) for r in how.read(batch, spec, "")]
    assert all("2 rows for episode 0, that differ" in str(r.reason) for r in found if r.ref.key == NAMES[0])
    assert [r.reason for r in found if r.ref.key != NAMES[0]] == [None, None]


def test_a_damaged_table_of_episodes_costs_its_own(data: Path) -> None:
    other = data / "meta/episodes/chunk-000/file-001.parquet"
    rows = pq.read_table(data / META)
    pq.write_table(rows.slice(0, 2), data / META)
    pq.write_table(rows.slice(2, 1), other)
    assert all(r.reason is None for r in read(data).values())
    other.write_bytes(other.read_bytes()[:-20])
    found = read(data)
    assert found[NAMES[0]].reason is None and found[NAMES[1]].reason is None
    assert "file-001.parquet: not a Parquet file" in str(found["front/episode (meta/episodes/chunk-000/file-001.parquet)"].reason)  # fmt: skip # noqa: E501
    assert "does not name this one" in str(found[NAMES[2]].reason)


@pytest.mark.parametrize("kind", ["folder", "gone", "zero", "circle"])
def test_a_video_that_is_no_file_costs_its_episodes(kind: str, data: Path) -> None:
    from lawm.video import probe

    path = data / "videos/observation.images.front/chunk-000/file-001.mp4"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "zero":
        path.touch()
    elif kind == "circle":
        path.symlink_to(path.name)
    found = read(data)
    reason = probe(found[NAMES[2]].ref, VideoLimits())["reason"]
    slug = {"folder": "unreadable", "gone": "missing", "zero": "empty", "circle": "unreadable"}[kind]
    assert reason.startswith(slug) and found[NAMES[0]].reason is None and first_number(found[NAMES[0]]) == 0


# ---------------------------------------------------------------- where episodes lie in their file
def spans_of(*rows: tuple[float, float, int | None]) -> list[Span]:
    """In frames of a file of 30 a second: begin, end, length."""
    return [Span(f"episode_{i:06d}", begin / 30, end / 30, length) for i, (begin, end, length) in enumerate(rows)]


def of(spans: list[Span], frames: int | None, rate: float = 30.0) -> list[Any]:
    """(first frame, frames) of each, or its reason."""
    found = placed(spans, 30.0, "file.mp4", lambda: None if frames is None else InFile(frames, rate))
    return [p.reason or (round(p.begin_s * rate, 3), round((p.end_s - p.begin_s) * rate, 3)) for p in found]


def test_times_that_agree_are_taken_and_the_file_is_not_opened() -> None:
    def opened() -> InFile | None:
        raise AssertionError

    spans = spans_of((0, 30, 30), (30.1, 50, 20), (50, 90, 40))
    assert [p.reason for p in placed(spans, 30.0, "f", opened)] == [None] * 3


def test_times_that_run_away_are_put_right_where_the_file_bears_it_out() -> None:
    spans = spans_of((0, 30, 30), (30.6, 60.8, 30), (60.8, 91.0, 30), (91.0, 121.0, 30))
    assert of(spans, 120) == [(0, 30), (30, 30), (60, 30), (90, 30)]
    moved = [round(p.moved, 3) for p in placed(spans, 30.0, "f", lambda: InFile(120, 30.0))]
    assert moved == [0, 0.6, 0.8, 1.0]
    # Without the count of frames to bear it out, what lies between two frames is refused.
    left = of(spans, 125)
    assert "frames 30.60 to 60.80 of file.mp4 by meta/episodes, for 30 steps" in left[1]
    assert of(spans, None)[0] == (0, 30)


def test_a_file_of_another_rate_than_the_data_set_says() -> None:
    spans = [Span(str(i), 300 * i / 29.97, 300 * (i + 1) / 29.97, 300) for i in range(20)]
    assert of(spans, 6000, 29.97) == [(300 * i, 300) for i in range(20)]


@pytest.mark.parametrize("shift", [-35.0, -10.0, -3.0, 4.0])
def test_an_episode_that_lies_elsewhere_is_refused_and_its_neighbours_are_not(shift: float) -> None:
    found = of(spans_of((0, 40, 40), (40 + shift, 63 + shift, 23), (63, 124, 61)), 124)
    assert found[0] == (0, 40) and found[2] == (63, 61)
    other = "episode_000000" if shift < 0 else "episode_000002"
    assert f"overlaps {other}'s" in found[1]


def test_frames_of_no_episode_lie_between() -> None:
    """An episode was taken out of the tables and not out of the file."""
    spans = spans_of((0, 40, 40), (63, 124, 61), (124, 130, 6))
    assert of(spans, 130) == [(0, 40), (63, 61), (124, 6)]
    assert "frames 63.50" in of(spans_of((0, 40, 40), (63.5, 124.5, 61)), 130)[1]


def test_what_is_beyond_doubt_wrong_is_refused() -> None:
    for begin, end in (
        (float("nan"), 1.0),
        (None, 1.0),
        (2.0, 1.0),
        (-1.0, 1.0),
        ("0", 1.0),
        (True, 2.0),
        (0.0, math.inf),
    ):
        spans = [Span("a", begin, end, 30), Span("b", 1.0, 2.0, 30)]
        first, second = of(spans, 60)
        assert f"from {begin} s to {end} s of file.mp4" in first and second == (30, 30)
    assert (
        "begins at frame 90.00 of file.mp4 by meta/episodes, and at 30"
        in of(spans_of((0, 30, 30), (90, 120, 30)), 60)[1]
    )


def test_shifted_times_show_the_right_frames(tmp_path: Path) -> None:
    """Real files: ten episodes of 30 frames, of which the last three run away by up to a frame."""
    write_video(tmp_path / "f.mp4", 300, rate=30, gop=15)
    late = {7: 0.6, 8: 0.8, 9: 1.0, 10: 1.0}
    spans = spans_of(*((30 * e + late.get(e, 0), 30 * (e + 1) + late.get(e + 1, 0), 30) for e in range(10)))
    from lawm.data.datasets.lerobot import _in_file
    from lawm.video import VideoRef

    size = (tmp_path / "f.mp4").stat().st_size
    for e, place in enumerate(placed(spans, 30.0, "f", lambda: _in_file(str(tmp_path / "f.mp4"), size))):
        ref = VideoRef(str(tmp_path / "f.mp4"), 0, size, "f", place.begin_s, place.end_s)
        clip = decode_clip(ref, 0.0, ClipSpec(frames=2, fps=30.0, size=96), VideoLimits())
        assert [number_of(f) for f in clip.frames_FCHW] == [30 * e, 30 * e + 1]
        with pytest.raises(VideoError):
            decode_clip(ref, 29 / 30, ClipSpec(frames=3, fps=30.0, size=96), VideoLimits())


def test_no_table_at_all(data: Path) -> None:
    (data / META).unlink()
    with pytest.raises(LawmError, match="expected the table of episodes"):
        read(data)


@pytest.mark.parametrize("names", [["shoulder_pan.pos"] * 8, {"motors": [f"joint_{i}" for i in range(8)]}])
def test_joints_are_no_poses(names: Any, data: Path) -> None:
    info = json.loads((data / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = names
    (data / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(LawmError, match=r"--actions pose_delta is of poses, and observation.state is of joints by its"):
        read(data, actions="pose_delta")
    assert all(r.reason is None for r in read(data, actions="state_delta").values())
