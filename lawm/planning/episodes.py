"""Planning episodes, one held-out clip each: planned from its first state to its last, and set beside baselines.

Legend: E episodes, H horizon, T states given, N tokens, D state width, A action width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lawm.config import Config, LawmError
from lawm.data import BadClip, ClipReader, Sample, Shown, read_index
from lawm.model import looks_back
from lawm.planning.baselines import cloned, goal_latents, mean_action, no_action, true_latents
from lawm.planning.closed_loop import GOAL, Way, Ways, driven
from lawm.planning.displacement import Episode, measured_by, measured_dimensions, sequence_errors, units
from lawm.planning.planner import Planner
from lawm.planning.plans import Plan
from lawm.planning.problem import in_units, outside, rollout_cost
from lawm.planning.protocols import preset, whole_steps
from lawm.planning.solvers import Given
from lawm.planning.steering import follow
from lawm.planning.trajectories import trajectory_errors
from lawm.simulation import check_world
from lawm.training import (
    check_cache,
    collate,
    decode_states,
    load_controller,
    load_decoder,
    load_model,
    load_policy,
    load_prior,
    pick_device,
)


@dataclass(frozen=True)
class Used:
    """The checkpoints that episodes are planned with. `controller` None: of a model that was trained on actions."""

    model: str
    controller: str | None = None
    prior: str | None = None
    policy: str | None = None
    decoder: str | None = None

    @property
    def given(self) -> dict[str, str]:
        return {name: uri for name, uri in vars(self).items() if uri is not None}


@dataclass(frozen=True)
class Task:
    """An episode and the held-out clip that it is planned on: that of its own number, or one in its place. `refused`:
    why its own is not taken."""

    episode: int
    position: int
    refused: str = ""


def episode_config(config: Config) -> Config:
    """The config whose clips are one planning episode, at the training rate: the frames given and H more; in closed
    loop, up to the goal."""
    fps = config.data.clip.fps
    settings = preset(config.plan, fps)
    after = settings.horizon
    if settings.goal_after_s is not None:
        after = whole_steps(settings.goal_after_s, fps, f"plan.goal_after_s = {settings.goal_after_s:g}")
    clip = config.data.clip.model_copy(update={"frames": settings.context + after})
    return config.model_copy(update={"data": config.data.model_copy(update={"clip": clip})})


class Episodes:
    """Plans episodes, in this process. Everything random follows from (plan.seed, episode)."""

    def __init__(self, config: Config, used: Used, shown: Shown) -> None:
        self.config, self.shown = episode_config(config), shown
        settings = preset(config.plan, config.data.clip.fps)
        self.model, parent = load_model(used.model, config=trained_lengths(config, settings.context + settings.horizon))
        self.device = pick_device()
        controller = load_controller(used.controller, self.model, parent) if used.controller else None
        prior = load_prior(used.prior, self.model, parent) if used.prior else None
        self.policy = load_policy(used.policy, self.model, parent).to(self.device) if used.policy else None
        if self.policy is not None and self.policy.policy.most_steps < settings.horizon:
            raise LawmError(
                f"{used.policy} was taught goals up to {self.policy.policy.most_steps} steps away, and plan.horizon = "
                f"{settings.horizon}: train it on longer clips, or leave --policy out"
            )
        self.decoder = load_decoder(used.decoder, self.model, parent).decoder.to(self.device) if used.decoder else None
        self.held_out = ClipReader(self.config, "val", labelled=True)
        self.training = ClipReader(self.config, "train", labelled=True)
        if self.held_out.cache is not None:
            check_cache(self.held_out.cache, self.config, self.model)
        assert self.held_out.labels is not None
        self.labels = self.held_out.labels
        self.dimensions = in_units(self.labels.meaning.actions, settings.unit)
        self.measured = measured_dimensions(self.labels, settings.unit)
        self.planner = Planner(self.model, self.config, controller, prior, self.dimensions, shown)
        self.controller, self.settings = self.planner.controller, self.planner.settings
        if self.settings.goal_after_s is not None:
            check_world(self.labels.meaning.simulator)
            self.heights = heights(self.held_out)

    def run(self, tasks: Sequence[Task]) -> list[dict[str, Any] | BadClip]:
        """The row of each episode, or its clip where that cannot be read. An episode that fails is a row that says why
        (`failed`); the others go on."""
        samples = [self.held_out.try_sample(task.position) for task in tasks]
        good = [i for i, sample in enumerate(samples) if isinstance(sample, Sample)]
        rows: list[dict[str, Any] | BadClip] = [sample for sample in samples]  # type: ignore[misc]
        if self.settings.goal_after_s is not None:
            for i in good:
                rows[i] = self._closed(tasks[i], samples[i])  # type: ignore[arg-type]
            return rows
        if not good:
            return rows
        ends = [self._states(samples[i]) for i in good]  # type: ignore[arg-type]
        start, goal = (torch.cat([pair[k] for pair in ends]) for k in (0, 1))
        plans = self.planner.search(start, goal, [self._seed(tasks[i]) for i in good])
        for k, i in enumerate(good):
            found = start[k : k + 1], goal[k : k + 1], ends[k][2]
            rows[i] = self._row(tasks[i], samples[i], plans[k], *found)  # type: ignore[arg-type]
        return rows

    def _seed(self, task: Task) -> int:
        return self.settings.seed * 1_000_003 + task.episode

    def _training_actions(self, episode: int) -> np.ndarray:
        """The true actions of a training clip that the episode's number draws, or of the next good one."""
        drawn = np.random.default_rng([abs(self.settings.seed), episode])
        position = int(drawn.integers(2**31))
        for p in range(position, position + len(self.training.plan)):
            found = self.training.try_sample(p)
            if not isinstance(found, BadClip):
                assert found.actions is not None
                return found.actions[self.settings.context - 1 :]
        raise LawmError("no labelled clip of the training split can be read")

    @torch.no_grad()
    def _states(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised states: those given [1, T, N, D], the goal [1, N, D], and the whole clip's [1, T + H, N, D].
        Labelled clips have one a frame. An encoder that looks back sees start and goal each in its own company."""
        batch, given = collate([sample]).to(self.device), self.settings.context
        every = self.model.states(batch)
        start, goal = every[:, :given], every[:, -1]
        if batch.frames_BFCHW is not None and looks_back(self.config.encoder):
            parts = [batch.frames_BFCHW[:, :given], batch.frames_BFCHW[:, -1:]]
            start, end = (self.model.state_norm(self.model.encode(frames)) for frames in parts)
            goal = end[:, 0]
        return start, goal, every

    def _about(self, task: Task, sample: Sample) -> dict[str, Any]:
        return {
            "episode": task.episode,
            "position": task.position,
            "refused": task.refused,
            "key": sample.key,
            "group": sample.group,
            "start_s": sample.start_s + (self.settings.context - 1) / self.config.data.clip.fps,
            "protocol": self.settings.preset,
            "over": self.settings.over,
            "solver": self.settings.solver,
        }

    @torch.no_grad()
    def _row(
        self, task: Task, sample: Sample, found: Plan, start: Tensor, goal: Tensor, every: Tensor
    ) -> dict[str, Any]:
        """Errors of the plan and of each baseline by kind of dimension, in SI units, their predicted costs, and what
        leaves the range of the training split's actions."""
        about = self._about(task, sample)
        if found.trouble:
            return about | {"failed": found.trouble}
        settings = self.settings
        assert sample.actions is not None
        true = sample.actions[settings.context - 1 :]
        at = round(about["start_s"] * self.labels.of(sample.key).rate_hz)
        sequences = {
            "planned": found.actions_HA,
            "random": self._training_actions(task.episode),
            "no_action": no_action(self.labels, sample.key, at, true),
            "mean_action": mean_action(self.shown, true),
        }
        if self.controller is not None:
            sequences["goal_idm"] = goal_latents(self.model, self.controller, start, goal, settings.horizon)
            sequences["oracle"] = true_latents(self.model, self.controller, every, settings.horizon)
        if self.policy is not None:
            sequences["policy"] = cloned(self.policy, start[:, -1], goal, settings.horizon)
        clip = self.config.data.clip.model_copy(update={"frames": settings.horizon + 1})
        episode = Episode(self.labels, sample.key, about["start_s"], clip, true)
        try:
            errors = sequence_errors(episode, self.measured, sequences)
        except (LawmError, OSError) as error:
            return about | {"failed": str(error)}
        left = outside(found.actions_HA, self.shown)
        about["film"] = self._film(sample, start, found) if task.episode < settings.films else None
        if self.labels.composed or self.labels.kind == "planar_delta":
            metres = self.dimensions[0].si[1]
            try:
                about["trajectory"] = {n: trajectory_errors(a, true, metres) for n, a in sequences.items()}
            except LawmError as error:
                about["no_trajectory"] = str(error)
        return about | {
            "measured": measured_by(self.labels),
            "units": units(self.measured),
            "errors": errors,
            "costs": {"best": found.cost} | self._costs(start, goal, {"true": true} | sequences),
            "confidence": found.confidence,
            "outside": [d.name for d, out in zip(self.dimensions, left, strict=True) if out],
            "seconds": found.seconds,
            "planned": found.actions_HA.tolist(),
            "true": true.tolist(),
        }

    def _film(self, sample: Sample, start: Tensor, found: Plan) -> dict[str, np.ndarray] | None:
        """What really happened, what the plan is imagined to look like, and the goal: uint8 [H + 1, S, S, 3] each. None
        without a decoder, or pictures."""
        if sample.frames is None or (self.decoder is None and self.config.encoder.kind != "pixels"):
            return None
        numbers = torch.from_numpy(found.numbers_HA).to(self.device).unsqueeze(0)
        steps = self.planner.space.steps_of(numbers, self.settings.horizon)
        states = follow(self.model, self.planner.steering, start, steps).states_BHND
        shown = decode_states(self.model, self.decoder, torch.cat([start[:, -1:], states], dim=1))[0]
        each = self.model.frames_per_state
        imagined = (255 * shown[each - 1 :: each]).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        true = sample.frames[self.settings.context - 1 :].transpose(0, 2, 3, 1)
        return {"planned": imagined, "true": true, GOAL: true[-1:]}

    def _costs(self, start: Tensor, goal: Tensor, sequences: dict[str, np.ndarray]) -> dict[str, float]:
        """What the model thinks of real actions: by the same way into it as a search over actions has."""
        by_actions = self.planner.by_actions
        whole = {name: a for name, a in sequences.items() if len(a) == self.settings.horizon}
        every = torch.from_numpy(np.stack(list(whole.values()))).float().to(self.device)
        costs = rollout_cost(self.model, by_actions, start, goal, every, self.settings.cost).tolist()
        return dict(zip(whole, costs, strict=True))

    def _closed(self, task: Task, sample: Sample) -> dict[str, Any]:
        """An episode in the simulator that made the labels, by the plan and by each other way to act."""
        about, settings, fps = self._about(task, sample), self.settings, self.config.data.clip.fps
        budget = whole_steps(settings.budget_s, fps, f"plan.budget_s = {settings.budget_s:g}")
        replan = whole_steps(settings.replan_after_s, fps, f"plan.replan_after_s = {settings.replan_after_s:g}")
        first, parts = self.labels.first_label(sample.key, about["start_s"], fps)
        goal = first + parts * (self.config.data.clip.frames - settings.context)
        simulator, recorded = self.labels.meaning.simulator, self.labels.of(sample.key)
        assert simulator is not None
        size = self.heights[sample.key]
        ways = self._ways(task, sample, replan)
        try:
            rows = driven(simulator, recorded, (first, goal), parts, size, budget, ways)
        except (LawmError, OSError) as error:
            return about | {"failed": str(error)}
        seen = {name: row.pop("pictures") for name, row in rows.items()}
        rows.pop(GOAL)
        film = {name: seen[name] for name in ("planned", "true", GOAL)} if task.episode < settings.films else None
        return about | {"closed_loop": rows, "film": film}

    def _ways(self, task: Task, sample: Sample, replan: int) -> Ways:
        """Each way to act: from the pictures so far (the latest last) and the goal's to the next actions."""
        settings, planning = self.settings, _Planning(self.planner, self._seed(task), replan)
        assert sample.actions is not None
        true = sample.actions[settings.context - 1 :]
        others = np.random.default_rng([abs(settings.seed), task.episode])

        def goal_idm(pictures: Sequence[np.ndarray], goal: np.ndarray) -> np.ndarray:
            assert self.controller is not None
            start, end = self.planner.states([pictures[-1]]), self.planner.states([goal])[:, 0]
            return goal_latents(self.model, self.controller, start, end, 1)

        def random(pictures: Sequence[np.ndarray], goal: np.ndarray) -> np.ndarray:
            return self._training_actions(task.episode + 1_000_000 * int(others.integers(1, 2**20)))

        def policy(pictures: Sequence[np.ndarray], goal: np.ndarray) -> np.ndarray:
            assert self.policy is not None
            now, end = self.planner.states([pictures[-1]])[:, 0], self.planner.states([goal])[:, 0]
            left = max(1, len(true) - (len(pictures) - 1))
            return cloned(self.policy, now, end, left)[:replan]

        ways: dict[str, Way] = {"planned": planning, "random": random}
        ways["no_action"] = lambda pictures, goal: np.zeros_like(true[:1])
        ways["true"] = lambda pictures, goal: true if len(pictures) == 1 else np.zeros_like(true[:1])
        if self.controller is not None:
            ways["goal_idm"] = goal_idm
        if self.policy is not None:
            ways["policy"] = policy
        return ways


class _Planning:
    """Receding horizon: a plan from the latest pictures, of which the first actions are taken."""

    def __init__(self, planner: Planner, seed: int, taken: int) -> None:
        self.planner, self.seed, self.taken = planner, seed, taken
        self.left: Tensor | None = None

    def __call__(self, pictures: Sequence[np.ndarray], goal: np.ndarray) -> np.ndarray:
        planner, settings = self.planner, self.planner.settings
        given = pictures[-settings.context :]
        start = planner.states([*[given[0]] * (settings.context - len(given)), *given])  # it has stood still before
        taken = len(pictures) - 1
        steps = max(1, settings.horizon - taken) if settings.arrive else settings.horizon
        begin = None
        if self.left is not None:
            tail = planner.space.start.expand(max(0, steps - len(self.left)), -1)
            begin = torch.cat([self.left[:steps], tail]).unsqueeze(0)
        found = planner.search(start, planner.states([goal])[:, 0], [self.seed], Given(begin), steps)[0]
        if found.trouble:
            raise LawmError(found.trouble)
        self.seed += 7_919  # noise that is new
        if settings.warm_start:
            self.left = torch.from_numpy(found.numbers_HA[self.taken :]).to(planner.device)
        return found.actions_HA[: self.taken]


def heights(reader: ClipReader) -> dict[str, int]:
    """Key -> the height of the video's pictures, in pixels."""
    table, uri = reader.index.table, reader.config.data.index
    if "height" not in table.column_names and uri is not None:  # a reader keeps no more than it needs
        table = read_index(uri).table
    return dict(zip(table["key"].to_pylist(), table["height"].to_pylist(), strict=True))


def trained_lengths(config: Config, states: int) -> Config:
    """The config with clips of so many states, as the world model will see them."""
    clip = config.data.clip.model_copy(update={"frames": states})
    return config.model_copy(update={"data": config.data.model_copy(update={"clip": clip})})
