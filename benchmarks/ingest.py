"""Clips/s that arrive in a training worker through Ray Data, over clips/s of bare decoding on the same cores.

Bare decoding: as many processes as cores, each decoding its share of the same clips, nothing else. Through
Ray: index -> Ray Data -> decode tasks -> `iter_torch_batches` in a TorchTrainer worker that does nothing with
the batches, in the order of the plan, as one worker's training has it. Both are timed alternately, several times; each
run through Ray is held against the mean of the bare ones before and after it, because machines change their speed. In
order, clips arrive by turns: while one task is read, those beside it wait in the object store and then come at once.
So the clock starts and stops at the end of such a turn. Also measured: the peak memory of all processes together, the
object store's peak, and bytes spilled.

Whether memory stays flat (`--memory`: that alone): 10,000 clips of 16 frames at 96 x 96 from small files, all processes
and the object store sampled every second, in MiB over clips. A process counts with its own pages (Pss_Anon): pages of
files are shared with whatever else runs on the machine, and those of the object store, which Ray keeps once it has
touched them, count there. Growth is the mean over the last fifth of the clips less that over the second fifth.

    python -m benchmarks.ingest [--quick] [--memory] [--plot docs/ingest_memory.png]
"""

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import finish, machine, parser, spread
from benchmarks.decode import FPS, FRAMES, SIZE, write_film
from lawm.config import ClipSpec, ClusterConfig, Config, DataConfig, PixelsEncoder, TrainConfig, override

BATCH = 8
PACKAGES = ("lawm", "ray", "av", "torch")


def settings(index: str) -> Config:
    """Clips of the paper's form: 16 frames at 4 fps, 256 x 256. Decode tasks share the cores with the worker."""
    return Config(
        data=DataConfig(index=index, clip=ClipSpec(frames=FRAMES, fps=FPS, size=SIZE), val_fraction=0.0),
        encoder=PixelsEncoder(),
        train=TrainConfig(batch=BATCH),
        cluster=ClusterConfig(cpus_per_worker=0.01, decode_cpus=1.0),
    )


def decode_share(config: Config, first: int, step: int, clips: int, results: Any, ready: Any) -> None:
    """One bare process: decodes its clips once all processes are ready; reports its seconds."""
    from lawm.data import ClipReader

    reader = ClipReader(config)
    reader.sample(first)
    ready.wait(timeout=120)
    began = time.perf_counter()
    for position in range(first, clips, step):
        reader.sample(position)
    results.put(time.perf_counter() - began)


def bare_rate(config: Config, cores: int, clips: int) -> float:
    """Clips/s of `cores` processes that only decode."""
    context = multiprocessing.get_context("spawn")
    results, ready = context.Queue(), context.Barrier(cores)
    workers = [
        context.Process(target=decode_share, args=(config, i, cores, clips, results, ready)) for i in range(cores)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process of the bare measurement has failed; its traceback is above")
    return clips / max(results.get() for _ in workers)


@dataclass(frozen=True)
class Drained:
    """What a training worker noted: clips/s after the first `warm`, seconds to the first batch, and when it had how
    many clips (seconds of the system's clock)."""

    rate: float
    first_s: float
    times: list[float]
    counts: list[int]


def drain(loop: dict[str, Any]) -> None:
    """A training worker that takes `clips` clips after `warm` others, `step_s` seconds a batch at least, as if a GPU
    were at work while the processor is free; rank 0 leaves a Drained in the file `note`."""
    import ray.train

    from lawm.cluster.ingest import streamed_batches
    from lawm.data import Cursor

    clips, warm, batch = loop["clips"], loop["warm"], loop["batch"]
    started = time.time()
    times, counts = [], []
    taken, began, due = 0, 0.0, 0.0
    for found in streamed_batches(ray.train.get_dataset_shard("clips"), batch, Cursor(), 0.5, None):
        time.sleep(max(0.0, due - time.time()))
        due = time.time() + loop["step_s"]
        taken += len(found)
        times.append(time.time())
        counts.append(taken)
        if began == 0.0 and taken >= warm:
            began, warm = times[-1], taken
        if taken >= clips + warm:
            break
    if ray.train.get_context().get_world_rank() == 0:
        rate = (taken - warm) / (times[-1] - began)
        Path(loop["note"]).write_text(json.dumps([rate, times[0] - started, times, counts]))


def through_ray(
    config: Config, clips: int, warm: int, folder: Path, step_s: float = 0.0, batch: int = BATCH
) -> Drained:
    """What rank 0 of the config's training workers gets through Ray Data: `clips` clips, `batch` at once."""
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import ScalingConfig

    from lawm.cluster.ingest import clip_dataset, shard_options
    from lawm.cluster.session import TRAIN, label_selector
    from lawm.data import Cursor

    note, workers = folder / "drained", config.cluster.workers
    TorchTrainer(
        drain,
        train_loop_config={"clips": clips, "warm": warm, "note": str(note), "step_s": step_s, "batch": batch},
        scaling_config=ScalingConfig(
            num_workers=workers,
            resources_per_worker={"CPU": config.cluster.cpus_per_worker},
            label_selector=label_selector(config.cluster, TRAIN) or None,
        ),
        run_config=RunConfig(storage_path=str(folder / "runs")),
        datasets={"clips": lambda: clip_dataset(config, "latent_action", Cursor(), 2 * workers * (clips + warm))},
        dataset_config=shard_options(config.cluster),
    ).fit()
    return Drained(*json.loads(note.read_text()))


@dataclass(frozen=True)
class Look:
    """Memory at one moment, MiB: own pages of the kinds of processes, and what is in use of the object store."""

    at: float
    own: dict[str, float]
    store: float

    @property
    def total(self) -> float:
        return sum(self.own.values())


class MemoryWatch:
    """Looks every `period_s` at this process and all below it. `peak`: of their Pss, files and store included."""

    def __init__(self, session: Any, period_s: float) -> None:
        self.peak = 0.0
        self.looks: list[Look] = []
        self._session, self._period_s = session, period_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._period_s):  # a look costs tens of milliseconds
            own: dict[str, float] = {}
            everything = 0.0
            for pid in family(os.getpid()):
                mine, all_of_it = memory_mib(pid)
                own[kind_of(pid)] = own.get(kind_of(pid), 0.0) + mine
                everything += all_of_it
            look = Look(time.time(), own, self._session.memory_report().used_store_bytes / 2**20)
            self.looks.append(look)
            self.peak = max(self.peak, everything)


def kind_of(pid: int) -> str:
    """What a process of a local Ray is for."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "ended"
    if pid == os.getpid():
        return "driver"
    if "ray::" not in line:
        return "Ray's servers"
    name = line.partition("ray::")[2].split(".")[0].split(":")[0].split()[0]
    return "decode workers" if name == "IDLE" or "MapBatches" in name else name


def family(root: int) -> list[int]:
    """`root` and every process below it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [root]
    while queue:
        one = queue.pop()
        found.append(one)
        queue += parents.get(one, [])
    return found


def memory_mib(pid: int) -> tuple[float, float]:
    """(Pages of its own, Pss) of a process; Pss has its share of common pages as well. 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return found["Pss_Anon"], found["Pss"]


@dataclass(frozen=True)
class MemoryRun:
    """Looks at a run of `clips` clips, and how many clips it had had at each."""

    clips: int
    rate: float
    looks: list[Look]
    taken: list[float]

    def growth(self, of: Callable[[Look], float]) -> float:
        """Mean over the last fifth of the clips less that over the second."""
        share = np.array(self.taken) / self.clips
        values = np.array([of(look) for look in self.looks])
        second, last = (share >= 0.2) & (share < 0.4), share >= 0.8
        if not second.any() or not last.any():
            raise RuntimeError("the run was too short for its memory to be looked at; give it more clips")
        return float(values[last].mean() - values[second].mean())

    def growth_of(self, kind: str) -> float:
        return self.growth(lambda look: look.own.get(kind, 0.0))

    def figures(self) -> dict[str, Any]:
        kinds = sorted({kind for look in self.looks for kind in look.own} - {"ended"})
        ours = ("decode workers", "RayTrainWorker", "driver")
        return {
            "rss_growth_mib": round(self.growth(lambda look: look.total), 1),
            "rss_growth_mib_where_lawm_runs": round(sum(self.growth_of(kind) for kind in ours), 1),
            "store_growth_mib": round(self.growth(lambda look: look.store), 1),
            "rss_mib": round(float(np.median([look.total for look in self.looks]))),
            "store_mib": round(float(np.median([look.store for look in self.looks])), 1),
            "rss_growth_mib_of": {k: round(self.growth_of(k), 1) for k in kinds},
            "clips": self.clips,
            "clips_per_second": round(self.rate, 1),
        }


def memory_run(session: Any, folder: Path, cores: int, clips: int) -> MemoryRun:
    """Streams `clips` small clips into a training worker and looks at the memory meanwhile."""
    from lawm.cluster.index import build_index

    (folder / "small").mkdir()
    for i in range(8):
        write_film(folder / "small" / f"{i}.mp4", 160, 120, 300, 30)
    index = str(folder / "small.parquet")
    config = override(settings(index), "data.clip.size", 96)
    config = override(config, "cluster.decode_cpus", (cores + 0.9) / 2)  # two slots on any machine
    build_index([str(folder / "small")], index, config)
    with MemoryWatch(session, 1.0) as memory:
        found = through_ray(config, clips, 0, folder)
    looks = [look for look in memory.looks if found.times[0] <= look.at <= found.times[-1]]
    taken = np.interp([look.at for look in looks], found.times, found.counts)
    return MemoryRun(found.counts[-1], found.rate, looks, taken.tolist())


def draw(run: MemoryRun, path: Path) -> None:
    """A picture of the run: own memory of the kinds of processes, stacked, and the object store."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    ours = {"decode workers": "decode workers", "RayTrainWorker": "training worker", "driver": "driver"}
    rest = [sum(mib for kind, mib in look.own.items() if kind not in ours) for look in run.looks]
    rows = [rest, *([look.own.get(kind, 0.0) for look in run.looks] for kind in ours)]
    axes.stackplot(run.taken, rows, labels=["Ray's servers and actors", *ours.values()], alpha=0.8)
    axes.plot(run.taken, [look.store for look in run.looks], color="black", label="object store, in use")
    axes.set(xlabel="clips that have reached the training worker", ylabel="MiB", ylim=0, xlim=(0, run.clips))
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[-2::-1] + handles[-1:], names[-2::-1] + names[-1:], loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def rates(session: Any, folder: Path, cores: int, rounds: int, turns: int, films: int) -> dict[str, Any]:
    """Clips/s of bare decoding and through Ray, alternately; bare decoding first and last. `turns` of as many tasks as
    cores are timed, after another. Memory in a run of its own: a look at every process costs a core tens of
    milliseconds."""
    from lawm.cluster.index import build_index
    from lawm.cluster.ingest import TASK_BYTES

    warm = cores * (TASK_BYTES // (FRAMES * 3 * SIZE**2))
    clips = turns * warm
    (folder / "films").mkdir()
    for i in range(films):
        write_film(folder / "films" / f"{i:03d}.mp4", 640, 360, 600, 30)
    config = settings(str(folder / "index.parquet"))
    through, first = [], []
    build_index([str(folder / "films")], str(folder / "index.parquet"), config)
    bare = [bare_rate(config, cores, clips)]
    for turn in range(rounds):
        found = through_ray(config, clips, warm, folder)
        through.append(found.rate)
        first.append(found.first_s)
        bare.append(bare_rate(config, cores, clips))
        said = f"bare {bare[-2]:.1f} and {bare[-1]:.1f} clips/s, Ray {found.rate:.1f}"
        print(f"round {turn + 1}: {said}, first batch {found.first_s:.1f} s", flush=True)
    with MemoryWatch(session, 2.0) as memory:
        through_ray(config, warm, 0, folder)
    store = session.memory_report()
    print(store)
    ratio = spread([2 * ray / (before + after) for ray, (before, after) in zip(through, pairwise(bare), strict=True)])
    return {
        "vs_bare_decode": ratio["median"],
        "vs_bare_decode_spread": ratio,
        "bare_clips_per_second": spread(bare),
        "ray_clips_per_second": spread(through),
        "seconds_to_first_batch": spread(first),
        "peak_rss_mib": round(memory.peak),
        "peak_object_store_mib": round(store.peak_store_bytes / 2**20),
        "spilled_mib": round(store.spilled_bytes / 2**20),
        "clips": clips,
        "rounds": rounds,
    }


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--memory", action="store_true", help="only whether memory stays flat over 10,000 clips")
    options.add_argument("--plot", type=Path, metavar="PATH", help="draw memory over clips there (PNG or SVG)")
    args = options.parse_args(argv)
    used = machine()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from lawm.cluster.session import start

    figures: dict[str, Any] = {}
    cores = used["cores"]
    with tempfile.TemporaryDirectory() as name, start(ClusterConfig(), num_cpus=cores + 1) as session:
        folder = Path(name)
        if not args.memory:
            figures = rates(session, folder, cores, *((1, 1, 1) if args.quick else (5, 4, 12)))
        run = memory_run(session, folder, cores, 1500 if args.quick else 10_000)
    found = run.figures()
    print(f"memory over {run.clips} clips: {found}")
    if args.plot:
        draw(run, args.plot)
    finish("ingest", figures | {"rss_growth_mib": found["rss_growth_mib"], "memory": found}, PACKAGES, used)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
