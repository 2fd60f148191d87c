"""Labelled data sets in the layouts in which they are given out -> where each video lies, and its labels.

A layout is read in two steps: `batches` lists it on the driver, from names and tables alone; `read` opens a batch's
own files (HDF5, Parquet, pickles), anywhere. Nothing is decoded. Videos stay where they are; only pictures that lie
one by one (RECON) are put, as they are, into Motion JPEG videos in tar shards.
Shape legend: T steps of an episode.
"""

from collections.abc import Iterator

from lawm import storage
from lawm.config import LawmError
from lawm.data.datasets import classes, droid, lerobot, recon
from lawm.data.datasets.common import (
    KINDS,
    Batch,
    Layout,
    ReadSpec,
    Recording,
    in_batches,
    limited,
    refuse_options,
)
from lawm.data.dimensions import Meaning
from lawm.data.labels import read_labels
from lawm.data.listing import list_videos
from lawm.video import VideoRef


def _pusht_batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    labels = read_labels(storage.join(source, "labels.parquet"))
    left = dict.fromkeys(labels.keys)

    def found() -> Iterator[Recording]:
        for ref in list_videos([source]):
            known = labels.of(ref.key) if ref.key in labels else None
            left.pop(ref.key, None)
            odd = known is None and not ref.key.endswith("/")  # a folder that may not be read says so itself
            yield Recording(ref, known, reason="labels: none in labels.parquet" if odd else None)
        for key in left:
            yield Recording(VideoRef(source, 0, 0, key), reason="missing: labels.parquet has it, and no video is there")

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
    "ssv2": Layout("Something-Something-v2: webm and JSON", classes.choices, classes.ssv2_batches, classes.as_listed),
    "kinetics": Layout("Kinetics: a folder a class", classes.choices, classes.kinetics_batches, classes.as_listed),
    "pusht": Layout("what `lawm simulate` writes", _pusht_choices, _pusht_batches, classes.as_listed, _pusht_meaning),
}


def layout(kind: str) -> Layout:
    """Raises LawmError for an unknown kind."""
    if kind not in LAYOUTS:
        raise LawmError(f"{kind}: no layout of that name; expected one of {', '.join(KINDS)}")
    return LAYOUTS[kind]
