"""Where the figures of a training run go besides its folder: TensorBoard, MLflow, Weights & Biases.

Each through its own client, configured by its own variables (MLFLOW_TRACKING_URI; WANDB_API_KEY, WANDB_MODE=offline). A
run that goes on writes into the same run of the tracker. A tracker that fails is said once and left out: it never costs
a training step.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lawm.config import Config, LawmError, leaf_fields
from lawm.storage import is_s3, last_part

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a tracker does: takes figures of a step, and writes out what it holds."""

    def scalars(self, step: int, metrics: dict[str, float]) -> None: ...

    def flush(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard of a local run."""

    def __init__(self, run: str, config: Config, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(run) / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()


class MLflow:
    """A run of the experiment `train.project`, named as the run folder; its settings are parameters."""

    def __init__(self, run: str, config: Config, step: int) -> None:
        import mlflow

        self.client = mlflow.MlflowClient()
        self.entity: Any = mlflow.entities.Metric
        found = self.client.get_experiment_by_name(config.train.project)
        experiment = found.experiment_id if found else self.client.create_experiment(config.train.project)
        mark = identity(run)
        same = self.client.search_runs([experiment], f"tags.lawm_run = '{mark}'", max_results=1) if step else []
        if same:
            self.run_id = same[0].info.run_id
            self.client.update_run(self.run_id, "RUNNING")
        else:
            tags = {"lawm_run": mark, "lawm_folder": run}
            made = self.client.create_run(experiment, run_name=last_part(run), tags=tags)
            self.run_id = made.info.run_id
            params = [mlflow.entities.Param(key, str(value)[:500]) for key, value in leaf_fields(config)]
            for i in range(0, len(params), 100):
                self.client.log_batch(self.run_id, params=params[i : i + 100])

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [self.entity(name, value, now, step) for name, value in metrics.items()])

    def flush(self) -> None:
        """Nothing is held."""


class WeightsAndBiases:
    """A run of the project `train.project`, named as the run folder; files of an offline run lie in RUN/wandb."""

    def __init__(self, run: str, config: Config, step: int) -> None:
        import wandb

        where = None if is_s3(run) else run
        self.run = wandb.init(
            project=config.train.project, name=last_part(run), id=identity(run), resume="allow", dir=where,
            config=config.model_dump(mode="json"), reinit="create_new", settings=wandb.Settings(silent=True),
        )  # fmt: skip

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def flush(self) -> None:
        """Its own process writes."""


KINDS: dict[str, Callable[[str, Config, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


class Trackers:
    """The trackers that `train.trackers` names, for one run folder."""

    def __init__(self, run: str, config: Config, step: int, tell: Callable[[str], None] = logger.warning) -> None:
        """`tell` hears of a tracker that fails. Raises LawmError where the package of one that was asked for is not
        installed."""
        self.open: dict[str, Tracker] = {}
        self.tell = tell
        for kind in config.train.trackers:
            if kind == "tensorboard" and is_s3(run):  # its client has another S3 configuration than lawm
                continue
            try:
                self.open[kind] = KINDS[kind](run, config, step)
            except ImportError as error:
                if kind == "tensorboard":
                    continue
                raise LawmError(
                    f"train.trackers: {kind} is not installed ({error}): pip install 'lawm[{kind}]', on every node "
                    "that trains"
                ) from error
            except Exception as error:  # a server that is away, a key that is wrong
                self._left_out(kind, error)

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        """Figures of a step, all finite."""
        self._each(lambda tracker: tracker.scalars(step, metrics))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def _each(self, what: Callable[[Tracker], None]) -> None:
        for kind, tracker in list(self.open.items()):
            try:
                what(tracker)
            except Exception as error:
                self._left_out(kind, error)

    def _left_out(self, kind: str, error: Exception) -> None:
        self.open.pop(kind, None)
        said = " ".join(str(error).split())[:300]
        self.tell(f"tracker {kind} fails and is left out from here on ({type(error).__name__}: {said})")


def identity(run: str) -> str:
    """The same for the same run folder, whoever opens it."""
    return hashlib.sha256(run.rstrip("/").encode()).hexdigest()[:16]
