"""The tables and figures that can be made again: which models each takes, what is measured, and how rows are laid out.

One more is an entry of `EXPERIMENTS`. Models are variants of a recipe; those that experiments share are trained once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lawm.config import Config, override
from lawm.reproduction import published as printed
from lawm.reproduction.strengths import FAMILIES, Family, Scale, Strength, at, sweep

PAPER, REPORT = "Garrido et al. 2026", "Yang 2026"


@dataclass(frozen=True)
class Variant:
    """A model of an experiment: the recipe with `settings` (config fields) and, where `robot_share` is given, with that
    share of the robot's clips among its training clips."""

    latents: str
    capacity: str
    said: str
    settings: Mapping[str, Any]
    robot_share: float | None = None
    x: float | None = None
    """Where it stands on the axis of a figure."""

    @property
    def key(self) -> tuple[str, str]:
        return self.latents, self.capacity

    def of(self, config: Config) -> Config:
        """The config of this variant."""
        for path, value in self.settings.items():
            config = override(config, path, value)
        return config


@dataclass(frozen=True)
class Column:
    """A measured figure: `name` in states, `pixels` its name with a decoder (or ''); `key` of what was published."""

    title: str
    name: str
    key: str = ""
    pixels: str = ""


Need = Literal["controller", "planning", "deterministic", "unconstrained", "robot"]


@dataclass(frozen=True)
class Experiment:
    """`variants(scale, config)`: its rows. `suite`: evaluations of each; `needs`: what else is trained or done.
    `over_steps`: all kept checkpoints are measured, for a curve. `differs`: what a reader of both has to know."""

    name: str
    title: str
    source: str
    variants: Callable[[Scale, Config], list[Variant]]
    suite: tuple[str, ...]
    columns: tuple[Column, ...]
    needs: frozenset[Need] = frozenset()
    published: printed.Rows = field(default_factory=dict)
    differs: str = ""
    x_label: str = ""
    curves: tuple[str, ...] = ()
    """Figures that are drawn over x, or over the training steps."""
    over_steps: bool = False
    absent: tuple[str, ...] = ()
    """What of the published table cannot be had, and why."""


def variant_of(strength: Strength, capacity: str) -> Variant:
    settings = {f"model.bottleneck.{name}": value for name, value in strength.settings.items()}
    return Variant(strength.family, capacity, strength.name, settings, x=strength.value)


def levels(*of: tuple[Family, tuple[str, ...]]) -> Callable[[Scale, Config], list[Variant]]:
    """Families at low, mid or high capacity."""

    def make(scale: Scale, config: Config) -> list[Variant]:
        return [variant_of(at(scale, family, capacity), capacity) for family, every in of for capacity in every]

    return make


def sweeps(scale: Scale, config: Config) -> list[Variant]:
    """All families at all strengths."""
    return [variant_of(one, f"{one.rank + 1} of {len(sweep(scale, f))}") for f in FAMILIES for one in sweep(scale, f)]


ENDS = levels(("sparse", ("low", "high")), ("noisy", ("low", "high")), ("discrete", ("low", "high")))
THREE = levels(("sparse", ("low", "mid", "high")), ("noisy", ("low", "mid", "high")), ("discrete", ("low", "high")))
REPORT_ENDS = levels(("sparse", ("high", "low")), ("noisy", ("high", "low")), ("discrete", ("high", "low")))
REPORTED = levels(("sparse", ("high", "low")), ("noisy", ("high", "low")))

SIZES: dict[Scale, tuple[tuple[str, int, int, int], ...]] = {
    "paper": (("ViT-S", 384, 12, 6), ("ViT-B", 768, 12, 12), ("ViT-L", 1024, 24, 16), ("ViT-H", 1280, 32, 16)),
    "report": (("ViT-S", 384, 12, 6), ("ViT-B", 768, 12, 12), ("ViT-L", 1024, 24, 16)),
    "demo": (("width 32", 32, 3, 4), ("width 64", 64, 3, 4), ("width 128", 128, 3, 4), ("width 192", 192, 3, 4)),
}
"""World models: name, width, depth, heads."""
SHARES = (0.25, 0.5, 1.0)


def scaling(scale: Scale, config: Config) -> list[Variant]:
    """Model size, training time and data quantity, each for itself (figure 12), of sparse and noisy latents."""
    found = []
    middle: tuple[Strength, ...] = (at(scale, "sparse", "high"), at(scale, "noisy", "mid"))
    for strength in middle:
        plain = variant_of(strength, "")
        for name, width, depth, heads in SIZES[scale]:
            size = {"model.world_model": config.model.world_model.model_copy(
                update={"width": width, "depth": depth, "heads": heads,
                        "activation_checkpointing": width >= 1280}).model_dump()}  # fmt: skip
            found.append(Variant(strength.family, f"size: {name}", strength.name, {**plain.settings, **size}, x=width))
        for share in SHARES:
            steps = max(1, round(config.train.steps * share))
            time = {"train.steps": steps, "train.checkpoint_every": steps}
            found.append(
                Variant(strength.family, f"time: {steps} steps", strength.name, {**plain.settings, **time}, x=steps)
            )
        for share in SHARES:
            data = {"data.train_fraction": share}
            found.append(
                Variant(strength.family, f"data: {share:.0%}", strength.name, {**plain.settings, **data}, x=share)
            )
    return found


MIX = (0, 10, 25, 50, 75, 90, 100)


def mixing(scale: Scale, config: Config) -> list[Variant]:
    """The robot's share of the training clips, of sparse and noisy latents."""
    found = []
    for family in ("sparse", "noisy"):
        strength = at(scale, family, "mid" if family == "noisy" else "high")
        settings = variant_of(strength, "").settings
        found += [Variant(family, f"{percent} %", strength.name, settings, percent / 100, percent) for percent in MIX]
    return found


CHECKPOINTS = 8
"""Of a run whose training is followed."""


def dropout(scale: Scale, config: Config) -> list[Variant]:
    """Latents that are dropped at random in training, and not."""
    settings = dict(variant_of(at(scale, "sparse", "high"), "").settings)
    every = max(1, config.train.steps // CHECKPOINTS)
    settings |= {"train.checkpoint_every": every, "train.keep": CHECKPOINTS + 1}
    return [
        Variant("sparse", f"p = {p:g}", f"action dropout {p:g}", {**settings, "model.action_dropout": p}, x=p)
        for p in (0.0, 0.15)
    ]


CUTS = (
    Column("without a cut", "error_without_cut", "without_change", "without_cut"),
    Column("with a cut", "error_at_cut", "with_change", "at_cut"),
    Column("ratio", "leakage_ratio", "ratio", "leakage_ratio"),
    Column("leakage score", "leakage_score"),
    Column("its twin's ratio", "leakage_ratio_no_latent"),
)
CYCLES = (
    Column("original", "cycle_original_error", "original", "cycle_original"),
    Column("transfer", "cycle_transfer_error", "transfer", "cycle_transfer"),
    Column("ratio", "cycle_ratio", "ratio", "cycle_ratio"),
    Column("shuffled / transfer", "cycle_shuffled_vs_transfer"),
)
CONTROL = (
    Column("IDM", "idm_rollout_error", "idm", "idm_rollout"),
    Column("controller", "controller_rollout_error", "controller", "controller_rollout"),
    Column("ratio", "controller_vs_idm", "ratio", "controller_vs_idm"),
)
PLANNING = (
    Column("planning error", "planning_error", "delta_xyz"),
    Column("against no action", "planning_vs_no_action"),
    Column("against random", "planning_vs_random"),
)
CAPACITY = (
    Column("one step", "one_step_error"),
    Column("unrolled", "unrolled_error"),
    Column("normalised capacity", "normalized_capacity"),
    Column("against deterministic", "error_vs_deterministic"),
)
STATES = (
    "Errors here are L1 of normalised encoder states where the paper has LPIPS of decoded pictures: compare ratios, "
    "not errors."
)
NWM = "ATE and RPE: lawm has no protocol `nwm-recon` yet, because its normalisation constants could not be confirmed."

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one
    for one in (
        Experiment(
            "table1", "Scene cuts (table 1)", PAPER, ENDS, ("leakage",), CUTS, frozenset({"deterministic"}),
            printed.TABLE1, STATES,
        ),
        Experiment(
            "table2", "Cycle consistency over 2 s (table 2)", PAPER, ENDS, ("cycle",), CYCLES,
            published=printed.TABLE2, differs=STATES,
        ),
        Experiment(
            "figure4", "Capacity of each family (figure 4)", PAPER, sweeps, ("capacity",), CAPACITY,
            frozenset({"deterministic", "unconstrained"}), x_label="strength of the limit",
            curves=("one_step_error", "normalized_capacity"),
            differs=f"{STATES} The paper prints figure 4 as a picture, without numbers.",
        ),
        Experiment(
            "figure11", "Controller and planning over capacity (figure 11)", PAPER, sweeps, ("capacity", "control"),
            (CAPACITY[0], CAPACITY[3], *CONTROL, *PLANNING),
            frozenset({"deterministic", "controller", "planning", "robot"}), x_label="one_step_error",
            curves=("controller_vs_idm", "planning_error"),
            differs=f"{STATES} The paper prints figure 11 as a picture; its numbers are tables S1 and S2.",
        ),
        Experiment(
            "figure12", "Model size, training time, data quantity (figure 12)", PAPER, scaling,
            ("capacity", "control"), (CAPACITY[0], CAPACITY[1], CONTROL[1], *PLANNING),
            frozenset({"controller", "planning", "robot"}), x_label="size, time or data",
            curves=("one_step_error", "planning_error"),
            differs=f"{STATES} The paper prints figure 12 as a picture, without numbers.",
        ),
        Experiment(
            "tableS1", "Controller and planning on a robot arm (table S1)", PAPER, THREE, ("control",),
            (*CONTROL, *PLANNING), frozenset({"controller", "planning", "robot"}), printed.TABLE_S1,
            f"{STATES} Planning errors are comparable on DROID alone, in metres.",
        ),
        Experiment(
            "tableS2", "Controller and planning in navigation (table S2)", PAPER, THREE, ("control",),
            (*CONTROL, *PLANNING), frozenset({"controller", "planning", "robot"}), printed.TABLE_S2, STATES,
            absent=(NWM,),
        ),
        Experiment(
            "tableS3", "Share of robot data in training (table S3)", PAPER, mixing, ("control",),
            (CONTROL[1], *PLANNING), frozenset({"controller", "planning", "robot"}), printed.TABLE_S3,
            f"{STATES} Planning errors are comparable on DROID alone, in metres.", x_label="share of robot data, %",
            curves=("controller_rollout_error", "planning_error"),
        ),
        Experiment(
            "figureS1", "Drawn latents against inferred ones (figure S1)", PAPER, sweeps, ("capacity", "sampling"),
            (CAPACITY[0], Column("told apart", "sampling_score")), x_label="one_step_error",
            curves=("sampling_score",),
            differs="The paper shows UMAP pictures; here a classifier's accuracy stands (0.5: cannot be told apart).",
        ),
        Experiment(
            "report-table1", "Scene cuts (the report's table 1)", REPORT,
            REPORT_ENDS,
            ("leakage",), CUTS, frozenset({"deterministic"}), printed.REPORT1,
            "Both are L1 of states, the report's of V-JEPA 2-B's, unnormalised.",
        ),
        Experiment(
            "report-table2", "Cycle consistency (the report's table 2)", REPORT,
            REPORT_ENDS,
            ("cycle",), CYCLES, published=printed.REPORT2,
            differs="The report says that its continuous rows are 1.00 because of a bug (z' was not inferred again).",
        ),
        Experiment(
            "report-table3", "Controller and planning (the report's table 3)", REPORT, REPORTED, ("control",),
            (Column("controller cosine", "controller_cosine", "cosine"), CONTROL[2],
             Column("inverse / mean action", "inverse_controller_vs_mean"), *PLANNING),
            frozenset({"controller", "planning", "robot"}), printed.REPORT3,
            "Plans are by CEM over real actions, the report's by the nearest of 512 latent sequences; its plan "
            "confidence is a cosine, its inverse MSE in units that it does not say.",
            absent=("Plan confidence: lawm has no protocol `yang-mpc` yet.",),
        ),
        Experiment(
            "report-dropout", "Open-loop error over training with and without action dropout (the report's ablation)",
            REPORT, dropout, ("capacity",), (CAPACITY[0], CAPACITY[1], Column("last state", "unrolled_last_error")),
            x_label="training step", curves=("unrolled_error",), over_steps=True,
            differs="The report: without dropout the open-loop loss rises from 0.28 to above 0.70 over 10,000 steps, "
            "with p = 0.15 it stays near 0.28 (L1 of V-JEPA 2-B's states).",
        ),
        Experiment(
            "families", "Sparse, noisy and discrete latents of middle capacity", "as in the laom study, where nothing "
            "distracts and where it does (--distractors --shake)",
            levels(("sparse", ("mid",)), ("noisy", ("mid",)), ("discrete", ("mid",))),
            ("capacity", "leakage", "cycle", "transfer", "control", "probes"),
            (CAPACITY[3], CUTS[3], CYCLES[2], Column("transfer cosine", "transfer_cosine"),
             Column("locality", "locality"), CONTROL[2], Column("probe R²", "probe_r2_linear"), *PLANNING),
            frozenset({"deterministic", "controller", "planning", "robot"}), differs=STATES,
        ),
        Experiment(
            "claims", "The paper's claims, one by one, on a sweep of all families", PAPER, sweeps,
            ("capacity", "leakage", "cycle", "control", "probes"),
            (*CAPACITY, CUTS[2], CUTS[3], CYCLES[2], CONTROL[2], Column("probe R²", "probe_r2_linear"), *PLANNING),
            frozenset({"deterministic", "unconstrained", "controller", "planning", "robot"}),
            x_label="one_step_error", curves=("cycle_ratio", "controller_vs_idm", "planning_error"), differs=STATES,
        ),
    )
}  # fmt: skip
"""By name, as `lawm reproduce NAME` takes them."""
