"""The one training loop. It knows neither Ray nor where clips come from.

Under `torch.distributed` every rank calls `train` with its own batches; rank 0 writes.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lawm.batches import collate, local_batches
from lawm.checkpoint import (
    Checkpoint,
    build_objective,
    checkpoint_name,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    read_about,
    save_checkpoint,
)
from lawm.clips import BadClip, ClipReader, first_clips, open_reader
from lawm.config import Config, LawmError, OptimizerConfig, TrainConfig, leaf_fields, parse_config
from lawm.latent_action import effective_rank
from lawm.objective import (
    ClipBatch,
    ControllerObjective,
    LatentActionObjective,
    LossTerms,
    Objective,
)
from lawm.optimizer import Optimizer
from lawm.sampling import Cursor
from lawm.storage import exists, is_s3, join, read_bytes, write_bytes

CALIBRATION_CLIPS = 64
"""Clips of the plan's beginning from which data statistics are measured."""
VALIDATION_CLIPS = 64
"""Held-out clips on which checkpoints are compared."""

Report = Callable[[int, dict[str, float], Checkpoint | None], None]
Batches = Callable[[Cursor], Iterator[ClipBatch]]


def settings(config: Config, kind: str) -> tuple[OptimizerConfig, TrainConfig]:
    """Optimiser and loop settings of an objective's kind."""
    part: Any = {"controller": config.controller, "decoder": config.decoder}.get(kind, config)
    return part.optimizer, part.train


def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def pick_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast where the precision asks for it (`auto`: on a GPU)."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def local_batch(train: TrainConfig, world: int) -> int:
    if train.batch % world:
        raise LawmError(f"train.batch = {train.batch} is not divisible by {world} workers; set one to fit")
    return train.batch // world


def train(
    objective: Objective,
    batches: Batches,
    config: Config,
    report: Report,
    resume: Checkpoint | None = None,
    validation: list[ClipBatch] | None = None,
    parent: dict[str, str] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Trains `objective` for the steps that `config` gives to its kind.

    `batches(cursor)` yields this rank's batches from the cursor on. `report(step, metrics,
    checkpoint)` is called on every rank at the same steps; the checkpoint is given on rank 0 only.
    A step whose loss is not finite on any rank is skipped everywhere and counted; too many stop
    the run (LawmError). The random state of each step depends on (seed, step, rank) alone, so
    that a resumed run equals an uninterrupted one.
    """
    optimizer_config, loop = settings(config, objective.kind)
    rank, world = rank_and_world()
    device = pick_device()
    objective = objective.to(device)
    optimizer = Optimizer(objective, optimizer_config, loop.steps)
    cursor, first = Cursor(), 0
    if resume is not None:
        objective.load_kept({k: v.to(device) for k, v in resume.weights.items()}, "the checkpoint to resume from")
        optimizer.load_named_tensors(resume.optimizer or {})
        cursor, first = resume.cursor, resume.step
    module: nn.Module = objective
    if world > 1:
        module = nn.parallel.DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)
    fingerprint = _model_of(objective).encoder.fingerprint()
    consumed: list[int] = []
    bad_steps, waited, window = 0, 0.0, _Window()
    stream = batches(cursor)
    module.train()
    for step in range(first, loop.steps):
        began = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - began
        torch.manual_seed(loop.seed * 1_000_003 + step * world + rank)
        consumed += [*batch.positions_B.tolist(), *batch.refused]
        with autocast(device, loop.precision):
            terms: LossTerms = module(batch.to(device))
        optimizer.zero_grad()
        terms.total.backward()
        finite = _finite_everywhere(terms.total)
        if finite:
            norm = optimizer.clip_gradients()  # the same on all ranks
            finite = bool(torch.isfinite(norm))
        if finite:
            optimizer.step(step)
            upkeep = objective.maintain(optimizer.state)
            window.add(
                {
                    **terms.metrics,
                    "loss": terms.total.detach(),
                    "penalty": terms.penalty.detach(),
                    "gradient_norm": norm,
                    **upkeep,
                }
            )
        else:
            bad_steps += 1
            if bad_steps > loop.max_bad_steps:
                raise LawmError(
                    f"the loss was not finite in {bad_steps} steps (train.max_bad_steps = {loop.max_bad_steps}), last "
                    f"at step {step + 1}; lower optimizer.muon_lr and optimizer.adamw_lr, or look for bad input"
                )
        done = step + 1
        save = done % loop.checkpoint_every == 0 or done == loop.steps
        if done % loop.log_every == 0 or save:
            metrics = window.flush(len(batch) * world)
            metrics |= {
                "learning_rate": optimizer.learning_rate(step),
                "bad_steps": float(bad_steps),
                "waited_seconds": waited,
            }
            waited = 0.0
            if finite and terms.latents is not None:
                metrics["effective_rank"] = effective_rank(terms.latents[:4096].cpu())
            checkpoint = None
            if save:
                if validation:
                    metrics |= validate(objective, validation, device, loop.precision)
                cursor = cursor.add(_from_all_ranks(consumed))
                consumed = []
                if rank == 0:
                    checkpoint = Checkpoint(
                        kind=objective.kind,
                        config=config,
                        step=done,
                        cursor=cursor,
                        weights={k: v.detach().to("cpu", copy=True) for k, v in objective.kept().items()},
                        optimizer={k: v.to("cpu", copy=True) for k, v in optimizer.named_tensors().items()},
                        encoder_fingerprint=fingerprint,
                        parent=parent,
                        extra=extra or {},
                        metrics=metrics,
                    )
            report(done, metrics, checkpoint)


@torch.no_grad()
def validate(objective: Objective, batches: list[ClipBatch], device: torch.device, precision: str) -> dict[str, float]:
    """Mean prediction loss over held-out batches, in eval mode: {"val_prediction": ...}."""
    objective.eval()
    total, clips = 0.0, 0
    for batch in batches:
        with autocast(device, precision):
            terms = objective(batch.to(device))
        total += float(terms.prediction) * len(batch)
        clips += len(batch)
    objective.train()
    return {"val_prediction": total / clips}


def _model_of(objective: Objective) -> LatentActionObjective:
    """The latent action model: the objective itself, or what a controller or decoder stands on."""
    model = objective if isinstance(objective, LatentActionObjective) else objective.model
    assert isinstance(model, LatentActionObjective)
    return model


def _finite_everywhere(loss: torch.Tensor) -> bool:
    flag = torch.isfinite(loss.detach()).float()
    if dist.is_initialized():
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def _from_all_ranks(positions: list[int]) -> list[int]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return positions
    parts: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, positions)
    return [p for part in parts for p in part]


class _Window:
    """Means over the steps since the last log line; averaged over ranks when flushed."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.steps = 0
        self.began = time.perf_counter()

    def add(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def flush(self, clips_per_step: int) -> dict[str, float]:
        now = time.perf_counter()
        means = {k: float(v) / max(self.steps, 1) for k, v in self.sums.items()}
        if dist.is_initialized() and dist.get_world_size() > 1 and means:
            names = sorted(means)
            values = torch.tensor(
                [means[n] for n in names], device=pick_device() if dist.get_backend() == "nccl" else "cpu"
            )
            dist.all_reduce(values)
            means = dict(zip(names, (values / dist.get_world_size()).tolist(), strict=True))
        if self.steps:
            means["clips_per_second"] = self.steps * clips_per_step / max(now - self.began, 1e-9)
        self.sums, self.steps, self.began = {}, 0, now
        return means


class RunWriter:
    """The run folder: `metrics.jsonl`, TensorBoard scalars, `quarantine.jsonl`, `config.json`; local or S3.

    A resumed run drops the lines after the step that it resumes from. On S3 the files are kept
    in memory and written at each checkpoint.
    """

    def __init__(self, run: str, config: Config, step: int = 0) -> None:
        self.run = run
        self.texts: dict[str, list[str]] = {"metrics.jsonl": [], "quarantine.jsonl": []}
        for name in self.texts:
            if step and exists(join(run, name)):
                lines = read_bytes(join(run, name)).decode().splitlines()
                self.texts[name] = [line for line in lines if _step_of_line(line) <= step]
        write_bytes(join(run, "config.json"), json.dumps(config.model_dump(), indent=1).encode())
        self.board: Any = None
        if not is_s3(run):
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(Path(run) / "tensorboard"), purge_step=step + 1 if step else None)
            except ImportError:
                pass
        self.flush()

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
        self._line("metrics.jsonl", {"step": step, "time": time.time(), **finite})
        if self.board is not None:
            for name, value in finite.items():
                self.board.add_scalar(name, value, step)

    def quarantine(self, step: int, record: dict[str, Any]) -> None:
        self._line("quarantine.jsonl", {"step": step, **record})

    def _line(self, name: str, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        self.texts[name].append(line)
        if not is_s3(self.run):
            with open(Path(self.run) / name, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def flush(self) -> None:
        for name, lines in self.texts.items():
            write_bytes(join(self.run, name), "".join(line + "\n" for line in lines).encode())
        if self.board is not None:
            self.board.flush()


def _step_of_line(line: str) -> float:
    """The step of a JSON line; infinite for the torn last line of a run that was killed while it wrote."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf


def local_report(
    writer: RunWriter, keep: int, progress: Callable[[int, dict[str, float]], None] | None = None
) -> Report:
    """The `report` of a run without Ray: writes scalars and checkpoints into the run folder."""

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        writer.scalars(step, metrics)
        if checkpoint is not None:
            save_checkpoint(checkpoint, join(writer.run, checkpoint_name(step)))
            prune_checkpoints(writer.run, keep)
            writer.flush()
        if progress is not None:
            progress(step, metrics)

    return report


# ---------------------------------------------------------------- a run, made ready
@dataclass(frozen=True)
class Setup:
    """What `train` needs besides batches; made the same way with and without Ray, on every rank."""

    objective: Objective
    reader: ClipReader
    resume: Checkpoint | None
    validation: list[ClipBatch] | None
    parent: dict[str, str] | None
    extra: dict[str, Any]


def held_out_reader(config: Config, kind: str) -> ClipReader | None:
    """The validation split, or None where the config holds nothing out or too little data is there."""
    try:
        return open_reader(config, kind, "val") if config.data.val_fraction > 0 else None
    except LawmError:
        return None


def prepare(config: Config, kind: str, run: str, parent: str | None = None) -> Setup:
    """Model, clips, calibration, validation clips, and the checkpoint to resume from if `run` has one.

    Raises LawmError, among others where the run folder belongs to a run of another config.
    """
    check_same_run(config, kind, run)
    reader = open_reader(config, kind)
    check_same_clips(reader, run)
    extra: dict[str, Any] = {"plan": reader.plan.fingerprint()}
    if kind == ControllerObjective.kind and reader.labels is not None:
        extra["action_dim"] = reader.labels.action_dim
    _, loop = settings(config, kind)
    torch.manual_seed(loop.seed)
    objective, on = build_objective(config, kind, parent, extra.get("action_dim"))
    if reader.cache is not None:
        reader.cache.check(config, _model_of(objective).encoder.fingerprint())
    newest = newest_checkpoint(run)
    resume = load_checkpoint(newest, optimizer=True) if newest else None
    if resume is None and objective.calibrates:
        objective.calibrate(collate(first_clips(reader, CALIBRATION_CLIPS)))
    validation = None
    held_out = held_out_reader(config, kind)
    if held_out is not None:
        clips = first_clips(held_out, VALIDATION_CLIPS)
        size = min(loop.batch, 32)
        validation = [collate(clips[i : i + size]) for i in range(0, len(clips), size)]
    lineage = {"uri": parent, "fingerprint": on.fingerprint} if on is not None and parent is not None else None
    return Setup(objective, reader, resume, validation, lineage, extra)


def check_same_clips(reader: ClipReader, run: str) -> None:
    """Raises LawmError where the run's checkpoints come from other videos: their cursor would say nothing."""
    newest = newest_checkpoint(run)
    if newest is None:
        return
    theirs = read_about(newest)["extra"].get("plan")
    if theirs is not None and theirs != reader.plan.fingerprint():
        raise LawmError(f"{run} holds a run on other videos than these; choose another --out, or remove it")


def check_same_run(config: Config, kind: str, run: str) -> None:
    """Raises LawmError where `run` holds checkpoints of another config or kind. What is asked of the
    cluster may differ; so may how often is logged and saved."""
    newest = newest_checkpoint(run)
    if newest is None:
        return
    about = read_about(newest)
    loops = ("train", "controller.train", "decoder.train")
    counts = [f"{loop}.{name}" for loop in loops for name in ("log_every", "checkpoint_every", "keep")]
    free = ("cluster.", "evaluate.", "plan.", "recipe", *counts)
    theirs = dict(leaf_fields(parse_config(about["config"], newest)))
    ours = dict(leaf_fields(config))
    differ = [
        f"{k} = {theirs.get(k)!r} there, {ours.get(k)!r} now"
        for k in sorted(set(theirs) | set(ours))
        if theirs.get(k) != ours.get(k) and not k.startswith(free)
    ]
    if about["kind"] != kind:
        differ.insert(0, f"kind {about['kind']} there, {kind} now")
    if differ:
        raise LawmError(
            f"{run} holds a run of another config ({'; '.join(differ[:4])}); choose another --out, or remove it"
        )


def fit_local(
    config: Config,
    kind: str,
    run: str,
    parent: str | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> str:
    """Trains in this process, without Ray; resumes if `run` holds a checkpoint. Returns the newest checkpoint."""
    setup = prepare(config, kind, run, parent)
    _, loop = settings(config, kind)
    writer = RunWriter(run, config, setup.resume.step if setup.resume else 0)

    def on_bad(clip: BadClip) -> None:
        writer.quarantine(setup.resume.step if setup.resume else 0, vars(clip))

    def batches(cursor: Cursor) -> Iterator[ClipBatch]:
        rank, world = rank_and_world()
        return local_batches(setup.reader, local_batch(loop, world), cursor, rank, world, on_bad=on_bad)

    report = local_report(writer, loop.keep, progress)
    train(setup.objective, batches, config, report, setup.resume, setup.validation, setup.parent, setup.extra)
    newest = newest_checkpoint(run)
    assert newest is not None
    return newest
