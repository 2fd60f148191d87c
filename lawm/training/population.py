"""Several models in one run: clips are read and encoded once for all of them, as a sweep of coefficients needs.

Each member is what its own single run would be: same weights at the start, same clips, same random numbers.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from lawm.config import Config, LawmError, RunStopped, differing_fields
from lawm.data import BadClip, Cursor
from lawm.storage import exists, join, read_bytes, write_bytes
from lawm.training.batches import ClipBatch, local_batches
from lawm.training.checkpoint import Checkpoint, checkpoint_folders, newest_checkpoint, prune_checkpoints, step_of
from lawm.training.loader import Batches, Loader
from lawm.training.loop import Trainer
from lawm.training.objective import LatentActionObjective
from lawm.training.ranks import autocast, rank_and_world
from lawm.training.run_folder import Report, RunWriter, local_report, to_the_end
from lawm.training.setup import Setup, local_batch, model_of, prepare


def check_population(configs: list[Config]) -> None:
    """Raises LawmError where configs differ in more than `model` and `optimizer`, or none is given."""
    if not configs:
        raise LawmError("a population needs at least one member")
    if any(config.fine_tune.target != "off" for config in configs):
        raise LawmError("a population shares its encoder, and fine_tune trains one: train it in a run of its own")
    labelled = [config.model.bottleneck.kind == "true_actions" for config in configs]
    if any(labelled) and not all(labelled):
        raise LawmError("true_actions needs labelled clips, the other bottlenecks do not: train it in a run of its own")
    for config in configs[1:]:
        own = ("model.", "optimizer.", "recipe")
        differ = [k for k in differing_fields(configs[0], config) if not k.startswith(own)]
        if differ:
            raise LawmError(f"a population shares its clips and its encoder; its members differ in {', '.join(differ)}")


def encoded_batch(trainer: Trainer, batch: ClipBatch) -> ClipBatch:
    """The batch with its raw states, on the trainer's device, exactly as its objective would make them."""
    batch = batch.to(trainer.device)
    if batch.frames_BFCHW is None:
        return batch
    with torch.no_grad(), autocast(trainer.device, trainer.loop.precision):
        states = model_of(trainer.objective).encode(batch.frames_BFCHW)
    return replace(batch, frames_BFCHW=None, states_BTND=states)


STOPPED = "stopped.json"


def mark_stopped(run: str, why: str, config: Config) -> None:
    """Notes in a member's run folder that its own figures stopped it; a rerun of the population goes on without it."""
    said = {"reason": why, "model": config.model.model_dump(), "optimizer": config.optimizer.model_dump()}
    write_bytes(join(run, STOPPED), json.dumps(said).encode())


def stopped_members(runs: list[str], configs: list[Config]) -> dict[int, str]:
    """Which members are marked as stopped with these very settings, and why."""
    found = {}
    for i, (run, config) in enumerate(zip(runs, configs, strict=True)):
        if exists(join(run, STOPPED)):
            said = json.loads(read_bytes(join(run, STOPPED)))
            ours = json.loads(json.dumps([config.model.model_dump(), config.optimizer.model_dump()]))
            if [said["model"], said["optimizer"]] == ours:
                found[i] = f"{said['reason']} (noted in {join(run, STOPPED)})"
    return found


def said_of(stopped: dict[int, str]) -> str:
    return "; ".join(f"member {i}: {why}" for i, why in sorted(stopped.items()))


def newest_common_step(runs: Sequence[str]) -> int | None:
    """The newest step of which every run has a checkpoint."""
    folders = [{step_of(folder) for folder in checkpoint_folders(run)} for run in runs]
    return max((step for step in set.intersection(*folders) if step is not None), default=None)


def prune_members(runs: Sequence[str], keep: int) -> None:
    """`prune_checkpoints` of every member that still trains, but for the checkpoints that the population would go on
    from: a member whose figures are suspicious saves none, while the others do."""
    held = newest_common_step(runs) if runs else None
    for run in runs:
        prune_checkpoints(run, keep, held)


def common_checkpoints(runs: list[str]) -> list[str | None]:
    """The checkpoint of each run at the newest step that all have; None for each where there is none at all.

    A kill between two members' checkpoints leaves some one checkpoint ahead. Raises LawmError where they stand
    further apart.
    """
    folders = [{step_of(folder): folder for folder in checkpoint_folders(run)} for run in runs]
    if not any(folders):
        return [None] * len(runs)
    shared = set.intersection(*(set(found) for found in folders))
    if not shared:
        stand = ", ".join(str(max((s for s in found if s is not None), default=0)) for found in folders)
        raise LawmError(
            f"the members of the population stand at steps {stand}: remove their folders, or train them singly"
        )
    step = max(s for s in shared if s is not None)
    return [found[step] for found in folders]


def train_population(
    setups: list[Setup],
    configs: list[Config],
    batches: Batches,
    reports: Sequence[Report],
    after: Callable[[int, dict[str, float]], None],
    on_stop: Callable[[int, str], None],
) -> None:
    """Trains K latent action models in step. `batches` and `reports` are as for `lawm.training.train`; `after` is
    called when all members have reported a step, with the figures of the first that is left; `on_stop` where a
    member's own figures stop it, and the others go on.

    Raises LawmError where the configs differ elsewhere than in model and optimiser; ValueError where the members
    stand at different steps.
    """
    check_population(configs)
    trainers = [
        Trainer(setup.objective, config, setup.resume, setup.validation, None, setup.extra)
        for setup, config in zip(setups, configs, strict=True)
    ]
    lead = trainers[0]
    if any((t.first, t.cursor) != (lead.first, lead.cursor) for t in trainers):
        raise ValueError("the members of a population start from one step")
    loader = Loader(batches, lead.cursor)
    stopped: set[int] = set()
    for step in range(lead.first, lead.loop.steps):
        batch = encoded_batch(lead, loader.next())
        said: list[dict[str, float]] = []
        for i, (trainer, report) in enumerate(zip(trainers, reports, strict=True)):
            if i in stopped:
                continue

            def heard(done: int, metrics: dict[str, float], kept: Checkpoint | None, report: Report = report) -> None:
                report(done, metrics, kept)
                said.append(metrics)  # noqa: B023  # called within this step

            try:
                trainer.step(step, batch, loader.waited)
                if trainer.reports(step + 1):
                    trainer.report(step + 1, loader, heard)
            except RunStopped as error:
                stopped.add(i)
                on_stop(i, str(error))
        if said:
            after(step + 1, said[0])
        if len(stopped) == len(trainers):
            break


def check_runs(configs: list[Config], runs: list[str]) -> None:
    """Raises LawmError where the configs are no population, or the members lack run folders of their own."""
    check_population(configs)
    if len(set(runs)) != len(configs):
        raise LawmError(f"{len(configs)} members need run folders of their own, got {', '.join(runs) or 'none'}")


def prepare_population(configs: list[Config], runs: list[str], starts: Sequence[str | None]) -> list[Setup]:
    """Each member made ready, all on one encoder, to go on from `starts` (those of `common_checkpoints`)."""
    setups: list[Setup] = []
    for config, run, start in zip(configs, runs, starts, strict=True):
        encoder = model_of(setups[0].objective).encoder if setups else None
        setups.append(prepare(config, LatentActionObjective.kind, run, start, encoder=encoder))
    return setups


def fit_population_local(
    configs: list[Config], runs: list[str], progress: Callable[[int, dict[str, float]], None] | None = None
) -> list[str]:
    """Trains the members in this process, without Ray, each into its own run folder; resumes if they hold
    checkpoints. `progress` hears of the first member. Returns the newest checkpoints. Raises LawmError; once the
    others are done, also what stopped a member, now or before."""
    check_runs(configs, runs)
    left = [i for i in range(len(runs)) if i not in stopped_members(runs, configs)]
    if left:
        _fit_left([configs[i] for i in left], [runs[i] for i in left], progress)
    if stopped := stopped_members(runs, configs):
        raise LawmError(said_of(stopped))
    newest = [newest_checkpoint(run) for run in runs]
    return [uri for uri in newest if uri is not None]


def _fit_left(configs: list[Config], runs: list[str], progress: Callable[[int, dict[str, float]], None] | None) -> None:
    setups = prepare_population(configs, runs, common_checkpoints(runs))
    steps = [setup.resume.step if setup.resume else 0 for setup in setups]
    writers = [RunWriter(run, config, step) for run, config, step in zip(runs, configs, steps, strict=True)]
    loop, training = configs[0].train, list(runs)

    def on_bad(clip: BadClip) -> None:
        for writer in writers:
            writer.quarantine(vars(clip))

    def batches(cursor: Cursor) -> Iterator[ClipBatch]:
        rank, world = rank_and_world()
        return local_batches(setups[0].reader, local_batch(loop, world), cursor, rank, world, on_bad=on_bad)

    def after(step: int, metrics: dict[str, float]) -> None:
        prune_members(training, loop.keep)  # not before every member has its checkpoint
        if progress is not None:
            progress(step, metrics)

    def on_stop(member: int, why: str) -> None:
        writers[member].flush()
        training.remove(runs[member])
        mark_stopped(runs[member], why, configs[member])

    reports = [local_report(writer, None) for writer in writers]
    with to_the_end(writers):
        train_population(setups, configs, batches, reports, after, on_stop)
