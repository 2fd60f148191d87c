"""List and probe videos: one Parquet row each, with what cannot be used and why.

Sources are video files, folders, tar shards (WebDataset, video2dataset), and s3:// prefixes of them, in any mixture.
A rerun of the same command after an interruption goes on where it stopped.
"""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs._cli import base_parser, describe, resolve_config, run_job
from lawm import storage
from lawm.config import LawmError

if TYPE_CHECKING:
    from lawm.cluster.index import IndexReport


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("index", __doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file, folder, tar or s3:// prefix")
    parser.add_argument(
        "--out", default="index.parquet", metavar="URI", help="where the index goes (default: index.parquet)"
    )
    args = parser.parse_args(argv)
    config = resolve_config(args)
    if not args.out.endswith(".parquet"):
        raise LawmError(f"--out {args.out}: expected a name that ends in .parquet")

    from lawm.cluster.index import build_index, check_places, index_needs
    from lawm.cluster.session import start
    from lawm.data import fit_lines, read_pieces

    check_places(args.sources, args.out)
    needs = index_needs(config)
    if args.dry_run:
        from lawm.data import list_videos

        videos = sum(1 for _ in list_videos(args.sources))
        describe(config, needs, None, videos=videos, sources=args.sources, out=storage.absolute(args.out))
        return 0
    with start(config.cluster, needs=needs):
        report = build_index(args.sources, args.out, config)
    _print(report)
    for line in fit_lines(read_pieces(report.uri), config.data.clip):
        print(line)
    return 0


def reasons_table(usable: int, reasons: dict[str, int], examples: dict[str, str], about: str = "") -> Table:
    """How many videos can be used, and how many were refused, by reason, each with an example."""
    table = Table("videos", "count", "for example", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row("usable", str(usable), about)
    for reason, count in reasons.items():
        table.add_row(f"refused: {reason}", str(count), examples[reason])
    return table


def _print(report: "IndexReport") -> None:
    console = Console()
    console.print(reasons_table(report.usable, report.reasons, report.examples))
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    console.print(
        f"{report.videos} videos in {report.seconds:.1f} s{resumed}. Index: {report.uri}",
        soft_wrap=True,
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
