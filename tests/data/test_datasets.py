"""Labelled data sets in their true layouts: the right frames, each with the action that leads to the next one."""

import io
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import data_sets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import LENGTHS, droid_raw, lerobot
from made_videos import number_of, write_video
from PIL import Image

from jobs.__main__ import main
from lawm import storage
from lawm.cluster.dataset import _checked, held_against
from lawm.cluster.session import Session
from lawm.config import ClipSpec, Config, DataConfig, LawmError, PixelsEncoder
from lawm.data import ClipReader, ReadSpec, Recording, Sample, VideoLabels, layout, read_index, unique_keys
from lawm.data.datasets.common import open_hdf5
from lawm.data.datasets.recon import motion_jpeg, plain_pickle
from lawm.data.labels import deltas, read_labels
from lawm.simulation import PushTSpec, simulate_pusht
from lawm.video import VideoRef

CLIP = ClipSpec(frames=4, fps=4.0, size=96)


def reader(out: Path, clip: ClipSpec = CLIP, labelled: bool = True) -> ClipReader:
    labels = str(out / "labels.parquet") if labelled else None
    data = DataConfig(index=str(out / "index.parquet"), labels=labels, clip=clip, val_fraction=0.0)
    return ClipReader(Config(data=data, encoder=PixelsEncoder()), labelled=labelled)


def check(found: ClipReader, poses: dict[str, tuple[np.ndarray, int]], kind: str) -> int:
    """Every clip of an epoch: successive frames are those on display at its times, and its actions lead from one to the
    next. `poses`: by key, the states and the number that the first frame shows. Returns the number of clips."""
    rate = {key: found.labels.of(key).rate_hz for key in poses}  # type: ignore[union-attr]
    for position in range(len(found.plan)):
        sample = found.sample(position)
        states, first = poses[sample.key]
        assert sample.frames is not None
        at = [number_of(frame) - first for frame in sample.frames]
        times = sample.start_s + np.arange(len(at)) / found.config.data.clip.fps
        assert at == [int(t * rate[sample.key] + 1e-2) for t in times]
        np.testing.assert_allclose(sample.actions, deltas(kind, states[at].astype(np.float32)), atol=2e-5)  # type: ignore[arg-type]
    return len(found.plan)


# ---------------------------------------------------------------- LeRobot
@pytest.mark.ray
@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_droid_in_lerobot_form(
    codec: str, ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = lerobot(tmp_path / "droid", codec=codec)
    assert main(["dataset", "lerobot", str(tmp_path / "droid"), "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "exterior_1_left" in said and "pose_delta of observation.state.cartesian_position + " in said
    index = read_index(str(tmp_path / "o/index.parquet"))
    assert index.reasons() == {} and index.table["frames"].to_pylist() == list(LENGTHS)
    assert index.table["codec"].to_pylist() == [{"libx264": "h264", "libsvtav1": "av1"}[codec]] * 3
    assert len(set(index.table["source"].to_pylist())) == 2  # two episodes are in one file
    poses = {f"exterior_1_left/episode_{e:06d}": (pose, 256 * e) for e, pose in truth.items()}
    assert check(reader(tmp_path / "o"), poses, "pose_delta") >= 6
    for fps in (5.0, 15.0, 3.75):
        assert check(reader(tmp_path / "o", CLIP.model_copy(update={"fps": fps})), poses, "pose_delta") >= 3


@pytest.mark.ray
def test_any_lerobot_data_set(ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = lerobot(tmp_path / "l", droid=False)
    assert main(["dataset", "lerobot", str(tmp_path / "l"), "--out", str(tmp_path / "o")]) == 0
    assert "actions first of action" in capsys.readouterr().out
    found = reader(tmp_path / "o")
    assert found.labels is not None and found.labels.state_dim == 8
    for position in range(len(found.plan)):
        sample = found.sample(position)
        e = int(sample.key[-6:])
        at = [number_of(f) - 256 * e for f in sample.frames]  # type: ignore[union-attr]
        np.testing.assert_allclose(sample.actions, 10 * truth[e][at[:-1]], atol=1e-4)
    asked = ["--actions", "sum", "--action", "observation.state", "--limit", "1"]
    assert main(["dataset", "lerobot", str(tmp_path / "l"), "--out", str(tmp_path / "p"), *asked]) == 0
    assert len(read_labels(str(tmp_path / "p/labels.parquet"))) == 1


def read(kind: str, source: Path, out: Path, **options: Any) -> Any:
    """All recordings, here."""
    how = layout(kind)
    spec = how.choices(str(source), ReadSpec(kind, **options))  # type: ignore[arg-type]
    return [r for batch in how.batches(str(source), spec) for r in how.read(batch, spec, str(out))]


def test_cameras_share_their_labels(tmp_path: Path) -> None:
    lerobot(tmp_path / "d")
    found = read("lerobot", tmp_path / "d", tmp_path, cameras=("all",), limit=2)
    assert [r.ref.key for r in found[:3]] == [f"{c}/episode_000000" for c in data_sets.CAMERAS]
    assert all(np.array_equal(r.labels.states, found[0].labels.states) for r in found[:3])
    assert len(found) == 6
    (only,) = {r.ref.key.partition("/")[0] for r in read("lerobot", tmp_path / "d", tmp_path, cameras=("wrist_left",))}
    assert only == "wrist_left"


def test_lerobot_data_sets_that_cannot_be_read(tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(LawmError, match=match):
            read("lerobot", tmp_path / "d", tmp_path, **options)

    refused(r"no LeRobot data set, meta/info\.json is not there")
    lerobot(tmp_path / "d")
    refused(r"--camera left: not in .*expected all, or some of observation", cameras=("left",))
    refused("no feature velocity; expected some of observation.state, action", state=("velocity",))
    refused("--rate means nothing for lerobot", rate=4.0)
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    for change, match in (
        ({"codebase_version": "v2.1"}, r"LeRobot v2\.1; expected v3\. Convert it"),
        ({"video_path": None}, r"no video_path; a data set with videos was expected"),
        ({"video_path": "videos/{episode_chunk}.mp4"}, "cannot make a path of"),
        ({"features": {"observation.image": {"dtype": "image"}}}, "no feature is a video"),
    ):
        (tmp_path / "d/meta/info.json").write_text(json.dumps(info | change))
        refused(match)
    for change in ({"fps": "fast"}, {"fps": -1}, {"fps": float("nan")}, {"features": {"a": 3}}, {"data_path": 7}):
        (tmp_path / "d/meta/info.json").write_text(json.dumps(info | change))
        refused(f"{next(iter(change))} is .*; not as LeRobot writes it")
    (tmp_path / "d/meta/info.json").write_text("{")
    refused("not JSON")
    (tmp_path / "d/meta/info.json").write_text(json.dumps(info))
    (tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").write_bytes(b"PAR1 torn")
    refused("file-000.parquet: not a Parquet file")


@pytest.mark.ray
def test_what_is_missing_of_lerobot_is_refused_episode_by_episode(ray_cluster: Session, tmp_path: Path) -> None:
    lerobot(tmp_path / "d")
    (tmp_path / "d/videos/observation.images.exterior_1_left/chunk-000/file-001.mp4").unlink()
    table = pq.read_table(tmp_path / "d/data/chunk-000/file-000.parquet")
    pq.write_table(table.slice(0, 50), tmp_path / "d/data/chunk-000/file-000.parquet")  # 10 of the second's 23 steps
    assert main(["dataset", "lerobot", str(tmp_path / "d"), "--out", str(tmp_path / "o")]) == 0
    reasons = read_index(str(tmp_path / "o/index.parquet")).table["reason"].to_pylist()
    assert reasons[0] is None
    assert reasons[1] == "labels: 10 of 23 steps are in its table"
    assert reasons[2].startswith("missing")


def test_tables_that_are_not_what_they_should_be_cost_their_episodes(tmp_path: Path) -> None:
    lerobot(tmp_path / "d", droid=False)
    episodes = tmp_path / "d/meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(episodes).to_pylist()
    rows[0] |= {"videos/observation.images.front/from_timestamp": float("nan")}
    rows[1] |= {"videos/observation.images.front/to_timestamp": 1.0}
    rows[2] |= {"videos/observation.images.front/to_timestamp": None}
    pq.write_table(pa.Table.from_pylist(rows), episodes)
    for found in read("lerobot", tmp_path / "d", tmp_path):
        assert re.search(r"labels: from \S+ s to \S+ s of .* by meta/episodes", found.reason)
    where = tmp_path / "d/data/chunk-000/file-000.parquet"
    table = pq.read_table(where).to_pydict()
    ragged = table | {
        "action": [[*row, 0.0] if i == 0 else row[:-1] if i == 1 else row for i, row in enumerate(table["action"])]
    }
    pq.write_table(pa.table(ragged), where)
    for row, end in zip(rows, (40 / 15, 63 / 15, 61 / 15), strict=True):
        row["videos/observation.images.front/to_timestamp"] = end
    rows[0]["videos/observation.images.front/from_timestamp"] = 0.0
    pq.write_table(pa.Table.from_pylist(rows), episodes)
    ragged_ones = [found.reason for found in read("lerobot", tmp_path / "d", tmp_path)]
    assert ragged_ones == ["labels: action is empty at step 0, or not as many numbers as elsewhere", None, None]
    for changed in (table | {"action": ["a"] * len(table["action"])}, {"frame_index": [0]}):
        pq.write_table(pa.table(changed), where)
        reasons = [found.reason for found in read("lerobot", tmp_path / "d", tmp_path)]
        assert all(re.search("labels: .*file-000.parquet: (column action is|no column)", r) for r in reasons[:2])
    where.unlink()
    assert all("no such file" in found.reason for found in read("lerobot", tmp_path / "d", tmp_path)[:2])


@pytest.mark.ray
def test_labels_that_are_no_numbers_cost_their_own_episode_alone(ray_cluster: Session, tmp_path: Path) -> None:
    lerobot(tmp_path / "d", droid=False)
    where = tmp_path / "d/data/chunk-000/file-000.parquet"
    table = pq.read_table(where).to_pydict()
    table["action"][3][2] = float("nan")
    pq.write_table(pa.table(table), where)
    assert main(["dataset", "lerobot", str(tmp_path / "d"), "--out", str(tmp_path / "o")]) == 0
    reasons = read_index(str(tmp_path / "o/index.parquet")).table["reason"].to_pylist()
    assert reasons == ["labels: some are not finite, or beyond float32", None, None]
    assert len(read_labels(str(tmp_path / "o/labels.parquet"))) == 2


# ---------------------------------------------------------------- DROID raw
@pytest.mark.ray
def test_droid_raw(ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, at = tmp_path / "droid_raw", "LAB/success/2023-07-07/Fri_Jul__7_09:4%d:23_2023"
    shapes = [(60, 60, "control"), (60, 59, "control"), (60, 61, "robot"), (60, 50, "control"), (60, 60, "none")]
    truth = {n: droid_raw(root / (at % n), s, f, n, clock=clock) for n, (s, f, clock) in enumerate(shapes)}
    (root / (at % 7)).mkdir(parents=True)  # an upload that was given up: no metadata
    droid_raw(root / (at % 8), 60, 60, 8)
    (root / (at % 8) / "trajectory.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    droid_raw(root / (at % 5), 60, 60, 5)
    next((root / (at % 5)).glob("metadata_*.json")).write_text("[]")
    droid_raw(root / (at % 9), 60, 60, 9)
    os.remove(root / (at % 9) / "recordings/MP4/22000002.mp4")
    assert main(["dataset", "droid", str(root), "--out", str(tmp_path / "o")]) == 0
    index = read_index(str(tmp_path / "o/index.parquet"))
    reasons = {
        key.split("/")[3][12:16]: r for key, r in zip(index.keys(), index.table["reason"].to_pylist(), strict=True)
    }
    assert list(reasons.values())[:3] == [None] * 3
    assert reasons["9:43"] == "labels: 50 frames, and 60 steps in the labels"
    assert "without a clock the cadence is unknown" in reasons["9:44"]
    assert "not HDF5, or damaged" in reasons["9:48"]
    assert "expected an object" in reasons["9:45"]
    assert reasons["9:49"].startswith("missing: ext1 is success/")
    usable = index.usable()
    assert usable.table["frames"].to_pylist() == [60, 59, 60]  # never longer than the labels
    assert usable.column("rate") == pytest.approx(15.0, rel=0.01)  # not the 60 that the mp4s claim
    assert usable.column("container_rate") == pytest.approx(60.0)
    poses = {f"{at % n}/ext1": (truth[n], 0) for n in range(3)}
    assert check(reader(tmp_path / "o"), poses, "pose_delta") >= 6
    assert "refused: labels" in capsys.readouterr().out
    # DROID's own "left" view is one of the two external cameras.
    (left,) = read("droid", root / (at % 0), tmp_path, cameras=("left",))
    assert left.ref.source.endswith("24000003.mp4")


@pytest.mark.parametrize("kind", ["droid", "recon", "lerobot"])
def test_a_storage_that_is_lost_is_no_fault_of_the_episodes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    droid_raw(tmp_path / "droid/one", 30, 30)
    data_sets.recon_folder(tmp_path / "recon/t0", 20, 20)
    lerobot(tmp_path / "lerobot", droid=False)
    how, spec = layout(kind), layout(kind).choices(str(tmp_path / kind), ReadSpec(kind))  # type: ignore[arg-type]
    batches = list(how.batches(str(tmp_path / kind), spec))

    def lost(uri: str, *_: object) -> None:
        raise storage.StorageError(f"s3://bucket/{uri}: cannot reach S3")

    with monkeypatch.context() as patch:
        for name in ("read_bytes", "open_file"):
            patch.setattr(storage, name, lost)
        with pytest.raises(storage.StorageError, match="cannot reach S3"):
            how.read(batches[0], spec, str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.tar")) if (tmp_path / "out").exists() else True
    assert all(r.reason is None for r in how.read(batches[0], spec, str(tmp_path / "out")))


def test_keys_stay_apart() -> None:
    refs = [VideoRef("/v", 0, 1, key) for key in ("a", "a#2", "a", "a", "b", "b", "b#2")]
    assert len({ref.key for ref in unique_keys(refs)}) == 7
    recordings = [Recording(replace(ref, offset=i)) for i, ref in enumerate(refs)]
    assert len({r.ref.key for r in _checked(recordings)}) == 7 and all(r.reason is None for r in _checked(recordings))
    assert [r.reason for r in _checked([Recording(refs[0]), Recording(refs[2])])] == [
        None,
        "labels: the same video as a",
    ]


def test_droid_raw_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(LawmError, match=r"no metadata_\*\.json below it"):
        read("droid", tmp_path, tmp_path)
    with pytest.raises(LawmError, match="--camera front: expected all, or some of ext1"):
        read("droid", tmp_path, tmp_path, cameras=("front",))
    with pytest.raises(LawmError, match="--actions sum: DROID's labels are poses"):
        read("droid", tmp_path, tmp_path, actions="sum")


def test_videos_are_held_against_their_labels() -> None:
    row = {"reason": None, "frames": 60, "rate": 15.0, "duration_s": 4.0, "variable_rate": False}

    def said(steps: int, rate: float = 15.0) -> dict[str, Any]:
        return held_against(row, VideoLabels("v", rate, np.zeros((0, 1)), np.zeros((steps, 7))))

    assert said(60) == row and said(61) == row
    assert said(59) == row | {"frames": 59, "duration_s": 59 / 15}
    assert said(62)["reason"] == "labels: 60 frames, and 62 steps in the labels"
    assert said(60, 30.0)["reason"] == "labels: 15.000 frames a second, and 30.000 steps"
    assert said(60, 15.1) == row | {"duration_s": 60 / 15.1}  # 0.4 steps at the end
    assert "15.200 steps" in said(60, 15.2)["reason"]
    long = row | {"frames": 1800, "duration_s": 120.0}
    assert "15.010 steps" in held_against(long, VideoLabels("v", 15.01, np.zeros((1800, 7))))["reason"]
    row |= {"variable_rate": True}
    assert "variable rate" in said(60)["reason"]
    refused = row | {"reason": "corrupt"}
    assert held_against(refused, VideoLabels("v", 15.0, np.zeros((60, 7)))) == refused


# ---------------------------------------------------------------- RECON
@pytest.mark.ray
def test_recon_in_nwms_layout(ray_cluster: Session, tmp_path: Path) -> None:
    root = tmp_path / "recon"
    truth = {f"t{n}": data_sets.recon_folder(root / f"t{n}", 20 - (n == 1), 20, n, protocol=2 + n) for n in range(3)}
    data_sets.recon_folder(root / "short", 20, 15)
    data_sets.recon_folder(root / "gap", 20, 20)
    (root / "gap/7.jpg").unlink()
    data_sets.recon_folder(root / "twice", 20, 20)
    (root / "twice/07.jpg").write_bytes((root / "twice/8.jpg").read_bytes())
    data_sets.recon_folder(root / "png", 20, 20)
    Image.new("RGB", (160, 120)).save(root / "png/3.jpg", "PNG")
    data_sets.recon_folder(root / "sizes", 20, 20)
    (root / "sizes/3.jpg").write_bytes(data_sets.jpeg(3, 320, 240))
    data_sets.recon_folder(root / "evil", 20, 20)
    (root / "evil/traj_data.pkl").write_bytes(pickle.dumps(Evil(str(tmp_path / "was here"))))
    data_sets.recon_folder(root / "torn", 20, 20)
    (root / "torn/traj_data.pkl").write_bytes((root / "t0/traj_data.pkl").read_bytes()[:100])
    data_sets.recon_folder(root / "flat", 20, 20)
    flat = bytearray(data_sets.jpeg(3))
    at = flat.index(b"\xff\xc0")
    flat[at + 5 : at + 7] = b"\0\0"
    (root / "flat/3.jpg").write_bytes(flat)
    assert main(["dataset", "recon", str(root), "--out", str(tmp_path / "o")]) == 0
    assert not (tmp_path / "was here").exists()
    index = read_index(str(tmp_path / "o/index.parquet"))
    reasons = dict(zip(index.keys(), index.table["reason"].to_pylist(), strict=True))
    assert {key for key, reason in reasons.items() if reason is None} == {"t0", "t1", "t2"}
    for key, said in (
        ("short", "20 pictures and 15 positions; they cannot be matched"), ("gap", "picture 7 of 19 is missing"),
        ("png", "picture 3 is no JPEG"), ("sizes", "pictures of different sizes"), ("evil", "it asks for"),
        ("torn", "refused or damaged"), ("flat", "picture 3 is no JPEG"),
        ("twice", "07.jpg and 7.jpg are both picture 7"),
    ):  # fmt: skip
        assert said in reasons[key], (key, reasons[key])
    with pytest.raises(LawmError, match=r"have neither labels nor a cache: set data\.clip\.start=exact"):
        reader(tmp_path / "o", CLIP.model_copy(update={"start": "keyframe"}))
    found = reader(tmp_path / "o")
    assert found.labels is not None and found.labels.action_dim == 3
    assert check(found, {key: (states, 0) for key, states in truth.items()}, "planar_delta") >= 9


def test_a_pickle_that_asks_for_more_is_refused_in_one_line() -> None:
    for data in (b"Pabc\n.", b"\x80\x04\x8c\x08\n\r\n\x0b\x0c \n.\x8c\x01a\x93.", b""):
        with pytest.raises(LawmError, match="refused or damaged") as caught:
            plain_pickle(data, "folder")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.ray
def test_recon_is_read_anew_where_it_has_changed(ray_cluster: Session, tmp_path: Path) -> None:
    for n in range(2):
        data_sets.recon_folder(tmp_path / f"r/t{n}", 20, 20, n)
    (tmp_path / "r/t1/3.jpg").rename(tmp_path / "kept.jpg")

    def run() -> tuple[dict[str, int], np.ndarray, list[str | None]]:
        assert main(["dataset", "recon", str(tmp_path / "r"), "--out", str(tmp_path / "o")]) == 0
        shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").glob("*.tar")}
        labels = read_labels(str(tmp_path / "o/labels.parquet"))
        return shards, labels.of("t0").states, read_index(str(tmp_path / "o/index.parquet")).table["reason"].to_pylist()  # type: ignore[return-value]

    assert "picture 3 of 19 is missing" in run()[2][1]  # type: ignore[operator]
    (tmp_path / "kept.jpg").rename(tmp_path / "r/t1/3.jpg")
    mended = run()
    assert mended[2] == [None, None]
    assert run()[0] == mended[0]  # shards are kept
    (tmp_path / "r/t0/traj_data.pkl").write_bytes(
        pickle.dumps({"position": np.full((20, 2), 5.0), "yaw": np.zeros(20)})
    )
    assert np.array_equal(run()[1][:, 0], np.full(20, 5.0))
    for path in (tmp_path / "o").glob("*.tar"):
        path.write_bytes(b"junk")
    assert run()[2] == [None, None]


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.ray
def test_recon_as_published(ray_cluster: Session, tmp_path: Path) -> None:
    truth = {f"r{n}": data_sets.recon_hdf5(tmp_path / f"recon_release/r{n}.hdf5", 20, n) for n in range(2)}
    (tmp_path / "recon_release/torn.hdf5").write_bytes((tmp_path / "recon_release/r0.hdf5").read_bytes()[:3000])
    assert main(["dataset", "recon-hdf5", str(tmp_path / "recon_release"), "--out", str(tmp_path / "o")]) == 0
    index = read_index(str(tmp_path / "o/index.parquet"))
    assert index.table["codec"].to_pylist()[:2] == ["mjpeg", "mjpeg"] and len(index.usable()) == 2
    assert check(reader(tmp_path / "o"), {key: (states, 0) for key, states in truth.items()}, "planar_delta") >= 6
    with pytest.raises(LawmError, match="not HDF5, or damaged"), open_hdf5(str(tmp_path / "recon_release/torn.hdf5")):
        pass


def test_jpegs_are_not_encoded_anew(tmp_path: Path) -> None:
    import av

    frames = [data_sets.jpeg(i) for i in range(5)]
    with av.open(io.BytesIO(motion_jpeg(frames, 4.0))) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert [bytes(p) for p in packets] == frames
        assert [float(p.pts * p.time_base) for p in packets] == [0, 0.25, 0.5, 0.75, 1.0]
    with av.open(io.BytesIO(motion_jpeg(frames, 4.0))) as container:
        for data, frame in zip(frames, container.decode(video=0), strict=True):
            want = np.asarray(Image.open(io.BytesIO(data)), np.float64)
            assert np.abs(frame.to_ndarray(format="rgb24") - want).mean() < 2.0  # full range, as JPEG has it
    with pytest.raises(LawmError, match="1 pictures; expected two or more"):
        motion_jpeg(frames[:1], 4.0)


# ---------------------------------------------------------------- classes
@pytest.mark.ray
def test_something_something(ray_cluster: Session, tmp_path: Path) -> None:
    data_sets.ssv2(tmp_path / "ssv2")
    assert main(["dataset", "ssv2", str(tmp_path / "ssv2"), "--out", str(tmp_path / "o")]) == 0
    classes = pq.read_table(tmp_path / "o/classes.parquet").to_pylist()
    assert {(row["key"], row["split"], row["label"]) for row in classes} == {
        ("train/1.webm", "train", "Holding something"), ("train/78687.webm", "train", "Holding something"),
        ("validation/2.webm", "validation", "Moving something up"), ("test/3.webm", "test", None),
    }  # fmt: skip
    found = reader(tmp_path / "o", labelled=False)
    assert len(found.index) == 4
    sample = found.try_sample(0)
    assert isinstance(sample, Sample)
    assert np.diff([number_of(f) for f in sample.frames]).tolist() == [3, 3, 3]  # type: ignore[union-attr]


@pytest.mark.ray
@pytest.mark.parametrize("flat", [False, True])
def test_kinetics(flat: bool, ray_cluster: Session, tmp_path: Path) -> None:
    data_sets.kinetics(tmp_path / "k", flat)
    assert main(["dataset", "kinetics", str(tmp_path / "k"), "--out", str(tmp_path / "o")]) == 0
    classes = pq.read_table(tmp_path / "o/classes.parquet").to_pylist()
    found = read_index(str(tmp_path / "o/index.parquet"))
    reasons = dict(zip(found.keys(), found.table["reason"].to_pylist(), strict=True))
    good = [(row["split"], row["label"]) for row in classes if reasons[row["key"]] is None]
    assert sorted(good) == [("train", "abseiling"), ("train", "zumba")]
    assert sorted(found.usable().groups()) == ["abc_-12_DEF", "xyz12345678"]  # clips of one film belong together
    if flat:
        assert reasons["train/never_there_000000_000010.mp4"] == (
            "missing: no video of that name, which line 4 of train.csv names"
        )
        assert {k: r for k, r in reasons.items() if "(" in k}.keys() == {
            "train/(line 5 of train.csv)", "unlabelled/(line 6 of train.csv)"
        }  # fmt: skip


# ---------------------------------------------------------------- PushT, and the job
@pytest.mark.ray
def test_pusht_and_the_job(ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate_pusht(str(tmp_path / "p"), 3, spec=PushTSpec(states=6, size=64))
    write_video(tmp_path / "p/other.mp4", 60)
    ask = ["dataset", "pusht", str(tmp_path / "p"), "--out", str(tmp_path / "o")]
    assert main([*ask, "--dry-run"]) == 0
    assert "actions: sum" in capsys.readouterr().out and not (tmp_path / "o").exists()
    assert main(ask) == 0
    index = read_index(str(tmp_path / "o/index.parquet"))
    assert index.reasons() == {"labels": 1} and len(index.usable()) == 3
    theirs, ours = (read_labels(str(tmp_path / f"{at}/labels.parquet")) for at in "po")
    for key in ours.keys:
        np.testing.assert_array_equal(ours.of(key).actions, theirs.of(key).actions)
    capsys.readouterr()
    for wrong, said in (
        (["dataset", "pusht", str(tmp_path / "none"), "--out", str(tmp_path / "q")], "no such file"),
        (["dataset", "kinetics", str(tmp_path / "p"), "--out", str(tmp_path / "o")], "was made with other settings"),
        (
            ["dataset", "kinetics", str(tmp_path / "p"), "--out", str(tmp_path / "q")],
            "not Kinetics. `lawm index` takes",
        ),
        (["dataset", "imagenet", str(tmp_path), "--out", str(tmp_path / "q")], "invalid choice"),
        ([*ask, "--camera", "a"], "--camera means nothing for pusht"),
        ([*ask, "--limit", "0"], "--limit 0: expected 1 or more"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err
