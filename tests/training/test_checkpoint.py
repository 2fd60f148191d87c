"""Checkpoints: strict, damage is noticed, what does not belong together is refused; on disk and on S3."""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import losses_of, made_batch, new_objective, tiny_kind, tiny_with
from torch import Tensor

from lawm.config import LawmError, TimmEncoder, VJepa2Encoder, override
from lawm.data import Cursor, Labels, VideoLabels, labels_table
from lawm.model.encoder.backbone import TimmStates
from lawm.recipes import tiny
from lawm.training import (
    Checkpoint,
    ControllerObjective,
    LatentActionObjective,
    check_actions,
    check_baseline,
    checkpoint_name,
    load_checkpoint,
    load_controller,
    load_decoder,
    load_model,
    newest_checkpoint,
    prune_checkpoints,
)
from lawm.training.checkpoint import build_objective, checkpoint_folders, save_checkpoint
from lawm.training.optimizer import Optimizer


def made_checkpoint(step: int = 7, seed: int = 0) -> Checkpoint:
    config = tiny()
    objective = new_objective(config, seed)
    optimizer = Optimizer(objective, config.optimizer, 10)
    objective(made_batch(range(4), config)).total.backward()
    optimizer.step(0)
    return Checkpoint(
        "latent_action",
        config,
        step,
        Cursor(3, (5, 8)),
        objective.kept(),
        optimizer.named_tensors(),
        objective.encoder.fingerprint(),
        extra={"action_dim": 2},
        metrics={"val_prediction": 0.5},
    )


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    bucket = f"checkpoints-{tmp_path.name.replace('_', '-')[:40]}".lower()
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"


def test_round_trip(place: str) -> None:
    saved = made_checkpoint()
    save_checkpoint(saved, f"{place}/a/{checkpoint_name(7)}")
    for uri in (f"{place}/a/step_00000007", f"{place}/a"):
        found = load_checkpoint(uri, optimizer=True)
        assert found.config == saved.config and found.cursor == saved.cursor
        assert (found.kind, found.step, found.extra, found.metrics) == (
            "latent_action",
            7,
            {"action_dim": 2},
            saved.metrics,
        )
        assert found.fingerprint == saved.fingerprint
        assert found.optimizer is not None and saved.optimizer is not None
        for ours, theirs in ((saved.weights, found.weights), (saved.optimizer, found.optimizer)):
            assert set(ours) == set(theirs)
            assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)
    assert load_checkpoint(f"{place}/a").optimizer is None
    assert not any(name.startswith("encoder.") for name in saved.weights)


def test_the_newest_is_found_and_unfinished_ones_are_not_there(place: str) -> None:
    one = made_checkpoint()
    for step in (1, 10, 9):
        save_checkpoint(replace(one, step=step, metrics={}), f"{place}/b/{checkpoint_name(step)}")
    from lawm.storage import write_bytes

    write_bytes(f"{place}/b/step_00000011/model.safetensors", b"half")  # killed before checkpoint.json
    write_bytes(f"{place}/b/other/checkpoint.json", b"{}")
    assert [uri[-2:] for uri in checkpoint_folders(f"{place}/b")] == ["01", "09", "10"]
    assert newest_checkpoint(f"{place}/b") == f"{place}/b/step_00000010"
    assert load_checkpoint(f"{place}/b").step == 10
    prune_checkpoints(f"{place}/b", 2)
    assert [uri[-2:] for uri in checkpoint_folders(f"{place}/b")] == ["09", "10"]
    assert newest_checkpoint(f"{place}/nothing") is None
    with pytest.raises(LawmError, match="no checkpoint there"):
        load_checkpoint(f"{place}/nothing")


def cut_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def flip_a_weight(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))


def cut_json(folder: Path) -> None:
    whole = (folder / "checkpoint.json").read_bytes()
    (folder / "checkpoint.json").write_bytes(whole[: len(whole) // 2])


def edit_json(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        about = json.loads((folder / "checkpoint.json").read_text())
        about = {k: v for k, v in (about | changes).items() if k not in changes or v is not None}
        (folder / "checkpoint.json").write_text(json.dumps(about))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_weights, "damaged checkpoint"),
        (flip_a_weight, "damaged checkpoint .the weights do not have the hash"),
        (cut_json, "damaged checkpoint"),
        (lambda folder: (folder / "checkpoint.json").write_text("[1]"), "damaged checkpoint"),
        (lambda folder: (folder / "checkpoint.json").write_bytes(b"\xff\xfe\x00"), "damaged checkpoint"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "optimizer.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "optimizer.safetensors").write_bytes(b""), "damaged checkpoint"),
        (edit_json(step=None), "damaged checkpoint .*step"),
        (edit_json(format=99), "checkpoint format 99, this lawm reads 1"),
        (edit_json(config={"nonsense": 1}), "nonsense"),
        (edit_json(cursor="?"), "not a cursor"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    folder = tmp_path / "step_00000007"
    save_checkpoint(made_checkpoint(), str(folder))
    damage(folder)
    with pytest.raises(LawmError, match=said) as caught:
        load_checkpoint(str(folder), optimizer=True)
    assert ("\n" not in str(caught.value) and str(folder) in str(caught.value)) or "cursor" in said


def change(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    weights = dict(weights)
    if how == "missing":
        del weights["world_model.embed.weight"]
    elif how == "unexpected":
        weights["world_model.extra"] = torch.zeros(1)
    else:
        weights["world_model.embed.weight"] = torch.zeros(3, 3)
    return weights


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", r"1 missing \(world_model.embed.weight\)"),
        ("unexpected", r"1 unexpected \(world_model.extra\)"),
        ("misshapen", r"1 of another shape \(world_model.embed.weight \(3, 3\) instead of \(32, 192\)\)"),
    ],
)
def test_loading_is_strict(tmp_path: Path, how: str, said: str) -> None:
    one = made_checkpoint()
    save_checkpoint(replace(one, weights=change(one.weights, how)), str(tmp_path / "step_00000001"))
    with pytest.raises(LawmError, match=said):
        load_model(str(tmp_path))


def test_a_model_of_another_encoder_is_refused(tmp_path: Path) -> None:
    save_checkpoint(replace(made_checkpoint(), encoder_fingerprint="0" * 16), str(tmp_path / "step_00000001"))
    with pytest.raises(LawmError, match=r"trained on encoder 0{16}, this config builds [0-9a-f]{16}"):
        load_model(str(tmp_path))


def test_children_belong_to_their_parent(tmp_path: Path) -> None:
    save_checkpoint(made_checkpoint(seed=0), str(tmp_path / "a/step_00000001"))
    save_checkpoint(made_checkpoint(seed=1), str(tmp_path / "b/step_00000001"))
    model, about = load_model(str(tmp_path / "a"))
    child = ControllerObjective(about.config, model, 2)
    parent = {"uri": str(tmp_path / "a"), "fingerprint": about.fingerprint}
    kept = Checkpoint("controller", about.config, 3, Cursor(), child.kept(), parent=parent, extra={"action_dim": 2})
    save_checkpoint(kept, str(tmp_path / "c/step_00000003"))
    loaded = load_controller(str(tmp_path / "c"), model, about)
    assert all(torch.equal(v, child.kept()[k]) for k, v in loaded.kept().items())
    other, other_about = load_model(str(tmp_path / "b"))
    with pytest.raises(LawmError, match="was trained on another model"):
        load_controller(str(tmp_path / "c"), other, other_about)
    with pytest.raises(LawmError, match="holds a controller, not a decoder"):
        load_decoder(str(tmp_path / "c"), model, about)
    with pytest.raises(LawmError, match="holds a controller, not a latent action model"):
        load_model(str(tmp_path / "c"))
    with pytest.raises(LawmError, match="needs --checkpoint"):
        build_objective(about.config, "controller")


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({}, None),
        ({"frames": 6}, None),
        ({"frames": 4, "duplicate": 2}, None),
        (
            {"frames": 8, "duplicate": 2},
            r"frames = 8 and data.clip.duplicate = 2 make 8 states .*set data.clip.frames=4 ",
        ),
        ({"frames": 10}, r"frames = 10 make 5 states of a clip, and .* was trained on 4: .*set data.clip.frames=8 "),
    ],
)
def test_clips_have_no_more_states_than_those_of_training(
    tmp_path: Path, asked: dict[str, int], remedy: str | None
) -> None:
    """A model of 8 frames, 4 states of two frames: its world model knows no later places in time."""
    encoder = {"kind": "vjepa2", "size": "tiny", "weights": "random"}
    config = tiny_with(encoder=encoder, data__clip__frames=8, data__clip__size=32)
    kept = new_objective(config).kept()
    saved = replace(made_checkpoint(), config=config, weights=kept, encoder_fingerprint="")
    save_checkpoint(saved, str(tmp_path / "a"))
    now = config
    for name, value in asked.items():
        now = override(now, f"data.clip.{name}", value)
    if remedy is None:
        found = load_model(str(tmp_path / "a"), config=now)[0]
        assert found.encode(torch.zeros(1, now.data.clip.frames, 3, 32, 32, dtype=torch.uint8)).shape[1] <= 4
    else:
        with pytest.raises(LawmError, match=remedy):
            load_model(str(tmp_path / "a"), config=now)


def test_a_loaded_model_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    config = tiny_with(train__steps=3, train__checkpoint_every=3)
    objective = new_objective(config)
    losses_of(config, tmp_path)
    model, checkpoint = load_model(str(tmp_path))
    assert not model.training and checkpoint.step == 3
    batch = made_batch(range(6), config)
    objective.load_kept(checkpoint.weights, "here")
    assert torch.equal(objective.eval()(batch).total, model(batch).total)


def test_a_checkpoint_keeps_its_model_but_may_find_its_weights_elsewhere(tmp_path: Path) -> None:
    save_checkpoint(made_checkpoint(), str(tmp_path / "step_00000001"))
    _, about = load_model(str(tmp_path))
    repeated = override(override(about.config, "data.clip.duplicate", 2), "data.clip.frames", 2)
    assert load_model(str(tmp_path), config=repeated)[0].duplicate == 2
    for field, value in (("model.latent_dim", 4), ("encoder.patch", 4), ("data.clip.size", 64)):
        with pytest.raises(LawmError, match=rf"cannot be changed \({field} = .* there, {value} now"):
            load_model(str(tmp_path), config=override(about.config, field, value))
    backbone = TimmEncoder(model="resnet10t", weights="random")
    config = about.config.model_copy(update={"encoder": backbone})
    objective = LatentActionObjective(config)
    assert isinstance(objective.encoder, TimmStates)
    moved = tmp_path / "moved.safetensors"
    save_file({k: v.contiguous() for k, v in objective.encoder.backbone.state_dict().items()}, moved)
    gone = config.model_copy(update={"encoder": backbone.model_copy(update={"weights": str(tmp_path / "gone.pth")})})
    fingerprint = objective.encoder.fingerprint()
    held = Checkpoint("latent_action", gone, 1, Cursor(), objective.kept(), encoder_fingerprint=fingerprint)
    save_checkpoint(held, str(tmp_path / "b/step_00000001"))
    with pytest.raises(LawmError, match="no file"):
        load_model(str(tmp_path / "b"))
    found, _ = load_model(str(tmp_path / "b"), config=override(gone, "encoder.weights", str(moved)))
    assert found.encoder.fingerprint() == fingerprint


def test_a_state_of_several_frames_has_no_single_action() -> None:
    """V-JEPA 2's tubelets: refused with labelled clips, unless each frame is repeated or encoded alone."""
    config = tiny_with(data__clip__size=32)
    for causality, duplicate, states in (("block_causal", 1, 2), ("block_causal", 2, 4), ("duplicate", 1, 4)):
        encoder = VJepa2Encoder(size="tiny", weights="random", causality=causality)  # type: ignore[arg-type]
        one = override(config.model_copy(update={"encoder": encoder}), "data.clip.duplicate", duplicate)
        model = LatentActionObjective(one)
        frames = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
        assert model.encode(frames).shape[1] == states == 4 // model.frames_per_state
        if states == 4:
            ControllerObjective(one, model, 2)
        else:
            with pytest.raises(LawmError, match=r"of 2 frames, .* data.clip.duplicate=2 .*frames=2 "):
                ControllerObjective(one, model, 2)


@pytest.mark.parametrize(
    ("kind", "name", "fields", "said"),
    [
        ("noisy", "deterministic", {}, "--deterministic twin: trained with model.bottleneck.kind = noisy; expected"),
        ("none", "deterministic", {}, "bottleneck.kind = none; expected one trained with deterministic"),
        ("deterministic", "unconstrained", {}, "bottleneck.kind = deterministic; expected one trained with none"),
        ("none", "unconstrained", {"data__clip__frames": 4}, "twin was trained on 4: it has never seen later ones"),
        ("none", "unconstrained", {"encoder__normalize_states": "layer_norm"}, "normalize_states = layer_norm"),
    ],
)
def test_what_cannot_be_a_models_baseline_is_refused(kind: str, name: str, fields: Any, said: str) -> None:
    model = tiny_with(encoder__normalize_states="off", data__clip__frames=8)
    with pytest.raises(LawmError, match=re.escape(said)):
        check_baseline(model, tiny_kind(kind, **{"encoder__normalize_states": "off"} | fields), "twin", name)


@pytest.mark.parametrize(("ours", "theirs", "good"), [
    ("off", "channel", True), ("channel", "off", True), ("layer_norm", "layer_norm", True),
    ("layer_norm", "channel", False), ("off", "layer_norm", False), ("layer_norm", "off", False),
])  # fmt: skip
def test_states_of_a_baseline_can_be_compared(ours: str, theirs: str, good: bool) -> None:
    model, twin = (
        tiny_kind("noisy", encoder__normalize_states=ours),
        tiny_kind("none", encoder__normalize_states=theirs),
    )
    with nullcontext() if good else pytest.raises(LawmError, match="layer_norm cannot be undone"):
        check_baseline(model, twin, "twin", "unconstrained")


def test_labels_of_another_width_than_a_checkpoint_takes_are_refused(tmp_path: Path) -> None:
    """Of width 1, actions would be spread over all that it takes, and nothing be said."""
    labels = {
        width: Labels(labels_table([VideoLabels("a", 4.0, np.zeros((8, width), np.float32))])) for width in (1, 2, 7)
    }
    one = made_checkpoint()
    uris = {"controller": replace(one, kind="controller"), "given": replace(one, config=tiny_kind("true_actions"))}
    for name, checkpoint in uris.items():
        save_checkpoint(checkpoint, f"{tmp_path}/{name}/{checkpoint_name(7)}")
        check_actions(f"{tmp_path}/{name}", labels[2])
        for width in (1, 7):
            with pytest.raises(LawmError, match=f"takes actions of 2 numbers, and the labels have {width}; give"):
                check_actions(f"{tmp_path}/{name}", labels[width])
    save_checkpoint(one, f"{tmp_path}/free/{checkpoint_name(7)}")  # latents of its own: any labels do
    check_actions(f"{tmp_path}/free", labels[7])
