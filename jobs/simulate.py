"""Simulates robots with true actions: PushT (gym-pusht), a Franka Panda (robosuite), or driving (MiniWorld).

    lawm simulate --out pusht
    lawm simulate navigation --out driving
    lawm simulate panda --out panda

PushT is written as H.264 in tar shards beside labels.parquet, frames at the recipe's data.clip.fps. --distractors and
--shake add what no action moves; the physics and the actions stay the same, and nuisances.parquet, a table of labels
as well, says how these move. The others are LeRobot v3 data sets (`lawm dataset lerobot FOLDER` reads them), episodes
spread over Ray. A rerun of the same command after an interruption goes on.
"""

import argparse
import shlex
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jobs._cli import base_parser, describe, resolve_config, run_job
from jobs._run import counted
from lawm import storage
from lawm.config import Config, LawmError
from lawm.simulation import NavigationSpec, PandaSpec, PushTSpec, pusht_settings, simulate_pusht


def parser() -> argparse.ArgumentParser:
    parser = base_parser("simulate", __doc__)
    parser.add_argument("world", nargs="?", default="pusht", choices=("pusht", "panda", "navigation"), help="(pusht)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new or unfinished folder, or s3:// prefix")
    parser.add_argument("--episodes", type=int, default=300, metavar="N", help="episodes in all (default: 300)")
    parser.add_argument("--seed", type=int, metavar="S", help="episode e depends on S and e alone (default: data.seed)")
    parser.add_argument("--shard-size", type=int, default=100, metavar="K", help="episodes a tar (default: 100)")
    parser.add_argument(
        "--states", type=int, metavar="T", help="frames an episode (default: 16; navigation 32, panda 30)"
    )
    parser.add_argument("--size", type=int, default=128, metavar="PIXELS", help="side of the pictures (default: 128)")
    add_nuisances(parser)
    parser.add_argument("--processes", type=int, default=1, metavar="P", help="processes of one thread (default: 1)")
    return parser


def add_nuisances(parser: argparse.ArgumentParser) -> None:
    """What no action moves."""
    parser.add_argument(
        "--distractors", type=int, nargs="?", const=6, default=0, metavar="N",
        help="discs that move at random, under and over the scene (default: none; without a number: 6)",
    )  # fmt: skip
    parser.add_argument(
        "--shake", type=float, nargs="?", const=1.0, default=0.0, metavar="X",
        help="a camera that moves, turns and zooms at random (default: still; without a number: 1)",
    )  # fmt: skip


@run_job
def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    config = resolve_config(args)
    if storage.is_s3(args.out):  # a local folder is looked into further on
        storage.check_folder(args.out)
    seed = config.data.seed if args.seed is None else args.seed
    if args.world != "pusht":
        return _on_ray(config, args, seed)
    args.states = args.states or 16
    more = {"distractors": args.distractors, "shake": args.shake}
    spec = PushTSpec(states=args.states, rate_hz=config.data.clip.fps, size=args.size, **more)
    if args.dry_run:
        _describe(config, args, spec, seed)
    else:
        _simulate(args, spec, seed)
    return 0


def _on_ray(config: Config, args: argparse.Namespace, seed: int) -> int:
    """Navigation and Panda."""
    if args.shake or (args.distractors and args.world == "navigation"):
        raise LawmError("--shake is PushT's alone, and so are --distractors but for panda's one")
    more: dict[str, Any] = {"size": args.size} | ({"states": args.states} if args.states else {})
    spec: Any = NavigationSpec(**more)
    if args.world == "panda":
        spec = PandaSpec(**more, distractors=args.distractors)
    if args.dry_run:
        settings = {"world": args.world, "episodes": args.episodes, "seed": seed, **vars(spec)}
        describe(config, [f"{args.processes} actors"], None, simulate={"out": args.out, **settings})
        return 0
    from lawm.cluster.session import start
    from lawm.cluster.simulate import simulate_on_ray

    out, began = storage.absolute(args.out), time.monotonic()
    with start(config.cluster), counted("simulate") as show:
        made = simulate_on_ray(
            args.world, spec, out, args.episodes, seed, args.processes, config.cluster,
            lambda done, total: show(done, total, "episodes"),
        )  # fmt: skip
    speed = f", {made / (time.monotonic() - began):.1f} a second" if made else ""
    print(f"{args.out}: {args.episodes} episodes ({made} new{speed})")
    print(f"next: lawm dataset lerobot {shlex.quote(args.out)} --out {shlex.quote(args.out.rstrip('/') + '-data')}")
    return 0


def _describe(config: Config, args: argparse.Namespace, spec: PushTSpec, seed: int) -> None:
    clips = args.episodes * (spec.states // config.data.clip.frames)
    settings = pusht_settings(args.episodes, seed, spec, args.shard_size)
    describe(config, [f"{args.processes} CPU, on this machine"], clips, simulate={"out": args.out, **settings})


def _simulate(args: argparse.Namespace, spec: PushTSpec, seed: int) -> None:
    bar = Progress(
        TextColumn("simulate"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task("simulate", total=args.episodes)
    began, made = time.monotonic(), 0

    def progress(done: int, written: int) -> None:
        nonlocal made
        made = written
        bar.start()  # not before the settings and the folder have been found good
        bar.update(task, completed=done)

    try:
        labels = simulate_pusht(
            args.out,
            args.episodes,
            seed,
            spec=spec,
            shard_size=args.shard_size,
            processes=args.processes,
            progress=progress,
        )
    finally:
        bar.stop()
    speed = f", {made / (time.monotonic() - began):.1f} a second" if made else ""
    print(f"{args.out}: {args.episodes} episodes ({made} new{speed})\nlabels: {labels}")


if __name__ == "__main__":
    sys.exit(main())
