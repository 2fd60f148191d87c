"""train.py under Ray Train: TorchTrainer workers fed by Ray Data, or by a state cache.

The run folder (storage_path / name) is the one truth of where a run stands: its newest finished
checkpoint says which clips are consumed, both to the workers and to the data set that is built for them.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.data import ExecutionOptions
from ray.train import CheckpointUploadMode, RunConfig
from ray.train import DataConfig as RayDataConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from lawm.batches import local_batches
from lawm.checkpoint import (
    Checkpoint,
    checkpoint_name,
    newest_checkpoint,
    prune_checkpoints,
    read_about,
    save_checkpoint,
)
from lawm.clips import BadClip, open_reader
from lawm.cluster.ingest import clip_dataset, keeps_order, streamed_batches
from lawm.cluster.session import TRAIN, Need, check_resources, label_selector, watching
from lawm.config import Config, LawmError
from lawm.objective import ClipBatch
from lawm.sampling import Cursor
from lawm.storage import absolute, arrow_filesystem, join
from lawm.train import (
    RunWriter,
    check_same_clips,
    check_same_run,
    local_batch,
    prepare,
    rank_and_world,
    settings,
    train,
)

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunSpec:
    """What every training worker gets."""

    config: Config
    kind: str
    run: str
    parent: str | None
    board: Any


@ray.remote(num_cpus=0)
class Board:
    """What the workers of a run tell each other and the driver: the latest figures, refused clips, and
    why the run cannot go on."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {"step": 0, "quarantined": 0}
        self.refused: list[dict[str, Any]] = []
        self.stopped = ""

    def put(self, figures: dict[str, Any]) -> None:
        self.latest |= figures

    def bad(self, record: dict[str, Any]) -> None:
        self.latest["quarantined"] += 1
        self.refused.append(record)

    def take_refused(self) -> list[dict[str, Any]]:
        """Refused clips, of all ranks, that have not been taken yet."""
        taken, self.refused = self.refused, []
        return taken

    def stop(self, why: str) -> None:
        self.stopped = why

    def why_stopped(self) -> str:
        return self.stopped

    def get(self) -> dict[str, Any]:
        return self.latest


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
    return config.data.cache is None or kind == "decoder"


def fit(config: Config, kind: str, run: str, parent: str | None = None, progress: Progress | None = None) -> str:
    """Trains on Ray and returns the newest checkpoint's URI; resumes if `run` holds a checkpoint.

    `progress` is called in this process about twice a second with the latest figures. Raises LawmError.
    """
    run = absolute(run)
    parent = absolute(parent) if parent else None
    check_same_run(config, kind, run)
    check_same_clips(open_reader(config, kind), run)  # bad data is said before workers start
    _, loop = settings(config, kind)
    local_batch(loop, max(config.cluster.workers, 1))
    check_resources(needs(config, kind), config.cluster)
    newest = newest_checkpoint(run)
    if newest and read_about(newest)["step"] >= loop.steps:
        return newest
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(config.cluster.start_timeout_s))
    board = Board.remote()  # type: ignore[attr-defined]
    spec = RunSpec(config, kind, run, parent, board)
    cluster = config.cluster
    folder, _, name = run.rpartition("/")
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
        ),
        datasets={"clips": lambda: _remaining(spec)} if _streams(config, kind) else None,
        # Ray Train puts its own options over those of the data set, so the order has to be asked for here.
        dataset_config=RayDataConfig(
            enable_shard_locality=cluster.workers > 1,
            execution_options=ExecutionOptions(preserve_order=keeps_order(cluster)),
        ),
    )

    def tell() -> None:
        if progress is not None:
            progress(ray.get(board.get.remote(), timeout=5))

    with watching(tell):
        trainer.fit()
    stopped = ray.get(board.why_stopped.remote())
    if stopped:
        raise LawmError(stopped)
    newest = newest_checkpoint(run)
    if newest is None:
        raise LawmError(f"{run}: the run ended without a checkpoint")
    return newest


def _remaining(spec: RunSpec) -> Any:
    """The data set of what the newest checkpoint has not consumed. Called at every worker-group start."""
    _, loop = settings(spec.config, spec.kind)
    newest = newest_checkpoint(spec.run)
    cursor, step = Cursor(), 0
    if newest:
        about = read_about(newest)
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
        ray.get(spec.board.stop.remote(str(error)))
        raise


def _train(spec: RunSpec) -> None:
    """Rank 0 writes metrics and checkpoints straight into the run folder."""
    config, kind, run = spec.config, spec.kind, spec.run
    rank, world = rank_and_world()
    if torch.cuda.is_available() and config.cluster.gpus_per_worker:
        torch.cuda.set_device(ray.train.torch.get_device())
    if config.cluster.workers:
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    setup = prepare(config, kind, run, spec.parent)
    _, loop = settings(config, kind)
    first = setup.resume.step if setup.resume else 0
    writer = RunWriter(run, config, first) if rank == 0 else None

    def on_bad(clip: BadClip) -> None:
        spec.board.bad.remote(vars(clip))

    def batches(cursor: Cursor) -> Iterator[ClipBatch]:
        size = local_batch(loop, world)
        if _streams(config, kind):
            shard = ray.train.get_dataset_shard("clips")
            return streamed_batches(shard, size, config.data.max_bad_fraction, on_bad)
        return local_batches(setup.reader, size, cursor, rank, world)

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        saved = None
        if writer is not None:
            writer.scalars(step, metrics)
            for record in ray.get(spec.board.take_refused.remote()):
                writer.quarantine(step, record)
            spec.board.put.remote({"step": step, "steps": loop.steps, **metrics})
            if checkpoint is not None:
                where = join(run, checkpoint_name(step))
                save_checkpoint(checkpoint, where)
                prune_checkpoints(run, loop.keep)
                writer.flush()
                filesystem, path = arrow_filesystem(where)
                saved = ray.train.Checkpoint(path, filesystem)
        # Already in the run folder, checkpoint.json last: Ray only takes note of it.
        ray.train.report(
            metrics,
            checkpoint=saved,
            checkpoint_dir_name=checkpoint_name(step) if saved else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    train(setup.objective, batches, config, report, setup.resume, setup.validation, setup.parent, setup.extra)
