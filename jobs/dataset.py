"""Read a labelled data set where it lies: LeRobot (DROID too), DROID raw, RECON, Something-Something-v2, Kinetics.

Writes index.parquet, and labels.parquet (actions) or classes.parquet, into --out. Videos stay where they are; RECON's
single pictures are put, byte for byte, into tar shards of Motion JPEG there. docs/datasets.md says how to get each.
"""

import shlex
import sys
from typing import TYPE_CHECKING, get_args

from jobs._cli import base_parser, describe, resolve_config, run_job, say
from jobs._run import counted
from jobs.index import say_reasons
from lawm import storage
from lawm.config import LawmError
from lawm.data import KINDS, LAYOUTS, ActionKind, ReadSpec, layout

if TYPE_CHECKING:
    from lawm.cluster.dataset import DatasetReport


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("dataset", __doc__)
    kinds = "; ".join(f"{name}: {how.about}" for name, how in LAYOUTS.items())
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help=kinds)
    parser.add_argument("source", metavar="SOURCE", help="its folder, or s3:// prefix")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where index and labels go, or s3:// prefix")
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME",
        help="which camera (repeatable; `all`); each is a video of its own with the same labels "
        "(default: ext1 of DROID, the first that is not on the wrist of LeRobot)",
    )
    parser.add_argument(
        "--actions",
        choices=get_args(ActionKind),
        help="what the action between two frames is (default: pose_delta for DROID, planar_delta for RECON, first "
        "for other LeRobot data sets; docs/datasets.md)",
    )
    parser.add_argument("--action", metavar="COLUMN", help="LeRobot: the actions (default: action)")
    parser.add_argument(
        "--state", action="append", default=[], metavar="COLUMN", help="LeRobot: a part of the state (repeatable)"
    )
    parser.add_argument("--rate", type=float, metavar="HZ", help="RECON: pictures a second (default: 4)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N episodes")
    args = parser.parse_args(argv)
    config = resolve_config(args)
    if args.limit is not None and args.limit < 1:
        raise LawmError(f"--limit {args.limit}: expected 1 or more")
    spec = ReadSpec(args.kind, tuple(args.camera), args.actions, args.action, tuple(args.state), args.rate, args.limit)
    how = layout(args.kind)
    source = storage.absolute(args.source).rstrip("/")
    chosen = how.choices(source, spec)

    from lawm.cluster.dataset import check_place, read_dataset
    from lawm.cluster.index import index_needs
    from lawm.cluster.session import start

    check_place(source, storage.absolute(args.out).rstrip("/"), spec)
    needs = index_needs(config)
    if args.dry_run:
        episodes = sum(batch.episodes for batch in how.batches(source, chosen))
        if not episodes:
            raise LawmError(f"{source}: no video found in the layout {args.kind}")
        asked = {name: getattr(chosen, name) for name in ("kind", "actions", "action", "rate", "limit")}
        asked |= {"cameras": list(chosen.cameras), "state": list(chosen.state)}
        asked |= {"episodes": episodes, "videos": episodes * max(1, len(chosen.cameras))}
        describe(config, needs, None, dataset=asked, out=storage.absolute(args.out))
        return 0
    with start(config.cluster, needs=needs), counted("read") as show:
        report = read_dataset(args.source, spec, args.out, config, lambda done, total: show(done, total, "videos"))
    _print(report)
    return 0


def _print(report: "DatasetReport") -> None:
    say_reasons(report.usable, report.reasons, report.examples, f"{report.hours:.2f} hours")
    spec, said = report.spec, []
    if spec.cameras:
        said.append(f"cameras {', '.join(spec.cameras)}")
    if spec.actions:
        made = f" of {' + '.join(spec.state)}" if spec.state and spec.actions not in ("sum", "first") else ""
        said.append(f"actions {spec.actions}{made or (f' of {spec.action}' if spec.action else '')}")
    if said:
        say("; ".join(said))
    for note in report.notes:
        say(note)
    if report.classes:
        say(f"What each clip shows: {report.classes}")
    beside = ["--labels", report.labels] if report.labels else []
    say(shlex.join(["lawm", "train", "--index", report.index, *beside, "--out", "runs/mine"]))


if __name__ == "__main__":
    sys.exit(main())
