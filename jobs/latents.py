"""Write the latent action of every transition of an index's videos, as one Parquet data set.

lawm latents --checkpoint runs/mine --index index.parquet --out latents

Run the same command again after an interruption: it goes on. docs/latents.md says what the columns are.
"""

import sys

from jobs._cli import base_parser, describe, run_job, say
from jobs._run import add_data_arguments, checkpoint_config, counted
from lawm import storage
from lawm.config import LawmError


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("latents", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the table goes, or s3:// prefix")
    parser.add_argument(
        "--past",
        type=int,
        metavar="N",
        help="V-JEPA 2 with attention over time: states that the encoder sees before each transition, at least "
        "(default: half a clip; more take longer)",
    )
    parser.add_argument(
        "--lerobot",
        metavar="SOURCE",
        help="the LeRobot v3 data set that the index is of (`lawm dataset lerobot`): writes it once more, with the "
        "latents of each frame, to OUT/lerobot",
    )
    parser.add_argument(
        "--feature", default="latent_action", metavar="NAME", help="their name (default: latent_action)"
    )
    args = parser.parse_args(argv)
    config = checkpoint_config(args)

    from lawm.cluster.latents import latent_features, needs, plan_latents, write_latents, write_lerobot
    from lawm.cluster.session import start

    model, out = storage.absolute(args.checkpoint), storage.absolute(args.out)
    if args.past is not None and args.past < 0:
        raise LawmError(f"--past {args.past}: expected 0 or more")
    storage.check_folder(out)
    job = plan_latents(config, model, args.past)
    source, robot = storage.absolute(args.lerobot) if args.lerobot else None, storage.join(out, "lerobot")
    if source is not None:
        latent_features(job, source, robot, args.feature)
    if args.dry_run:
        plan = job.plan
        asked = {"videos": len(plan.states), "transitions": plan.transitions, "windows": len(plan)}
        describe(job.config, needs(config), None, latents=asked | {"of": job.about}, out=out)
        return 0
    with start(config.cluster, needs=needs(config)), counted("latents") as show:
        report = write_latents(job, out, lambda done, total: show(done, total, "transitions"))
    there = f", {report.kept} of them by an earlier run" if report.kept else ""
    speed = f"; {report.per_second:.1f} transitions a second" if report.per_second else ""
    print(f"{report.transitions} transitions of {report.videos - report.unusable} videos{there}{speed}")
    if report.refused or report.unusable:
        print(f"without a latent, with their reason: {report.refused} transitions, {report.unusable} videos")
    for reason, count in report.reasons.items():
        print(f"refused: {reason} {count}")
    say(f"table: {storage.join(out, 'transitions')}")
    if source is not None:
        say(f"LeRobot: {robot}, {write_lerobot(job, out, source, robot, args.feature)} frames with a latent")
    return 0


if __name__ == "__main__":
    sys.exit(main())
