"""What readers say of the numbers in the labels that they write."""

import json
from pathlib import Path
from typing import Any

from data_sets import lerobot

from lawm.data import Dimension, Labels, Meaning, ReadSpec, labels_table, layout
from lawm.simulation import PushTSpec, simulate_pusht


def read(kind: str, source: Path, out: Path, **options: Any) -> Meaning:
    """What the table of that data set's labels means, as `lawm dataset` makes it."""
    how = layout(kind)
    spec = how.choices(str(source), ReadSpec(kind, **options))  # type: ignore[arg-type]
    found = [r.labels for batch in how.batches(str(source), spec) for r in how.read(batch, spec, str(out))]
    assert spec.actions is not None
    rows = [labels for labels in found if labels is not None]
    return Labels(labels_table(rows, spec.actions, how.meaning(str(source), spec))).meaning


def said(dimensions: tuple[Dimension, ...]) -> list[str]:
    return [f"{d.name} {d.kind} {d.unit}" for d in dimensions]


POSE = [f"{n} translation m" for n in "xyz"] + [f"{n} rotation rad" for n in ("roll", "pitch", "yaw")]


def test_droid_in_lerobot_form_is_in_metres_and_radians(tmp_path: Path) -> None:
    lerobot(tmp_path / "d")
    found = read("lerobot", tmp_path / "d", tmp_path / "o", limit=1)
    assert said(found.actions) == [*POSE, "gripper gripper 0..1"] and found.displacements


def test_lerobot_gives_names_and_no_units(tmp_path: Path) -> None:
    lerobot(tmp_path / "d", droid=False)
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]}
    (tmp_path / "d/meta/info.json").write_text(json.dumps(info))
    found = read("lerobot", tmp_path / "d", tmp_path / "o", limit=1)
    kinds = ["translation"] * 3 + ["rotation"] * 3 + ["gripper"]
    assert [(d.kind, d.unit) for d in found.actions] == [(kind, "unknown") for kind in kinds]
    assert not found.displacements and [d.kind for d in found.states] == ["other"] * 8
    posed = read("lerobot", tmp_path / "d", tmp_path / "p", limit=1, actions="pose_delta")
    assert [d.unit for d in posed.actions[:6]] == ["unknown"] * 3 + ["rad"] * 3  # by the kind of action, no more


def test_recon_and_droid_raw_say_theirs(tmp_path: Path) -> None:
    for kind in ("recon", "recon-hdf5"):
        spec = layout(kind).choices(str(tmp_path), ReadSpec(kind))  # type: ignore[arg-type]
        assert said(layout(kind).meaning(str(tmp_path), spec).states) == [  # type: ignore[union-attr]
            "x translation m", "y translation m", "yaw rotation rad"]  # fmt: skip
    meaning = layout("droid").meaning(str(tmp_path), ReadSpec("droid"))
    assert meaning is not None and said(meaning.states) == [*POSE, "gripper gripper 0..1"]


def test_simulated_pusht_says_that_its_actions_are_no_displacements(tmp_path: Path) -> None:
    simulate_pusht(str(tmp_path / "sim"), 1, spec=PushTSpec(states=3, size=32))
    found = read("pusht", tmp_path / "sim", tmp_path / "o")
    assert said(found.actions) == [f"agent {n} translation arena units" for n in "xy"]
    assert said(found.states)[:3] == [*said(found.actions), "block x other arena units"]
    assert found.simulator == "pusht" and not found.displacements
