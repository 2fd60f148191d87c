"""The one training loop. It knows neither Ray nor where clips come from.

Under `torch.distributed` every rank calls `train` with its own batches; rank 0 writes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from lawm.config import Config, LawmError, OptimizerConfig, RunStopped, TrainConfig, differing_fields, parse_config
from lawm.data import BadClip, Cursor, Reader, first_clips, open_reader
from lawm.model import Block, Encoder, effective_rank
from lawm.training.batches import ClipBatch, collate, local_batches
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
from lawm.training.clip_log import ClipLog, merged
from lawm.training.fine_tune import state_figures, state_health
from lawm.training.objective import ControllerObjective, LatentActionObjective, LossTerms, Objective
from lawm.training.optimizer import Optimizer
from lawm.training.run_folder import Report, RunWriter, local_report, to_the_end

CALIBRATION_CLIPS = 64
"""Clips of the plan's beginning from which data statistics are measured."""
VALIDATION_CLIPS = 64
"""Held-out clips on which checkpoints are compared."""
FIRST_LOSS = "first_prediction"
"""In a checkpoint's `extra`: the run's first reported prediction loss, by which divergence is told."""

Batches = Callable[[Cursor], Iterator[ClipBatch]]
T = TypeVar("T")


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


class Trainer:
    """One model in training: what a step does, and what is said and saved after it.

    The random state of each step depends on (seed, step, rank) alone, so that a resumed run equals an
    uninterrupted one, and a member of a population its own single run.
    """

    def __init__(self, objective: Objective, config: Config, resume: Checkpoint | None = None) -> None:
        optimizer_config, self.loop = settings(config, objective.kind)
        self.config = config
        self.rank, self.world = rank_and_world()
        self.device = pick_device()
        self.objective = objective.to(self.device)
        self.optimizer = Optimizer(objective, optimizer_config, self.loop.steps, objective.learning_rates())
        self.fingerprint = model_of(objective).encoder_fingerprint()
        self.cursor, self.first = Cursor(), 0
        if resume is not None:
            weights = {k: v.to(self.device) for k, v in resume.weights.items()}
            objective.load_kept(weights, "the checkpoint to resume from")
            self.optimizer.load_named_tensors(resume.optimizer or {})
            self.cursor, self.first = resume.cursor, resume.step
        if self.loop.compile:
            compile_blocks(objective)
        self.module: nn.Module = objective
        if self.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.module = nn.parallel.DistributedDataParallel(objective, device_ids=ids)
        self.module.train()
        self.bad_steps = 0
        self._first_loss: float | None = resume.extra.get(FIRST_LOSS) if resume is not None else None
        self._reports_above = 0
        self._consumed: list[int] = []
        self._log = ClipLog() if self.loop.log_clips else None
        self._latents: torch.Tensor | None = None
        self._states: tuple[torch.Tensor, torch.Tensor] | None = None
        self._window = _Window()

    def step(self, step: int, batch: ClipBatch, waited: float = 0.0) -> None:
        """One optimiser step on this rank's batch. A loss or gradient that is not finite on any rank is
        skipped everywhere and counted; too many raise LawmError. `waited`: seconds spent for the batch."""
        torch.manual_seed((self.loop.seed * 1_000_003 + step * self.world + self.rank) % 2**63)
        self._consumed += [*batch.positions_B.tolist(), *batch.refused]
        self._window.began_with(len(batch) * self.world, waited)
        with autocast(self.device, self.loop.precision):
            terms: LossTerms = self.module(batch.to(self.device))
        self.optimizer.zero_grad()
        terms.total.backward()
        finite = _finite_everywhere(terms.total)
        if finite:
            norm = self.optimizer.clip_gradients()  # the same on all ranks
            finite = bool(torch.isfinite(norm))
        self._latents, self._states = (terms.latents, terms.states) if finite else (None, None)
        if self._log is not None:
            self._log.add(step + 1, self.rank, batch, skipped=not finite)
        if not finite:
            self._skip(step)
            return
        self.optimizer.step(step)
        upkeep = self.objective.maintain(self.optimizer.state)
        loss, penalty = terms.total.detach(), terms.penalty.detach()
        self._window.add({**terms.metrics, "loss": loss, "penalty": penalty, "gradient_norm": norm, **upkeep})

    def _skip(self, step: int) -> None:
        self.bad_steps += 1
        if self.bad_steps > self.loop.max_bad_steps:
            raise RunStopped(
                f"the loss was not finite in {self.bad_steps} steps (train.max_bad_steps = {self.loop.max_bad_steps}), "
                f"last at step {step + 1}; lower optimizer.muon_lr and optimizer.adamw_lr, or look for bad input"
            )

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps."""
        return done % self.loop.checkpoint_every == 0 or done == self.loop.steps

    def reports(self, done: int) -> bool:
        """Whether figures are due after `done` steps."""
        return done % self.loop.log_every == 0 or self.saves(done)

    def metrics(self, done: int) -> dict[str, float]:
        """Figures since the last call, averaged over steps and ranks. Called on every rank."""
        metrics = self._window.flush()
        metrics |= {
            "learning_rate": self.optimizer.learning_rate(done - 1),
            "bad_steps": float(self.bad_steps),
        }
        if self._latents is not None and self._latents.shape[1] > 1:
            metrics["effective_rank"] = effective_rank(self._latents[:4096].cpu())
        if self._states is not None:
            now, then = (mean_over_ranks(state_figures(states)) for states in self._states)
            metrics |= state_health(now, then)
        return metrics

    @property
    def suspicious(self) -> bool:
        """Whether the last report was far above the first: no state to keep."""
        return self._reports_above > 0

    def trouble(self, done: int, metrics: dict[str, float]) -> str:
        """Why the run has to stop after `done` steps, by figures that are the same on every rank; else empty."""
        loss = metrics.get("prediction")
        if loss is None:  # every step since the last report was skipped
            if done == self.loop.steps and self.bad_steps == done - self.first:
                return f"the loss was finite in none of {self.bad_steps} steps; look for bad input, or lower the rates"
            return ""
        if self._first_loss is None:
            self._first_loss = loss
        limit = self.loop.diverged_above * self._first_loss
        self._reports_above = self._reports_above + 1 if limit > 0 and loss > limit else 0
        if self._reports_above == 3 or (self.suspicious and done == self.loop.steps):
            return (
                f"the prediction loss has diverged: {loss:.3g}, and {self._first_loss:.3g} at first "
                f"(train.diverged_above = {self.loop.diverged_above:g}); lower optimizer.muon_lr and optimizer.adamw_lr"
            )
        return self.objective.trouble(metrics)

    def checkpoint(
        self, done: int, metrics: dict[str, float], parent: dict[str, str] | None, extra: dict[str, Any] | None
    ) -> Checkpoint | None:
        """What stands after `done` steps, on rank 0; the other ranks tell it what they have consumed."""
        self.cursor = self.cursor.add([p for part in from_all_ranks(self._consumed) for p in part])
        self._consumed = []
        clips = None if self._log is None else merged(from_all_ranks(self._log.take()))
        if self.rank != 0:
            return None
        return Checkpoint(
            kind=self.objective.kind,
            config=self.config,
            step=done,
            cursor=self.cursor,
            weights={k: v.detach().to("cpu", copy=True) for k, v in self.objective.kept().items()},
            optimizer={k: v.to("cpu", copy=True) for k, v in self.optimizer.named_tensors().items()},
            encoder_fingerprint=self.fingerprint,
            parent=parent,
            extra=(extra or {}) | ({} if self._first_loss is None else {FIRST_LOSS: self._first_loss}),
            metrics=metrics,
            clips=clips,
        )


def compile_blocks(objective: Objective) -> None:
    """torch.compile of every transformer block, in place: names of weights stay as they are, and blocks of one
    shape share their code."""
    # All blocks have one forward, and dynamo counts its graphs over all shapes, modes and models of a population.
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 64)
    for module in objective.modules():
        if isinstance(module, Block):
            module.compile()


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
    Raises LawmError where too many losses are not finite.
    """
    trainer = Trainer(objective, config, resume)
    stream = batches(trainer.cursor)
    for step in range(trainer.first, trainer.loop.steps):
        began = time.perf_counter()
        batch = next(stream)
        trainer.step(step, batch, time.perf_counter() - began)
        done = step + 1
        if trainer.reports(done):
            report_step(trainer, done, report, validation, parent, extra)


def report_step(
    trainer: Trainer,
    done: int,
    report: Report,
    validation: list[ClipBatch] | None,
    parent: dict[str, str] | None,
    extra: dict[str, Any] | None,
) -> None:
    """Figures, and where one is due a checkpoint with its validation loss, to `report`.

    Raises RunStopped, after the figures are reported and without a checkpoint, where the run has to stop.
    """
    metrics = trainer.metrics(done)
    checkpoint = None
    trouble = trainer.trouble(done, metrics)
    if trainer.saves(done) and not trouble and not trainer.suspicious:
        if validation:
            metrics |= validate(trainer.objective, validation, trainer.device, trainer.loop.precision)
        checkpoint = trainer.checkpoint(done, metrics, parent, extra)
    report(done, metrics, checkpoint)
    if trouble:
        raise RunStopped(f"stopped at step {done}: {trouble}")


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


def model_of(objective: Objective) -> LatentActionObjective:
    """The latent action model: the objective itself, or what a controller or decoder stands on."""
    model = objective if isinstance(objective, LatentActionObjective) else objective.model
    assert isinstance(model, LatentActionObjective)
    return model


def _finite_everywhere(loss: torch.Tensor) -> bool:
    flag = torch.isfinite(loss.detach()).float()
    if dist.is_initialized():
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def from_all_ranks(mine: T) -> list[T]:
    """What every rank gives, by rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    parts = [mine] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


def mean_over_ranks(figures: dict[str, float]) -> dict[str, float]:
    """Each figure's mean over all ranks, which all have the same names."""
    if not dist.is_initialized() or dist.get_world_size() == 1 or not figures:
        return figures
    names = sorted(figures)
    device = pick_device() if dist.get_backend() == "nccl" else "cpu"
    values = torch.tensor([figures[n] for n in names], device=device)
    dist.all_reduce(values)
    return dict(zip(names, (values / dist.get_world_size()).tolist(), strict=True))


class _Window:
    """Means over the steps since the last log line; averaged over ranks when flushed."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.steps = self.clips = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def began_with(self, clips: int, waited: float) -> None:
        """A step on that many clips of all ranks, after that many seconds of waiting for them."""
        self.clips += clips
        self.waited += waited

    def add(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def flush(self) -> dict[str, float]:
        now = time.perf_counter()
        means = mean_over_ranks({k: float(v) / max(self.steps, 1) for k, v in self.sums.items()})
        means["clips_per_second"] = self.clips / max(now - self.began, 1e-9)
        means["waited_seconds"] = self.waited
        self.sums, self.steps, self.clips, self.waited, self.began = {}, 0, 0, 0.0, now
        return means


# ---------------------------------------------------------------- a run, made ready
@dataclass(frozen=True)
class Setup:
    """What `train` needs besides batches; made the same way with and without Ray, on every rank."""

    objective: Objective
    reader: Reader
    resume: Checkpoint | None
    validation: list[ClipBatch] | None
    parent: dict[str, str] | None
    extra: dict[str, Any]


def held_out_reader(config: Config, kind: str) -> Reader | None:
    """The validation split, or None where the config holds nothing out or too little data is there."""
    try:
        return open_reader(config, kind, "val") if config.data.val_fraction > 0 else None
    except LawmError:
        return None


def prepare(
    config: Config,
    kind: str,
    run: str,
    parent: str | None = None,
    encoder: Encoder | None = None,
    resume_from: str | None = None,
) -> Setup:
    """Model, clips, calibration, validation clips, and the checkpoint to resume from if `run` has one.

    `encoder`: one that is already loaded, of the same config. `resume_from`: a checkpoint of `run` other than its
    newest. Raises LawmError, among others where the
    run folder belongs to a run of another config.
    """
    check_same_run(config, kind, run)
    reader = open_reader(config, kind)
    check_same_clips(reader, run)
    extra: dict[str, Any] = {"plan": reader.plan.fingerprint()}
    if kind == ControllerObjective.kind and reader.labels is not None:
        extra["action_dim"] = reader.labels.action_dim
    _, loop = settings(config, kind)
    torch.manual_seed(loop.seed)
    objective, on = build_objective(config, kind, parent, extra.get("action_dim"), encoder)
    for cache in reader.caches:
        check_cache(cache, config, model_of(objective))
    newest = resume_from or newest_checkpoint(run)
    resume = load_checkpoint(newest, optimizer=True) if newest else None
    if resume is not None:
        check_encoder(resume, model_of(objective), newest or run)
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


def check_same_clips(reader: Reader, run: str) -> None:
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
    free = ("cluster.", "evaluate.", "plan.", "recipe", *counts, *EXECUTION, *(f"{loop}.compile" for loop in loops))
    differ = [
        f"{k} = {theirs!r} there, {ours!r} now"
        for k, (theirs, ours) in differing_fields(parse_config(about["config"], newest), config).items()
        if not k.startswith(free)
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
        writer.quarantine(vars(clip))

    def batches(cursor: Cursor) -> Iterator[ClipBatch]:
        rank, world = rank_and_world()
        return local_batches(setup.reader, local_batch(loop, world), cursor, rank, world, on_bad=on_bad)

    report = local_report(writer, loop.keep, progress)
    with to_the_end([writer]):
        train(setup.objective, batches, config, report, setup.resume, setup.validation, setup.parent, setup.extra)
    newest = newest_checkpoint(run)
    assert newest is not None
    return newest
