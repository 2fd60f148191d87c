"""Seconds that a plan takes by the paper's protocol (300 candidates, 15 iterations, 3 steps), against the same search
without what is kept and shared, and against stable-worldmodel's CEM on the same world model.

    python -m benchmarks.planning [--quick]

On a GPU the paper's model in bfloat16, on a CPU the demo's; weights are random, which changes no time. Ratios are of
medians of one run, measured in turn; `spread` has each one's least and greatest. The last line is a JSON object.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import finish, machine, parser, spread
from benchmarks.rollout import seconds
from lawm.config import Config, PlanConfig
from lawm.data import Dimension
from lawm.planning import SOLVERS, ByController, Given, action_space, goal_cost, plan, preset
from lawm.recipes import recipe
from lawm.training import ControllerObjective, LatentActionObjective, autocast, pick_device

PACKAGES = ("lawm", "torch", "ray", "stable-worldmodel")
WIDTH = 7  # of an action: six of a pose, and a gripper


class Setting:
    """Model, controller, starts and goals of `episodes` episodes, by a seed."""

    def __init__(self, episodes: int, settings: PlanConfig) -> None:
        self.device, self.settings = pick_device(), settings
        torch.manual_seed(0)
        config = self.config()
        model = LatentActionObjective(config).eval()
        for parameter in model.world_model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.controller = ControllerObjective(config, model, WIDTH).eval().to(self.device)
        self.model = model.to(self.device)
        tokens, width = model.encoder.tokens, model.encoder.state_width
        states = torch.randn(episodes, 2, tokens, width, device=self.device)
        self.start, self.goal = states[:, :1], states[:, 1]
        dimensions = tuple(Dimension(f"a{i}") for i in range(WIDTH))
        scales = (torch.zeros(WIDTH, device=self.device), torch.ones(WIDTH, device=self.device))
        self.space = action_space(settings, dimensions, *scales, None)
        self.steering = ByController(self.controller)

    def config(self) -> Config:
        name = "paper_noisy" if self.device.type == "cuda" else "demo"
        config = recipe(name)
        encoder = config.encoder.model_copy(update={"weights": "random"})
        return config.model_copy(update={"encoder": encoder})

    def plans(self, which: slice) -> Any:
        start, goal = self.start[which], self.goal[which]
        generators = [torch.Generator(self.device).manual_seed(i) for i in range(len(start))]
        return plan(self.model, self.steering, start, goal, self.space, self.settings, generators)

    @torch.no_grad()
    def plain_cost(self, sequences_ESHA: Tensor) -> Tensor:
        """Every step from the whole past, nothing kept, the controller's look at the state anew for each candidate."""
        episodes, each = sequences_ESHA.shape[:2]
        states = self.start[:episodes].repeat_interleave(each, dim=0)
        actions, latents = sequences_ESHA.flatten(0, 1), []
        with autocast(self.device, "auto"):
            for i in range(actions.shape[1]):
                latents.append(self.controller.controller(actions[:, i : i + 1], states[:, -1:]))
                following = self.model.world_model(states, torch.cat(latents, dim=1))[:, -1:]
                states = torch.cat([states, following.to(states.dtype)], dim=1)
        wanted = self.goal[:episodes].repeat_interleave(each, dim=0)
        return goal_cost(states[:, -1].float(), wanted, self.settings.cost).view(episodes, each)

    def uncached(self) -> None:
        generators = [torch.Generator(self.device).manual_seed(0)]
        SOLVERS["cem"](self.plain_cost, self.space, self.settings, generators, Given())


class Costable:
    """The same model as stable-worldmodel's solvers want it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def parameters(self) -> Any:
        return self.setting.model.world_model.parameters()

    def get_cost(self, infos: dict[str, Any], candidates: Tensor) -> Tensor:
        return self.setting.plain_cost(candidates)


def peer(setting: Setting) -> Callable[[], Any] | None:
    """stable-worldmodel's CEM at the same budget; None where it is not installed."""
    try:
        import gymnasium as gym
        import numpy as np
        from stable_worldmodel.policy import PlanConfig as Theirs
        from stable_worldmodel.solver.cem import CEMSolver
    except ImportError as error:
        print(f"stable-worldmodel is not there ({error}): its ratio is null", file=sys.stderr)
        return None
    s = setting.settings
    solver = CEMSolver(
        Costable(setting), batch_size=1, num_samples=s.samples, n_steps=s.iterations, topk=s.elites,
        device=setting.device,
    )  # fmt: skip
    theirs = Theirs(horizon=s.horizon, receding_horizon=1, action_block=1)
    box = gym.spaces.Box(-np.inf, np.inf, (1, WIDTH), np.float32)
    solver.configure(action_space=box, n_envs=1, config=theirs)
    return lambda: solver.solve({"state": setting.start[:1]})


def ratios(times: dict[str, list[float]], over: str, under: str) -> dict[str, float] | None:
    return spread([a / b for a, b in zip(times[over], times[under], strict=True)]) if times.get(over) else None


class Planning:
    """Plans of one episode at a time, in an actor of one thread."""

    def __init__(self, episodes: int, settings: PlanConfig) -> None:
        torch.set_num_threads(1)
        self.setting = Setting(episodes, settings)

    def run(self, episode: int) -> int:
        self.setting.plans(slice(episode, episode + 1))
        return episode


def actors_speedup(settings: PlanConfig, episodes: int, rounds: int) -> dict[str, float]:
    """Episodes a second of two actors over one, each of one thread."""
    from lawm.cluster.actors import Actors
    from lawm.cluster.session import start

    found, cluster = [], recipe("tiny").cluster
    with start(cluster), Actors(Planning, (episodes, settings), 2, cluster) as pool:
        both = list(pool.actors)
        for _ in range(rounds + 1):
            took = {}
            for count in (1, 2):
                pool.actors = both[:count]
                began = time.perf_counter()
                pool.spread("run", list(range(episodes)), lambda number, result: None)
                took[count] = time.perf_counter() - began
            found.append(took[1] / took[2])
        pool.actors = both
    return spread(found[1:])


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    args = made.parse_args(argv)
    settings = preset(PlanConfig(preset="paper-droid", action_limit="none"))
    if args.quick:
        settings = settings.model_copy(update={"samples": 60, "iterations": 4})
    used, rounds = machine(), 2 if args.quick else 5
    setting = Setting(8, settings)
    ways: dict[str, Callable[[], Any] | None] = {
        "lawm": lambda: setting.plans(slice(0, 1)), "uncached": setting.uncached, "peer": peer(setting),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name, way in ways.items() if way is not None}
    few = max(1, rounds // 2)
    for i in range(rounds + 1):  # the first warms up
        for name in times:
            way = ways[name]
            assert way is not None
            took = seconds(way, setting.device)
            times[name] += [took] if i else []
    batched = []
    for _ in range(few):
        alone = seconds(lambda: [setting.plans(slice(i, i + 1)) for i in range(8)], setting.device)
        batched.append(alone / seconds(lambda: setting.plans(slice(0, 8)), setting.device))
    speedup = actors_speedup(settings, 4 if args.quick else 8, few)
    spreads = {
        "vs_uncached": ratios(times, "uncached", "lawm"), "vs_stable_worldmodel": ratios(times, "peer", "lawm"),
        "batched_vs_single": spread(batched), "two_actor_speedup": speedup,
    }  # fmt: skip
    figures: dict[str, Any] = {name: found["median"] if found else None for name, found in spreads.items()}
    figures["seconds_per_action"] = round(statistics.median(times["lawm"]), 4)
    figures |= {"spread": spreads, "seconds": {name: spread(t) for name, t in times.items()}}
    figures["budget"] = {n: getattr(settings, n) for n in ("samples", "iterations", "horizon")}
    print({name: figures[name] for name in (*spreads, "seconds_per_action")})
    finish("planning", figures, PACKAGES, used)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
