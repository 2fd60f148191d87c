"""The PushT simulator."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from lawm.config import LawmError
from lawm.simulation import PushTSpec, simulate_pusht
from lawm.simulation.pusht import AGENT_CLEAR, ARENA, WALL, Episode, PushTSimulator, encode_mp4


@pytest.fixture(scope="module")
def simulator() -> PushTSimulator:
    return PushTSimulator(PushTSpec(size=64))


@pytest.fixture(scope="module")
def episodes(simulator: PushTSimulator) -> list[Episode]:
    return [simulator.episode(3, number) for number in range(6)]


def test_shapes_and_ranges(episodes: list[Episode]) -> None:
    for episode in episodes:
        assert episode.frames.shape == (16, 64, 64, 3) and episode.frames.dtype == np.uint8
        assert episode.actions.shape == (15, 2) and episode.states.shape == (16, 5)
        targets = episode.states[:-1, :2] + episode.actions
        assert (targets > WALL - 1e-3).all() and (targets < ARENA - WALL + 1e-3).all()
        assert ((episode.states[:, 4] >= 0) & (episode.states[:, 4] < 2 * np.pi + 1e-6)).all()
        assert np.linalg.norm(episode.states[0, :2] - episode.states[0, 2:4]) > AGENT_CLEAR


def test_actions_explain_what_the_agent_does(episodes: list[Episode]) -> None:
    actions = np.concatenate([episode.actions for episode in episodes])
    moved = np.concatenate([np.diff(episode.states[:, :2], axis=0) for episode in episodes])
    for axis in (0, 1):
        assert np.corrcoef(actions[:, axis], moved[:, axis])[0, 1] > 0.9
    # A critically damped controller covers 1 - e^-2.5 (1 + 2.5) = 0.71 of the way in 0.25 s; what is left of the
    # last move's speed adds a little.
    gain = (actions * moved).sum() / (actions**2).sum()
    assert 0.68 < gain < 0.82
    # The wrong pairing (the action before) explains less: the test can tell.
    late = np.corrcoef(actions[:-1, 0], moved[1:, 0])[0, 1]
    assert late < 0.9


def test_the_block_is_pushed_only_where_the_agent_is(episodes: list[Episode]) -> None:
    moved, distance = [], []
    for episode in episodes:
        moved += list(np.linalg.norm(np.diff(episode.states[:, 2:4], axis=0), axis=1) > 1.0)
        gaps = np.linalg.norm(episode.states[:, :2] - episode.states[:, 2:4], axis=1)
        distance += list(np.minimum(gaps[:-1], gaps[1:]))
    assert 0.1 < np.mean(moved) < 0.9
    # The T reaches at most about 110 units from its origin; add the agent's radius and half a move.
    assert np.asarray(distance)[np.asarray(moved)].max() < 110 + 15 + 50


def test_pictures_show_the_states(episodes: list[Episode]) -> None:
    for episode in episodes[:3]:
        for frame, state in zip(episode.frames, episode.states, strict=True):
            rgb = frame.astype(int)
            blue = (rgb[..., 2] > rgb[..., 0] + 100) & (rgb[..., 2] > 180)  # the agent; nothing else is that blue
            y, x = np.nonzero(blue)
            centre = (np.array([x.mean(), y.mean()]) + 0.5) * ARENA / 64
            assert np.abs(centre - state[:2]).max() < 6  # under one pixel of 8 units
            red = (rgb[..., 0] > rgb[..., 1] + 80) & (rgb[..., 0] > rgb[..., 2] + 80)
            assert not red.any()  # the environment's own rendering would mark the commanded target in red


def test_an_episode_depends_on_seed_and_number_alone(simulator: PushTSimulator, episodes: list[Episode]) -> None:
    fresh = PushTSimulator(PushTSpec(size=64)).episode(3, 4)
    np.testing.assert_array_equal(fresh.frames, episodes[4].frames)
    np.testing.assert_array_equal(fresh.actions, episodes[4].actions)
    np.testing.assert_array_equal(fresh.states, episodes[4].states)
    assert not np.array_equal(simulator.episode(4, 4).actions, fresh.actions)
    assert not np.array_equal(episodes[3].actions, fresh.actions)


def test_mp4_gives_the_frames_back_at_their_times(episodes: list[Episode]) -> None:
    frames = episodes[0].frames
    data = encode_mp4(frames, 4.0, gop_s=1.0)
    assert data == encode_mp4(frames, 4.0, gop_s=1.0)
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        decoded = list(container.decode(stream))
    assert [frame.time for frame in decoded] == [i / 4 for i in range(16)]
    assert [i for i, frame in enumerate(decoded) if frame.key_frame] == [0, 4, 8, 12]
    shown = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(int)
    errors = np.array([[np.abs(a - b).mean() for b in frames.astype(int)] for a in shown])
    assert (errors.argmin(axis=1) == np.arange(16)).all()  # each is nearest to its own
    assert errors.diagonal().max() < 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 63}, "size 63; expected an even number"),
        ({"size": 4096}, "size 4096"),
        ({"states": 1}, "1 states an episode; expected at least 2"),
        ({"rate_hz": 3.0}, "rate 3 Hz; expected a whole number that divides 100"),
        ({"rate_hz": 12.5}, "rate 12.5 Hz"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], said: str) -> None:
    with pytest.raises(LawmError, match=said):
        PushTSpec(**settings)  # type: ignore[arg-type]


def test_a_missing_simulator_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(LawmError, match="pip install 'gym-pusht"):
        PushTSimulator()


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends this process SIGINT, which raises KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_an_interrupt_in_the_midst_of_drawing_is_not_lost(
    simulator: PushTSimulator, episodes: list[Episode], ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gym_pusht.envs.pymunk_override import DrawOptions

    draw, drawn = DrawOptions.draw_fat_segment, []

    def interrupted(*arguments: object) -> None:  # called from C, which prints and drops what it raises
        drawn.append(arguments)
        if len(drawn) == 3:
            ctrl_c()
        draw(*arguments)

    monkeypatch.setattr(DrawOptions, "draw_fat_segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulator.episode(3, 2)
    assert len(drawn) >= 3
    assert np.array_equal(simulator.episode(3, 2).frames, episodes[2].frames)


def simulate(out: Path, progress: Callable[[int, int], None], processes: int = 1) -> None:
    """Nine small episodes, two a shard."""
    spec = PushTSpec(states=2, size=32)
    simulate_pusht(str(out), 9, spec=spec, shard_size=2, processes=processes, progress=progress)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupt_while_an_object_is_freed_is_not_lost(
    processes: int, ctrl_c: Callable[[], None], tmp_path: Path
) -> None:
    class Freed:
        def __del__(self) -> None:  # pymunk's objects have such finalizers; what they raise is dropped
            ctrl_c()

    made: list[int] = []

    def progress(done: int, written: int) -> None:
        made.append(written)
        if written == 3:
            Freed()

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, progress, processes)
    assert made == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"simulate.json", "pusht-000000.tar"}


@pytest.mark.parametrize("when", ["between", "within"])
def test_a_second_interrupt_is_answered_at_once(
    when: str, ctrl_c: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two episodes, and within one."""

    def twice(*arguments: object) -> None:
        ctrl_c()
        ctrl_c()
        raise AssertionError("still here")

    if when == "within":
        monkeypatch.setattr(PushTSimulator, "_state", twice)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, lambda done, written: twice() if written else None)


def test_an_interrupt_is_answered_once_and_before_errors(ctrl_c: Callable[[], None], tmp_path: Path) -> None:
    def fails(done: int, written: int) -> None:
        if written:
            ctrl_c()
            raise LawmError("what the interrupt has caused")

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "fails", fails)
    answered: list[int] = []
    raising = signal.signal(signal.SIGINT, lambda number, frame: answered.append(number))
    simulate(tmp_path / "goes_on", lambda done, written: ctrl_c() if written == 1 else None)
    signal.signal(signal.SIGINT, raising)
    assert answered == [signal.SIGINT] and (tmp_path / "goes_on" / "labels.parquet").exists()
