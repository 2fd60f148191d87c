"""Clips/s that arrive in a training worker through Ray Data, over clips/s of bare decoding on the same cores.

Bare decoding: as many processes as cores, each decoding its share of the same clips, nothing else. Through
Ray: index -> Ray Data -> decode tasks -> `iter_torch_batches` in a TorchTrainer worker that does nothing with
the batches. Both are timed from the first batch on, alternately, several times. Also measured: the peak
memory of all processes together, the object store's peak, and bytes spilled.

    python -m benchmarks.ingest [--quick]
"""

import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks._common import finish, machine, parser, spread
from benchmarks.decode import write_film
from lawm.config import ClipSpec, ClusterConfig, Config, DataConfig, PixelsEncoder, TrainConfig

BATCH = 8
WARM = 128
"""Clips before the clock starts: every decode process has started and ended a task."""


def settings(index: str, cores: int) -> Config:
    """Clips of the paper's form: 16 frames at 4 fps, 256 x 256. Decode tasks share the cores with the worker."""
    return Config(
        data=DataConfig(index=index, clip=ClipSpec(frames=16, fps=4.0, size=256), val_fraction=0.0),
        encoder=PixelsEncoder(),
        train=TrainConfig(batch=BATCH),
        cluster=ClusterConfig(cpus_per_worker=0.01, decode_cpus=1.0),
    )


def decode_share(config: Config, first: int, step: int, clips: int, results: Any, ready: Any) -> None:
    """One bare process: decodes its clips once all processes are ready; reports its seconds."""
    from lawm.clips import ClipReader

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


def drain(loop: dict[str, Any]) -> None:
    """A training worker that takes `clips` clips and notes the rate after the first batches."""
    import ray.train

    from lawm.cluster.ingest import streamed_batches

    config, clips = loop["config"], loop["clips"]
    from lawm.sampling import Cursor

    taken, began, first_after = 0, 0.0, time.perf_counter()
    for batch in streamed_batches(ray.train.get_dataset_shard("clips"), BATCH, Cursor(), 0.5, None):
        if taken == 0:
            first_after = time.perf_counter() - first_after
        taken += len(batch)
        if taken == loop["warm"]:
            began = time.perf_counter()
        if taken >= clips + loop["warm"]:
            break
    rate = clips / (time.perf_counter() - began)
    Path(loop["note"]).write_text(f"{rate} {first_after}")
    assert config.train.batch == BATCH


def ray_rate(config: Config, clips: int, warm: int, folder: Path) -> tuple[float, float]:
    """(clips/s in a TorchTrainer worker, seconds to its first batch)."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from lawm.cluster.ingest import clip_dataset
    from lawm.sampling import Cursor

    note = folder / "rate"
    TorchTrainer(
        drain,
        train_loop_config={"config": config, "clips": clips, "warm": warm, "note": str(note)},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": config.cluster.cpus_per_worker}),
        run_config=RunConfig(storage_path=str(folder / "runs")),
        datasets={"clips": lambda: clip_dataset(config, "latent_action", Cursor(), 2 * (clips + warm))},
    ).fit()
    rate, first = note.read_text().split()
    return float(rate), float(first)


class MemoryWatch:
    """Peak of the resident memory of this process and all below it, in MiB (shared pages counted once, by PSS)."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(4.0):  # a look costs tens of milliseconds
            self.peak = max(self.peak, sum(map(pss_mib, family(os.getpid()))))


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


def pss_mib(pid: int) -> float:
    """Proportional resident memory of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__).parse_args(argv)
    rounds, clips, films = (1, 128, 1) if args.quick else (3, 640, 12)
    from lawm.cluster.index import build_index
    from lawm.cluster.session import start

    used = machine()
    cores = used["cores"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "films").mkdir()
        for i in range(films):
            write_film(folder / "films" / f"{i:03d}.mp4", 640, 360, 600, 30)
        config = settings(str(folder / "index.parquet"), cores)
        bare, through, first = [], [], []
        with start(config.cluster, num_cpus=cores + 1) as session, MemoryWatch() as memory:
            build_index([str(folder / "films")], str(folder / "index.parquet"), config)
            for turn in range(rounds):
                bare.append(bare_rate(config, cores, clips))
                rate, seconds = ray_rate(config, clips, WARM, folder)
                through.append(rate)
                first.append(seconds)
                print(f"round {turn + 1}: bare {bare[-1]:.1f} clips/s, Ray {rate:.1f}, first batch {seconds:.1f} s")
            store = session.memory_report()
    print(store)
    figures = {
        "vs_bare_decode": spread([t / b for t, b in zip(through, bare, strict=True)])["median"],
        "vs_bare_decode_spread": spread([t / b for t, b in zip(through, bare, strict=True)]),
        "bare_clips_per_second": spread(bare),
        "ray_clips_per_second": spread(through),
        "seconds_to_first_batch": spread(first),
        "peak_rss_mib": round(memory.peak),
        "peak_object_store_mib": round(store.peak_store_bytes / 2**20),
        "spilled_mib": round(store.spilled_bytes / 2**20),
        "clips": clips,
        "rounds": rounds,
    }
    finish("ingest", figures, ("lawm", "ray", "av", "torch"), used)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
