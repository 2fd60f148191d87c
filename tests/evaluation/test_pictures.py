"""Pictures as values: with hand-made models it is known, to the pixel, what each has to show."""

from dataclasses import replace

import numpy as np
from known_models import Adds, Difference, Next, Shows, Still, batch_of, built, clips_for, fresh
from small_runs import made_batch, new_objective, tiny_with

from lawm.data import ClipId
from lawm.evaluation import (
    Clips,
    Episode,
    Missing,
    Subject,
    cut_episodes,
    prediction_episodes,
    transfer_episodes,
)
from lawm.evaluation.partners import ONE_VIDEO
from lawm.evaluation.pictures import BLIND, CEILING, INFERRED, SHUFFLED, TRUE
from lawm.evaluation.subject import NO_LATENTS


def rows_of(episode: Episode) -> dict[str, np.ndarray]:
    return {row.label: row.frames for row in episode.rows}


def shown(found: list[Episode] | Missing) -> list[Episode]:
    assert not isinstance(found, Missing)
    return found


def frames_of(clips: Clips) -> np.ndarray:
    assert clips.batch.frames_BFCHW is not None
    return clips.batch.frames_BFCHW.permute(0, 1, 3, 4, 2).numpy()


def near(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Up to a step of a byte."""
    return found.shape == wanted.shape and int(np.abs(found.astype(int) - wanted.astype(int)).max()) <= 1


def partners_of(clips: Clips) -> list[int]:
    found = clips.partners()
    assert found is not None
    return found.tolist()


def test_an_oracle_shows_what_is_true_and_a_twin_that_stands_still_the_first_frame() -> None:
    model, still = built(Adds, Difference()), fresh("deterministic")  # a fresh residual model copies its last state
    clips = clips_for(model)
    true = frames_of(clips)
    episodes = shown(prediction_episodes(Subject(model, deterministic=still), clips, 3))
    assert len(episodes) == 3
    for i, episode in enumerate(episodes):
        rows, partner = rows_of(episode), partners_of(clips)[i]
        assert [row.label for row in episode.rows] == [TRUE, CEILING, INFERRED, BLIND, SHUFFLED]
        np.testing.assert_array_equal(rows[TRUE], true[i])
        assert near(rows[CEILING], true[i]) and near(rows[INFERRED], true[i])
        assert near(rows[BLIND], np.repeat(true[i, :1], 4, axis=0))
        # Another clip's differences, added to the first frame.
        moved = true[i, 0].astype(int) + true[partner].astype(int) - true[partner, 0].astype(int)
        assert near(rows[SHUFFLED], moved.clip(0, 255).astype(np.uint8))
        assert episode.z is not None and episode.z.shape == (3, 4 * 192)
        assert episode.actions is not None and episode.actions.shape == (3, 2)


def test_a_twin_of_another_norm_is_shown_in_the_models() -> None:
    """States of a twin are normalised by its own statistics, and decoded by the model's decoder."""
    model, still = built(Adds, Difference()), fresh("deterministic", encoder__normalize_states="channel")
    clips = clips_for(model)
    rows = rows_of(shown(prediction_episodes(Subject(model, deterministic=still), clips, 1))[0])
    assert near(rows[BLIND], np.repeat(rows[TRUE][:1], 4, axis=0))


def test_an_action_goes_to_another_clip_and_back() -> None:
    model = built(Adds, Difference())
    clips = clips_for(model)
    true = frames_of(clips)
    for i, episode in enumerate(shown(transfer_episodes(Subject(model), clips, 2))):
        source, target, moved, again = (row.frames for row in episode.rows)
        partner = partners_of(clips)[i]
        assert partner != i
        np.testing.assert_array_equal(source, true[i])
        np.testing.assert_array_equal(target, true[partner])
        wanted = true[partner, 0].astype(int) + true[i].astype(int) - true[i, 0].astype(int)
        assert near(moved, wanted.clip(0, 255).astype(np.uint8))
        assert near(again, true[i])  # the same latents were inferred again


def test_a_code_that_is_the_next_frame_transfers_the_frame() -> None:
    model = built(Shows, Next())
    moved = rows_of(shown(transfer_episodes(Subject(model), clips_for(model), 1))[0])
    assert near(moved["target under the source's latents"][1:], moved["source"][1:])


def test_what_cannot_be_shown_says_why() -> None:
    model, still = built(Adds, Difference()), fresh("deterministic")
    alone = Clips(model, batch_of(), ["one.mp4"] * 12)
    assert transfer_episodes(Subject(still), clips_for(still), 2) == NO_LATENTS
    assert transfer_episodes(Subject(model), alone, 2) == cut_episodes(Subject(model), alone, 2) == Missing(ONE_VIDEO)
    assert SHUFFLED not in rows_of(shown(prediction_episodes(Subject(model), alone, 1))[0])
    encoder = {"kind": "vjepa2", "size": "tiny", "weights": "random", "causality": "duplicate"}
    config = tiny_with(encoder=encoder)
    other = new_objective(config).eval()
    lacking = prediction_episodes(Subject(other), Clips(other, made_batch(range(2), config), ["a", "b"]), 1)
    assert isinstance(lacking, Missing) and "no decoder was given (--decoder URI)" in lacking.reason


def test_a_leaking_code_shows_the_cut_and_one_that_stands_still_does_not() -> None:
    for model, leaks in ((built(Shows, Next()), True), (built(Adds, Still()), False)):
        clips = clips_for(model)
        true = frames_of(clips)
        found = cut_episodes(Subject(model), clips, 2)
        assert not isinstance(found, Missing)
        episodes, cut = found
        assert len(episodes) == 2 and cut == 2
        for i, episode in enumerate(episodes):
            rows, partner = rows_of(episode), partners_of(clips)[i]
            assert [row.first for row in episode.rows] == [0, 1, 0, 1]
            joined = np.concatenate([true[i, :2], true[partner, 2:]])
            np.testing.assert_array_equal(rows["uncut"], true[partner])
            np.testing.assert_array_equal(rows["stitched"], joined)
            wanted = joined[1:] if leaks else joined[:-1]
            assert near(rows["stitched, predicted"], wanted)
            assert near(rows["uncut, predicted"], true[partner][1:] if leaks else true[partner][:-1])


def test_episodes_are_called_by_their_videos_and_where_they_begin() -> None:
    model, batch = built(Adds, Difference()), batch_of(2)
    read = (ClipId(0, "bad.mp4", 9.0, True), ClipId(1, "a.mp4", 0.25, False), ClipId(2, "b.mp4", 1.0, False))
    clips = Clips(model, replace(batch, clips=read), ["a", "b"])
    names = [episode.name for episode in shown(prediction_episodes(Subject(model), clips, 5))]
    assert names == ["a.mp4, 0.25 s", "b.mp4, 1.00 s"]
    assert shown(transfer_episodes(Subject(model), clips, 1))[0].name == "a.mp4, 0.25 s → b.mp4, 1.00 s"
