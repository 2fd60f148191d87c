"""What an evaluation costs: two actors against one, Ray against a plain loop, and how often a clip is encoded.

    python -m benchmarks.evaluation --run runs/demo        a folder of `lawm demo`
    python -m benchmarks.evaluation --run runs/demo --quick

Every round measures the same units of held-out labelled clips, decoded from the videos, with the whole suite: in a loop
of this process on one core, by one actor, and by two. Actors have loaded their models before the clock starts.
`two_actor_speedup` is one actor's time over that of two, `vs_plain_loop` the loop's over one actor's, `encoded_once`
how many clips the encoder was given for each clip that was measured. The last line is one JSON object.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import finish, parser, spread
from jobs.demo import PUSHT, Demo
from lawm.cluster.actors import Actors
from lawm.cluster.evaluate import Company, Evaluator, check_asked, fit_all
from lawm.cluster.parts import Found, Unit
from lawm.cluster.session import start
from lawm.config import Config, LawmError, override
from lawm.evaluation import SUITE
from lawm.recipes import recipe

PACKAGES = ("lawm", "torch", "ray")


def setting(run: Path, clips: int) -> tuple[Config, Company]:
    """The demo's config on its videos, without the cache, and its model's company."""
    if not (run / "model").is_dir():
        raise LawmError(f"--run {run}: no folder of `lawm demo` (it has no model)")
    config = Demo(recipe("demo"), run.resolve(), 0).on(PUSHT, cache=None)
    config = override(override(config, "evaluate.clips", clips), "evaluate.batch", 20)
    model, twin, controller = (str(run.resolve() / name) for name in ("model", "deterministic", "controller"))
    return config, Company(model, twin, controller=controller)


def counted_loop(evaluator: Evaluator, units: list[Unit], fitted: dict[str, Any]) -> tuple[float, int, int]:
    """Seconds of the plain loop, clips measured, and clips that the encoder was given."""
    encoder, given = evaluator.subject.model.encoder, 0

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal given
        given += len(inputs[0])

    hook = encoder.register_forward_pre_hook(count)
    began, clips = time.perf_counter(), 0
    for unit in units:
        clips += len(evaluator.run(unit, fitted).clips)
    hook.remove()
    return time.perf_counter() - began, clips, given


def timed(config: Config, company: Company, actors: int, units: list[Unit], fitted: dict[str, Any]) -> float:
    """Seconds that so many actors take for the units, once they have their models."""
    pool = override(config, "cluster.evaluate_actors", 2)  # one thread each, whatever their number
    with Actors(Evaluator, (pool, company), actors, pool.cluster) as pool_of:
        warm = [replace(units[0], positions=units[0].positions[:4])] * actors
        pool_of.spread("run", warm, lambda number, found: None, fitted)
        began = time.perf_counter()
        pool_of.spread("run", units, lambda number, found: None, fitted)
        return time.perf_counter() - began


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, default=Path("runs/demo"), help="a folder of `lawm demo`")
    options.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    args = options.parse_args()
    rounds = 1 if args.quick else args.rounds
    config, company = setting(args.run, 40 if args.quick else 160)
    work = check_asked(config, company, tuple(SUITE))
    torch.set_num_threads(1)
    alone = Evaluator(config, company)
    collected: list[Found] = [alone.run(unit, {}) for unit in work.fits]
    fitted, _ = fit_all(collected, work, config.evaluate.seed)
    seconds: dict[str, list[float]] = {"plain": [], "one": [], "two": []}
    clips = encoded = 0
    with start(config.cluster):
        ways: dict[str, Callable[[], float]] = {
            "one": lambda: timed(config, company, 1, work.units, fitted),
            "two": lambda: timed(config, company, 2, work.units, fitted),
        }
        for number in range(rounds):
            took, clips, encoded = counted_loop(alone, work.units, fitted)
            seconds["plain"].append(took)
            for name, way in ways.items():
                seconds[name].append(way())
            print(f"round {number}: " + ", ".join(f"{n} {took[-1]:.1f} s" for n, took in seconds.items()), flush=True)
    pairs = {"two_actor_speedup": ("one", "two"), "vs_plain_loop": ("plain", "one")}
    figures: dict[str, Any] = {
        name: spread([a / b for a, b in zip(seconds[of], seconds[over], strict=True)])
        for name, (of, over) in pairs.items()
    }
    figures["encoded_once"] = encoded / clips
    figures |= {f"clips_per_s_{name}": spread([clips / took for took in all_]) for name, all_ in seconds.items()}
    finish("evaluation", {**figures, "clips": clips, "evaluations": len(SUITE), "rounds": rounds}, PACKAGES)


if __name__ == "__main__":
    main()
