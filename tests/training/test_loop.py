"""The training loop: golden losses, resume equals uninterrupted, bad steps, what a run folder holds."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from golden_losses import GOLDEN, ten_losses
from small_runs import (
    BOTTLENECKS,
    SmallSet,
    losses_of,
    made_batches,
    new_objective,
    spoiled_config,
    tiny_kind,
    tiny_with,
)

from lawm.config import LawmError, TimmEncoder, override
from lawm.data import Cursor, open_reader
from lawm.model import Block
from lawm.recipes import tiny
from lawm.training import (
    Checkpoint,
    ClipBatch,
    RunWriter,
    check_same_clips,
    check_same_run,
    checkpoint_name,
    fit_local,
    load_checkpoint,
    newest_checkpoint,
    settings,
    standing_lines,
    train,
)
from lawm.training.checkpoint import checkpoint_folders
from lawm.training.run_folder import local_report


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_golden_losses(kind: str) -> None:
    """To rewrite them: OMP_NUM_THREADS=1 python tests/golden_losses.py --write"""
    assert ten_losses(kind) == pytest.approx(json.loads(GOLDEN.read_text())[kind], rel=1e-3)


def train_parts(config: Any, stop: int, resume: Checkpoint | None = None) -> tuple[dict[int, float], Checkpoint]:
    """Losses by step and the last checkpoint of a run that is cut off after `stop` steps."""
    losses: dict[int, float] = {}
    kept: list[Checkpoint] = []

    class Cut(Exception):
        pass

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        losses[step] = metrics["loss"]
        if checkpoint is not None:
            kept.append(checkpoint)
        if step == stop:
            raise Cut

    try:
        train(new_objective(config, seed=0 if resume is None else 99), made_batches(config), config, report, resume)
    except Cut:
        pass
    return losses, kept[-1]


@pytest.mark.parametrize("kind", ["noisy", "discrete"])
def test_resumed_equals_uninterrupted(kind: str) -> None:
    """Noise, codebook upkeep, both optimisers' moments, the schedule and the clips all go on where they were."""
    config = tiny_kind(kind, train__steps=8, train__checkpoint_every=3, train__log_every=1, model__action_dropout=0.2)
    whole, end = train_parts(config, 8)
    before, middle = train_parts(config, 5)  # two steps after the checkpoint of step 3
    assert middle.step == 3 and middle.cursor == Cursor(12)
    after, resumed_end = train_parts(config, 8, middle)
    assert list(after) == [4, 5, 6, 7, 8]
    assert before | after == pytest.approx(whole, rel=1e-6)
    assert resumed_end.cursor == end.cursor == Cursor(32)
    assert set(resumed_end.weights) == set(end.weights)
    for name, weight in end.weights.items():
        torch.testing.assert_close(resumed_end.weights[name], weight, rtol=1e-5, atol=1e-7, msg=name)
    assert end.optimizer is not None and resumed_end.optimizer is not None
    for name, moment in end.optimizer.items():
        torch.testing.assert_close(resumed_end.optimizer[name], moment, rtol=1e-5, atol=1e-7, msg=name)
    # The test can fail: without the moments the run goes elsewhere.
    elsewhere, _ = train_parts(config, 8, replace(middle, optimizer=None))
    assert elsewhere[8] != pytest.approx(whole[8], rel=1e-6)


def test_training_finds_the_latent_action() -> None:
    """Clips that grow brighter or darker, each at its own pace: only a latent can say which."""
    generator = np.random.default_rng(0)
    pace = generator.integers(8, 25, 8) * np.resize([1, -1], 8)
    frames = np.clip(128 + pace[:, None] * np.arange(4) + generator.integers(-2, 3, (8, 4)), 0, 255).astype(np.uint8)
    batch = ClipBatch(
        torch.from_numpy(frames)[:, :, None, None, None].expand(8, 4, 3, 32, 32), None, None, torch.arange(8)
    )
    last = {}
    for kind in ("none", "deterministic"):
        config = tiny_kind(kind, train__steps=40, train__log_every=5, train__checkpoint_every=40)
        last[kind] = losses_of(config, batches=lambda cursor: itertools.repeat(batch))[-1]["prediction"]
    assert last["none"] < 0.5 * last["deterministic"], last


# ---------------------------------------------------------------- bad steps
def test_a_step_with_a_bad_clip_is_skipped_and_counted() -> None:
    config = spoiled_config()
    weights: list[dict[str, torch.Tensor]] = []
    objective = new_objective(config)
    seen: list[dict[str, float]] = []

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        seen.append(metrics)
        weights.append({k: v.clone() for k, v in objective.kept().items()})

    train(objective, made_batches(config, spoil=(9,)), config, report)
    assert [m["bad_steps"] for m in seen] == [0, 1, 1]
    assert "loss" in seen[0] and "loss" not in seen[1] and "loss" in seen[2]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[1][k], weights[2][k]) for k in weights[0])


def test_too_many_bad_steps_stop_the_run() -> None:
    base = spoiled_config()
    spoil = tuple(range(8, 200))
    for limit in (0, 2):
        config = base.model_copy(update={"train": base.train.model_copy(update={"max_bad_steps": limit, "steps": 9})})
        steps: list[int] = []
        with pytest.raises(LawmError, match=rf"not finite in {limit + 1} steps .*last at step {limit + 2};"):
            train(
                new_objective(config),
                made_batches(config, spoil=spoil),
                config,
                lambda s, m, c, steps=steps: steps.append(s),
            )
        assert steps == list(range(1, limit + 2))


# ---------------------------------------------------------------- the run folder
def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    config = tiny_with(train__keep=2)
    objective = new_objective(config)

    def save(step: int, error: float | None, writer: RunWriter) -> list[int]:
        metrics = {} if error is None else {"val_prediction": error}
        weights = objective.kept()
        checkpoint = Checkpoint("latent_action", config, step, Cursor(), weights, {}, metrics=metrics)
        local_report(writer, config.train.keep)(step, metrics, checkpoint)
        return [int(uri[-8:]) for uri in checkpoint_folders(writer.run)]

    writer = RunWriter(str(tmp_path / "a"), config)
    errors = {1: 0.5, 2: 0.3, 3: 0.4, 4: float("nan"), 5: 0.2, 6: 0.6}
    assert [save(step, error, writer) for step, error in errors.items()] == [
        [1],
        [1, 2],
        [2, 3],
        [2, 4],
        [2, 5],
        [5, 6],
    ]
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name.startswith("step_")) == [
        "step_00000005",
        "step_00000006",
    ]
    writer = RunWriter(str(tmp_path / "b"), config)  # nothing held out: the two newest
    assert [save(step, None, writer) for step in (1, 2, 3)] == [[1], [1, 2], [2, 3]]


def test_a_resumed_run_drops_lines_after_its_checkpoint_and_a_torn_one(tmp_path: Path) -> None:
    writer = RunWriter(str(tmp_path), tiny())
    for step in (2, 4, 6):
        writer.scalars(step, {"loss": 1.0 / step, "bad": float("nan")})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    RunWriter(str(tmp_path), tiny(), step=4).scalars(6, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 0.5), (4, 0.25), (6, 9.0)]
    assert "bad" not in lines[0]
    RunWriter(str(tmp_path), tiny())  # a run from the start forgets all
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_refused_clip_is_listed_once_and_before_the_checkpoint_that_consumes_it(tmp_path: Path) -> None:
    config = tiny()
    weights = new_objective(config).kept()

    def listed() -> list[tuple[int, int]]:
        lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
        return [(line["step"], line["position"]) for line in lines]

    writer = RunWriter(str(tmp_path), config)
    writer.quarantine({"position": 3})
    writer.scalars(2, {"loss": 1.0})
    writer.quarantine({"position": 9})  # read ahead: it belongs to a step after the checkpoint
    writer.checkpoint(Checkpoint("latent_action", config, 4, Cursor(8), weights, {}))
    writer.scalars(4, {"loss": 1.0})
    writer.quarantine({"position": 11})
    assert listed() == [(1, 3), (3, 9), (5, 11)]
    writer = RunWriter(str(tmp_path), config, step=4)  # killed, and started again
    assert listed() == [(1, 3), (3, 9)]
    for position in (9, 11, 11):
        writer.quarantine({"position": position})
    assert listed() == [(1, 3), (3, 9), (5, 11)]


def test_fit_local_from_videos_resumes_and_refuses_another_config(small_set: SmallSet, tmp_path: Path) -> None:
    config = tiny_with(data__index=small_set.index, train__steps=4, train__checkpoint_every=2, train__log_every=1)
    run = str(tmp_path / "run")
    last = fit_local(config, "latent_action", run)
    first = Path(run, "metrics.jsonl").read_text()
    assert last == newest_checkpoint(run) and load_checkpoint(last).step == 4
    assert load_checkpoint(last).cursor == Cursor(16)
    assert "val_prediction" in json.loads(first.splitlines()[-1])
    # As if killed after step 3: the newest checkpoint is step 2.
    for name in ("checkpoint.json", "model.safetensors", "optimizer.safetensors"):
        Path(last, name).unlink()
    Path(last).rmdir()
    steps: list[int] = []
    assert fit_local(config, "latent_action", run, progress=lambda step, m: steps.append(step)) == last
    assert steps == [3, 4]
    pairs = zip(first.splitlines(), Path(run, "metrics.jsonl").read_text().splitlines(), strict=True)
    for before, after in (map(json.loads, pair) for pair in pairs):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
    # Finished: nothing to do. Another config: refused; what the cluster is asked for may differ.
    assert fit_local(config, "latent_action", run, progress=lambda step, m: steps.append(step)) == last
    assert steps == [3, 4]
    check_same_run(
        tiny_with(**{"data__index": small_set.index, "train__steps": 4, "cluster__workers": 3}), "latent_action", run
    )
    with pytest.raises(LawmError, match=r"another config \(train\.batch = 4 there, 2 now"):
        fit_local(
            config.model_copy(update={"train": config.train.model_copy(update={"batch": 2})}), "latent_action", run
        )
    with pytest.raises(LawmError, match="kind latent_action there, controller now"):
        check_same_run(config, "controller", run)
    seeded = config.model_copy(update={"data": config.data.model_copy(update={"clips_per_video": 1})})
    with pytest.raises(LawmError, match="on other videos"):
        check_same_clips(open_reader(seeded, "latent_action"), run)
    (Path(last) / "checkpoint.json").write_text("{}")
    with pytest.raises(LawmError, match="damaged checkpoint"):
        check_same_run(config, "latent_action", run)


def test_a_run_that_has_ended_can_be_made_longer(small_set: SmallSet, tmp_path: Path) -> None:
    """From where it stands, its learning rate is that of a run of the new length; a resumed run of unchanged length is
    what it was."""
    fields = {"data__index": small_set.index, "train__log_every": 1, "train__checkpoint_every": 2}
    short, long = (tiny_with(**fields | {"train__steps": steps}) for steps in (4, 10))
    run = str(tmp_path / "run")
    assert standing_lines(short, "latent_action", newest_checkpoint(run)) == []
    ended = fit_local(short, "latent_action", run)
    first = Path(run, "metrics.jsonl").read_text()
    said = standing_lines(short, "latent_action", ended)
    assert said[0] == f"done: all 4 steps are in {ended}" and "--set train.steps=N" in said[1]
    said = standing_lines(long, "latent_action", ended)
    assert said[0] == f"goes on from step 4 of 10 ({ended})"
    # 10 steps: one of warm-up, then a cosine of nine, of which step 4 has 3 behind it. Before: the last of 4.
    assert "10 steps now, 4 before" in said[1]
    assert (
        f"({(1 + math.cos(math.pi / 3)) / 2:.0%} of its peak; it was {(1 + math.cos(math.pi * 3 / 4)) / 2:.0%})"
        in said[1]
    )
    assert load_checkpoint(fit_local(long, "latent_action", run)).config.train.steps == 10
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    assert lines[:4] == first.splitlines() and len(lines) == 10
    rates = [json.loads(line)["learning_rate"] for line in lines[4:]]
    peak = long.optimizer.adamw_lr
    assert rates == pytest.approx([peak * (1 + math.cos(math.pi * (s - 1) / 9)) / 2 for s in range(4, 10)])
    with pytest.raises(LawmError, match=r"stands at step 10, beyond the 4 asked for"):
        fit_local(short, "latent_action", run)


def test_controller_and_decoder_train_on_a_model_and_leave_it_alone(small_set: SmallSet, tmp_path: Path) -> None:
    config = tiny_with(
        data__index=small_set.index,
        data__labels=small_set.labels,
        train__steps=2,
        train__checkpoint_every=2,
        controller__train__steps=4,
        controller__train__log_every=4,
        controller__train__checkpoint_every=4,
        decoder__train__steps=4,
        decoder__train__checkpoint_every=4,
    )
    parent = fit_local(config, "latent_action", str(tmp_path / "model"))
    from lawm.training import load_controller, load_decoder, load_model

    model, about = load_model(parent)
    before = about.fingerprint
    for kind, load in (("controller", load_controller), ("decoder", load_decoder)):
        where = fit_local(config, kind, str(tmp_path / kind), parent)
        checkpoint = load_checkpoint(where, optimizer=True)
        assert checkpoint.parent == {"uri": parent, "fingerprint": before}
        assert checkpoint.step == 4 and not any(name.startswith("model.") for name in checkpoint.weights)
        assert checkpoint.optimizer and not any("world_model" in name for name in checkpoint.optimizer)
        objective = load(where, model, about)
        assert all(torch.equal(v, about.weights[k]) for k, v in objective.model.kept().items())
    assert settings(config, "controller")[1].steps == 4


def test_a_true_actions_model_needs_labels(small_set: SmallSet, tmp_path: Path) -> None:
    base = tiny_kind("true_actions", data__index=small_set.index, train__steps=2, train__checkpoint_every=2)
    with pytest.raises(LawmError, match=r"set data\.labels"):
        fit_local(base, "latent_action", str(tmp_path / "run"))
    config = base.model_copy(update={"data": base.data.model_copy(update={"labels": small_set.labels})})
    assert load_checkpoint(fit_local(config, "latent_action", str(tmp_path / "run"))).step == 2


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # traced and differentiated by the compiler, run without generated code, which takes a minute
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
            ],
        ),
    ],
)
def test_compiled_blocks_give_the_same_losses_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Losses, gradient norms and names of weights, beside a plain run. (Muon and Adam make steps of equal size of
    gradients that are nothing but rounding, so weights may differ more.)"""
    compile_block = Block.compile
    monkeypatch.setattr(Block, "compile", lambda self: compile_block(self, backend=backend))
    plain, compiled = (
        tiny_with(train__steps=3, train__checkpoint_every=3, train__log_every=1, train__compile=on)
        for on in (False, True)
    )
    expected = losses_of(plain, tmp_path / "plain")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = losses_of(compiled, tmp_path / "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # inverse dynamics, world model
    for a, b in zip(expected, found, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
    one, other = (load_checkpoint(str(tmp_path / name)).weights for name in ("plain", "compiled"))
    assert set(one) == set(other)


def test_a_run_does_not_go_on_with_another_encoder(tmp_path: Path, small_set: SmallSet) -> None:
    """The weights may lie elsewhere when a run is resumed, but they have to be the same."""
    encoder = TimmEncoder(model="resnet10t", weights="random")
    config = tiny_with(
        data__index=small_set.index, train__steps=2, train__checkpoint_every=1, encoder=encoder.model_dump()
    )
    run = tmp_path / "run"
    fit_local(config, "latent_action", str(run))
    shutil.rmtree(run / checkpoint_name(2))
    backbone = timm.create_model("resnet10t")  # other random weights
    torch.save(backbone.state_dict(), tmp_path / "other.pth")
    other = override(config, "encoder.weights", str(tmp_path / "other.pth"))
    with pytest.raises(LawmError, match=r"was trained on encoder .* give the same file"):
        fit_local(other, "latent_action", str(run))
    fit_local(config, "latent_action", str(run))


def test_any_seed_will_do() -> None:
    assert len(losses_of(tiny_with(train__steps=1, train__seed=10**18))) == 1
