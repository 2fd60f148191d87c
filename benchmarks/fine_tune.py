"""What becomes of the encoder when it learns too: its own next state as the target, and that of a moving average.

PushT clips (simulated here on the first run, kept in --data), EfficientNet-Lite0 from ImageNet as the encoder, the
demo's model. Each way of training runs on the same clips; the collapse monitor only looks on. Then the first way
again with the monitor in force: where it stops the run.

    python -m benchmarks.fine_tune [--quick] [--data FOLDER] [--lr LR] [--steps N]
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import finish, parser
from lawm.config import Config, FineTuneConfig, LawmError, TrainConfig, VideoLimits
from lawm.data import ClipReader, Cursor, first_clips, list_videos, rows_to_table, write_index
from lawm.evaluation import Clips, Probed, Subject, collect, r_squared, ridge
from lawm.recipes import recipe
from lawm.simulation import simulate_pusht
from lawm.training import (
    ClipBatch,
    LatentActionObjective,
    build_latent_action,
    collate,
    local_batches,
    model_of,
    pick_device,
    settings,
    train,
    validate,
)
from lawm.video import probe

WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"target": "off"},
    "online, no distillation": {"target": "online", "distillation": 0.0},
    "online, distillation 0.1": {"target": "online", "distillation": 0.1},
    "EMA, no distillation": {"target": "ema", "distillation": 0.0},
    "EMA, distillation 0.1": {"target": "ema", "distillation": 0.1},
}
KEPT = ("state_std", "state_change", "state_rank")


def pusht(folder: Path, episodes: int) -> Config:
    """The demo's config on PushT videos in `folder`, simulated and indexed if they are not there."""
    labels = simulate_pusht(str(folder / "videos"), episodes)
    index = folder / "index.parquet"
    if not index.exists():
        videos = list_videos([str(folder / "videos")])
        write_index(rows_to_table([probe(ref, VideoLimits()) for ref in videos]), str(index))
    base = recipe("demo")
    return base.model_copy(update={"data": base.data.model_copy(update={"index": str(index), "labels": labels})})


def as_way(config: Config, way: dict[str, Any], args: Any, steps: int, stop: bool = False) -> Config:
    log = max(steps // 30, 1)
    loop = TrainConfig(steps=steps, batch=16, log_every=log, checkpoint_every=steps)
    monitor = {} if stop else {"stop_below": 0.0}
    tuning = FineTuneConfig(lr=args.lr, momentum=args.momentum, gradient_checkpointing=False, **monitor, **way)
    return config.model_copy(update={"train": loop, "fine_tune": tuning})


@torch.no_grad()
def probed(model: LatentActionObjective, batches: list[ClipBatch]) -> Probed:
    return Probed.join([collect(Subject(model), Clips(model, b, [clip.key for clip in b.clips])) for b in batches])


def run(config: Config, reader: ClipReader, held_out: list[ClipBatch], fit: list[ClipBatch]) -> dict[str, Any]:
    """Trains one way; its curve, and what the trained model measures on held-out clips."""
    torch.manual_seed(0)
    objective = build_latent_action(config)
    objective.calibrate(fit[0])
    curve: list[dict[str, float]] = []

    def batches(cursor: Cursor) -> Iterator[ClipBatch]:
        return local_batches(reader, config.train.batch, cursor)

    def report(step: int, metrics: dict[str, float], checkpoint: object) -> None:
        names = ("prediction", "copy_last_state", *KEPT)
        curve.append({"step": step, **{n: round(metrics[n], 4) for n in names if n in metrics}})

    stopped = ""
    try:
        train(objective, batches, config, report)
    except LawmError as error:
        stopped = str(error)
    objective.eval()
    device = pick_device()
    _, loop = settings(config, objective.kind)
    model = model_of(objective)
    copied = [float((s[:, 1:] - s[:, :-1]).abs().mean()) for s in (model.states(b.to(device)) for b in held_out)]
    error = validate(objective, held_out, device, loop.precision)["val_prediction"]
    objective.eval()
    probes = probed(model, held_out)
    return {
        "last": curve[-1],
        "val_error": error,
        "val_copy": sum(copied) / len(copied),
        "probe_r2": r_squared(ridge(probed(model, fit))(probes.z), probes.actions),
        "stopped": stopped,
        "curve": curve,
    }


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--data", type=Path, default=Path("runs/fine_tune"), metavar="FOLDER")
    made.add_argument("--lr", type=float, default=1e-4, help="of the encoder (default: %(default)s)")
    made.add_argument("--momentum", type=float, default=0.99)
    made.add_argument("--steps", type=int, default=0, metavar="N")
    made.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    args = made.parse_args(argv)
    steps = args.steps or (4 if args.quick else 300)
    config = pusht(args.data, 24 if args.quick else 150)
    count = 16 if args.quick else 256

    def clips(split: Any) -> list[ClipBatch]:
        found = first_clips(ClipReader(config, split, labelled=True), count)
        return [collate(found[i : i + 32]) for i in range(0, len(found), 32)]

    reader, fit, held_out = ClipReader(config), clips("train"), clips("val")
    found: dict[str, Any] = {}

    def say(name: str, result: dict[str, Any]) -> None:
        last = result["last"]
        kept = ", ".join(f"{k} {last[k]:.3g}" for k in KEPT if k in last)
        over = result["val_error"] / max(result["val_copy"], 1e-12)
        print(f"{name}: step {last['step']}, training error {last['prediction']:.4g}; {kept}")
        print(
            f"  held out: error {result['val_error']:.4g}, error / copy {over:.3g}, probe R2 {result['probe_r2']:.3g}"
        )
        if result["stopped"]:
            print("  " + result["stopped"])

    for name in args.ways:
        found[name] = run(as_way(config, WAYS[name], args, steps), reader, held_out, fit)
        say(name, found[name])
    for name in [n for n in args.ways if WAYS[n]["target"] == "online"][:1]:
        found["monitored"] = run(as_way(config, WAYS[name], args, steps, stop=True), reader, held_out, fit)
        say(f"{name}, monitored", found["monitored"])
    figures = {"steps": steps, "encoder_lr": args.lr, "momentum": args.momentum, "ways": found}
    finish("fine_tune", figures, ("lawm", "torch", "timm", "gym-pusht"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
