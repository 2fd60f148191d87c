"""Latents as features of a LeRobot data set, which LeRobot's own reader and ours read (lerobot: where it is there)."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import tiny_with
from test_lerobot_own import GOLDEN, LENGTHS, _Frames

from jobs import __main__ as lawm
from lawm.cluster.session import Session
from lawm.data import read_index, read_labels, read_parts
from lawm.training import fit_local


def made_with_latents(root: Path) -> tuple[Path, list[str]]:
    """The set that LeRobot has written, read, a model on it, its latents: the folder, and the command without it."""
    with tarfile.open(GOLDEN) as tar:
        tar.extractall(root, filter="data")
    source, read = root / "set", root / "read"
    assert lawm.main(["dataset", "lerobot", str(source), "--out", str(read)]) == 0
    clip = {"data__clip__frames": 2, "data__clip__fps": 4.0, "train__steps": 1, "train__checkpoint_every": 1}
    config = tiny_with(data__index=str(read / "index.parquet"), data__val_fraction=0.0, **clip)
    fit_local(config, "latent_action", str(root / "run"))
    asked = ["latents", "--checkpoint", str(root / "run"), "--lerobot", str(source)]
    assert lawm.main([*asked, "--out", str(root / "out")]) == 0
    return root / "out", asked


@pytest.mark.ray
def test_a_lerobot_data_set_with_latents(
    ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, asked = made_with_latents(tmp_path)
    source, read, made = tmp_path / "set", tmp_path / "read", out / "lerobot"
    rows = pa.concat_tables(read_parts(str(tmp_path / "out"))).to_pylist()
    steps = pq.read_table(made / "data/chunk-000/file-000.parquet").to_pylist()
    assert len(steps) == sum(LENGTHS)
    for step in steps:  # at 15 a second the model sees frames 0, 3, 7, 11 of each episode
        shown = [n for n in (0, 3, 7, 11) if n < LENGTHS[step["episode_index"]]]
        before = [n for n in shown[:-1] if n <= step["frame_index"]]
        inside = step["frame_index"] < shown[-1]
        assert step["latent_action.valid"] is inside
        key = f"front/episode_{step['episode_index']:06d}"
        own = [r["z"] for r in rows if r["key"] == key and r["transition"] == len(before) - 1]
        assert step["latent_action"] == (own[0] if inside else [0.0] * len(step["latent_action"]))
    # Everything else is as it was, and is read as it was.
    old = pq.read_table(source / "data/chunk-000/file-000.parquet")
    assert pq.read_table(made / "data/chunk-000/file-000.parquet", columns=old.column_names).equals(old)
    film = "videos/observation.images.front/chunk-000/file-000.mp4"
    assert (made / film).read_bytes() == (source / film).read_bytes()
    assert lawm.main(["dataset", "lerobot", str(made), "--out", str(tmp_path / "again")]) == 0
    a, b = (read_labels(str(folder / "labels.parquet")) for folder in (read, tmp_path / "again"))
    assert a.keys == b.keys and all(np.array_equal(a.of(k).actions, b.of(k).actions) for k in a.keys)
    one, two = (read_index(str(folder / "index.parquet")).table for folder in (read, tmp_path / "again"))
    assert one.drop(["source", "version"]).equals(two.drop(["source", "version"]))
    stats = json.loads((made / "meta/stats.json").read_text())["latent_action"]
    z = np.array([step["latent_action"] for step in steps])
    np.testing.assert_allclose(stats["mean"], z.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["std"], z.std(axis=0), atol=1e-6)

    def refused(*more: str) -> str:
        capsys.readouterr()
        assert lawm.main([*asked, *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "out/lerobot: is there already" in refused("--out", str(tmp_path / "out"))
    assert "has a feature action already" in refused("--out", str(tmp_path / "o2"), "--feature", "action")
    assert "one is within the other" in refused("--out", str(source))


@pytest.mark.ray
def test_lerobots_own_reader_gives_the_same_latents_beside_pictures(
    ray_cluster: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lerobot")
    import torchvision
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    made = made_with_latents(tmp_path)[0] / "lerobot"
    steps = pq.read_table(made / "data/chunk-000/file-000.parquet").to_pylist()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if not hasattr(torchvision.io, "VideoReader"):
        monkeypatch.setattr(torchvision.io, "VideoReader", _Frames, raising=False)
        monkeypatch.setattr(torchvision, "set_video_backend", lambda name: None, raising=False)
    theirs = LeRobotDataset("me/set", root=made, video_backend="pyav")
    assert len(theirs) == len(steps)
    for i, step in enumerate(steps):
        found = theirs[i]
        np.testing.assert_array_equal(found["latent_action"].numpy(), np.float32(step["latent_action"]))
        assert bool(found["latent_action.valid"]) is step["latent_action.valid"]
        assert found["observation.images.front"].shape == (3, 120, 160)
