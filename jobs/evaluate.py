"""Measure a checkpoint: capacity, leakage, cycle consistency, controller and probes, with intervals and controls.

lawm evaluate --checkpoint runs/mine --deterministic runs/mine-deterministic --out runs/mine/evaluation.json
"""

import sys

from jobs._cli import base_parser, describe, run_job
from jobs._run import add_data_arguments, checkpoint_config, write_results
from lawm import storage

NAMES = ("capacity", "leakage", "cycle", "control")


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("evaluate", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument(
        "--deterministic", metavar="URI", help="the deterministic model of equal data and steps (a control)"
    )
    parser.add_argument("--unconstrained", metavar="URI", help="the unconstrained model of equal data and steps")
    parser.add_argument("--controller", metavar="URI", help="a controller of this checkpoint (needs labels)")
    parser.add_argument(
        "--which", nargs="+", choices=NAMES, default=list(NAMES), help="evaluations (default: all that the data allow)"
    )
    parser.add_argument("--dataset", default="held-out", metavar="NAME", help="what the results call the data")
    parser.add_argument("--out", metavar="FILE.json", help="where the results go (default: on the terminal only)")
    args = parser.parse_args(argv)
    config = checkpoint_config(args)

    from lawm.cluster.evaluate import check_asked, evaluate, needs
    from lawm.cluster.session import start
    from lawm.data import ClipReader
    from lawm.report import print_table, results_table
    from lawm.training import read_about

    if args.dry_run:
        for uri in (args.deterministic, args.unconstrained, args.controller):
            if uri:
                read_about(uri)
        reader = ClipReader(config, config.evaluate.split)
        baselines = [uri for uri in (args.deterministic, args.unconstrained) if uri]
        check_asked(config, args.checkpoint, args.which, baselines, args.controller, reader)
        describe(config, needs(config), min(config.evaluate.clips, len(reader.plan)), evaluations=args.which)
        return 0
    given = (args.deterministic, args.unconstrained, args.controller)
    deterministic, unconstrained, controller = (storage.absolute(uri) if uri else None for uri in given)
    with start(config.cluster, needs=needs(config)):
        results = evaluate(
            config,
            storage.absolute(args.checkpoint),
            args.which,
            deterministic,
            unconstrained,
            controller,
            args.dataset,
        )
    print_table(results_table(f"{args.checkpoint} on {args.dataset}", results))
    if args.out:
        write_results(args.out, results)
        print(f"results: {storage.absolute(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
