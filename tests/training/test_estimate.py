"""How long a run will take: counted from measured steps, and not guessed where they cannot be measured."""

import time
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import SmallSet, tiny_kind, tiny_with

from jobs import train
from lawm.config import LawmError, override
from lawm.data import open_reader
from lawm.recipes import recipe
from lawm.training import Estimate, fit_local, measured


def test_what_reads_beside_training_costs_no_time_of_its_own() -> None:
    found = Estimate(train_s=2.0, read_s=6.0, steps=10)
    assert found.seconds(readers=0) == 80 and found.seconds(1) == 60 and found.seconds(2) == 30
    assert found.seconds(12) == 20
    assert Estimate(2.0, None, 10).seconds(1) == 20


def test_an_estimate_is_near_what_the_run_takes(small_set: SmallSet, tmp_path: Path) -> None:
    """Within a factor of ten: other processes may run beside either."""
    config = tiny_with(data__index=small_set.index, train__steps=24, train__batch=16, train__checkpoint_every=24)
    found = measured(config, "latent_action", open_reader(config, "latent_action"), done=4)
    assert found.steps == 20 and found.train_s > 0 and found.read_s is not None and found.read_s > 0
    at: dict[int, float] = {}
    fit_local(config, "latent_action", str(tmp_path / "run"), progress=lambda s, m: at.update({s: time.perf_counter()}))
    took = at[22] - at[2]  # without the start, and the checkpoint
    assert took / 10 < found.seconds(0) < took * 10


def test_a_larger_batch_takes_longer(small_set: SmallSet) -> None:
    config = tiny_with(data__index=small_set.index, data__clip__size=64, encoder__patch=4)
    small, large = (
        measured(override(config, "train.batch", n), "latent_action", open_reader(config, "latent_action")).train_s
        for n in (8, 256)
    )
    assert large > 4 * small  # 32 times the clips


def test_what_cannot_be_measured_is_said(small_set: SmallSet) -> None:
    with pytest.raises(LawmError, match="downloaded"):
        measured(override(recipe("paper_sparse"), "encoder.weights", "pretrained"), "latent_action", None)
    if not torch.cuda.is_available():
        with pytest.raises(LawmError, match=r"\d million parameters, and there is no GPU here"):
            measured(override(recipe("paper_sparse"), "encoder.weights", "random"), "latent_action", None)
    with pytest.raises(LawmError, match="not indexed yet"):
        measured(tiny_kind("true_actions"), "latent_action", None)


def test_a_dry_run_says_it(small_set: SmallSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    given = ["--recipe", "tiny", "--out", str(out), "--dry-run"]
    assert train.main([*given, "--index", small_set.index]) == 0
    said = yaml.safe_load(capsys.readouterr().out)["time"]
    assert said.startswith("about ") and "for 12 steps" in said and "reading a batch" in said and "estimate" in said
    assert train.main([*given, "--videos", str(small_set.folder)]) == 0
    assert "not indexed yet" in yaml.safe_load(capsys.readouterr().out)["time"]
    gpus = ["--set", "cluster.gpus_per_worker=1", "--index", small_set.index]
    assert train.main([*given, *gpus]) == 0
    if not torch.cuda.is_available():
        assert "this machine has none" in yaml.safe_load(capsys.readouterr().out)["time"]
    assert not out.exists() or not any(out.rglob("*.safetensors"))
