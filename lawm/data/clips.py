"""The sampling plan's clips, by their position: from videos decoded here, or from a state cache.

No torch here: decode workers start in half the time without it. Legend: F frames, T states, A action width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import numpy as np

from lawm.config import Config, LawmError
from lawm.data.index import Index, read_pieces
from lawm.data.labels import ClipLabelsError, Labels, read_labels
from lawm.data.sampling import Cursor, MixturePlan, PlanArrays, SamplingPlan
from lawm.data.splitting import Splitter, share_of_groups
from lawm.data.state_cache import StateCache, check_exact

Split = Literal["train", "val", "all"]

LEAST_BAD = 20
"""Refused clips before their share of all clips can stop a run."""


@dataclass(frozen=True)
class Sample:
    """One clip: frames uint8 [F, 3, S, S], or raw states [T, N, D] as `StateCache.window` gives them; actions
    [F-1, A] if labelled; `group`: what its video belongs to (`Index.groups`)."""

    position: int
    key: str
    start_s: float
    frames: np.ndarray | None
    states: np.ndarray | None
    actions: np.ndarray | None
    group: str


@dataclass(frozen=True)
class BadClip:
    """A clip that could not be had, and why."""

    position: int
    key: str
    source: str
    start_s: float
    reason: str
    message: str


class ClipId(NamedTuple):
    """A clip as it was read, or refused: its position in the plan, its video's key and its start in that video."""

    position: int
    key: str
    start_s: float
    refused: bool


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


def matches(key: str, pattern: str) -> bool:
    """Whether a video's key is what `data.keys` asks for: a shell's pattern, or the key itself as it is written."""
    return key == pattern or fnmatchcase(key, pattern)


class EmptySplit(LawmError):
    """No video fell into the split that was asked for."""


class ClipReader:
    """Clips of one split by their position in the plan.

    `labelled`: only videos that the labels cover, each clip with its actions. `frames`: decode videos
    even where there is a cache. `index`: instead of the config's; with `arrays`, that and the plan of another
    reader of the same config, taken as they are. Raises LawmError where no clip is left.
    """

    def __init__(
        self,
        config: Config,
        split: Split = "train",
        labelled: bool = False,
        frames: bool = False,
        index: Index | None = None,
        arrays: PlanArrays | None = None,
    ) -> None:
        data = config.data
        self.config = config
        self.cache = StateCache(data.cache) if data.cache and not frames else None
        self.labels: Labels | None = read_labels(data.labels) if data.labels else None
        if data.clip.start == "keyframe" and (self.labels is not None or self.cache is not None):
            raise LawmError("clips that start at key frames have neither labels nor a cache: set data.clip.start=exact")
        if self.cache is not None:
            check_exact(data.clip)
        if labelled and self.labels is None:
            raise LawmError("labelled clips are needed: set data.labels to a Parquet table of actions")
        self.by_company = False
        """Whether a video is held out, or trained on, only because that side would have been empty (`Splitter`)."""
        if index is None or arrays is None:
            pieces = [index] if index is not None else self._read()
            index = self._chosen(pieces, split, self.labels if labelled else None)
        self.index = index
        self.plan = SamplingPlan(index, data.clip, data.clips_per_video, data.seed, arrays)
        self._keys = index.table.column("key")

    @property
    def caches(self) -> list[StateCache]:
        """The cache, or nothing."""
        return [] if self.cache is None else [self.cache]

    def _read(self) -> Iterable[Index]:
        data = self.config.data
        if self.cache is not None:
            return [self.cache.index]
        if data.index:
            return read_pieces(data.index)
        if data.mixture:
            raise LawmError("this model was trained on a mixture; say with --index or --cache what to measure on")
        if data.cache:
            raise LawmError(f"pictures are needed, and {data.cache} holds states: give the videos' --index as well")
        raise LawmError("no clips: set data.index (see `lawm index`), give --videos FOLDER, or set data.cache")

    def _chosen(self, pieces: Iterable[Index], split: Split, labels: Labels | None) -> Index:
        """The videos of the split that can be used and, with `labels`, are covered by them."""
        data = self.config.data
        where, pattern = data.index or data.cache, data.keys
        videos = usable = matching = covered = 0
        splitter = Splitter(split, data.val_fraction)
        for piece in pieces:  # so that ten million rows are never held twice
            videos += len(piece)
            piece = piece.usable()
            usable += len(piece)
            piece = piece if pattern is None else piece.where(lambda key: matches(key, str(pattern)))
            matching += len(piece)
            covered += len(piece) if labels is None else sum(map(labels.__contains__, piece.keys()))
            splitter.add(piece)
        if not usable:
            raise LawmError(f"{where}: none of its {videos} videos is usable")
        if not matching:
            hint = "; [ begins a set of characters: write [[] where a bracket is meant" if "[" in str(pattern) else ""
            raise LawmError(f"data.keys = {pattern!r} matches no usable video of {where}{hint}")
        if not covered:
            raise LawmError(f"{data.labels} covers none of the videos of {where}")
        found, self.by_company = splitter.part(), splitter.by_company
        if split == "train" and data.train_fraction < 1:
            found = share_of_groups(found, data.train_fraction)
        found = found if labels is None else found.where(lambda key: key in labels)
        if not len(found):
            advice = "set data.val_fraction to 0, or add videos"
            if split == "val":
                advice = "measure on all videos with --set evaluate.split=all, or train with more videos held out"
            of = "usable videos" if labels is None else "labelled ones"
            raise EmptySplit(
                f"the {split} split is empty: {covered} {of}, data.val_fraction = {data.val_fraction:g}; {advice}"
            )
        return found

    def sample(self, position: int) -> Sample:
        """The clip at that position; raises VideoError for a bad video, ClipLabelsError for labels that do not fit."""
        rows = self.plan.rows(np.array([position], dtype=np.int64))
        video, start_s = int(rows.video[0]), float(rows.start_s[0])
        clip, key, group = self.config.data.clip, self._keys[video].as_py(), self.index.group(video)
        labels = self.labels if self.labels is not None and key in self.labels else None
        if self.cache is not None:
            states = self.cache.window(key, round(start_s * clip.fps), clip.frames)
            actions = labels.actions_for(key, start_s, clip) if labels else None
            return Sample(position, key, start_s, None, states, actions, group)
        from lawm.video import decode_clip

        decoded = decode_clip(self.index.ref(video), start_s, clip, self.config.data.limits, int(rows.seed[0]))
        actions = labels.actions_for(key, start_s, clip, decoded.seconds_F) if labels else None
        return Sample(position, key, decoded.start_s, decoded.frames_FCHW, None, actions, group)

    def try_sample(self, position: int) -> Sample | BadClip:
        """The clip, or what is to be quarantined."""
        from lawm.video import VideoError

        try:
            return self.sample(position)
        except (VideoError, ClipLabelsError) as error:
            rows = self.plan.rows(np.array([position], dtype=np.int64))
            ref = self.index.ref(int(rows.video[0]))
            return BadClip(position, ref.key, ref.source, float(rows.start_s[0]), error.reason, str(error))


class MixedReader:
    """Clips of several sources in fixed shares, by their position in the mixture's plan; else like a ClipReader.

    `numbers`: which of the config's sources these are.
    """

    def __init__(self, config: Config, readers: Sequence[ClipReader], numbers: Sequence[int]) -> None:
        self.config, self.readers, self.numbers = config, list(readers), tuple(numbers)
        weights = [config.data.mixture[n].weight for n in numbers]
        self.plan = MixturePlan([reader.plan for reader in readers], weights, config.data.seed)
        if len({reader.cache is None for reader in readers}) > 1:
            raise LawmError("a mixture is of indexes or of caches, not of both: batches hold frames or states")
        self.labels = next((reader.labels for reader in readers if reader.labels is not None), None)
        widths = {reader.labels.action_dim for reader in readers if reader.labels is not None}
        if len(widths) > 1:
            raise LawmError(f"the mixture's labels have {sorted(widths)} numbers an action; one width was expected")

    @property
    def cache(self) -> StateCache | None:
        """The first source's; all have one, or none has."""
        return self.readers[0].cache

    @property
    def caches(self) -> list[StateCache]:
        return [cache for reader in self.readers for cache in reader.caches]

    def sample(self, position: int) -> Sample:
        """The clip at that position; raises VideoError for a bad video, ClipLabelsError for labels that do not fit."""
        source, local = self.plan.locate([position])
        return replace(self.readers[int(source[0])].sample(int(local[0])), position=position)

    def try_sample(self, position: int) -> Sample | BadClip:
        """The clip, or what is to be quarantined."""
        source, local = self.plan.locate([position])
        return replace(self.readers[int(source[0])].try_sample(int(local[0])), position=position)


Reader = ClipReader | MixedReader


class Part(NamedTuple):
    """A source as a decode worker gets it: its number in the mixture, its videos and its plan's arrays."""

    number: int
    videos: Index
    arrays: PlanArrays


def parts_of(reader: Reader) -> list[Part]:
    """What another process needs to read the same clips."""
    if isinstance(reader, MixedReader):
        return [Part(n, r.index, r.plan.held) for n, r in zip(reader.numbers, reader.readers, strict=True)]
    return [Part(0, reader.index, reader.plan.held)]


TAUGHT = ("controller", "policy")
"""Kinds of objectives that learn from actions, whatever model they stand on."""


def needs_actions(config: Config, kind: str) -> bool:
    """Whether that kind of objective learns from actions."""
    return kind in TAUGHT or config.model.bottleneck.kind == "true_actions"


def open_reader(
    config: Config,
    kind: str,
    split: Split = "train",
    index: Index | None = None,
    parts: Sequence[Part] | None = None,
) -> Reader:
    """Clips as that kind of objective needs them: labelled for what learns from actions, frames for a decoder.

    `parts`: those of another process's reader, taken as they are. Of a mixture, sources without a share, and without
    a clip of the split, are left out. Raises LawmError where no clip is left.
    """
    labelled = needs_actions(config, kind)
    given = {part.number: part for part in parts or ()}

    def one(own: Config, number: int) -> ClipReader:
        part = given.get(number)
        ready = (part.videos, part.arrays) if part is not None else (index, None)
        return ClipReader(own, split, labelled, kind == "decoder", *ready)

    if not config.data.mixture or index is not None:
        return one(config, 0)
    readers: dict[int, ClipReader] = {}
    refused: list[LawmError] = []
    for number, source in enumerate(config.data.mixture):
        if source.weight == 0 or (given and number not in given) or (labelled and source.labels is None):
            continue
        own = {"mixture": (), **{name: getattr(source, name) for name in ("index", "cache", "labels", "keys")}}
        try:
            readers[number] = one(config.model_copy(update={"data": config.data.model_copy(update=own)}), number)
        except EmptySplit as error:
            refused.append(error)
    if not readers:
        raise refused[0] if refused else LawmError("the mixture has no source with a weight above 0 (and labels)")
    return MixedReader(config, list(readers.values()), list(readers))


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


def first_clips(reader: Reader, count: int) -> list[Sample]:
    """The plan's first `count` usable clips of one epoch, each once, for calibration and evaluation.

    Raises LawmError if there is none.
    """
    found = [reader.try_sample(p) for p in range(min(count, len(reader.plan)))]
    good = [s for s in found if isinstance(s, Sample)]
    if not good:
        bad = next(s for s in found if isinstance(s, BadClip))
        raise LawmError(f"none of the first {len(found)} clips can be read; the first: {bad.message}")
    return good
