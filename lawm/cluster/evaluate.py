"""Evaluations of a checkpoint, spread over Ray Data actors. Each actor reads its own clips.

A unit of work is a group of plan positions, so that the shuffled controls pair the same clips whatever
the number of actors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from lawm.cluster.session import TRAIN, Need, label_selector
from lawm.config import Config, LawmError, parse_config
from lawm.data import ClipReader, Sample, Split
from lawm.evaluation import PerClip, Result, capacity, control, cycle, interval, leakage, summarize
from lawm.model import check_state_a_frame, states_per_clip
from lawm.training import (
    ClipBatch,
    autocast,
    check_baseline,
    check_cache,
    check_free_of_the_past,
    collate,
    load_checkpoint,
    load_controller,
    load_model,
    pick_device,
    read_about,
)

EVALUATIONS = ("capacity", "leakage", "cycle", "control")


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    lower = "cluster.evaluate_actors=1"
    return [Need("evaluation actor", cluster.evaluate_actors, 1.0, cluster.gpus_per_worker, TRAIN, lower)]


@dataclass(frozen=True)
class Task:
    """Plan positions of a split, to be evaluated, or (`probe`) to give latents and true actions."""

    split: Split
    group: int
    start: int
    stop: int
    probe: bool = False


def groups(split: Split, clips: int, batch: int, probe: bool = False) -> list[Task]:
    """Tasks of `batch` clips each; a single clip at the end, which would have no partner, joins the one before."""
    starts = list(range(0, clips, batch))
    if len(starts) > 1 and clips - starts[-1] < 2:
        starts.pop()
    stops = [*starts[1:], clips]
    return [Task(split, i, a, b, probe) for i, (a, b) in enumerate(zip(starts, stops, strict=True))]


class Evaluator:
    """Holds the models; turns groups of plan positions into per-clip values."""

    def __init__(
        self,
        config: Config,
        tasks: list[Task],
        which: Sequence[str],
        model: str,
        baselines: dict[str, str],
        controller: str | None,
    ) -> None:
        if config.cluster.evaluate_actors > 1:
            torch.set_num_threads(1)
        self.config, self.tasks, self.which = config, tasks, which
        self.device = pick_device()
        self.model, parent = load_model(model, config=config)
        self.others = {name: load_model(uri, self.model.encoder)[0].to(self.device) for name, uri in baselines.items()}
        for other in self.others.values():
            other.duplicate = self.model.duplicate
        self.controller = load_controller(controller, self.model, parent).to(self.device) if controller else None
        self.model = self.model.to(self.device)
        self.readers: dict[tuple[str, bool], ClipReader] = {}

    def batch(self, split: Split, labelled: bool, start: int, stop: int) -> ClipBatch | None:
        """The good clips of those positions; None if fewer than two are left."""
        key = (split, labelled)
        if key not in self.readers:
            self.readers[key] = ClipReader(self.config, split, labelled=labelled)
            cache = self.readers[key].cache
            if cache is not None:
                check_cache(cache, self.config, self.model)
        reader = self.readers[key]
        found = [reader.try_sample(p) for p in range(start, min(stop, len(reader.plan)))]
        good = [f for f in found if isinstance(f, Sample)]
        return collate(good).to(self.device) if len(good) >= 2 else None

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        unit = int(rows["id"][0])
        task = self.tasks[unit]
        start, stop = task.start, task.stop
        with torch.no_grad(), autocast(self.device, self.config.train.precision):
            values = self.probe(task, start, stop) if task.probe else self.measure(task, start, stop)
        cell = np.empty(1, dtype=object)
        cell[0] = values
        return {"unit": np.array([unit]), "values": cell}

    def probe(self, task: "Task", start: int, stop: int) -> PerClip:
        """Latents and true actions of labelled clips."""
        batch = self.batch(task.split, True, start, stop)
        if batch is None:
            return {}
        found = control.collect(self.model, batch)
        return {f"probe_{task.split}/z": found.z, f"probe_{task.split}/actions": found.actions}

    def measure(self, task: "Task", start: int, stop: int) -> PerClip:
        """Per-clip values of every evaluation that was asked for, named `evaluation/value`."""
        e, values = self.config.evaluate, {}
        seed = e.seed * 1_000_003 + task.group

        def keep(name: str, found: PerClip) -> None:
            values.update({f"{name}/{k}": v for k, v in found.items()})

        batch = self.batch(task.split, self.model.latent_action.kind == "true_actions", start, stop)
        if batch is not None:
            if "capacity" in self.which:
                keep("capacity", capacity.evaluate(self.model, batch, seed, e.context, **self.others))
            if "leakage" in self.which:
                keep("leakage", leakage.evaluate(self.model, batch, seed, self.others.get("deterministic")))
            if "cycle" in self.which:
                keep("cycle", cycle.evaluate(self.model, batch, seed, e.context))
        if "control" in self.which and self.controller is not None:
            labelled = self.batch(task.split, True, start, stop)
            if labelled is not None:
                keep("control", control.evaluate(self.model, self.controller, labelled, e.context))
        return values


def run_tasks(config: Config, tasks: list[Task], arguments: tuple[Any, ...]) -> PerClip:
    """Runs the tasks over the actors and joins their arrays in the order of the tasks."""
    cluster = config.cluster
    options: dict[str, Any] = {"num_cpus": 1}
    if cluster.gpus_per_worker:
        options["num_gpus"] = cluster.gpus_per_worker
    selector = label_selector(cluster, TRAIN)
    if selector:
        options["label_selector"] = selector
    actors = max(1, min(cluster.evaluate_actors, len(tasks)))
    data = ray.data.range(len(tasks), override_num_blocks=len(tasks)).map_batches(
        Evaluator,
        fn_constructor_args=(config, tasks, *arguments),
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        **options,
    )
    found = sorted(data.take_all(), key=lambda row: row["unit"])
    names = sorted({name for row in found for name in row["values"]})
    return {n: np.concatenate([row["values"][n] for row in found if n in row["values"]]) for n in names}


def check_asked(
    config: Config,
    model: str,
    which: Sequence[str],
    baselines: Iterable[str],
    controller: str | None,
    reader: ClipReader,
) -> None:
    """Raises LawmError where the checkpoints or the data cannot give what is asked for."""
    check_context(config)
    trained = parse_config(read_about(model)["config"], model)
    for uri in baselines:
        check_baseline(trained, parse_config(read_about(uri)["config"], uri), uri)
    if controller is not None:
        check_state_a_frame(config.encoder, config.data.clip)
    if "leakage" in which:
        check_free_of_the_past(reader.cache, "leakage (leave it out with --which)")


def check_context(config: Config) -> None:
    """Raises LawmError where the context leaves no state of a clip to predict."""
    states = states_per_clip(config.encoder, config.data.clip)
    if config.evaluate.context >= states:
        raise LawmError(
            f"evaluate.context = {config.evaluate.context} leaves nothing of {states} states to predict; lower it"
        )


def evaluate(
    config: Config,
    model: str,
    which: Sequence[str] = EVALUATIONS,
    deterministic: str | None = None,
    unconstrained: str | None = None,
    controller: str | None = None,
    dataset: str = "held-out",
) -> list[Result]:
    """Results of the chosen evaluations, with intervals, n and controls.

    `deterministic` and `unconstrained` are checkpoints of the two ends of the capacity axis, trained on
    equal data and steps; `controller` and labels are needed for `control`. Raises LawmError.
    """
    unknown = sorted(set(which) - set(EVALUATIONS))
    if unknown:
        raise LawmError(f"no evaluation {', '.join(unknown)}; there are {', '.join(EVALUATIONS)}")
    checkpoint = load_checkpoint(model)
    e = config.evaluate
    labelled = checkpoint.config.model.bottleneck.kind == "true_actions"
    reader = ClipReader(config, e.split, labelled=labelled)
    check_asked(config, model, which, [uri for uri in (deterministic, unconstrained) if uri], controller, reader)
    clips = min(e.clips, len(reader.plan))
    if clips < 2:
        raise LawmError(f"{e.split} split: {clips} clip, and the controls need two; hold out more (data.val_fraction)")
    baselines = {"deterministic": deterministic, "unconstrained": unconstrained}
    others = {k: v for k, v in baselines.items() if v}
    tasks = groups(e.split, clips, e.batch)
    probing = (
        "control" in which
        and config.data.labels
        and not labelled
        and checkpoint.config.model.bottleneck.kind != "deterministic"
    )
    if probing:
        splits: tuple[Split, Split] = ("train", "val")
        for split in splits:
            n = min(e.clips, len(ClipReader(config, split, labelled=True).plan))
            tasks += groups(split, n, e.batch, probe=True)
    values = run_tasks(config, tasks, (tuple(which), model, others, controller))
    tables = {
        "capacity": capacity.FIGURES,
        "leakage": leakage.FIGURES,
        "cycle": cycle.FIGURES,
        "control": control.FIGURES,
    }
    results: list[Result] = []
    for name in which:
        own = {k.partition("/")[2]: v for k, v in values.items() if k.startswith(name + "/")}
        results += summarize(tables[name], own, dataset, checkpoint.step, e.bootstrap, e.seed)
        if name == "capacity" and "deterministic" in own and "unconstrained" in own:
            arrays = [own[k] for k in ("deterministic", "unconstrained", "one_step")]
            value, low, high = interval(capacity.normalized, arrays, e.bootstrap, e.seed)
            results.append(
                Result("normalized_capacity", value, low, high, len(arrays[0]), "share", dataset, checkpoint.step)
            )
    if probing:
        fit, held_out = (
            control.Probed(values[f"probe_{split}/z"], values[f"probe_{split}/actions"]) for split in ("train", "val")
        )
        results += control.probe_results(fit, held_out, dataset, checkpoint.step, e.bootstrap, e.seed)
    return results
