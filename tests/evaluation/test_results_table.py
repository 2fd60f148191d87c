"""The table of results and the values of single clips, through their files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import tiny_with

from lawm.config import LawmError
from lawm.evaluation import (
    SUITE,
    Kept,
    Measured,
    Missing,
    PerClip,
    Result,
    config_hash,
    kept_values,
    matching_rows,
    newest_rows,
    record_results,
    strength_of,
    suite_says,
    tables_below,
)
from lawm.evaluation.probes import Probes
from lawm.evaluation.table import SCHEMA
from lawm.evaluation.values_file import values_from_bytes, values_to_bytes
from lawm.planning import PLANNING_SAYS


def result(name: str = "cycle_ratio", value: float = 1.1, step: int = 10, **more: Any) -> Result:
    said: dict[str, Any] = {"evaluation": "cycle", "better": "lower", "note": "over 2 s", "seed": 7} | more
    return Result(name, value, value - 0.1, value + 0.1, 32, 8, "ratio", "PushT, held-out", step, **said)


def probes() -> Kept:
    groups = np.array(["a", "a", "b"], dtype=object)
    truth = np.arange(18.0).reshape(3, 3, 2)
    values = Probes(groups, truth, Missing("one video"), truth / 3, truth * np.pi, np.ones((3, 2), bool))
    return Kept("probes", "PushT, held-out", 10, ("a@0", "a@0.5", "b@0"), values, ("x", "y"))


def test_a_table_holds_every_result_and_what_it_is_of(tmp_path: Path) -> None:
    config, run = tiny_with(train__seed=3), str(tmp_path / "run")
    where = record_results(run, Measured([result(), result("leakage_score", evaluation="leakage")]), run, config)
    rows = pd_rows(where)
    assert [row["figure"] for row in rows] == ["cycle_ratio", "leakage_score"]
    one = rows[0]
    assert (one["run"], one["step"], one["seed"], one["drawn_with"]) == (run, 10, 3, 7)
    assert (one["latents"], one["strength"], one["clips"], one["videos"]) == ("noisy", 1e-4, 32, 8)
    assert (one["value"], one["low"], one["unit"], one["dataset"]) == (1.1, 1.0, "ratio", "PushT, held-out")
    assert one["config"] == config_hash(config) and one["note"] == "over 2 s" and set(one) == set(SCHEMA.names)


def pd_rows(where: str) -> list[dict[str, Any]]:
    """As another program reads it."""
    import pandas as pd

    return pd.read_parquet(where).to_dict("records")  # type: ignore[return-value]


def test_measured_again_replaces_and_another_step_is_a_row_more(tmp_path: Path) -> None:
    config, run = tiny_with(), str(tmp_path)
    for found in (
        [result(value=1.5), result("gone")],
        [result(value=1.2)],  # the same step: what is no longer measured goes too
        [replace(result(value=1.3), dataset="x")],
        [result(value=1.0, step=20)],
    ):
        record_results(run, Measured(found), run, config)
    ((_, rows),) = tables_below([run])
    assert [(r.figure, r.value, r.step, r.dataset) for r in rows] == [
        ("cycle_ratio", 1.2, 10, "PushT, held-out"), ("cycle_ratio", 1.3, 10, "x"),
        ("cycle_ratio", 1.0, 20, "PushT, held-out"),
    ]  # fmt: skip
    assert [(r.value, r.step) for r in newest_rows(rows)] == [(1.3, 10), (1.0, 20)]


def test_rows_are_chosen_by_column(tmp_path: Path) -> None:
    for name, beta in (("a", 1e-4), ("b", 0.5)):
        config = tiny_with(model__bottleneck__beta=beta)
        both = [result(), result("one_step_error", evaluation="capacity")]
        record_results(str(tmp_path / name), Measured(both), str(tmp_path / name), config)
    rows = [row for _, found in tables_below([str(tmp_path)]) for row in found]

    def chosen(*filters: str) -> list[tuple[str, str]]:
        return [(Path(row.run).name, row.figure) for row in matching_rows(rows, filters)]

    assert chosen("evaluation=cycle*", "run=a") == [("a", "cycle_ratio")]
    assert chosen("evaluation=capacity") == [("a", "one_step_error"), ("b", "one_step_error")]
    assert chosen("strength=0.5", "figure!=one_*") == [("b", "cycle_ratio")]
    assert chosen("strength=0.0001", "dataset=*held-out", "evaluation=cycle") == [("a", "cycle_ratio")]
    with pytest.raises(LawmError, match="--filter colour=red: expected COLUMN=PATTERN; the columns are run, step"):
        chosen("colour=red")


def test_the_hash_is_the_same_for_seeds_and_other_for_what_changes_a_model() -> None:
    base = config_hash(tiny_with())
    same = {"train__seed": 5, "train__log_every": 7, "evaluate__clips": 99, "cluster__workers": 3, "recipe": "x"}
    assert {config_hash(tiny_with(**{k: v})) for k, v in same.items()} == {base}
    other = {"train__steps": 13, "model__bottleneck__beta": 1.0, "data__seed": 3, "optimizer__muon_lr": 0.5}
    assert len({base, *(config_hash(tiny_with(**{k: v})) for k, v in other.items())}) == 5
    assert strength_of(tiny_with(model__bottleneck__kind="none").model.bottleneck) is None


def test_values_go_through_a_file_with_their_shapes_types_and_reasons() -> None:
    kept = probes()
    again = values_from_bytes(values_to_bytes(kept), "f", suite_says())
    assert (again.evaluation, again.dataset, again.step) == ("probes", "PushT, held-out", 10)
    assert again.clips == kept.clips and again.names == ("x", "y") and again.values.groups.tolist() == ["a", "a", "b"]
    assert isinstance(again.values, Probes) and isinstance(kept.values, Probes)
    assert again.values.shuffled == Missing("one video")
    for name in ("truth", "linear", "mlp", "varies"):
        ours, theirs = getattr(kept.values, name), getattr(again.values, name)
        assert theirs.dtype == ours.dtype and theirs.shape == ours.shape and (theirs == ours).all()
    table = pq.read_table(pa.BufferReader(values_to_bytes(kept)))  # as any program reads it
    assert table["clip"].to_pylist() == ["a@0", "a@0.5", "b@0"] and table["truth"].to_pylist()[1] == [*range(6, 12)]


def test_every_evaluation_says_what_its_values_are() -> None:
    says = suite_says() | PLANNING_SAYS
    assert {*SUITE, "planning", "closed_loop"} == {*says}
    assert all(issubclass(one.values, PerClip) and one.values is not PerClip for one in says.values())


def test_values_are_found_beside_the_table(tmp_path: Path) -> None:
    found = Measured([result("probe_r2_linear", evaluation="probes")], kept=[probes()])
    run = str(tmp_path)
    record_results(run, found, run, tiny_with())
    ((folder, rows),) = tables_below([run])
    assert kept_values(folder, rows[0], suite_says()).clips == probes().clips
    with pytest.raises(LawmError, match="the values of single clips are not there; measure again"):
        kept_values(folder, replace(rows[0], step=11), suite_says())


def test_what_cannot_be_read_is_said_with_the_remedy(tmp_path: Path) -> None:
    def tables(*names: str) -> Any:
        return list(tables_below([str(tmp_path.joinpath(*names))]))

    with pytest.raises(LawmError, match=r"no such folder\. Expected a run"):
        tables("nowhere")
    old = tmp_path / "old"
    old.mkdir()
    with pytest.raises(LawmError, match="nothing has been measured there; run lawm evaluate --checkpoint"):
        tables("old")
    (old / "evaluation.json").write_text("{}")
    with pytest.raises(LawmError, match=rf"of a lawm that kept no table; run lawm evaluate --checkpoint {old}"):
        tables("old")
    pq.write_table(pa.table({"figure": ["a"]}), old / "results.parquet")
    with pytest.raises(LawmError, match="not a results table of this version of lawm; remove it, and measure again"):
        tables("old")
    (old / "results.parquet").write_bytes(b"torn")
    with pytest.raises(LawmError, match="not a results table"):
        tables("old")
    with pytest.raises(LawmError, match="not a file of values per clip"):
        values_from_bytes((old / "results.parquet").read_bytes(), "f", suite_says())
    changed = values_to_bytes(replace(probes(), evaluation="capacity"))
    with pytest.raises(LawmError, match="values of capacity as another version of lawm made them; measure again"):
        values_from_bytes(changed, "f", suite_says())


def test_tables_on_s3(s3: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="tables")
    for name in ("a", "b"):
        run = f"s3://tables/runs/{name}"
        record_results(run, Measured([result()], kept=[replace(probes(), evaluation="probes")]), run, tiny_with())
    found = list(tables_below(["s3://tables/runs"]))
    assert [folder for folder, _ in found] == ["s3://tables/runs/a", "s3://tables/runs/b"]
    assert [row.run for _, rows in found for row in rows] == ["s3://tables/runs/a", "s3://tables/runs/b"]
