"""DROID, RECON, Something-Something-v2, Kinetics and PushT: what a data set names and does not hold, or holds and does
not name, is a row with its reason; the rest is read."""

import json
from pathlib import Path
from typing import Any

import data_sets
import h5py
import numpy as np
import pytest
from data_sets import droid_raw, recon_folder
from made_videos import write_video

from lawm.config import LawmError, VideoLimits
from lawm.data import ReadSpec, VideoLabels, layout, write_labels
from lawm.video import probe


def read(kind: str, source: Path, out: Path, **options: Any) -> dict[str, str | None]:
    """Reasons by key; what was not refused while reading is probed."""
    how = layout(kind)
    spec = how.choices(str(source), ReadSpec(kind, **options))  # type: ignore[arg-type]
    found = [r for batch in how.batches(str(source), spec) for r in how.read(batch, spec, str(out))]
    assert len({r.ref.key for r in found}) == len(found)
    return {r.ref.key: r.reason or probe(r.ref, VideoLimits())["reason"] for r in found}


def test_droid_episodes_without_their_files(tmp_path: Path) -> None:
    for name in ("whole", "no_metadata", "no_steps", "no_video", "nan", "odd_metadata"):
        droid_raw(tmp_path / f"d/{name}", 20, 20)
    next((tmp_path / "d/no_metadata").glob("*.json")).unlink()
    (tmp_path / "d/no_steps/trajectory.h5").unlink()
    (tmp_path / "d/no_video/recordings/MP4/22000002.mp4").unlink()
    (tmp_path / "d/no_video/recordings/MP4/22000002.mp4").mkdir()
    with h5py.File(tmp_path / "d/nan/trajectory.h5", "r+") as file:
        file["observation/robot_state/cartesian_position"][3, 2] = np.nan
    next((tmp_path / "d/odd_metadata").glob("*.json")).write_text(
        json.dumps({"ext1_mp4_path": None, "wrist_mp4_path": 7})
    )
    found = read("droid", tmp_path / "d", tmp_path, cameras=("ext1", "wrist"))
    assert {key for key, reason in found.items() if reason is None} == {"whole/ext1", "whole/wrist", "no_video/wrist"}
    said = {
        "no_metadata/ext1": "labels: no metadata_*.json, which whole episodes have",
        "no_steps/wrist": "labels: trajectory.h5: no such file or folder",
        "no_video/ext1": "missing: ext1 is ",
        "nan/ext1": "values that are not finite",
        "odd_metadata/ext1": "not named in its metadata",
        "odd_metadata/wrist": "missing: wrist is 7 in its metadata",
    }
    assert all(text in str(found[key]) for key, text in said.items()), found


def test_cameras_of_droid_are_one_group(tmp_path: Path) -> None:
    droid_raw(tmp_path / "d/lab/one", 20, 20)
    how = layout("droid")
    spec = how.choices(str(tmp_path / "d"), ReadSpec("droid", ("all",)))
    found = [r for batch in how.batches(str(tmp_path / "d"), spec) for r in how.read(batch, spec, "")]
    assert [(r.ref.key, r.ref.group) for r in found] == [(f"lab/one/{c}", "lab/one") for c in ("ext1", "ext2", "wrist")]


def test_recon_trajectories_without_their_table_or_pictures(tmp_path: Path) -> None:
    for name in ("whole", "no_table", "folder_for_table", "no_pictures", "zero", "twice"):
        recon_folder(tmp_path / f"r/{name}", 12, 12)
    for name in ("no_table", "folder_for_table"):
        (tmp_path / f"r/{name}/traj_data.pkl").unlink()
    (tmp_path / "r/folder_for_table/traj_data.pkl").mkdir()
    for path in (tmp_path / "r/no_pictures").glob("*.jpg"):
        path.unlink()
    (tmp_path / "r/zero/5.jpg").write_bytes(b"")
    (tmp_path / "r/twice/07.jpg").write_bytes((tmp_path / "r/twice/7.jpg").read_bytes())
    found = read("recon", tmp_path / "r", tmp_path / "o")
    assert found.pop("whole") is None
    said = {
        "no_table": "labels: traj_data.pkl: no such file or folder",
        "folder_for_table": "traj_data.pkl: is a folder",
        "no_pictures": "0 pictures and 12 positions",
        "zero": "picture 5 is no JPEG",
        "twice": "07.jpg and 7.jpg are both picture 7",
    }
    assert set(found) == set(said) and all(text in str(found[key]) for key, text in said.items()), found


def test_entries_of_something_something(tmp_path: Path) -> None:
    data_sets.ssv2(tmp_path / "s")
    entry = {"id": "2", "template": "Again [something]"}
    odd = [{"label": "x"}, None, {"id": None}, {"id": []}, {"id": "9", "template": None}, entry]
    where = tmp_path / "s/labels/train.json"
    where.write_text(json.dumps([*json.loads(where.read_text()), *odd]))
    write_video(tmp_path / "s/own.mp4", 40)
    found = read("ssv2", tmp_path / "s", tmp_path)
    assert {key for key, reason in found.items() if reason is None} == {
        "train/1.webm", "train/78687.webm", "test/3.webm", "unlabelled/own.mp4",
    }  # fmt: skip
    assert found["train/9.webm"] == "missing: no video of that id, which entry 6 of train.json names"
    assert "entry 7 of train.json and entry 0 of validation.json both name it" in str(found["train/2.webm"])
    assert [found[f"train/(entry {i} of train.json)"] is not None for i in (2, 3, 4, 5)] == [True] * 4
    where.write_text("[{")
    with pytest.raises(LawmError, match=r"train\.json: not JSON"):
        read("ssv2", tmp_path / "s", tmp_path)


def test_a_folder_of_videos_is_not_kinetics(tmp_path: Path) -> None:
    (tmp_path / "k/train/run").mkdir(parents=True)
    write_video(tmp_path / "k/train/run/film.mp4", 40)
    with pytest.raises(LawmError, match=r"not Kinetics\. `lawm index` takes any folder of videos"):
        read("kinetics", tmp_path / "k", tmp_path)
    write_video(tmp_path / "k/train/run/xyz12345678_000010_000020.mp4", 40)
    assert read("kinetics", tmp_path / "k", tmp_path) == {
        "train/run/film.mp4": "labels: not named <youtube id>_<start>_<end>, and in no CSV",
        "train/run/xyz12345678_000010_000020.mp4": None,
    }


def test_lists_that_contradict_each_other(tmp_path: Path) -> None:
    """Of a clip that two lists name differently nobody knows what it shows; what they say alike, or one leaves open,
    stands."""
    head, names = "label,youtube_id,time_start,time_end,split\n", ("same", "open", "label", "split")
    (tmp_path / "k").mkdir()
    for name in names:
        write_video(tmp_path / f"k/{name:_<11}_000000_000010.mp4", 40)
    rows = {"a.csv": {n: "zumba,{},0,10,val" for n in names}, "b.csv": {"same": "zumba,{},0,10,validate"}}
    rows["b.csv"] |= {"open": ",{},0,10,", "label": "yoga,{},0,10,val", "split": "zumba,{},0,10,train"}
    for file, lines in rows.items():
        (tmp_path / "k" / file).write_text(head + "".join(f"{s.format(f'{n:_<11}')}\n" for n, s in lines.items()))
    found = {key.partition("_")[0]: reason for key, reason in read("kinetics", tmp_path / "k", tmp_path / "o").items()}
    assert found == {
        "same": None,
        "open": None,
        "label": "labels: line 4 of a.csv and line 4 of b.csv both name it, as 'zumba' and 'yoga'",
        "split": "labels: line 5 of a.csv and line 5 of b.csv both name it, as 'val' and 'train'",
    }
    data_sets.ssv2(tmp_path / "s")
    where = tmp_path / "s/labels/train.json"
    where.write_text(json.dumps([*json.loads(where.read_text()), {"id": "1", "template": "Dropping [something]"}]))
    said = "labels: entry 1 of train.json and entry 2 of train.json both name it, as "
    said += "'Holding something' and 'Dropping something'"
    assert read("ssv2", tmp_path / "s", tmp_path / "p")["train/1.webm"] == said


def test_pusht_videos_that_are_gone(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 40)
    write_video(tmp_path / "c.mp4", 40)
    known = [VideoLabels(key, 10.0, np.zeros((9, 2))) for key in ("a.mp4", "b.mp4")]
    write_labels(known, str(tmp_path / "labels.parquet"))
    assert read("pusht", tmp_path, tmp_path / "o") == {
        "a.mp4": None,
        "b.mp4": "missing: labels.parquet has it, and no video is there",
        "c.mp4": "labels: none in labels.parquet",
    }
