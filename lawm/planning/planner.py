"""From two pictures to actions: a robot's own loop in ten lines, and what `lawm plan` does for many episodes.

Legend: E episodes, T pictures given, H horizon, N tokens, D state width, A action width.
"""

import time
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lawm.config import Config, LawmError, PlanConfig, parse_config
from lawm.data import Dimension, Shown
from lawm.planning.plans import Plan, plan
from lawm.planning.problem import ActionSpace, action_space, in_units, latent_space
from lawm.planning.protocols import check_units, preset
from lawm.planning.solvers import AT_THE_START, Given
from lawm.planning.steering import ByController, ByLatents, ByPrior, ByTrueActions, Steering
from lawm.training import (
    ControllerObjective,
    LatentActionObjective,
    PriorObjective,
    load_controller,
    load_model,
    load_prior,
    pick_device,
    read_about,
)


def steering_of(
    settings: PlanConfig,
    model: LatentActionObjective,
    controller: ControllerObjective | None,
    prior: PriorObjective | None,
) -> Steering:
    """What `plan.over` asks for. Raises LawmError for what it needs and is not given."""
    if settings.over == "actions":
        return ByController(controller) if controller is not None else ByTrueActions(model)
    if controller is None:
        raise LawmError(f"plan.over = {settings.over}: the inverse controller makes actions of latents; --controller")
    if settings.over == "latents":
        return ByLatents(model, controller)
    if prior is None:
        raise LawmError("plan.over = prior: give the prior that lawm prior trained; --prior")
    return ByPrior(model, controller, prior)


def space_of(
    settings: PlanConfig,
    model: LatentActionObjective,
    controller: ControllerObjective | None,
    dimensions: tuple[Dimension, ...],
    shown: Shown | None,
) -> ActionSpace:
    """Where a search begins and what it keeps within. Raises LawmError for settings that do not fit the actions."""
    if settings.over == "actions":
        if controller is not None:
            scales = controller.controller.action_mean, controller.controller.action_std
        else:
            scale = model.latent_action.action_std
            mean = torch.zeros_like(scale) if shown is None else torch.as_tensor(shown.mean_A).to(scale)
            scales = mean, scale
        return action_space(settings, dimensions, *scales, shown)
    assert controller is not None
    mean, std = controller.controller.latent_mean.float(), controller.controller.latent_std
    if settings.over == "prior":
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    return latent_space(settings, mean, std)


class Planner:
    """Plans from pictures to a picture of the goal.

        from lawm.planning import Planner
        planner = Planner.load("runs/mine", "runs/mine-controller")
        while running:
            actions = planner.plan(camera.picture(), goal_picture, budget_s=0.5)
            robot.do(actions[0])

    Actions are in the units of the labels that the controller was trained with (`planner.dimensions`), and stay, unless
    the settings say otherwise, within the range that these showed.
    """

    def __init__(
        self,
        model: LatentActionObjective,
        config: Config,
        controller: ControllerObjective | None,
        prior: PriorObjective | None,
        dimensions: tuple[Dimension, ...],
        shown: Shown | None,
    ) -> None:
        """`config`: clips as the model was trained on, and how is planned. Raises LawmError for what does not fit."""
        self.clip = config.data.clip
        self.settings = preset(config.plan, self.clip.fps)
        check_units(config.plan.preset, dimensions)
        self.device = pick_device()
        self.model = model.to(self.device)
        self.controller = None if controller is None else controller.to(self.device)
        prior = None if prior is None else prior.to(self.device)
        self.dimensions = dimensions
        self.steering = steering_of(self.settings, self.model, self.controller, prior)
        self.by_actions = self.steering
        if self.settings.over != "actions":
            by_actions = self.settings.model_copy(update={"over": "actions"})
            self.by_actions = steering_of(by_actions, model, self.controller, None)
        self.space = space_of(self.settings, self.model, self.controller, dimensions, shown)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        controller: str | None = None,
        *,
        prior: str | None = None,
        settings: PlanConfig | None = None,
    ) -> Self:
        """A model and its controller, by their run folders or checkpoints (paths or s3://). `controller` None: of a
        model that was trained on real actions. `settings`: how is planned (default: as the controller's own config
        says, which is its recipe's). Raises LawmError."""
        model, parent = load_model(checkpoint)
        taught = read_about(controller if controller is not None else checkpoint)
        own = load_controller(controller, model, parent) if controller is not None else None
        learned = load_prior(prior, model, parent) if prior is not None else None
        found = taught["extra"].get("actions")
        if found is None:
            raise LawmError(f"{controller or checkpoint} does not say what its actions are: train it again")
        dimensions = tuple(Dimension(**one) for one in found["dimensions"])
        mean, low, high = (np.array(found[name]) for name in ("mean", "low", "high"))
        shown = Shown(mean, low, high, found["transitions"])
        config = parent.config if own is None else load_plan_config(taught, parent.config)
        config = config.model_copy(update={"plan": settings}) if settings is not None else config
        return cls(model, config, own, learned, in_units(dimensions, config.plan.unit), shown)

    def states(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Normalised states [1, T, N, D] of pictures, uint8 RGB [height, width, 3] of any size, cut as clips are.
        Raises LawmError for anything else."""
        from lawm.video import cut_picture  # PyAV; states alone can be planned between without it

        cut = np.stack([cut_picture(picture, self.clip) for picture in pictures])
        frames = torch.from_numpy(cut).unsqueeze(0).to(self.device)
        with torch.no_grad():
            return self.model.state_norm(self.model.encode(frames))

    def plan(
        self,
        picture: np.ndarray,
        goal: np.ndarray,
        *,
        before: Sequence[np.ndarray] = (),
        budget_s: float | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """The actions [H, A] from a picture towards the goal's, float32. `before`: earlier pictures, a step apart, the
        latest last. `budget_s`: the search ends in time (one iteration is always made); without it the same seed gives
        the same actions. Raises LawmError for pictures that are none, and where no plan has a cost."""
        deadline = None if budget_s is None else time.perf_counter() + budget_s
        start = torch.cat([self.states([one]) for one in (*before, picture)], dim=1)
        found = self.search(start, self.states([goal])[:, 0], [seed], Given(deadline=deadline))[0]
        if found.trouble:
            raise LawmError(found.trouble)
        return found.actions_HA.astype(np.float32)

    def search(
        self,
        start_ETND: Tensor,
        goal_END: Tensor,
        seeds: Sequence[int],
        given: Given = AT_THE_START,
        horizon: int | None = None,
    ) -> list[Plan]:
        """A Plan for each episode from normalised states; its seed alone decides what is drawn for it. `horizon`:
        another one than the settings'."""
        settings = self.settings if horizon is None else self.settings.model_copy(update={"horizon": horizon})
        generators = [torch.Generator(self.device).manual_seed(seed % 2**63) for seed in seeds]
        args = (self.model, self.steering, start_ETND, goal_END, self.space, settings, generators, given)
        return plan(*args)


def load_plan_config(taught: dict[str, Any], trained: Config) -> Config:
    """The model's config with the planning settings that the controller's checkpoint names."""
    return trained.model_copy(update={"plan": parse_config(taught["config"], "the controller's checkpoint").plan})
