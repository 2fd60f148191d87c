"""The protocols of others, by name: what each fixes, in SI units, in which its figures were published, too."""

from typing import Any

from lawm.config import LawmError, PlanConfig
from lawm.data import Dimension

_PAPER = {"horizon": 3, "samples": 300, "elites": 10, "iterations": 15}
PRESETS: dict[str, dict[str, Any]] = {
    "custom": {},
    # Garrido et al. 2026, appendix A: N(0, I), the best sequence.
    "paper-droid": _PAPER | {"cost": "l2", "select": "best", "initial_std": 1.0},
    # Terver et al. 2025: samples around zero, in metres and radians, all three actions.
    "jepa-wms-droid": _PAPER
    | {
        "cost": "mse",
        "select": "elite_mean",
        "std": 0.1,
        "action_limit": {"translation": 0.1, "rotation": 0.1, "other": 0.1, "gripper": 0.75},
    },
    # Assran et al. 2025, section 4: x, y, z and gripper. Their norm limit is 0.05 to 0.075 m, here the upper end of it
    # for the Euclidean norm; their code limits each axis.
    "vjepa2-ac": {
        "samples": 800,
        "elites": 10,
        "iterations": 10,
        "cost": "l1",
        "select": "elite_mean",
        "std": {"translation": 0.075, "gripper": 0.75},
        "step_norm": 0.075,
        "action_limit": {"translation": 0.075, "gripper": 0.75},
        "searched": ("translation", "gripper"),
    },
    # Bar et al. 2025: 2 s as one straight line, yaw at its end, one iteration. Their means and standard deviations are
    # of normalised displacements (-2.5 to 5 forward and -4 to 4 sideways, in waypoints of 0.25 m: -1 to 1), here in
    # metres a step: 0.25 ((-0.1 + 1) / 2 x 7.5 - 2.5) = 0.219 forward, 0.02 x 3.75 x 0.25 and 0.1 x 4 x 0.25.
    "nwm-recon": {
        "horizon": 8,
        "context": 4,
        "samples": 120,
        "elites": 5,
        "iterations": 1,
        "straight": True,
        "cost": "mse",
        "select": "elite_mean",
        "start": (0.21875, 0.0, 0.0),
        "std": (0.01875, 0.1, 0.1),
        "action_limit": "none",
    },
    # Yang 2026, section 3.5: random shooting among latents, the inverse controller says the action.
    "yang-mpc": {
        "over": "latents",
        "latent_draws": "standard",
        "solver": "random",
        "samples": 512,
        "iterations": 1,
        "cost": "cosine",
        "select": "best",
    },
    # stable-worldmodel's PushT: the goal 2.5 s on, 5 s for it, a new plan every 0.5 s. The horizon is the clips' own.
    "swm-pusht": {
        "goal_after_s": 2.5,
        "budget_s": 5.0,
        "replan_after_s": 0.5,
        "samples": 300,
        "elites": 30,
        "iterations": 30,
        "cost": "mse",
        "select": "elite_mean",
    },
}
IN_SI = ("jepa-wms-droid", "vjepa2-ac", "nwm-recon")
"""Protocols whose constants are metres (and radians)."""


def preset(config: PlanConfig, fps: float | None = None) -> PlanConfig:
    """The config with a named protocol's settings put in; `custom` leaves it alone. `fps`: of the clips, for a protocol
    that gives its horizon in seconds. Raises LawmError where a field that the protocol fixes has been set to something
    else."""
    fixed, default = PRESETS[config.preset], PlanConfig()
    for name, value in fixed.items():
        given = getattr(config, name)
        if given not in (value, getattr(default, name)):
            raise LawmError(
                f"plan.{name} = {given}: the protocol {config.preset} fixes it at {value}; set plan.preset=custom first"
            )
    if config.preset == "swm-pusht" and fps is not None:
        fixed = fixed | {"horizon": whole_steps(fixed["goal_after_s"], fps, "swm-pusht plans 2.5 s ahead")}
    return config.model_copy(update=fixed)


def chosen(config: PlanConfig) -> PlanConfig:
    """The config with what its protocol fixes put back to the defaults: a protocol that is chosen later than a recipe's
    own settings is not at odds with them."""
    default = PlanConfig()
    return config.model_copy(update={name: getattr(default, name) for name in PRESETS[config.preset]})


def whole_steps(seconds: float, fps: float, what: str) -> int:
    """Steps of so many seconds. Raises LawmError where these are no whole number, or none."""
    steps = round(seconds * fps)
    if steps < 1 or abs(steps - seconds * fps) > 1e-6:
        raise LawmError(f"{what}, which are {seconds * fps:g} steps at data.clip.fps = {fps:g}; expected whole steps")
    return steps


def check_units(name: str, dimensions: tuple[Dimension, ...]) -> None:
    """Raises LawmError where a protocol's constants are metres and the labels' translations are not."""
    if name not in IN_SI:
        return
    translations = [d for d in dimensions if d.kind == "translation"]
    odd = next((d for d in translations if d.si[0] != "m"), None)
    if odd is None and translations:
        return
    says = f"{odd.name} in {odd.unit}" if odd else "no dimension that is a translation"
    raise LawmError(
        f"plan.preset = {name} is in metres, and the labels have {says}: write the dimensions into the labels "
        "(docs/datasets.md), say --unit m where that is what they are, or set plan.preset=custom"
    )
