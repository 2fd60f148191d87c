"""Planning episodes over Ray actors: each finished episode is one row, a rerun skips finished ones."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import ray
import torch
from ray import exceptions as ray_errors

from lawm.cluster.session import TRAIN, Need, label_selector
from lawm.config import Config, LawmError
from lawm.data import BadClip, ClipReader, Sample, Split
from lawm.evaluation import Result, interval, mean, ratio
from lawm.model import check_state_a_frame
from lawm.planning import cumulative_error, plan, preset, rollout_cost
from lawm.storage import exists, is_s3, join, read_bytes, write_bytes
from lawm.training import (
    check_cache,
    check_free_of_the_past,
    collate,
    load_controller,
    load_model,
    pick_device,
    read_about,
)

MAX_TRIES = 3
"""Tries of one episode, over actors that die, before the run stops."""


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    return [Need("planning actor", cluster.plan_actors, 1.0, cluster.gpus_per_worker, TRAIN, "cluster.plan_actors=1")]


def episode_config(config: Config) -> Config:
    """The config whose clips are one planning episode: H + 1 frames at the training rate."""
    horizon = preset(config.plan).horizon
    clip = config.data.clip.model_copy(update={"frames": horizon + 1})
    return config.model_copy(update={"data": config.data.model_copy(update={"clip": clip})})


class Planner:
    """Plans single episodes. Everything random follows from (plan.seed, episode)."""

    def __init__(self, config: Config, model: str, controller: str) -> None:
        if config.cluster.plan_actors > 1:
            torch.set_num_threads(1)
        self.config = episode_config(config)
        self.device = pick_device()
        self.model, parent = load_model(model, config=self.config)
        self.controller = load_controller(controller, self.model, parent).to(self.device)
        self.model = self.model.to(self.device)
        self.held_out = ClipReader(self.config, "val", labelled=True)
        self.training = ClipReader(self.config, "train", labelled=True)
        if self.held_out.cache is not None:
            check_cache(self.held_out.cache, self.config, self.model)

    def _clip(self, reader: ClipReader, position: int) -> Sample:
        """The clip there, or the next good one."""
        for p in range(position, position + len(reader.plan)):
            found = reader.try_sample(p)
            if not isinstance(found, BadClip):
                return found
        raise LawmError("no held-out labelled clip can be read")

    @torch.no_grad()
    def episode(self, number: int) -> dict[str, Any]:
        """Plans from the clip's first frame to its last; errors in the actions' units (equation 3)."""
        settings = preset(self.config.plan)
        sample = self._clip(self.held_out, number)
        assert sample.actions is not None
        batch = collate([sample]).to(self.device)
        if batch.frames_BFCHW is not None:
            ends = [batch.frames_BFCHW[:, :1], batch.frames_BFCHW[:, -1:]]  # labelled clips have a state a frame
            start, goal = (self.model.state_norm(self.model.encode(frames))[0] for frames in ends)
        else:
            states = self.model.states(batch)[0]
            start, goal = states[:1], states[-1:]
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + number) % 2**63)
        found = plan(self.model, self.controller, start, goal[0], settings, generator)
        true = sample.actions
        other = self._clip(self.training, int(torch.randint(2**31, (1,), generator=generator))).actions
        assert other is not None
        still = np.zeros_like(true)
        sequences = {"planned": found.actions_HA, "true": true, "random": other, "no_action": still}
        stacked = torch.from_numpy(np.stack(list(sequences.values()))).float().to(self.device)
        costs = rollout_cost(
            self.model,
            self.controller,
            start.unsqueeze(0),
            goal,
            stacked,
            settings.cost,
        )
        return {
            "episode": number,
            "key": sample.key,
            "start_s": sample.start_s,
            "planned_error": cumulative_error(found.actions_HA, true),
            "random_error": cumulative_error(other, true),
            "no_action_error": cumulative_error(still, true),
            "cost": found.cost,
            "true_action_cost": float(costs[1]),
            "random_cost": float(costs[2]),
            "no_action_cost": float(costs[3]),
            "seconds": found.seconds,
            "planned": found.actions_HA.tolist(),
            "true": true.tolist(),
        }


def identity(config: Config, model: str, controller: str) -> dict[str, Any]:
    """What rows must share to be of one experiment."""
    said = config.plan.model_dump() | {"model": read_about(model)["fingerprint"]}
    said["controller"] = read_about(controller)["fingerprint"]
    clips = episode_config(config)
    splits: tuple[Split, Split] = ("val", "train")
    for split in splits:
        said[f"{split}_clips"] = ClipReader(clips, split, labelled=True).plan.fingerprint()
    said["labels"] = hashlib.blake2b(read_bytes(config.data.labels or ""), digest_size=8).hexdigest()
    return {k: v for k, v in said.items() if k != "episodes"}


def labelled_clips(config: Config) -> int:
    """Held-out labelled clips as long as an episode. Raises LawmError where they are fewer than the episodes."""
    total = config.plan.episodes
    check_state_a_frame(config.encoder, config.data.clip)
    reader = ClipReader(episode_config(config), "val", labelled=True)
    check_free_of_the_past(reader.cache, "planning")
    held_out = len(reader.plan)
    if held_out < total:
        raise LawmError(
            f"plan.episodes = {total}, and the held-out labelled videos hold {held_out} clips of "
            f"{preset(config.plan).horizon + 1} frames; lower plan.episodes or raise data.val_fraction"
        )
    return held_out


def plan_episodes(
    config: Config, model: str, controller: str, out: str, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Rows of all `plan.episodes`, written to `out`/episodes.jsonl as they finish; those there are kept.

    An actor that dies loses nothing: its episode goes to another one, with the same seed. Raises LawmError.
    """
    total = config.plan.episodes
    labelled_clips(config)
    where, about = join(out, "episodes.jsonl"), join(out, "episodes.json")
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
        _spread(config, (config, model, controller), todo, keep)
        write_bytes(where, _lines(rows))  # in order, now that all are there
    return [rows[e] for e in sorted(rows) if e < total]


def _lines(rows: dict[int, dict[str, Any]]) -> bytes:
    return "".join(json.dumps(rows[e]) + "\n" for e in sorted(rows)).encode()


def _spread(
    config: Config, arguments: tuple[Any, ...], todo: list[int], keep: Callable[[dict[str, Any]], None]
) -> None:
    cluster = config.cluster
    options: dict[str, Any] = {"num_cpus": 1, "max_restarts": MAX_TRIES, "max_task_retries": 0}
    # Not in the caller's placement group: that of a trial of Tune has room for the trial's driver alone.
    options["scheduling_strategy"] = "DEFAULT"
    if cluster.gpus_per_worker:
        options["num_gpus"] = cluster.gpus_per_worker
    selector = label_selector(cluster, TRAIN)
    if selector:
        options["label_selector"] = selector
    remote = ray.remote(**options)(Planner)
    actors = [remote.remote(*arguments) for _ in range(min(cluster.plan_actors, len(todo)))]
    waiting, tries, running = list(todo), dict.fromkeys(todo, 0), {}

    def give(actor: Any) -> None:
        if waiting:
            episode = waiting.pop(0)
            tries[episode] += 1
            running[actor.episode.remote(episode)] = (actor, episode)

    for actor in actors:
        give(actor)
    while running:
        done, _ = ray.wait(list(running), num_returns=1)
        actor, episode = running.pop(done[0])
        try:
            keep(ray.get(done[0]))
        except (ray_errors.ActorDiedError, ray_errors.ActorUnavailableError, ray_errors.WorkerCrashedError) as error:
            if tries[episode] >= MAX_TRIES:
                raise LawmError(
                    f"episode {episode}: its actor died {MAX_TRIES} times ({type(error).__name__})"
                ) from error
            waiting.insert(0, episode)
        give(actor)


def summarize_episodes(
    rows: list[dict[str, Any]], unit: str, dataset: str, step: int, resamples: int, seed: int
) -> list[Result]:
    """Mean and median errors and their ratios to the baselines, with paired intervals over episodes."""
    columns = {
        k: np.array([row[k] for row in rows], dtype=np.float64) for k in rows[0] if isinstance(rows[0][k], float)
    }
    planned, still, random = (columns[f"{k}_error"] for k in ("planned", "no_action", "random"))
    figures: list[tuple[str, Any, list[np.ndarray], str, str]] = [
        ("planning_error", mean, [planned], unit, ""),
        ("planning_error_median", lambda x: float(np.median(x)), [planned], unit, ""),
        ("planning_vs_random", ratio, [planned, random], "ratio", ""),
        ("planning_vs_no_action", ratio, [planned, still], "ratio", ""),
        ("random_error", mean, [random], unit, "random actions"),
        ("no_action_error", mean, [still], unit, "no action"),
        ("planned_cost_vs_true_actions", ratio, [columns["cost"], columns["true_action_cost"]], "ratio", ""),
        ("seconds_per_plan", mean, [columns["seconds"]], "s", ""),
    ]
    results = []
    for name, statistic, arrays, what, control in figures:
        value, low, high = interval(statistic, arrays, resamples, seed)
        results.append(Result(name, value, low, high, len(rows), what, dataset, step, control, seed))
    return results
