"""Training on Ray: the same losses as plain Python, through a kill and past bad videos; the jobs end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from small_runs import SmallSet, index_folder, losses, tiny_with

from jobs import controller, encode, evaluate, index, plan, prior, simulate, train
from lawm.cluster.decode import nth_positions
from lawm.cluster.fit import fit
from lawm.cluster.session import Session
from lawm.config import Config, LawmError, override
from lawm.data import Cursor, StateCache, read_index, read_labels
from lawm.evaluation import kept_values, suite_says, tables_below
from lawm.planning import PLANNING_SAYS
from lawm.simulation import outcomes
from lawm.training import fit_local, load_checkpoint
from lawm.training.checkpoint import checkpoint_folders

ROOT = Path(__file__).parents[2]


def short(index: str, **more: Any) -> Config:
    return tiny_with(
        data__index=index,
        train__steps=6,
        train__checkpoint_every=3,
        train__log_every=1,
        cluster__max_failures=0,
        **more,
    )


def test_ids_become_the_positions_that_are_left() -> None:
    for cursor in (Cursor(), Cursor(5), Cursor(2, (4, 5, 9)), Cursor(0, (1,))):
        ids = np.arange(12)
        assert nth_positions(cursor, ids).tolist() == cursor.remaining(12).tolist()
        assert nth_positions(cursor, ids[7:9]).tolist() == cursor.remaining(12)[7:9].tolist()


def test_plain_python_and_local_mode_give_the_same_losses(
    ray_cluster: Session, small_set: SmallSet, tmp_path: Path
) -> None:
    """A worker of its own does too: see mixtures, populations and runs that were killed."""
    config = short(small_set.index)
    plain = fit_local(config, "latent_action", str(tmp_path / "plain"))
    wanted = losses(str(tmp_path / "plain"))
    assert list(wanted) == [1, 2, 3, 4, 5, 6]
    run = str(tmp_path / "local_mode")
    seen: list[dict[str, Any]] = []
    last = fit(override(config, "cluster.workers", 0), "latent_action", run, progress=seen.append)
    assert losses(run) == pytest.approx(wanted, rel=1e-5)
    assert load_checkpoint(last).cursor == load_checkpoint(plain).cursor == Cursor(24)
    assert [uri[-1] for uri in checkpoint_folders(run)] == ["3", "6"]
    assert seen[-1]["step"] == 6 and seen[-1]["loss"] == pytest.approx(wanted[6], rel=1e-5)
    # Done already: the same call trains nothing.
    assert fit(config, "latent_action", run) == last
    # A longer run goes on, in Ray as in plain Python, and never says step 0.
    longer, seen = override(config, "train.steps", 8), []
    fit_local(longer, "latent_action", str(tmp_path / "plain"))
    fit(override(longer, "cluster.workers", 0), "latent_action", run, progress=seen.append)
    assert losses(run) == pytest.approx(losses(str(tmp_path / "plain")), rel=1e-5) and len(losses(run)) == 8
    assert [s["step"] for s in seen if s["step"] < 7] == [6] * sum(s["step"] < 7 for s in seen) and seen[-1][
        "step"
    ] == 8


def test_bad_videos_are_listed_and_passed_over(small_set: SmallSet, tmp_path: Path) -> None:
    """Videos that broke after they were indexed; the run has its full length on good clips."""
    videos = tmp_path / "videos"
    shutil.copytree(small_set.folder, videos)
    where = index_folder(videos, tmp_path / "index.parquet")
    training = read_index(where).split("train", 0.25).table["key"].to_pylist()
    bad = set(training[:2])
    (videos / training[0]).write_bytes(b"\0" * (videos / training[0]).stat().st_size)
    whole = (videos / training[1]).read_bytes()
    (videos / training[1]).write_bytes(whole[: len(whole) // 3] + bytes(len(whole) - len(whole) // 3))
    run = str(tmp_path / "run")
    config = short(where)
    end = load_checkpoint(fit_local(config, "latent_action", run))
    assert end.step == 6 and list(losses(run)) == [1, 2, 3, 4, 5, 6]
    refused = [json.loads(line) for line in Path(run, "quarantine.jsonl").read_text().splitlines()]
    assert refused and {row["key"] for row in refused} <= bad
    assert all(row["reason"] and row["message"] for row in refused)
    listed = {row["position"] for row in refused}
    assert len(listed) == len(refused)
    # A refused clip is consumed: it does not hold the cursor back, however long the run.
    assert not end.cursor.ahead
    assert end.cursor.low == 24 + len([p for p in listed if p < end.cursor.low])
    with pytest.raises(LawmError, match=r"more than data\.max_bad_fraction = 0\.05 allows"):
        worse = override(override(config, "data.max_bad_fraction", 0.05), "train.steps", 200)
        fit_local(override(worse, "train.log_every", 200), "latent_action", str(tmp_path / "worse"))


def test_jobs_end_to_end(ray_cluster: Session, tmp_path: Path, capsys) -> None:
    """simulate -> index -> encode -> train -> evaluate -> controller -> plan, on real PushT episodes."""
    at = {
        name: str(tmp_path / name)
        for name in ("data", "cache", "model", "none", "controller", "prior", "plan", "loop", "plain")
    }
    tiny = ["--recipe", "tiny", "--set", "data.val_fraction=0.7", "--set", "cluster.max_failures=0"]
    where, labels = str(tmp_path / "index.parquet"), f"{at['data']}/labels.parquet"
    assert simulate.main([*tiny, "--out", at["data"], "--episodes", "8", "--size", "64"]) == 0
    assert index.main([*tiny, at["data"], "--out", where]) == 0
    assert encode.main([*tiny, "--index", where, "--out", at["cache"]]) == 0
    cache = StateCache(at["cache"])
    assert sum(p.frames for places in cache.places.values() for _, _, p in places) == 8 * 16
    assert encode.main([*tiny, "--index", where, "--out", at["cache"]]) == 0
    assert (
        "states of 128 frames of 8 videos" in (said := capsys.readouterr().out) and "1 parts by an earlier run" in said
    )

    steps = [*tiny, "--set", "train.steps=6", "--set", "train.log_every=1"]
    assert train.main([*steps, "--cache", at["cache"], "--labels", labels, "--out", at["model"]]) == 0
    assert train.main([*steps, "--cache", at["cache"], "--labels", labels, "--out", at["plain"], "--plain"]) == 0
    assert losses(at["model"]) == pytest.approx(losses(at["plain"]), rel=1e-5)
    none = [*steps, "--set", "model.bottleneck.kind=deterministic"]
    assert train.main([*none, "--cache", at["cache"], "--labels", labels, "--out", at["none"], "--plain"]) == 0
    assert controller.main(["--checkpoint", at["model"], "--out", at["controller"]]) == 0

    out = str(tmp_path / "evaluation.json")
    child = ["--checkpoint", at["model"], "--controller", at["controller"]]
    assert evaluate.main([*child, "--deterministic", at["none"], "--out", out]) == 0
    found = {row["name"]: row for row in json.loads(Path(out).read_text())["results"]}
    for name in (
        "one_step_error",
        "unrolled_error",
        "error_vs_copy",
        "error_vs_deterministic",
        "shuffled_vs_error",
        "leakage_ratio",
        "leakage_ratio_copying_code",
        "leakage_ratio_no_latent",
        "cycle_ratio",
        "cycle_shuffled_ratio",
        "controller_vs_idm",
        "controller_cosine",
        "probe_r2_linear",
        "probe_r2_mlp",
        "probe_r2_linear_shuffled",
    ):
        row = found[name]
        assert np.isfinite(row["value"]) and row["low"] <= row["value"] <= row["high"] and row["n"] >= 4, row

    assert plan.main([*child, "--out", at["plan"]]) == 0
    rows = [json.loads(line) for line in Path(at["plan"], "episodes.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows] == [0, 1, 2, 3]
    held_out = set(read_index(where).split("val", 0.7).table["key"].to_pylist())
    assert {row["key"] for row in rows} <= held_out
    said = capsys.readouterr().out
    assert "what the states show after the simulator has carried the actions out" in said
    assert "the training split's actions, 0.5 to 99.5 percentile: agent x -" in said and "plans leave" not in said
    recorded = read_labels(labels)
    for row in rows:
        true, planned = np.array(row["true"]), np.array(row["planned"])
        assert planned.shape == true.shape == (2, 2)
        first, video = round(row["start_s"] * 4), recorded.of(row["key"])
        assert video.states is not None and row["units"] == {"translation": "arena units"}
        led = outcomes("pusht", video, first, planned[None])[0, -1, :2]
        missed = np.abs(led - video.states[first + 2, :2]).sum()
        assert row["errors"]["planned"]["translation"] == pytest.approx(missed, rel=1e-4)
        assert {*row["errors"]} == {"planned", "random", "no_action", "mean_action", "goal_idm", "oracle"} and row[
            "outside"
        ] == []
    values_give_the_figures_again(tmp_path, found, Path(at["plan"]))
    # A rerun does only what is missing, and that comes out the same.
    torn = '{"episode": 3, "key": "a.m'  # killed while it wrote
    Path(at["plan"], "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]) + torn)
    assert plan.main([*child, "--out", at["plan"]]) == 0
    again = [json.loads(line) for line in Path(at["plan"], "episodes.jsonl").read_text().splitlines()]
    assert again[:3] == rows[:3]
    assert (again[3]["key"], again[3]["start_s"]) == (rows[3]["key"], rows[3]["start_s"])
    np.testing.assert_allclose(again[3]["planned"], rows[3]["planned"], rtol=1e-4)
    capsys.readouterr()
    assert plan.main([*child, "--out", at["plan"], "--set", "plan.seed=1"]) == 2
    assert "holds episodes of another model or plan" in capsys.readouterr().err
    # In closed loop, in the simulator that made the labels; latents that the learned prior makes likely.
    assert prior.main(["--plain", "--checkpoint", at["model"], "--out", at["prior"]]) == 0
    loop = ["--prior", at["prior"], "--set", "plan.over=prior", "--set", "plan.goal_after_s=0.5"]
    loop += ["--set", "plan.budget_s=0.5", "--set", "plan.replan_after_s=0.25", "--set", "plan.episodes=2"]
    assert plan.main([*child, *loop, "--out", at["loop"]]) == 0
    driven = pq.read_table(f"{at['loop']}/episodes.parquet").to_pylist()
    assert [json.loads(row["closed_loop"])["true"]["reached"] for row in driven] == [True, True]
    assert "success_goal_idm" in capsys.readouterr().out
    with av.open(f"{at['loop']}/films/episode_00000.mp4") as container:  # plan, recorded actions, goal, side by side
        assert len(list(container.decode(video=0))) >= 3


def values_give_the_figures_again(folder: Path, found: dict[str, Any], plan: Path) -> None:
    """The tables (beside results that lie outside of the run's folder) have every result, and the values of single
    clips are what it is of."""
    found = found | {row["name"]: row for row in json.loads((plan / "results.json").read_text())["results"]}
    says, seen = suite_says() | PLANNING_SAYS, set()
    for where, rows in tables_below([str(folder)]):
        for one in {row.evaluation: row for row in rows}.values():
            kept = kept_values(where, one, says)
            figures = {f.name: f for f in says[one.evaluation].figures(kept.values, kept.names)}
            for row in (row for row in rows if row.evaluation == one.evaluation):
                arrays: Any = figures[row.figure].of(kept.values)
                assert row.value == found[row.figure]["value"]
                assert figures[row.figure].statistic(*arrays) == pytest.approx(row.value, nan_ok=True)
                seen.add(row.figure)
    assert seen == {*found}


@pytest.mark.slow  # a killed run goes on: test_exactly_once.py; the words: test_cli.py
def test_an_interrupt_is_said_and_the_same_command_goes_on(small_set: SmallSet, tmp_path: Path) -> None:
    asked = [
        sys.executable, "-m", "jobs", "train", "--recipe", "tiny", "--index", small_set.index, "--out",
        str(tmp_path / "run"), "--set", "train.steps=4000", "--set", "train.checkpoint_every=5",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(asked, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        deadline = time.monotonic() + 400
        while not checkpoint_folders(str(tmp_path / "run")) and time.monotonic() < deadline:
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=400)
    assert job.returncode == 130, said.decode()[-2000:]
    assert b"interrupted. Run the same command again to go on" in said and b"Traceback" not in said
    assert checkpoint_folders(str(tmp_path / "run"))
