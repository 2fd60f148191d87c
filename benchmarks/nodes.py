"""Clips/s in the trainer against the number of decode nodes, and how many nodes a large run needs.

**Growth.** A Ray cluster of several nodes on this machine (`benchmarks/_nodes.py`): a train node, and 1, 2, 4, 8 decode
nodes of two slots each, told apart by labels. All nodes share this machine's few cores, so that decoding which computes
cannot grow with them. Decoding that waits can: the videos lie on a real S3 server on loopback, behind a proxy that
holds every request back for a set time, and are so small that a clip is mostly waiting. Two training workers take the
clips, as fast as they come (`free`), and then at least `step_s` seconds a batch, in place of a GPU's step (`limited`):
their rate has to follow the nodes up to what the trainer can take, and stay there.

This shows that tasks reach every node, that labels keep them off the train node, that nothing on the way (Ray Data's
scheduling, one coordinator, two trainers) is the limit below the largest rate that is printed, and that what is decoded
too early is held back. It says nothing about networks, about cores that really compute on many nodes, or rates above.

**Model** (`--model`). Clips/s that the GPUs ask for, over clips/s that a core gives, both ways of storing video:

    cores = GPUs x clips/s per GPU / (clips/s per core x share of it that is left through Ray)
    nodes = the more of: cores / cores of a node, bytes/s of clips / network of a node

Clips/s per core and the memory of a decode process are measured here, on one core as the system counts them, on clips
of 16 frames at 256 x 256, which travel as uint8; the share is `vs_bare_decode` of benchmarks.ingest; what a GPU asks
for is the batch per GPU over the seconds of a step.

    python -m benchmarks.nodes [--quick]
    python -m benchmarks.nodes --model --gpus 64 --clips-per-gpu 4 8 16 32
"""

import argparse
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks._common import finish, machine, parser
from benchmarks._nodes import Nodes
from benchmarks._servers import KEY, SECRET, FaultProxy, rclone
from benchmarks.decode import FPS, FRAMES, SIZE, Film, prepared, write_film
from benchmarks.ingest import memory_mib, through_ray
from lawm.config import ClipSpec, ClusterConfig, Config, DataConfig, PixelsEncoder, TrainConfig, VideoLimits

SLOTS = 2
"""Decode tasks that a node runs at once."""
WORKERS = 2
BATCH = 8
"""Clips a step of each training worker."""
FAR_S = 0.15
VIDEOS = 16
PACKAGES = ("lawm", "ray", "av", "numpy")


# ---------------------------------------------------------------- growth
@contextmanager
def far_videos(folder: Path) -> Iterator[None]:
    """s3://bucket/videos for every process that starts now: VIDEOS small files, each request FAR_S away."""
    (folder / "bucket/videos").mkdir(parents=True)
    first = write_film(folder / "bucket/videos/00.mp4", 96, 64, 300, 30)
    for i in range(1, VIDEOS):
        (folder / f"bucket/videos/{i:02d}.mp4").write_bytes(first.read_bytes())
    with rclone(folder) as url:
        where = urlsplit(url)
        proxy = FaultProxy((str(where.hostname), int(where.port or 0)), delay_s=FAR_S)
        os.environ |= {
            "AWS_ENDPOINT_URL_S3": proxy.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield
        proxy.close()


def far_config(index: str) -> Config:
    return Config(
        data=DataConfig(index=index, clip=ClipSpec(frames=4, fps=4.0, size=64), val_fraction=0.0),
        encoder=PixelsEncoder(),
        train=TrainConfig(batch=BATCH * WORKERS),
        cluster=ClusterConfig(workers=WORKERS, cpus_per_worker=1.0, use_labels=True),
    )


def wake(slots: int) -> None:
    """Starts a decode process for every slot, so that their starts are not measured."""
    import ray

    from lawm.cluster.session import DECODE, ROLE_LABEL

    def load() -> None:
        import lawm.cluster.decode
        import lawm.video.decode  # noqa: F401

        time.sleep(3.0)  # until the others have theirs

    ray.get([ray.remote(load).options(label_selector={ROLE_LABEL: DECODE}).remote() for _ in range(slots)])


def lone_rate(config: Config, clips: int) -> float:
    """Clips/s of one process that decodes one clip after the other: what a slot can give."""
    from lawm.data import ClipReader

    reader = ClipReader(config)
    reader.sample(0)
    began = time.perf_counter()
    for position in range(1, clips + 1):
        reader.sample(position)
    return clips / (time.perf_counter() - began)


def trained(config: Config, expected: float, seconds: float, folder: Path, step_s: float) -> float:
    """Clips/s of all training workers together, over about `seconds` if it is as `expected`."""
    clips = max(BATCH * 4, math.ceil(expected * seconds / WORKERS))
    return through_ray(config, clips, clips // 4, folder, step_s, BATCH).rate * WORKERS


def growth(counts: list[int], seconds: float, quick: bool) -> dict[str, Any]:
    """Rates with each number of decode nodes, free and limited by the trainer (`quick`: that with the most only)."""
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, far_videos(Path(name)), Nodes(train_cpus=WORKERS) as nodes:
        os.environ |= nodes.environment
        from lawm.cluster.index import build_index
        from lawm.cluster.session import DECODE, start

        folder = Path(name)
        config = far_config(str(folder / "index.parquet"))
        there = 0
        with start(config.cluster):
            for count in counts:
                for _ in range(count - there):
                    nodes.add(DECODE, SLOTS)
                there = count
                if not rows:
                    build_index(["s3://bucket/videos/"], str(folder / "index.parquet"), config)
                    slot = lone_rate(config, 12)
                    limit = slot * SLOTS * counts[-1] * 0.4  # so that some counts are below it, and some above
                    step_s = WORKERS * BATCH / limit
                    print(f"one process alone: {slot:.2f} clips/s; what the trainer takes: {limit:.1f}", flush=True)
                wake(count * SLOTS)
                wanted = slot * SLOTS * count
                row: dict[str, float] = {"nodes": count, "slots": count * SLOTS}
                row["free"] = trained(config, wanted, seconds, folder, 0.0)
                said = f"{count} decode nodes: {row['free']:.1f} clips/s, {row['free'] / wanted:.2f} of lone processes"
                if not quick or count == counts[-1]:
                    least = min(wanted, limit)
                    row["limited"] = trained(config, least, seconds, folder, step_s)
                    of = "what the trainer takes" if least == limit else "lone processes"
                    said += f"; limited {row['limited']:.1f}, {row['limited'] / least:.2f} of {of}"
                print(said, flush=True)
                rows.append(row)
    first, last = rows[0], rows[-1]
    return {
        "speedup": round(last["free"] / first["free"], 2),
        "efficiency": round(last["free"] / first["free"] * first["nodes"] / last["nodes"], 3),
        "limited_vs_trainer": round(last["limited"] / limit, 3),
        "trainer_clips_per_second": round(limit, 2),
        "step_s": round(step_s, 3),
        "request_s": FAR_S,
        "slot_clips_per_second": round(slot, 3),
        "by_nodes": [{k: round(v, 2) for k, v in row.items()} for row in rows],
    }


# ---------------------------------------------------------------- model
def one_core(path: str, starts: list[float], results: Any) -> None:
    """In a process of its own, on one core, what a decode worker has loaded: (clips per processor second, MiB)."""
    import lawm.cluster.decode  # noqa: F401
    from lawm.video import VideoRef, decode_clip

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ref = VideoRef(path, 0, Path(path).stat().st_size, "film")
    spec, limits = ClipSpec(frames=FRAMES, fps=FPS, size=SIZE), VideoLimits()
    decode_clip(ref, starts[0], spec, limits)
    began = time.process_time()
    for start_s in starts:
        decode_clip(ref, start_s, spec, limits)
    results.put((len(starts) / (time.process_time() - began), memory_mib(os.getpid())[0]))


def measured(path: Path, starts: list[float]) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=one_core, args=(str(path), starts, results))
    worker.start()
    found: tuple[float, float] = results.get(timeout=300)
    worker.join()
    return found


def model(args: argparse.Namespace) -> dict[str, Any]:
    """Cores, nodes, traffic and memory that a run of `args.gpus` GPUs needs."""
    from lawm.cluster.ingest import TASK_BYTES

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = Film("original", write_film(folder / "film.mp4", 640, 360, 900, 250), True)
        made = folder / "prepared.mp4"
        prepared(film, made)
        span = film.duration_s - FRAMES / FPS
        starts = [span * (i + 0.5) / args.clips for i in range(args.clips)]
        kinds = {"original": film.path, "prepared": made}
        found = {kind: measured(path, starts) for kind, path in kinds.items()}
        stored = {kind: path.stat().st_size / film.duration_s for kind, path in kinds.items()}
    clip_bytes = FRAMES * 3 * SIZE**2
    memory = max(mib for _, mib in found.values())
    node_gib = args.cores * (memory + TASK_BYTES / 2**20) / 1024
    print("640 x 360 at 30 fps, a key frame every 250 frames, and what `lawm prepare` makes of it:")
    for kind, (rate, mib) in found.items():
        print(f"  {kind}: {rate:.1f} clips/s per core, {stored[kind] / 1e3:.0f} kB/s of video, {mib:.0f} MiB a process")
    print(f"left of it through Ray: {args.share:g}; a clip: {clip_bytes / 1e6:.2f} MB; a node: {args.gbit:g} Gbit/s")
    print(
        f"memory of a decode node of {args.cores} cores, each with {TASK_BYTES >> 20} MiB of clips: {node_gib:.0f} GiB"
    )
    print(f"\n{args.gpus} GPUs, {args.gpus_per_node} a node:")
    rows = []
    for each in args.clips_per_gpu:
        traffic = args.gpus * each * clip_bytes / 1e9
        row: dict[str, Any] = {
            "clips_per_gpu": each,
            "clips_per_second": args.gpus * each,
            "clips_gb_per_second": round(traffic, 2),
            "gb_per_second_into_a_train_node": round(args.gpus_per_node * each * clip_bytes / 1e9, 3),
        }
        print(f"  {each:g} clips/s per GPU: {args.gpus * each:g} clips/s, {traffic:.2f} GB/s, ", end="")
        print(f"{row['gb_per_second_into_a_train_node']:.2f} into a train node", end="")
        for kind, (rate, _) in found.items():
            cores = args.gpus * each / (rate * args.share)
            by_cores, by_network = cores / args.cores, traffic * 8 / args.gbit
            limit = "network" if by_network > by_cores else "cores"
            row |= {f"cores_{kind}": math.ceil(cores), f"nodes_{kind}": math.ceil(max(by_cores, by_network))}
            row[f"limit_{kind}"] = limit
            print(f"; {kind}: {math.ceil(cores)} cores, {row[f'nodes_{kind}']} nodes (limit: {limit})", end="")
        print()
        rows.append(row)
    return {
        "gpus": args.gpus,
        "cores_per_node": args.cores,
        "gbit_per_node": args.gbit,
        "share_through_ray": args.share,
        "clips_per_second_per_core": {kind: round(rate, 2) for kind, (rate, _) in found.items()},
        "decode_process_mib": round(memory),
        "decode_node_gib": round(node_gib, 1),
        "clip_bytes": clip_bytes,
        "table": rows,
    }


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--model", action="store_true", help="what a large run needs, instead of growth")
    options.add_argument("--gpus", type=int, default=64)
    options.add_argument("--gpus-per-node", type=int, default=8)
    options.add_argument("--clips-per-gpu", type=float, nargs="+", default=[4, 8, 16, 32], help="a second")
    options.add_argument("--cores", type=int, default=32, help="of a decode node")
    options.add_argument("--gbit", type=float, default=12.5, help="network of a decode node, Gbit/s")
    options.add_argument("--share", type=float, default=0.9, help="vs_bare_decode as benchmarks.ingest says it")
    options.add_argument("--clips", type=int, default=24, help="clips decoded to measure a core")
    args = options.parse_args(argv)
    used = machine()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.model:
        finish("nodes_model", model(args), PACKAGES, used)
        return 0
    figures = growth([1, 2] if args.quick else [1, 2, 4, 8], 3.0 if args.quick else 20.0, args.quick)
    finish("nodes", figures, PACKAGES, used)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
