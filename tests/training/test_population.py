"""A population is its members' single runs, on clips that are read and encoded once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import SmallSet, tiny_with

from jobs import train
from lawm.cluster.fit import fit_population
from lawm.cluster.session import Session
from lawm.config import Config, LawmError, Noisy, override
from lawm.data import Cursor
from lawm.model.encoder.pixels import PixelStates
from lawm.storage import StorageError
from lawm.training import (
    Checkpoint,
    checkpoint_name,
    common_checkpoints,
    fit_local,
    fit_population_local,
    load_checkpoint,
    prepare,
    prepare_population,
    stopped_members,
)
from lawm.training.checkpoint import checkpoint_folders, step_of
from lawm.training.loop import Trainer


def members(small_set: SmallSet) -> list[Config]:
    """A strong and a weak noisy, a sparse and a discrete one: random numbers in the step, and none."""
    base = tiny_with(data__index=small_set.index, train__steps=6, train__checkpoint_every=3, train__log_every=1)
    bottlenecks: list[dict[str, Any]] = [
        {"kind": "noisy", "beta": 1e-2},
        {"kind": "noisy", "beta": 1e-5},
        {"kind": "sparse"},
        {"kind": "discrete", "codebook_size": 8, "reset_after": 20},
    ]
    return [override(base, "model.bottleneck", b) for b in bottlenecks]


def losses(run: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]


def test_each_member_equals_its_single_run(
    tmp_path: Path, small_set: SmallSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = members(small_set)
    encoded: list[int] = []
    encode = PixelStates.forward
    monkeypatch.setattr(PixelStates, "forward", lambda self, x: (encoded.append(1), encode(self, x))[1])
    runs = [tmp_path / f"member-{i}" for i in range(len(configs))]
    found = fit_population_local(configs, list(map(str, runs)))
    together = len(encoded)
    for i, (config, run) in enumerate(zip(configs, runs, strict=True)):
        alone = tmp_path / f"alone-{i}"
        encoded.clear()
        single = load_checkpoint(fit_local(config, "latent_action", str(alone)))
        assert losses(run) == losses(alone) and len(losses(run)) == 6
        weights = load_checkpoint(found[i]).weights
        assert all(torch.equal(v, weights[k]) for k, v in single.weights.items())
    assert together < 4 * len(encoded)  # validation is each member's own; training clips are encoded once
    assert len({tuple(losses(run)) for run in runs}) == len(runs)


def test_a_population_goes_on_where_it_stood(tmp_path: Path, small_set: SmallSet) -> None:
    configs = members(small_set)[:2]
    whole = [str(tmp_path / "whole" / str(i)) for i in range(2)]
    fit_population_local(configs, whole)
    runs = [str(tmp_path / "broken" / str(i)) for i in range(2)]

    class Stop(Exception):
        pass

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise Stop

    with pytest.raises(Stop):
        fit_population_local(configs, runs, stop)
    fit_population_local(configs, runs)
    assert [losses(Path(r)) for r in runs] == [losses(Path(r)) for r in whole]


def test_what_does_not_fit_is_one_line(tmp_path: Path, small_set: SmallSet) -> None:
    configs = members(small_set)[:2]
    runs = [str(tmp_path / "0"), str(tmp_path / "1")]
    other = [configs[0], override(configs[1], "data.seed", 5)]
    with pytest.raises(LawmError, match=r"shares its clips and its encoder; its members differ in data\.seed"):
        fit_population_local(other, runs)
    mixed = [configs[0], override(configs[1], "model.bottleneck", {"kind": "true_actions"})]
    with pytest.raises(LawmError, match="true_actions needs labelled clips"):
        fit_population_local(mixed, runs)
    with pytest.raises(LawmError, match="members need run folders of their own"):
        fit_population_local(configs, [runs[0], runs[0]])
    with pytest.raises(LawmError, match="at least one member"):
        fit_population_local([], [])
    fit_local(configs[0], "latent_action", runs[0])
    with pytest.raises(LawmError, match=r"stand at steps 6, 0: remove their folders, or train them singly"):
        fit_population_local(configs, runs)


def test_a_kill_between_two_members_checkpoints_is_mended(tmp_path: Path, small_set: SmallSet) -> None:
    configs = members(small_set)[:2]
    whole = [str(tmp_path / "whole" / str(i)) for i in range(2)]
    fit_population_local(configs, whole)
    runs = [str(tmp_path / "killed" / str(i)) for i in range(2)]
    fit_population_local(configs, runs)
    shutil.rmtree(Path(runs[1]) / checkpoint_name(6))  # the first member was one checkpoint ahead
    assert [Path(str(uri)).name for uri in common_checkpoints(runs)] == [checkpoint_name(3)] * 2
    fit_population_local(configs, runs)
    assert [losses(Path(r)) for r in runs] == [losses(Path(r)) for r in whole]


def test_a_member_that_saves_none_for_a_while_does_not_lose_the_population(
    tmp_path: Path, small_set: SmallSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are suspicious: it skips checkpoints that the others save, and all are killed meanwhile."""
    configs = [override(override(c, "train.keep", 1), "train.steps", 12) for c in members(small_set)[:2]]
    whole = [str(tmp_path / "whole" / str(i)) for i in range(2)]
    fit_population_local(configs, whole)
    assert all([step_of(folder) for folder in checkpoint_folders(run)] == [12] for run in whole)
    runs = [str(tmp_path / "killed" / str(i)) for i in range(2)]
    checkpoint = Trainer._checkpoint

    def suspicious(self: Trainer, done: int, figures: dict[str, float], cursor: Cursor) -> Checkpoint | None:
        second = self.config.model == configs[1].model
        return None if second and done > 3 else checkpoint(self, done, figures, cursor)

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 10:
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Trainer, "_checkpoint", suspicious)
        fit_population_local(configs, runs, kill)
    assert [[step_of(folder) for folder in checkpoint_folders(run)] for run in runs] == [[3, 9], [3]]
    fit_population_local(configs, runs)
    assert [losses(Path(r)) for r in runs] == [losses(Path(r)) for r in whole]
    assert all([step_of(folder) for folder in checkpoint_folders(run)] == [12] for run in runs)


def test_a_run_begins_where_it_is_told_to(tmp_path: Path, small_set: SmallSet) -> None:
    """Not at a checkpoint that has appeared since its ranks, or members, agreed on none."""
    config, run = members(small_set)[0], str(tmp_path / "run")
    last = fit_local(config, "latent_action", run)
    assert prepare(config, "latent_action", run, None).resume is None
    (alone,) = prepare_population([config], [run], [None])
    assert alone.resume is None
    resumed = prepare(config, "latent_action", run, last).resume
    assert resumed is not None and resumed.step == 6


def test_a_member_that_diverges_leaves_the_others_alone(tmp_path: Path, small_set: SmallSet) -> None:
    configs = [override(c, "train.steps", 30) for c in members(small_set)[:2]]
    wild = override(override(configs[0], "optimizer.muon_lr", 1.0), "optimizer.adamw_lr", 1.0)
    runs = [str(tmp_path / "wild"), str(tmp_path / "calm")]
    with pytest.raises(LawmError, match=r"^member 0: stopped at step \d+: the prediction loss has diverged"):
        fit_population_local([wild, configs[1]], runs)
    assert len(losses(Path(runs[1]))) == 30 > len(losses(Path(runs[0])))
    assert load_checkpoint(runs[1]).step == 30
    alone = fit_local(configs[1], "latent_action", str(tmp_path / "alone"))
    assert load_checkpoint(alone).fingerprint == load_checkpoint(runs[1]).fingerprint
    # Run again: the finished member is left alone, and the reason is said again.
    before = (tmp_path / "calm/metrics.jsonl").read_bytes()
    with pytest.raises(LawmError, match=r"^member 0: stopped at step \d+: the prediction loss has diverged"):
        fit_population_local([wild, configs[1]], runs)
    assert (tmp_path / "calm/metrics.jsonl").read_bytes() == before


def test_a_population_goes_on_after_a_kill_without_its_stopped_member(tmp_path: Path, small_set: SmallSet) -> None:
    configs = [override(c, "train.steps", 24) for c in members(small_set)[:2]]
    wild = override(override(configs[0], "optimizer.muon_lr", 1.0), "optimizer.adamw_lr", 1.0)
    runs = [str(tmp_path / "wild"), str(tmp_path / "calm")]

    class Kill(Exception):
        pass

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 14:
            raise Kill

    with pytest.raises(Kill):
        fit_population_local([wild, configs[1]], runs, kill)
    with pytest.raises(LawmError, match=r"^member 0: "):
        fit_population_local([wild, configs[1]], runs)
    alone = fit_local(configs[1], "latent_action", str(tmp_path / "alone"))
    assert load_checkpoint(alone).fingerprint == load_checkpoint(runs[1]).fingerprint


def test_a_storage_that_fails_is_not_a_members_own_trouble(
    tmp_path: Path, small_set: SmallSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("lawm.training.run_folder.save_checkpoint", full)
    runs = [str(tmp_path / "0"), str(tmp_path / "1")]
    with pytest.raises(StorageError, match=r"^the disk is full$"):
        fit_population_local(members(small_set)[:2], runs)
    assert not stopped_members(runs, members(small_set)[:2])


@pytest.mark.slow  # in plain Python: above
def test_on_ray_each_member_is_what_it_is_in_plain_python(
    ray_cluster: Session, tmp_path: Path, small_set: SmallSet
) -> None:
    configs = [override(c, "cluster.max_failures", 0) for c in members(small_set)]
    plain = [str(tmp_path / "plain" / str(i)) for i in range(len(configs))]
    fit_population_local(configs, plain)
    runs = [str(tmp_path / "ray" / str(i)) for i in range(len(configs))]
    seen: list[dict[str, Any]] = []
    last = fit_population(configs, runs, seen.append)
    for run, other in zip(runs, plain, strict=True):
        ours, theirs = losses(Path(run)), losses(Path(other))
        assert [line[0] for line in ours] == [1, 2, 3, 4, 5, 6]
        assert [line[1] for line in ours] == pytest.approx([line[1] for line in theirs], rel=1e-5)
        assert [step_of(folder) for folder in checkpoint_folders(run)] == [3, 6]
    assert seen[-1]["step"] == 6
    assert fit_population(configs, runs) == last  # done already


@pytest.mark.slow  # two workers: see runs that are killed; a stopped member: in plain Python, above
def test_on_two_workers_the_others_go_on_without_a_stopped_member(
    ray_cluster: Session, tmp_path: Path, small_set: SmallSet
) -> None:
    calm = override(members(small_set)[1], "train.steps", 12)
    calm = override(override(calm, "cluster.max_failures", 0), "cluster.workers", 2)
    wild = override(override(calm, "optimizer.muon_lr", 1.0), "optimizer.adamw_lr", 1.0)
    runs = [str(tmp_path / "stopped" / str(i)) for i in range(2)]
    for _ in range(2):
        with pytest.raises(LawmError, match=r"^member 0: stopped at step \d+: the prediction loss has diverged"):
            fit_population([wild, calm], runs)
        last = load_checkpoint(runs[1])
        assert last.step == 12 and len(last.cursor) == 48


def test_members_on_the_command_line(tmp_path: Path, small_set: SmallSet, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    fast = ["--recipe", "tiny", "--index", small_set.index, "--out", out, "--set", "train.steps=2", "--plain"]
    some = [
        "--member",
        "model.bottleneck.beta=1e-2",
        "--member",
        "model.bottleneck.kind=sparse optimizer.adamw_lr=1e-3",
    ]
    assert train.main([*fast, *some, "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["members"][f"{out}/member-0"] == {"model.bottleneck.beta": 0.01}
    assert said["members"][f"{out}/member-1"]["optimizer.adamw_lr"] == 0.001
    assert train.main([*fast, *some]) == 0
    assert load_checkpoint(f"{out}/member-0").config.model.bottleneck == Noisy(beta=1e-2)
    assert load_checkpoint(f"{out}/member-1").config.model.bottleneck.kind == "sparse"
    assert train.main([*fast, "--member", "data.seed=3", "--member", "train.steps=9"]) == 2
    assert "its members differ in data.seed, train.steps" in capsys.readouterr().err
    assert train.main([*fast, "--member", "beta"]) == 2
    assert "--member beta: expected FIELD=VALUE" in capsys.readouterr().err
    assert train.main([*fast, "--member", "model.bottleneck.beta='1e-5"]) == 2
    other = [*fast, "--out", f"{out}-other"]
    json_value = 'optimizer.adamw_lr=1e-3 model.bottleneck={"kind": "noisy", "beta": 1e-3}'
    assert train.main([*other, "--member", json_value, "--member", "model.latent_dim=4", "--dry-run"]) == 0
    for bad in ("model.world_model.heads=7", "model.bottleneck.kind=true_actions"):
        assert train.main([*other, "--member", bad, "--dry-run"]) == 2, bad
    assert train.main([*other, "--set", "fine_tune.target=ema", "--dry-run"]) == 2
