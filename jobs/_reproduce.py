"""What `lawm reproduce` does with an experiment: trains what is missing, measures it, and keeps what was found."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from jobs._cli import say
from jobs._pictures import drawn_latents
from jobs._run import Fit, counted, read_results, record, train_on_ray, training_note, write_results
from lawm import storage
from lawm.config import Config, DataConfig, LawmError, Source, override
from lawm.evaluation import Measured, Omission
from lawm.report import Section, Text
from lawm.reproduction import Experiment, Model, Variant

ON_ROBOT = ("control", "probes")
"""Evaluations that take labelled clips."""
TWINS = {"deterministic": {"kind": "deterministic"}, "unconstrained": {"kind": "none"}}


@dataclass(frozen=True)
class Clips:
    """Which clips an experiment takes: `train` trains models, `measure` is what they are measured on, `robot` are the
    labelled ones (None: there are none), `wild` the others of a mixture with them (None: there are none)."""

    train: DataConfig
    measure: DataConfig
    robot: DataConfig | None = None
    wild: DataConfig | None = None


@dataclass(frozen=True)
class Run:
    """A latent action model to be trained: its variant (None: a twin of this kind), its seed and folder."""

    config: Config
    seed: int
    folder: str
    variant: Variant | None = None
    twin: str = ""

    @property
    def title(self) -> str:
        """As in `sparse, lambda_l1 = 0.01, seed 0`."""
        return f"{f'{self.variant.latents}, {self.variant.said}' if self.variant else self.twin}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return finished(self.folder, self.config.train.steps)


def finished(folder: str, steps: int) -> bool:
    """Whether a run folder holds a checkpoint of that many steps."""
    from lawm.training import newest_checkpoint, read_about

    newest = newest_checkpoint(folder) if storage.exists(folder) else None
    return newest is not None and int(read_about(newest)["step"]) >= steps


def seeded(config: Config, seed: int) -> Config:
    """The config with the seed of every training set; the clips that are drawn, and measured, stay the same."""
    for part in ("train", "controller.train", "decoder.train"):
        config = override(config, f"{part}.seed", seed)
    return config


def mixture_of(clips: Clips, share: float) -> DataConfig:
    """Training clips of which the robot's have a share. Raises LawmError where one of the two is not there."""
    if clips.robot is None or clips.wild is None:
        raise LawmError(
            "this experiment mixes two data sets: give the videos without labels (--index or --cache), and the robot's "
            "(--robot and --robot-labels)"
        )
    if share in (0.0, 1.0):
        only = clips.robot if share else clips.wild
        return only.model_copy(update={"labels": None})
    parts = ((clips.wild, 1 - share), (clips.robot, share))
    sources = tuple(
        Source(index=None if one.cache else one.index, cache=one.cache, keys=one.keys, weight=w) for one, w in parts
    )
    gone = {"index": None, "cache": None, "labels": None, "keys": None}
    return clips.train.model_copy(update={**gone, "mixture": sources})


def runs_of(experiment: Experiment, config: Config, clips: Clips, seeds: int, scale: Any, out: str) -> list[Run]:
    """Every latent action model that the experiment needs, of every seed, twins last. A folder is named by what its
    model hangs on: experiments share what they can."""
    runs = []
    for seed in range(seeds):
        base = seeded(config.model_copy(update={"data": clips.train}), seed)
        for variant in experiment.variants(scale, config):
            own = variant.of(base)
            if variant.robot_share is not None:
                own = own.model_copy(update={"data": mixture_of(clips, variant.robot_share)})
            runs.append(Run(own, seed, _folder(out, variant.latents, own, seed), variant))
        for name, bottleneck in TWINS.items():
            if name in experiment.needs:
                own = override(base, "model.bottleneck", bottleneck)
                runs.append(Run(own, seed, _folder(out, name, own, seed), twin=name))
    return runs


def _folder(out: str, name: str, config: Config, seed: int) -> str:
    parts = ("data", "encoder", "model", "optimizer", "train", "fine_tune")
    said = json.dumps({part: getattr(config, part).model_dump(mode="json") for part in parts}, sort_keys=True)
    return storage.join(out, "models", f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:10]}-seed{seed}")


# ---------------------------------------------------------------- training
def populations(runs: Sequence[Run], most: int) -> list[list[Run]]:
    """The runs that are not finished, put together where they share clips, encoder and loop: at most so many."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not run.done:
            shared = run.config.model_dump(mode="json", exclude={"model", "optimizer", "recipe"})
            groups.setdefault(json.dumps(shared, sort_keys=True), []).append(run)
    found = []
    for group in groups.values():
        count = -(-len(group) // most)
        found += [group[i::count] for i in range(count)]
    return found


def train_models(runs: Sequence[Run], most: int, beside: int) -> None:
    """Trains the populations, so many beside one another. A member that its own figures stop is said, and left."""
    from lawm.cluster.fit import fit_population

    waiting = populations(runs, most)

    def one(group: list[Run], show: Any) -> str:
        steps = group[0].config.train.steps
        try:
            fit_population(
                [run.config for run in group],
                [run.folder for run in group],
                lambda figures: show(int(figures["step"]), steps, training_note(figures)),
            )
        except LawmError as error:
            if all(storage.exists(run.folder) for run in group) and any(run.done for run in group):
                return str(error)
            raise
        return ""

    for i in range(0, len(waiting), beside):
        groups = waiting[i : i + beside]
        titles = [f"models {i + j + 1} of {len(waiting)} ({len(group)} members)" for j, group in enumerate(groups)]
        with counted(*titles) as shows, ThreadPoolExecutor(len(groups)) as pool:
            for said in pool.map(one, groups, shows if len(groups) > 1 else [shows]):
                if said:
                    say(f"left out: {said}")


def train_children(runs: Sequence[Run], kind: str, data: DataConfig, beside: int) -> None:
    """A controller or decoder of every model, in RUN-controller or RUN-decoder. Raises LawmError where one of other
    settings lies there."""
    from lawm.training import check_same_run

    fits = []
    for run in (run for run in runs if run.variant is not None and run.done):
        config = run.config.model_copy(update={"data": data})
        loop = getattr(config, kind).train
        folder = f"{run.folder}-{kind}"
        check_same_run(config, kind, folder)  # a finished one, too, may be of other settings
        if not finished(folder, loop.steps):
            fits.append(Fit(f"{kind} of {storage.last_part(run.folder)}", config, kind, folder, run.folder))
    for i in range(0, len(fits), beside):
        train_on_ray(*fits[i : i + beside])


# ---------------------------------------------------------------- measuring
def not_trained(runs: Sequence[Run]) -> list[Section]:
    """The models that their own figures have stopped: what is measured lacks them."""
    lines = [f"{run.title} ({run.folder})" for run in runs if not run.done]
    return [Text("Not trained to the end, and left out", "\n\n".join(lines), warning=True)] if lines else []


def measured_models(experiment: Experiment, runs: Sequence[Run], clips: Clips, decoders: bool) -> list[Model]:
    """What the experiment's evaluations, and planning where it needs that, say of every model that is trained."""
    from lawm.data import ClipReader
    from lawm.training import checkpoint_folders, read_about

    plans = {}
    for data in (clips.measure, clips.robot):  # read once for all models
        if data is not None and runs:
            config = runs[0].config.model_copy(update={"data": data})
            plans[data.model_dump_json()] = ClipReader(config, config.evaluate.split).plan.fingerprint()
    found = []
    for run in (run for run in runs if run.variant is not None and run.done):
        assert run.variant is not None
        for where in checkpoint_folders(run.folder) if experiment.over_steps else [run.folder]:
            measured = evaluated(experiment, run, where, runs, clips, decoders, plans)
            if "planning" in experiment.needs:
                measured += planned(run, where, clips)
            step = int(read_about(where)["step"])
            found.append(Model(run.variant, run.seed, step, tuple(measured.results), tuple(measured.omitted)))
    return found


def evaluated(
    experiment: Experiment,
    run: Run,
    where: str,
    runs: Sequence[Run],
    clips: Clips,
    decoders: bool,
    plans: Mapping[str, str],
) -> Measured:
    """The experiment's evaluations of one checkpoint; those whose results are kept are not made again. `plans`: data ->
    the fingerprint of their clips."""
    from lawm.cluster.evaluate import Company, evaluate
    from lawm.cluster.parts import said_of_all

    twins = {one.twin: one.folder for one in runs if one.twin and one.seed == run.seed and one.done}
    children = {kind: f"{run.folder}-{kind}" for kind in ("controller", "decoder")}
    wanted = {"controller": "controller" in experiment.needs, "decoder": decoders}
    children = {kind: uri for kind, uri in children.items() if wanted[kind] and storage.exists(uri)}
    company = Company(where, **twins, **children)
    total = Measured()
    for on_robot in (False, True):
        names = [name for name in experiment.suite if (name in ON_ROBOT) == on_robot]
        data = clips.robot if on_robot else clips.measure
        if not names:
            continue
        if data is None:
            why = "no labelled clips of a robot were given (--robot with --robot-labels, or --labels)"
            total += Measured(omitted=[Omission(name, why) for name in names])
            continue
        config = run.config.model_copy(update={"data": data})
        about = said_of_all(config, company.all, [plans[data.model_dump_json()]])
        asked = {name: f"{where}.reproduced/{name}.json" for name in names}
        kept = {name: found for name, uri in asked.items() if (found := _kept(uri, about)) is not None}
        left = [name for name in names if name not in kept]
        if left:
            say(f"{', '.join(left)} of {storage.last_part(where)}")
            new = evaluate(config, company, left, parts_in=f"{where}.parts")
            record(storage.join(run.folder, "evaluation.json"), new, where)
            for name in left:
                kept[name] = _of(new, name)
                _keep(asked[name], about, kept[name])
        for name in names:
            total += kept[name]
    return total


def _of(measured: Measured, name: str) -> Measured:
    """What one evaluation said."""
    own = [one for one in measured.results if one.evaluation == name]
    figures = {one.name for one in measured.results}
    omitted = [one for one in measured.omitted if one.name == name or one.name not in figures]
    return Measured(own, omitted, list(measured.notes))


def _kept(where: str, about: dict[str, Any]) -> Measured | None:
    """The results that were kept there, where they are of the same checkpoints, data and settings."""
    side = f"{where}.about"
    if not storage.exists(side) or json.loads(storage.read_bytes(side)) != json.loads(json.dumps(about)):
        return None
    return read_results(where)


def _keep(where: str, about: dict[str, Any], measured: Measured) -> None:
    write_results(where, measured)
    storage.write_bytes(f"{where}.about", json.dumps(about).encode())


def planned(run: Run, where: str, clips: Clips) -> Measured:
    """Planning of one model with its controller; episodes that are there are not planned again."""
    from lawm.cluster.plan import dataset_name, measured_plans, plan_episodes
    from lawm.planning import Used
    from lawm.training import read_about

    controller = f"{run.folder}-controller"
    if clips.robot is None or not storage.exists(controller):
        return Measured(omitted=[Omission("planning", "there is no controller: no labelled clips were given")])
    config = run.config.model_copy(update={"data": clips.robot})
    with counted("plan") as show:
        used = Used(where, controller)
        rows = plan_episodes(config, used, f"{where}.plan", lambda done, total: show(done, total, "episodes"))
    dataset = dataset_name(config, None, [where, controller])
    measured = measured_plans(config, rows, dataset, int(read_about(where)["step"]))
    record(storage.join(run.folder, "evaluation.json"), measured, where)
    return measured


def pictures_of_latents(runs: Sequence[Run]) -> list[Section]:
    """Figure S1's pictures: inferred and drawn latents of each model."""
    found: list[Section] = []
    for run in (run for run in runs if run.variant is not None and run.done):
        found += [replace(one, title=run.title) for one in drawn_latents(run.folder)]
    return found


def plan_of_work(runs: Sequence[Run], experiment: Experiment, most: int) -> dict[str, Any]:
    """What is still to be trained, in numbers."""
    groups = populations(runs, most)

    def clips(of: Iterable[Run]) -> int:
        return sum(run.config.train.steps * run.config.train.batch for run in of)

    return {
        "models": len(runs),
        "models left to train": sum(map(len, groups)),
        "populations": len(groups),
        "clips trained on": clips(run for group in groups for run in group),
        "clips decoded and encoded": clips(group[0] for group in groups),
        "controllers": sum(run.variant is not None for run in runs) if "controller" in experiment.needs else 0,
    }
