"""What a decode task does: row ids -> decoded clips. No torch here, so that decode workers start fast and small."""

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import ray

import lawm.cluster.whole  # noqa: F401  before anything that imports av
from lawm.config import Config
from lawm.data import BadClip, Cursor, Index, Part, PlanArrays, Reader, Sample, open_reader, parts_of

CLIPS_PER_BLOCK = 8


@functools.lru_cache(maxsize=2)
def _reader(config_json: str, kind: str, table: "Table") -> Reader:
    """The reader of a decode worker, opened once per process. Indexes and plans lie in the object store, for all."""
    parts = []
    for number, refs in table.parts:
        index, slots, ends = ray.get(list(refs))
        parts.append(Part(number, Index(index), PlanArrays(slots, ends)))
    return open_reader(Config.model_validate_json(config_json), kind, parts=parts)


class Table:
    """A reader's indexes and plans in the object store; can be a cache key."""

    def __init__(self, reader: Reader) -> None:
        self.parts = tuple(
            (number, tuple(ray.put(part) for part in (videos.table, arrays.slots, arrays.ends)))
            for number, videos, arrays in parts_of(reader)
        )

    def __hash__(self) -> int:
        return hash(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.parts == other.parts


def read_ids(start: int, stop: int) -> Iterator[pa.Table]:
    """Row ids, in the task that decodes them."""
    yield pa.table({"id": np.arange(start, stop)})


def decode_rows(
    batch: dict[str, np.ndarray], config_json: str, kind: str, table: Table, low: int, ahead: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Row ids -> clips, a block at a time. A bad clip becomes a row with `ok` false, empty frames and its reason."""
    reader = _reader(config_json, kind, table)
    clip = reader.config.data.clip
    positions = nth_positions(Cursor(low, ahead), batch["id"])
    for i in range(0, len(positions), CLIPS_PER_BLOCK):
        found = [reader.try_sample(int(p)) for p in positions[i : i + CLIPS_PER_BLOCK]]
        empty = np.zeros((clip.frames, 3, clip.size, clip.size), np.uint8)
        block: dict[str, Any] = {
            "position": np.array([f.position for f in found], np.int64),
            "ok": np.array([isinstance(f, Sample) for f in found]),
            "frames": np.stack([f.frames if isinstance(f, Sample) and f.frames is not None else empty for f in found]),
            "key": np.array([f.key for f in found], dtype=object),
            "group": np.array([f.group if isinstance(f, Sample) else "" for f in found], dtype=object),
            "start_s": np.array([f.start_s for f in found]),
            "reason": np.array([f.reason if isinstance(f, BadClip) else "" for f in found], dtype=object),
            "source": np.array([f.source if isinstance(f, BadClip) else "" for f in found], dtype=object),
            "message": np.array([f.message if isinstance(f, BadClip) else "" for f in found], dtype=object),
        }
        if reader.labels is not None:
            width = reader.labels.action_dim
            none = np.full((clip.frames - 1, width), np.nan, np.float32)
            block["actions"] = np.stack(
                [f.actions if isinstance(f, Sample) and f.actions is not None else none for f in found]
            )
        yield block
    _give_back()


def _give_back() -> None:
    """Hands what glibc keeps of freed memory back to the system: codecs ask for so many sizes that its free pieces
    would grow by MiB every thousand clips."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def nth_positions(cursor: Cursor, ids: np.ndarray) -> np.ndarray:
    """The plan position of the id-th clip that the cursor has not consumed."""
    if not cursor.ahead:
        return cursor.low + ids
    free = np.setdiff1d(np.arange(cursor.low, max(cursor.ahead) + 1), np.array(cursor.ahead, np.int64))
    beyond = max(cursor.ahead) + 1 + ids - len(free)
    return np.where(ids < len(free), free[np.minimum(ids, len(free) - 1)] if len(free) else beyond, beyond)
