"""Labelled data sets in the layouts in which they are given out -> where each video lies, and its labels.

A layout is read in two steps: `batches` lists it on the driver, from names and tables alone; `read` opens a batch's
own files (HDF5, Parquet, pickles), anywhere. Nothing is decoded. Videos stay where they are; only pictures that lie
one by one (RECON) are put, as they are, into Motion JPEG videos in tar shards.
Shape legend: T steps of an episode.
"""

import csv
import io
import posixpath
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from lawm import storage
from lawm.config import LawmError
from lawm.data.datasets import droid, lerobot, recon
from lawm.data.datasets.common import (
    KINDS,
    Batch,
    Layout,
    ReadSpec,
    Recording,
    in_batches,
    limited,
    read_json,
    refuse_options,
)
from lawm.data.dimensions import Meaning
from lawm.data.labels import read_labels
from lawm.data.listing import list_videos


def _class_choices(source: str, spec: ReadSpec) -> ReadSpec:
    refuse_options(spec, "action", "state", "cameras", "rate", "actions")
    return spec


def _ssv2_batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    """<anywhere>/<id>.webm, and JSON lists whose names end in train, validation and test (.json)."""
    root = storage.absolute(source).rstrip("/")
    known: dict[str, tuple[str, str | None]] = {}
    lists = 0
    for uri, _ in storage.list_files(root, (".json",)):
        match = re.search(r"(?:^|-)(train|validation|test)\.json$", posixpath.basename(uri))
        rows = read_json(uri) if match else None
        if not match or not isinstance(rows, list):
            continue
        lists += 1
        for row in rows:
            if not isinstance(row, dict) or "id" not in row:
                raise LawmError(f"{uri}: an entry without an id: {str(row)[:80]}")
            said = row.get("template") or row.get("label")
            known[str(row["id"])] = (match[1], said and re.sub(r"[\[\]]", "", plain(str(said))))
    if not lists:
        raise LawmError(f"{source}: no list of videos in train.json, validation.json or test.json, under any prefix")

    def found() -> Iterator[Recording]:
        for ref in list_videos([root]):
            number = posixpath.splitext(posixpath.basename(ref.key))[0]
            split, label = known.get(number, ("unlabelled", None))
            yield Recording(replace(ref, key=f"{split}/{posixpath.basename(ref.key)}"), label=label, split=split)

    yield from in_batches(limited(found(), spec.limit), 4096)


def _kinetics_batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    """<split>/<class>/<youtube id>_<start>_<end>.mp4, or flat with the CSVs of the data set beside it."""
    root = storage.absolute(source).rstrip("/")
    known: dict[str, tuple[str | None, str]] = {}
    for uri, _ in storage.list_files(root, (".csv",)):
        text = storage.read_bytes(uri).decode("utf-8-sig", "replace")
        for row in _csv_rows(text):
            with suppress(ValueError, TypeError, OverflowError, KeyError):  # a row that says no times
                start, end = (int(float(row[name])) for name in ("time_start", "time_end") if row.get(name))
                known[f"{row['youtube_id']}_{start:06d}_{end:06d}"] = (row.get("label") or None, row.get("split") or "")

    def found() -> Iterator[Recording]:
        for ref in list_videos([root]):
            folders = posixpath.dirname(ref.key).split("/")
            label, split = known.get(posixpath.splitext(posixpath.basename(ref.key))[0], (None, ""))
            inside = [f for f in folders if f and f not in _SPLITS]
            split = split or next((f for f in folders if f in _SPLITS), "")
            yield Recording(ref, label=label or (inside[-1] if inside else None), split=split or None)

    yield from in_batches(limited(found(), spec.limit), 4096)


def _csv_rows(text: str) -> Iterator[dict[str, str]]:
    with suppress(csv.Error):  # another file that ends in .csv
        yield from csv.DictReader(io.StringIO(text, newline=""))


def plain(text: str) -> str:
    """Without what UTF-8 cannot say."""
    return text.encode("utf-8", "replace").decode()


_SPLITS = ("train", "val", "validate", "validation", "test")


def _as_listed(batch: Batch, spec: ReadSpec, out: str) -> list[Recording]:
    return list(batch.what)


def _pusht_batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    labels = read_labels(storage.join(source, "labels.parquet"))

    def found() -> Iterator[Recording]:
        for ref in list_videos([source]):
            known = labels.of(ref.key) if ref.key in labels else None
            yield Recording(ref, known, reason=None if known else "labels: none in labels.parquet")

    yield from in_batches(limited(found(), spec.limit))


def _pusht_meaning(source: str, spec: ReadSpec) -> Meaning:
    return read_labels(storage.join(source, "labels.parquet")).meaning


def _pusht_choices(source: str, spec: ReadSpec) -> ReadSpec:
    refuse_options(spec, "action", "state", "cameras", "rate", "actions")
    return ReadSpec(spec.kind, actions="sum", limit=spec.limit)


LAYOUTS: dict[str, Layout] = {
    "lerobot": Layout("LeRobot v3 (DROID too)", lerobot.choices, lerobot.batches, lerobot.read, lerobot.meaning),
    "droid": Layout("DROID raw: mp4 and trajectory.h5", droid.choices, droid.batches, droid.read, droid.meaning),
    "recon": Layout(
        "RECON as NWM has it: jpg and traj_data.pkl", recon.choices, recon.batches, recon.read, recon.meaning
    ),
    "recon-hdf5": Layout("RECON's own HDF5", recon.choices, recon.batches, recon.read, recon.meaning),
    "ssv2": Layout("Something-Something-v2: webm and JSON", _class_choices, _ssv2_batches, _as_listed),
    "kinetics": Layout("Kinetics: a folder a class", _class_choices, _kinetics_batches, _as_listed),
    "pusht": Layout("what `lawm simulate` writes", _pusht_choices, _pusht_batches, _as_listed, _pusht_meaning),
}


def layout(kind: str) -> Layout:
    """Raises LawmError for an unknown kind."""
    if kind not in LAYOUTS:
        raise LawmError(f"{kind}: no layout of that name; expected one of {', '.join(KINDS)}")
    return LAYOUTS[kind]
