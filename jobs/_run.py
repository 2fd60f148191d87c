"""What the jobs share that train, evaluate or plan: their data arguments, their progress lines, their dry run."""

import argparse
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jobs._cli import describe, resolve_config, say
from lawm import storage
from lawm.config import Config, LawmError, differing_fields, override, parse_config
from lawm.recipes import recipe

if TYPE_CHECKING:
    from lawm.evaluation import Measured


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data (each is short for --set data.NAME=...)")
    group.add_argument("--index", metavar="URI", help="an index written by `lawm index`")
    group.add_argument("--cache", metavar="URI", help="a state cache written by `lawm encode`")
    group.add_argument(
        "--mix",
        action="append",
        default=[],
        metavar="INDEX=WEIGHT",
        help="an index (or a cache folder) and its share of the clips; give it once for each source of a mixture",
    )
    group.add_argument("--labels", metavar="URI", help="a Parquet table of actions, as `lawm simulate` writes it")


SOURCES: dict[str, Any] = {"index": None, "cache": None, "mixture": []}
"""What names the clips, and its value where it does not."""


def with_data(config: Config, args: argparse.Namespace) -> Config:
    """The config with --index, --cache, --mix and --labels put in, as absolute URIs. Where one of them, or a --set of
    the same field, names the clips, those of `config` (what a checkpoint was trained on) are named no longer."""
    if args.mix and (args.index or args.cache):
        raise LawmError("give --index or --cache, or --mix for each source, not both")
    given: dict[str, Any] = {n: storage.absolute(v) for n in ("index", "cache", "labels") if (v := getattr(args, n))}
    if args.mix:
        given["mixture"] = [mixed(one) for one in args.mix]
    settings = (one.partition("=") for one in args.overrides)
    asked = {*given, *(path.strip().removeprefix("data.") for path, _, value in settings if value.strip() != "null")}
    if asked & set(SOURCES):
        given = {name: none for name, none in SOURCES.items() if name not in asked} | given
    for name, value in given.items():
        config = override(config, f"data.{name}", value)
    return config


def mixed(given: str) -> dict[str, Any]:
    """'URI=WEIGHT' -> a source of a mixture."""
    uri, equals, weight = given.rpartition("=")
    try:
        share = float(weight)
    except ValueError:
        equals = ""
    if not equals or not uri:
        raise LawmError(f"--mix {given}: expected INDEX=WEIGHT, as in --mix droid.parquet=0.25")
    return clips_at(uri) | {"weight": share}


def clips_at(uri: str) -> dict[str, Any]:
    """The field of `data` that a URI is for: one that ends in .parquet is an index, another one a cache."""
    return {"index" if uri.endswith(".parquet") else "cache": storage.absolute(uri)}


def checkpoint_config(args: argparse.Namespace) -> Config:
    """The config of --checkpoint with the data arguments and every --set applied. With --recipe, that recipe's
    controller, decoder, evaluation, planning and cluster; the model and its clips are the checkpoint's."""
    from lawm.training import CHILDREN, config_in_use, read_about

    trained = base = parse_config(read_about(args.checkpoint)["config"], args.checkpoint)
    if args.recipe:
        other = recipe(args.recipe)
        parts = (*CHILDREN, "evaluate", "plan", "cluster")
        base = base.model_copy(update={part: getattr(other, part) for part in parts})
    config = resolve_config(args, with_data(base, args))
    config_in_use(trained, config, args.checkpoint)
    return config


def progress_bar(console: Console | None = None) -> Progress:
    """A line with bar, counts, time taken and an estimate of the time left; silent where there is no terminal."""
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
        disable=not console.is_terminal,
    )


Show = Callable[..., None]


@contextmanager
def counted(*titles: str) -> Iterator[Any]:
    """Yields show(done, total, note="") for a progress line, or a list of them for several titles.

    Off a terminal, prints a line now and then, with the time that is left.
    """
    bar = progress_bar()

    def shower(title: str) -> Show:
        task = bar.add_task(title, total=None, note="")
        said = [0.0, -1.0]
        pace = Pace()

        def show(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)
            left = pace.left(time.monotonic(), done, total)
            if bar.disable and done != said[1] and (time.monotonic() - said[0] > 15 or done == total):
                said[:] = time.monotonic(), done
                rest = "" if left is None else f"about {spoken(left)} left"
                print(f"{title}: {done} of {total} {', '.join(filter(None, (note, rest)))}".rstrip(), flush=True)

        return show

    with bar:
        shows = [shower(title) for title in titles]
        yield shows if len(shows) > 1 else shows[0]


class Pace:
    """How long what is left will take at the pace so far. The clock starts with the first count that moves: what comes
    before that is the start. A count that falls back, as after a restart, starts it anew."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._began: tuple[float, int] | None = None

    def left(self, now: float, done: int, total: int) -> float | None:
        """Seconds; None where nothing can be said, or nothing is left."""
        last, self._last = self._last, done
        if last is None or done < last:
            self._began = None
        elif self._began is None and done > last:
            self._began = now, done
        elif self._began is not None and self._began[1] < done < total:
            return (total - done) * (now - self._began[0]) / (done - self._began[1])
        return None


def spoken(seconds: float) -> str:
    """40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def training_note(figures: dict[str, Any]) -> str:
    """loss, clips/s and quarantined clips of a training step, as one short text; COLLAPSED where latents have."""
    from lawm.model import collapse_warning

    parts = []
    if "loss" in figures:
        parts.append(f"loss {figures['loss']:.4f}")
    if "val_prediction" in figures:
        parts.append(f"val {figures['val_prediction']:.4f}")
    if "clips_per_second" in figures:
        rate = figures["clips_per_second"]
        parts.append(f"{rate:.0f} clips/s" if rate >= 10 else f"{rate:.2g} clips/s")
    if figures.get("data_wait_share", 0.0) >= 0.1:
        parts.append(f"{figures['data_wait_share']:.0%} waiting for clips")
    if collapse_warning(figures):
        parts.append("COLLAPSED")
    if figures.get("quarantined"):
        parts.append(f"{figures['quarantined']} bad clips")
    if figures.get("val_refused"):
        parts.append(f"{figures['val_refused']:.0f} held-out clips cannot be read")
    return ", ".join(parts)


@dataclass(frozen=True)
class Fit:
    """One training run: `title` for its progress line."""

    title: str
    config: Config
    kind: str
    out: str
    parent: str | None = None


def train_on_ray(*fits: Fit) -> list[str]:
    """Trains inside an open session, several runs side by side, each with a progress line; newest checkpoints."""
    from lawm.cluster.fit import fit
    from lawm.training import settings

    def one(job: Fit, show: Show) -> str:
        _, loop = settings(job.config, job.kind)

        def progress(figures: dict[str, Any]) -> None:
            show(int(figures["step"]), loop.steps, training_note(figures))

        return fit(job.config, job.kind, job.out, job.parent, progress)

    with counted(*(job.title for job in fits)) as shows:
        if len(fits) == 1:
            return [one(fits[0], shows)]
        with ThreadPoolExecutor(len(fits)) as pool:
            return list(pool.map(one, fits, shows))


def train_plainly(job: Fit) -> str:
    """The same without Ray, in this process."""
    from lawm.training import fit_local, settings

    _, loop = settings(job.config, job.kind)
    with counted(job.title) as show:
        return fit_local(
            job.config, job.kind, job.out, job.parent, lambda step, m: show(step, loop.steps, training_note(m))
        )


def run_training(
    args: argparse.Namespace,
    config: Config,
    kind: str,
    parent: str | None,
    videos: Sequence[str] = (),
    members: Sequence[Config] = (),
) -> int:
    """The body of `lawm train`, `lawm controller` and `lawm decoder`. `members`: configs of a population."""
    from lawm.cluster.session import start
    from lawm.data import data_lines
    from lawm.model import collapse_warning
    from lawm.training import check_fine_tuning, local_batch, read_about, settings

    out = storage.absolute(args.out)
    _, loop = settings(config, kind)
    local_batch(loop, max(config.cluster.workers, 1))
    runs = [storage.join(out, f"member-{i}") for i in range(len(members))] or [out]
    if members:
        from lawm.training import check_population

        check_population(list(members))
    for one in members or [config]:
        check_fine_tuning(one)
    if args.dry_run:
        describe_training(config, kind, out, runs, videos, members, parent, args.plain)
        return 0
    storage.check_folder(out)
    with start(config.cluster) if videos or not args.plain else nullcontext() as session:
        if videos:
            from lawm.cluster.index import build_index, check_places

            where = storage.join(out, "index.parquet")
            check_places(videos, where)
            report = index_for_run(videos, out, config, build_index, runs)
            say(f"{report.usable} of {report.videos} videos can be used. Index: {where}")
            config = override(config, "data.index", where)
            members = [override(member, "data.index", where) for member in members]
        for line in [*data_lines(config, kind), *standing(members or [config], kind, runs)]:
            print(line)
        if members:
            checkpoints = train_members(members, runs, args.plain)
        else:
            job = Fit(kind.replace("_", " "), config, kind, out, parent)
            checkpoints = [train_plainly(job) if args.plain else train_on_ray(job)[0]]
        for checkpoint in checkpoints:
            say(f"checkpoint: {checkpoint}")
            warning = collapse_warning(read_about(checkpoint)["metrics"])
            if warning:
                Console(stderr=True, soft_wrap=True).print(f"warning: {warning}", style="bold yellow", highlight=False)
        if session is not None and not args.plain:
            print(session.memory_report())
        bad = quarantined(runs[0])
        if bad:
            listed = storage.join(runs[0], "quarantine.jsonl")
            say(f"{len(bad)} clips were refused, listed in {listed}; the last: {bad[-1]}")
        split = read_about(checkpoints[0])["extra"].get("split")  # the index is not read again for it
        held_out = split is None or split["held_out"]["videos"] > 0
        print(f"next: {next_step(kind, checkpoints[0], parent, held_out)}")
    return 0


def standing(configs: Sequence[Config], kind: str, runs: list[str]) -> list[str]:
    """What is said of a run, or of a population's first member, that is there already."""
    from lawm.training import check_same_run, common_checkpoints, standing_lines, stopped_members

    for one, run in zip(configs, runs, strict=True):
        check_same_run(one, kind, run)
    stopped = stopped_members(runs, list(configs)) if len(runs) > 1 else {}
    left = [run for i, run in enumerate(runs) if i not in stopped]
    return standing_lines(configs[0], kind, common_checkpoints(left)[0]) if left else []


def next_step(kind: str, checkpoint: str, parent: str | None, held_out: bool = True) -> str:
    """What can be done with a trained checkpoint, as commands to be copied."""
    run = shlex.quote(checkpoint.rpartition("/")[0])
    if kind == "latent_action":
        every = "" if held_out else " --set evaluate.split=all"
        return f"lawm evaluate --checkpoint {run}{every}, or lawm decoder --checkpoint {run} for pictures"
    model = shlex.quote(str(parent))
    if kind in ("prior", "policy"):
        more = " --set plan.over=prior" if kind == "prior" else ""
        return f"lawm plan --checkpoint {model} --controller CONTROLLER --{kind} {run}{more}"
    if kind == "decoder":
        return f"lawm report --checkpoint {model} --decoder {run}"
    return (
        f"lawm evaluate --checkpoint {model} --controller {run}, or lawm plan --checkpoint {model} --controller {run}; "
        f"pictures take a decoder: lawm decoder --checkpoint {model}"
    )


def beside(args: argparse.Namespace, kind: str) -> None:
    """Puts the run folder of what stands on a model, and has no --out, beside the model's: RUN-controller."""
    from lawm.training import run_of

    if args.out is None:
        args.out = f"{run_of(args.checkpoint)}-{kind}"


ANEW = "A run that was made longer needs its decoder and controller anew: remove them, or give another --out"


def child_of(model: str, kind: str) -> str | None:
    """The decoder or controller of a run, or of a checkpoint in it, where it lies beside the run under a usual name and
    belongs to that checkpoint."""
    from lawm.training import read_about, run_of

    fingerprint, run = read_about(model)["fingerprint"], run_of(model)
    place = run.rpartition("/")[0]
    for where in (f"{run}-{kind}", storage.join(run, kind), storage.join(place, kind)):
        if not storage.exists(where):
            continue
        with suppress(LawmError):  # no finished checkpoint is there, or another's
            about = read_about(where)
            if about["kind"] == kind and (about["parent"] or {}).get("fingerprint") == fingerprint:
                return where
    return None


def describe_training(
    config: Config,
    kind: str,
    out: str,
    runs: list[str],
    videos: Sequence[str],
    members: Sequence[Config],
    parent: str | None,
    plain: bool,
) -> None:
    """The dry run of a training job: looks at all that the run would refuse, and prints what it would do."""
    from lawm.cluster.fit import needs
    from lawm.data import data_lines, open_reader
    from lawm.model import load_encoder
    from lawm.training import parameter_counts, settings

    _, loop = settings(config, kind)
    stands = standing(members or [config], kind, runs)
    storage.check_folder(out)
    if kind != "latent_action":
        check_objective(config, kind)
    if videos:
        from lawm.cluster.index import check_places

        check_places(videos, storage.join(out, "index.parquet"))
    clips: int | None = None
    reader = None
    if config.data.given:
        reader = open_reader(config, kind)
        clips = len(reader.plan)
        if getattr(config.encoder, "weights", "") != "pretrained":  # a dry run downloads nothing
            encoder = load_encoder(config.encoder, config.data.clip)
            for cache in reader.caches:
                cache.check(config, encoder.fingerprint())
        for member in members:
            open_reader(member, kind)
    for member in members:
        parameter_counts(member)  # builds it
    counts = {name: f"{count:,}" for name, count in parameter_counts(config).items()}
    more = {"clips_trained_on": loop.steps * loop.batch, "parameters": counts, "videos": list(videos), "out": out}
    if stands:
        more["stands"] = stands
    more["time"] = time_line(config, kind, reader, parent, runs[0], plain, max(len(members), 1))
    if config.data.given:
        more["data"] = data_lines(config, kind)
    if members:
        more["members"] = {
            run: {path: ours for path, (ours, _) in differing_fields(member, config).items()}
            for run, member in zip(runs, members, strict=True)
        }
    describe(config, needs(config, kind), clips, **more)


def time_line(config: Config, kind: str, reader: Any, parent: str | None, run: str, plain: bool, members: int) -> str:
    """How long a run will take on this machine, measured over a few of its steps; or why that is not known."""
    import torch

    from lawm.training import measured, newest_checkpoint, read_about

    cluster = config.cluster
    threads, workers = torch.get_num_threads(), 1 if plain else max(cluster.workers, 1)
    newest = newest_checkpoint(run)
    try:
        if cluster.gpus_per_worker and not torch.cuda.is_available():
            raise LawmError("the run asks for GPUs, and this machine has none")
        if not plain and cluster.workers:
            torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
        done = read_about(newest)["step"] if newest else 0
        found = measured(config, kind, reader, parent, done, workers)
    except LawmError as error:
        return f"not estimated: {error}. The log says how long is left once steps are done"
    finally:
        torch.set_num_threads(threads)
    found = replace(found, train_s=found.train_s * members)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = 1 if plain else int((cores - workers * cluster.cpus_per_worker) / cluster.decode_cpus)
    readers = 0 if config.data.cached or cores == 1 else max(free, 1)
    reading = "" if found.read_s is None else f", reading a batch {found.read_s:.2g} s in one of {max(readers, 1)}"
    unread = ", without reading: the videos are not indexed yet" if found.read_s is None else ""
    return (
        f"about {spoken(found.seconds(readers))} on this machine for {found.steps:,} steps (training "
        f"{found.train_s:.2g} s a step{reading}{unread}); an estimate from a few steps, without start and checkpoints"
    )


def check_objective(config: Config, kind: str) -> None:
    """Raises LawmError where a controller or decoder of that model cannot be trained on those clips."""
    from lawm.model import check_state_a_frame

    if kind == "controller":
        check_state_a_frame(config.encoder, config.data.clip)
        if config.data.labels is None and not config.data.mixture:
            raise LawmError("a controller needs labelled clips: set data.labels")


def train_members(members: Sequence[Config], runs: list[str], plain: bool) -> list[str]:
    """Trains a population, with a progress line for the figures of its first member; newest checkpoints."""
    from lawm.cluster.fit import fit_population
    from lawm.training import fit_population_local

    steps = members[0].train.steps

    with counted(f"{len(members)} latent action models") as show:
        if plain:
            return fit_population_local(list(members), runs, lambda step, m: show(step, steps, training_note(m)))
        return fit_population(list(members), runs, lambda m: show(int(m["step"]), steps, training_note(m)))


def index_for_run(
    videos: Sequence[str], out: str, config: Config, build: Callable[..., Any], runs: Sequence[str]
) -> Any:
    """Indexes the videos of `runs`. Where they have checkpoints, the index is replaced by an equal one only."""
    from lawm.data import read_index
    from lawm.training import newest_checkpoint

    where = storage.join(out, "index.parquet")
    # A population and a single run may have lain in one folder.
    others = (
        {uri.rsplit("/step_", 1)[0] for uri, _ in storage.list_files(out, ("checkpoint.json",))}
        if (storage.exists(out))
        else set()
    )
    if not any(map(newest_checkpoint, {*runs, *others})) or not storage.exists(where):
        return build(videos, where, config)
    candidate = storage.join(out, "candidate.parquet")
    report = build(videos, candidate, config)
    same = read_index(candidate).fingerprint() == read_index(where).fingerprint()
    storage.delete(candidate)
    if not same:
        raise LawmError(f"{out} holds a run on other videos than these; choose another --out, or remove it")
    return report


def json_lines(where: str) -> list[dict[str, Any]]:
    """The objects of a run's file, one a line; empty where there is none."""
    import json

    found = []
    for line in storage.read_bytes(where).decode(errors="replace").splitlines() if storage.exists(where) else ():
        with suppress(ValueError):  # the last line of a run that writes just now, or was killed while it wrote
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


def quarantined(out: str) -> list[str]:
    """`key: reason` of every refused clip of a run."""
    rows = json_lines(storage.join(out, "quarantine.jsonl"))
    return [f"{row['key']}: {row['reason']}" for row in rows if row.keys() >= {"key", "reason"}]


def read_results(where: str) -> "Measured":
    """What `lawm evaluate` or `lawm plan` wrote. Raises LawmError for anything else."""
    import json

    from lawm.evaluation import from_json

    try:
        data = json.loads(storage.read_bytes(where))
    except ValueError as error:
        raise LawmError(f"{where}: not a results file ({error})") from error
    return from_json(data, where)


def write_results(where: str, measured: "Measured") -> None:
    """Results as JSON."""
    import json

    from lawm.evaluation import to_json

    storage.write_bytes(where, json.dumps(to_json(measured), indent=1).encode())


def record(where: str, measured: "Measured", checkpoint: str) -> str:
    """Adds results of a checkpoint, which are written to `where`, to the table of its run; beside them, where they are
    kept elsewhere. Returns where the table is."""
    from lawm.evaluation import record_results
    from lawm.training import read_about, run_of

    run = run_of(storage.absolute(checkpoint))
    folder = run if where.startswith(f"{run}/") else where.rpartition("/")[0]
    return record_results(folder, measured, run, parse_config(read_about(checkpoint)["config"], checkpoint))
