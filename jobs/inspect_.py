"""Show what is in an index: counts, distributions, timing, duplicates, and pictures of random clips.

    lawm inspect index.parquet --out inspect.html

Writes the report and, beside it, the contact sheet as a PNG.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from jobs._cli import base_parser, describe, resolve_config, run_job, say
from jobs._run import counted as progress_line
from lawm import storage
from lawm.config import ClipSpec, LawmError, override

if TYPE_CHECKING:
    from lawm.data import Sample
    from lawm.report import Pictures


def contact_sheet(clips: "Sequence[Sample]", spec: ClipSpec) -> "Pictures":
    """The frames of each clip in a row, at the times that they have in its video."""
    from lawm.report import Pictures

    return Pictures(
        "Random clips",
        [[frame.transpose(1, 2, 0).copy() for frame in clip.frames] for clip in clips if clip.frames is not None],
        [f"{clip.key}\nfrom {clip.start_s:.2f} s" for clip in clips],
        [f"+ {i / spec.fps:.2f} s" for i in range(spec.frames)],
        caption=f"{spec.frames} frames at {spec.fps:g} a second of physical time, centre crop.",
    )


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("inspect", __doc__)
    parser.add_argument("index", metavar="INDEX", help="an index written by `lawm index`")
    parser.add_argument("--out", default="inspect.html", metavar="URI", help="the report (default: inspect.html)")
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="clips in the contact sheet (default: 12)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of clips")
    parser.add_argument(
        "--no-duplicates", action="store_true", help="do not read videos of equal size to see whether they are the same"
    )
    args = parser.parse_args(argv)
    if not args.out.endswith(".html"):
        raise LawmError(f"--out {args.out}: expected a name that ends in .html")
    storage.check_folder(storage.absolute(args.out).rpartition("/")[0] or "/")
    if args.clips < 0:
        raise LawmError(f"--clips {args.clips}: expected 0 or more")

    from jobs.report import facts
    from lawm.data import ClipReader, inspection, read_index
    from lawm.report import Cell, Curves, Section, Series, Table, Text, grid_png, print_table, write_report

    config = override(resolve_config(args), "data.index", storage.absolute(args.index))
    index = read_index(args.index)
    if args.dry_run:
        clips = len(ClipReader(config, "all").plan) if len(index.usable()) else 0
        describe(config, [], clips, videos=len(index), out=storage.absolute(args.out))
        return 0
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    found = inspection.totals(index)
    said = "{videos:,} videos, {usable:,} usable: {hours:,.2f} hours, {gib:,.2f} GiB, {frames:,} frames".format(**found)
    say(said)
    tables = [Table("What there is", ["", "videos"], [list(row) for row in inspection.counted(index)])]
    sections: list[Section] = [Text("", said)]
    timing = inspection.timing(index)
    if timing.videos:
        of: list[list[Cell]] = [[name, *values] for name, values in inspection.quantiles(index).items()]
        tables.append(Table("Distributions", ["", "least", "25 %", "median", "75 %", "95 %", "greatest", "mean"], of))
    timed = (
        f"{timing.wrong_rate:,} of {timing.videos:,} containers claim another rate than their time stamps show; "
        f"{timing.variable_rate:,} videos have a variable rate; {timing.late_start:,} do not start at time 0. "
        "Clips follow the time stamps."
    )
    for table in tables:
        print_table(table, console)
        sections.append(table)
    say(timed)
    sections.append(Text("Time", timed, warning=timing.wrong_rate > 0))
    if timing.examples:
        rows: list[list[Cell]] = [list(row) for row in timing.examples]
        sections.append(Table("Rates that do not hold", ["video", "container", "time stamps"], rows))
    for name, values in inspection.values_of(index).items():
        if len(values):
            sections.append(Curves(name, [Series(name, *inspection.histogram(values))], name, "videos"))
    if not args.no_duplicates:
        with progress_line("comparing videos of equal size") as show:
            groups = inspection.duplicates(index, progress=show)
        spare = sum(len(group) - 1 for group in groups)
        text = f"{spare:,} videos are copies of another one, in {len(groups):,} groups."
        say(text)
        sections.append(Text("Duplicates", text))
        if groups:
            copies: list[list[Cell]] = [[len(g), g[0].size, ", ".join(ref.key for ref in g[:4])] for g in groups[:50]]
            sections.append(Table("Videos with the same bytes", ["copies", "bytes", "for example"], copies))
    if args.clips and timing.videos:
        good, refused = inspection.random_clips(config, args.clips, args.seed)
        if good:
            sheet = contact_sheet(good, config.data.clip)
            png = args.out.removesuffix(".html") + ".png"
            storage.write_bytes(png, grid_png(sheet, len(sheet.rows)))
            say(f"contact sheet: {png}")
            sections.append(sheet)
        if refused:
            sections.append(Text("Clips that could not be decoded", "\n\n".join(c.message for c in refused)))
    write_report(args.out, "Index", [*sections, *facts(config, index=args.index)], args.index)
    say(f"report: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
