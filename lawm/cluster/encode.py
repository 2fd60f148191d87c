"""Index -> states of the frozen encoder, once: decoding on CPU tasks, encoding on actors, a part file a chunk.

A rerun after a kill keeps the parts that are done. A video that cannot be decoded is left out of the
cache's index with its reason, as `lawm index` would.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from lawm.cluster.session import DECODE, TRAIN, Need, label_selector
from lawm.config import ClipSpec, Config, LawmError
from lawm.data import (
    Index,
    Piece,
    StateCache,
    cache_key,
    check_exact,
    finish_cache,
    grid_frames,
    part_bytes,
    part_name,
    read_index,
    rounded,
)
from lawm.model import encode_clips, frames_per_state, load_encoder, looks_back
from lawm.storage import absolute, delete, exists, join, list_files, read_bytes, write_bytes
from lawm.training import autocast, pick_device
from lawm.video import VideoError, VideoRef, decode_clip

FRAMES_PER_PART = 512
FRAMES_PER_DECODE = 64
CALLS_PER_WORKER = 500


@dataclass(frozen=True)
class EncodeReport:
    """What was done: videos and frames in the cache, parts that were there already, videos refused and why."""

    videos: int
    frames: int
    kept_parts: int
    refused: dict[str, str]


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    return [
        Need("encode actor", cluster.encode_actors, 1.0, cluster.gpus_per_worker, TRAIN, "cluster.encode_actors=1"),
        Need("decode task", 1, cluster.decode_cpus, 0.0, DECODE, "cluster.decode_cpus=1"),
    ]


def chunks(index: Index, fps: float, whole: int = 1) -> list[list[tuple[int, Piece]]]:
    """(row, piece) of the index's videos, in chunks of about FRAMES_PER_PART frames; pieces of `whole` frames or
    a multiple of them, what is left at a video's end is not encoded."""
    keys = index.table.column("key").to_pylist()
    frames = grid_frames(index.column("duration_s"), index.column("rate"), fps) // whole * whole
    most = max(FRAMES_PER_PART // whole, 1) * whole
    found: list[list[tuple[int, Piece]]] = [[]]
    held = 0
    for row, (key, n) in enumerate(zip(keys, frames.tolist(), strict=True)):
        for first in range(0, n, most):
            piece = Piece(key, first, min(most, n - first))
            if held and held + piece.frames > FRAMES_PER_PART:
                found.append([])
                held = 0
            found[-1].append((row, piece))
            held += piece.frames
    return [c for c in found if c]


def decode_pieces(rows: dict[str, np.ndarray], config: Config) -> Iterator[dict[str, Any]]:
    """A chunk's frames, one block a chunk: its pieces as JSON, frames uint8 [frames, 3, S, S] and errors."""
    torch.set_num_threads(1)
    for text in rows["chunk"]:
        frames: list[np.ndarray] = []
        pieces: list[list[Any]] = []
        refused: dict[str, str] = {}
        for place, piece in ((r, Piece(*p)) for r, p in json.loads(str(text))):
            try:
                frames.append(decode_piece(VideoRef.at(place, piece.key), piece, config))
                pieces.append([piece.key, piece.first, piece.frames])
            except VideoError as error:
                refused[piece.key] = f"{error.reason}: {error}"
        cell = np.empty(1, dtype=object)
        side = config.data.clip.size
        cell[0] = np.concatenate(frames) if frames else np.zeros((0, 3, side, side), np.uint8)
        yield {
            "pieces": np.array([json.dumps(pieces)], dtype=object),
            "refused": np.array([json.dumps(refused)], dtype=object),
            "name": np.array([part_name([Piece(*p) for _, p in json.loads(str(text))])], dtype=object),
            "frames": cell,
        }


def decode_piece(ref: VideoRef, piece: Piece, config: Config) -> np.ndarray:
    """Frames uint8 [piece.frames, 3, S, S] of the 1/fps grid; raises VideoError."""
    clip, parts = config.data.clip, []
    for first in range(piece.first, piece.first + piece.frames, FRAMES_PER_DECODE):
        wanted = min(FRAMES_PER_DECODE, piece.first + piece.frames - first)
        # A clip has two frames at least: a single one is cut from a pair that ends with it.
        back = 1 if wanted == 1 and first > 0 else 0
        spec = ClipSpec(frames=max(2, wanted + back), fps=clip.fps, size=clip.size)
        frames = decode_clip(ref, (first - back) / clip.fps, spec, config.data.limits).frames_FCHW
        parts.append(frames[back : back + wanted])
    return np.concatenate(parts)


class EncodePart:
    """Holds the encoder; writes each chunk's states as a part file with a list of its pieces beside it."""

    def __init__(self, config: Config, uri: str) -> None:
        if config.cluster.encode_actors > 1:
            torch.set_num_threads(1)
        self.device = pick_device()
        self.config, self.uri = config, uri
        self.encoder = load_encoder(config.encoder, config.data.clip).to(self.device)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        total = 0
        for pieces_text, refused, name, frames in zip(
            rows["pieces"], rows["refused"], rows["name"], rows["frames"], strict=True
        ):
            pieces = [Piece(*p) for p in json.loads(str(pieces_text))]
            frames = np.asarray(frames)
            states = self.encode(frames)
            if pieces:
                each = len(frames) // len(states)
                ends = np.cumsum([p.frames // each for p in pieces])
                write_bytes(join(self.uri, str(name)), part_bytes(pieces, np.split(states, ends[:-1]), each))
            about = {"pieces": [[p.key, p.first, p.frames] for p in pieces], "refused": json.loads(str(refused))}
            write_bytes(join(self.uri, f"{name}.json"), json.dumps(about).encode())
            total += len(frames)
        return {"frames": np.array([total])}

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, 3, S, S], whole clips where the encoder looks back -> states as they are held, [states, N, D]."""
        data = self.config.data
        clip = data.clip.frames if self.encoder.looks_back else 1
        many = max(32 // clip, 1)
        shape = (0, self.encoder.tokens, self.encoder.state_width)
        out = [rounded(np.zeros(shape, np.float32), data.cache_dtype)]
        clips = frames.reshape(-1, clip, *frames.shape[1:])
        for i in range(0, len(clips), many):
            batch = torch.from_numpy(np.ascontiguousarray(clips[i : i + many])).to(self.device)
            with autocast(self.device, self.config.train.precision):
                states = encode_clips(self.encoder, batch, data.clip.duplicate)
            out.append(rounded(states.flatten(0, 1).float().cpu().numpy(), data.cache_dtype))
        return np.concatenate(out)


def whole_clips(config: Config) -> int:
    """Frames that have to be encoded together: a clip's for an encoder that looks back, else 1. Raises LawmError
    where states depend on more than their frames."""
    clip = config.data.clip
    if clip.crop != "center":
        raise LawmError(f"data.clip.crop = {clip.crop}: a cache holds each state once; use center")
    check_exact(clip)
    if not looks_back(config.encoder):
        return 1
    if clip.placement != "aligned":
        raise LawmError(
            "this encoder's states depend on where the clip starts: set data.clip.placement=aligned, here and in "
            "training, or encoder.causality=duplicate"
        )
    return clip.frames


def encode_index(config: Config, uri: str, progress: Callable[[int, int], None] | None = None) -> EncodeReport:
    """Writes the state cache `uri` of `config.data.index`; goes on where an interrupted run ended.

    Raises LawmError: no index, an encoder that looks back and clips that start anywhere, clips that are not exact,
    nothing encodable.
    """
    uri = absolute(uri)
    clip = config.data.clip
    if config.data.index is None:
        raise LawmError("no index: set data.index (see `lawm index`)")
    whole = whole_clips(config)
    encoder = load_encoder(config.encoder, clip)
    index = read_index(config.data.index).usable()
    key = cache_key(config, encoder.fingerprint(), index.fingerprint(), encoder.looks_back)
    key["dtype"] = config.data.cache_dtype
    there = None
    if exists(join(uri, "manifest.json")):
        there = StateCache(uri).key
    elif exists(join(uri, "key.json")):
        there = json.loads(read_bytes(join(uri, "key.json")))
    if there is not None and there != key:
        differ = [f"{k} = {there.get(k)!r} there, {key.get(k)!r} now" for k in sorted({*there, *key})]
        differ = [said for said, k in zip(differ, sorted({*there, *key}), strict=True) if there.get(k) != key.get(k)]
        raise LawmError(
            f"{uri}: a cache of another encoder, clip spec or index ({'; '.join(differ)}); choose another --out, or "
            "remove it"
        )
    write_bytes(join(uri, "key.json"), json.dumps(key).encode())
    every = chunks(index, clip.fps, whole)
    named = {part_name([p for _, p in chunk]): chunk for chunk in every}
    done = {found.rsplit("/", 1)[-1][:-5] for found, _ in list_files(uri, (".json",)) if found.endswith(".arrow.json")}
    todo = {name: chunk for name, chunk in named.items() if name not in done}
    total = sum(p.frames for chunk in every for _, p in chunk)
    count = total - sum(p.frames for chunk in todo.values() for _, p in chunk)
    if progress is not None:
        progress(count, total)
    for row in _stream(config, uri, index, todo) if todo else ():
        count += int(row["frames"])
        if progress is not None:
            progress(count, total)
    shape = (encoder.tokens, encoder.state_width)
    each = frames_per_state(encoder, clip.duplicate)
    return _finish(uri, key, index, list(named), shape, each, len(done & set(named)))


def _stream(
    config: Config, uri: str, index: Index, todo: dict[str, list[tuple[int, Piece]]]
) -> Iterator[dict[str, Any]]:
    cluster = config.cluster
    refs = {row: index.ref(row) for chunk in todo.values() for row, _ in chunk}
    texts = [json.dumps([[refs[r].place, [p.key, p.first, p.frames]] for r, p in chunk]) for chunk in todo.values()]
    DataContext.get_current().enable_progress_bars = False
    decode_on, encode_on = label_selector(cluster, DECODE), label_selector(cluster, TRAIN)
    # A decode worker is replaced now and then, lest what codecs leak add up. Unlike remote arguments also keep
    # Ray from fusing decoding into the actors.
    decode: dict[str, Any] = {"num_cpus": cluster.decode_cpus, "max_calls": CALLS_PER_WORKER}
    encode: dict[str, Any] = {"num_cpus": 1}
    if cluster.use_labels:
        decode["label_selector"], encode["label_selector"] = decode_on, encode_on
    if cluster.gpus_per_worker:
        encode["num_gpus"] = cluster.gpus_per_worker
    source = ray.data.from_arrow(pa.table({"chunk": texts})).repartition(len(texts))
    data = source.map_batches(
        decode_pieces,  # type: ignore[arg-type]  # Ray's annotation knows no further arguments
        batch_size=None,
        batch_format="numpy",
        fn_kwargs={"config": config},
        **decode,
    ).map_batches(
        EncodePart,
        fn_constructor_args=(config, uri),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(cluster.encode_actors, len(texts))),
        **encode,
    )
    yield from data.iter_rows()


def _finish(
    uri: str, key: dict[str, Any], index: Index, names: list[str], shape: tuple[int, int], each: int, kept: int
) -> EncodeReport:
    parts: dict[str, list[Piece]] = {}
    refused: dict[str, str] = {}
    for name in names:
        about = json.loads(read_bytes(join(uri, f"{name}.json")))
        refused |= about["refused"]
        if about["pieces"]:
            parts[name] = [Piece(*p) for p in about["pieces"]]
    if not parts:
        raise LawmError(
            f"no video could be encoded; the first reason: {next(iter(refused.values()), 'the index is empty')}"
        )
    table = index.table
    reasons = [refused[k].partition(":")[0] if k in refused else None for k in table.column("key").to_pylist()]
    marked = table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
    finish_cache(uri, key, Index(marked), parts, shape, each)
    for name in names:
        if name not in parts and exists(join(uri, name)):
            delete(join(uri, name))
    frames = sum(p.frames for found in parts.values() for p in found)
    return EncodeReport(len({p.key for f in parts.values() for p in f} - set(refused)), frames, kept, refused)
