"""Evaluations of a checkpoint, spread over Ray Data actors. Each actor reads its own clips.

A unit of work is a group of plan positions, so that the shuffled controls pair the same clips whatever
the number of actors.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from lawm.batches import ClipReader, Sample, collate
from lawm.checkpoint import load_checkpoint, load_controller, load_model
from lawm.cluster.session import TRAIN, Need, label_selector
from lawm.config import Config, LawmError
from lawm.evaluation import PerClip, Result, capacity, control, cycle, leakage, summarize
from lawm.objective import ClipBatch
from lawm.train import autocast, pick_device

EVALUATIONS = ("capacity", "leakage", "cycle", "control")


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    lower = "cluster.evaluate_actors=1"
    return [Need("evaluation actor", cluster.evaluate_actors, 1.0, cluster.gpus_per_worker, TRAIN, lower)]


class Evaluator:
    """Holds the models; turns groups of plan positions into per-clip values."""

    def __init__(
        self, config: Config, which: Sequence[str], model: str, baselines: dict[str, str], controller: str | None
    ) -> None:
        if config.cluster.evaluate_actors > 1:
            torch.set_num_threads(1)
        self.config, self.which = config, which
        self.device = pick_device()
        self.model, parent = load_model(model)
        self.others = {name: load_model(uri, self.model.encoder)[0].to(self.device) for name, uri in baselines.items()}
        self.controller = load_controller(controller, self.model, parent).to(self.device) if controller else None
        self.model = self.model.to(self.device)
        self.readers: dict[tuple[str, bool], ClipReader] = {}

    def batch(self, split: str, labelled: bool, start: int, stop: int) -> ClipBatch | None:
        """The good clips of those positions; None if fewer than two are left."""
        key = (split, labelled)
        if key not in self.readers:
            self.readers[key] = ClipReader(self.config, split, labelled=labelled)  # type: ignore[arg-type]
            if self.readers[key].cache is not None:
                self.readers[key].cache.check(self.config, self.model.encoder)  # type: ignore[union-attr]
        reader = self.readers[key]
        found = [reader.try_sample(p) for p in range(start, min(stop, len(reader.plan)))]
        good = [f for f in found if isinstance(f, Sample)]
        return collate(good).to(self.device) if len(good) >= 2 else None

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        size, e = self.config.evaluate.batch, self.config.evaluate
        needs_labels = self.model.latent_action.kind == "true_actions"
        group = int(rows["id"][0])
        values: PerClip = {}
        batch = self.batch(e.split, needs_labels, group * size, (group + 1) * size)
        seed = e.seed * 1_000_003 + group
        with torch.no_grad(), autocast(self.device, self.config.train.precision):
            if batch is not None:
                if "capacity" in self.which:
                    found = capacity.evaluate(self.model, batch, seed, e.context, **self.others)
                    values |= {f"capacity/{k}": v for k, v in found.items()}
                if "leakage" in self.which:
                    found = leakage.evaluate(self.model, batch, seed, self.others.get("deterministic"))
                    values |= {f"leakage/{k}": v for k, v in found.items()}
                if "cycle" in self.which:
                    values |= {f"cycle/{k}": v for k, v in cycle.evaluate(self.model, batch, seed, e.context).items()}
                if "control" in self.which and self.controller is not None:
                    labelled = self.batch(e.split, True, group * size, (group + 1) * size)
                    if labelled is not None:
                        found = control.evaluate(self.model, self.controller, labelled, e.context)
                        values |= {f"control/{k}": v for k, v in found.items()}
        return pack(values, group)


class ProbeCollector(Evaluator):
    """Latents and true actions of a split's labelled clips."""

    def __init__(self, split: str, *args: Any) -> None:
        super().__init__(*args)
        self.split = split

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        size, group = self.config.evaluate.batch, int(rows["id"][0])
        batch = self.batch(self.split, True, group * size, (group + 1) * size)
        if batch is None:
            return pack({}, group)
        found = control.collect(self.model, batch)
        return pack({"z": found.z, "actions": found.actions}, group)


def pack(values: PerClip, group: int) -> dict[str, Any]:
    """One row: the group and its arrays, as one object column (their names differ between evaluations)."""
    cell = np.empty(1, dtype=object)
    cell[0] = values
    return {"group": np.array([group]), "values": cell}


def run_groups(config: Config, actor: Any, arguments: tuple[Any, ...], groups: int) -> PerClip:
    """Runs groups over the actors and joins their arrays in the order of the groups."""
    cluster = config.cluster
    options: dict[str, Any] = {"num_cpus": 1}
    if cluster.gpus_per_worker:
        options["num_gpus"] = cluster.gpus_per_worker
    selector = label_selector(cluster, TRAIN)
    if selector:
        options["label_selector"] = selector
    actors = max(1, min(cluster.evaluate_actors, groups))
    data = ray.data.range(groups, override_num_blocks=groups).map_batches(
        actor, fn_constructor_args=arguments, batch_size=1, compute=ActorPoolStrategy(size=actors), **options
    )
    found = sorted(data.take_all(), key=lambda row: row["group"])
    names = sorted({name for row in found for name in row["values"]})
    return {n: np.concatenate([row["values"][n] for row in found if n in row["values"]]) for n in names}


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
    clips = min(e.clips, len(reader.plan))
    if clips < 2:
        raise LawmError(f"{e.split} split: {clips} clip, and the controls need two; hold out more (data.val_fraction)")
    baselines = {"deterministic": deterministic, "unconstrained": unconstrained}
    others = {k: v for k, v in baselines.items() if v}
    arguments = (config, tuple(which), model, others, controller)
    values = run_groups(config, Evaluator, arguments, math.ceil(clips / e.batch))
    tables = {"capacity": capacity.FIGURES, "leakage": leakage.FIGURES, "cycle": cycle.FIGURES, "control": control.FIGURES}
    results: list[Result] = []
    for name in which:
        own = {k.partition("/")[2]: v for k, v in values.items() if k.startswith(name + "/")}
        results += summarize(tables[name], own, dataset, checkpoint.step, e.bootstrap, e.seed)
        if name == "capacity" and (value := capacity.normalized(own)) is not None:
            n = len(own["one_step"])
            results.append(Result("normalized_capacity", value, float("nan"), float("nan"), n, "share", dataset, checkpoint.step))
    has_latents = checkpoint.config.model.bottleneck.kind not in ("deterministic", "true_actions")
    if "control" in which and config.data.labels and has_latents:
        results += probes(config, model, dataset, checkpoint.step)
    return results


def probes(config: Config, model: str, dataset: str, step: int) -> list[Result]:
    """Linear and MLP probes: fitted on labelled clips of the training split, scored on held-out ones."""
    e, parts = config.evaluate, []
    for split in ("train", "val"):
        clips = min(e.clips, len(ClipReader(config, split, labelled=True).plan))  # type: ignore[arg-type]
        arguments = (split, config, (), model, {}, None)
        parts.append(run_groups(config, ProbeCollector, arguments, math.ceil(clips / e.batch)))
    fit, held_out = (control.Probed(p["z"], p["actions"]) for p in parts)
    return control.probe_results(fit, held_out, dataset, step, e.bootstrap, e.seed)
