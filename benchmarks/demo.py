"""The demo's quality: its gates, checked on the last `lawm demo`, or on seeds trained afresh.

    python -m benchmarks.demo                     reads runs/demo/results.json
    python -m benchmarks.demo --seeds 3           trains 3 seeds of the demo recipe and its twin (long)
    python -m benchmarks.demo --seeds 3 --also    and sparse and discrete at this scale's strengths

The last line is a JSON object with the mean of each figure over seeds, its spread, and whether its gate holds.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks._common import finish, parser
from jobs.demo import GATES, Demo, measure, prepare_data, train_all
from lawm.config import Config, LawmError, override, recipe
from lawm.evaluation import Result

ALSO = {
    "sparse": {"model.bottleneck": {"kind": "sparse", "lambda_l1": 0.001}},
    "discrete": {"model.bottleneck": {"kind": "discrete", "codebook_size": 64}},
}
"""Other bottlenecks, at the strengths that tune_spaces/ found best at this scale."""


def figures_of(results: list[Result]) -> dict[str, Result]:
    """The gated figures of one seed, by key."""
    held_out = {r.name: r for r in results if r.dataset.startswith("PushT")}
    return {key: held_out[name] for key, name, _, _ in GATES if name in held_out}


def one_seed(config: Config, out: Path, data: Path, episodes: int, seed: int) -> list[Result]:
    """Trains and measures one seed on shared data; results are kept, so that a rerun goes on."""
    for field in (
        "train.seed",
        "controller.train.seed",
        "decoder.train.seed",
        "data.seed",
        "evaluate.seed",
        "plan.seed",
    ):
        config = override(config, field, seed)
    demo = Demo(config, out, episodes)
    kept = out / "results.json"
    if not kept.exists():
        out.mkdir(parents=True, exist_ok=True)
        for name in ("pusht", "index.parquet", "cache"):
            if not (out / name).exists():
                (out / name).symlink_to((data / name).resolve())
        train_all(demo, decoder=False)
        measure(demo)
    return [Result(**row) for row in json.loads(kept.read_text())]


def train_afresh(seeds: int, out: Path, episodes: int, also: bool) -> dict[str, list[list[Result]]]:
    """Results of every variant and seed."""
    from lawm.cluster.session import start

    base = recipe("demo")
    variants: dict[str, dict[str, Any]] = {base.model.bottleneck.kind: {}} | (ALSO if also else {})
    found: dict[str, list[list[Result]]] = {}
    with start(base.cluster):
        data = Demo(base, out / "data", episodes)
        data.out.mkdir(parents=True, exist_ok=True)
        prepare_data(data)
        for name, changes in variants.items():
            config = base
            for path, value in changes.items():
                config = override(config, path, value)
            found[name] = [one_seed(config, out / f"{name}-{seed}", data.out, episodes, seed) for seed in range(seeds)]
    return found


def row(results: list[list[Result]]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """(mean of each figure, its value and interval for each seed, whether every gate holds)."""
    means: dict[str, Any] = {}
    detail: dict[str, Any] = {}
    every = True
    for key, _, at_most, at_least in GATES:
        values = [figures_of(r)[key] for r in results if key in figures_of(r)]
        if not values:
            means[key], every = None, False
            continue
        mean = sum(v.value for v in values) / len(values)
        holds = (at_most is None or mean <= at_most) and (at_least is None or mean >= at_least)
        means[key] = round(mean, 4)
        seeds = [[round(v.value, 4), round(v.low, 4), round(v.high, 4)] for v in values]
        detail[key] = {"seeds": seeds, "at_most": at_most, "at_least": at_least, "holds": holds}
        every = every and holds
    return means, detail, every


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="train N seeds afresh (default: read the last demo)"
    )
    made.add_argument("--also", action="store_true", help="with --seeds: sparse and discrete as well")
    made.add_argument("--out", type=Path, default=None, help="default: runs/demo, or runs/demo-seeds with --seeds")
    made.add_argument("--episodes", type=int, default=700, help="PushT episodes (default: 700)")
    args = made.parse_args(argv)
    if args.seeds and not args.quick:
        out = (args.out or Path("runs/demo-seeds")).resolve()
        found = train_afresh(args.seeds, out, args.episodes, args.also)
    else:
        where = (args.out or Path("runs/demo")) / "results.json"
        if not where.exists():
            raise LawmError(f"{where}: no results of a demo; run `make demo`, or give --seeds N")
        found = {"demo": [[Result(**r) for r in json.loads(where.read_text())]]}
    every, others = True, {}
    first: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for i, (name, results) in enumerate(found.items()):
        means, detail, holds = row(results)
        for key, value in means.items():
            said = detail.get(key, {})
            print(
                f"{name:10s} {key:24s} {value}  seeds {said.get('seeds')}  {'holds' if said.get('holds') else 'MISSED'}"
            )
        if i == 0:
            first, every = (means, detail), holds
        else:
            others[name] = {"figures": means, "detail": detail}
    figures = {
        **first[0],
        "gates_hold": every,
        "detail": first[1],
        "others": others,
        "seeds": len(next(iter(found.values()))),
    }
    finish("demo", figures, ("lawm", "torch", "ray", "gym-pusht"))
    return 0 if every else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except LawmError as error:
        raise SystemExit(f"benchmarks.demo: {error}") from None
