"""Distractors and a camera that shakes: other pictures of the same episodes."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.simulate import main
from lawm.config import LawmError
from lawm.data import list_videos, read_labels
from lawm.simulation import PushTSpec
from lawm.simulation.pusht import ARENA, PushTSimulator
from lawm.simulation.scene import SHAKE, SHAKE_MOST, make_scene

PLAIN = PushTSpec(size=64, states=8)


def with_scene(**more: Any) -> PushTSpec:
    return dataclasses.replace(PLAIN, **more)


def disc(frame: np.ndarray, spec: PushTSpec, place: np.ndarray) -> np.ndarray:
    """The colour at a place of the arena."""
    x, y = np.clip((place * spec.size / ARENA).astype(int), 0, spec.size - 1)
    return frame[y, x].astype(int)


def test_the_episode_is_the_same_and_its_pictures_are_not() -> None:
    plain = PushTSimulator(PLAIN).episode(3, 2)
    assert plain.scene is None
    for more in ({"distractors": 6}, {"shake": 1.0}, {"distractors": 6, "shake": 1.0}):
        simulator = PushTSimulator(with_scene(**more))
        seen = simulator.episode(3, 2)
        np.testing.assert_array_equal(seen.states, plain.states)
        np.testing.assert_array_equal(seen.actions, plain.actions)
        assert all((a != b).any() for a, b in zip(seen.frames, plain.frames, strict=True))
        again, other = simulator.episode(3, 2), simulator.episode(3, 1)
        np.testing.assert_array_equal(again.frames, seen.frames)
        assert seen.scene is not None and other.scene is not None
        assert not np.allclose(other.scene.nuisances, seen.scene.nuisances)


def test_distractors_are_where_they_are_said_to_be() -> None:
    """Those over the world are seen there in every frame; those under it wherever the world is white."""
    spec = with_scene(distractors=4)
    plain = PushTSimulator(PLAIN).episode(5, 0)
    episode = PushTSimulator(spec).episode(5, 0)
    scene = episode.scene
    assert scene is not None and scene.over.tolist() == [False, True, False, True]
    seen = {True: 0, False: 0}
    for f, frame in enumerate(episode.frames):
        for k, place in enumerate(scene.places[f]):
            covered = any(
                np.linalg.norm(place - scene.places[f, other]) < scene.radii[other] + 8
                for other in range(4)
                if other != k and (other > k or scene.over[other])
            )
            bare = disc(plain.frames[f], spec, place).min() == 255
            if covered or (place < 12).any() or (place > ARENA - 12).any() or not (bare or scene.over[k]):
                continue
            assert np.abs(disc(frame, spec, place) - scene.colours[k]).max() < 25
            seen[bool(scene.over[k])] += 1
    assert min(seen.values()) >= 5
    # The agent is drawn over the distractors that are under the world.
    under = dataclasses.replace(scene, over=np.zeros(4, bool), places=np.repeat(plain.states[:, None, :2], 4, axis=1))
    simulator = PushTSimulator(PLAIN)
    simulator._set(plain.states[0])
    agent = disc(simulator._picture(under, 0), spec, plain.states[0, :2])
    assert agent[2] > agent[0] + 100 and agent[2] > 180


def test_the_camera_moves_the_whole_picture() -> None:
    """Shifted by whole pixels, the picture is the plain one, moved; turned and zoomed, things are where they belong."""
    plain = PushTSimulator(PLAIN).episode(4, 1)
    simulator = PushTSimulator(PLAIN)
    simulator._set(plain.states[0])
    still = make_scene(4, 1, 8, 4.0, 0, 0.0)
    at_rest = simulator._picture(still, 0)
    pixel = ARENA / PLAIN.size
    shifted = dataclasses.replace(still, camera=np.tile(np.float32([3 * pixel, -2 * pixel, 0, 0]), (8, 1)))
    moved = simulator._picture(shifted, 0).astype(int)
    assert np.abs(moved[:-2, 3:] - at_rest[2:, :-3].astype(int)).mean() < 1.0
    turned = dataclasses.replace(still, camera=np.tile(np.float32([0, 0, 90, np.log(0.5)]), (8, 1)))
    picture = simulator._picture(turned, 0).astype(int)
    blue = (picture[..., 2] > picture[..., 0] + 60) & (picture[..., 2] > 150)
    y, x = (np.mean(v) + 0.5 for v in np.nonzero(blue))
    right, down = plain.states[0, :2] - ARENA / 2  # counter-clockwise: right becomes up, down becomes right
    expected = (np.array([down, -right]) * 0.5 + ARENA / 2) / pixel
    np.testing.assert_allclose([x, y], expected, atol=1.0)


def test_nothing_of_it_follows_the_actions_and_nothing_leaves_the_picture() -> None:
    episodes = [PushTSimulator(with_scene(distractors=2, shake=1.0)).episode(0, n) for n in range(12)]
    actions = np.concatenate([e.actions for e in episodes])
    moved = np.concatenate([np.diff(e.scene.nuisances, axis=0) for e in episodes])  # type: ignore[union-attr]
    found = np.corrcoef(actions.T, moved.T)[:2, 2:]
    assert np.abs(found).max() < 4 / len(actions) ** 0.5  # four standard errors
    assert moved[:, :4].std() > 20  # units a step; the agent moves some 40
    every = [make_scene(1, n, 400, 4.0, 3, 1.0) for n in range(4)]
    places = np.concatenate([s.places for s in every])
    assert places.min() >= 0 and places.max() <= ARENA and places.std() > 100
    camera = np.abs(np.concatenate([s.camera for s in every]))
    assert (camera.max(axis=0) <= SHAKE_MOST * np.array(SHAKE) + 1e-5).all() and (camera.max(axis=0) > SHAKE).all()


def test_speed_is_that_of_physical_time() -> None:
    """At 20 frames a second a distractor goes as far in a second as at 4."""
    spread = {}
    for rate in (4.0, 20.0):
        every = [make_scene(7, n, int(rate) + 1, rate, 8, 0.0).places for n in range(40)]
        spread[rate] = np.mean([np.linalg.norm(p[-1] - p[0], axis=1) for p in every])
    assert spread[20.0] == pytest.approx(spread[4.0], rel=0.2)


def test_what_is_written_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--episodes", "3", "--shard-size", "2", "--states", "5", "--size", "64", "--seed", "7"]
    assert main(["--out", str(tmp_path / "plain"), *small]) == 0
    assert main(["--out", str(tmp_path / "busy"), *small, "--distractors", "2", "--shake"]) == 0
    assert sorted(p.name for p in (tmp_path / "plain").iterdir()) == [
        "labels.parquet", "pusht-000000.tar", "pusht-000001.tar", "simulate.json",
    ]  # fmt: skip
    settings = json.loads((tmp_path / "busy/simulate.json").read_text())
    assert (settings["distractors"], settings["shake"]) == (2, 1.0)
    assert "distractors" not in json.loads((tmp_path / "plain/simulate.json").read_text())
    labels, plain = (read_labels(str(tmp_path / name / "labels.parquet")) for name in ("busy", "plain"))
    assert (labels.meaning.scene, plain.meaning.scene) == ("2 distractors, camera shake 1", "")
    assert labels.meaning.simulator == "pusht"
    nuisances = read_labels(str(tmp_path / "busy/nuisances.parquet"))
    assert [d.name for d in nuisances.meaning.actions][:3] == ["distractor 0 x", "distractor 0 y", "distractor 1 x"]
    assert [ref.key for ref in list_videos([str(tmp_path / "busy")])] == nuisances.keys == labels.keys == plain.keys
    for key in labels.keys:
        np.testing.assert_array_equal(labels.of(key).states, plain.of(key).states)
    with tarfile.open(tmp_path / "busy/pusht-000001.tar") as tar:
        info = json.load(io.TextIOWrapper(tar.extractfile("ep_000002.json")))  # type: ignore[arg-type]
    moved = make_scene(7, 2, 5, 4.0, 2, 1.0).nuisances
    np.testing.assert_array_equal(np.float32(info["nuisances"]), moved)
    np.testing.assert_array_equal(nuisances.of(labels.keys[2]).states, moved)
    capsys.readouterr()
    assert main(["--out", str(tmp_path / "busy"), *small]) == 2
    assert "other settings (distractors 2 instead of 0, shake 1.0 instead of 0)" in capsys.readouterr().err


def test_the_strongest_shake_shows_no_black() -> None:
    """Beyond the arena's border (grey lines) all is white."""
    simulator = PushTSimulator(PushTSpec(size=64))
    simulator._set(np.float32([256, 256, 200, 300, 0]))
    for signs in np.random.default_rng(0).choice([-1, 1], (8, 4)):
        camera = np.tile(3 * SHAKE_MOST * np.array(SHAKE) * signs, (8, 1)).astype(np.float32)
        picture = simulator._picture(dataclasses.replace(make_scene(0, 0, 8, 4.0, 0, 0.0), camera=camera), 0)
        assert picture.min() > 50


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"distractors": 33}, "33 distractors; expected 0 to 32"), ({"shake": -1.0}, "shake -1; expected 0 to 3")],
)
def test_scenes_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LawmError, match=said):
        PushTSpec(**settings)
