"""Plan with a world model, episodes spread over Ray actors: towards the end of held-out clips, or in closed loop.

    lawm plan --checkpoint runs/mine --controller runs/mine-controller
    lawm plan --checkpoint runs/mine --controller runs/mine-controller --set plan.over=latents
    lawm plan --checkpoint runs/mine --controller runs/mine-controller --set plan.preset=swm-pusht

Each finished episode is a row in RUN/plan/episodes.jsonl and .parquet (or --out); a rerun does only those that are
missing, and those that failed. Films of the first ones are in RUN/plan/films. docs/planning.md says what can be
searched, and by which protocols.
"""

import sys

from jobs._cli import base_parser, describe, run_job
from jobs._run import add_data_arguments, checkpoint_config, counted, record, write_results
from lawm import storage
from lawm.config import override


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("plan", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument(
        "--controller", metavar="URI", help="the controller of that model (a model of true actions needs none)"
    )
    parser.add_argument("--prior", metavar="URI", help="the prior of its latents, for --set plan.over=prior")
    parser.add_argument("--policy", metavar="URI", help="behaviour cloning to be set beside the plans (lawm policy)")
    parser.add_argument(
        "--decoder", metavar="URI", help="a decoder of the model: films of what plans are imagined to do"
    )
    parser.add_argument("--out", metavar="URI", help="folder of the episodes (default: RUN/plan of the checkpoint)")
    parser.add_argument(
        "--unit", metavar="UNIT", help="unit of translations, where the labels do not say it (as in: m)"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="a name for the data; what they are to the training is added to it"
    )
    args = parser.parse_args(argv)

    from lawm.training import read_about, run_of

    if args.out is None:
        args.out = storage.join(run_of(storage.absolute(args.checkpoint)), "plan")
    else:
        storage.check_folder(args.out)
    config = checkpoint_config(args)
    if args.unit:
        config = override(config, "plan.unit", args.unit)

    from lawm.cluster.plan import dataset_name, label_ranges, labelled_clips, measured_plans, needs, plan_episodes
    from lawm.cluster.session import start
    from lawm.planning import Used
    from lawm.report import print_table, results_table

    beside = (args.controller, args.prior, args.policy, args.decoder)
    used = Used(storage.absolute(args.checkpoint), *(storage.absolute(u) if u else None for u in beside))
    if args.dry_run:
        held_out = labelled_clips(config, used)
        about = {"out": storage.absolute(args.out), "training_actions": label_ranges(config)}
        describe(config, needs(config), held_out, episodes=config.plan.episodes, **about)
        return 0
    out = storage.absolute(args.out)
    with start(config.cluster, needs=needs(config)), counted("plan") as show:
        rows = plan_episodes(config, used, out, lambda done, total: show(done, total, "episodes"))
    name = dataset_name(config, args.dataset, list(used.given.values()))
    measured = measured_plans(config, rows, name, read_about(used.model)["step"])
    where = storage.join(out, "results.json")
    write_results(where, measured)
    table = record(where, measured, used.model)
    print_table(results_table(f"planning with {args.checkpoint}", measured.results))
    print("\n".join(measured.notes))
    print(f"episodes: {storage.join(out, 'episodes.parquet')}\ntable: {table}")
    return 1 if any(row.get("failed") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
