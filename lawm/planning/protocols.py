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
}
IN_SI = ("jepa-wms-droid", "vjepa2-ac")
"""Protocols whose constants are metres (and radians)."""


def preset(config: PlanConfig) -> PlanConfig:
    """The config with a named protocol's settings put in; `custom` leaves it alone. Raises LawmError where a field that
    the protocol fixes has been set to something else."""
    fixed, default = PRESETS[config.preset], PlanConfig()
    for name, value in fixed.items():
        given = getattr(config, name)
        if given not in (value, getattr(default, name)):
            raise LawmError(
                f"plan.{name} = {given}: the protocol {config.preset} fixes it at {value}; set plan.preset=custom first"
            )
    return config.model_copy(update=fixed)


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
