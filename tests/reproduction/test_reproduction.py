"""Experiments are laid out as the paper's tables are, and claims are decided as the numbers say."""

import csv
import io
from typing import Any

import pytest

from lawm.config import override
from lawm.evaluation import Omission, Result
from lawm.recipes import RECIPES, recipe
from lawm.report import Estimate, Points, to_csv, to_markdown
from lawm.reproduction import EXPERIMENTS, Model, Variant, claims_table, experiment_table, figure_sections
from lawm.reproduction.claims import CLAIMS, decided
from lawm.reproduction.strengths import FAMILIES, at, scale_of, sweep
from lawm.reproduction.tables import missing_section


def result(name: str, value: float, low: float | None = None, high: float | None = None) -> Result:
    return Result(name, value, low, high, 10, 5, "ratio", "held-out", 30)


def model(variant: Variant, seed: int = 0, step: int = 30, **figures: float) -> Model:
    made = [result(name, value, value - 0.01, value + 0.01) for name, value in figures.items()]
    return Model(variant, seed, step, tuple(made))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_variant_is_a_config_of_the_recipe(name: str, experiment: str) -> None:
    base = recipe(name)
    variants = EXPERIMENTS[experiment].variants(scale_of(name), base)
    assert len({one.key for one in variants}) == len(variants) >= 2
    for one in variants:
        made = one.of(base)
        assert made.model.bottleneck.kind == one.latents and made.data == base.data.model_copy(
            update={"train_fraction": made.data.train_fraction}
        )
    printed = EXPERIMENTS[experiment].published
    if printed and scale_of(name) != "demo":
        assert set(printed) <= {one.key for one in variants}  # every printed row has its model


def test_strengths_are_those_of_the_appendix_strongest_first() -> None:
    assert [one.value for one in sweep("paper", "sparse")] == [0.4, 0.1, 0.08, 0.06, 0.05, 0.04, 0.02, 0.01]
    assert [one.value for one in sweep("paper", "discrete")] == [16, 1024, 4096, 32768]
    assert at("paper", "noisy", "low").value == 5e-3 and at("paper", "noisy", "high").value == 1e-6
    assert at("report", "sparse", "low").settings == {"kind": "sparse", "lambda_l1": 0.5, "hinge": "norm"}
    for family in FAMILIES:
        assert len(sweep("demo", family)) >= 4
        values = [one.value for one in sweep("demo", family)]
        assert values == sorted(values, reverse=family != "discrete")


def test_a_table_has_our_figures_and_the_printed_ones() -> None:
    experiment = EXPERIMENTS["table1"]
    low, high = (v for v in experiment.variants("paper", recipe("paper_sparse")) if v.latents == "sparse")
    models = [
        model(low, error_without_cut=0.3, error_at_cut=0.6, leakage_ratio=2.0),
        model(high, error_without_cut=0.2, error_at_cut=0.5, leakage_ratio=2.5, at_cut_lpips=0.44, at_cut_psnr=20.0),
    ]
    table = experiment_table(experiment, models)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["Capacity"] for row in rows] == ["low", "high"]
    assert (rows[0]["ratio"], rows[0]["ratio low"], rows[0]["published ratio"]) == ("2.0", "1.99", "2.3")
    assert (rows[1]["published without a cut"], rows[1]["published with a cut"]) == ("0.2", "0.5")
    assert rows[1]["with a cut, LPIPS"] == "0.44" and rows[0]["with a cut, LPIPS"] == ""
    assert not any("psnr" in name.lower() for name in rows[0])
    assert "compare ratios" in to_markdown(table) and "One seed, 95 % intervals over videos" in to_markdown(table)


def test_seeds_are_put_together_and_the_last_step_counts() -> None:
    experiment = EXPERIMENTS["table2"]
    first = experiment.variants("demo", recipe("demo"))[0]
    models = [
        model(first, 0, step=10, cycle_ratio=9.0),
        *(model(first, seed, step=20, cycle_ratio=value) for seed, value in enumerate((1.0, 1.2, 1.1))),
    ]
    table = experiment_table(experiment, models)
    assert len(table.rows) == 1
    cell = table.rows[0][list(table.columns).index("ratio")]
    assert isinstance(cell, Estimate) and cell == Estimate(pytest.approx(1.1), 1.0, 1.2)  # type: ignore[arg-type]
    assert "Means of 3 seeds [lowest, highest]" in table.caption


def test_what_is_missing_says_why() -> None:
    experiment = EXPERIMENTS["tableS1"]
    one = experiment.variants("demo", recipe("demo"))[0]
    lacking = Model(one, 0, 5, (result("idm_rollout_error", 0.2),), (Omission("planning", "no table of actions"),))
    (section,) = missing_section(experiment, [lacking])
    assert "planning error: no value of 1 of 1 models (no table of actions)" in section.body  # type: ignore[union-attr]
    assert "IDM:" not in section.body  # type: ignore[union-attr]


def test_figures_stand_over_capacity_or_over_the_steps() -> None:
    experiment = EXPERIMENTS["figure11"]
    variants = experiment.variants("demo", recipe("demo"))
    models = [
        model(one, one_step_error=0.5 - 0.01 * i, controller_vs_idm=1 + 0.01 * i, planning_error=3.0)
        for i, one in enumerate(variants)
    ]
    drawn = figure_sections(experiment, models)
    assert [type(one) for one in drawn] == [Points, Points]
    sparse = next(group for group in drawn[0].groups if group.name == "sparse")  # type: ignore[union-attr]
    assert [e.value for e in sparse.x] == sorted(e.value for e in sparse.x)
    curve = EXPERIMENTS["report-dropout"]
    plain, dropped = curve.variants("report", recipe("report_sparse"))
    assert plain.settings["train.keep"] == 9 and dropped.settings["model.action_dropout"] == 0.15
    models = [model(v, step=s, unrolled_error=0.1 * s) for v in (plain, dropped) for s in (10, 20)]
    (over,) = figure_sections(curve, models)
    assert over.series[0].x == [10.0, 20.0] and over.series[0].y == pytest.approx([1.0, 2.0])  # type: ignore[union-attr]


def sweep_models(seed: int = 0, **changed: Any) -> list[Model]:
    """A sweep in which every claim holds: capacity rises with rank, discrete latents stay low, the middle is best."""
    found = []
    for one in EXPERIMENTS["claims"].variants("demo", recipe("demo")):
        rank, count = int(one.capacity.split()[0]) - 1, int(one.capacity.split()[-1])
        share = rank / (count - 1)
        discrete = one.latents == "discrete"
        capacity = 0.1 + (0.2 if discrete else 0.85) * share
        figures = {
            "normalized_capacity": capacity, "one_step_error": 1 - capacity, "leakage_ratio": 2.0 + share,
            "leakage_score": 0.1, "cycle_ratio": 1.05 + 0.2 * share,
            "controller_rollout_error": 1 + (share - 0.5) ** 2,
            "planning_error": 1 + (share - 0.5) ** 2 + (0 if one.latents == "noisy" else 0.1),
        }  # fmt: skip
        found.append(model(one, seed, **{**figures, **changed}))
    return found


def test_claims_are_decided_by_the_numbers() -> None:
    for claim in CLAIMS:
        state, words = decided(claim, [*sweep_models(0), *sweep_models(1)])
        assert state == "holds", (claim.words, words)
        assert "seed 0:" in words and "seed 1:" in words
    flat = {"normalized_capacity": 0.5, "leakage_ratio": 1.2, "cycle_ratio": 1.6, "planning_error": 1.0}
    against = {claim.words: decided(claim, sweep_models(0, **flat))[0] for claim in CLAIMS}
    assert against["continuous latents span the range between deterministic and unconstrained"] == "does not hold"
    assert against["the error at a scene cut rises by more than 1.5x at every capacity"] == "does not hold"
    assert against["the cycle ratio lies between 1.0 and 1.4"] == "does not hold"
    assert against["a middle capacity gives the best plans"] == "does not hold"
    torn = [*sweep_models(0), *sweep_models(1, cycle_ratio=1.6)]
    assert decided(CLAIMS[3], torn)[0] == "not decided"
    assert decided(CLAIMS[3], [])[0] == "not decided"
    assert len(claims_table(sweep_models()).rows) == len(CLAIMS)


def test_paper_and_report_recipes_have_their_own_sweeps() -> None:
    assert [scale_of(name) for name in ("paper_noisy", "report_sparse", "demo", "tiny")] == [
        "paper", "report", "demo", "demo",
    ]  # fmt: skip
    one = at("paper", "sparse", "high")
    made = override(recipe("paper_noisy"), "model.bottleneck", one.settings)
    assert made.model.bottleneck == recipe("paper_sparse").model.bottleneck
