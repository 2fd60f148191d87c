"""The sampling plan's clips, by their position: from videos decoded here, or from a state cache.

No torch here: decode workers start in half the time without it. Legend: F frames, T states, A action width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import pyarrow as pa

from lawm.config import Config, LawmError
from lawm.datasets import Labels, read_labels
from lawm.sampling import Cursor, SamplingPlan
from lawm.shards import Index, read_index
from lawm.state_cache import StateCache

Split = Literal["train", "val", "all"]

LEAST_BAD = 20
"""Refused clips before their share of all clips can stop a run."""


@dataclass(frozen=True)
class Sample:
    """One clip: frames uint8 [F, 3, S, S], or raw states [T, N, D] as `StateCache.window` gives them; actions
    [F-1, A] if labelled."""

    position: int
    key: str
    start_s: float
    frames: np.ndarray | None
    states: np.ndarray | None
    actions: np.ndarray | None


@dataclass(frozen=True)
class BadClip:
    """A clip that could not be had, and why."""

    position: int
    key: str
    source: str
    start_s: float
    reason: str
    message: str


class Quarantine:
    """Counts clips read and clips refused; stops a run in which too many are refused."""

    def __init__(self, max_bad_fraction: float, on_bad: Callable[[BadClip], None] | None = None) -> None:
        self.limit, self.on_bad = max_bad_fraction, on_bad
        self.good = self.bad = 0

    def passed(self, found: Sample | BadClip) -> bool:
        """True for a clip; a bad one is counted and reported. Raises LawmError beyond the limit."""
        if isinstance(found, Sample):
            self.good += 1
            return True
        self.bad += 1
        if self.on_bad is not None:
            self.on_bad(found)
        if self.bad >= LEAST_BAD and self.bad / (self.good + self.bad) > self.limit:
            raise LawmError(
                f"{self.bad} of {self.good + self.bad} clips were refused, more than data.max_bad_fraction = "
                f"{self.limit:g} allows; the last: {found.message}"
            )
        return False


class ClipReader:
    """Clips of one split by their position in the plan.

    `labelled`: only videos that the labels cover, each clip with its actions. `frames`: decode videos
    even where there is a cache. Raises LawmError where no clip is left.
    """

    def __init__(
        self,
        config: Config,
        split: Split = "train",
        labelled: bool = False,
        frames: bool = False,
        index: Index | None = None,
    ) -> None:
        data = config.data
        self.config = config
        self.cache = StateCache(data.cache) if data.cache and not frames else None
        if index is None:
            if self.cache is not None:
                index = self.cache.index
            elif data.index:
                index = read_index(data.index)
            else:
                raise LawmError("no clips: set data.index (see `lawm index`), give --videos FOLDER, or set data.cache")
        usable = index.usable()
        if data.keys is not None:
            usable = Index(
                usable.table.filter(
                    pa.array([fnmatchcase(k, data.keys) for k in usable.table.column("key").to_pylist()])
                )
            )
            if not len(usable):
                raise LawmError(f"data.keys = {data.keys!r} matches no usable video of {data.index or data.cache}")
        if not len(usable):
            raise LawmError(f"{data.index or data.cache}: none of its {len(index)} videos is usable")
        self.labels: Labels | None = read_labels(data.labels) if data.labels else None
        if labelled:
            if self.labels is None:
                raise LawmError("labelled clips are needed: set data.labels to a Parquet table of actions")
            known = set(self.labels.keys)
            usable = Index(usable.table.filter(pa.array([k in known for k in usable.table.column("key").to_pylist()])))
            if not len(usable):
                raise LawmError(f"{data.labels} covers none of the videos of {data.index or data.cache}")
        self.index = usable if split == "all" else usable.split(split, data.val_fraction)
        if not len(self.index):
            advice = "set data.val_fraction to 0, or add videos"
            if split == "val":
                advice = "measure on all videos with --set evaluate.split=all, or train with more videos held out"
            raise LawmError(
                f"the {split} split is empty: {len(usable)} usable videos, "
                f"data.val_fraction = {data.val_fraction:g}; {advice}"
            )
        self.plan = SamplingPlan(self.index, data.clip, data.clips_per_video, data.seed)
        self.keys = self.index.table.column("key").to_pylist()

    def sample(self, position: int) -> Sample:
        """The clip at that position; raises VideoError for a bad video."""
        rows = self.plan.rows(np.array([position], dtype=np.int64))
        video, start_s = int(rows.video[0]), float(rows.start_s[0])
        clip, key = self.config.data.clip, self.keys[video]
        actions = None
        if self.labels is not None and key in self.labels:
            actions = self.labels.actions_for(key, start_s, clip)
        if self.cache is not None:
            states = self.cache.window(key, round(start_s * clip.fps), clip.frames)
            return Sample(position, key, start_s, None, states, actions)
        from lawm.video import decode_clip

        decoded = decode_clip(self.index.ref(video), start_s, clip, self.config.data.limits, int(rows.seed[0]))
        return Sample(position, key, start_s, decoded.frames_FCHW, None, actions)

    def try_sample(self, position: int) -> Sample | BadClip:
        """The clip, or what is to be quarantined."""
        from lawm.video import VideoError

        try:
            return self.sample(position)
        except VideoError as error:
            rows = self.plan.rows(np.array([position], dtype=np.int64))
            ref = self.index.ref(int(rows.video[0]))
            return BadClip(position, ref.key, ref.source, float(rows.start_s[0]), error.reason, str(error))


def open_reader(config: Config, kind: str, split: Split = "train", index: Index | None = None) -> ClipReader:
    """Clips as that kind of objective needs them: labelled for a controller, frames for a decoder."""
    labelled = kind == "controller" or config.model.bottleneck.kind == "true_actions"
    return ClipReader(config, split, labelled=labelled, frames=kind == "decoder", index=index)


def plan_positions(cursor: Cursor, rank: int = 0, world: int = 1) -> Iterator[int]:
    """Positions not consumed yet, for ever; rank r takes every `world`-th."""
    ahead = set(cursor.ahead)
    position, turn = cursor.low, 0
    while True:
        if position not in ahead:
            if turn % world == rank:
                yield position
            turn += 1
        position += 1


def first_clips(reader: ClipReader, count: int) -> list[Sample]:
    """The plan's first `count` usable clips of one epoch, each once, for calibration and evaluation.

    Raises LawmError if there is none.
    """
    found = [reader.try_sample(p) for p in range(min(count, len(reader.plan)))]
    good = [s for s in found if isinstance(s, Sample)]
    if not good:
        bad = next(s for s in found if isinstance(s, BadClip))
        raise LawmError(f"none of the first {len(found)} clips can be read; the first: {bad.message}")
    return good
