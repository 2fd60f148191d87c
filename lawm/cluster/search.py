"""Search with Tune and Optuna: trials that train, evaluate and plan, for two objectives at once.

The ledger in the search's folder is the truth about which trials there are; each trial's own row says that it
is finished. Tune's snapshot of itself is not used to go on: it is up to ten seconds old, three files that may
disagree, and copied file by file, so that a killed driver can leave one that cannot be read. A rerun fills a new
study with the finished rows and asks for the unfinished trials first, in their old folders; their runs resume.
"""

import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import exceptions as ray_errors
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from lawm.cluster import evaluate as evaluation
from lawm.cluster import plan as planning
from lawm.cluster.filesystem import arrow_filesystem
from lawm.cluster.fit import fit
from lawm.cluster.fit import needs as training_needs
from lawm.cluster.search_space import METRICS, Choice, Row, Space, with_parameters
from lawm.cluster.session import Need, causes, check_resources, explain, on_this_node, say, verbose, watching
from lawm.config import Config, LawmError, leaf_fields, parse_config
from lawm.data import ClipReader, open_reader
from lawm.evaluation import Measured, record_results
from lawm.planning import Used, displaced, episode_values, preset, summarize_episodes
from lawm.report import (
    Details,
    Estimate,
    Plot,
    Section,
    Table,
    Text,
    command_line,
    format_number,
    machine,
    pareto_plot,
    pareto_set,
    write_report,
)
from lawm.storage import StorageError, absolute, exists, join, read_bytes, write_bytes
from lawm.training import ControllerObjective, LatentActionObjective, fit_local, read_about, settings

Progress = Callable[[int, int, str], None]

DRIVER_CPUS = 0.01
"""What Tune reserves for a trial's driver, which waits for its workers; Tune 2.60 refuses to reserve nothing."""
STUDY = "lawm"


# ---------------------------------------------------------------- what a search asks for
def needs(space: Space, config: Config) -> list[list[Need]]:
    """What the phases of a trial ask for, each for all trials that run at the same time."""
    phases = [training_needs(config, LatentActionObjective.kind), evaluation.needs(config)]
    if space.needs_controller:
        phases.append(training_needs(config, ControllerObjective.kind))
    if space.needs_planning:
        phases.append(planning.needs(config))
    many = min(space.max_concurrent, space.trials)
    held = driver_resources(config)
    drivers = Need("trial driver", many, held["CPU"], held.get("GPU", 0.0))
    return [[drivers, *[_times(need, many) for need in phase]] for phase in phases]


def driver_resources(config: Config) -> dict[str, float]:
    """What Tune reserves for a trial's driver: next to nothing, or a worker's share if it trains by itself."""
    cluster = config.cluster
    if cluster.workers:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})


def _times(need: Need, many: int) -> Need:
    return Need(need.what, need.count * many, need.cpus, need.gpus, need.role, need.lower)


def check(space: Space, config: Config) -> None:
    """Raises LawmError for what would spoil every trial: fields that are not there, data that are missing."""
    for name, dimension in space.space.items():
        for value in dimension.ends():
            with_parameters(config, {name: value})
    open_reader(config, LatentActionObjective.kind)
    labelled = [o.metric for o in space.objectives if METRICS[o.metric] in ("planning", "control", "probes")]
    if labelled:
        if config.data.labels is None:
            raise LawmError(f"{labelled[0]} needs labelled clips: give --labels, a Parquet table of actions")
        open_reader(config, ControllerObjective.kind)
    if len(ClipReader(config, config.evaluate.split).plan) < 2:
        raise LawmError("the evaluation needs two held-out clips; hold out more (data.val_fraction)")
    if space.needs_planning:
        reader = ClipReader(planning.episode_config(config), "val", labelled=True)
        clips = len(reader.plan)
        if reader.labels is not None and not displaced(reader.labels):
            raise LawmError(
                f"{config.data.labels}: planning_error is of translations, and the labels say of no number that it is "
                "one's displacement; write lawm.dimensions into them (docs/datasets.md), or choose other objectives"
            )
        if clips < config.plan.episodes:
            raise LawmError(
                f"plan.episodes = {config.plan.episodes}, and the held-out labelled videos hold {clips} clips of "
                f"{preset(config.plan).horizon + 1} frames; lower plan.episodes or raise data.val_fraction"
            )


# ---------------------------------------------------------------- the ledger
@dataclass
class Ledger:
    """`out`/search.json: the space, the config, and every trial that was ever asked for, in order."""

    out: str
    space: Space
    config: Config
    trials: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, out: str, space: Space, config: Config) -> "Ledger":
        """The ledger in `out`, or a new one. Raises LawmError where that of another search lies there."""
        ledger = cls(out, space, config)
        where = join(out, "search.json")
        if exists(where):
            try:
                said = json.loads(read_bytes(where))
                theirs, ours = (_identity(s) for s in (said, json.loads(ledger._text())))
                ledger.trials = said["trials"]
            except (ValueError, KeyError, TypeError) as error:
                raise LawmError(f"{where}: damaged ({error}); choose another --out, or remove it") from error
            differ = [
                f"{k} = {theirs.get(k)!r} there, {ours.get(k)!r} now"
                for k in sorted({*theirs, *ours})
                if theirs.get(k) != ours.get(k)
            ]
            if differ:
                raise LawmError(
                    f"{out} holds another search ({'; '.join(differ[:3])}); choose another --out, or remove it"
                )
        ledger.save()
        return ledger

    def _text(self) -> str:
        said = {"space": self.space.model_dump(mode="json"), "config": self.config.model_dump(mode="json")}
        return json.dumps(said | {"trials": self.trials}, indent=1)

    def save(self) -> None:
        write_bytes(join(self.out, "search.json"), self._text().encode())

    def add(self, trial: str, parameters: dict[str, Any]) -> None:
        self.trials.append({"trial": trial, "parameters": parameters})
        self.save()

    def row(self, trial: str) -> Row | None:
        return read_row(join(self.out, "trials", trial))

    def rows(self) -> list[Row]:
        """A row of every trial, in the order in which they were asked for; unfinished ones say so."""
        empty: Row = {"status": "unfinished", "reason": "", "seconds": None, "checkpoint": None, "results": {}}
        return [t | (self.row(t["trial"]) or empty) | {"number": i} for i, t in enumerate(self.trials)]


def _identity(said: dict[str, Any]) -> dict[str, Any]:
    """What must not change between runs of one search: all but how long it is and what it asks of the cluster."""
    space = {k: v for k, v in said["space"].items() if k not in ("trials", "max_concurrent", "recipe", "set")}
    fields = leaf_fields(parse_config(said["config"], "search.json"))
    return {f"space file's {k}": v for k, v in space.items()} | {
        k: v for k, v in fields if not k.startswith("cluster.")
    }


def read_row(folder: str) -> Row | None:
    where = join(folder, "trial.json")
    return json.loads(read_bytes(where)) if exists(where) else None


class Suggestions(OptunaSearch):
    """OptunaSearch that enters each trial into the ledger before it starts, and resumes those that are there."""

    def __init__(self, ledger: Ledger) -> None:
        space, rows = ledger.space, ledger.rows()
        storage = optuna.storages.InMemoryStorage()
        directions: list[Any] = ["minimize" if o.mode == "min" else "maximize" for o in space.objectives]
        study = optuna.create_study(storage=storage, study_name=STUDY, directions=directions)
        for row in rows:
            if row["status"] == "unfinished":
                study.enqueue_trial(row["parameters"], user_attrs={"trial": row["trial"]})
            else:
                values = list(space.told(row).values())
                study.add_trial(
                    optuna.trial.create_trial(
                        params=row["parameters"], distributions=space.distributions(), values=values
                    )
                )
        asked = [row["parameters"] for row in rows]
        for point in space.points:
            if point not in asked:
                study.enqueue_trial(point)
        self.ledger = ledger
        super().__init__(
            space.distributions(),
            metric=[o.metric for o in space.objectives],
            mode=[o.mode for o in space.objectives],
            study_name=STUDY,
            storage=storage,
            # The same seed again would draw the same first trials again.
            seed=space.seed + len(rows),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        super().suggest(trial_id)
        asked = self._ot_trials[trial_id]
        name = asked.user_attrs.get("trial")
        if name is None:
            name = trial_id
            self.ledger.add(name, dict(asked.params))
        return {"trial": name, "parameters": dict(asked.params)}


# ---------------------------------------------------------------- one trial
@ray.remote(num_cpus=0)
class Notes:
    """What the trials are doing, for the driver's progress line."""

    def __init__(self) -> None:
        self.latest: dict[str, str] = {}
        self.lines: list[str] = []

    def say(self, trial: str, line: str) -> None:
        """A line for the driver's terminal."""
        self.lines.append(f"trial {trial}: {line}")

    def take_lines(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken

    def put(self, trial: str, note: str) -> None:
        self.latest[trial] = note

    def done(self, trial: str) -> None:
        self.latest.pop(trial, None)

    def get(self) -> dict[str, str]:
        return self.latest


@dataclass(frozen=True)
class Job:
    """What all trials share."""

    out: str
    space: Space
    config: Config
    dataset: str | None
    notes: Any


def run_trial(given: dict[str, Any], job: Job) -> None:
    """A trial's driver: trains, evaluates, plans, writes its row, reports the objectives once.

    A LawmError (the loss diverged, the parameters cannot be) or too little memory makes the trial infeasible.
    Anything else is not the parameters' fault: it is raised, and Tune tries the trial again.
    """
    trial, parameters = given["trial"], given["parameters"]
    folder = join(job.out, "trials", trial)
    row = read_row(folder)
    if row is None:
        began = time.monotonic()
        row = {"status": "finished", "reason": "", "checkpoint": None, "controller": None, "results": {}}
        try:
            measure(job, trial, with_parameters(job.config, parameters), folder, row)
            row["reason"] = _missing(job.space, row["results"])
        except Exception as error:
            row["reason"] = fault_of_the_parameters(error)
            if not row["reason"]:
                raise
        finally:
            job.notes.done.remote(trial)
        row["status"] = "infeasible" if row["reason"] else "finished"
        row |= {"trial": trial, "parameters": parameters, "seconds": time.monotonic() - began}
        write_bytes(join(folder, "trial.json"), json.dumps(row, indent=1).encode())
    tune.report(job.space.told(row))


def measure(job: Job, trial: str, config: Config, folder: str, row: Row) -> None:
    """Fills `row` with checkpoints and results; what an interrupted trial has done is not done again."""

    def note(what: str) -> None:
        job.notes.put.remote(trial, what)

    def trained(kind: str, name: str, parent: str | None) -> str:
        note(name)
        run, steps = join(folder, name), settings(config, kind)[1].steps
        if config.cluster.workers:
            return fit(
                config,
                kind,
                run,
                parent,
                lambda figures: note(f"{name} {figures['step']}/{steps}"),
                lambda line: job.notes.say.remote(trial, line),
            )
        # Ray Train's local mode reports to the session that it finds, and Tune's refuses it.
        return fit_local(config, kind, run, parent, lambda step, _: note(f"{name} {step}/{steps}"))

    space = job.space
    model = trained(LatentActionObjective.kind, "model", None)
    row["checkpoint"] = model
    controller = None
    if space.needs_controller:
        controller = trained(ControllerObjective.kind, "controller", model)
        row["controller"] = controller
    note("evaluate")
    company = evaluation.Company(model, controller=controller)
    measured = evaluation.evaluate(config, company, space.which, job.dataset)
    row["results"] = {r.name: vars(r) for r in measured.results}
    if controller is not None and space.needs_planning:
        note("plan")
        rows = planning.plan_episodes(config, Used(model, controller), join(folder, "plan"))
        e, step = config.evaluate, int(read_about(model)["step"])
        name = planning.dataset_name(config, job.dataset, [model, controller])
        planned = summarize_episodes(rows, name, step, e.bootstrap, e.seed)
        measured += Measured(planned, kept=[episode_values(rows, name, step)])
        row["results"] |= {r.name: vars(r) for r in planned}
    record_results(join(folder, "model"), measured, join(folder, "model"), config)


def _missing(space: Space, results: dict[str, Any]) -> str:
    for objective in space.objectives:
        if objective.metric not in results:
            return f"{objective.metric}: this model has none"
        if not math.isfinite(results[objective.metric]["value"]):
            return f"{objective.metric}: {results[objective.metric]['value']}"
    return ""


def fault_of_the_parameters(error: Exception) -> str:
    """The reason why these parameters cannot be tried, or '' for what another try may mend."""
    for one in causes(error):
        first = " ".join(str(one).strip().partition("\n")[0].split())[:300]
        if isinstance(one, StorageError):
            return ""
        if isinstance(one, LawmError | ray_errors.OutOfMemoryError | ray_errors.ObjectStoreFullError):
            return " ".join((explain(one) or first).split())
        if "CUDA out of memory" in first:
            return first
    return ""


# ---------------------------------------------------------------- the search
def search(
    space: Space, config: Config, out: str, progress: Progress | None = None, dataset: str | None = None
) -> list[Row]:
    """Runs the trials that `out` lacks and returns a row of each, finished before or now.

    `config` is what all trials share (see `base_config`). `progress(done, total, note)` is called about twice a
    second. Writes `out`/trials.parquet, pareto.png and report.html. Raises LawmError: a space or data that cannot
    be, a folder of another search, too small a cluster, trials that failed for reasons that may pass.
    """
    out = absolute(out)
    check(space, config)
    for phase in needs(space, config):
        check_resources(phase, config.cluster)
    ledger = Ledger.open(out, space, config)
    done = sum(row["status"] != "unfinished" for row in ledger.rows())
    failures: list[str] = []
    if done < space.trials:
        failures = _run_trials(ledger, space.trials - done, progress, dataset)
    rows = ledger.rows()
    mark_pareto(space, rows)
    write_outputs(space, config, rows, out)
    if failures:
        raise LawmError(
            f"{len(failures)} of {space.trials} trials failed, and a rerun of the same command tries them again; the "
            f"first: {failures[0]}"
        )
    if not any(row["status"] == "finished" for row in rows):
        raise LawmError(f"none of {len(rows)} trials gave a result; the last: {rows[-1]['reason']}")
    return rows


def _run_trials(ledger: Ledger, count: int, progress: Progress | None, dataset: str | None) -> list[str]:
    """Runs `count` trials; returns why some of them have no row."""
    space, config = ledger.space, ledger.config
    # Tune's handler would wait for the running trials; an interrupt is for stopping, and a rerun resumes them.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not verbose():
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is said once, below
    notes = Notes.options(**on_this_node()).remote()  # type: ignore[attr-defined]
    job = Job(ledger.out, space, config, dataset, notes)
    filesystem, path = arrow_filesystem(join(ledger.out, "tune"))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, job=job), driver_resources(config)),
        tune_config=tune.TuneConfig(
            search_alg=Suggestions(ledger),
            num_samples=count,
            max_concurrent_trials=space.max_concurrent,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"from_{len(ledger.trials):04d}_{int(time.time())}",
            storage_path=path,
            storage_filesystem=filesystem,
            # For a driver that died with its node. Failing training workers have been restarted by Ray Train.
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    with _watching(ledger, notes, progress):
        grid = tuner.fit()
    failed = [grid[i] for i in range(len(grid)) if grid[i].error is not None]
    said = [explain(r.error) or str(r.error).strip().splitlines()[-1] for r in failed if r.error is not None]
    return [f"{' '.join(one.split())} (more in {r.path}/error.txt)" for one, r in zip(said, failed, strict=True)]


@contextmanager
def _watching(ledger: Ledger, notes: Any, progress: Progress | None) -> Iterator[None]:
    """Tells `progress` how many trials have a row, and what the others do, while the block runs; says what they say."""
    total = ledger.space.trials
    with_row: set[str] = set()

    def tell() -> None:
        for trial in [t["trial"] for t in list(ledger.trials)]:
            if trial not in with_row and exists(join(ledger.out, "trials", trial, "trial.json")):
                with_row.add(trial)
        for line in ray.get(notes.take_lines.remote(), timeout=5):
            say(line)
        running = ray.get(notes.get.remote(), timeout=5)
        notes_of = ", ".join(f"{t} {note}" for t, note in sorted(running.items()))
        if progress is not None:
            progress(len(with_row), total, f"trials; {notes_of}")

    with watching(tell):
        yield
    if progress is not None:
        progress(sum(row["status"] != "unfinished" for row in ledger.rows()), total, "trials")


# ---------------------------------------------------------------- what comes out
def mark_pareto(space: Space, rows: list[Row]) -> None:
    """Sets `pareto` in every row: no finished trial beats it in one objective without losing in the other."""
    best = {i for i in pareto_set(*_axes(space, rows), minimize=_minimize(space)) if rows[i]["status"] == "finished"}
    for i, row in enumerate(rows):
        row["pareto"] = i in best


def _minimize(space: Space) -> tuple[bool, bool]:
    return space.objectives[0].mode == "min", space.objectives[1].mode == "min"


def _axes(space: Space, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    def value(row: Row, metric: str) -> float:
        return row["results"][metric]["value"] if row["status"] == "finished" else math.nan

    x, y = ([value(row, o.metric) for row in rows] for o in space.objectives)
    return x, y


def trials_table(space: Space, rows: Sequence[Row]) -> pa.Table:
    """One row a trial: number, trial, parameters, objectives (with interval), other results, status and the rest."""
    objectives = [o.metric for o in space.objectives]
    others = sorted({name for row in rows for name in row["results"]} - {*objectives})

    def result(row: Row, name: str, part: str = "value") -> float | None:
        return row["results"][name][part] if name in row["results"] else None

    columns: dict[str, Any] = {k: [row[k] for row in rows] for k in ("number", "trial", "status", "reason")}
    columns["pareto"] = [row["pareto"] for row in rows]
    for name, dimension in space.space.items():
        values = [row["parameters"][name] for row in rows]
        mixed = isinstance(dimension, Choice) and len({type(v) for v in dimension.values}) > 1
        columns[name] = [str(v) for v in values] if mixed else values
    for name in objectives:
        for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            columns[name + suffix] = pa.array([result(row, name, part) for row in rows], pa.float64())
    for name in others:
        columns[name] = pa.array([result(row, name) for row in rows], pa.float64())
    columns["seconds"] = pa.array([row["seconds"] for row in rows], pa.float64())
    for name in ("checkpoint", "controller"):
        columns[name] = pa.array([row.get(name) for row in rows], pa.string())
    return pa.table(columns)


def shown_table(space: Space, rows: Sequence[Row], title: str = "trials") -> Table:
    """The trials for people: the Pareto set first, by the first objective."""
    sign = 1 if space.objectives[0].mode == "min" else -1

    def order(row: Row) -> tuple[Any, ...]:
        found = row["results"].get(space.objectives[0].metric, {}).get("value", math.nan)
        known = row["status"] == "finished"
        return not row["pareto"], not known, sign * found if known else 0, row["number"]

    lines = []
    for row in sorted(rows, key=order):
        found = [row["results"].get(o.metric) for o in space.objectives]
        cells = [Estimate(r["value"], r["low"], r["high"]) if r else None for r in found]
        parameters = [row["parameters"][name] for name in space.space]
        said = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        lines.append(["★" if row["pareto"] else "", row["trial"], *parameters, *cells, said])
    names = [f"{o.metric} {'↓' if o.mode == 'min' else '↑'}" for o in space.objectives]
    columns = ["", "Trial", *(short(name) for name in space.space), *names, "Status"]
    caption = "★ in the Pareto set. ↓ less, ↑ more is better. 95 % intervals over videos; one seed a trial."
    return Table(title, columns, lines, caption=caption)


def short(name: str) -> str:
    return name.rpartition(".")[2]


def write_outputs(space: Space, config: Config, rows: list[Row], out: str) -> None:
    """`out`/trials.parquet, pareto.png, report.html."""
    sink = io.BytesIO()
    pq.write_table(trials_table(space, rows), sink)
    write_bytes(join(out, "trials.parquet"), sink.getvalue())
    x, y = _axes(space, rows)
    labels = [
        ", ".join(f"{short(k)} {format_number(v) if isinstance(v, float) else v}" for k, v in row["parameters"].items())
        for row in rows
    ]
    axes: dict[str, Any] = {
        "x_label": f"{space.objectives[0].metric} ({space.objectives[0].mode})",
        "y_label": f"{space.objectives[1].metric} ({space.objectives[1].mode})",
        "labels": labels,
        "minimize": _minimize(space),
    }
    png = pareto_plot(x, y, **axes)
    write_bytes(join(out, "pareto.png"), png)
    searched = "\n\n".join(f"{k}: {d.model_dump()}" for k, d in space.space.items())
    sections: list[Section] = [
        Text("What was searched", f"{searched}\n\n{len(rows)} trials of {config.train.steps} steps, Optuna's TPE."),
        Plot("Pareto set", png, pareto_plot(x, y, **axes, dark=True)),
        shown_table(space, rows, "Trials"),
        Details("Space", space.model_dump(mode="json")),
        Details("Config", config.model_dump(mode="json")),
        Details("Machine", machine() | {"command": command_line()}),
    ]
    write_report(join(out, "report.html"), "Search", sections, f"{config.recipe} recipe")
