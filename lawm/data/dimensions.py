"""What each number of an action or a state is: its name, what it moves, in which frame, and its unit.

Kept in the metadata of the table of labels (`lawm.dimensions`, JSON), beside how actions come about (`lawm.actions`).
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from lawm.config import LawmError

DimensionKind = Literal["translation", "rotation", "gripper", "other"]
"""translation: a place or a change of place of what is controlled; rotation: an angle of it; gripper: its opening."""
Frame = Literal["world", "body"]
DIMENSIONS_KEY = b"lawm.dimensions"
UNKNOWN = "unknown"
SI = {
    "m": ("m", 1.0),
    "dm": ("m", 0.1),
    "cm": ("m", 0.01),
    "mm": ("m", 0.001),
    "rad": ("rad", 1.0),
    "deg": ("rad", math.pi / 180),
}
"""Unit -> its SI unit, and how much of that it is. Other units (px, arena units) stay as they are."""


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One number of an action or a state. Raises LawmError for a kind or frame that there is not, and for a unit that
    cannot be one of its kind."""

    name: str
    kind: DimensionKind = "other"
    unit: str = UNKNOWN
    frame: Frame = "world"
    """body: as seen from the robot where the step begins, so that steps are composed, not added."""

    def __post_init__(self) -> None:
        if not self.name or not self.unit or not (self.name + self.unit).isprintable():
            raise LawmError(f"dimension {self.name!r} in {self.unit!r}: expected a name and a unit that can be printed")
        for what, value, known in (("kind", self.kind, DimensionKind), ("frame", self.frame, Frame)):
            if value not in get_args(known):
                raise LawmError(f"dimension {self.name}: {what} {value!r}; expected {', '.join(get_args(known))}")
        wrong = {"translation": "rad", "rotation": "m"}.get(self.kind)
        if wrong is not None and self.si[0] == wrong:
            raise LawmError(f"dimension {self.name}: a {self.kind} in {self.unit}; expected another kind or unit")

    @property
    def si(self) -> tuple[str, float]:
        """(SI unit, one of this unit in it); a unit that SI does not have is its own."""
        return SI.get(self.unit, (self.unit, 1.0))


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a table's numbers are. `displacements`: actions add up to (in the body's frame: compose to) what moved.
    Where they do not (set points, velocities, commanded targets), states show it: those whose names are actions' names.
    `simulator`: the world that makes states of actions, where `lawm.simulation` has it. `scene`: what moves in the
    pictures that no action moves (distractors, a camera that shakes), as results say it."""

    actions: tuple[Dimension, ...] = ()
    states: tuple[Dimension, ...] = ()
    displacements: bool = False
    simulator: str | None = None
    scene: str = ""

    def to_json(self) -> bytes:
        said = dataclasses.asdict(self)
        return json.dumps(said if self.scene else {k: v for k, v in said.items() if k != "scene"}).encode()


def read_meaning(said: bytes, where: str) -> Meaning:
    """The Meaning that `to_json` wrote. Raises LawmError, naming `where`, for anything else."""
    try:
        found: Any = json.loads(said)
        actions, states = (tuple(Dimension(**d) for d in found.pop(name, ())) for name in ("actions", "states"))
        meaning = Meaning(actions, states, **found)
    except (ValueError, TypeError, AttributeError) as error:
        raise LawmError(f"{where}: {DIMENSIONS_KEY.decode()} cannot be read ({str(error)[:120]})") from None
    except LawmError as error:
        raise LawmError(f"{where}: {error}") from None
    kinds = ((meaning.displacements, bool), (meaning.simulator, str | None), (meaning.scene, str))
    if not all(isinstance(value, kind) for value, kind in kinds):
        named = f"simulator {meaning.simulator!r}, scene {meaning.scene!r}"
        raise LawmError(f"{where}: displacements {meaning.displacements!r}, {named}")
    return meaning


def compose_planar(steps_HA: np.ndarray) -> np.ndarray:
    """Steps (forward, left, turn in radians, and more, which is added), each as seen from where it begins, as one from
    the first place (SE(2)): [..., H, A] -> float64 [..., A]."""
    steps = np.asarray(steps_HA, np.float64)
    forward, left, turn = (steps[..., i] for i in range(3))
    yaw = np.cumsum(turn, axis=-1) - turn  # where each begins
    whole = steps.sum(axis=-2)
    whole[..., 0] = (np.cos(yaw) * forward - np.sin(yaw) * left).sum(axis=-1)
    whole[..., 1] = (np.sin(yaw) * forward + np.cos(yaw) * left).sum(axis=-1)
    return whole


def unnamed(count: int, what: str) -> tuple[Dimension, ...]:
    """Dimensions of which nothing is known."""
    return tuple(Dimension(f"{what} {i}") for i in range(count))


POSE = (
    *(Dimension(name, "translation", "m") for name in ("x", "y", "z")),
    *(Dimension(name, "rotation", "rad") for name in ("roll", "pitch", "yaw")),
)
"""A pose as `pose_delta` takes it: metres, Euler angles."""
GRIPPER = Dimension("gripper", "gripper", "0..1")
PLANAR = (*(Dimension(name, "translation", "m") for name in ("x", "y")), Dimension("yaw", "rotation", "rad"))
"""A pose as `planar_delta` takes it."""

_BY_NAME: dict[str, DimensionKind] = {
    **dict.fromkeys(("x", "y", "z", "pos_x", "pos_y", "pos_z", "dx", "dy", "dz"), "translation"),
    **dict.fromkeys(("roll", "pitch", "yaw", "rx", "ry", "rz", "droll", "dpitch", "dyaw"), "rotation"),
    "gripper": "gripper",
}


def named(names: Sequence[str]) -> tuple[Dimension, ...]:
    """Dimensions of which a data set gives the names alone: the kind where the name says it beyond doubt, no unit."""
    found = []
    for i, name in enumerate(names):
        parts = str(name).strip().lower().replace(" ", "_").split(".")
        last = "gripper" if "gripper" in parts else parts[-1].removeprefix("ee_").removeprefix("delta_")
        shown = str(name) if str(name).isprintable() and str(name).strip() else f"number {i}"
        found.append(Dimension(shown, _BY_NAME.get(last, "other")))
    return tuple(found)
