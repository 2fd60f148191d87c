"""What each named protocol fixes, and when it is refused."""

import pytest

from lawm.config import LawmError, PlanConfig
from lawm.data import Dimension
from lawm.planning import check_units, preset
from lawm.planning.protocols import PRESETS

METRES = (Dimension("x", "translation", "m"), Dimension("grip", "gripper"))


def test_presets_are_the_published_protocols() -> None:
    same = {"horizon": 3, "samples": 300, "elites": 10, "iterations": 15}
    start = PlanConfig(preset="paper-droid", seed=5, episodes=9)
    paper = preset(start).model_dump()
    wanted = same | {"cost": "l2", "select": "best", "initial_std": 1.0, "std": None, "action_limit": None}
    assert paper.items() >= (wanted | {"seed": 5, "episodes": 9}).items()
    jepa = preset(start.model_copy(update={"preset": "jepa-wms-droid"})).model_dump()
    assert jepa.items() >= (same | {"cost": "mse", "select": "elite_mean", "std": 0.1}).items()
    assert jepa["action_limit"]["translation"] == 0.1 and jepa["action_limit"]["gripper"] == 0.75
    meta = preset(start.model_copy(update={"preset": "vjepa2-ac"})).model_dump()
    assert meta.items() >= {"cost": "l1", "samples": 800, "elites": 10, "iterations": 10, "step_norm": 0.075}.items()
    assert meta["searched"] == ("translation", "gripper")
    custom = start.model_copy(update={"preset": "custom", "horizon": 7})
    assert preset(custom) == custom
    with pytest.raises(LawmError, match=r"samples = 64: the protocol paper-droid fixes it at 300; set plan\.pr"):
        preset(start.model_copy(update={"samples": 64}))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_config(name: str) -> None:
    config = preset(PlanConfig(preset=name))  # type: ignore[arg-type]
    assert PlanConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("name", ["jepa-wms-droid", "vjepa2-ac"])
@pytest.mark.parametrize(
    ("dimensions", "said"),
    [
        ((Dimension("x", "translation"), METRES[1]), "the labels have x in unknown.*--unit m"),
        ((Dimension("x", "translation", "px"), METRES[1]), "the labels have x in px"),
        ((Dimension("joint 0"), METRES[1]), "the labels have no dimension that is a translation"),
    ],
)
def test_metres_are_never_assumed(name: str, dimensions: tuple[Dimension, ...], said: str) -> None:
    check_units(name, METRES)
    check_units(name, (Dimension("x", "translation", "cm"),))
    check_units("paper-droid", dimensions)  # has no constants in metres
    with pytest.raises(LawmError, match=said):
        check_units(name, dimensions)
