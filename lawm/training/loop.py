"""The one training loop. It knows neither Ray nor where clips come from.

Under `torch.distributed` every rank calls `train` with its own batches; rank 0 writes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lawm.config import Config, RunStopped
from lawm.data import BadClip, Cursor
from lawm.model import Block
from lawm.training.batches import ClipBatch, local_batches
from lawm.training.checkpoint import Checkpoint, newest_checkpoint
from lawm.training.clip_log import ClipLog, merged
from lawm.training.divergence import Divergence
from lawm.training.figures import Figures
from lawm.training.loader import Batches, Loader
from lawm.training.objective import LossTerms, Objective
from lawm.training.optimizer import Optimizer
from lawm.training.ranks import autocast, finite_everywhere, from_all_ranks, pick_device, rank_and_world
from lawm.training.run_folder import Report, RunWriter, local_report, to_the_end
from lawm.training.setup import local_batch, model_of, prepare, settings
from lawm.training.validation import Validation, validate


def train(
    objective: Objective,
    batches: Batches,
    config: Config,
    report: Report,
    resume: Checkpoint | None = None,
    validation: Validation | None = None,
    parent: dict[str, str] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Trains `objective` for the steps that `config` gives to its kind.

    `batches(cursor)` yields this rank's batches from the cursor on. `report(step, metrics,
    checkpoint)` is called on every rank at the same steps; the checkpoint is given on rank 0 only.
    Raises RunStopped where the run has to stop by its own figures.
    """
    trainer = Trainer(objective, config, resume, validation, parent, extra)
    loader = Loader(batches, trainer.cursor)
    for step in range(trainer.first, trainer.loop.steps):
        batch = loader.next()
        trainer.step(step, batch, loader.waited)
        if trainer.reports(step + 1):
            trainer.report(step + 1, loader, report)


class Trainer:
    """One model in training: what a step does, and what is said and saved after it.

    Its parts each know one thing, and give what of it a checkpoint keeps: the objective (weights), the optimiser
    (moments), divergence (first loss, skipped steps), figures and the log of clips (nothing that outlives a report or
    a checkpoint). Where the run stands in its clips is the `Loader`'s, which members of a population share.

    The random state of each step depends on (seed, step, rank) alone, so that a resumed run equals an
    uninterrupted one, and a member of a population its own single run.
    """

    def __init__(
        self,
        objective: Objective,
        config: Config,
        resume: Checkpoint | None = None,
        validation: Validation | None = None,
        parent: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        optimizer_config, self.loop = settings(config, objective.kind)
        self.config, self.validation, self.parent, self.extra = config, validation, parent, extra or {}
        self.rank, self.world = rank_and_world()
        self.device = pick_device()
        self.objective = objective.to(self.device)
        self.fingerprint = model_of(objective).encoder_fingerprint()
        rates, name = objective.learning_rates(), objective.kept_name
        self.optimizer = Optimizer(objective, optimizer_config, self.loop.steps, rates, name)
        self.cursor, self.first = Cursor(), 0
        if resume is not None:
            weights = {k: v.to(self.device) for k, v in resume.weights.items()}
            objective.load_kept(weights, "the checkpoint to resume from")
            self.optimizer.load_named_tensors(resume.optimizer or {})
            self.cursor, self.first = resume.cursor, resume.step
        self.divergence = Divergence(self.loop, resume.extra if resume is not None else None)
        self.clip_log = ClipLog() if self.loop.log_clips else None
        self.module = self._over_ranks(objective)
        self.module.train()
        self.figures = Figures()

    def _over_ranks(self, objective: Objective) -> nn.Module:
        if self.loop.compile:
            compile_blocks(objective)
        if self.world == 1:
            return objective
        ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(objective, device_ids=ids)

    def step(self, step: int, batch: ClipBatch, waited: float = 0.0) -> None:
        """One optimiser step on this rank's batch. A loss or gradient that is not finite on any rank is
        skipped everywhere and counted; too many raise RunStopped. `waited`: seconds spent for the batch."""
        torch.manual_seed((self.loop.seed * 1_000_003 + step * self.world + self.rank) % 2**63)
        self.figures.began(len(batch) * self.world, waited)
        with autocast(self.device, self.loop.precision):
            terms: LossTerms = self.module(batch.to(self.device))
        self.optimizer.zero_grad()
        terms.total.backward()
        finite = finite_everywhere(terms.total)
        if finite:
            norm = self.optimizer.clip_gradients()  # the same on all ranks
            finite = bool(torch.isfinite(norm))
        if self.clip_log is not None:
            self.clip_log.add(step + 1, self.rank, batch, skipped=not finite)
        if not finite:
            self.figures.skipped()
            self.divergence.bad(step)
            return
        self.optimizer.step(step)
        self.divergence.good()
        upkeep = self.objective.maintain(self.optimizer.state)
        self.figures.add(terms, {"gradient_norm": norm, **upkeep})

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps."""
        return done % self.loop.checkpoint_every == 0 or done == self.loop.steps

    def reports(self, done: int) -> bool:
        """Whether figures are due after `done` steps."""
        return done % self.loop.log_every == 0 or self.saves(done)

    def report(self, done: int, loader: Loader, report: Report) -> None:
        """Figures, and where one is due a checkpoint with its validation loss, to `report`. Called on every rank.

        Raises RunStopped, after the figures are reported and without a checkpoint, where the run has to stop.
        """
        figures = self.figures.take()
        figures["learning_rate"] = self.optimizer.learning_rate(done - 1)
        figures["bad_steps"] = float(self.divergence.bad_steps)
        trouble = self.divergence.trouble(done, figures) or self.objective.trouble(figures)
        checkpoint = None
        if self.saves(done) and not trouble and not self.divergence.suspicious:
            figures |= self._validated()
            checkpoint = self._checkpoint(done, figures, loader.cursor())
        report(done, figures, checkpoint)
        if trouble:
            raise RunStopped(f"stopped at step {done}: {trouble}")

    def _validated(self) -> dict[str, float]:
        held_out = self.validation
        if held_out is None:
            return {}
        found = validate(self.objective, held_out.batches, self.device, self.loop.precision)
        return found | ({"val_refused": float(held_out.refused)} if held_out.refused else {})

    def _checkpoint(self, done: int, figures: dict[str, float], cursor: Cursor) -> Checkpoint | None:
        """What stands after `done` steps, on rank 0; the other ranks tell it which clips they have logged."""
        clips = None if self.clip_log is None else merged(from_all_ranks(self.clip_log.take()))
        if self.rank != 0:
            return None
        return Checkpoint(
            kind=self.objective.kind,
            config=self.config,
            step=done,
            cursor=cursor,
            weights={k: v.detach().to("cpu", copy=True) for k, v in self.objective.kept().items()},
            optimizer={k: v.to("cpu", copy=True) for k, v in self.optimizer.named_tensors().items()},
            encoder_fingerprint=self.fingerprint,
            parent=self.parent,
            extra=self.extra | self.divergence.state(),
            metrics=figures,
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


def fit_local(
    config: Config,
    kind: str,
    run: str,
    parent: str | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> str:
    """Trains in this process, without Ray; resumes if `run` holds a checkpoint. Returns the newest checkpoint."""
    setup = prepare(config, kind, run, newest_checkpoint(run), parent)
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
