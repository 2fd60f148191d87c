"""Figures reach the trackers that are asked for, through their own clients and files; one that fails costs nothing."""

import logging
from pathlib import Path
from typing import Any

import pytest
from small_runs import SmallSet, losses, tiny_with

from lawm.config import LawmError, override
from lawm.training import fit_local
from lawm.training.trackers import KINDS, Trackers, identity


def run_of(small_set: SmallSet, **fields: Any) -> Any:
    return tiny_with(
        data__index=small_set.index, train__steps=4, train__log_every=1, train__checkpoint_every=2, **fields
    )


def test_tensorboard_reads_what_the_run_folder_holds(small_set: SmallSet, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit_local(run_of(small_set), "latent_action", str(tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = {one.step: one.value for one in events.Scalars("loss")}
    assert found == pytest.approx(losses(str(tmp_path / "run")), rel=1e-6)
    fit_local(run_of(small_set, train__trackers=()), "latent_action", str(tmp_path / "none"))
    assert not (tmp_path / "none" / "tensorboard").exists()


def test_mlflow_holds_settings_and_figures_and_a_longer_run_goes_on_in_it(
    small_set: SmallSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_ARTIFACT_URI", str(tmp_path / "artifacts"))
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    config, run = run_of(small_set, train__trackers=("mlflow",), train__project="words"), str(tmp_path / "run")
    fit_local(config, "latent_action", run)
    fit_local(override(config, "train.steps", 6), "latent_action", run)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("words")
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.data.params["model.latent_dim"] == "8" and only.info.run_name == "run"
    history = {m.step: m.value for m in client.get_metric_history(only.info.run_id, "loss")}
    assert history == pytest.approx(losses(run))


def test_wandb_writes_an_offline_run(small_set: SmallSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    fit_local(run_of(small_set, train__trackers=("wandb",)), "latent_action", str(run))
    (file,) = run.glob(f"wandb/offline-run-*-{identity(str(run))}/*.wandb")
    assert file.stat().st_size > 0


def test_a_tracker_that_fails_is_said_once_and_costs_no_step(
    small_set: SmallSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Away:
        def __init__(self, *_: Any) -> None:
            self.calls = 0

        def scalars(self, step: int, metrics: dict[str, float]) -> None:
            raise ConnectionError("nobody\nlistens")

        def flush(self) -> None: ...

    monkeypatch.setitem(KINDS, "mlflow", Away)
    config = run_of(small_set, train__trackers=("mlflow",))
    with caplog.at_level(logging.WARNING):
        fit_local(config, "latent_action", str(tmp_path / "run"))
    said = [r.message for r in caplog.records if "tracker" in r.message]
    assert said == ["tracker mlflow fails and is left out from here on (ConnectionError: nobody listens)"]
    assert set(losses(str(tmp_path / "run"))) == {1, 2, 3, 4}


def test_a_package_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise ImportError("No module named 'wandb'")

    monkeypatch.setitem(KINDS, "wandb", missing)
    with pytest.raises(LawmError, match=r"wandb is not installed .*pip install 'lawm\[wandb\]'"):
        Trackers(str(tmp_path), tiny_with(train__trackers=("wandb",)), 0)
