"""What is in an index: counts, distributions, what the containers claim about time, duplicates, pictures.

Nothing here trusts what a container says where the time stamps say otherwise: both are shown.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lawm import storage
from lawm.config import Config
from lawm.data.clips import BadClip, ClipReader, Sample
from lawm.data.index import Index
from lawm.video import VideoRef

RATE_TOLERANCE = 0.01
"""A container's rate further than this from the time stamps' is a claim that does not hold."""
HASH_BLOCK = 1 << 22


@dataclass(frozen=True)
class Timing:
    """How far containers and time stamps agree: videos (usable ones), and keys of some that do not."""

    videos: int
    wrong_rate: int
    variable_rate: int
    late_start: int
    examples: list[tuple[str, float, float]]
    """(key, rate that the container claims, rate of the time stamps), the worst first."""


def totals(index: Index) -> dict[str, float]:
    """Videos, usable ones, hours, GiB and frames of the usable ones."""
    usable = index.usable()
    return {
        "videos": len(index),
        "usable": len(usable),
        "hours": float(np.nansum(usable.column("duration_s")) / 3600),
        "gib": float(np.nansum(usable.column("size")) / 2**30),
        "frames": int(np.nansum(usable.column("frames"))) if len(usable) else 0,
    }


def values_of(index: Index) -> dict[str, np.ndarray]:
    """What is distributed over the usable videos: name -> finite values."""
    usable = index.usable()
    found = {
        "duration (s)": usable.column("duration_s"),
        "frames a second": usable.column("rate"),
        "width (pixels)": usable.column("width"),
        "height (pixels)": usable.column("height"),
        "size (MB)": usable.column("size") / 1e6,
    }
    found = {name: np.asarray(values, np.float64) for name, values in found.items()}
    return {name: values[np.isfinite(values)] for name, values in found.items()}


def quantiles(index: Index) -> dict[str, list[float]]:
    """Least, quartiles, 95 %, greatest and mean of each distribution (see `values_of`)."""
    found = {}
    for name, values in values_of(index).items():
        if len(values):
            found[name] = [*np.quantile(values, [0, 0.25, 0.5, 0.75, 0.95, 1]).tolist(), float(values.mean())]
    return found


def histogram(values: np.ndarray, bins: int = 30) -> tuple[list[float], list[float]]:
    """(middles of bins, videos in each): bins of equal ratio where the values span more than a decade."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [low], [float(len(values))]
    wide = low > 0 and high / low > 10
    edges = np.geomspace(low, high, bins + 1) if wide else np.linspace(low, high, bins + 1)
    counts, edges = np.histogram(values, edges)
    return ((edges[1:] + edges[:-1]) / 2).tolist(), counts.astype(float).tolist()


def counted(index: Index) -> list[tuple[str, int]]:
    """Usable videos by container and codec, refused ones by reason."""
    usable = index.usable().table
    pairs = zip(usable["container"].to_pylist(), usable["codec"].to_pylist(), strict=True)
    found = [(f"{container}, {codec}", count) for (container, codec), count in Counter(pairs).most_common()]
    return found + [(f"refused: {reason}", count) for reason, count in index.reasons().items()]


def timing(index: Index, examples: int = 10) -> Timing:
    """Compares the rate that each container claims with that of its time stamps."""
    usable = index.usable()
    claimed, true = usable.column("container_rate"), usable.column("rate")
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.where((claimed > 0) & (true > 0), np.abs(np.log(claimed / true)), 0.0)
    wrong = np.flatnonzero(off > RATE_TOLERANCE)
    worst = wrong[np.argsort(-off[wrong], kind="stable")][:examples]
    variable = usable.table["variable_rate"].to_pylist()
    late = np.abs(np.nan_to_num(np.asarray(usable.column("start_s"), np.float64))) > 1e-3
    return Timing(
        videos=len(usable),
        wrong_rate=len(wrong),
        variable_rate=sum(bool(v) for v in variable),
        late_start=int(late.sum()),
        examples=[(usable.table["key"][int(i)].as_py(), float(claimed[i]), float(true[i])) for i in worst],
    )


def duplicates(
    index: Index, threads: int = 8, progress: Callable[[int, int], None] | None = None
) -> list[list[VideoRef]]:
    """Groups of usable videos with the same bytes, largest first. Only videos of equal size, frames and duration
    are read. Raises StorageError."""
    usable = index.usable()
    alike: defaultdict[tuple[float, ...], list[int]] = defaultdict(list)
    columns = [
        np.nan_to_num(np.asarray(usable.column(n), np.float64), nan=-1) for n in ("size", "frames", "duration_s")
    ]
    for row, known in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        alike[known].append(row)
    candidates = [usable.ref(row) for rows in alike.values() if len(rows) > 1 for row in rows]
    groups: defaultdict[str, list[VideoRef]] = defaultdict(list)
    with ThreadPoolExecutor(threads) as pool:
        for done, (ref, said) in enumerate(zip(candidates, pool.map(content_hash, candidates), strict=True), 1):
            groups[f"{said} {ref.begin_s}"].append(ref)  # episodes of one file are no copies of each other
            if progress is not None:
                progress(done, len(candidates))
    return sorted((refs for refs in groups.values() if len(refs) > 1), key=lambda refs: (-len(refs), refs[0].key))


def content_hash(ref: VideoRef) -> str:
    """A hash of a video's bytes, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    with storage.open_file(ref.source, ref.offset, ref.size) as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def random_clips(config: Config, clips: int, seed: int = 0) -> tuple[list[Sample], list[BadClip]]:
    """`clips` random clips of the whole index with their frames, and those of them that could not be had."""
    reader = ClipReader(config, "all", frames=True)
    generator = np.random.default_rng(seed)
    count = min(clips, len(reader.plan))
    positions = generator.choice(len(reader.plan), count, replace=False) if len(reader.plan) < 10**6 else (
        generator.integers(0, len(reader.plan), count)
    )  # fmt: skip
    found = [reader.try_sample(int(p)) for p in positions]
    return [f for f in found if isinstance(f, Sample)], [f for f in found if isinstance(f, BadClip)]
