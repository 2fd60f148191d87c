"""`lawm evaluate` and `lawm report` on real, tiny runs: what data are called, what is missing, where results go."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import SmallSet, tiny_with

from jobs import __main__ as lawm
from lawm.cluster.evaluate import Company, evaluate, plan_work
from lawm.cluster.session import Session
from lawm.config import Config, override
from lawm.data import ClipReader
from lawm.evaluation import data_name
from lawm.training import fit_local

pytestmark = pytest.mark.ray


def trained(run: Path, index: str, **fields: Any) -> Config:
    config = tiny_with(train__steps=2, train__checkpoint_every=2, data__index=index, **fields)
    fit_local(config, "latent_action", str(run))
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_set: SmallSet) -> Path:
    """A model, its deterministic twin, and a controller, on the small set."""
    root = tmp_path_factory.mktemp("evaluated")
    config = trained(root / "model", small_set.index)
    trained(root / "model-deterministic", small_set.index, model__bottleneck__kind="deterministic")
    labelled = override(config, "data.labels", small_set.labels)
    fit_local(labelled, "controller", str(root / "model-controller"), str(root / "model"))
    return root


def test_a_whole_evaluation_is_typed_and_says_what_it_is_about(
    ray_cluster: Session, runs: Path, small_set: SmallSet
) -> None:
    config = override(tiny_with(data__index=small_set.index), "data.labels", small_set.labels)
    config = override(config, "cluster.evaluate_actors", 2)
    names = ("model", "model-deterministic", "model-controller")
    model, twin, controller = (str(runs / name) for name in names)
    measured = evaluate(config, Company(model, twin, controller=controller))
    by_name = {r.name: r for r in measured.results}
    expected = {
        "one_step_error", "error_vs_deterministic", "leakage_score", "motion_explained", "leakage_score_copying_code",
        "cycle_ratio", "cycle_shuffled_vs_transfer", "controller_vs_idm", "controller_shuffled_vs_own",
        "probe_r2_linear", "probe_r2_mlp", "probe_r2_linear[action 1]",
    }  # fmt: skip
    assert expected <= set(by_name)
    held_out = ClipReader(config, "val")
    one = by_name["one_step_error"]
    assert (one.dataset, one.step, one.videos) == ("held-out", 2, len(held_out.index))
    assert one.n == min(config.evaluate.clips, len(held_out.plan)) > one.videos
    assert by_name["cycle_ratio"].note == "over 0.75 s, the whole clip (table 2: 2 s)"
    reasons = {o.name: o.reason for o in measured.omitted}
    assert reasons["normalized_capacity"].startswith(
        "no unconstrained model was given (--unconstrained URI); train one"
    )
    alone = evaluate(override(config, "cluster.evaluate_actors", 1), Company(model, twin, controller=controller))
    assert alone == measured  # whatever the number of actors


def test_what_was_not_given_is_said_and_the_rest_is_measured(ray_cluster: Session, runs: Path, small_set: Any) -> None:
    measured = evaluate(tiny_with(data__index=small_set.index), Company(str(runs / "model")))
    reasons = {o.name: o.reason for o in measured.omitted}
    assert reasons["control"] == reasons["probes"] == "no table of actions was given (--labels URI)"
    assert reasons["leakage_score"].startswith("no deterministic twin was given (--deterministic URI); train one")
    assert {"one_step_error", "leakage_ratio", "cycle_ratio"} <= {r.name for r in measured.results}


def test_refused_clips_are_counted_and_their_units_go_on(
    ray_cluster: Session, runs: Path, small_set: SmallSet, tmp_path: Path
) -> None:
    """Two videos that have been cut short since they were indexed, a held-out one and one that is fitted on."""
    import shutil

    config = tiny_with(data__index=small_set.index)
    shutil.copytree(small_set.folder, tmp_path / "videos")
    table = pq.read_table(small_set.index)
    moved = [str(tmp_path / "videos" / Path(source).name) for source in table["source"].to_pylist()]
    table = table.set_column(table.column_names.index("source"), "source", [moved])
    pq.write_table(table, tmp_path / "index.parquet")
    spoilt, fitted = (next(ClipReader(config, side).index.keys()) for side in ("val", "train"))  # type: ignore[arg-type]
    for key in (spoilt, fitted):
        broken = tmp_path / "videos" / key
        broken.write_bytes(broken.read_bytes()[:200])
    config = override(config, "data.index", str(tmp_path / "index.parquet"))
    measured = evaluate(config, Company(str(runs / "model")), ("capacity", "leakage"))
    assert any("clips were refused; the first: " in note and spoilt in note for note in measured.notes)
    assert any("clips to fit on were refused; the first: " in note and fitted in note for note in measured.notes)
    assert measured.results[0].videos == len(ClipReader(config, "val").index) - 1


@pytest.mark.parametrize(
    ("split", "val_fraction", "called"),
    [("val", 0.25, "held-out"), ("train", 0.25, "trained on"), ("all", 0.25, "trained on in part"), ("val", 0.6, None)],
)
def test_data_are_called_what_they_are_to_the_training(
    runs: Path, small_set: SmallSet, split: Any, val_fraction: float, called: str | None
) -> None:
    config = tiny_with(data__index=small_set.index, data__val_fraction=val_fraction)
    said = data_name(None, ClipReader(config, split).index, [str(runs / "model")])
    if called is None:  # another split than the training's: some of it was trained on
        trained_on = set(ClipReader(tiny_with(data__index=small_set.index), "train").index.keys())
        mine = set(ClipReader(config, "val").index.keys())
        called = f"trained on in part ({len(trained_on & mine)} of {len(mine)} videos)"
    assert said.startswith(called) and ("held-out" in said) == (called == "held-out")
    assert data_name("PushT", ClipReader(config, split).index, [str(runs / "model")]) == f"PushT, {said}"


def test_what_was_trained_on_is_known_when_the_index_has_gone(small_set: SmallSet, tmp_path: Path) -> None:
    import shutil

    shutil.copy(small_set.index, tmp_path / "index.parquet")
    config = trained(tmp_path / "run", str(tmp_path / "index.parquet"))
    sides = {side: ClipReader(config, side).index for side in ("train", "val")}  # type: ignore[arg-type]
    run = [str(tmp_path / "run")]
    assert (data_name(None, sides["train"], run), data_name(None, sides["val"], run)) == ("trained on", "held-out")
    (tmp_path / "index.parquet").unlink()
    assert data_name(None, sides["train"], run) == "trained on"
    assert "held-out" not in data_name(None, sides["val"], run)  # not known to be of the training's data


def test_an_episodes_name_alone_says_nothing_when_the_index_has_gone(small_set: SmallSet, tmp_path: Path) -> None:
    """Another data set names its episodes alike: nothing else of the videos trained on is in the checkpoint."""
    table = pq.read_table(small_set.index)
    names = pa.array([f"episode_{i:06d}" for i in range(len(table))])
    table = table.set_column(table.column_names.index("group"), "group", names)
    pq.write_table(table, tmp_path / "index.parquet")
    config = trained(tmp_path / "run", str(tmp_path / "index.parquet"))
    (tmp_path / "index.parquet").unlink()
    other = table.set_column(table.column_names.index("key"), "key", pa.array([f"top/{i}" for i in range(len(table))]))
    pq.write_table(other, tmp_path / "other.parquet")
    index = ClipReader(override(config, "data.index", str(tmp_path / "other.parquet")), "train").index
    assert data_name(None, index, [str(tmp_path / "run")]).startswith("data of unknown standing")


def test_another_index_is_other_data_though_keys_are_the_same(
    runs: Path, make_video: Any, tmp_path: Path, small_set: SmallSet
) -> None:
    from small_runs import index_folder

    for name in ("00.mp4", "01.mp4"):  # longer videos than the training's, under keys of its own
        make_video(tmp_path / "videos" / name, seconds=4)
    index = index_folder(tmp_path / "videos", tmp_path / "index.parquet")
    other = ClipReader(tiny_with(data__index=index), "all").index
    assert data_name(None, other, [str(runs / "model")]) == "other data"


def test_trained_on_every_video_is_never_called_held_out(
    ray_cluster: Session, small_set: SmallSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    trained(run, small_set.index, data__val_fraction=0.0)
    for extra in ("evaluate.split=all", "evaluate.split=train", "data.val_fraction=0.5"):
        assert lawm.main(["evaluate", "--checkpoint", str(run), "--which", "capacity", "--set", extra]) == 0
        said = capsys.readouterr().out
        assert "held-out" not in said and "trained on" in said
        assert json.loads((run / "evaluation.json").read_text())["results"][0]["dataset"] == "trained on"


def test_results_lie_beside_the_checkpoint_and_the_report_finds_what_there_is(
    ray_cluster: Session, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(runs / "model")
    assert lawm.main(["evaluate", "--checkpoint", model, "--which", "capacity", "cycle"]) == 0
    said = capsys.readouterr().out
    assert f"results: {model}/evaluation.json" in said and "Verdict (held-out)" in said
    found, *tables, where, _ = said.splitlines()
    assert found == f"deterministic: {model}-deterministic" and where.startswith("results: ")
    assert [line for line in tables if len(line.rstrip()) > 80] == [] and "shuffled_vs_error" in said
    assert lawm.main(["report", "--checkpoint", model, "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert (
        "shuffled_vs_error" in page and "Rollouts start from the first state alone" in page and "data:image/png" in page
    )

    bare = tmp_path / "bare"
    (bare).mkdir()
    import shutil

    shutil.copytree(runs / "model", bare / "model")
    (bare / "model" / "evaluation.json").unlink()
    assert lawm.main(["report", "--checkpoint", str(bare / "model"), "--out", str(tmp_path / "b.html")]) == 0
    assert "No results: none lie beside" in capsys.readouterr().err


def test_units_of_labelled_and_other_clips_are_one_where_the_clips_are_the_same(
    runs: Path, small_set: SmallSet
) -> None:
    config = override(tiny_with(data__index=small_set.index), "data.labels", small_set.labels)
    work = plan_work(config, Company(str(runs / "model")), ("capacity", "leakage", "control", "probes"))
    assert {unit.which for unit in work.units} == {("capacity", "leakage", "control", "probes")}
    assert {(unit.split, unit.which) for unit in work.fits} == {("train", ("leakage",))}
