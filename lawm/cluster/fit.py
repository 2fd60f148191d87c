"""train.py under Ray Train: TorchTrainer workers fed by Ray Data, or by a state cache.

The run folder (storage_path / name) is the one truth of where a run stands: its newest finished
checkpoint says which clips are consumed, both to the workers and to the data set that is built for them.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointUploadMode, RunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from lawm.cluster.board import Board
from lawm.cluster.filesystem import arrow_filesystem
from lawm.cluster.ingest import clip_dataset, shard_options, streamed_batches
from lawm.cluster.session import (
    TRAIN,
    Need,
    causes,
    check_resources,
    in_short,
    is_death,
    label_selector,
    on_this_node,
    say,
    train_snapshot,
    watching,
)
from lawm.config import Config, LawmError
from lawm.data import BadClip, Cursor, open_reader
from lawm.storage import absolute, delete, join
from lawm.training import (
    Checkpoint,
    ClipBatch,
    LatentActionObjective,
    RunTaken,
    RunWriter,
    check_runs,
    check_same_clips,
    check_same_run,
    checkpoint_name,
    common_checkpoints,
    from_all_ranks,
    local_batch,
    local_batches,
    mark_stopped,
    newest_checkpoint,
    note_event,
    prepare,
    prepare_population,
    prune_members,
    rank_and_world,
    read_about,
    said_of,
    settings,
    stopped_members,
    to_the_end,
    train,
    train_population,
)

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunSpec:
    """What every training worker gets: one config and run, or those of a population's members."""

    configs: list[Config]
    kind: str
    runs: list[str]
    parent: str | None
    board: Any
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of this call of `fit`, over all of its restarts."""

    @property
    def population(self) -> bool:
        return len(self.runs) > 1

    @property
    def config(self) -> Config:
        """The first, which speaks for all of them in everything but model and optimiser."""
        return self.configs[0]

    def left(self) -> list[int]:
        """The members that their own figures have not stopped."""
        stopped = stopped_members(self.runs, self.configs) if self.population else {}
        return [i for i in range(len(self.runs)) if i not in stopped]

    def only(self, members: list[int]) -> "RunSpec":
        return replace(self, configs=[self.configs[i] for i in members], runs=[self.runs[i] for i in members])

    def starts(self) -> list[str | None]:
        """The checkpoints of the members that are left, from which the run goes on."""
        return common_checkpoints(self.only(self.left()).runs)


class Failures(UserCallback):
    """Keeps why workers have ended, in Ray Train's controller, which starts them again without a word."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # The dead first: the others have only lost them.
        found = sorted(worker_exceptions.items(), key=lambda item: (not any(map(is_death, causes(item[1]))), item[0]))
        reasons = {rank: in_short(error) for rank, error in found}
        said = [
            f"{'workers' if len(ranks) > 1 else 'worker'} {', '.join(map(str, ranks))}: {reason}"
            for reason in dict.fromkeys(reasons.values())
            if (ranks := [rank for rank, other in reasons.items() if other == reason])
        ]
        ray.get(self.board.failed.remote("; ".join(said)))


def needs(config: Config, kind: str) -> list[Need]:
    """What a run asks of the cluster at the same time."""
    cluster = config.cluster
    found = []
    if cluster.workers > 0:
        found.append(
            Need(
                "training worker",
                cluster.workers,
                cluster.cpus_per_worker,
                cluster.gpus_per_worker,
                TRAIN,
                "cluster.workers=1",
            )
        )
    if _streams(config, kind):
        found.append(Need("decode task", 1, cluster.decode_cpus, 0.0, "decode", "cluster.decode_cpus=1"))
    return found


def _streams(config: Config, kind: str) -> bool:
    """Whether clips come through Ray Data (a state cache is read by the workers themselves)."""
    return not config.data.cached or kind == "decoder"


def fit(
    config: Config,
    kind: str,
    run: str,
    parent: str | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = say,
) -> str:
    """Trains on Ray and returns the newest checkpoint's URI; resumes if `run` holds a checkpoint.

    `progress` is called in this process about twice a second with the latest figures, `tell` with a line where workers
    had to be started again, and why (also in `run`/events.jsonl). Raises LawmError.
    """
    return _fit([config], kind, [absolute(run)], absolute(parent) if parent else None, progress, tell)[0]


def fit_population(configs: list[Config], runs: list[str], progress: Progress | None = None) -> list[str]:
    """`lawm.training.fit_population_local` on Ray: latent action models that share clips and encoder, each worker
    training a replica of every one. Returns the newest checkpoints. Raises LawmError."""
    runs = [absolute(run) for run in runs]
    check_runs(configs, runs)
    return _fit(configs, LatentActionObjective.kind, runs, None, progress, say)


def _fit(
    configs: list[Config],
    kind: str,
    runs: list[str],
    parent: str | None,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> list[str]:
    config = configs[0]
    for own, run in zip(configs, runs, strict=True):
        check_same_run(own, kind, run)
        check_same_clips(open_reader(own, kind), run)  # bad data is said before workers start
    _, loop = settings(config, kind)
    local_batch(loop, max(config.cluster.workers, 1))
    check_resources(needs(config, kind), config.cluster)
    board = Board.options(**on_this_node()).remote()  # type: ignore[attr-defined]
    spec = RunSpec(configs, kind, runs, parent, board)
    starts = spec.starts()
    if starts and starts[0]:
        board.put.remote({"step": read_about(starts[0])["step"]})
    if not starts or (starts[0] and read_about(starts[0])["step"] >= loop.steps):
        return _newest(spec)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(config.cluster.start_timeout_s))
    cluster = config.cluster
    # Ray's own list of checkpoints also names those that were pruned since, and then Ray does not start on the folder.
    delete(join(runs[0], train_snapshot()))
    folder, _, name = runs[0].rpartition("/")
    filesystem, path = arrow_filesystem(folder)
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources if cluster.workers else None,
            label_selector=label_selector(cluster, TRAIN) or None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=0),
            callbacks=[Failures(board)],  # type: ignore[list-item]
        ),
        datasets={"clips": lambda: _remaining(spec)} if _streams(config, kind) else None,
        dataset_config=shard_options(cluster),
    )

    def look() -> None:
        for one in ray.get(board.take_restarts.remote(), timeout=5):
            tell(
                f"training was started again at step {one['step']}, for the {one['number']}. time of at most "
                f"{cluster.max_failures} (cluster.max_failures): {one['reason']}"
            )
        for text in ray.get(board.take_said.remote(), timeout=5):
            tell(text)
        if progress is not None:
            progress(ray.get(board.get.remote(), timeout=5))

    with watching(look):
        try:
            trainer.fit()
        except SystemExit:  # Ray Train's own answer to an interrupt
            raise KeyboardInterrupt from None
    stopped = ray.get(board.why_stopped.remote())
    if stopped:
        raise LawmError(stopped)
    return _newest(spec)


def _newest(spec: RunSpec) -> list[str]:
    """The newest checkpoint of every run. Raises LawmError: a member was stopped, or there is none."""
    if spec.population and (stopped := stopped_members(spec.runs, spec.configs)):
        raise LawmError(said_of(stopped))
    found = []
    for run in spec.runs:
        newest = newest_checkpoint(run)
        if newest is None:
            raise LawmError(f"{run}: the run ended without a checkpoint")
        found.append(newest)
    return found


def _remaining(spec: RunSpec) -> Any:
    """The data set of what the newest checkpoint has not consumed. Called at every worker-group start."""
    _, loop = settings(spec.config, spec.kind)
    cursor, step, starts = Cursor(), 0, spec.starts()
    if starts and starts[0]:
        about = read_about(starts[0])
        cursor, step = Cursor.from_json(about["cursor"]), about["step"]
    return clip_dataset(spec.config, spec.kind, cursor, (loop.steps - step) * loop.batch)


def _worker(loop_config: dict[str, Any]) -> None:
    """One training worker. What the user has to put right is not tried again: it ends the run."""
    spec: RunSpec = loop_config["spec"]
    if ray.get(spec.board.why_stopped.remote()):
        return
    try:
        _train(spec)
    except LawmError as error:
        # Workers that Ray Train has replaced, and that were out of its reach, do not end those that replaced them.
        if not (isinstance(error, RunTaken) and error.by.startswith(spec.id)):
            ray.get(spec.board.stop.remote(str(error)))
        raise


def _train(spec: RunSpec) -> None:
    """The training of one worker; rank 0 writes."""
    rank, world = rank_and_world()
    if torch.cuda.is_available() and spec.config.cluster.gpus_per_worker:
        torch.cuda.set_device(ray.train.torch.get_device())
    # What rank 0 finds holds for all: the others may look a moment later.
    members, starts = from_all_ranks((spec.left(), spec.starts()) if rank == 0 else ([], []))[0]
    if not members:
        return
    population = spec.population
    spec = spec.only(members)
    config, kind = spec.config, spec.kind
    if config.cluster.workers:
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    if population:
        setups = prepare_population(spec.configs, spec.runs, starts)
    else:
        setups = [prepare(config, kind, spec.runs[0], starts[0], spec.parent)]
    setup = setups[0]
    first = setup.resume.step if setup.resume else 0
    reports = _Reports(spec, rank, first)
    if rank == 0 and (again := ray.get(spec.board.began.remote(first))) is not None:
        for run in spec.runs:
            note_event(run, again)

    def batches(cursor: Cursor) -> Iterator[ClipBatch]:
        size = local_batch(reports.loop, world)
        if _streams(config, kind):
            shard = ray.train.get_dataset_shard("clips")
            return streamed_batches(shard, size, cursor, config.data.max_bad_fraction, reports.bad)
        return local_batches(setup.reader, size, cursor, rank, world)

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        reports.keep(spec.runs[0], step, metrics, checkpoint)
        reports.tell(step, metrics)

    with to_the_end(reports.writers.values(), reports.list_refused):
        if population:
            each = [partial(reports.keep, run) for run in spec.runs]
            train_population(setups, spec.configs, batches, each, reports.tell, reports.stop)
        else:
            train(setup.objective, batches, config, report, setup.resume, setup.validation, setup.parent, setup.extra)


class _Reports:
    """What a worker says of its training: rank 0 writes lines and checkpoints straight into the run folders, and tells
    the driver; all take part in Ray Train's reports."""

    def __init__(self, spec: RunSpec, rank: int, first: int) -> None:
        self.spec, self.rank = spec, rank
        self.loop = settings(spec.config, spec.kind)[1]
        owned = zip(spec.runs, spec.configs, strict=True) if rank == 0 else ()
        self.writers = {run: RunWriter(run, own, first, spec.id, self.say) for run, own in owned}
        self.saved: list[str] = []
        self.training = list(self.writers)
        """The runs that their own figures have not stopped."""

    def say(self, text: str) -> None:
        ray.get(self.spec.board.say.remote(text))

    def bad(self, clip: BadClip) -> None:
        ray.get(self.spec.board.bad.remote(vars(clip)))  # on the board before rank 0 saves what has consumed it

    def list_refused(self) -> None:
        if self.rank == 0:
            for clip in ray.get(self.spec.board.take_refused.remote()):
                for writer in self.writers.values():
                    writer.quarantine(clip)

    def keep(self, run: str, step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        self.list_refused()
        if self.rank == 0:
            self.writers[run].scalars(step, metrics)
        if checkpoint is not None:
            self.saved.append(self.writers[run].checkpoint(checkpoint))

    def tell(self, step: int, metrics: dict[str, float]) -> None:
        """After every run's report: older checkpoints, the board, and Ray Train."""
        noted = None
        if self.rank == 0:
            if self.saved:  # not before every member has its checkpoint
                prune_members(self.training, self.loop.keep)
            self.spec.board.put.remote({"step": step, "steps": self.loop.steps, **metrics})
        if self.saved and self.saved[0] == join(self.spec.runs[0], checkpoint_name(step)):
            filesystem, path = arrow_filesystem(self.saved[0])
            noted = ray.train.Checkpoint(path, filesystem)
        self.saved.clear()
        # A report waits for the controller, which looks every two seconds: none between checkpoints.
        if step % self.loop.checkpoint_every and step != self.loop.steps:
            return
        # Already in the run folder, checkpoint.json last: Ray only takes note of it.
        ray.train.report(
            metrics,
            checkpoint=noted,
            checkpoint_dir_name=checkpoint_name(step) if noted else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def stop(self, member: int, why: str) -> None:
        if self.rank == 0:
            self.writers[self.spec.runs[member]].flush()
            self.training.remove(self.spec.runs[member])
            mark_stopped(self.spec.runs[member], why, self.spec.configs[member])
