"""`lawm report` of real small runs: what it finds by itself, what it shows, and where it writes."""

import html
import json
import re
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import SmallSet

from jobs import controller, decoder, report, train
from jobs._tradeoff import measurements, setting_of, sweep_measurements
from lawm.config import LawmError
from lawm.evaluation import Measured, Result, to_json


def write_evaluation(run: Path, dataset: str = "held-out", **figures: float) -> None:
    rows = [Result(n, v, 0.9 * v, 1.1 * v, 16, 3, "ratio", dataset, 4) for n, v in figures.items()]
    (run / "evaluation.json").write_text(json.dumps(to_json(Measured(rows))))


@pytest.fixture(scope="module")
def runs(small_set: SmallSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its deterministic twin, controller and decoder, and a stronger model; on the pixels encoder."""
    root = tmp_path_factory.mktemp("runs")
    few = ["--set", "train.steps=4", "--set", "train.checkpoint_every=4", "--set", "decoder.train.steps=2"]
    few += ["--set", "controller.train.steps=2", "--index", small_set.index, "--plain"]
    for name, more in {
        "mine": [],
        "mine-deterministic": ["model.bottleneck.kind=deterministic"],
        "weak": ["model.bottleneck.beta=1.0"],
    }.items():  # fmt: skip
        settings = [part for one in more for part in ("--set", one)]
        assert train.main(["--recipe", "tiny", "--out", str(root / name), *few, *settings]) == 0
    labels = ["--labels", small_set.labels]
    assert controller.main(["--checkpoint", str(root / "mine"), *few, *labels]) == 0
    assert decoder.main(["--checkpoint", str(root / "mine"), *few]) == 0
    write_evaluation(root / "mine", error_vs_deterministic=0.8, cycle_ratio=1.2)
    write_evaluation(root / "weak", error_vs_deterministic=0.95, cycle_ratio=1.05)
    return root


def test_one_run_finds_its_company_and_shows_all_of_it(
    runs: Path, small_set: SmallSet, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(runs / "mine"), "--labels", small_set.labels, "--clips", "2"]
    assert report.main([*given, "--compare", str(runs / "weak")]) == 0
    where = runs / "mine" / "report.html"
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(where) and said.err == ""
    page = where.read_text(encoding="utf-8")
    titles = [html.unescape(one) for one in re.findall(r"<h2>(.*?)</h2>", page)]
    assert titles == [
        "Verdict (held-out)", "Headline figures (held-out, 95 % intervals over videos)",
        "Clips of the val split: films", "Clips of the val split", "Actions of one clip on another", "A scene cut",
        "Capacity against cycle_ratio", str(runs / "mine" / "evaluation.json"), "How to read them",
        "Prediction error in training", "Effective rank of the latent actions",
        "Numbers in use per latent action", "Nats of each number of the latents",
    ]  # fmt: skip
    assert page.count('src="data:video/mp4;base64,') == 2
    labels = re.findall(r"<th scope=row>(.*?)</th>", page)
    assert labels.count("rollout, true actions") == labels.count("rollout, no latents (deterministic twin)") == 2
    assert labels.count("target under the source&#x27;s latents") == labels.count("stitched, predicted") == 2


def test_without_company_it_says_what_is_not_there(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    assert report.main(["--checkpoint", str(runs / "mine-deterministic"), "--clips", "1", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "No results: none lie beside" in said.err and str(out) in said.out
    page = out.read_text(encoding="utf-8")
    assert "rollout, true actions" not in page and "a deterministic model has no latent actions" in page
    assert report.main(["--checkpoint", str(runs / "mine"), "--dry-run"]) == 0
    assert f"out: {runs / 'mine' / 'report.html'}" in capsys.readouterr().out
    assert report.main(["--checkpoint", str(runs / "mine"), "--clips", "0"]) == 2
    assert "--clips 0: expected at least 1" in capsys.readouterr().err


def test_runs_are_compared_on_the_data_that_most_were_measured_on(runs: Path, tmp_path: Path) -> None:
    mine, weak = measurements([str(runs / "mine"), str(runs / "weak")])
    assert (mine.group, mine.label, weak.label) == ("noisy", "beta 0.0001", "beta 1")
    assert mine.figures["cycle_ratio"].value == 1.2 and weak.figures["cycle_ratio"].low == pytest.approx(0.945)
    assert setting_of({"kind": "none"}) == "" and setting_of({"kind": "discrete", "codebook_size": 64}) == (
        "codebook_size 64"
    )


def test_a_searchs_trials_are_read(tmp_path: Path) -> None:
    table = {
        "trial": ["a", "b", "c"], "status": ["finished", "finished", "infeasible"],
        "model.bottleneck.beta": [1e-4, 1e-3, 1.0],
        "error_vs_copy": [0.7, 0.8, None],
        "error_vs_copy_low": [0.6, 0.7, None], "error_vs_copy_high": [0.8, 0.9, None],
        "cycle_ratio": [1.1, None, None],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "trials.parquet")
    (tmp_path / "search.json").write_text(json.dumps({"config": {"model": {"bottleneck": {"kind": "noisy"}}}}))
    first, second = sweep_measurements(str(tmp_path))
    assert (first.run, first.group, first.label) == ("a", "noisy", "beta 1.00e-04")
    assert asdict(first.figures["error_vs_copy"]) == {"value": 0.7, "low": 0.6, "high": 0.8}
    assert first.figures["cycle_ratio"].low is None and "cycle_ratio" not in second.figures
    (tmp_path / "search.json").unlink()
    assert sweep_measurements(str(tmp_path / "trials.parquet"))[0].group == "trials"
    (tmp_path / "trials.parquet").write_bytes(b"no")
    with pytest.raises(LawmError, match=r"not a Parquet table .* expected trials\.parquet of lawm tune"):
        sweep_measurements(str(tmp_path))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "trials.parquet")
    with pytest.raises(LawmError, match="no table of trials"):
        sweep_measurements(str(tmp_path))


def test_the_clips_shown_go_to_a_file_for_the_rerun_viewer(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'lawm[rerun]'")
    from rerun.chunk import RrdReader

    where, out = tmp_path / "e.rrd", tmp_path / "r.html"
    given = ["--checkpoint", str(runs / "mine"), "--clips", "1", "--rerun", str(where), "--out", str(out)]
    assert report.main(given) == 0
    entities = {chunk.entity_path for chunk in RrdReader(where).stream().to_chunks()}
    assert {"/episode_0/pictures/true_frames", "/episode_0/latent"} <= entities and out.exists()
