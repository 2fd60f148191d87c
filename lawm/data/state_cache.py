"""States of a frozen encoder, written once and read at random by every run of a sweep.

A cache is a folder: Arrow IPC part files (one row a state, float16 or bfloat16, read by memory map), the index of
the videos in it, and `manifest.json` with the encoder, the clip spec and the index that it was made from. The states
of an encoder that looks back in time depend on where the clip starts: they are those of aligned clips.
Legend: N tokens of a state, D state width.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lawm.config import ClipSpec, Config, LawmError
from lawm.data.index import Index, read_index, write_index
from lawm.storage import exists, join, read_bytes, write_bytes

FORMAT = 2


def cache_key(
    config: Config, encoder_fingerprint: str, index_fingerprint: str, looks_back: bool = False
) -> dict[str, Any]:
    """What a cache depends on; two caches with equal keys hold equal states, but for their rounding.

    `looks_back`: the encoder's; only then do the clips' length and placement matter.
    """
    clip = config.data.clip
    clips = {"frames": clip.frames, "placement": clip.placement} if looks_back else {}
    return clips | {
        "format": FORMAT,
        "encoder": encoder_fingerprint,
        "fps": clip.fps,
        "size": clip.size,
        "crop": clip.crop,
        "duplicate": clip.duplicate,
        "index": index_fingerprint,
    }


def check_exact(clip: ClipSpec) -> None:
    """Raises LawmError for clips whose pictures are approximate: a cache is of exact ones."""
    if clip.loop_filter != "exact":
        raise LawmError("a cache holds states of exact pictures: set data.clip.loop_filter=exact")


@dataclass(frozen=True)
class Piece:
    """Frames `first` .. `first + frames - 1` of a video's 1/fps grid."""

    key: str
    first: int
    frames: int


def part_bytes(pieces: list[Piece], states: list[np.ndarray], frames_per_state: int = 1) -> bytes:
    """One part file: the states [states, N, D] of some pieces, one row a state; `rounded` says how they are held."""
    count = sum(map(len, states))
    keys = pa.array([p.key for p, s in zip(pieces, states, strict=True) for _ in range(len(s))], pa.string())
    numbers = [p.first + frames_per_state * np.arange(len(s)) for p, s in zip(pieces, states, strict=True)]
    frames = pa.array(np.concatenate(numbers).astype(np.int32))
    flat = np.concatenate([s.reshape(len(s), -1) for s in states])
    assert len(flat) == count
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    table = pa.table({"key": keys.dictionary_encode(), "frame": frames, "state": column}).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def rounded(states: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> float16, or the upper half of each float32 (bfloat16, to nearest even) as uint16.

    Raises LawmError where float16 cannot hold them.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(states, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        half = states.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(states).all():
        raise LawmError("the states go beyond float16: set data.cache_dtype=bfloat16")
    return half


def widened(held: np.ndarray) -> np.ndarray:
    """What `rounded` made, as floats: float16 as it is, bfloat16 as float32."""
    return (held.astype(np.uint32) << 16).view(np.float32) if held.dtype == np.uint16 else held


def part_name(pieces: list[Piece]) -> str:
    """A name that depends on what is in the part, so that a rerun finds the parts that are done."""
    said = json.dumps([(p.key, p.first, p.frames) for p in pieces])
    return f"part-{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}.arrow"


def finish_cache(
    uri: str,
    key: dict[str, Any],
    index: Index,
    parts: dict[str, list[Piece]],
    shape: tuple[int, int],
    frames_per_state: int = 1,
) -> None:
    """Writes index and manifest; only now is the folder a cache. `parts`: pieces of each file, in row order;
    `shape`: tokens and width of a state."""
    write_index(index, join(uri, "index.parquet"))
    pieces = {name: [[p.key, p.first, p.frames] for p in found] for name, found in parts.items()}
    manifest = {
        "key": key,
        "tokens": shape[0],
        "width": shape[1],
        "frames_per_state": frames_per_state,
        "parts": pieces,
    }
    write_bytes(join(uri, "manifest.json"), json.dumps(manifest).encode())


class StateCache:
    """Random reads of raw states by video key and frame number."""

    def __init__(self, uri: str) -> None:
        where = join(uri, "manifest.json")
        if not exists(where):
            raise LawmError(f"{uri}: no state cache there (no manifest.json); write one with `lawm encode`")
        try:
            manifest = json.loads(read_bytes(where))
            self.key, self.tokens, self.width = manifest["key"], manifest["tokens"], manifest["width"]
            if self.key["format"] != FORMAT:
                raise LawmError(
                    f"{uri}: a state cache of format {self.key['format']}, this lawm reads {FORMAT}; "
                    "run `lawm encode` again, into another folder"
                )
            self.frames_per_state = int(manifest["frames_per_state"])
            self.places: dict[str, list[tuple[str, int, Piece]]] = {}
            for part, pieces in manifest["parts"].items():
                row = 0
                for piece in (Piece(*p) for p in pieces):
                    self.places.setdefault(piece.key, []).append((part, row, piece))
                    row += piece.frames // self.frames_per_state
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LawmError(f"{where}: damaged manifest ({error}); run `lawm encode` again") from error
        self.uri = uri
        self._parts: dict[str, np.ndarray] = {}

    @property
    def looks_back(self) -> bool:
        """Whether the states depend on earlier frames of their clip."""
        return "placement" in self.key

    @property
    def index(self) -> Index:
        """The index of the videos in the cache, durations cut to what was encoded."""
        return read_index(join(self.uri, "index.parquet"))

    def check(self, config: Config, encoder_fingerprint: str) -> None:
        """Raises LawmError naming what differs, where the cache is not of this encoder and clip spec."""
        wanted = cache_key(config, encoder_fingerprint, self.key["index"], looks_back=self.looks_back)
        wrong = [f"{k}: cache {self.key.get(k)!r}, config {v!r}" for k, v in wanted.items() if self.key.get(k) != v]
        if wrong:
            raise LawmError(
                f"{self.uri}: a cache of something else ({'; '.join(wrong)}); run `lawm encode` for this config"
            )

    def _states(self, part: str) -> np.ndarray:
        if part not in self._parts:
            uri = join(self.uri, part)
            try:
                if uri.startswith("s3://"):
                    table = pa.ipc.open_file(pa.py_buffer(read_bytes(uri))).read_all()
                else:
                    table = pa.ipc.open_file(pa.memory_map(uri)).read_all()
            except (OSError, pa.ArrowInvalid) as error:
                raise LawmError(
                    f"{uri}: missing or damaged part of the state cache ({error}); run `lawm encode` again"
                ) from error
            column = table.column("state").combine_chunks()
            flat = column.values.to_numpy(zero_copy_only=True)
            self._parts[part] = flat.reshape(-1, self.tokens, self.width)
        return self._parts[part]

    def window(self, key: str, first: int, frames: int) -> np.ndarray:
        """Raw states [frames / frames_per_state, N, D] of a video from frame number `first` of the 1/fps grid on;
        float16, or float32 where the cache holds bfloat16."""
        each = self.frames_per_state
        found: list[np.ndarray] = []
        for part, row, piece in sorted(self.places.get(key, []), key=lambda place: place[2].first):
            low, high = max(first, piece.first), min(first + frames, piece.first + piece.frames)
            if low < high:
                start = row + (low - piece.first) // each
                found.append(self._states(part)[start : start + (high - low) // each])
        if sum(map(len, found)) * each != frames or first % each:
            raise IndexError(f"{key}: frames {first} to {first + frames - 1} are not all in {self.uri}")
        return widened(found[0] if len(found) == 1 else np.concatenate(found))
