"""What a search searches: the YAML of tune_spaces/, validated; and the metrics that can be its objectives."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self

import optuna
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from lawm.cluster.evaluate import EVALUATIONS
from lawm.config import Config, ConfigError, Frozen, LawmError, override
from lawm.evaluation import SUITE
from lawm.recipes import recipe
from lawm.storage import read_bytes

Row = dict[str, Any]
"""A trial as it is kept: trial, parameters, status, reason, results by name, checkpoint, seconds."""

PLANNING = (
    "planning_error",
    "planning_error_median",
    "planning_vs_random",
    "planning_vs_no_action",
    "planning_vs_mean_action",
    "plans_outside_labels",
    "planned_cost_vs_true_actions",
    "plan_confidence",
    "seconds_per_plan",
)
METRICS: dict[str, str] = {
    figure.name: name
    for name, evaluation in SUITE.items()
    for figure in evaluation.figures
    if not figure.control and figure.needs not in ("deterministic", "unconstrained")  # a search has no second model
} | dict.fromkeys(PLANNING, "planning")
"""What can be an objective, and the evaluation that gives it."""


# ---------------------------------------------------------------- the space
class FloatRange(Frozen):
    type: Literal["uniform", "loguniform"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _check_range(self, self.type == "loguniform")

    def distribution(self) -> optuna.distributions.BaseDistribution:
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.type == "loguniform")

    def ends(self) -> list[Any]:
        return [self.low, self.high]


class IntRange(Frozen):
    """Whole numbers from low to high, both included."""

    type: Literal["int", "logint"]
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _check_range(self, self.type == "logint")

    def distribution(self) -> optuna.distributions.BaseDistribution:
        return optuna.distributions.IntDistribution(self.low, self.high, log=self.type == "logint")

    def ends(self) -> list[Any]:
        return [self.low, self.high]


class Choice(Frozen):
    type: Literal["categorical"]
    values: tuple[bool | int | float | str, ...] = Field(min_length=2)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        return optuna.distributions.CategoricalDistribution(self.values)

    def ends(self) -> list[Any]:
        return list(self.values)


def _check_range(self: Any, log: bool) -> Any:
    if not self.low < self.high:
        raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
    if log and self.low <= 0:
        raise ValueError(f"low = {self.low:g}, and the logarithm needs it above 0")
    return self


Dimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]
_DIMENSIONS: dict[str, type[BaseModel]] = {
    "uniform": FloatRange, "loguniform": FloatRange, "int": IntRange, "logint": IntRange, "categorical": Choice,
}  # fmt: skip


class Objective(Frozen):
    metric: str
    mode: Literal["min", "max"]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.metric not in METRICS:
            raise ValueError(f"no metric {self.metric!r}; there are {', '.join(METRICS)}")
        return self


class Space(Frozen):
    """What is searched, for what, and how long. Written as YAML (see tune_spaces/)."""

    recipe: str | None = None
    """The recipe that all trials start from; None: the command's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields of the config that differ from the recipe in all trials, as --set takes them."""
    space: dict[str, Dimension] = Field(min_length=1)
    """The fields that are searched, by dotted name."""
    objectives: tuple[Objective, ...] = Field(min_length=2, max_length=2)
    evaluations: tuple[Literal["capacity", "leakage", "cycle"], ...] = ("capacity", "leakage", "cycle")
    """Evaluations whose results are kept beside the objectives."""
    trials: int = Field(20, ge=1)
    max_concurrent: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    points: tuple[dict[str, Any], ...] = ()
    """Parameters that are tried first; each names every searched field."""
    infeasible: float = Field(1e3, gt=0, allow_inf_nan=False)
    """What the search is told of a trial without a finite value (negative where more is better)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [o.metric for o in self.objectives]
        if len({*names}) < len(names):
            raise ValueError(f"objectives: {names[0]} is named twice")
        if both := sorted({*self.space} & {*self.set}):
            raise ValueError(f"{both[0]} stands in both `set` and `space`")
        for point in self.points:
            if {*point} != {*self.space}:
                raise ValueError(f"points: {point} has to name {', '.join(self.space)} and nothing else")
            for name, value in point.items():
                found = self.space[name]
                inside = value in found.values if isinstance(found, Choice) else _within(value, found.low, found.high)
                if not inside:
                    raise ValueError(f"points: {name} = {value!r} lies outside of the space")
        return self

    @property
    def needs_controller(self) -> bool:
        return any(METRICS[o.metric] in ("planning", "control") for o in self.objectives)

    @property
    def needs_planning(self) -> bool:
        return any(METRICS[o.metric] == "planning" for o in self.objectives)

    @property
    def which(self) -> list[str]:
        """The evaluations that a trial runs, besides planning."""
        wanted = {*self.evaluations} | {METRICS[o.metric] for o in self.objectives}
        return [name for name in EVALUATIONS if name in wanted]

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: dimension.distribution() for name, dimension in self.space.items()}

    def told(self, row: Row) -> dict[str, float]:
        """The objectives as Optuna hears them: a finite penalty for all of them where the trial is infeasible."""
        if row["status"] == "finished":
            return {o.metric: float(row["results"][o.metric]["value"]) for o in self.objectives}
        return {o.metric: self.infeasible if o.mode == "min" else -self.infeasible for o in self.objectives}


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


class _AsWritten(yaml.SafeLoader):
    """YAML in which numbers, true, false and null are those of JSON (and of YAML 1.2), and all else is text: `off`,
    0001, 2024-01-31 and 12:30 stay what was written, and 1e-5 is a number."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


_POWER = r"(?:[eE][-+]?[0-9]+)?"
_NUMBER = r"[-+]?(?:0|[1-9][0-9]*)"
for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", _NUMBER, list("-+0123456789")),
    ("float", rf"{_NUMBER}(?:\.[0-9]*)?{_POWER}|[-+]?\.[0-9]+{_POWER}|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _AsWritten.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_space(uri: str) -> Space:
    """The space in a YAML file. Raises LawmError: not there, not YAML, unknown fields (with the valid ones)."""
    try:
        data = yaml.load(read_bytes(uri), _AsWritten)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise LawmError(f"{uri}{where}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(data, dict):
        raise LawmError(f"{uri}: expected a mapping with the fields {', '.join(Space.model_fields)}")
    try:
        return Space.model_validate(data)
    except ValidationError as error:
        raise LawmError(f"{uri}: " + "; ".join(_said(e) for e in error.errors()[:3])) from None


_OTHERS_BOOLEANS = frozenset(("y", "n", "yes", "no", "on", "off"))


def unquoted_words(uri: str) -> list[str]:
    """Unquoted words of a space that are text here, and truth values for programs that read YAML 1.1 (off, no, y)."""

    def words(node: Any) -> Iterator[str]:
        if isinstance(node, yaml.ScalarNode):
            if node.style is None and node.value.lower() in _OTHERS_BOOLEANS:
                yield node.value
        elif node is not None:
            for part in node.value:
                for one in part if isinstance(part, tuple) else (part,):
                    yield from words(one)

    return list(dict.fromkeys(words(yaml.compose(read_bytes(uri), _AsWritten))))


def _said(error: Any) -> str:
    path = [p for p in error["loc"] if not (len(error["loc"]) > 2 and p in _DIMENSIONS)]
    where, what = ".".join(map(str, path)), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        model: type[BaseModel] = Space
        if path[0] == "objectives":
            model = Objective
        elif path[0] == "space":
            model = next(_DIMENSIONS[p] for p in error["loc"] if p in _DIMENSIONS)
        return f"unknown field {where}. Valid fields: {', '.join(model.model_fields)}"
    if error["type"] in ("missing", "value_error") or isinstance(error["input"], dict | list):
        return f"{where}: {what}" if where else what
    return f"{where}: {what} (got {error['input']!r})"[:300]


def base_config(space: Space, given: str) -> Config:
    """The config that all trials share: the space's recipe (or the one given) and its `set`. Raises ConfigError."""
    config = recipe(space.recipe or given)
    for path, value in space.set.items():
        config = _override(config, path, value, "set")
    return config


def _override(config: Config, path: str, value: Any, where: str) -> Config:
    try:
        return override(config, path, value, typed=False)
    except ConfigError as error:
        said = str(error).removeprefix("--set ")
        if isinstance(value, bool | int | float):
            with suppress(ConfigError):
                override(config, path, str(value), typed=False)
                said += f". Text is expected there: quote it, as in '{value}'"
        raise ConfigError(f"{where}: {said}") from None


def with_parameters(config: Config, parameters: dict[str, Any]) -> Config:
    """A trial's config. Raises ConfigError."""
    for path, value in parameters.items():
        config = _override(config, path, value, "space")
    return config
