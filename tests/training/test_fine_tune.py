"""Training the encoder: the moving average, the monitor, checkpoints of a learnt encoder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SmallSet, fine_tuned_config, losses_of, made_batch, made_batches, new_objective, tiny_with

from lawm.config import Config, FineTuneConfig, LawmError, RunStopped, TimmEncoder, override
from lawm.model import load_encoder
from lawm.training import (
    Checkpoint,
    LatentActionObjective,
    check_baseline,
    check_fine_tuning,
    check_population,
    fit_local,
    load_checkpoint,
    load_model,
    parameter_counts,
    train,
)
from lawm.training.checkpoint import checkpoint_folders
from lawm.training.fine_tune import FineTuning, collapsing, state_figures, state_health, thawed


def with_stops(**fields: Any) -> Config:
    return fine_tuned_config(train__log_every=1, train__checkpoint_every=4, **fields)


def test_the_kept_encoder_is_the_moving_average() -> None:
    config = with_stops(train__steps=3, fine_tune__lr=1e-2, fine_tune__momentum=0.9)
    objective = new_objective(config)
    tuning = objective
    name = "blocks.0.mlp.0.weight"
    expected = tuning.original.get_parameter(name).clone()
    seen: list[torch.Tensor] = []

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        nonlocal expected
        expected = 0.9 * expected + 0.1 * tuning.online.get_parameter(name).detach()
        seen.append(objective.model.encoder.get_parameter(name).clone())
        assert torch.allclose(seen[-1], expected, atol=1e-6)

    original = tuning.original.get_parameter(name).clone()
    train(objective, made_batches(config), config, report)
    assert len(seen) == 3 and not torch.equal(seen[0], seen[2])
    assert torch.equal(tuning.original.get_parameter(name), original)


def test_online_targets_carry_gradients_and_ema_targets_do_not() -> None:
    """With the learning encoder's own next state as the target, its gradient is another."""
    found = {}
    for target in ("online", "ema"):
        config = fine_tuned_config(fine_tune__target=target, fine_tune__distillation=0.0)
        objective = new_objective(config).train()
        objective(made_batch(range(4), config)).total.backward()
        assert all(p.grad is None for p in objective.model.encoder.parameters())
        found[target] = objective.online.get_parameter("embed.weight").grad
    assert found["online"].abs().max() > 0 and found["ema"].abs().max() > 0
    assert not torch.allclose(found["online"], found["ema"], rtol=1e-2)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    found = []
    for on in (False, True):
        config = fine_tuned_config(fine_tune__gradient_checkpointing=on)
        objective = new_objective(config).train()
        objective(made_batch(range(4), config)).total.backward()
        found.append({n: p.grad for n, p in objective.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any("online" in name for name in found[0])
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-7), name


def test_a_collapsing_run_stops_and_says_why(tmp_path: Path) -> None:
    fields = {"fine_tune__target": "online", "fine_tune__lr": 3e-2, "fine_tune__distillation": 0.0}
    config = with_stops(train__steps=60, train__batch=8, fine_tune__stop_below=0.5, **fields)
    with pytest.raises(LawmError, match=r"stopped at step \d+: the encoder is collapsing.*fine_tune.target=ema"):
        losses_of(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kept = [min(line[n] for n in ("state_std", "state_change", "state_rank")) for line in lines]
    assert kept[-1] < 0.5 <= min(kept[:-1])  # the figures of the step that stopped it are there
    folders = checkpoint_folders(str(tmp_path))
    assert all(load_checkpoint(f).step < lines[-1]["step"] for f in folders)
    on = override(config, "fine_tune.stop_below", 0)
    assert len(losses_of(on)) == 60


def test_what_collapse_looks_like() -> None:
    torch.manual_seed(0)
    states = torch.randn(8, 4, 6, 32)

    def health(online: torch.Tensor, original: torch.Tensor = states) -> dict[str, float]:
        return state_health(state_figures(online), state_figures(original))

    same = health(states)
    assert same == {"state_std": 1.0, "state_change": 1.0, "state_rank": 1.0}
    constant = torch.randn(1, 1, 6, 32).expand(8, 4, 6, 32)  # tokens differ, clips do not
    assert health(constant)["state_std"] < 1e-6
    still = torch.randn(8, 1, 6, 32).expand(8, 4, 6, 32)
    assert health(still)["state_change"] < 1e-6 and health(still)["state_std"] > 0.8
    line = torch.randn(8, 4, 6, 1) * torch.randn(32)
    assert health(line)["state_rank"] < 0.1
    assert "state_change" not in health(still, still)  # what never changed cannot stop changing
    # All but the corner token of each state on a line: no regular stride over the tokens may miss it.
    many = torch.randn(128, 8, 64, 16)
    corner = torch.randn(128, 8, 64, 1) * torch.randn(16)
    corner[:, :, 0] = many[:, :, 0]
    assert health(corner, many)["state_rank"] < 0.3
    config = FineTuneConfig(target="ema")
    assert collapsing(same, config) == "" and collapsing({}, config) == ""
    said = collapsing(same | {"state_rank": 0.05}, config)
    assert "state_rank 0.05" in said and "target=ema" not in said


def test_resume_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    config = with_stops(train__steps=8, fine_tune__lr=1e-3)
    whole = losses_of(config)
    kept: list[Checkpoint] = []

    class Cut(Exception):
        pass

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            kept.append(checkpoint)
            raise Cut

    with pytest.raises(Cut):
        train(new_objective(config), made_batches(config), config, report)
    kinds = {name.split(".")[0] for name in kept[0].weights}
    parts = {"encoder", "fine_tuning", "latent_action", "world_model", "state_norm"}
    assert kinds == parts  # as before there was a wrapper
    assert not any("original" in name for name in kept[0].weights)
    moments = {name.split(".")[0] for name in kept[0].optimizer or {}}
    assert moments == {"fine_tuning", "latent_action", "world_model"}
    rest = losses_of(config, resume=kept[0])
    for ours, theirs in zip(rest, whole[4:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6), ours["step"]


def test_a_trained_model_has_the_learnt_encoder(tmp_path: Path) -> None:
    config = with_stops(train__steps=4, fine_tune__lr=1e-2, fine_tune__momentum=0.5)
    losses_of(config, tmp_path)
    shared = load_encoder(config.encoder, config.data.clip)
    before = shared.fingerprint()
    model, checkpoint = load_model(str(tmp_path), shared)
    assert shared.fingerprint() == before == checkpoint.encoder_fingerprint
    assert model.encoder.fingerprint() != before and model.fine_tuned
    assert torch.equal(model.encoder.get_parameter("embed.weight"), checkpoint.weights["encoder.embed.weight"])
    frames = made_batch(range(2), config).frames_BFCHW
    assert not torch.allclose(model.encoder(frames), shared(frames))
    assert "encoder (learns)" in parameter_counts(config)


def test_layers_that_no_state_depends_on_do_not_learn() -> None:
    clip = fine_tuned_config().data.clip
    timm = load_encoder(TimmEncoder(model="resnet10t", weights="random", stage=2), clip)
    learning = thawed(timm, clip)
    names = {n for n, p in learning.named_parameters() if p.requires_grad}
    assert any(".layer1." in n for n in names) and not any(".layer4." in n for n in names)
    assert not any(p.requires_grad for p in timm.parameters())
    with pytest.raises(LawmError, match="no weights to train"):
        check_fine_tuning(tiny_with(fine_tune__target="ema"))
    with pytest.raises(LawmError, match="not from a state cache"):
        check_fine_tuning(fine_tuned_config(data__cache="somewhere"))


def test_distillation_is_the_frobenius_norm() -> None:
    config = fine_tuned_config()
    original = load_encoder(config.encoder, config.data.clip)
    one, other = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    model = LatentActionObjective(config, original)
    total = FineTuning(model, FineTuneConfig(target="ema", distillation_norm="sum"), config.data.clip)
    expected = 0.1 * torch.stack([torch.linalg.norm(a - b) ** 2 for a, b in zip(one, other, strict=True)]).mean()
    assert torch.allclose(total.distillation(one, other), expected)
    mean = FineTuning(model, FineTuneConfig(target="ema"), config.data.clip)
    assert torch.allclose(mean.distillation(one, other) * 60, expected)


def test_what_cannot_learn_from_says_so(small_set: SmallSet, tmp_path: Path) -> None:
    config = fine_tuned_config()
    with pytest.raises(LawmError, match="population shares its encoder"):
        check_population([config, config])
    states = new_objective(config).train()
    batch = made_batch(range(4), config)
    with pytest.raises(LawmError, match="not from a state cache"):
        states(replace(batch, frames_BFCHW=None, states_BTND=torch.zeros(4, 4, 16, 80)))


def test_a_run_from_videos(small_set: SmallSet, tmp_path: Path) -> None:
    config = with_stops(train__steps=4, data__index=small_set.index, data__labels=small_set.labels)
    run = fit_local(config, "latent_action", str(tmp_path / "run"))
    assert load_checkpoint(run).metrics["val_prediction"] > 0
    controller = fit_local(config, "controller", str(tmp_path / "controller"), run)
    assert load_checkpoint(controller).parent == {"uri": run, "fingerprint": load_checkpoint(run).fingerprint}


def test_a_run_that_goes_on_remembers_its_first_loss(tmp_path: Path) -> None:
    """A restart must not take the loss of a diverged run for its first one, nor a low one after hours."""
    wild = tiny_with(train__steps=40, train__log_every=1, train__checkpoint_every=1, train__keep=50)
    wild = override(override(wild, "optimizer.muon_lr", 0.5), "optimizer.adamw_lr", 0.5)
    said = []
    for _ in range(2):
        newest = checkpoint_folders(str(tmp_path))
        resume = load_checkpoint(newest[-1], optimizer=True) if newest else None
        with pytest.raises(RunStopped, match="diverged") as caught:
            losses_of(wild, tmp_path, resume)
        said.append(str(caught.value).partition("(")[0].rpartition(" and ")[2])
    assert said[0] == said[1]  # "... at first"
    calm = tiny_with(train__steps=6, train__log_every=1, train__checkpoint_every=2)
    losses_of(calm, tmp_path / "calm")
    first = load_checkpoint(str(tmp_path / "calm")).extra["first_prediction"]
    lines = (tmp_path / "calm/metrics.jsonl").read_text().splitlines()
    assert first == json.loads(lines[0])["prediction"]


def test_baselines_with_other_states_are_refused() -> None:
    frozen, tuned = tiny_with(), fine_tuned_config()
    twin_of = {id(one): override(one, "model.bottleneck", {"kind": "deterministic"}) for one in (frozen, tuned)}
    check_baseline(frozen, twin_of[id(frozen)], "twin", "deterministic")
    for model, twin in ((frozen, tuned), (tuned, frozen), (tuned, tuned)):
        with pytest.raises(LawmError, match=r"^twin: its errors cannot be set beside the model's"):
            check_baseline(model, twin_of[id(twin)], "twin", "deterministic")


def test_a_diverging_loss_stops_the_run() -> None:
    config = tiny_with(train__steps=60, train__log_every=1, optimizer__muon_lr=1.0, optimizer__adamw_lr=1.0)
    with pytest.raises(LawmError, match=r"stopped at step \d+: the prediction loss has diverged: .* lower optimizer"):
        losses_of(config)
    never = override(override(config, "train.diverged_above", 0), "train.steps", 30)
    assert len(losses_of(never)) == 30
