"""One self-contained report.html of a run: tables with intervals and controls, loss curves, pictures.

lawm report --checkpoint runs/mine --results runs/mine/evaluation.json --decoder runs/mine-decoder --out report.html
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from jobs._cli import base_parser, describe, run_job
from jobs._run import add_data_arguments, checkpoint_config, quarantined, read_results
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
    results_table,
    write_report,
)


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; empty where there is none."""
    where = storage.join(run, "metrics.jsonl")
    return (
        [json.loads(line) for line in storage.read_bytes(where).decode().splitlines()] if storage.exists(where) else []
    )


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


def picture_section(
    config: Config,
    checkpoint: str,
    decoder: str | None,
    controller: str | None,
    split: str,
    clips: int,
    title: str,
    caption: str,
) -> Pictures | None:
    """Rollouts of the split's first clips against the true frames. None if the split has fewer than two."""
    from lawm.data import ClipReader, first_clips
    from lawm.evaluation import prediction_rows
    from lawm.training import collate, load_controller, load_decoder, load_model

    model, parent = load_model(checkpoint, config=config)
    decoding = load_decoder(decoder, model, parent).decoder if decoder else None
    control = load_controller(controller, model, parent) if controller else None
    if decoding is None and config.encoder.kind != "pixels":
        return None
    reader = ClipReader(config, split, labelled=control is not None, frames=True)  # type: ignore[arg-type]
    if len(reader.plan) < 2:
        return None
    found = prediction_rows(model, decoding, collate(first_clips(reader, max(2, 2 * clips))), clips, control)
    return Pictures(
        title,
        [list(row.frames) for row in found],
        [row.label for row in found],
        [f"t + {i / config.data.clip.fps:g} s" for i in range(config.data.clip.frames)],
        caption=caption,
    )


def grid_png(pictures: Pictures, rows: int, side: int = 96) -> bytes:
    """The first rows of a picture section as one PNG with their labels, for a README or a talk."""
    import io

    from PIL import Image, ImageDraw

    shown = pictures.rows[:rows]
    left, top, columns = 210, 18 if pictures.column_labels else 0, max((len(row) for row in shown), default=0)
    sheet = Image.new("RGB", (left + columns * (side + 4), top + len(shown) * (side + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, label in enumerate(pictures.column_labels[:columns]):
        draw.text((left + x * (side + 4), 3), label, fill="black")
    for y, (row, label) in enumerate(zip(shown, pictures.row_labels, strict=False)):
        draw.text((6, top + y * (side + 4) + side // 2 - 6), label, fill="black")
        for x, image in enumerate(row):
            if image is not None:
                place = left + x * (side + 4), top + y * (side + 4)
                sheet.paste(Image.fromarray(image).resize((side, side)), place)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


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
        "--results", nargs="*", default=[], metavar="FILE.json", help="results of `lawm evaluate` and `lawm plan`"
    )
    parser.add_argument("--decoder", metavar="URI", help="its decoder, for pictures")
    parser.add_argument(
        "--controller", metavar="URI", help="its controller, for pictures of rollouts under true actions"
    )
    parser.add_argument("--compare", nargs="*", default=[], metavar="RUN", help="further run folders for the curves")
    parser.add_argument("--clips", type=int, default=3, help="clips in the pictures (default: 3)")
    parser.add_argument("--out", default="report.html", metavar="URI", help="default: report.html")
    args = parser.parse_args(argv)
    config = checkpoint_config(args)
    run = storage.absolute(args.checkpoint)
    if args.dry_run:
        describe(config, [], args.clips, out=storage.absolute(args.out))
        return 0
    if args.clips < 1:
        raise LawmError(f"--clips {args.clips}: expected at least 1")
    sections = collapse_section(run)
    sections += [results_table(where, read_results(where)) for where in args.results]
    sections += loss_curves({uri.rstrip("/").rsplit("/", 1)[-1]: storage.absolute(uri) for uri in [run, *args.compare]})
    if config.data.index:
        caption = "Held-out clips. Rollouts start from the first state alone."
        pictures = picture_section(
            config,
            run,
            args.decoder,
            args.controller,
            config.evaluate.split,
            args.clips,
            "Predicted and true frames",
            caption,
        )
        sections += [pictures] if pictures else []
    sections += refused_section([run]) + facts(config)
    print(write_report(args.out, f"lawm: {args.checkpoint}", sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
