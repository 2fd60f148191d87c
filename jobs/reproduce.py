"""Make a table or figure of the paper or of the report again, on your own data, with the published numbers beside it.

    lawm reproduce table1
    lawm reproduce tableS1 --recipe paper_sparse --index wild.parquet --robot droid.parquet --robot-labels acts.parquet
    lawm reproduce claims --seeds 3

Trains what is missing at the recipe's scale (models that share their clips as one population), measures it, and writes
NAME.md, .csv, .json, .html and a picture of each figure. Without data, the demo's are made. A rerun goes on where it
was.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs._cli import base_parser, describe, resolve_config, run_job, say
from jobs._reproduce import (
    Clips,
    measured_models,
    not_trained,
    pictures_of_latents,
    plan_of_work,
    runs_of,
    train_children,
    train_models,
)
from jobs._run import add_data_arguments, clips_at, spoken, with_data
from jobs.demo import PUSHT, Demo, prepare_data
from jobs.simulate import add_nuisances
from lawm import storage
from lawm.config import Config, LawmError

PAPER_RATE = 11.1
"""Clips a second and GPU of the paper's training (30,000 x 1,024 clips in 12 hours on 64 GPUs)."""


def demo_of(args: argparse.Namespace, config: Config) -> Demo | None:
    """The demo whose data are made, where no others are given. Raises LawmError where that cannot be."""
    nuisances = {"distractors": args.distractors, "shake": args.shake}
    if config.data.given:
        if any(nuisances.values()):
            raise LawmError("--distractors and --shake are of the demo's data, and other data were given")
        return None
    if args.robot or args.robot_labels:
        raise LawmError("--robot: give the videos to train on as well (--index or --cache)")
    if config.recipe != "demo":
        raise LawmError(f"--recipe {config.recipe}: nothing to train on: give --index URI or --cache URI")
    return Demo(config, Path(storage.absolute(args.out)), args.episodes, **nuisances)


def data_of(args: argparse.Namespace, config: Config, demo: Demo | None) -> Clips:
    """The clips that the arguments name, or the demo's."""
    if demo is not None:
        labelled, every = demo.on(PUSHT).data, demo.on(None, labels=None).data
        return Clips(every, demo.on(PUSHT, labels=None).data, labelled, demo.on("[!p]*", labels=None).data)
    plain = config.data.model_copy(update={"labels": None})
    if args.robot is None:
        if args.robot_labels:
            raise LawmError("--robot-labels: whose? give --robot INDEX, or --labels for the videos of --index")
        labelled_data = config.data if config.data.labels else None
        return Clips(plain, plain, labelled_data)
    if args.robot_labels is None:
        raise LawmError("--robot needs --robot-labels, the table of its actions")
    gone = {"index": None, "cache": None, "mixture": (), "keys": None}
    named = clips_at(args.robot) | {"labels": storage.absolute(args.robot_labels)}
    robot = config.data.model_copy(update=gone | named)
    return Clips(plain, plain, robot, plain)


def hours_line(config: Config, clips: int) -> str:
    """How long the training's clips take, by the paper's rate where that is its scale."""
    if config.recipe.startswith("paper"):
        gpus = max(1, round(config.cluster.workers * config.cluster.gpus_per_worker))
        return (
            f"about {clips / PAPER_RATE / gpus / 3600:,.0f} h on {gpus} H100, at the paper's {PAPER_RATE} clips/s a GPU"
            " for each model (populations share decoding and encoding, and take less)"
        )
    return "not known before the first steps: the log says how long is left (`lawm train --dry-run` measures some)"


@run_job
def main(argv: list[str] | None = None) -> int:
    from lawm.reproduction import (
        EXPERIMENTS,
        claims_table,
        experiment_table,
        figure_sections,
        missing_section,
        scale_of,
    )

    parser = base_parser("reproduce", __doc__)
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(EXPERIMENTS)}")
    add_data_arguments(parser)
    parser.add_argument(
        "--robot", metavar="URI", help="index or cache of the robot's clips, where others train the models"
    )
    parser.add_argument("--robot-labels", metavar="URI", help="the table of the robot's actions")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings of each model (default: 1)")
    parser.add_argument("--pixels", action="store_true", help="train a decoder of each model, for figures in pixels")
    parser.add_argument(
        "--out", default="runs/reproduce", metavar="URI", help="where all goes (default: runs/reproduce)"
    )
    parser.add_argument("--members", type=int, default=8, metavar="N", help="most models of a population (default: 8)")
    parser.add_argument("--beside", type=int, default=1, metavar="N", help="trainings beside one another (default: 1)")
    parser.add_argument("--episodes", type=int, default=700, metavar="N", help="PushT episodes of the demo's data")
    add_nuisances(parser)
    args = parser.parse_args(argv)
    if args.name not in EXPERIMENTS:
        raise LawmError(f"{args.name}: no such experiment; there are {', '.join(EXPERIMENTS)}")
    for option in ("seeds", "members", "beside", "episodes"):
        if getattr(args, option) < 1:
            raise LawmError(f"--{option} {getattr(args, option)}: expected 1 or more")
    experiment, out = EXPERIMENTS[args.name], storage.absolute(args.out)
    config = resolve_config(args, with_data(resolve_config(args), args))
    demo = demo_of(args, config)
    clips = data_of(args, config, demo)
    runs = runs_of(experiment, config, clips, args.seeds, scale_of(config.recipe), out)
    work = plan_of_work(runs, experiment, args.members)

    from lawm.cluster.fit import needs
    from lawm.cluster.session import start

    if args.dry_run:
        time_said = hours_line(config, work["clips trained on"])
        describe(config, needs(config, "latent_action"), work["clips trained on"], **work, time=time_said, out=out)
        return 0
    storage.check_folder(out)
    began = time.monotonic()
    say(", ".join(f"{value:,} {name}" for name, value in work.items()))
    with start(config.cluster, needs=needs(config, "latent_action")):
        if demo is not None:
            prepare_data(demo)
        train_models(runs, args.members, args.beside)
        if "controller" in experiment.needs and clips.robot is not None:
            train_children(runs, "controller", clips.robot, args.beside)
        if args.pixels:
            train_children(runs, "decoder", clips.train, args.beside)
        models = measured_models(experiment, runs, clips, args.pixels)
    table = experiment_table(experiment, models)
    sections = [table, *not_trained(runs), *missing_section(experiment, models), *figure_sections(experiment, models)]
    if "sampling" in experiment.suite:
        sections += pictures_of_latents(runs)
    if args.name == "claims":
        sections.insert(0, claims_table(models))
    written = write_all(experiment.name, experiment.title, sections, models, config, out)
    print(storage.read_bytes(written[0]).decode())
    say(f"{spoken(time.monotonic() - began)} in all. Written: {', '.join(written)}")
    return 0


def write_all(
    name: str, title: str, sections: Sequence[Any], models: Sequence[Any], config: Config, out: str
) -> list[str]:
    """NAME.md, .csv, .json, .html and NAME-N.png; returns where they are."""
    import dataclasses

    from jobs.report import facts
    from lawm.report import Curves, Points, Table, curves_plot, points_plot, to_csv, to_markdown, write_report

    tables = [one for one in sections if isinstance(one, Table)]
    texts = {
        "md": "\n".join(map(to_markdown, tables)),
        "csv": to_csv(tables[-1]),
        "json": json.dumps(
            {
                "experiment": name,
                "recipe": config.recipe,
                "models": [
                    {
                        "latents": one.variant.latents, "capacity": one.variant.capacity, "setting": one.variant.said,
                        "seed": one.seed, "step": one.step,
                        "results": [dataclasses.asdict(result) for result in one.results],
                        "omitted": [dataclasses.asdict(omission) for omission in one.omitted],
                    }
                    for one in models
                ],
            },
            indent=1,
        ),
    }  # fmt: skip
    written = []
    for suffix, text in texts.items():
        where = storage.join(out, f"{name}.{suffix}")
        storage.write_bytes(where, text.encode())
        written.append(where)
    drawn = [one for one in sections if isinstance(one, Curves | Points)]
    for number, one in enumerate(drawn, 1):
        where = storage.join(out, f"{name}-{number}.png")
        storage.write_bytes(where, curves_plot(one) if isinstance(one, Curves) else points_plot(one))
        written.append(where)
    page = write_report(storage.join(out, f"{name}.html"), title, [*sections, *facts(config)], "lawm reproduce")
    return [*written, page]


if __name__ == "__main__":
    sys.exit(main())
