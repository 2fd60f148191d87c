"""Planning episodes over Ray actors: each finished episode is one row, a rerun skips finished ones."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lawm.cluster.actors import Actors
from lawm.cluster.session import TRAIN, Need
from lawm.config import Config, LawmError
from lawm.data import BadClip, ClipReader, Sample, Split
from lawm.evaluation import Measured, data_name
from lawm.model import check_state_a_frame
from lawm.planning import (
    Episode,
    Shown,
    action_space,
    check_units,
    episode_values,
    in_units,
    mean_action,
    measured_by,
    measured_dimensions,
    no_action,
    outside,
    plan,
    preset,
    remarks,
    rollout_cost,
    sequence_errors,
    shown_by,
    summarize_episodes,
    units,
)
from lawm.storage import exists, is_s3, join, read_bytes, write_bytes
from lawm.training import (
    check_actions,
    check_cache,
    check_free_of_the_past,
    collate,
    load_controller,
    load_model,
    pick_device,
    read_about,
)


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    return [Need("planning actor", cluster.plan_actors, 1.0, cluster.gpus_per_worker, TRAIN, "cluster.plan_actors=1")]


def episode_config(config: Config) -> Config:
    """The config whose clips are one planning episode: H + 1 frames at the training rate."""
    horizon = preset(config.plan).horizon
    clip = config.data.clip.model_copy(update={"frames": horizon + 1})
    return config.model_copy(update={"data": config.data.model_copy(update={"clip": clip})})


@dataclass(frozen=True)
class Task:
    """An episode and the held-out clip that it is planned on: that of its own number, or one in its place. `refused`:
    why its own is not taken."""

    episode: int
    position: int
    refused: str = ""


class Planner:
    """Plans single episodes. Everything random follows from (plan.seed, episode)."""

    def __init__(self, config: Config, model: str, controller: str, shown: Shown) -> None:
        if config.cluster.plan_actors > 1:
            torch.set_num_threads(1)
        self.config, self.shown = episode_config(config), shown
        self.settings = preset(config.plan)
        self.device = pick_device()
        self.model, parent = load_model(model, config=self.config)
        self.controller = load_controller(controller, self.model, parent).to(self.device)
        self.model = self.model.to(self.device)
        self.held_out = ClipReader(self.config, "val", labelled=True)
        self.training = ClipReader(self.config, "train", labelled=True)
        if self.held_out.cache is not None:
            check_cache(self.held_out.cache, self.config, self.model)
        assert self.held_out.labels is not None
        self.labels = self.held_out.labels
        self.dimensions = in_units(self.labels.meaning.actions, self.settings.unit)
        self.measured = measured_dimensions(self.labels, self.settings.unit)
        scales = self.controller.controller.action_mean, self.controller.controller.action_std
        self.space = action_space(self.settings, self.dimensions, *scales, shown)

    def _training_actions(self, position: int) -> np.ndarray:
        """The true actions of the training clip there, or of the next good one."""
        for p in range(position, position + len(self.training.plan)):
            found = self.training.try_sample(p)
            if not isinstance(found, BadClip):
                assert found.actions is not None
                return found.actions
        raise LawmError("no labelled clip of the training split can be read")

    def _ends(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Normalised states [1, 1, N, D] of the first frame, [1, N, D] of the last; labelled clips have one a frame."""
        batch = collate([sample]).to(self.device)
        if batch.frames_BFCHW is None:
            states = self.model.states(batch)
            return states[:, :1], states[:, -1]
        ends = [batch.frames_BFCHW[:, :1], batch.frames_BFCHW[:, -1:]]
        start, goal = (self.model.state_norm(self.model.encode(frames)) for frames in ends)
        return start, goal[:, 0]

    @torch.no_grad()
    def episode(self, task: Task) -> dict[str, Any] | BadClip:
        """Plans from the clip's first frame to its last. The row: errors of the plan and of each baseline by kind of
        dimension, in SI units, their predicted costs, and what leaves the range of the training split's actions. The
        clip itself where it cannot be read."""
        settings, number = self.settings, task.episode
        sample = self.held_out.try_sample(task.position)
        if isinstance(sample, BadClip):
            return sample
        true = sample.actions
        assert true is not None
        start, goal = self._ends(sample)
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + number) % 2**63)
        found = plan(self.model, self.controller, start, goal, self.space, settings, [generator])[0]
        other = self._training_actions(int(torch.randint(2**31, (1,), generator=generator)))
        at = round(sample.start_s * self.labels.of(sample.key).rate_hz)
        sequences = {
            "planned": found.actions_HA,
            "random": other,
            "no_action": no_action(self.labels, sample.key, at, true),
            "mean_action": mean_action(self.shown, true),
        }
        every = torch.from_numpy(np.stack([true, *sequences.values()])).float().to(self.device)
        costs = rollout_cost(self.model, self.controller, start, goal, every, settings.cost).tolist()
        episode = Episode(self.labels, sample.key, sample.start_s, self.config.data.clip, true)
        left = outside(found.actions_HA, self.shown)
        return {
            "episode": number,
            "position": task.position,
            "refused": task.refused,
            "key": sample.key,
            "group": sample.group,
            "start_s": sample.start_s,
            "protocol": settings.preset,
            "measured": measured_by(self.labels),
            "units": units(self.measured),
            "errors": sequence_errors(episode, self.measured, sequences),
            "costs": {"best": found.cost} | dict(zip(("true", *sequences), costs, strict=True)),
            "outside": [d.name for d, out in zip(self.dimensions, left, strict=True) if out],
            "seconds": found.seconds,
            "planned": found.actions_HA.tolist(),
            "true": true.tolist(),
        }


def identity(config: Config, model: str, controller: str) -> dict[str, Any]:
    """What rows must share to be of one experiment."""
    said: dict[str, Any] = config.plan.model_dump(mode="json") | {"model": read_about(model)["fingerprint"]}
    said["controller"] = read_about(controller)["fingerprint"]
    clips = episode_config(config)
    splits: tuple[Split, Split] = ("val", "train")
    for split in splits:
        said[f"{split}_clips"] = ClipReader(clips, split, labelled=True).plan.fingerprint()
    said["labels"] = hashlib.blake2b(read_bytes(config.data.labels or ""), digest_size=8).hexdigest()
    return {k: v for k, v in said.items() if k != "episodes"}


def label_ranges(config: Config) -> dict[str, list[float]]:
    """Dimension of the actions -> the training split's percentiles that plans keep to, in the labels' units."""
    reader = ClipReader(episode_config(config), "train", labelled=True)
    assert reader.labels is not None
    shown = shown_by(reader, config.plan.percentiles)
    ends = zip(reader.labels.meaning.actions, shown.low_A.tolist(), shown.high_A.tolist(), strict=True)
    return {d.name: [low, high] for d, low, high in ends}


def labelled_clips(config: Config, checkpoints: Sequence[str]) -> int:
    """Held-out labelled clips as long as an episode. Raises LawmError where they are fewer than the episodes, or where
    their actions are not those that the checkpoints take."""
    total = config.plan.episodes
    check_state_a_frame(config.encoder, config.data.clip)
    reader = ClipReader(episode_config(config), "val", labelled=True)
    check_free_of_the_past(reader.cache, "planning")
    held_out = len(reader.plan)
    assert reader.labels is not None
    for uri in checkpoints:
        check_actions(uri, reader.labels)
    check_units(config.plan.preset, in_units(reader.labels.meaning.actions, config.plan.unit))
    if held_out < total:
        raise LawmError(
            f"plan.episodes = {total}, and the held-out labelled videos hold {held_out} clips of "
            f"{preset(config.plan).horizon + 1} frames; lower plan.episodes or raise data.val_fraction"
        )
    return held_out


def dataset_name(config: Config, name: str | None, checkpoints: Sequence[str]) -> str:
    """What the results call the episodes' videos: held out from these checkpoints' training, or whatever they are."""
    reader = ClipReader(episode_config(config), "val", labelled=True)
    assert reader.labels is not None
    return data_name(name or reader.labels.meaning.scene or None, reader.index, checkpoints)


def measured_plans(config: Config, rows: list[dict[str, Any]], dataset: str, step: int) -> Measured:
    """The figures of planned episodes, what has to be said beside them, and the values of each."""
    e = config.evaluate
    results = summarize_episodes(rows, dataset, step, e.bootstrap, e.seed)
    notes = remarks(rows, label_ranges(config), config.plan.percentiles)
    return Measured(results, notes=notes, kept=[episode_values(rows, dataset, step)])


def every_episode(
    total: int, clips: int, rows: Mapping[int, Mapping[str, Any]], run: Callable[[Sequence[Task]], dict[int, str]]
) -> None:
    """Runs all episodes that have no row yet; `run` returns those whose clips cannot be read, and why.

    Such an episode gets the next clip that no other has, of those beyond the number of episodes, in the order of the
    episodes: whatever the number of actors, and however often planning was interrupted. Raises LawmError, once all
    others are planned, where none is left.
    """
    taken = {int(row.get("position", e)): e for e, row in rows.items() if e < total}
    todo, refused = [], {}
    for e in (e for e in range(total) if e not in rows):
        if e in taken:  # with fewer episodes than now it was to spare
            refused[e] = f"its clip is episode {taken[e]}'s"
        else:
            todo.append(Task(e, e))
    spare = (p for p in range(total, clips) if p not in taken)
    without: dict[int, str] = {}
    while todo or refused:
        refused |= run(todo)
        todo = []
        for e in sorted(refused):
            position = next(spare, None)
            if position is None:
                without[e] = refused[e]
            else:
                todo.append(Task(e, position, refused[e]))
        refused = {}
    if without:
        first = min(without)
        raise LawmError(
            f"{len(without)} of {total} episodes have no clip, for theirs cannot be read and no other held-out "
            f"labelled one is left; the first, episode {first}: {without[first]}. "
            f"Set plan.episodes={total - len(without)}"
        )


def plan_episodes(
    config: Config, model: str, controller: str, out: str, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Rows of all `plan.episodes`, written to `out`/episodes.jsonl as they finish; those there are kept.

    An actor that dies loses nothing: its episode goes to another one, with the same seed. Raises LawmError.
    """
    total = config.plan.episodes
    clips = labelled_clips(config, [model, controller])
    where, about = join(out, "episodes.jsonl"), join(out, "episodes.json")
    shown = shown_by(ClipReader(episode_config(config), "train", labelled=True), config.plan.percentiles)
    said = json.dumps(identity(config, model, controller), indent=1).encode()
    rows: dict[int, dict[str, Any]] = {}
    if exists(where):
        if not exists(about) or read_bytes(about) != said:
            raise LawmError(f"{out} holds episodes of another model or plan; choose another --out, or remove it")
        for line in read_bytes(where).decode().splitlines():
            with suppress(
                ValueError, KeyError, TypeError
            ):  # the torn last line of a run that was killed while it wrote
                row = json.loads(line)
                rows[row["episode"]] = row
        write_bytes(where, _lines(rows))
    write_bytes(about, said)
    todo = [e for e in range(total) if e not in rows]

    def keep(row: dict[str, Any]) -> None:
        rows[row["episode"]] = row
        if is_s3(where) or len(rows) == 1:
            write_bytes(where, _lines(rows))
        else:
            with open(where, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if progress is not None:
            progress(len(rows), total)

    if todo:
        count = min(config.cluster.plan_actors, len(todo))
        with Actors(Planner, (config, model, controller, shown), count, config.cluster) as actors:

            def run(tasks: Sequence[Task]) -> dict[int, str]:
                refused: dict[int, str] = {}

                def one(number: int, found: dict[str, Any] | BadClip) -> None:
                    if isinstance(found, BadClip):
                        refused[tasks[number].episode] = found.message
                    else:
                        keep(found)

                actors.spread("episode", tasks, one, what="episode")
                return refused

            try:
                every_episode(total, clips, rows, run)
            finally:
                write_bytes(where, _lines(rows))  # in order, now that all are there
    return [rows[e] for e in sorted(rows) if e < total]


def _lines(rows: dict[int, dict[str, Any]]) -> bytes:
    return "".join(json.dumps(rows[e]) + "\n" for e in sorted(rows)).encode()
