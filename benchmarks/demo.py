"""The demo's quality: its gates, checked on the last `lawm demo`, or on seeds trained afresh.

    python -m benchmarks.demo                     reads runs/demo/results.json
    python -m benchmarks.demo --seeds 3           trains 3 seeds of the demo recipe and its twin (long)
    python -m benchmarks.demo --seeds 3 --also    and sparse and discrete at this scale's strengths
    python -m benchmarks.demo --sweep             which strengths those are

The last line is a JSON object with the mean of each figure over seeds, its spread, and whether its gate holds.
"""

from pathlib import Path
from typing import Any

from benchmarks._common import finish, parser
from jobs._run import Fit, read_results, train_on_ray
from jobs.demo import GATES, PUSHT, Demo, measure, prepare_data
from lawm.config import Config, LawmError, override
from lawm.evaluation import Result
from lawm.recipes import recipe

ALSO: dict[str, dict[str, Any]] = {
    "sparse": {"kind": "sparse", "lambda_l1": 0.001, "lambda_v": 0.1},
    "discrete": {"kind": "discrete", "codebook_size": 256, "reset_after": 480},
}
"""Other bottlenecks, at the strengths that `--sweep` found best at this scale."""

SWEEP: dict[str, list[dict[str, Any]]] = {
    "sparse": [
        {"kind": "sparse", "lambda_l1": l1, "lambda_v": variance}
        for l1, variance in ((1e-3, 0.1), (1e-4, 0.1), (1e-3, 1.0), (1e-4, 1.0))
    ],
    # A code unused for 1 % of a run's latents is re-seeded, as in the paper's setting; never, in one so short as this.
    "discrete": [
        {"kind": "discrete", "codebook_size": size, **({"reset_after": unused} if unused else {})}
        for size, unused in ((16, None), (64, None), (256, None), (16, 480), (64, 480), (64, 2400), (256, 480))
    ],
}
SWEEP_SEED = 100
PACKAGES = ("lawm", "torch", "ray", "gym-pusht")
MOST_CYCLE = next(at_most for key, _, at_most, _ in GATES if key == "cycle")


def figures_of(results: list[Result]) -> dict[str, Result]:
    """The gated figures of one seed, by key."""
    held_out = {r.name: r for r in results if r.dataset.startswith("PushT")}
    return {key: held_out[name] for key, name, _, _ in GATES if name in held_out}


def seeded(config: Config, seed: int) -> Config:
    """The config with every seed set."""
    for part in ("train", "controller.train", "decoder.train", "data", "evaluate", "plan"):
        config = override(config, f"{part}.seed", seed)
    return config


def beside(data: Path, config: Config, out: Path, episodes: int, *also: Path) -> Demo:
    """A demo in `out` on shared data; `also`: runs that it shares."""
    out.mkdir(parents=True, exist_ok=True)
    for source in (*(data / name for name in ("pusht", "index.parquet", "cache")), *also):
        if not (out / source.name).is_symlink():
            (out / source.name).symlink_to(source.resolve())
    return Demo(config, out, episodes)


def in_pairs(fits: list[Fit]) -> None:
    """Two runs at a time: one core each."""
    for i in range(0, len(fits), 2):
        train_on_ray(*fits[i : i + 2])


def model_fit(demo: Demo) -> Fit:
    return Fit(demo.out.name, demo.on(None, labels=None), "latent_action", demo.path("model"))


def train_afresh(seeds: int, out: Path, episodes: int, also: bool) -> dict[str, list[list[Result]]]:
    """Results of every variant and seed, all beside one deterministic twin a seed. A rerun goes on."""
    base = recipe("demo")
    variants: dict[str, Any] = {base.model.bottleneck.kind: base.model.bottleneck.model_dump()}
    variants |= ALSO if also else {}
    found: dict[str, list[list[Result]]] = {name: [] for name in variants}
    data = shared_data(base, out, episodes)
    for seed in range(seeds):
        twin = beside(data, seeded(base, seed), out / f"twin-{seed}", episodes)
        twin_run = twin.out / "deterministic"
        demos = []
        for name, bottleneck in variants.items():
            config = override(seeded(base, seed), "model.bottleneck", bottleneck)
            demos.append(beside(data, config, out / f"{name}-{seed}", episodes, twin_run))
        todo = [demo for demo in demos if not (demo.out / "results.json").exists()]
        if todo:
            title = f"deterministic-{seed}"
            fits = [Fit(title, twin.variant("deterministic"), "latent_action", str(twin_run))]
            in_pairs([*map(model_fit, todo), *fits])
            in_pairs([Fit(d.out.name, d.on(PUSHT), "controller", d.path("controller"), d.path("model")) for d in todo])
        for name, demo in zip(variants, demos, strict=True):
            if demo in todo:
                measure(demo)
            found[name].append(read_results(str(demo.out / "results.json")).results)
    return found


def shared_data(base: Config, out: Path, episodes: int) -> Path:
    """The folder of videos, index and states that all runs read; made where it is not there."""
    data = Demo(base, out / "data", episodes)
    data.out.mkdir(parents=True, exist_ok=True)
    prepare_data(data)
    return data.out


def sweep(out: Path, episodes: int) -> dict[str, Any]:
    """The strength of each other bottleneck with the least one-step error among those whose cycle ratio
    holds its gate (where none does: the best cycle ratio). One seed, none of those in the table."""
    from lawm.cluster.evaluate import Company, evaluate

    base = recipe("demo")
    data = shared_data(base, out, episodes)
    tried: dict[str, list[tuple[dict[str, Any], Demo]]] = {}
    for name, strengths in SWEEP.items():
        tried[name] = []
        for i, strength in enumerate(strengths):
            config = override(seeded(base, SWEEP_SEED), "model.bottleneck", strength)
            tried[name].append((strength, beside(data, config, out / f"sweep-{name}-{i}", episodes)))
    in_pairs([model_fit(demo) for rows in tried.values() for _, demo in rows])
    best: dict[str, Any] = {}
    for name, rows in tried.items():
        measured = []
        for strength, demo in rows:
            results = evaluate(demo.on(PUSHT), Company(demo.path("model")), dataset="PushT").results
            by_name = {r.name: round(r.value, 4) for r in results}
            figures = {
                k: by_name.get(k) for k in ("error_vs_copy", "shuffled_vs_error", "probe_r2_linear", "cycle_ratio")
            }
            print(f"{strength} {figures}", flush=True)
            measured.append({"strength": strength, **figures})
        holding = [m for m in measured if m["cycle_ratio"] <= MOST_CYCLE]
        chosen = (
            min(holding, key=lambda m: m["error_vs_copy"]) if holding else min(measured, key=lambda m: m["cycle_ratio"])
        )
        best[name] = {"chosen": chosen["strength"], "tried": measured}
    return best


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
        seeds = [[None if x is None else round(x, 4) for x in (v.value, v.low, v.high)] for v in values]
        detail[key] = {"seeds": seeds, "at_most": at_most, "at_least": at_least, "holds": holds}
        every = every and holds
    return means, detail, every


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="train N seeds afresh (default: read the last demo)"
    )
    made.add_argument("--also", action="store_true", help="with --seeds: sparse and discrete as well")
    made.add_argument("--sweep", action="store_true", help="find the strengths of sparse and discrete, one seed")
    made.add_argument("--out", type=Path, default=None, help="default: runs/demo, or runs/demo-seeds with --seeds")
    made.add_argument("--episodes", type=int, default=700, help="PushT episodes (default: 700)")
    args = made.parse_args(argv)
    from lawm.cluster.session import start

    out = (args.out or Path("runs/demo-seeds")).resolve()
    if args.sweep:
        with start(recipe("demo").cluster):
            figures = sweep(out, args.episodes)
        finish("demo_sweep", figures, PACKAGES)
        return 0
    if args.seeds and not args.quick:
        with start(recipe("demo").cluster):
            found = train_afresh(args.seeds, out, args.episodes, args.also)
    else:
        where = (args.out or Path("runs/demo")) / "results.json"
        if not where.exists():
            raise LawmError(f"{where}: no results of a demo; run `make demo`, or give --seeds N")
        found = {"demo": [read_results(str(where)).results]}
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
    finish("demo", figures, PACKAGES)
    return 0 if every else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except LawmError as error:
        raise SystemExit(f"benchmarks.demo: {error}") from None
