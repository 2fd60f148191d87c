"""How strongly latents are limited: the sweeps of the paper, of the report, and of the demo's scale.

Low capacity is the strongest limit of a sweep, high the weakest, mid the one in the middle. The paper says of none of
its rows which coefficient it has; the ends of its sweep (appendix A) are taken.
"""

from dataclasses import dataclass
from typing import Any, Literal

Scale = Literal["paper", "report", "demo"]
Family = Literal["sparse", "noisy", "discrete"]
FAMILIES: tuple[Family, ...] = ("sparse", "noisy", "discrete")

_FIELD: dict[Family, str] = {"sparse": "lambda_l1", "noisy": "beta", "discrete": "codebook_size"}
_SWEEPS: dict[Scale, dict[Family, tuple[float, ...]]] = {
    "paper": {
        "sparse": (0.4, 0.1, 0.08, 0.06, 0.05, 0.04, 0.02, 0.01),
        "noisy": (5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5, 5e-6, 1e-6),
        "discrete": (16, 1024, 4096, 32768),
    },
    "report": {"sparse": (0.5, 0.1), "noisy": (0.01, 0.001), "discrete": (16, 64)},
    # Found for 112-pixel clips, EfficientNet's states and 32 latent dimensions: from next to no effect of the latents
    # to no further gain.
    "demo": {
        "sparse": (1e-1, 1e-2, 1e-3, 1e-4),
        "noisy": (3e-3, 3e-4, 3e-5, 3e-6),
        "discrete": (16, 64, 256, 1024),
    },
}
_ALSO: dict[Scale, dict[Family, dict[str, Any]]] = {
    "paper": {},
    "report": {"sparse": {"hinge": "norm"}},
    # lambda_v and re-seeding as `benchmarks.demo --sweep` found best.
    "demo": {"sparse": {"lambda_v": 0.1}, "discrete": {"reset_after": 480}},
}


@dataclass(frozen=True)
class Strength:
    """A bottleneck at one strength: `settings` are fields of `model.bottleneck`; `rank` counts from the strongest
    limit."""

    family: Family
    rank: int
    value: float
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """As in `lambda_l1 = 0.01`."""
        return f"{_FIELD[self.family]} = {self.value:g}"


def scale_of(recipe: str) -> Scale:
    """Whose sweep goes with a recipe: the paper's and the report's have their own, all others the demo's."""
    return "paper" if recipe.startswith("paper") else "report" if recipe.startswith("report") else "demo"


def sweep(scale: Scale, family: Family) -> list[Strength]:
    """All strengths of a family, the strongest limit (lowest capacity) first."""
    found = []
    for rank, value in enumerate(_SWEEPS[scale][family]):
        number = int(value) if family == "discrete" else float(value)
        also = _ALSO[scale].get(family, {})
        found.append(Strength(family, rank, value, {"kind": family, _FIELD[family]: number, **also}))
    return found


def at(scale: Scale, family: Family, capacity: str) -> Strength:
    """The strength of `low`, `mid` or `high` capacity."""
    every = sweep(scale, family)
    return {"low": every[0], "mid": every[len(every) // 2], "high": every[-1]}[capacity]
