"""Search for a bottleneck's strength: Tune with Optuna, two objectives, one Pareto set.

    lawm tune tune_spaces/noisy.yaml --index index.parquet --labels labels.parquet --out runs/noisy

Each trial trains a model (and a controller, where an objective plans), evaluates it and plans with it. Writes
OUT/trials.parquet, pareto.png and report.html. Run the same command again after an interruption: finished
trials are kept, unfinished ones resume. Raising `trials` in the space file makes a finished search longer.
"""

import sys

from rich.console import Console

from jobs._cli import DEFAULT_RECIPE, base_parser, describe, output_width, resolve_config, run_job, say
from jobs._run import add_data_arguments, counted, with_data
from lawm import storage


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("tune", __doc__)
    parser.set_defaults(recipe=None)  # so that the space's own recipe is seen to be overruled
    parser.add_argument("space", metavar="SPACE.yaml", help="what is searched, and for what (see tune_spaces/)")
    add_data_arguments(parser)
    parser.add_argument("--out", default="runs/tune", metavar="URI", help="folder of the search (default: runs/tune)")
    parser.add_argument(
        "--dataset", metavar="NAME", help="a name for the data; what they are to the training is added to it"
    )
    args = parser.parse_args(argv)
    storage.check_folder(args.out)

    from lawm.cluster.search import check, needs, search, shown_table
    from lawm.cluster.search_space import base_config, read_space, unquoted_words
    from lawm.cluster.session import start
    from lawm.report import print_table

    space = read_space(args.space)
    for word in unquoted_words(args.space):
        say(f"{args.space}: {word} is read as text; quote it, for other programs take it for a truth value")
    config = base_config(space.model_copy(update={"recipe": args.recipe or space.recipe}), DEFAULT_RECIPE)
    config = resolve_config(args, with_data(config, args))
    out = storage.absolute(args.out)
    check(space, config)
    if args.dry_run:
        asked = {str(need): need for phase in needs(space, config) for need in phase}
        per_trial = config.train.steps * config.train.batch
        describe(
            config,
            asked.values(),
            space.trials * per_trial,
            clips_per_trial=per_trial,
            trials=space.trials,
            space=space.model_dump(mode="json"),
            out=out,
        )
        return 0
    # With the dashboard: without it a trial that Tune ends early keeps its share of the cluster.
    with start(config.cluster, include_dashboard=True), counted("tune") as show:
        rows = search(space, config, out, show, args.dataset)
    console = Console(width=output_width())
    print_table(shown_table(space, rows, f"{args.space}: {len(rows)} trials"), console)
    print(f"trials: {storage.join(out, 'trials.parquet')}\nreport: {storage.join(out, 'report.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
