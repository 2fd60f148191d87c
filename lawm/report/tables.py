"""Numbers as text, results as tables, and tables on the terminal."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from lawm.evaluation import Measured, Result
from lawm.report.sections import Cell, Estimate, Headlines, Section, Table, Text
from lawm.report.summary import verdict_sections


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


def interval_text(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{format_number(low)}, {format_number(high)}]"


def format_cell(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        return f"{format_number(cell.value)} {interval_text(cell.low, cell.high)}"
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else format_number(cell)


# ---------------------------------------------------------------- results
def results_table(title: str, results: Sequence[Result], caption: str = "") -> Table:
    """Results as a table: value, 95 % interval, clips and videos, unit; data, step and seed in columns of their own
    where there are several, else in the caption.

    Rows keep their order. An arrow says which way is better; a result with a non-empty `control` is marked as one.
    """
    shared, several = [], []
    for name, column in (("dataset", "Data"), ("step", "Step"), ("seed", "Seed")):
        found = {getattr(result, name) for result in results}
        if len(found) > 1:
            several.append((name, column))
        elif found and name != "seed":
            shared.append(f"{column}: {found.pop()}.")
    rows: list[list[Cell]] = []
    for result in results:
        arrow = {"lower": "↓ ", "higher": "↑ ", "": ""}[result.better]
        estimate = Estimate(result.value, result.low, result.high)
        rows.append([arrow + result.name, estimate, result.n, result.videos, result.unit])
        rows[-1] += [getattr(result, name) for name, _ in several]
    columns = ["Measure", "Value [95 %]", "Clips", "Videos", "Unit", *(column for _, column in several)]
    controls = frozenset(i for i, result in enumerate(results) if result.control)
    said = [*shared, "Intervals resample videos.", *notes_of(results), *([caption] if caption else [])]
    return Table(title, columns, rows, controls, " ".join(said))


def notes_of(results: Sequence[Result]) -> list[str]:
    """Each note once, with the figures that it is about."""
    about: dict[str, list[str]] = {}
    for result in results:
        for note in filter(None, result.note.split("; ")):
            about.setdefault(note, []).append(result.name)
    return [f"{_listed(names)}: {note}." for note, names in about.items()]


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


ARROWS = "↓ less is better, ↑ more is better; · a control: what the figure would be without what it claims to measure."


def reading_table(results: Sequence[Result]) -> Table:
    """What the figures mean: what the landmark says, which figure they have to be read with."""
    rows: list[list[Cell]] = []
    for result in {result.name: result for result in results}.values():
        words = [result.one] if result.one else []
        words += [f"control: {result.control}"] if result.control else []
        words += [f"read it with {result.checked_by}"] if result.checked_by else []
        if words:
            rows.append([result.name, "; ".join(words)])
    return Table("How to read them", ["Measure", "What it says"], rows, caption=ARROWS)


def omissions_text(measured: Measured) -> Text | None:
    """What was not measured, by reason; clips that were refused."""
    about: dict[str, list[str]] = {}
    for omission in measured.omitted:
        about.setdefault(omission.reason, []).append(omission.name)
    parts = [f"Not measured: {', '.join(dict.fromkeys(names))}: {reason}." for reason, names in about.items()]
    parts += [f"{note}." for note in measured.notes]
    return Text("What is not there", "\n\n".join(parts)) if parts else None


def results_sections(title: str, measured: Measured) -> list[Section]:
    """The verdict, the results, what is not there, and how to read the figures; a verdict for each data set."""
    return [*verdict_sections(measured.results), *figures_sections(title, measured)]


def figures_sections(title: str, measured: Measured) -> list[Section]:
    """The same without the verdict."""
    sections: list[Section] = [results_table(title, measured.results)]
    missing = omissions_text(measured)
    return [*sections, *([missing] if missing else []), reading_table(measured.results)]


# ---------------------------------------------------------------- the terminal
def plain(text: str) -> RichText:
    """Text as it is: nothing in it is markup, and control characters do not reach the terminal."""
    return RichText("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


_PLAIN: dict[str, Any] = dict.fromkeys(("title_justify", "caption_justify"), "left") | {
    "box": SIMPLE_HEAD,
    "pad_edge": False,
    "padding": (0, 1, 0, 0),
}
ESTIMATE_WIDTH = 23
"""Columns of the terminal that `0.726 [0.709, 0.741]` and its like need on one line."""


def print_table(table: Table, console: Console | None = None) -> None:
    """The table on the terminal; controls are dimmed and marked with a dot. Names, the first column, stay whole."""
    shown = RichTable(title=plain(table.title), caption=plain(table.caption), **_PLAIN)
    numeric = numeric_columns(table)
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        texts = [len(plain(format_cell(cell))) for cell in cells]
        least = max(texts, default=0) + 2 if i == 0 else None  # names stay whole
        if any(isinstance(cell, Estimate) for cell in cells):
            least = min(max(texts), ESTIMATE_WIDTH)
        whole = i == 0 or all(isinstance(cell, int) for cell in cells)
        justify: Any = "right" if i in numeric else "left"
        shown.add_column(plain(column), justify=justify, overflow="fold", no_wrap=whole, min_width=least)
    for i, row in enumerate(table.rows):
        first, *others = (plain(format_cell(cell)) for cell in row)
        control = i in table.controls
        shown.add_row(RichText("· ") + first if control else first, *others, style="dim" if control else None)
    (console or Console()).print(shown)


def print_sections(sections: Sequence[Section], console: Console | None = None) -> None:
    """Texts and tables on the terminal, one after another."""
    console = console or Console()
    for section in sections:
        if isinstance(section, Table):
            print_table(section, console)
        elif isinstance(section, Headlines):
            print_headlines(section, console)
        elif isinstance(section, Text):
            console.print(plain(section.title), style="bold red" if section.warning else "bold")
            for part in filter(None, (part.strip() for part in section.body.split("\n\n"))):
                console.print(plain(part))
            console.print()


def print_headlines(headlines: Headlines, console: Console | None = None) -> None:
    """Key numbers on the terminal, each with its interval, its target, and whether it was reached."""
    gated = any(item.target for item in headlines.items)
    names = max((len(plain(item.name)) for item in headlines.items), default=0)
    shown = RichTable(title=plain(headlines.title), **_PLAIN)
    shown.add_column("", no_wrap=True, min_width=names)  # names stay whole; what is beside them wraps
    shown.add_column("value [95 %]", min_width=ESTIMATE_WIDTH)
    shown.add_column("n", justify="right")
    if gated:
        shown.add_column("target")
    for item in headlines.items:
        word = {None: "", True: ": reached", False: ": missed"}[item.passed]
        style = {None: "", True: "green", False: "bold red"}[item.passed]
        value = " ".join(f"{format_number(item.value)} {interval_text(item.low, item.high)} {item.unit}".split())
        row = [plain(item.name), plain(value), RichText(item.counted)]
        shown.add_row(*row, *([RichText(f"{item.target}{word}", style)] if gated else []))
    (console or Console()).print(shown)


def numeric_columns(table: Table) -> set[int]:
    columns = range(len(table.columns))
    return {i for i in columns if table.rows and all(not isinstance(row[i], str) for row in table.rows)}
