"""Measure a checkpoint: capacity, leakage, cycle, transfer, controllability, sampling, controller and probes.

lawm evaluate --checkpoint runs/mine --deterministic runs/mine-deterministic

A run that was killed goes on where it was. Where an evaluation fails, the others are kept, and the exit code is 1.
"""

import sys
from collections.abc import Sequence

from jobs._cli import base_parser, describe, run_job, say
from jobs._run import add_data_arguments, checkpoint_config, child_of, record, write_results
from lawm import storage
from lawm.config import Config, LawmError, override, parse_config

NAMES = ("capacity", "leakage", "cycle", "transfer", "controllability", "sampling", "control", "probes")


def chosen(names: Sequence[str]) -> list[str]:
    """The evaluations asked for; `all` of them. Raises LawmError for a name that there is not."""
    odd = [name for name in names if name not in (*NAMES, "all")]
    if odd:
        raise LawmError(f"--suite {odd[0]}: there are {', '.join(NAMES)}, all")
    return list(NAMES) if "all" in names else list(dict.fromkeys(names))


def beside(checkpoint: str) -> str:
    """Where results of a checkpoint go: in the run's folder."""
    if storage.exists(storage.join(checkpoint, "checkpoint.json")):
        run, _, name = checkpoint.rstrip("/").rpartition("/")
        return storage.join(run, f"evaluation_{name}.json")
    return storage.join(checkpoint, "evaluation.json")


def found_beside(model: str, config: Config, name: str) -> str | None:
    """RUN-deterministic, or RUN-unconstrained, where a model lies there that can be set beside this one; it is said."""
    from lawm.training import check_baseline, config_in_use, read_about, run_of

    where = f"{run_of(model)}-{name}"
    if not storage.exists(where):
        return None
    try:
        trained = parse_config(read_about(model)["config"], model)
        measured = config_in_use(trained, config, model)
        check_baseline(measured, parse_config(read_about(where)["config"], where), where, name)
    except LawmError as error:
        say(f"{name}: not {where}: {error}")
        return None
    say(f"{name}: {where}")
    return where


def found_decoder(model: str) -> str | None:
    """The checkpoint's decoder, where it lies under a usual name; it is said, and so is one of another checkpoint."""
    from lawm.training import run_of

    where, usual = child_of(model, "decoder"), f"{run_of(model)}-decoder"
    if where is not None:
        say(f"decoder: {where}")
    elif storage.exists(usual):
        say(f"decoder: not {usual}: it belongs to another checkpoint; train one anew, under another --out")
    return where


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("evaluate", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="URI", help="the latent action model: a run folder or a checkpoint in it"
    )
    parser.add_argument(
        "--deterministic",
        metavar="URI",
        help="the deterministic model of equal data and steps, a control (default: RUN-deterministic, where it is)",
    )
    parser.add_argument(
        "--unconstrained",
        metavar="URI",
        help="the unconstrained model of equal data and steps (default: RUN-unconstrained, where it is)",
    )
    parser.add_argument("--controller", metavar="URI", help="a controller of this checkpoint (needs labels)")
    parser.add_argument(
        "--decoder",
        metavar="URI",
        help="a decoder of this checkpoint, for figures in pixels, from the videos (default: RUN-decoder, where it is)",
    )
    parser.add_argument(
        "--suite",
        "--which",
        dest="which",
        nargs="+",
        metavar="NAME",
        default=["all"],
        help=f"evaluations, of {', '.join(NAMES)} (default: all, as far as the data allow; --which is the same)",
    )
    parser.add_argument(
        "--across", metavar="INDEX",
        help="another data set, cut over from to measure leakage across data sets (evaluate.cut_with)",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", metavar="NAME", help="a name for the data; what they are to the training is added to it"
    )
    parser.add_argument(
        "--out", metavar="FILE.json", help="where the results go (default: evaluation.json beside the checkpoint)"
    )
    args = parser.parse_args(argv)
    which = chosen(args.which)
    config = checkpoint_config(args)
    if args.across:
        config = override(config, "evaluate.cut_with", storage.absolute(args.across), typed=False)

    from lawm.cluster.evaluate import FAILED, Company, check_asked, evaluate, needs
    from lawm.cluster.session import start
    from lawm.report import print_sections, results_sections
    from lawm.training import read_about

    model = storage.absolute(args.checkpoint)
    deterministic, unconstrained = (
        storage.absolute(given) if given else found_beside(model, config, name)
        for name, given in (("deterministic", args.deterministic), ("unconstrained", args.unconstrained))
    )
    controller = storage.absolute(args.controller) if args.controller else None
    decoder = storage.absolute(args.decoder) if args.decoder else found_decoder(model)
    out = storage.absolute(args.out) if args.out else beside(model)
    company = Company(model, deterministic, unconstrained, controller, decoder)
    if args.dry_run:
        for uri in company.all:
            read_about(uri)
        work = check_asked(config, company, which)
        clips = sum(len(unit.positions) for unit in work.units if "capacity" in unit.which) or None
        describe(config, needs(config), clips, evaluations=which, out=out)
        return 0
    storage.check_folder(out.rpartition("/")[0] or "/")
    with start(config.cluster, needs=needs(config)):
        measured = evaluate(config, company, which, args.dataset, parts_in=f"{out.removesuffix('.json')}.parts")
    write_results(out, measured)
    table = record(out, measured, model)
    print_sections(results_sections(args.checkpoint, measured))
    print(f"results: {out}\ntable: {table}")
    failed = [one.name for one in measured.omitted if one.reason.startswith(FAILED)]
    if failed:
        say(f"failed: {', '.join(failed)} (the reasons stand in the results; everything else was measured)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
