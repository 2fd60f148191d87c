"""Labelled data sets on Ray: their own files are read in tasks, their videos indexed, and both held against each other.

`<out>/index.parquet`, and `labels.parquet` (actions) or `classes.parquet` (what each clip shows, and its split).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import exceptions as ray_errors

from lawm import storage
from lawm.cluster.index import build_index
from lawm.cluster.prepare import claim
from lawm.cluster.session import DECODE, decode_slots, label_selector
from lawm.config import Config, LawmError
from lawm.data import (
    FRAMES_OFF,
    INDEX_SCHEMA,
    Batch,
    Index,
    Labels,
    ReadSpec,
    Recording,
    VideoLabels,
    labels_table,
    layout,
    read_index,
    rows_to_table,
    write_index,
)
from lawm.video import empty_row

DRIFT = 0.5
"""Steps by which a video's time may run away from that of its labels, from its first frame to its last."""
CLASSES_SCHEMA = pa.schema([("key", pa.string()), ("split", pa.string()), ("label", pa.string())])
HELD = ("frames", "rate", "variable_rate", "duration_s", "reason")
"""Columns of the index that labels are held against, and may change."""
ATTEMPTS = 2
MANIFEST = "dataset.json"


@dataclass(frozen=True)
class DatasetReport:
    """Where index and labels (or classes) are, videos in the index, those that can be used, refused ones by reason
    and the first key of each reason, and the spec with all choices made."""

    index: str
    labels: str | None
    classes: str | None
    videos: int
    usable: int
    hours: float
    reasons: dict[str, int]
    examples: dict[str, str]
    spec: ReadSpec
    notes: tuple[str, ...] = ()
    """What the tables had wrong and was put right, a line each."""


def read_dataset(
    source: str, spec: ReadSpec, out: str, config: Config, progress: Callable[[int, int], None] | None = None
) -> DatasetReport:
    """Reads the data set at `source`, inside `session.start`. `progress(videos read, of how many)`. Raises LawmError:
    not of that layout, another data set in `out`, nothing that can be used."""
    source, out = storage.absolute(source).rstrip("/"), storage.absolute(out).rstrip("/")
    chosen = layout(spec.kind).choices(source, spec)
    check_place(source, out, spec)
    wanted = json.loads(json.dumps({"source": source} | asdict(chosen)))
    if storage.exists(storage.join(out, MANIFEST)):
        claim(out, MANIFEST, wanted)
    storage.sweep(out)
    try:
        recordings = _recordings(source, chosen, out, config, progress)
    finally:
        storage.sweep(out)  # tasks that were ended leave half a shard
    table = _label_table(recordings, chosen, source)
    claim(out, MANIFEST, wanted)
    # The index comes last, so that none is there that was not held against its labels.
    uri, probed = storage.join(out, "index.parquet"), storage.join(out, "probed.parquet")
    build_index([source], probed, config, refs=(r.ref for r in recordings if r.reason is None))
    index = _matched(recordings, read_index(probed))
    if not len(index.usable()):
        said = ", ".join(f"{reason} {count}" for reason, count in index.reasons().items())
        raise LawmError(
            f"{source}: none of {len(index)} videos can be used ({said}); the first: {index.table['reason'][0].as_py()}"
        )
    labels, classes = _write_tables(recordings, table, out)
    write_index(index, uri)
    storage.delete(probed)
    usable = index.usable()
    hours = float(usable.column("duration_s").sum()) / 3600
    return DatasetReport(
        uri,
        labels,
        classes,
        len(index),
        len(usable),
        hours,
        index.reasons(),
        _examples(index),
        chosen,
        _notes(recordings),
    )


def _recordings(
    source: str, spec: ReadSpec, out: str, config: Config, progress: Callable[[int, int], None] | None
) -> list[Recording]:
    """All that the data set's own files say, checked. Raises LawmError: nothing is there, nothing can be used."""
    batches = list(layout(spec.kind).batches(source, spec))
    total = sum(batch.episodes for batch in batches) * max(1, len(spec.cameras))
    recordings: list[Recording] = []
    for found in _read_all(source, batches, spec, out, config):
        recordings += found
        if progress is not None:
            progress(len(recordings), total)
    if not recordings:
        raise LawmError(f"{source}: no video found in the layout {spec.kind}")
    recordings = _checked(recordings)
    if all(r.reason is not None for r in recordings):
        raise LawmError(f"{source}: none of {len(recordings)} videos can be used; the first: {recordings[0].reason}")
    return recordings


def _notes(recordings: list[Recording]) -> tuple[str, ...]:
    """What was put right, one line for all of it, with the first that it was."""
    noted = [r for r in recordings if r.note is not None and r.reason is None]
    if not noted:
        return ()
    return (
        f"{len(noted)} videos begin elsewhere than the tables say: put right by the lengths of those before them, "
        f"such as {noted[0].ref.key} by {noted[0].note}",
    )


def _examples(index: Index) -> dict[str, str]:
    """The first video that was refused for each reason, and the figures of it."""
    found: dict[str, str] = {}
    for key, reason in zip(index.keys(), index.table["reason"].to_pylist(), strict=True):
        if reason:
            found.setdefault(reason.partition(":")[0], f"{key} ({reason.partition(':')[2].strip()})")
    return found


def _read_all(source: str, batches: list[Batch], spec: ReadSpec, out: str, config: Config) -> Iterator[list[Recording]]:
    """Recordings by batch, in the layout's order, as many batches at once as there are slots."""
    remote = ray.remote(_read).options(
        num_cpus=config.cluster.decode_cpus, max_retries=0, label_selector=label_selector(config.cluster, DECODE)
    )
    waiting: list[tuple[Batch, ray.ObjectRef]] = []

    def result() -> list[Recording]:
        batch, future = waiting.pop(0)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return list(ray.get(future))
            except (ray_errors.RayTaskError, ray_errors.RuntimeEnvSetupError, ray_errors.TaskUnschedulableError):
                raise
            except ray_errors.RayError as error:
                if attempt == ATTEMPTS:
                    raise LawmError(
                        f"{source}: reading took its worker down {ATTEMPTS} times ({type(error).__name__}), "
                        f"in the {batch.number + 1}th lot of episodes: {str(batch.what)[:200]}"
                    ) from None
                future = remote.remote(batch, spec, out)
        raise AssertionError("not reached")

    try:
        for batch in batches:
            waiting.append((batch, remote.remote(batch, spec, out)))
            if len(waiting) > decode_slots(config.cluster) + 2:
                yield result()
        while waiting:
            yield result()
    finally:
        for _, future in waiting:
            ray.cancel(future, force=True)


def _read(batch: Batch, spec: ReadSpec, out: str) -> list[Recording]:
    return layout(spec.kind).read(batch, spec, out)


def _checked(recordings: list[Recording]) -> list[Recording]:
    """Each with a key of its own (`#2`, ...), here and in its labels. Refused are videos that are there twice, and
    labels that hold no numbers, or not as many as the first, lest one episode spoil the table of all."""
    used: dict[str, int] = {}
    places: dict[tuple[Any, ...], str] = {}
    widths: tuple[int, ...] | None = None
    found = []
    for recording in recordings:
        key, place = recording.ref.key, recording.ref.place
        used[key] = used.get(key, 0) + 1
        if used[key] > 1:
            while f"{key}#{used[key]}" in used:
                used[key] += 1
            key = f"{key}#{used[key]}"
            used[key] = 1
            labels = recording.labels and replace(recording.labels, key=key)
            recording = replace(recording, ref=replace(recording.ref, key=key), labels=labels)
        values = (
            [v for v in (recording.labels.actions, recording.labels.states) if v is not None]
            if recording.labels
            else []
        )
        own = tuple(v.shape[1] for v in values)
        reason = recording.reason
        if reason is None and place in places:
            reason = f"labels: the same video as {places[place]}"
        elif not all(np.isfinite(v).all() for v in values):
            reason = "labels: some are not finite, or beyond float32"
        elif values and (0 in own or own != (widths or own)):
            reason = f"labels: {own} numbers a step; expected {widths or 'one or more'}, as in the first"
        if reason is None:
            places[place] = key
            widths = widths or own or None
        found.append(recording if reason is None else replace(recording, labels=None, reason=reason))
    return found


def check_place(source: str, out: str, spec: ReadSpec) -> None:
    """Raises LawmError for an `out` that cannot be written to, or in which the data set would be found again."""
    storage.check_folder(out)
    if spec.kind == "lerobot" and f"{out}/".startswith(f"{source}/"):
        raise LawmError(f"--out {out} is inside the data set {source}; choose another place")


def _matched(recordings: list[Recording], index: Index) -> Index:
    """The index with those that were refused while reading, and with every video held against its labels."""
    refused = rows_to_table([empty_row(r.ref, r.reason) for r in recordings if r.reason is not None])
    # Refused ones come after the others in `both`; the order is that of the recordings.
    both, good, bad = pa.concat_tables([index.table, refused]), 0, len(index)
    order = []
    for recording in recordings:
        order.append(good if recording.reason is None else bad)
        good, bad = (good + 1, bad) if recording.reason is None else (good, bad + 1)
    table = both.take(pa.array(order, pa.int64()))
    rows = table.select(list(HELD)).to_pylist()  # not the key frames: these would be a Python object each
    for i, recording in enumerate(recordings):
        if recording.labels is not None:
            rows[i] = held_against(rows[i], recording.labels)
    for name in HELD:
        field = INDEX_SCHEMA.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array([r[name] for r in rows], field.type))
    return Index(table)


def held_against(row: dict[str, Any], labels: VideoLabels) -> dict[str, Any]:
    """The index row of a video, no longer than its labels; refused where the two cannot belong together."""
    if row["reason"] is not None:
        return row
    steps = len(labels.actions) if labels.states is None else len(labels.states)
    if abs(row["frames"] - steps) > FRAMES_OFF:
        return row | {"reason": f"labels: {row['frames']} frames, and {steps} steps in the labels"}
    frames = min(row["frames"], steps)
    if abs(labels.rate_hz / row["rate"] - 1) * frames > DRIFT:
        return row | {"reason": f"labels: {row['rate']:.3f} frames a second, and {labels.rate_hz:.3f} steps"}
    if row["variable_rate"]:
        return row | {"reason": "labels: frames at a variable rate, which no step belongs to by its time"}
    return row | {"frames": frames, "duration_s": min(row["duration_s"], steps / labels.rate_hz)}


def _label_table(recordings: list[Recording], spec: ReadSpec, source: str) -> pa.Table | None:
    """The table of labels, looked at before anything is written; None where there are none."""
    labelled = [r.labels for r in recordings if r.labels is not None]
    if spec.actions is None or not labelled:
        return None
    table = labels_table(labelled, spec.actions, layout(spec.kind).meaning(source, spec))
    Labels(table, source)
    return table


def _write_tables(recordings: list[Recording], table: pa.Table | None, out: str) -> tuple[str | None, str | None]:
    sink = BytesIO()
    if table is not None:
        uri = storage.join(out, "labels.parquet")
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(uri, sink.getvalue())
        return uri, None
    if not any(r.label or r.split for r in recordings):
        return None, None
    uri = storage.join(out, "classes.parquet")
    columns = [[r.ref.key for r in recordings], [r.split for r in recordings], [r.label for r in recordings]]
    pq.write_table(pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], schema=CLASSES_SCHEMA), sink)
    storage.write_bytes(uri, sink.getvalue())
    return None, uri
