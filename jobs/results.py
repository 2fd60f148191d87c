"""All results of any number of runs: filtered, set beside one another, compared, exported.

    lawm results runs/a runs/b --filter 'evaluation=cycle*'
    lawm results runs/a runs/b --against a
    lawm results runs --dataset 'PushT*' --out results.tex

Each `lawm evaluate`, `lawm plan` and trial of `lawm tune` adds rows to RUN/results.parquet, which any program reads.
"""

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rich.console import Console

from jobs._cli import base_parser, describe, output_width, resolve_config, run_job, say
from lawm import storage
from lawm.config import LawmError
from lawm.evaluation import COLUMNS, ResultRow, matching_rows, newest_rows, tables_below, write_table

if TYPE_CHECKING:
    from lawm.evaluation import Difference

ENDINGS = (".csv", ".md", ".tex", ".parquet")
Placed = dict[tuple[str, str, str, int], str]
"""(run, data set, evaluation, step) -> the folder whose table has the row."""


def gathered(folders: Sequence[str]) -> tuple[list[ResultRow], Placed]:
    """The rows of all tables below the folders, each once; and where each lies."""
    rows: dict[tuple[str, ...], ResultRow] = {}
    places: Placed = {}
    for folder, found in tables_below([storage.absolute(one) for one in folders]):
        for row in found:
            rows[row.run, row.dataset, row.evaluation, row.figure, str(row.step)] = row
            places[row.run, row.dataset, row.evaluation, row.step] = folder
    return list(rows.values()), places


def the_run(rows: Sequence[ResultRow], name: str) -> str:
    """The one run of that path, name or pattern. Raises LawmError where there is none, or several."""
    runs = dict.fromkeys(row.run for row in rows)
    path = storage.absolute(name)
    found = [run for run in runs if run == path or fnmatchcase(run.rpartition("/")[2], name) or fnmatchcase(run, name)]
    if len(found) != 1:
        there = ", ".join(found or runs)
        raise LawmError(f"--against {name}: {'several runs' if found else 'no such run'}; there are {there}")
    return found[0]


def differences(
    rows: Sequence[ResultRow], places: Placed, against: str, resamples: int, seed: int
) -> "tuple[dict[str, list[Difference]], list[str]]":
    """Of every other run, how its figures differ from those of the run `against`; and what could not be compared."""
    from lawm.evaluation import compare, kept_values, suite_says
    from lawm.planning import PLANNING_SAYS

    says = suite_says() | PLANNING_SAYS
    asked = {(row.run, row.dataset, row.figure) for row in rows}
    baseline = {(row.dataset, row.evaluation): row for row in rows if row.run == against}
    each: dict[str, list[Difference]] = {}
    notes: dict[str, None] = {}
    for row in {(row.run, row.dataset, row.evaluation): row for row in rows if row.run != against}.values():
        other = baseline.get((row.dataset, row.evaluation))
        if other is None:
            notes[f"{row.run}: {row.evaluation} ({row.dataset}): {against} has none on data of that name"] = None
            continue
        try:
            kept = [kept_values(places[r.run, r.dataset, r.evaluation, r.step], r, says) for r in (row, other)]
        except LawmError as error:
            notes[str(error)] = None
            continue
        found, omitted = compare(kept[0], kept[1], says[row.evaluation], resamples, seed)
        each.setdefault(row.run, []).extend(d for d in found if (row.run, d.dataset, d.figure) in asked)
        notes |= dict.fromkeys(f"{one.name}: {one.reason}" for one in omitted)
    return each, list(notes)


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("results", __doc__)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="runs, or folders of runs; local or s3://")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COLUMN=PATTERN",
        help=f"rows whose column fits, as in 'evaluation=cycle*' (!= for the others; repeatable): {', '.join(COLUMNS)}",
    )
    parser.add_argument("--dataset", metavar="PATTERN", help="short for --filter dataset=PATTERN")
    parser.add_argument("--run", metavar="PATTERN", help="short for --filter run=PATTERN, a path or its last part")
    parser.add_argument(
        "--against", metavar="RUN", help="how the others differ from this run: paired by clip, intervals over videos"
    )
    parser.add_argument("--all-steps", action="store_true", help="every step that was measured, not the newest alone")
    parser.add_argument("--out", metavar="FILE", help=f"write it to a file too: {', '.join(ENDINGS)}")
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(ENDINGS):
        raise LawmError(f"--out {args.out}: expected a name that ends in {', '.join(ENDINGS)}")
    if args.out and args.out.endswith(".parquet") and args.against:
        raise LawmError("--out FILE.parquet holds rows of results; export differences as .csv, .md or .tex")
    config = resolve_config(args)
    short = {"dataset": args.dataset, "run": args.run}
    filters = [*args.filter, *(f"{name}={pattern}" for name, pattern in short.items() if pattern)]
    rows, places = gathered(args.runs)
    against = the_run(rows, args.against) if args.against else ""
    total = len(rows)
    every = rows if args.all_steps else newest_rows(rows)
    # The run that the others are compared with stays, whichever runs are asked for.
    rows = [r for r in every if r in set(matching_rows(every, filters)) or (r.run == against)]
    if not rows:
        raise LawmError(f"none of {total} rows fits {' and '.join(filters)}")
    if args.dry_run:
        describe(config, [], None, rows=len(rows), runs=sorted({row.run for row in rows}), out=args.out)
        return 0
    return show(rows, places, against, args.out, config.evaluate.bootstrap, config.evaluate.seed)


def show(rows: list[ResultRow], places: Placed, against: str, out: str | None, resamples: int, seed: int) -> int:
    """Prints rows, or differences, and writes them where asked."""
    from lawm.report import differences_table, print_table, runs_table, to_csv, to_latex, to_markdown

    notes: list[str] = []
    if against:
        found, notes = differences(rows, places, against, resamples, seed)
        if not any(found.values()):
            raise LawmError(f"nothing to compare with {against}: {notes[0] if notes else 'no other run is here'}")
        table = differences_table("Differences", found, against)
    else:
        table = runs_table("Results", rows)
    print_table(table, Console(width=output_width()))
    for note in notes:
        say(note)
    if out:
        if out.endswith(".parquet"):
            write_table(storage.absolute(out), rows)
        else:
            text = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}[out[out.rindex(".") :]](table)
            storage.write_bytes(storage.absolute(out), text.encode())
        say(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
