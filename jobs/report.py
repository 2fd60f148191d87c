"""One self-contained report.html of a run: tables with intervals and controls, loss curves, pictures.

lawm report --checkpoint runs/mine --out report.html
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from jobs._cli import base_parser, describe, run_job
from jobs._run import add_data_arguments, checkpoint_config, child_of, json_lines, quarantined, read_results
from lawm import storage
from lawm.config import Config, LawmError
from lawm.report import (
    Curves,
    Details,
    Pictures,
    Section,
    Series,
    Text,
    command_line,
    machine,
    results_sections,
    write_report,
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


ANEW = "A run that was made longer needs its decoder and controller anew: remove them, or give another --out"


def picture_section(
    config: Config,
    checkpoint: str,
    decoder: str | None,
    controller: str | None,
    split: str,
    clips: int,
    title: str,
    caption: str,
) -> Pictures | Text:
    """Rollouts of the split's first clips against the true frames; or why there are no pictures, and the remedy."""
    from lawm.data import ClipReader, EmptySplit, first_clips
    from lawm.evaluation import prediction_rows
    from lawm.training import check_actions, collate, load_controller, load_decoder, load_model

    if not config.data.index:
        return Text(title, "No pictures: they are decoded from the videos. Give their index (--index URI).")
    model, parent = load_model(checkpoint, config=config)
    decoding = load_decoder(decoder, model, parent).decoder if decoder else None
    control = load_controller(controller, model, parent) if controller and config.data.labels else None
    if decoding is None and config.encoder.kind != "pixels":
        shown = shlex.quote(checkpoint)
        train = f"lawm decoder --checkpoint {shown} --out {shlex.quote(checkpoint.rstrip('/') + '-decoder')}"
        other = f"{checkpoint.rstrip('/')}-decoder"
        if storage.exists(other):
            return Text(title, f"No pictures: {other} belongs to another checkpoint than this run's newest. {ANEW}")
        return Text(title, f"No pictures: states become pictures by a decoder of this model. Train one: {train}")
    try:
        reader = ClipReader(config, split, labelled=control is not None, frames=True)  # type: ignore[arg-type]
    except EmptySplit as error:
        return Text(title, f"No pictures: {error}")
    if controller and reader.labels is not None:
        check_actions(controller, reader.labels)
    samples = first_clips(reader, max(2, 2 * clips))
    groups = [sample.group for sample in samples]
    found = prediction_rows(model, decoding, collate(samples), groups, clips, control)
    return Pictures(
        title,
        [list(row.frames) for row in found],
        [row.label for row in found],
        [f"t + {i / config.data.clip.fps:g} s" for i in range(config.data.clip.frames)],
        caption=caption,
    )


def results_of(run: str) -> list[str]:
    """Results that lie in the run's folder: of `lawm evaluate`, and of `lawm plan --out RUN/plan`."""
    usual = (storage.join(run, "evaluation.json"), storage.join(run, "plan", "results.json"))
    return [where for where in usual if storage.exists(where)]


def facts(config: Config, **more: Any) -> list[Section]:
    """Config, machine and command, folded away."""
    return [
        Details("Machine and command", {**machine(), "command": command_line(), **more}),
        Details("Config", config.model_dump()),
    ]


def collapse_section(run: str) -> list[Section]:
    """A warning where the run's latents carry nothing."""
    from lawm.model import collapse_warning
    from lawm.training import read_about

    said = collapse_warning(read_about(run)["metrics"])
    return [Text("Warning", said)] if said else []


def refused_section(runs: Sequence[str]) -> list[Section]:
    """What was quarantined in these runs, if anything was."""
    bad = [line for run in runs for line in quarantined(run)]
    return [Text("Clips that were refused", "\n\n".join(bad[:50]), warning=True)] if bad else []


@run_job
def main(argv: list[str] | None = None) -> int:
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
        "--controller",
        metavar="URI",
        help="its controller, for pictures of rollouts under true actions (default: RUN-controller)",
    )
    parser.add_argument("--compare", nargs="*", default=[], metavar="RUN", help="further run folders for the curves")
    parser.add_argument("--clips", type=int, default=3, help="clips in the pictures (default: 3)")
    parser.add_argument("--out", default="report.html", metavar="URI", help="default: report.html")
    args = parser.parse_args(argv)
    storage.check_folder(storage.absolute(args.out).rpartition("/")[0] or "/")
    from lawm.training import read_about

    config = checkpoint_config(args)
    run = storage.absolute(args.checkpoint)
    if args.clips < 1:
        raise LawmError(f"--clips {args.clips}: expected at least 1")
    results = results_of(run) if args.results is None else args.results
    decoder, controller = args.decoder or child_of(run, "decoder"), args.controller or child_of(run, "controller")
    if args.dry_run:
        found = {"results": results, "decoder": decoder, "controller": controller}
        describe(config, [], args.clips, out=storage.absolute(args.out), **found)
        return 0
    sections = collapse_section(run)
    step = read_about(run)["step"]
    for where in results:
        measured = read_results(where)
        sections += results_sections(where, measured)
        if old := sorted({found.step for found in measured.results} - {step}):
            said = f"{where} was measured at step {old[0]:,}; the run stands at step {step:,}. Measure again"
            sections.append(Text("Older results", said, warning=True))
    if not results:
        command = f"lawm evaluate --checkpoint {shlex.quote(args.checkpoint)}"
        sections.append(Text("Results", f"No results: none lie in {run}. Measure first: {command}"))
    sections += loss_curves({uri.rstrip("/").rsplit("/", 1)[-1]: storage.absolute(uri) for uri in [run, *args.compare]})
    pictures = picture_section(
        config,
        run,
        decoder,
        controller,
        config.evaluate.split,
        args.clips,
        "Predicted and true frames",
        f"Clips of the {config.evaluate.split} split. Rollouts start from the first state alone.",
    )
    sections += [pictures, *refused_section([run]), *facts(config)]
    lacks = [one.body for one in sections if isinstance(one, Text) and one.body.startswith("No ")]
    for line in lacks:
        Console(stderr=True, soft_wrap=True).print(line, style="yellow", markup=False, highlight=False)
    print(write_report(args.out, f"lawm: {args.checkpoint}", sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
