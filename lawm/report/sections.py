"""What a report is made of: sections, each a frozen value: Text, Headlines, Table, Curves, Points, Bars, Plot,
Pictures, Films, Details."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (None: there is none), as one cell of a table."""

    value: float
    low: float | None
    high: float | None


Cell = str | int | float | Estimate | None


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs of plain text, separated by empty lines; `warning` makes them stand out."""

    title: str
    body: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Headline:
    """One key number. With `at_most` and/or `at_least` it is a gate that is passed or missed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    videos: int | None = None
    """Of how many videos the `n` clips or episodes are."""

    @property
    def counted(self) -> str:
        """`n`, and of how many videos; '' without."""
        videos = "" if self.videos is None else f" of {self.videos:,} videos"
        return "" if self.n is None else f"{self.n:,}{videos}"

    @property
    def passed(self) -> bool | None:
        """None without a target; a value that is not finite misses any target."""
        if self.at_most is None and self.at_least is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        return math.isfinite(self.value) and above and below

    @property
    def target(self) -> str:
        """The target in words, '' without one."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


@dataclasses.dataclass(frozen=True)
class Headlines:
    title: str
    items: Sequence[Headline]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; `controls` are the indices of rows that hold a control, which are marked."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    controls: frozenset[int] = frozenset()
    caption: str = ""

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: row {i} has {len(row)} cells, {len(self.columns)} expected")


@dataclasses.dataclass(frozen=True)
class Series:
    """A line; `low` and `high` make a band around it. Points that are not finite leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Curves:
    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log_y: bool = False
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class PointGroup:
    """Points of one colour, joined in their order where `joined`; `labels`: what each is, beside it."""

    name: str
    x: Sequence[Estimate]
    y: Sequence[Estimate]
    labels: Sequence[str] = ()
    joined: bool = True

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or len(self.labels) not in (0, len(self.x)):
            raise ValueError(f"points {self.name!r}: {len(self.x)} x, {len(self.y)} y, {len(self.labels)} labels")


@dataclasses.dataclass(frozen=True)
class Points:
    """One figure against another, each with its interval."""

    title: str
    groups: Sequence[PointGroup]
    x_label: str
    y_label: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Bars:
    """Heights at 0, 1, 2, ... (or from `start` on)."""

    title: str
    heights: Sequence[float]
    x_label: str
    y_label: str
    start: int = 0
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A finished picture as PNG bytes; `dark` replaces it on a dark page."""

    title: str
    png: bytes
    dark: bytes | None = None
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A grid of images uint8 [H, W, 3] or [H, W]; None leaves a cell empty. `width`: pixels on the page, where there is
    room; `headings`: what stands above the row of that number."""

    title: str
    rows: Sequence[Sequence[np.ndarray | None]]
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    width: int = 112
    caption: str = ""
    headings: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Film:
    """Videos that play side by side, as one: frames uint8 [F, H, W, 3] of each, F, H and W of all the same."""

    name: str
    labels: Sequence[str]
    frames: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        shapes = {np.asarray(one).shape for one in self.frames}
        if len(shapes) != 1 or len(self.labels) != len(self.frames):
            raise ValueError(f"film {self.name!r}: {len(self.labels)} labels of frames of shapes {sorted(shapes)}")


@dataclasses.dataclass(frozen=True)
class Films:
    """Short videos that play on the page, over and over; `fps`: frames a second."""

    title: str
    films: Sequence[Film]
    fps: float
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Details:
    """Named facts (nested mappings are flattened to dotted names) or verbatim text, folded away."""

    title: str
    facts: Mapping[str, Any] | str
    open: bool = False


Section = Text | Headlines | Table | Curves | Points | Bars | Plot | Pictures | Films | Details
