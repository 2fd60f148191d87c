"""How a checkpoint is evaluated, and how is planned with it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lawm.config.base import Frozen


class EvaluateConfig(Frozen):
    clips: int = Field(256, ge=2)
    """Clips that are measured (all that there are, if fewer)."""
    batch: int = Field(32, ge=2)
    split: Literal["val", "train", "all"] = "val"
    """Which videos: held out, trained on, or both."""
    seed: int = 0
    bootstrap: int = Field(1000, ge=100)
    """Resamples of the 95 % interval."""
    context: int = Field(1, ge=1)
    """States given before an unrolled prediction starts."""
    cycle_seconds: float = Field(2.0, gt=0)
    """How long cycles are rolled out (paper, table 2: 2 s); where clips are shorter, as far as they go, and said."""
    cut_positions: Literal["all", "middle"] = "all"
    """Before which states clips are cut over to another one (leakage): all that have one before them, or the middle
    one. An encoder that looks back in time encodes each of these clips anew; others need no further pass."""
    cut_with: str | None = None
    """Index of another data set, whose clips are cut over to the measured ones as well (leakage across data sets)."""
    langevin_steps: int = Field(200, ge=0)
    """Sparse latents are drawn by so many steps of Langevin dynamics ..."""
    langevin_step: float = Field(0.01, gt=0)
    """... of this size ..."""
    langevin_noise: float | None = Field(None, ge=0)
    """... with noise of this standard deviation; None: the square root of the size (equation 4)."""


Amount = float | tuple[float, ...] | dict[str, float]
"""A number for every dimension of an action, one for each, or some by the dimension's name or kind (translation,
rotation, gripper, other): in SI units where the labels' unit is a length or an angle (m, cm, rad, deg), else in it."""


class PlanConfig(Frozen):
    """A search through the world model (paper, equations 1 to 3), and the episodes that it is tried on."""

    preset: Literal["paper-droid", "jepa-wms-droid", "vjepa2-ac", "nwm-recon", "yang-mpc", "swm-pusht", "custom"] = (
        "paper-droid"
    )
    over: Literal["actions", "latents", "prior"] = "actions"
    """What is searched: real actions (through the controller, or into a world model that was trained on them), latents,
    or the noise that a learned prior makes likely latents of (`lawm prior`). The inverse controller makes actions of
    latents."""
    latent_draws: Literal["seen", "standard"] = "seen"
    """Where a search over latents begins: mean and standard deviation of the latents that the controller saw, within
    three of them, or N(0, I) without a limit."""
    straight: bool = False
    """One step is searched and taken `horizon` times, its rotation at the last alone: a straight line (NWM)."""
    start: Amount | None = None
    """The mean of the first samples, an Amount; dimensions that it leaves out (None: all) begin at the actions' own
    mean, or, where `std` says how far they are drawn, at zero."""
    context: int = Field(1, ge=1)
    """Frames that the world model is given, up to the one that a plan starts in."""
    batch: int = Field(0, ge=0)
    """Episodes that an actor plans in one call; 0: 8 on a GPU, 1 on a CPU."""
    films: int = Field(4, ge=0)
    """Episodes, the first ones, of which a film is kept: in closed loop what was seen, else what a decoder shows."""
    goal_after_s: float | None = Field(None, gt=0)
    """Closed loop in the labels' simulator: the goal is what the episode shows so much later. None: no closed loop."""
    budget_s: float = Field(5.0, gt=0)
    """Closed loop: how long there is time to reach it."""
    replan_after_s: float = Field(0.5, gt=0)
    """Closed loop: after how much of a plan the next one is made."""
    arrive: bool = False
    """Closed loop: plans end when the goal's time comes (`goal_after_s` after the start), and have one step after it;
    else each is `horizon` long, so that one that is made often never arrives."""
    warm_start: bool = False
    """Closed loop: a search begins at what is left of the plan before (iCEM)."""
    solver: Literal["cem", "icem", "mppi", "gradient", "random"] = "cem"
    """`random` draws samples x iterations at once; `gradient` takes `iterations` steps from `samples` draws."""
    noise_beta: float = Field(0.0, ge=0)
    """Over the horizon, noise of power f^-beta; 0: white (iCEM's authors take 0.25 to 3.5)."""
    temperature: float = Field(0.5, gt=0)
    """MPPI's, in standard deviations of an iteration's costs."""
    learning_rate: float = Field(0.1, gt=0)
    """Of the solver `gradient`, in standard deviations of the actions."""
    chunk: int = Field(0, ge=0)
    """Candidates that are rolled out at once, over all episodes; 0: 256 on a CPU, on a GPU as many as its memory
    holds. The plans are the same."""
    episodes: int = Field(64, ge=1)
    horizon: int = Field(3, ge=1)
    samples: int = Field(300, ge=2)
    elites: int = Field(10, ge=1)
    iterations: int = Field(15, ge=1)
    initial_std: float = Field(1.0, gt=0)
    """Of the first samples, in units of the actions' own standard deviation over the training split, around their mean
    (N(0, I) of the standardised actions); not read where `std` says more."""
    std: Amount | None = None
    """Of the first samples, around zero, an Amount; dimensions that it leaves out (None: all) follow `initial_std`."""
    std_floor: Amount | None = None
    """The samples' standard deviation never gets smaller, an Amount; None: a thousandth of the actions' own."""
    action_limit: Literal["none"] | Amount | None = None
    """Each planned action stays within plus and minus this, an Amount; dimensions that it leaves out (None: all) within
    `percentiles` of the training split's actions: a model is not to be believed where it has never been. `none`: no
    limit."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Of the training split's actions, per dimension: the range that plans keep to, or are said to leave."""
    step_norm: float | None = Field(None, gt=0)
    """Most that one action may move (Euclidean norm of its translation, SI unit); None: as far as the limits allow."""
    searched: tuple[Literal["translation", "rotation", "gripper", "other"], ...] | None = None
    """Kinds of dimensions that are planned; the others stay at zero. None: all."""
    unit: str | None = None
    """Unit of translations whose labels do not say theirs (`lawm plan --unit`)."""
    cost: Literal["l2", "l1", "mse", "cosine"] = "l2"
    select: Literal["best", "elite_mean"] = "best"
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.elites > self.samples:
            raise ValueError(f"elites = {self.elites} exceeds samples = {self.samples}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles = {low:g}, {high:g}; expected 0 <= low < high <= 100")
        if self.over != "actions" and self.straight:
            raise ValueError(f"straight lines are of actions, and plan.over = {self.over}")
        if self.replan_after_s > self.budget_s:
            raise ValueError(f"replan_after_s = {self.replan_after_s:g} exceeds budget_s = {self.budget_s:g}")
        for name in ("std", "std_floor", "action_limit"):
            amount = getattr(self, name)
            values = amount.values() if isinstance(amount, dict) else amount if isinstance(amount, tuple) else [amount]
            if any(isinstance(value, float) and value <= 0 for value in values):
                raise ValueError(f"{name} = {amount}; expected positive numbers")
        return self
