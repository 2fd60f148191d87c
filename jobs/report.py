"""One self-contained HTML file of a run: verdict, figures with intervals and controls, films, pictures, curves.

    lawm report --checkpoint runs/mine
    lawm report --checkpoint runs/mine --compare runs/weaker runs/stronger --rerun runs/mine/episodes.rrd

Rollouts are shown beside the true frames, actions of one clip on another, scene cuts, and how the latents are used.
Several runs (--compare, --sweep) are set one beside another: capacity against everything else.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from jobs._cli import base_parser, describe, run_job
from jobs._pictures import Company, Shown, check_clips, drawn_latents, open_shown, shown_sections
from jobs._run import add_data_arguments, checkpoint_config, child_of, json_lines, quarantined, read_results
from jobs._tradeoff import measurements, results_of, sweep_measurements
from jobs.evaluate import found_beside
from lawm import storage
from lawm.config import Config
from lawm.evaluation import Measured
from lawm.report import (
    Curves,
    Details,
    Section,
    Series,
    Text,
    capacity_sections,
    command_line,
    figures_sections,
    machine,
    summary_sections,
    write_report,
    write_rerun,
)


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; empty where there is none."""
    return [line for line in json_lines(storage.join(run, "metrics.jsonl")) if "step" in line]


def loss_curves(runs: dict[str, str]) -> list[Section]:
    """Training and validation prediction error of the named run folders, and what the latents do."""
    series, rank = [], []
    for name, run in runs.items():
        lines = read_metrics(run)
        for key, label, dashed in (("prediction", "training", False), ("val_prediction", "held out", True)):
            points = [(m["step"], m[key]) for m in lines if key in m]
            if points:
                series.append(Series(f"{name}, {label}", [p[0] for p in points], [p[1] for p in points], dashed=dashed))
        points = [(m["step"], m["effective_rank"]) for m in lines if "effective_rank" in m]
        if points:
            rank.append(Series(name, [p[0] for p in points], [p[1] for p in points]))
    found: list[Section] = []
    if series:
        found.append(Curves("Prediction error in training", series, "step", "mean |error| of normalised states"))
    if rank:
        found.append(Curves("Effective rank of the latent actions", rank, "step", "effective rank"))
    return found


def facts(config: Config, **more: Any) -> list[Section]:
    """Config, machine and command, folded away."""
    return [
        Details("Machine and command", {**machine(), "command": command_line(), **more}),
        Details("Config", config.model_dump()),
    ]


def collapse_section(model: str) -> list[Section]:
    """A warning where the model's latents carry nothing."""
    from lawm.model import collapse_warning
    from lawm.training import read_about

    said = collapse_warning(read_about(model)["metrics"])
    return [Text("Warning", said)] if said else []


def refused_section(runs: Sequence[str]) -> list[Section]:
    """What was quarantined in these runs, if anything was."""
    bad = [line for run in runs for line in quarantined(run)]
    return [Text("Clips that were refused", "\n\n".join(bad[:50]), warning=True)] if bad else []


def figures(model: str, results: Sequence[str]) -> tuple[list[Section], list[Section]]:
    """(verdict and headline figures, everything that was measured) of results files."""
    from lawm.training import read_about

    step, first, then = read_about(model)["step"], list[Section](), list[Section]()
    joined = Measured()
    for where in results:
        measured = read_results(where)
        joined += measured
        then += figures_sections(where, measured)
        if old := sorted({found.step for found in measured.results} - {step}):
            said = f"{where} was measured at step {old[0]:,}; the run stands at step {step:,}. Measure again"
            first.append(Text("Older results", said, warning=True))
    first = [*summary_sections(joined.results), *first]
    if not results:
        command = f"lawm evaluate --checkpoint {shlex.quote(model)}"
        first.append(Text("Results", f"No results: none lie beside {model}. Measure first: {command}"))
    return first, then


def tradeoff(model: str, compare: Sequence[str], sweep: str | None) -> list[Section]:
    """Capacity against everything else, where there are several runs or a search."""
    if not compare and sweep is None:
        return []
    measured = measurements([model, *compare]) + ([] if sweep is None else sweep_measurements(sweep))
    return capacity_sections(measured)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = base_parser("report", __doc__, default_recipe=None)
    add_data_arguments(parser)
    parser.add_argument("--checkpoint", required=True, metavar="URI", help="the run folder of the latent action model")
    parser.add_argument(
        "--results",
        nargs="*",
        metavar="FILE.json",
        help="results of `lawm evaluate` and `lawm plan` (default: those in the run's folder)",
    )
    parser.add_argument("--decoder", metavar="URI", help="its decoder, for pictures (default: RUN-decoder)")
    parser.add_argument(
        "--controller", metavar="URI", help="its controller, for rollouts under true actions (default: RUN-controller)"
    )
    parser.add_argument(
        "--deterministic", metavar="URI", help="its deterministic twin, shown beside it (default: RUN-deterministic)"
    )
    parser.add_argument(
        "--compare",
        nargs="*",
        default=[],
        metavar="RUN",
        help="further run folders: their curves, and capacity against every figure that they were measured for",
    )
    parser.add_argument(
        "--sweep", metavar="URI", help="trials.parquet of `lawm tune`, or its folder: the same of trials"
    )
    parser.add_argument("--clips", type=int, default=3, help="clips in films and pictures (default: 3)")
    parser.add_argument(
        "--rerun", metavar="FILE.rrd", help="write the clips shown for the Rerun viewer too (needs rerun-sdk)"
    )
    parser.add_argument("--out", metavar="URI", help="the report (default: report.html in the run's folder)")
    return parser.parse_args(argv)


@run_job
def main(argv: list[str] | None = None) -> int:
    args = parsed(argv)
    from lawm.training import run_of

    model = storage.absolute(args.checkpoint)
    run = run_of(model)
    out = args.out or storage.join(run, "report.html")
    storage.check_folder(storage.absolute(out).rpartition("/")[0] or "/")
    config = checkpoint_config(args)
    check_clips(args.clips)
    results = results_of(model) if args.results is None else args.results
    company = Company(
        model,
        args.deterministic or found_beside(model, config, "deterministic"),
        args.controller or child_of(model, "controller"),
        args.decoder or child_of(model, "decoder"),
    )
    compare = [storage.absolute(uri) for uri in args.compare]
    if args.dry_run:
        found = {"results": results, **vars(company), "compare": compare, "sweep": args.sweep, "rerun": args.rerun}
        describe(config, [], args.clips, out=storage.absolute(out), **found)
        return 0
    first, measured = figures(model, results)
    split = config.evaluate.split
    shown = open_shown(config, company, split, args.clips)
    pictures, episodes = shown_sections(
        shown, f"Clips of the {split} split", "Rollouts start from the first state alone."
    )
    sections = [
        *collapse_section(model),
        *first,
        *pictures,
        *tradeoff(model, compare, args.sweep),
        *measured,
        *loss_curves({storage.last_part(uri): uri for uri in [run, *compare]}),
        *(shown.usage() if isinstance(shown, Shown) else []),
        *drawn_latents(run),
        *refused_section([run]),
        *facts(config),
    ]
    for line in (one.body for one in sections if isinstance(one, Text) and one.body.startswith("No ")):
        Console(stderr=True, soft_wrap=True).print(line, style="yellow", markup=False, highlight=False)
    if args.rerun and episodes:
        print(write_rerun(args.rerun, f"lawm: {args.checkpoint}", episodes, config.data.clip.fps))
    print(write_report(out, f"lawm: {args.checkpoint}", sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
