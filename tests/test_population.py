"""A population is its members' single runs, on clips that are read and encoded once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SmallSet, tiny_with

from lawm.checkpoint import load_checkpoint
from lawm.config import Config, LawmError, override
from lawm.encoder import PixelStates
from lawm.population import fit_population
from lawm.train import fit_local


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
    found = fit_population(configs, list(map(str, runs)))
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
    fit_population(configs, whole)
    runs = [str(tmp_path / "broken" / str(i)) for i in range(2)]

    class Stop(Exception):
        pass

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise Stop

    with pytest.raises(Stop):
        fit_population(configs, runs, stop)
    fit_population(configs, runs)
    assert [losses(Path(r)) for r in runs] == [losses(Path(r)) for r in whole]


def test_what_does_not_fit_is_one_line(tmp_path: Path, small_set: SmallSet) -> None:
    configs = members(small_set)[:2]
    runs = [str(tmp_path / "0"), str(tmp_path / "1")]
    other = [configs[0], override(configs[1], "data.seed", 5)]
    with pytest.raises(LawmError, match=r"shares its clips and its encoder; its members differ in data\.seed"):
        fit_population(other, runs)
    mixed = [configs[0], override(configs[1], "model.bottleneck", {"kind": "true_actions"})]
    with pytest.raises(LawmError, match="true_actions needs labelled clips"):
        fit_population(mixed, runs)
    with pytest.raises(LawmError, match="2 members need as many run folders"):
        fit_population(configs, [runs[0], runs[0]])
    with pytest.raises(LawmError, match="at least one member"):
        fit_population([], [])
    fit_local(configs[0], "latent_action", runs[0])
    with pytest.raises(LawmError, match=r"stand at steps 6, 0: remove their folders, or train them singly"):
        fit_population(configs, runs)
