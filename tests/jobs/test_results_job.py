"""`lawm results`: rows of several runs, filtered, compared and exported."""

import csv
from pathlib import Path

import numpy as np
import pytest
from small_runs import tiny_with

from jobs import results
from lawm.evaluation import Measured, Missing, record_results, suite_says, summarize
from lawm.evaluation.cycle import Cycle
from lawm.evaluation.results import Kept


def measured_run(root: Path, name: str, worse: float, step: int = 10, clips: int = 24, beta: float = 1e-4) -> None:
    """A run whose cycles are `worse` than 1, on clips that differ much between videos."""
    generator = np.random.default_rng(0)
    hard = np.repeat(generator.lognormal(0, 1, clips // 3), 3)
    groups = np.array([f"v{i // 3}" for i in range(clips)], dtype=object)
    transfer = hard * (1 + worse) + 0.001 * np.random.default_rng(len(name)).normal(size=clips)
    none = Missing("not made")
    long = np.full(clips, 2.0)
    values = Cycle(groups, hard, transfer, none, none, long, long, original_pictures=none, transfer_pictures=none)
    kept = Kept("cycle", "PushT, held-out", step, tuple(f"{g}@{i}" for i, g in enumerate(groups)), values)
    figures = suite_says()["cycle"].figures(values, ())
    measured = summarize(figures, values, kept.dataset, step, 200, 0, evaluation="cycle")
    run = str(root / name)
    record_results(run, Measured(measured.results, kept=[kept]), run, tiny_with(model__bottleneck__beta=beta))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    measured_run(tmp_path, "low", 0.1)
    measured_run(tmp_path, "high", 0.3, beta=1e-6)
    return tmp_path


def test_runs_beside_one_another(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main([str(runs), "--filter", "evaluation=cycle_ratio"]) == 0
    said = capsys.readouterr().out
    assert "Measure" in said and "high" in said and "low" in said and "cycle_original_error" not in said
    line = next(line for line in said.splitlines() if "cycle_ratio" in line)
    assert "1.30 [1.30, 1.30]" in line and "1.10 [1.10, 1.10]" in line


def test_differences_are_paired_and_say_who_is_better(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "differences.csv"
    assert results.main([str(runs), "--against", "low", "--out", str(out), "--filter", "figure=cycle_*"]) == 0
    rows = {row["Measure"].lstrip("↓↑ "): row for row in csv.DictReader(out.open(encoding="utf-8"))}
    ratio = rows["cycle_ratio"]
    assert float(ratio["Difference [95 %]"]) == pytest.approx(0.2, abs=0.01) and ratio["Says"] == "low is better"
    assert ratio["Run"] == "high" and ratio["Clips"] == "24" and ratio["Videos"] == "8"
    assert rows["cycle_original_error"]["Says"] == "cannot be told apart"
    said = capsys.readouterr().out
    assert "paired by clip" in said and "cycle_zero_ratio: not made" in said


def test_the_newest_step_and_all_of_them(runs: Path, tmp_path: Path) -> None:
    measured_run(runs, "low", 0.05, step=20)
    out = tmp_path / "all.csv"

    def steps(*more: str) -> list[str]:
        assert (
            results.main([str(runs), "--run", "low", "--filter", "figure=cycle_ratio", "--out", str(out), *more]) == 0
        )
        return [row.get("Step", "") for row in csv.DictReader(out.open(encoding="utf-8"))]

    assert steps() == [""] and sorted(steps("--all-steps")) == ["10", "20"]


@pytest.mark.parametrize("ending", [".md", ".tex", ".parquet"])
def test_exports(runs: Path, ending: str) -> None:
    out = runs / f"written{ending}"
    assert results.main([str(runs / "low"), str(runs / "high"), "--out", str(out)]) == 0
    text = out.read_bytes()
    assert text[:4] == b"PAR1" if ending == ".parquet" else b"cycle" in text
    if ending == ".parquet":
        assert results.main([str(out), "--run", "high"]) == 0  # an export is a table as well


def test_what_cannot_be_done_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        ([str(runs), "--against", "none"], "--against none: no such run; there are"),
        ([str(runs), "--against", "*"], "--against *: several runs; there are"),
        ([str(runs / "low"), "--against", "low"], "nothing to compare with"),
        ([str(runs), "--run", "nobody"], "none of 6 rows fits run=nobody"),
        ([str(runs), "--out", "a.xls"], "expected a name that ends in .csv, .md, .tex, .parquet"),
        ([str(runs), "--out", "a.parquet", "--against", "low"], "export differences as .csv"),
    ):
        assert results.main(argv) == 2
        error = capsys.readouterr().err
        assert said in error.replace("\n", " ") and error.count("\n") == 1, error
