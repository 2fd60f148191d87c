"""A run, made ready: model, clips, calibration, held-out clips, and the checkpoint that it goes on from."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from lawm.config import Config, LawmError, OptimizerConfig, TrainConfig, differing_fields, parse_config
from lawm.data import (
    TAUGHT,
    Reader,
    action_scales,
    first_clips,
    held_out_reader,
    needs_actions,
    open_reader,
    readers_of,
    shown_by,
)
from lawm.model import Encoder
from lawm.training.batches import collate
from lawm.training.checkpoint import (
    EXECUTION,
    Checkpoint,
    build_objective,
    check_cache,
    check_encoder,
    load_checkpoint,
    newest_checkpoint,
    read_about,
)
from lawm.training.objective import CHILDREN, LatentActionObjective, Objective
from lawm.training.optimizer import schedule
from lawm.training.validation import Validation, held_out_clips

CALIBRATION_CLIPS = 64
"""Clips of the plan's beginning from which data statistics are measured."""


def settings(config: Config, kind: str) -> tuple[OptimizerConfig, TrainConfig]:
    """Optimiser and loop settings of an objective's kind."""
    part: Any = getattr(config, kind) if kind in CHILDREN else config
    return part.optimizer, part.train


def local_batch(train: TrainConfig, world: int) -> int:
    if train.batch % world:
        raise LawmError(f"train.batch = {train.batch} is not divisible by {world} workers; set one to fit")
    return train.batch // world


def model_of(objective: Objective) -> LatentActionObjective:
    """The latent action model: the objective itself, or what a controller or decoder stands on."""
    model = objective if isinstance(objective, LatentActionObjective) else objective.model
    assert isinstance(model, LatentActionObjective)
    return model


@dataclass(frozen=True)
class Setup:
    """What `train` needs besides batches; made the same way with and without Ray, on every rank."""

    objective: Objective
    reader: Reader
    resume: Checkpoint | None
    validation: Validation | None
    parent: dict[str, str] | None
    extra: dict[str, Any]


def prepare(
    config: Config,
    kind: str,
    run: str,
    start: str | None,
    parent: str | None = None,
    encoder: Encoder | None = None,
) -> Setup:
    """Model, clips, calibration, validation clips, and the checkpoint `start` of `run`, to go on from.

    `start`: None begins anew. It is the caller's to find, once for all ranks and members: each would find another where
    one is saved meanwhile. `encoder`: one that is already loaded, of the same config. Raises LawmError, among others
    where the run folder belongs to a run of another config.
    """
    check_same_run(config, kind, run)
    reader = open_reader(config, kind)
    check_same_clips(reader, run)
    extra: dict[str, Any] = {"plan": reader.plan.fingerprint()}
    if kind in TAUGHT and reader.labels is not None:
        extra["action_dim"] = reader.labels.action_dim
    _, loop = settings(config, kind)
    torch.manual_seed(loop.seed)
    objective, on = build_objective(config, kind, parent, extra.get("action_dim"), encoder)
    for cache in reader.caches:
        check_cache(cache, config, model_of(objective))
    resume = load_checkpoint(start, optimizer=True) if start is not None else None
    if needs_actions(config, kind):
        kept = resume.extra.get("actions") if resume is not None else None
        extra["actions"] = kept or action_facts(config, reader)
    if resume is not None:
        check_encoder(resume, model_of(objective), start or run)
    if resume is None and objective.calibrates:
        objective.calibrate(collate(first_clips(reader, CALIBRATION_CLIPS)))
    if resume is None and objective.reads_actions:
        objective.scale_actions(action_scales(reader))
    held_out, _ = held_out_reader(config, kind)  # why there is none is said before the run starts (data_lines)
    extra["split"] = split_facts(config, reader, held_out)
    validation = held_out_clips(held_out, min(loop.batch, 32))
    lineage = {"uri": parent, "fingerprint": on.fingerprint} if on is not None and parent is not None else None
    if resume is not None and on is not None and (resume.parent or {}).get("fingerprint") != on.fingerprint:
        raise LawmError(
            f"{run} was begun on another checkpoint than {parent} is now (a run that was made longer needs its {kind} "
            "anew); choose another --out, or remove it"
        )
    return Setup(objective, reader, resume, validation, lineage, extra)


FEW_VIDEOS = 1000
"""So many videos or fewer are named in a checkpoint, by their groups' hashes."""


def action_facts(config: Config, reader: Reader) -> dict[str, Any]:
    """What a checkpoint keeps of the actions that it learned from: what each number is, and where the training split's
    are (`plan.percentiles`), so that plans can keep to it without the labels."""
    first = readers_of(reader)[0]
    assert first.labels is not None
    shown = shown_by(first, config.plan.percentiles)
    ends = {"mean": shown.mean_A, "low": shown.low_A, "high": shown.high_A}
    facts = {name: values.tolist() for name, values in ends.items()}
    dimensions = [dataclasses.asdict(d) for d in first.labels.meaning.actions]
    return facts | {"transitions": shown.transitions, "dimensions": dimensions}


def split_facts(config: Config, reader: Reader, held_out: Reader | None) -> dict[str, Any]:
    """What a checkpoint keeps of its split: how many videos and clips an epoch are on each side, and, where they are
    few, the hashes of what they belong to (`Index.hashes`), so that it can be told later, without the index, whether a
    video was trained on."""

    def side(found: Reader | None) -> dict[str, Any]:
        if found is None:
            return {"videos": 0, "clips": 0, "groups": []}
        parts = readers_of(found)
        videos = sum(len(part.index) for part in parts)
        few = sorted({int(h) for part in parts for h in part.index.hashes()}) if videos <= FEW_VIDEOS else None
        return {
            "videos": videos,
            "clips": len(found.plan),
            "groups": None if few is None else [f"{h:016x}" for h in few],
        }

    return {"val_fraction": config.data.val_fraction, "trained_on": side(reader), "held_out": side(held_out)}


def check_same_clips(reader: Reader, run: str) -> None:
    """Raises LawmError where the run's checkpoints come from other videos: their cursor would say nothing."""
    newest = newest_checkpoint(run)
    if newest is None:
        return
    theirs = read_about(newest)["extra"].get("plan")
    if theirs is not None and theirs != reader.plan.fingerprint():
        raise LawmError(f"{run} holds a run on other videos than these; choose another --out, or remove it")


def standing_lines(config: Config, kind: str, checkpoint: str | None) -> list[str]:
    """What is said before a run goes on from `checkpoint`: from which step, and what another number of steps means."""
    if checkpoint is None:
        return []
    about = read_about(checkpoint)
    done, (optimizer, loop) = about["step"], settings(config, kind)
    before = settings(parse_config(about["config"], checkpoint), kind)[1].steps
    goes_on = f"goes on from step {done:,} of {loop.steps:,} ({checkpoint})"
    lines = [goes_on if done < loop.steps else f"done: all {loop.steps:,} steps are in {checkpoint}"]
    if done >= loop.steps:
        where = "" if kind == LatentActionObjective.kind else f"{kind}."
        lines.append(f"--set {where}train.steps=N with more steps makes the run longer")
    elif before != loop.steps:
        now, then = (schedule(min(done, n - 1), n, optimizer.warmup) for n in (loop.steps, before))
        lines.append(
            f"{loop.steps:,} steps now, {before:,} before: from here on the learning rate is that of a run of "
            f"{loop.steps:,} steps at the same step ({now:.0%} of its peak; it was {then:.0%})"
        )
    return lines


TRACKING = ("trackers", "project")


def check_same_run(config: Config, kind: str, run: str) -> None:
    """Raises LawmError where `run` holds checkpoints of another config or kind, or stands beyond the steps asked for.
    What is asked of the cluster may differ; so may how often is logged and saved, and the number of steps."""
    newest = newest_checkpoint(run)
    if newest is None:
        return
    about = read_about(newest)
    loops = ("train", *(f"{child}.train" for child in CHILDREN))
    counts = [
        f"{loop}.{name}" for loop in loops for name in ("steps", "log_every", "checkpoint_every", "keep", *TRACKING)
    ]
    free = ("cluster.", "evaluate.", "plan.", "recipe", *counts, *EXECUTION, *(f"{loop}.compile" for loop in loops))
    differ = [
        f"{k} = {theirs!r} there, {ours!r} now"
        for k, (theirs, ours) in differing_fields(parse_config(about["config"], newest), config).items()
        if not k.startswith(free)
    ]
    if not differ and about["kind"] == kind and about["step"] > (steps := settings(config, kind)[1].steps):
        raise LawmError(f"{run} stands at step {about['step']}, beyond the {steps} asked for; choose another --out")
    if about["kind"] != kind:
        differ.insert(0, f"kind {about['kind']} there, {kind} now")
    if differ:
        raise LawmError(
            f"{run} holds a run of another config ({'; '.join(differ[:4])}); choose another --out, or remove it"
        )
