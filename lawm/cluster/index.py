"""Builds the index on Ray: lists sources, probes their videos in parallel, survives kills and broken videos.

Videos are listed and probed in chunks. The rows of a finished chunk are written as a part (`<uri>.parts/<hash of the
chunk>.parquet`), so that the same command, run again after a kill, probes only what is missing. A file whose probing
kills its worker is found by halving its chunk, and refused with the reason `crashed`.
"""

import hashlib
import json
import os
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import exceptions as ray_errors
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lawm import storage
from lawm.cluster.session import DECODE, Need, decode_slots, label_selector
from lawm.config import ClusterConfig, Config, LawmError, VideoLimits
from lawm.data import INDEX_SCHEMA, VIDEO_SUFFIXES, expand, grouped, list_files, rows_to_table, unique_keys, write_index
from lawm.parquet import read_parquet
from lawm.video import VideoRef, empty_row

Probe = Callable[[VideoRef, VideoLimits], dict[str, Any]]

CHUNK_SIZES = ((32, 4), (128, 16), (1024, 64))
"""(up to this chunk, videos in it), later ones hold LARGEST_CHUNK: few videos still spread over the workers, many do
not make many parts. Fixed, because a part is recognised by what is in it."""
LARGEST_CHUNK = 256
LISTED_AHEAD = 4096
"""Chunks that may be listed before they are probed: enough for a total and an estimate, bounded in memory."""
TARS_AHEAD = 64
ATTEMPTS = 3
"""How often a lone video may take its worker down before it is refused: a node may have died for other reasons."""
MERGE_ROWS = 50_000


@dataclass(frozen=True)
class IndexReport:
    """What became of the videos: `videos` = `usable` + the sum of `reasons`; `resumed` of them were probed earlier."""

    uri: str
    videos: int
    usable: int
    reasons: dict[str, int]
    examples: dict[str, str]
    """The first key of each reason."""
    resumed: int
    seconds: float


def index_needs(config: Config) -> list[Need]:
    """What must find room for `build_index` to move at all; it uses every CPU that is free."""
    return [Need("probe task", cpus=config.cluster.decode_cpus, role=DECODE, lower="cluster.decode_cpus=1")]


def check_places(sources: Sequence[str], uri: str) -> None:
    """Raises LawmError for a source without videos and for a `uri` that cannot be written: before Ray is started."""
    for source in sources:
        if next(list_files([source]), None) is None:
            raise LawmError(
                f"{source}: no video found. Expected a tar, or a file that ends in {', '.join(VIDEO_SUFFIXES)}"
            )
    if storage.is_s3(uri):
        storage.write_bytes(f"{uri}.parts/check", b"")
        storage.delete(f"{uri}.parts/check")
        return
    storage.check_folder(os.path.dirname(storage.absolute(uri)))


def build_index(
    sources: Sequence[str],
    uri: str,
    config: Config,
    *,
    refs: Iterable[VideoRef] | None = None,
    console: Console | None = None,
    probe: Probe | None = None,
    group: re.Pattern[str] | None = None,
) -> IndexReport:
    """Lists and probes every video in `sources`; writes the index to `uri` (Parquet, INDEX_SCHEMA) in listing order.

    Inside `session.start`. Raises LawmError when a source does not exist or none of its videos can be used; then no
    index is written. `refs`: these videos, with their keys, instead of what the sources hold. `probe` stands in for
    lawm.video.probe. `group`: see `lawm.data.grouped`.
    """
    started = time.monotonic()
    if refs is None:
        check_places(sources, uri)
    parts = _Parts(storage.absolute(uri), config.data.limits)
    listing = _Listing(sources, config.cluster, refs, group)
    listing.start()
    work = _Work(parts, config, probe or _probe_video)
    try:
        with _Shown(console or Console(stderr=True), listing, parts):
            for refs in listing.chunks():
                part = parts.place(refs)
                if not parts.recall(part):
                    work.add(refs, part)
            work.drain()
    except BaseException:
        work.cancel()
        raise
    finally:
        listing.stop()
    if not parts.videos:
        parts.remove()
        raise LawmError(f"{', '.join(sources)}: no video found, only tars without {', '.join(VIDEO_SUFFIXES)} members")
    if not parts.usable:
        parts.remove()
        said = ", ".join(f"{reason} {count}" for reason, count in parts.reasons.most_common())
        raise LawmError(
            f"{', '.join(sources)}: none of {parts.videos} videos can be used ({said}; for example "
            f"{next(iter(parts.examples.values()))}). No index was written"
        )
    write_index(parts.tables(), uri)
    parts.remove()
    reasons = dict(parts.reasons.most_common())
    return IndexReport(
        parts.uri, parts.videos, parts.usable, reasons, parts.examples, parts.resumed, time.monotonic() - started
    )


# ---------------------------------------------------------------- listing
class _Listing(threading.Thread):
    """Lists the sources in a thread of its own, a bounded way ahead; tars are read on Ray, their order is kept."""

    def __init__(
        self,
        sources: Sequence[str],
        cluster: ClusterConfig,
        given: Iterable[VideoRef] | None,
        group: re.Pattern[str] | None,
    ) -> None:
        super().__init__(name="lawm-listing", daemon=True)
        self.videos = 0
        self.complete = False
        self._sources = list(sources)
        self._given, self._group = given, group
        self._expand = ray.remote(_expand_tar).options(
            num_cpus=cluster.decode_cpus, label_selector=label_selector(cluster, DECODE)
        )
        self._queue: queue.Queue[list[VideoRef] | BaseException | None] = queue.Queue(LISTED_AHEAD)
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            refs = unique_keys(self._refs()) if self._given is None else iter(self._given)
            for chunk in _chunked(refs if self._group is None else grouped(refs, self._group)):
                self.videos += len(chunk)
                if not self._put(chunk):
                    return
            self.complete = True
            self._put(None)
        except BaseException as error:
            self._put(error)

    def chunks(self) -> Iterator[list[VideoRef]]:
        """Chunks in listing order; raises what listing raised."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=10)

    def _put(self, item: list[VideoRef] | BaseException | None) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return True
        return False

    def _refs(self) -> Iterator[VideoRef]:
        ahead: deque[VideoRef | ray.ObjectRef] = deque()
        for file in list_files(self._sources):
            if self._stopped.is_set():
                return
            ahead.append(self._expand.remote(file) if file.is_tar else file)
            while ahead and (isinstance(ahead[0], VideoRef) or len(ahead) > TARS_AHEAD):
                yield from _resolve(ahead.popleft())
        while ahead and not self._stopped.is_set():
            yield from _resolve(ahead.popleft())


def _resolve(item: "VideoRef | ray.ObjectRef") -> list[VideoRef]:
    return [item] if isinstance(item, VideoRef) else ray.get(item)


def _expand_tar(ref: VideoRef) -> list[VideoRef]:
    try:
        return list(expand(ref))
    except LawmError:
        return [ref]  # one tar that cannot be read: its probe says why


def _chunked(refs: Iterable[VideoRef]) -> Iterator[list[VideoRef]]:
    chunk: list[VideoRef] = []
    done = 0
    for ref in refs:
        chunk.append(ref)
        if len(chunk) == next((size for upto, size in CHUNK_SIZES if done < upto), LARGEST_CHUNK):
            yield chunk
            chunk = []
            done += 1
    if chunk:
        yield chunk


# ---------------------------------------------------------------- probing
def _probe_video(ref: VideoRef, limits: VideoLimits) -> dict[str, Any]:
    from lawm.video import probe

    return probe(ref, limits)


def _probe_chunk(refs: Sequence[VideoRef], limits: VideoLimits, probe: Probe) -> pa.Table:
    """On a worker: one row a video. A probe that hangs in a library is left behind, and its process with it."""
    rows = []
    hung = False
    for ref in refs:
        box: list[Any] = []
        thread = threading.Thread(target=_into, args=(box, probe, ref, limits), daemon=True)
        thread.start()
        thread.join(_hung_after(limits))
        if not box:
            hung = True
            rows.append(empty_row(ref, f"timeout: no answer in {_hung_after(limits):.0f} s"))
        elif isinstance(box[0], BaseException):
            raise box[0]
        else:
            rows.append(box[0])
    if hung:
        threading.Timer(2.0, os._exit, (1,)).start()
    return rows_to_table(rows)


def _hung_after(limits: VideoLimits) -> float:
    """Seconds after which a probe, which keeps to `timeout_s` by itself, counts as hung."""
    return 2 * limits.timeout_s


def _into(box: list[Any], probe: Probe, ref: VideoRef, limits: VideoLimits) -> None:
    try:
        box.append(probe(ref, limits))
    except BaseException as error:
        box.append(error)


@dataclass
class _Chunk:
    """A chunk on its way: the tables of its pieces by position, and how many rows are still out."""

    refs: list[VideoRef]
    part: str
    pieces: dict[int, pa.Table]
    left: int


@dataclass(frozen=True)
class _Task:
    chunk: _Chunk
    start: int
    size: int
    attempt: int
    deadline: float

    @property
    def refs(self) -> list[VideoRef]:
        return self.chunk.refs[self.start : self.start + self.size]


class _Work:
    """The probe tasks in flight, as many as the cluster can run and a few more."""

    def __init__(self, parts: "_Parts", config: Config, probe: Probe) -> None:
        self._parts = parts
        self._cluster = config.cluster
        self._limits = config.data.limits
        self._probe = ray.put(probe)
        # Not Ray's retries: with them a file that takes all memory is tried without end (task_oom_retries).
        self._remote = ray.remote(_probe_chunk).options(
            num_cpus=config.cluster.decode_cpus, max_retries=0, label_selector=label_selector(config.cluster, DECODE)
        )
        self._running: dict[ray.ObjectRef, _Task] = {}

    def add(self, refs: list[VideoRef], part: str) -> None:
        """Starts a chunk, once there is room for it."""
        while len(self._running) >= 2 * decode_slots(self._cluster) + 2:
            self._collect()
        self._submit(_Chunk(refs, part, {}, len(refs)), 0, len(refs))

    def drain(self) -> None:
        while self._running:
            self._collect()

    def cancel(self) -> None:
        for future in self._running:
            with suppress(Exception):
                ray.cancel(future, force=True)

    def _submit(self, chunk: _Chunk, start: int, size: int, attempt: int = 1) -> None:
        refs = chunk.refs[start : start + size]
        # For what the worker's own watch cannot see, a library that hangs and holds the interpreter lock.
        patience = 120.0 + 4 * size * _hung_after(self._limits)
        future = self._remote.remote(refs, self._limits, self._probe)
        self._running[future] = _Task(chunk, start, size, attempt, time.monotonic() + patience)

    def _collect(self) -> None:
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=2.0)
        for future in ready:
            task = self._running.pop(future)
            try:
                table = ray.get(future)
            except (ray_errors.RayTaskError, ray_errors.RuntimeEnvSetupError, ray_errors.TaskUnschedulableError):
                raise
            except ray_errors.RayError as error:
                self._split(task, type(error).__name__)
            else:
                self._finish(task, table)
        if not ready:
            for future, task in self._running.items():
                if time.monotonic() > task.deadline:
                    ray.cancel(future, force=True)

    def _split(self, task: _Task, error: str) -> None:
        """The worker died: try the halves, so that the one video to blame is found; in the end refuse that one."""
        if task.size > 1:
            half = task.size // 2
            self._submit(task.chunk, task.start, half)
            self._submit(task.chunk, task.start + half, task.size - half)
        elif task.attempt < ATTEMPTS:
            self._submit(task.chunk, task.start, 1, task.attempt + 1)
        else:
            reason = f"crashed: took its process down {ATTEMPTS} times ({error})"
            self._finish(task, rows_to_table([empty_row(task.refs[0], reason)]))

    def _finish(self, task: _Task, table: pa.Table) -> None:
        chunk = task.chunk
        chunk.pieces[task.start] = table
        chunk.left -= task.size
        if not chunk.left:
            self._parts.add(chunk.part, pa.concat_tables([chunk.pieces[start] for start in sorted(chunk.pieces)]))


# ---------------------------------------------------------------- parts
class _Parts:
    """The chunks that are finished, on disk, and the counts over them."""

    def __init__(self, uri: str, limits: VideoLimits) -> None:
        self.uri = uri
        self.folder = f"{uri}.parts"
        self.videos = self.usable = self.resumed = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        # Rows depend on these besides the files.
        self._salt = json.dumps([limits.model_dump(), str(INDEX_SCHEMA)])
        self._order: list[str] = []
        self._there = {name for name, _ in storage.list_files(self.folder)} if storage.exists(self.folder) else set()

    def place(self, refs: Sequence[VideoRef]) -> str:
        """Gives the chunk the next place in the index; returns the URI of its part."""
        digest = hashlib.blake2b(self._salt.encode(), digest_size=16)
        for ref in refs:
            digest.update(json.dumps([*ref.place, ref.key, ref.group]).encode())
        self._order.append(storage.join(self.folder, f"{digest.hexdigest()}.parquet"))
        return self._order[-1]

    def recall(self, part: str) -> bool:
        """Whether an earlier run has finished that part; it is counted then."""
        if part not in self._there:
            return False
        table = self._read(part, ["key", "reason"])
        self.resumed += table.num_rows
        self._count(table)
        return True

    def add(self, part: str, table: pa.Table) -> None:
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        storage.write_bytes(part, buffer.getvalue())
        self._count(table)

    def tables(self) -> Iterator[pa.Table]:
        """All rows in listing order, many parts at a time."""
        held: list[pa.Table] = []
        for part in self._order:
            held.append(self._read(part))
            if sum(table.num_rows for table in held) >= MERGE_ROWS:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)

    def remove(self) -> None:
        storage.delete(self.folder)

    @staticmethod
    def _read(part: str, columns: list[str] | None = None) -> pa.Table:
        with storage.open_file(part) as file:
            return read_parquet(file, columns)

    def _count(self, table: pa.Table) -> None:
        self.videos += table.num_rows
        for key, reason in zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True):
            if reason is None:
                self.usable += 1
            else:
                slug = reason.partition(":")[0]
                self.reasons[slug] += 1
                self.examples.setdefault(slug, key)


# ---------------------------------------------------------------- progress
class _Shown(threading.Thread):
    """Progress with an estimate as soon as the listing is through: a live bar, or a line now and then in a log."""

    LINE_EVERY_S = 15.0

    def __init__(self, console: Console, listing: _Listing, parts: _Parts) -> None:
        super().__init__(name="lawm-index-progress", daemon=True)
        self._console, self._listing, self._parts = console, listing, parts
        self._stopped = threading.Event()

    def run(self) -> None:
        if not self._console.is_terminal:
            while not self._stopped.wait(self.LINE_EVERY_S):
                self._console.print(f"index: {self._text()}", soft_wrap=True, highlight=False)
            return
        columns = [SpinnerColumn(), TextColumn("index"), BarColumn(), TextColumn("{task.description}")]
        with Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, transient=True
        ) as bar:
            task = bar.add_task("", total=None)
            while not self._stopped.wait(0.2):
                total = self._listing.videos if self._listing.complete else None
                bar.update(task, completed=self._parts.videos, total=total, description=self._text())

    def _text(self) -> str:
        parts, listing = self._parts, self._listing
        of = f"of {listing.videos}{'' if listing.complete else ' or more'}"
        return f"{parts.videos} {of} videos, {parts.usable} usable, {parts.videos - parts.usable} refused"

    def __enter__(self) -> "_Shown":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self.join(timeout=5)
