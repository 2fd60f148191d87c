"""Spaces, and searches over real trials: what they write, what a killed one keeps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import tune as tune_job
from lawm.cluster.search import Ledger, Suggestions, fault_of_the_parameters, mark_pareto, trials_table
from lawm.cluster.search_space import METRICS, PLANNING, Space, base_config, read_space, unquoted_words, with_parameters
from lawm.cluster.session import Session
from lawm.config import ConfigError, LawmError
from lawm.data import INDEX_SCHEMA, list_videos, write_index
from lawm.evaluation import SUITE
from lawm.planning import summarize_episodes
from lawm.recipes import tiny
from lawm.simulation import PushTSpec, simulate_pusht
from lawm.storage import StorageError
from lawm.video import probe

BETA = "model.bottleneck.beta"
SPACES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.yaml"))


def space_data(**changes: Any) -> dict[str, Any]:
    return {
        "recipe": "tiny",
        "set": {"model.bottleneck.kind": "noisy"},
        "space": {BETA: {"type": "loguniform", "low": "1e-6", "high": 1e-2}},
        "objectives": [{"metric": "error_vs_copy", "mode": "min"}, {"metric": "planning_error", "mode": "min"}],
        "trials": 3,
    } | changes


def written(folder: Path, **changes: Any) -> str:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space_data(**changes)))
    return str(path)


# ---------------------------------------------------------------- without Ray
@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_the_spaces_that_come_along_fit_the_demo_and_the_paper(path: Path) -> None:
    space = read_space(str(path))
    paper = "paper_noisy" if path.stem == "adaptive" else f"paper_{path.stem}"  # adaptive latents are beyond the paper
    for name in ("demo", paper):
        config = base_config(space, name)
        assert config.model.bottleneck.kind == path.stem
        for field, dimension in space.space.items():
            for value in dimension.ends():
                assert f"{value}" in str(with_parameters(config, {field: value}).model.bottleneck)
    assert {o.metric for o in space.objectives} <= {*METRICS} and space.needs_planning


@pytest.mark.parametrize(
    ("written_there", "meant"),
    [
        ("off", "off"), ("on", "on"), ("no", "no"), ("Yes", "Yes"), ("y", "y"), ("true", True), ("false", False),
        ("0001", "0001"), ("0o17", "0o17"), ("1_000", "1_000"), ("12:30:45", "12:30:45"), ("2024-01-31", "2024-01-31"),
        ("2023", 2023), ("'2023'", "2023"), ("'0001'", "0001"), ("'true'", "true"), ("'null'", "null"), ("-3", -3),
        ("1e-3", 0.001), ("1.0e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("1.", 1.0), ("+2", 2), ("1.10", 1.1),
        ("nan", "nan"), ("inf", "inf"), ("0x1F", "0x1F"), ("1e", "1e"), ("'1e-3'", "1e-3"), ("~", None),
    ],
)  # fmt: skip
def test_a_value_is_meant_as_it_is_written(written_there: str, meant: Any, tmp_path: Path) -> None:
    """YAML 1.1 makes False of off, 1 of 0001, 45045 of 12:30:45 and a date of 2024-01-31."""
    plain = Path(written(tmp_path)).read_text()
    (tmp_path / "other.yaml").write_text(plain + f"set: {{data.keys: {written_there}}}\n")
    found = read_space(str(tmp_path / "other.yaml")).set["data.keys"]
    assert found == meant and type(found) is type(meant)


def test_text_that_looks_like_a_number_is_to_be_quoted(tmp_path: Path) -> None:
    plain = Path(written(tmp_path)).read_text()
    for value, quoted in (("2023", "'2023'"), ("true", "'true'"), ("1.5", "'1.5'")):
        (tmp_path / "other.yaml").write_text(plain + f"set: {{data.keys: {value}}}\n")
        with pytest.raises(ConfigError, match="Text is expected there: quote it, as in '"):
            base_config(read_space(str(tmp_path / "other.yaml")), "tiny")
        (tmp_path / "other.yaml").write_text(plain + f"set: {{data.keys: {quoted}}}\n")
        assert base_config(read_space(str(tmp_path / "other.yaml")), "tiny").data.keys == quoted.strip("'")
    text = plain + "set: {encoder.normalize_states: off, train.log_clips: yes, train.steps: 7}\n"
    (tmp_path / "other.yaml").write_text(text)
    assert unquoted_words(str(tmp_path / "other.yaml")) == ["off", "yes"] and not unquoted_words(written(tmp_path))
    config = base_config(read_space(str(tmp_path / "other.yaml")), "tiny")
    assert (config.encoder.normalize_states, config.train.log_clips, config.train.steps) == ("off", True, 7)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    space = read_space(written(tmp_path, points=[{BETA: "1e-4"}]))
    assert space.space[BETA].ends() == [1e-6, 1e-2]
    assert space.points == ({BETA: 1e-4},)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trails": 3}, "unknown field trails. Valid fields: recipe, set, space, objectives"),
        ({"space": {BETA: {"type": "int", "low": 1, "hi": 2}}}, f"unknown field space.{BETA}.hi. Valid fields: type"),
        ({"space": {BETA: {"type": "normal", "low": 1, "high": 2}}}, "'uniform', 'loguniform', 'int'"),
        ({"space": {BETA: {"type": "uniform", "low": 2, "high": 1}}}, "low = 2 is not below high = 1"),
        ({"space": {BETA: {"type": "loguniform", "low": 0, "high": 1}}}, "needs it above 0"),
        ({"space": {BETA: {"type": "uniform", "low": 0, "high": float("inf")}}}, "finite"),
        ({"space": {}}, "space: "),
        ({"objectives": [{"metric": "error_vs_copy", "mode": "min"}]}, "objectives: "),
        ({"objectives": [{"metric": "loss", "mode": "min"}] * 2}, "no metric 'loss'; there are one_step_error,"),
        ({"objectives": [{"metric": "cycle_ratio", "mode": "min"}] * 2}, "cycle_ratio is named twice"),
        ({"objectives": [{"metric": "cycle_ratio", "mode": "low"}] * 2}, "'min' or 'max' (got 'low')"),
        ({"points": [{BETA: 1.0}]}, f"{BETA} = 1.0 lies outside of the space"),
        ({"points": [{}]}, f"has to name {BETA}"),
        ({"set": {BETA: 1}}, "stands in both"),
        ({"infeasible": float("nan")}, "infeasible: "),
        ({"trials": 0}, "trials: Input should be greater than or equal to 1 (got 0)"),
    ],
)
def test_a_mistake_in_the_space_is_one_line(changes: dict[str, Any], said: str, tmp_path: Path, capsys) -> None:
    assert tune_job.main([written(tmp_path, **changes), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and str(tmp_path / "space.yaml") in captured.err
    assert captured.err.count("\n") == 1 and captured.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "line 1: not YAML"), ("- 1", "expected a mapping"), ("\x00", "not YAML"), (None, "no such file")],
)
def test_a_file_that_is_no_space_is_one_line(text: str | None, said: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "space.yaml"
    if text is not None:
        path.write_text(text)
    assert tune_job.main([str(path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "argv", "said"),
    [
        ({"space": {"model.nope": {"type": "int", "low": 1, "high": 2}}}, [], "space: model.nope: model has no field"),
        ({"set": {"modle": 1}}, [], "set: modle: config has no field 'modle'; did you mean 'model'?"),
        ({"space": {BETA: {"type": "uniform", "low": -1, "high": 1}}}, [], "greater than or equal to 0 (got -1"),
        ({}, ["--recipe", "huge"], "no such recipe"),
        ({}, [], "set data.index"),
    ],
)
def test_a_space_that_does_not_fit_the_config_is_one_line(
    changes: dict[str, Any], argv: list[str], said: str, tmp_path: Path, capsys
) -> None:
    assert tune_job.main([written(tmp_path, **changes), *argv, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_every_metric_is_one_that_an_evaluation_gives() -> None:
    measured = {f.name: name for name, evaluation in SUITE.items() for f in evaluation.figures if not f.control}
    assert {n: e for n, e in METRICS.items() if e != "planning"}.items() <= measured.items()
    errors = {name: {"translation": 1.0} for name in ("planned", "random", "no_action", "mean_action")}
    row = {
        "group": "v",
        "key": "v",
        "episode": 0,
        "protocol": "custom",
        "measured": "actions",
        "units": {"translation": "m"},
        "errors": errors,
    }
    row |= {"costs": {"best": 1.0, "true": 1.0}, "confidence": 0.9, "outside": [], "seconds": 1.0}
    given = {r.name for r in summarize_episodes([row, row], "d", 1, 100, 0) if not r.control}
    assert {*PLANNING} == given
    assert "error_vs_deterministic" not in METRICS  # a search has no second model


def row_of(trial: str, beta: float, x: float | None, y: float | None, status: str = "finished") -> dict[str, Any]:
    results = {
        name: {"value": value, "low": value, "high": value}
        for name, value in (("error_vs_copy", x), ("planning_error", y))
        if value is not None
    }
    said = {"status": status, "reason": "" if status == "finished" else "diverged", "seconds": 1.0, "checkpoint": "c"}
    return {"trial": trial, "parameters": {BETA: beta}, "results": results} | said


def ledger_with(out: Path, space: Space, rows: list[dict[str, Any]]) -> Ledger:
    """A search's folder as a killed driver leaves it: a row has `status` unless its trial was cut short."""
    ledger = Ledger.open(str(out), space, base_config(space, "tiny"))
    for row in rows:
        ledger.add(row["trial"], row["parameters"])
        if row["status"] != "unfinished":
            folder = out / "trials" / row["trial"]
            folder.mkdir(parents=True)
            (folder / "trial.json").write_text(json.dumps(row))
    return ledger


ROWS = [
    row_of("a", 1e-5, 0.5, 9.0),
    row_of("b", 1e-4, 0.7, 5.0),
    row_of("c", 1e-3, 0.8, 6.0),  # b is better in both
    row_of("d", 1e-2, 0.1, None, "infeasible"),
    row_of("e", 2e-6, None, None, "unfinished"),
]


def test_a_resumed_study_knows_what_is_finished_and_asks_for_the_rest_first(tmp_path: Path) -> None:
    space = read_space(written(tmp_path, points=[{BETA: 1e-5}, {BETA: 3e-3}], trials=8))
    ledger_with(tmp_path, space, ROWS)
    ledger = Ledger.open(str(tmp_path), space, base_config(space, "tiny"))
    search = Suggestions(ledger)
    study = search._ot_study
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert [t.values for t in complete] == [[0.5, 9.0], [0.7, 5.0], [0.8, 6.0], [1e3, 1e3]]
    assert search.suggest("new1") == {"trial": "e", "parameters": {BETA: 2e-6}}  # unfinished: its old folder
    assert search.suggest("new2") == {"trial": "new2", "parameters": {BETA: 3e-3}}  # the point not yet tried
    third = search.suggest("new3")
    assert third is not None and third["parameters"][BETA] not in {r["parameters"][BETA] for r in ROWS} | {3e-3}
    said = json.loads((tmp_path / "search.json").read_text())["trials"]
    assert [t["trial"] for t in said] == ["a", "b", "c", "d", "e", "new2", "new3"]
    search.on_trial_complete("new2", {"error_vs_copy": 0.2, "planning_error": 1.0})
    assert [t.params[BETA] for t in study.best_trials] == [3e-3]


def test_the_pareto_set_is_that_of_the_study(tmp_path: Path) -> None:
    space = read_space(written(tmp_path))
    ledger = ledger_with(tmp_path, space, ROWS)
    rows = ledger.rows()
    mark_pareto(space, rows)
    assert [row["trial"] for row in rows if row["pareto"]] == ["a", "b"]
    best = Suggestions(ledger)._ot_study.best_trials
    assert {t.params[BETA] for t in best} == {r["parameters"][BETA] for r in rows if r["pareto"]}
    table = trials_table(space, rows).to_pylist()
    assert [r["status"] for r in table] == ["finished"] * 3 + ["infeasible", "unfinished"]
    assert table[3]["error_vs_copy"] == 0.1 and table[3]["planning_error"] is None and table[3]["reason"] == "diverged"
    assert table[0][BETA] == 1e-5 and table[0]["number"] == 0


def test_more_is_better_turns_the_pareto_set_and_the_penalty(tmp_path: Path) -> None:
    objectives = [{"metric": "error_vs_copy", "mode": "min"}, {"metric": "planning_error", "mode": "max"}]
    space = read_space(written(tmp_path, objectives=objectives))
    rows = ledger_with(tmp_path, space, ROWS).rows()
    mark_pareto(space, rows)
    assert [row["trial"] for row in rows if row["pareto"]] == ["a"]
    assert space.told(rows[3]) == {"error_vs_copy": 1e3, "planning_error": -1e3}


def test_another_search_in_the_folder_is_refused_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    space = read_space(written(tmp_path))
    config = base_config(space, "tiny")
    ledger_with(tmp_path, space, ROWS)
    longer = space.model_copy(update={"trials": 9, "max_concurrent": 4})
    assert len(Ledger.open(str(tmp_path), longer, config).rows()) == 5
    for changed in (
        (space, with_parameters(config, {"train.steps": 99})),
        (space.model_copy(update={"seed": 1}), config),
        (read_space(written(tmp_path, space={BETA: {"type": "uniform", "low": 0, "high": 1}})), config),
    ):
        with pytest.raises(LawmError, match=r"holds another search .* choose another --out"):
            Ledger.open(str(tmp_path), *changed)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(LawmError, match="damaged"):
        Ledger.open(str(tmp_path), space, config)


def test_what_is_the_parameters_fault() -> None:
    assert fault_of_the_parameters(LawmError("the loss was not finite")) == "the loss was not finite"
    assert fault_of_the_parameters(ConfigError("elites = 9\nexceeds")) == "elites = 9 exceeds"
    wrapped = RuntimeError("training failed")
    wrapped.__cause__ = LawmError("diverged")
    assert fault_of_the_parameters(wrapped) == "diverged"
    assert fault_of_the_parameters(RuntimeError("CUDA out of memory. Tried\nto")) == "CUDA out of memory. Tried"
    assert fault_of_the_parameters(StorageError("disk full")) == ""
    assert fault_of_the_parameters(KeyError("typo")) == ""


# ---------------------------------------------------------------- with Ray
@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """12 short PushT episodes, indexed, as job arguments."""
    folder = tmp_path_factory.mktemp("pusht")
    labels = simulate_pusht(str(folder / "videos"), 12, spec=PushTSpec(states=8, rate_hz=4.0, size=32), shard_size=12)
    rows = [probe(ref, tiny().data.limits) for ref in list_videos([str(folder / "videos")])]
    write_index(pa.Table.from_pylist(rows, INDEX_SCHEMA), str(folder / "index.parquet"))
    return {"--index": str(folder / "index.parquet"), "--labels": labels}


# A trial's driver trains by itself: what takes time here is starting processes.
QUICK = ["cluster.workers=0", "cluster.plan_actors=1", "train.steps=2", "controller.train.steps=2", "plan.episodes=2"]
QUICK += ["data.val_fraction=0.7"]  # holds out six of the twelve: leakage takes clips of two videos


def command(space: str, out: Path, data: dict[str, str], *more: str) -> list[str]:
    settings = [part for setting in (*QUICK, *more) for part in ("--set", setting)]
    return [space, "--out", str(out), *settings, *(part for pair in data.items() for part in pair)]


def test_a_dry_run_says_what_it_would_do(tmp_path: Path, pusht: dict[str, str], capsys) -> None:
    assert tune_job.main([*command(written(tmp_path), tmp_path / "out", pusht), "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["trials"], said["clips_per_trial"], said["clips"]) == (3, 8, 24)
    assert said["config"]["model"]["bottleneck"]["kind"] == "noisy"
    assert any("planning actor" in need for need in said["resources"])
    assert not (tmp_path / "out").exists()


def test_a_search_writes_a_row_a_trial_and_a_rerun_adds_nothing(
    ray_cluster: Session, tmp_path: Path, pusht: dict[str, str], capsys
) -> None:
    # With a beta of 1e38 weights, and then losses or errors, are not finite in float32.
    patience = {"type": "int", "low": 0, "high": 1}
    searched = {BETA: {"type": "loguniform", "low": 1e-6, "high": 1e38}, "train.max_bad_steps": patience}
    points = [{BETA: b, "train.max_bad_steps": 0} for b in (1e-4, 1e38, 1e-2)]
    space = written(tmp_path, space=searched, points=points, max_concurrent=2)
    out = tmp_path / "out"
    assert tune_job.main(command(space, out, pusht)) == 0
    said = capsys.readouterr().out
    assert "★" in said and "trials.parquet" in said and "3 of 3" in said
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert sorted(r[BETA] for r in rows) == [1e-4, 1e-2, 1e38]
    by_beta = {r[BETA]: r for r in rows}
    bad = by_beta[1e38]
    assert bad["status"] == "infeasible" and not bad["pareto"]
    assert bad["reason"] == "error_vs_copy: nan" or "the loss was not finite" in bad["reason"]
    good = [by_beta[1e-4], by_beta[1e-2]]
    for row in good:
        assert row["status"] == "finished" and row["reason"] == ""
        assert row["error_vs_copy"] > 0 and row["planning_error"] > 0
        assert row["leakage_ratio"] > 0
        assert row["error_vs_copy_low"] <= row["error_vs_copy"] <= row["error_vs_copy_high"]
        assert Path(row["checkpoint"], "checkpoint.json").exists()
        assert f"/trials/{row['trial']}/model/" in row["checkpoint"]
    (x0, y0), (x1, y1) = ((row["error_vs_copy"], row["planning_error"]) for row in good)
    assert good[0]["pareto"] is not (x1 <= x0 and y1 <= y0 and (x1, y1) != (x0, y0))
    assert good[1]["pareto"] is not (x0 <= x1 and y0 <= y1 and (x1, y1) != (x0, y0))
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "Pareto set" in (out / "report.html").read_text()

    before = {p: p.stat().st_mtime_ns for p in out.rglob("checkpoint.json")}
    assert tune_job.main(command(space, out, pusht)) == 0
    assert str(pq.read_table(out / "trials.parquet").to_pylist()) == str(rows)  # NaN is not itself
    assert {p: p.stat().st_mtime_ns for p in out.rglob("checkpoint.json")} == before


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, pusht: dict[str, str]) -> None:
    """SIGKILL of the whole driver in the second trial; the first is kept, the second resumes, nothing comes twice."""
    out = tmp_path / "out"
    points = [{BETA: b} for b in (1e-4, 1e-3)]
    argv = [
        sys.executable,
        "-m",
        "jobs.tune",
        *command(written(tmp_path, points=points), out, pusht, "cluster.workers=1"),
    ]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and first.poll() is None:
            asked = json.loads((out / "search.json").read_text())["trials"] if (out / "search.json").exists() else []
            if len(asked) > 1 and list((out / "trials" / asked[1]["trial"]).glob("model/step_*/checkpoint.json")):
                break
            time.sleep(0.05)
        assert first.poll() is None, (tmp_path / "log").read_text()
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = out / "trials" / asked[0]["trial"] / "trial.json"
    cut = out / "trials" / asked[1]["trial"]
    assert done.exists() and not (cut / "trial.json").exists()
    kept = done.stat().st_mtime_ns
    trained = next(cut.glob("model/step_*/checkpoint.json")).stat().st_mtime_ns

    again = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=550)
    assert again.returncode == 0, again.stderr
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert [r["trial"] for r in rows][:2] == [a["trial"] for a in asked[:2]] and len(rows) == 3
    assert [r["status"] for r in rows] == ["finished"] * 3
    assert [r[BETA] for r in rows][:2] == [1e-4, 1e-3] and rows[2][BETA] not in (1e-4, 1e-3)
    assert done.stat().st_mtime_ns == kept
    assert next(cut.glob("model/step_*/checkpoint.json")).stat().st_mtime_ns == trained  # resumed, not retrained
