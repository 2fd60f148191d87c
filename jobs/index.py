"""List and probe videos: one Parquet row each, with what cannot be used and why.

Sources are video files, folders, tar shards (WebDataset, video2dataset), and s3:// prefixes of them, in any mixture.
A rerun of the same command after an interruption goes on where it stopped.
"""

import sys
from typing import TYPE_CHECKING

from jobs._cli import base_parser, describe, resolve_config, run_job, say
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
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="what belongs together and is held out together, as the cuts of a film: the part of a video's key that "
        "matches, or its first (...), as in --group '^[^/]+' for a folder a film",
    )
    args = parser.parse_args(argv)

    from lawm.data import fit_lines, group_pattern, read_pieces

    config = resolve_config(args)
    group = group_pattern(args.group) if args.group else None
    if not args.out.endswith(".parquet"):
        raise LawmError(f"--out {args.out}: expected a name that ends in .parquet")

    from lawm.cluster.index import build_index, check_places, index_needs
    from lawm.cluster.session import start

    check_places(args.sources, args.out)
    needs = index_needs(config)
    if args.dry_run:
        from lawm.data import list_videos

        videos = sum(1 for _ in list_videos(args.sources))
        describe(config, needs, None, videos=videos, sources=args.sources, out=storage.absolute(args.out))
        return 0
    with start(config.cluster, needs=needs):
        report = build_index(args.sources, args.out, config, group=group)
    _print(report)
    if args.group:
        say(_grouped(args.group, report.uri))
    for line in fit_lines(read_pieces(report.uri), config.data.clip):
        say(line)
    return 0


def say_reasons(usable: int, reasons: dict[str, int], examples: dict[str, str], about: str = "") -> None:
    """How many videos can be used, and how many were refused, by reason, each with an example. Lines are left whole,
    so that a name can be copied from a narrow terminal."""
    rows = [("videos", "count", "for example"), ("usable", str(usable), about)]
    rows += [(f"refused: {reason}", str(count), examples[reason]) for reason, count in reasons.items()]
    wide, high = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, count, example in rows:
        say(f"{name:<{wide}}  {count:>{high}}  {example}".rstrip())


def _print(report: "IndexReport") -> None:
    say_reasons(report.usable, report.reasons, report.examples)
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    say(f"{report.videos} videos in {report.seconds:.1f} s{resumed}. Index: {report.uri}")


def _grouped(pattern: str, uri: str) -> str:
    """What the groups came to."""
    from lawm.data import read_pieces

    named: set[str] = set()
    alone = 0
    for piece in read_pieces(uri, ("key", "group")):
        found = piece.table["group"] if "group" in piece.table.column_names else []
        alone += len(piece) - sum(group.is_valid for group in found)
        named.update(group.as_py() for group in found if group.is_valid)
    left = f"; {alone:,} videos do not match and stand alone" if alone else ""
    return f"--group {pattern}: {len(named):,} groups{left}"


if __name__ == "__main__":
    sys.exit(main())
