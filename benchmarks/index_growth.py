"""What an index costs to open: memory and seconds to the plan, the first clip id and the first batch of ids.

Synthetic indexes of 10^4 to 10^7 videos, written to --data on the first run. Each is opened in a process of its own,
as a training run opens it: read, usable videos, training split, plan.

    python -m benchmarks.index_growth [--quick] [--data FOLDER]
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._common import finish, parser
from lawm.data import INDEX_SCHEMA, write_index

PIECE = 250_000
BATCH = 1024
VIDEOS_PER_TAR = 1000


def rows(first: int, count: int) -> pa.Table:
    """Index rows as a crawl of short videos in tars on S3 would have them; one in fifty cannot be used."""
    generator = np.random.default_rng(first)
    number = np.arange(first, first + count)
    seconds = generator.uniform(2.0, 60.0, count)
    refused = generator.random(count) < 0.02
    keyframes = np.arange(8, dtype=np.float32)
    columns: dict[str, Any] = {
        "key": [f"shard-{n // VIDEOS_PER_TAR:06d}/{n % VIDEOS_PER_TAR:06d}.mp4" for n in number],
        "source": [f"s3://videos/crawl/shard-{n // VIDEOS_PER_TAR:06d}.tar" for n in number],
        "offset": number % VIDEOS_PER_TAR * 3_000_000,
        "size": generator.integers(200_000, 3_000_000, count),
        "container": pa.array(["mp4"] * count),
        "codec": pa.array(["h264"] * count),
        "width": np.full(count, 640),
        "height": np.full(count, 360),
        "rate": generator.choice([24.0, 25.0, 30.0], count),
        "container_rate": np.full(count, 30.0),
        "variable_rate": np.zeros(count, bool),
        "frames": (seconds * 30).astype(np.int64),
        "start_s": np.zeros(count),
        "duration_s": seconds,
        "keyframes_s": pa.ListArray.from_arrays(np.arange(count + 1) * 8, np.tile(keyframes, count)),
        "version": generator.integers(0, 2**62, count // VIDEOS_PER_TAR + 1)[np.arange(count) // VIDEOS_PER_TAR],
        "reason": pa.array(np.where(refused, "damaged: made up", None).tolist(), pa.string()),
    }
    arrays = [
        pa.array(columns[field.name]).cast(field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in INDEX_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)


def made(folder: Path, count: int) -> Path:
    path = folder / f"index-{len(INDEX_SCHEMA)}-{count}.parquet"  # an earlier schema's is not this one's
    if not path.exists():
        write_index((rows(i, min(PIECE, count - i)) for i in range(0, count, PIECE)), str(path))
    return path


OPEN = """
import json, resource, sys, time
began = time.perf_counter()
import numpy as np
from lawm.data import ClipReader
from lawm.recipes import recipe
imported = time.perf_counter()
config = recipe("paper_noisy")
config = config.model_copy(update={"data": config.data.model_copy(update={"index": sys.argv[1]})})
reader = ClipReader(config)
first = reader.plan.rows(np.array([0]))
first_id = time.perf_counter()
batch = reader.plan.rows(np.arange(int(sys.argv[2])))
refs = [reader.index.ref(int(v)) for v in batch.video]
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"videos": len(reader.index), "clips": len(reader.plan), "import_s": imported - began,
    "first_id_s": first_id - began, "first_batch_s": done - began, "peak_mib": peak, "first": str(refs[0])}))
"""


def opened(path: Path) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "-c", OPEN, str(path), str(BATCH)], capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def exponent(counts: list[int], values: list[float]) -> float:
    """The slope of log(value) over log(count)."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, default=Path("runs/index_growth"), metavar="FOLDER")
    args = options.parse_args(argv)
    args.data.mkdir(parents=True, exist_ok=True)
    counts = [10**4, 10**5, 10**6] if args.quick else [10**4, 10**5, 10**6, 10**7]
    found = []
    for count in counts:
        began = time.perf_counter()
        path = made(args.data, count)
        wrote = time.perf_counter() - began
        found.append({"rows": count, "file_mib": path.stat().st_size / 2**20, "write_s": wrote, **opened(path)})
        said = found[-1]
        print(
            f"10^{round(math.log10(count))}: first clip id after {said['first_id_s']:.1f} s, {BATCH} of them after "
            f"{said['first_batch_s']:.1f} s, peak {said['peak_mib']:.0f} MiB, {said['clips']:,} clips an epoch"
        )
    # Growth beyond what an empty process costs.
    empty = found[0]
    late = [f for f in found if f["rows"] >= 10**5]
    grown = {
        "seconds": exponent([f["rows"] for f in late], [f["first_id_s"] - empty["import_s"] for f in late]),
        "memory": exponent([f["rows"] for f in late], [max(f["peak_mib"] - empty["peak_mib"], 1.0) for f in late]),
    }
    print(f"growth from 10^5 on: seconds as n^{grown['seconds']:.2f}, memory as n^{grown['memory']:.2f}")
    last = found[-1]
    at = f"1e{round(math.log10(last['rows']))}"
    figures = {
        f"seconds_{at}": last["first_id_s"],
        f"peak_mib_{at}": last["peak_mib"],
        "exponent": max(grown.values()),
        "exponents": grown,
        "sizes": found,
    }
    finish("index_growth", figures, ("lawm", "pyarrow", "numpy"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
