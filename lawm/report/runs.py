"""Results of several runs beside one another, and the differences between them, as tables."""

from collections.abc import Mapping, Sequence

from lawm.evaluation import Difference, ResultRow
from lawm.report.sections import Cell, Estimate, Table

MOST_BESIDE = 4
"""Runs that have a column each; of more, each figure of each is a row."""
_ARROWS = {"lower": "↓ ", "higher": "↑ "}


def run_labels(runs: Sequence[str]) -> dict[str, str]:
    """Run folder -> the last parts of its path, as many as tell it from the others."""
    unique = list(dict.fromkeys(runs))
    parts = {run: run.rstrip("/").split("/") for run in unique}
    for count in range(1, max(map(len, parts.values()), default=1) + 1):
        labels = {run: "/".join(own[-count:]) for run, own in parts.items()}
        if len(set(labels.values())) == len(unique):
            return labels
    return {run: run for run in unique}


def runs_table(title: str, rows: Sequence[ResultRow]) -> Table:
    """The figures of up to four runs in a column each (rows of the newest step), else a row of every figure of every
    run; with data and step where there are several."""
    labels = run_labels([row.run for row in rows])
    several = len({row.dataset for row in rows}) > 1
    steps = {(row.run, row.step) for row in rows}
    beside = len(labels) <= MOST_BESIDE and len(steps) == len(labels)
    if not beside:
        columns = ["Measure", "Run", "Step", "Seed", "Value [95 %]", "Clips", "Videos", "Unit"]
        lines = [_line(row, labels[row.run]) + ([row.dataset] if several else []) for row in rows]
        controls = frozenset(i for i, row in enumerate(rows) if row.control)
        return Table(title, columns + (["Data"] if several else []), lines, controls, _caption(rows))
    found: dict[tuple[str, str], dict[str, ResultRow]] = {}
    for row in rows:
        found.setdefault((row.dataset, row.figure), {})[row.run] = row
    table: list[list[Cell]] = []
    marked = []
    for (dataset, figure), of in found.items():
        one = next(iter(of.values()))
        marked += [len(table)] if one.control else []
        cells: list[Cell] = [_estimate(of[run]) if run in of else None for run in labels]
        table.append([_ARROWS.get(one.better, "") + figure, *cells, one.unit, *([dataset] if several else [])])
    columns = ["Measure", *labels.values(), "Unit", *(["Data"] if several else [])]
    return Table(title, columns, table, frozenset(marked), _caption(rows))


def _line(row: ResultRow, label: str) -> list[Cell]:
    name = _ARROWS.get(row.better, "") + row.figure
    return [name, label, row.step, row.seed, _estimate(row), row.clips, row.videos, row.unit]


def _estimate(row: ResultRow) -> Estimate:
    return Estimate(row.value, row.low, row.high)


def _caption(rows: Sequence[ResultRow]) -> str:
    data = list(dict.fromkeys(row.dataset for row in rows))
    return " ".join(([f"Data: {data[0]}."] if len(data) == 1 else []) + ["95 % intervals over videos."])


def differences_table(title: str, found: Mapping[str, Sequence[Difference]], against: str) -> Table:
    """Run -> its differences to the run `against`, as one table."""
    labels = run_labels([*found, against])
    rows: list[list[Cell]] = []
    marked = []
    several = len({one.dataset for each in found.values() for one in each}) > 1
    notes: dict[str, None] = {}
    for run, each in found.items():
        words = {"first": run, "second": against}
        for one in each:
            marked += [len(rows)] if one.control else []
            verdict = {f"{which} is better": f"{labels[of]} is better" for which, of in words.items()}
            estimate = Estimate(one.value, one.low, one.high)
            name = _ARROWS.get(one.better, "") + one.figure
            said = verdict.get(one.verdict, one.verdict)
            paired = "paired" if one.paired else "not paired"
            rows.append([name, labels[run], one.first, one.second, estimate, one.clips, one.videos, paired, said])
            rows[-1] += [one.dataset] if several else []
            notes |= {note: None for note in one.note.split("; ") if note}
    columns = ["Measure", "Run", "its value", "other's", "Difference [95 %]", "Clips", "Videos", "", "Says"]
    caption = f"Run minus {labels[against]}; intervals resample videos, paired by clip where the clips are the same."
    caption += "".join(f" {note[:1].upper()}{note[1:]}." for note in notes)
    return Table(title, columns + (["Data"] if several else []), rows, frozenset(marked), caption)
