"""Tables, plots and pictures as one HTML file that needs nothing else, and the same tables for the terminal.

A report is a list of sections, each a frozen value: Text, Headlines, Table, Curves, Plot, Pictures, Details. All text
is escaped; images are embedded; the page's own policy forbids it to load anything.
"""

import base64
import dataclasses
import datetime
import html
import importlib.metadata
import io
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from lawm import __version__, storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lawm.evaluation import Result


# ---------------------------------------------------------------- sections
@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, as one cell of a table."""

    value: float
    low: float
    high: float


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
class Plot:
    """A finished picture as PNG bytes; `dark` replaces it on a dark page."""

    title: str
    png: bytes
    dark: bytes | None = None
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A grid of images uint8 [H, W, 3] or [H, W]; None leaves a cell empty. `width`: pixels on the page."""

    title: str
    rows: Sequence[Sequence[np.ndarray | None]]
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    width: int = 112
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Details:
    """Named facts (nested mappings are flattened to dotted names) or verbatim text, folded away."""

    title: str
    facts: Mapping[str, Any] | str
    open: bool = False


Section = Text | Headlines | Table | Curves | Plot | Pictures | Details


def results_table(title: str, results: "Sequence[Result]", caption: str = "") -> Table:
    """Results as a table: value, 95 % interval, n, unit, data, step; a seed column where there are several.

    Rows keep their order; a result with a non-empty `control` is marked as one and says which.
    """
    several = len({result.seed for result in results}) > 1
    rows: list[list[Cell]] = []
    for result in results:
        name = f"{result.name} ({result.control})" if result.control else result.name
        estimate = Estimate(result.value, result.low, result.high)
        rows.append([name, estimate, result.n, result.unit, result.dataset, result.step, *([result.seed] * several)])
    columns = ["Measure", "Value [95 %]", "n", "Unit", "Data", "Step", *(["Seed"] * several)]
    controls = frozenset(i for i, result in enumerate(results) if result.control)
    return Table(title, columns, rows, controls, caption)


def machine() -> dict[str, str]:
    """Where a run took place: system, processor, cores, memory, accelerators, and the versions that matter."""
    facts = {"system": platform.platform(), "processor": platform.processor() or platform.machine()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        facts["processor"] = names[0] if names else facts["processor"]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["cores"] = str(usable)
    facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    torch = sys.modules.get("torch")  # asking must not cost an import of torch
    if torch is not None:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["GPU"] = ", ".join(gpus) or "none"
    facts["python"] = platform.python_version()
    facts["lawm"] = __version__
    for package in ("torch", "ray", "timm", "av", "numpy", "pyarrow", "optuna"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def command_line() -> str:
    """The command that this process was started with, as it could be typed again."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    started = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    return shlex.join([*started, *sys.argv[1:]])


# ---------------------------------------------------------------- numbers as text
def format_number(value: Any) -> str:
    """Three significant digits; whole numbers in full; '-' for what is not known or not finite."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if value is None or not math.isfinite(value):
        return "-"
    value = float(value)
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-3 <= size < 1e6:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(size)))}f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{format_number(low)}, {format_number(high)}]"


def format_cell(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        return f"{format_number(cell.value)} {_interval(cell.low, cell.high)}"
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else format_number(cell)


# ---------------------------------------------------------------- the terminal
_PLAIN: dict[str, Any] = dict.fromkeys(("title_justify", "caption_justify"), "left") | {
    "box": SIMPLE_HEAD,
    "pad_edge": False,
}


def print_table(table: Table, console: Console | None = None) -> None:
    """The table on the terminal; controls are dimmed and marked with a dot."""
    shown = RichTable(title=RichText(table.title), caption=RichText(table.caption), **_PLAIN)
    numeric = _numeric_columns(table)
    for i, column in enumerate(table.columns):
        shown.add_column(
            RichText(column), justify="right" if i in numeric else "left", overflow="fold", no_wrap=i in numeric
        )
    for i, row in enumerate(table.rows):
        first, *others = (RichText(format_cell(cell)) for cell in row)
        control = i in table.controls
        shown.add_row(RichText("· ") + first if control else first, *others, style="dim" if control else None)
    (console or Console()).print(shown)


def print_headlines(headlines: Headlines, console: Console | None = None) -> None:
    """Key numbers on the terminal, each with its interval, its target, and whether it was reached."""
    gated = any(item.target for item in headlines.items)
    shown = RichTable(title=RichText(headlines.title), **_PLAIN)
    for column in ("", "value [95 %]", "n", *(["target", ""] if gated else [])):
        shown.add_column(column, justify="right" if column == "n" else "left", no_wrap=bool(column))
    for item in headlines.items:
        word = {None: "", True: "reached", False: "missed"}[item.passed]
        style = {None: "", True: "green", False: "bold red"}[item.passed]
        value = " ".join(f"{format_number(item.value)} {_interval(item.low, item.high)} {item.unit}".split())
        row = [RichText(item.name), RichText(value), RichText("" if item.n is None else f"{item.n:,}")]
        shown.add_row(*row, *([RichText(item.target), RichText(word, style)] if gated else []))
    (console or Console()).print(shown)


def _numeric_columns(table: Table) -> set[int]:
    columns = range(len(table.columns))
    return {i for i in columns if table.rows and all(not isinstance(row[i], str) for row in table.rows)}


# ---------------------------------------------------------------- plots
_LIGHT: dict[str, Any] = {
    "ink": "#1f2328", "muted": "#656d76", "grid": "#dfe3e8", "paper": "#ffffff",
    "lines": ("#2563c9", "#c8500a", "#0f8062", "#8a3fb0", "#a3700a", "#b3285f", "#4a6b85"),
}  # fmt: skip
_DARK: dict[str, Any] = {
    "ink": "#e6e9ed", "muted": "#9aa4af", "grid": "#343b44", "paper": "#191d22",
    "lines": ("#74a7ff", "#ff9a5c", "#4fc9a4", "#cf8ff0", "#e2b24a", "#ff7fae", "#9dbdd6"),
}  # fmt: skip
_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))  # colours come round again in another style


def _axes(theme: Mapping[str, Any], x_label: str, y_label: str, height: float = 3.4) -> "tuple[Figure, Axes]":
    """A themed figure of its own: pyplot's global state is left alone, and nothing is left open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), dpi=144, facecolor=theme["paper"], layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(theme["paper"])
    axes.grid(True, color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme["grid"])
    axes.tick_params(which="both", colors=theme["muted"], labelsize=9, length=0)
    axes.set_xlabel(x_label, color=theme["muted"], fontsize=9, parse_math=False)
    axes.set_ylabel(y_label, color=theme["muted"], fontsize=9, parse_math=False)
    return figure, axes


def _legend(axes: "Axes", handles: Sequence[Any], names: Sequence[str], theme: Mapping[str, Any]) -> None:
    # matplotlib leaves out names that begin with an underscore.
    shown = [f" {name}" if name.startswith("_") else name for name in names]
    legend = axes.legend(handles, shown, frameon=False, fontsize=9, labelcolor=theme["ink"])
    for text in legend.get_texts():
        text.set_parse_math(False)


def _png(figure: "Figure") -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", facecolor=figure.get_facecolor())
    return sink.getvalue()


def curves_plot(curves: Curves, dark: bool = False) -> bytes:
    """Curves as PNG bytes."""
    theme = _DARK if dark else _LIGHT
    figure, axes = _axes(theme, curves.x_label, curves.y_label)
    handles = []
    for i, series in enumerate(curves.series):
        colour = theme["lines"][i % len(theme["lines"])]
        style = _STYLES[1] if series.dashed else _STYLES[i // len(theme["lines"]) % len(_STYLES)]
        x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
        y = np.where(np.isfinite(y) & ((y > 0) | (not curves.log_y)), y, np.nan)
        marker = "o" if np.isfinite(y).sum() < 20 else None
        handles += axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, marker=marker, markersize=4)
        if series.low is not None and series.high is not None:
            axes.fill_between(x, series.low, series.high, color=colour, alpha=0.18, linewidth=0)
    if curves.log_y and any(np.isfinite(line.get_ydata()).any() for line in handles):
        axes.set_yscale("log")
    if handles:
        _legend(axes, handles, [series.name for series in curves.series], theme)
    return _png(figure)


def pareto_set(x: Sequence[float], y: Sequence[float], minimize: tuple[bool, bool] = (True, True)) -> list[int]:
    """Indices of the points that no other point beats in one objective without losing in the other, by x.

    Of equal points all are kept; points with a value that is not finite are left out.
    """
    signs = [1.0 if smaller else -1.0 for smaller in minimize]
    points = [(signs[0] * a, signs[1] * b, i) for i, (a, b) in enumerate(zip(x, y, strict=True))]
    points = sorted(point for point in points if math.isfinite(point[0]) and math.isfinite(point[1]))
    kept: list[tuple[float, float, int]] = []
    for point in points:
        if not kept or point[1] < kept[-1][1] or point[:2] == kept[-1][:2]:
            kept.append(point)
    return [point[2] for point in kept]


def pareto_plot(
    x: Sequence[float],
    y: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    labels: Sequence[str] = (),
    minimize: tuple[bool, bool] = (True, True),
    dark: bool = False,
) -> bytes:
    """Two objectives of a search, a point a trial, as PNG bytes; the Pareto set is joined and carries its `labels`."""
    theme = _DARK if dark else _LIGHT
    figure, axes = _axes(theme, x_label, y_label, height=4.2)
    best = pareto_set(x, y, minimize)
    known = [i for i, (a, b) in enumerate(zip(x, y, strict=True)) if math.isfinite(a) and math.isfinite(b)]
    rest = [i for i in known if i not in set(best)]
    handles: list[Any] = []
    names: list[str] = []
    if rest:
        handles.append(axes.scatter([x[i] for i in rest], [y[i] for i in rest], s=26, color=theme["muted"], alpha=0.7))
        names.append("other trials")
    if best:
        handles += axes.plot([x[i] for i in best], [y[i] for i in best], "o-", color=theme["lines"][0], linewidth=1.5)
        names.append("Pareto set")
        place: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 8, "color": theme["ink"]}
        for i in best if labels else ():
            axes.annotate(labels[i], (x[i], y[i]), parse_math=False, **place)
    if len(known) < len(x):
        handles += axes.plot([], [], " ")
        names.append(f"{len(x) - len(known)} of {len(x)} trials gave no value for both")
    if handles:
        _legend(axes, handles, names, theme)
    return _png(figure)


# ---------------------------------------------------------------- HTML
def _esc(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _image_png(image: np.ndarray) -> bytes:
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"a picture is {image.dtype} {image.shape}; expected uint8 [H, W, 3] or [H, W]")
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _caption(text: str) -> str:
    return f'<p class="caption">{_esc(text)}</p>' if text else ""


def _plot_html(plot: Plot) -> str:
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(plot.dark)}">' if plot.dark else ""
    image = f'<picture>{source}<img class="plot" src="{_data_uri(plot.png)}" alt="{_esc(plot.title)}"></picture>'
    return f'<section class="half"><h2>{_esc(plot.title)}</h2>{image}{_caption(plot.caption)}</section>'


def _table_html(table: Table) -> str:
    numeric = _numeric_columns(table)
    cells = "".join(
        f'<th scope="col"{" class=num" if i in numeric else ""}>{_esc(c)}</th>' for i, c in enumerate(table.columns)
    )
    body = []
    for i, row in enumerate(table.rows):
        control = i in table.controls
        mark = ' <span class="tag">control</span>' if control else ""
        line = []
        for j, cell in enumerate(row):
            if isinstance(cell, Estimate):
                text = f'<b>{format_number(cell.value)}</b> <span class="ci">{_interval(cell.low, cell.high)}</span>'
            else:
                text = _esc(format_cell(cell))
            line.append(f"<td{' class=num' if j in numeric else ''}>{text}{mark if j == 0 else ''}</td>")
        body.append(f"<tr{' class=control' if control else ''}>{''.join(line)}</tr>")
    return (
        f'<section><h2>{_esc(table.title)}</h2><div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{_caption(table.caption)}</section>"
    )


def _headlines_html(headlines: Headlines) -> str:
    cards = []
    for item in headlines.items:
        state = {None: "", True: " reached", False: " missed"}[item.passed]
        facts = [_interval(item.low, item.high), "" if item.n is None else f"n = {item.n:,}"]
        gate = ""
        if item.target:
            gate = (
                f'<p class="gate">{"&#10003; reached" if item.passed else "&#10007; missed"}: {_esc(item.target)}</p>'
            )
        cards.append(
            f'<div class="card{state}"><p class="name">{_esc(item.name)}</p>'
            f'<p class="value">{format_number(item.value)} <span class="unit">{_esc(item.unit)}</span></p>'
            f'<p class="ci">{_esc(", ".join(filter(None, facts)))}</p>{gate}{_caption(item.note)}</div>'
        )
    return f'<section><h2>{_esc(headlines.title)}</h2><div class="cards">{"".join(cards)}</div></section>'


def _pictures_html(pictures: Pictures) -> str:
    columns, labels = list(pictures.column_labels), list(pictures.row_labels)
    head = ""
    if columns:
        corner = "<td></td>" if labels else ""
        head = f"<thead><tr>{corner}{''.join(f'<th scope=col>{_esc(c)}</th>' for c in columns)}</tr></thead>"
    body = []
    for i, row in enumerate(pictures.rows):
        label = f"<th scope=row>{_esc(labels[i])}</th>" if labels else ""
        cells = []
        for j, image in enumerate(row):
            if image is None:
                cells.append("<td></td>")
                continue
            name = ", ".join(part for part in (labels[i] if labels else "", columns[j] if columns else "") if part)
            sharp = " class=pixels" if np.asarray(image).shape[1] < pictures.width else ""
            source = _data_uri(_image_png(image))
            cells.append(
                f'<td><img{sharp} src="{source}" width="{pictures.width}" alt="{_esc(name or "picture")}"></td>'
            )
        body.append(f"<tr>{label}{''.join(cells)}</tr>")
    return (
        f'<section><h2>{_esc(pictures.title)}</h2><div class="scroll"><table class="pictures">{head}'
        f"<tbody>{''.join(body)}</tbody></table></div>{_caption(pictures.caption)}</section>"
    )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def _details_html(details: Details) -> str:
    if isinstance(details.facts, str):
        inside = f"<pre>{_esc(details.facts)}</pre>"
    else:
        rows = "".join(f"<tr><th scope=row>{_esc(k)}</th><td>{_esc(v)}</td></tr>" for k, v in _flat(details.facts))
        inside = f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
    is_open = " open" if details.open else ""
    return f"<section><details{is_open}><summary>{_esc(details.title)}</summary>{inside}</details></section>"


def _section_html(section: Section) -> str:
    match section:
        case Text():
            paragraphs = "".join(f"<p>{_esc(part.strip())}</p>" for part in section.body.split("\n\n") if part.strip())
            kind = ' class="warning"' if section.warning else ""
            return f"<section{kind}><h2>{_esc(section.title)}</h2>{paragraphs}</section>"
        case Headlines():
            return _headlines_html(section)
        case Table():
            return _table_html(section)
        case Curves():
            light, dark = curves_plot(section), curves_plot(section, dark=True)
            return _plot_html(Plot(section.title, light, dark, section.caption))
        case Plot():
            return _plot_html(section)
        case Pictures():
            return _pictures_html(section)
        case Details():
            return _details_html(section)


_STYLE = """
:root { --ink:#1f2328; --muted:#656d76; --grid:#dfe3e8; --paper:#fff; --page:#f5f6f8; --accent:#2563c9;
  --good:#0a6b4d; --bad:#b3261e; --tint:#eef0f3; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ed; --muted:#9aa4af; --grid:#343b44; --paper:#191d22;
  --page:#111418; --accent:#74a7ff; --good:#4fc9a4; --bad:#ff8b82; --tint:#232930; } }
* { box-sizing:border-box; } p { margin:.3rem 0; }
body { margin:0 auto; max-width:76rem; padding:1.5rem 1rem 3rem; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif; }
h1 { font-size:1.7rem; line-height:1.25; margin:0; } h2 { font-size:1.05rem; margin:0 0 .7rem; }
.subtitle, .caption, footer, .ci, .unit { color:var(--muted); } .caption, footer { font-size:.87rem; }
main { display:grid; grid-template-columns:repeat(2,minmax(0,1fr)); gap:1rem; margin:1.2rem 0; }
section { grid-column:1/-1; background:var(--paper); border:1px solid var(--grid); border-radius:8px;
  padding:1rem 1.1rem; }
.half { grid-column:span 1; } @media (max-width:52rem) { .half { grid-column:1/-1; } }
.warning { border-left:4px solid var(--bad); } .scroll { overflow-x:auto; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:.32rem .9rem .32rem 0; vertical-align:top; }
thead th { color:var(--muted); font-weight:600; border-bottom:1px solid var(--grid); }
tbody tr + tr > * { border-top:1px solid var(--grid); }
.num { text-align:right; white-space:nowrap; }
.control { background:var(--tint); color:var(--muted); } .control b { font-weight:500; }
.tag { font-size:.75rem; border:1px solid var(--muted); border-radius:99px; padding:0 .45rem; margin-left:.4rem; }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(13.5rem,1fr)); gap:.8rem; }
.card { border:1px solid var(--grid); border-left:4px solid var(--muted); border-radius:6px; padding:.6rem .8rem; }
.card.reached { border-left-color:var(--good); } .card.missed { border-left-color:var(--bad); }
.card p { margin:0; } .card .name { color:var(--muted); font-size:.9rem; }
.card .value { font-size:1.55rem; font-weight:650; }
.card .unit { font-size:.9rem; font-weight:400; } .card .gate { font-weight:600; font-size:.9rem; }
.reached .gate { color:var(--good); } .missed .gate { color:var(--bad); }
.plot { width:100%; height:auto; display:block; }
.pictures td, .pictures th { padding:2px; border:0; font-weight:400; font-size:.85rem; color:var(--muted);
  vertical-align:middle; text-align:center; }
.pictures tbody th { text-align:right; padding-right:.6rem; white-space:nowrap; } .pictures img { display:block; }
.pixels { image-rendering:pixelated; } .facts { font-size:.87rem; } .facts th { font-weight:500; color:var(--muted); }
.facts td { overflow-wrap:anywhere; } pre { overflow-x:auto; } summary { cursor:pointer; font-weight:600; }
"""


def render_report(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The report as one HTML5 document."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    below = f'<p class="subtitle">{_esc(subtitle)}</p>' if subtitle else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_esc(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_esc(title)}</h1>{below}</header>\n<main>\n"
        + "\n".join(_section_html(section) for section in sections)
        + f"\n</main>\n<footer>lawm {_esc(__version__)}, written {written}</footer>\n</body>\n</html>\n"
    )


def write_report(uri: str, title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """Write the report to `uri` (local path or s3://), whole or not at all; returns `uri`. Raises LawmError."""
    storage.write_bytes(uri, render_report(title, sections, subtitle).encode("utf-8"))
    return uri
