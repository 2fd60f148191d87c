"""A table as text for other programs: CSV, Markdown, LaTeX."""

import csv
import io
from collections.abc import Sequence

from lawm.report.sections import Cell, Estimate, Table
from lawm.report.tables import format_cell, numeric_columns

# Of what tables hold beyond ASCII, what LaTeX sets in text only where a font happens to have it.
_SYMBOLS = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "·": r"$\cdot$", "★": r"$\star$", "±": r"$\pm$", "²": r"$^2$"}


def to_csv(table: Table) -> str:
    """The table with a header; an estimate fills three columns (its value, `NAME low`, `NAME high`), unrounded."""
    columns = range(len(table.columns))
    spans = {i for i in columns if any(isinstance(row[i], Estimate) for row in table.rows)}
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    named = ((name, f"{name} low", f"{name} high") if i in spans else (name,) for i, name in enumerate(table.columns))
    writer.writerow([part for parts in named for part in parts])
    for row in table.rows:
        writer.writerow([part for i in columns for part in _parts(row[i], i in spans)])
    return sink.getvalue()


def _parts(cell: Cell, spans: bool) -> tuple[str | float | None, ...]:
    if isinstance(cell, Estimate):
        return cell.value, cell.low, cell.high
    return (cell, None, None) if spans else (cell,)


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown, under its title, its caption below."""
    numeric = numeric_columns(table)

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["---:" if i in numeric else "---" for i in range(len(table.columns))]
    rows = [[_for_markdown(format_cell(cell)) for cell in row] for row in table.rows]
    for i in table.controls:
        rows[i][0] = f"· {rows[i][0]}"
    body = [line([_for_markdown(name) for name in table.columns]), line(rule), *map(line, rows)]
    parts = [f"### {_for_markdown(table.title)}", "\n".join(body), _for_markdown(table.caption)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _for_markdown(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    for character in "\\`*_<>|#~":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def to_latex(table: Table) -> str:
    r"""The table for `\usepackage{booktabs}`, with its title and caption; nothing in it is a command."""
    import pandas as pd

    numeric = numeric_columns(table)
    rows = [[format_cell(cell) for cell in row] for row in table.rows]
    for i in table.controls:
        rows[i][0] = f"· {rows[i][0]}"
    aligned = "".join("r" if i in numeric else "l" for i in range(len(table.columns)))
    frame = pd.DataFrame(rows, columns=pd.Index(list(table.columns)))
    lines = frame.to_latex(index=False, escape=True, column_format=aligned).splitlines()
    # After \\ a bracket would be read as the space to leave.
    body = "\n".join("{}" + line if line.lstrip().startswith("[") else line for line in lines)
    caption = pd.DataFrame([[" ".join(f"{table.title}. {table.caption}".split())]]).to_latex(
        index=False, header=False, escape=True
    )
    said = next(line.removesuffix(r" \\") for line in caption.splitlines() if line.endswith(r"\\"))
    text = f"\\begin{{table}}\n\\centering\n{body}\n\\caption{{{said}}}\n\\end{{table}}\n"
    for character, command in _SYMBOLS.items():
        text = text.replace(character, command)
    return text
