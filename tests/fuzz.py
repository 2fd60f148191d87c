"""Mutated files for a bounded time: each ends in right types or in a reason, and soon.

    python -m tests.fuzz SECONDS [SEED]

The file at work is written down before it is looked at, so that one that takes the process down is there to be looked
at afterwards. Prints one JSON object: what became of how many.
"""

import faulthandler
import json
import pickle
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from data_sets import droid_raw, lerobot, walk
from made_videos import write_video
from zoo import good_ones

from lawm.config import ClipSpec, LawmError, VideoLimits
from lawm.data import ReadSpec, VideoLabels, layout, list_videos, read_index, rows_to_table, write_index, write_labels
from lawm.data.datasets.droid import droid_states
from lawm.data.datasets.recon import plain_pickle
from lawm.data.labels import read_labels
from lawm.video import VideoError, VideoRef, decode_clip, probe

CLIP = ClipSpec(frames=4, fps=4.0, size=64)
LIMITS = VideoLimits(timeout_s=4.0, max_pixels=4096 * 4096)
LONGEST_S = 3 * LIMITS.timeout_s
"""For a probe and two clips of one file."""
HANGS_AFTER_S = 60.0
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x100)

place = st.floats(0.0, 1.0, allow_nan=False)
edit = st.one_of(
    st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("number"), place, st.sampled_from(EXTREMES), st.sampled_from((1, 2, 4, 8)), st.booleans()),
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("delete"), place, st.integers(1, 4096)),
    st.tuples(st.just("cut"), place),
    st.tuples(st.just("repeat"), place, st.integers(1, 4096)),
    st.tuples(st.just("zero"), place, st.integers(1, 65536)),
)
# Half of the places are in the first 4 KiB: that is where headers are.
edits = st.lists(st.tuples(edit, st.booleans()), min_size=1, max_size=6)


def mutated(data: bytes, changes: list[tuple[tuple, bool]]) -> bytes:  # type: ignore[type-arg]
    out = bytearray(data)
    for (kind, where, *more), early in changes:
        at = int(where * min(len(out), 4096 if early else len(out)))
        if kind == "set":
            out[at : at + len(more[0])] = more[0]
        elif kind == "number":
            value, width, big = more
            out[at : at + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "big" if big else "little")
        elif kind == "flip" and at < len(out):
            out[at] ^= 1 << more[0]
        elif kind == "insert":
            out[at:at] = more[0]
        elif kind == "delete":
            del out[at : at + more[0]]
        elif kind == "cut":
            del out[at:]
        elif kind == "repeat":
            out[at:at] = out[at : at + more[0]]
        elif kind == "zero":
            out[at : at + more[0]] = b"\0" * len(out[at : at + more[0]])
    return bytes(out)


def outcome_of_video(path: Path) -> str:
    said = "clips"
    for ref in (
        [VideoRef(str(path), 0, path.stat().st_size, path.name)] if path.suffix != ".tar" else list_videos([str(path)])
    ):
        row = probe(ref, LIMITS)
        if row["reason"] is not None:
            said = str(row["reason"]).partition(":")[0]
            continue
        assert row["frames"] >= 2 and np.isfinite(row["duration_s"]) and row["duration_s"] > 0 and row["rate"] > 0
        for start in (0.0, max(0.0, row["duration_s"] - CLIP.seconds)):
            try:
                clip = decode_clip(ref, start, CLIP, LIMITS)
            except VideoError as error:
                said = f"clip {error.reason}"
                continue
            assert clip.frames_FCHW.shape == (4, 3, 64, 64) and clip.frames_FCHW.dtype == np.uint8
            assert np.all(np.abs(clip.seconds_F - start - np.arange(4) / 4) < 0.126)
    return said


def table(read: Callable[[str], object]) -> Callable[[Path], str]:
    def outcome(path: Path) -> str:
        try:
            read(str(path))
        except LawmError as error:
            assert "\n" not in str(error)
            return "refused"
        return "read"

    return outcome


def read_lerobot(uri: str) -> None:
    root, how = Path(uri).parent / "lerobot", layout("lerobot")
    (root / "meta/info.json").write_bytes(Path(uri).read_bytes())
    spec = how.choices(str(root), ReadSpec("lerobot"))
    for batch in how.batches(str(root), spec):
        how.read(batch, spec, "")


def corpus(folder: Path) -> dict[str, tuple[bytes, Callable[[Path], str]]]:
    """Undamaged files, and what is done with a mutated one."""
    found: dict[str, tuple[bytes, Callable[[Path], str]]] = {}
    for name, path in good_ones(folder).items():
        if path.stat().st_size < 2 << 20:
            found[name] = (path.read_bytes(), outcome_of_video)
    write_video(folder / "in.mp4", 90)
    import tarfile

    with tarfile.open(folder / "shard.tar", "w") as tar:
        for n in range(3):
            tar.add(folder / "in.mp4", f"{n}.mp4")
    found["shard.tar"] = ((folder / "shard.tar").read_bytes(), outcome_of_video)
    rows = [probe(ref, LIMITS) for ref in list_videos([str(folder / "shard.tar")])]
    write_index(rows_to_table(rows), str(folder / "index.parquet"))
    found["index.parquet"] = ((folder / "index.parquet").read_bytes(), table(read_index))
    position, yaw = walk(20, 0)
    states = np.concatenate([position, yaw[:, None]], axis=1)
    write_labels([VideoLabels("v", 4.0, np.ones((19, 2)), states)], str(folder / "labels.parquet"))
    found["labels.parquet"] = ((folder / "labels.parquet").read_bytes(), table(read_labels))
    found["traj_data.pkl"] = (
        pickle.dumps({"position": position, "yaw": yaw}),
        table(lambda uri: plain_pickle(Path(uri).read_bytes(), "")),
    )
    droid_raw(folder / "droid", 30, 30)
    found["trajectory.h5"] = ((folder / "droid/trajectory.h5").read_bytes(), table(droid_states))
    lerobot(folder / "lerobot", droid=False)
    found["info.json"] = ((folder / "lerobot/meta/info.json").read_bytes(), table(read_lerobot))
    return found


def fuzz(seconds: float, first_seed: int = 0) -> dict[str, object]:
    counts: Counter[str] = Counter()
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory(prefix="lawm-fuzz-") as made:
        folder = Path(made)
        files = corpus(folder)
        ends = time.monotonic() + seconds
        before = 0
        round_seed = first_seed

        def one(name: str, changes: list[tuple[tuple, bool]]) -> None:  # type: ignore[type-arg]
            nonlocal slowest
            if time.monotonic() > ends:
                return
            data, outcome = files[name]
            path = folder / f"fuzzed{Path(name).suffix}"
            path.write_bytes(mutated(data, changes))
            faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
            began = time.monotonic()
            said = outcome(path)
            faulthandler.cancel_dump_traceback_later()
            took = time.monotonic() - began
            slowest = max(slowest, (took, name))
            counts[f"{Path(name).suffix[1:] or 'mp4'} {said}" if outcome is not outcome_of_video else said] += 1
            assert took < LONGEST_S, f"{name} took {took:.1f} s"

        while time.monotonic() < ends:
            # Settings belong to a function for good, so that each round needs one of its own.
            examples = given(st.sampled_from(sorted(files)), edits)(lambda name, changes: one(name, changes))
            settings(
                max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink), print_blob=False,
            )(seed(round_seed)(examples))()  # fmt: skip
            if not before:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            round_seed += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "files": sum(counts.values()),
        "outcomes": dict(counts.most_common()),
        "slowest_s": round(slowest[0], 2),
        "peak_growth_mib": round(grown, 1),
    }


if __name__ == "__main__":
    faulthandler.enable()
    print(json.dumps(fuzz(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
