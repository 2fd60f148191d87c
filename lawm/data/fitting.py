"""How many videos a clip spec can use, why the others do not fit it, what would help, and what is held out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lawm.config import ClipSpec, Config, LawmError
from lawm.data.clips import ClipReader, MixedReader, Reader, needs_actions, open_reader
from lawm.data.index import Index
from lawm.data.sampling import LEAST_FRAMES, advice, slots_of
from lawm.data.scales import action_scales
from lawm.storage import StorageError


@dataclass(frozen=True)
class Side:
    """One side of the split: its videos, what they belong to, those that clips are drawn from, clips an epoch, and
    whether it holds, or lacks, a video only because one side would have been empty (`Splitter`)."""

    videos: int
    groups: int
    sampled: int
    clips: int
    by_company: bool

    def __str__(self) -> str:
        groups = "" if self.groups == self.videos else f" of {self.groups} episodes or films"
        short = "" if self.sampled == self.videos else f" ({self.sampled} of them long and fast enough)"
        return f"{_videos(self.videos)}{groups}{short}, {self.clips:,} clip{'' if self.clips == 1 else 's'} an epoch"


def readers_of(reader: Reader) -> list[ClipReader]:
    """The reader of each source."""
    return list(reader.readers) if isinstance(reader, MixedReader) else [reader]


def side_of(reader: Reader) -> Side:
    """What that reader's split holds."""
    readers = readers_of(reader)
    return Side(
        videos=sum(len(r.index) for r in readers),
        groups=sum(len(np.unique(r.index.hashes())) for r in readers),
        sampled=sum(r.plan.videos for r in readers),
        clips=sum(len(r.plan) for r in readers),
        by_company=any(r.by_company for r in readers),
    )


def held_out_reader(config: Config, kind: str) -> tuple[Reader | None, str]:
    """The validation split of what `config` trains on; None, and why, where nothing is held out. Raises StorageError
    where that cannot be read."""
    if config.data.val_fraction == 0:
        return None, "data.val_fraction = 0"
    try:
        return open_reader(config, kind, "val"), ""
    except StorageError:
        raise
    except LawmError as error:
        return None, str(error)


def data_lines(config: Config, kind: str) -> list[str]:
    """What a training run of that kind trains on, what it holds out, which videos its clips leave out, and which
    numbers of its actions hardly vary, as lines to be shown before it starts. Raises LawmError where no clip is left to
    train on."""
    reader = open_reader(config, kind)
    validation, why = held_out_reader(config, kind)
    own = side_of(reader)
    lines = [f"trained on: {own}"]
    if validation is None:
        lines.append(f"held out: nothing ({why}); evaluation has no videos that training did not see")
    else:
        held = side_of(validation)
        fraction = config.data.val_fraction
        rule = f"data.val_fraction = {fraction:g} alone would {'hold out none' if fraction < 0.5 else 'leave none'}"
        lines.append(f"held out: {held}" + (f" ({rule} of so few)" if held.by_company else ""))
        if held.groups == 1:
            lines.append(alone_line(reader, validation))
    readers = readers_of(reader) + (readers_of(validation) if validation is not None else [])
    lines += fit_lines((r.index for r in readers), config.data.clip)
    return lines + (action_scales(reader).lines() if needs_actions(config, kind) else [])


def alone_line(reader: Reader, validation: Reader) -> str:
    """What a single held-out video means for the evaluation, and the least round share that would hold out several."""
    hashes = np.unique(np.concatenate([r.index.hashes() for one in (reader, validation) for r in readers_of(one)]))
    shares = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    counted = ((share, int(np.sum(hashes < np.uint64(math.ceil(share * 2.0**64))))) for share in shares)
    share, count = next(((s, n) for s, n in counted if 3 <= n < len(hashes)), (0.0, 0))
    remedy = (
        f"--set data.val_fraction={share:g} holds out {count}" if share else "take more videos, or cut long ones up"
    )
    return f"one held-out video gives no intervals and no controls with another video's latents: {remedy}"


def fit_lines(pieces: Iterable[Index], clip: ClipSpec) -> list[str]:
    """How many of the usable videos hold a clip, and what keeps the others from it, each with an example and with
    settings that would fit (counted, not guessed). One line where all do."""
    duration, rate, gaps, keys = _facts(pieces)
    slots = slots_of(duration, rate, clip)
    spec = f"clips of {clip.frames} frames at {clip.fps:g} fps ({clip.seconds:g} s)"
    total, fit = len(slots), int(np.sum(slots > 0))
    if total == 0:
        return [f"no video can be used for {spec}"]
    lines = [f"{fit:,} of {total:,} usable videos fit {spec}"] if fit < total else [f"all {total:,} fit {spec}"]
    short, slow = np.flatnonzero(slots == 0), np.flatnonzero(slots == -1)
    if len(short):
        i = int(short[np.argmin(duration[short])])
        lines.append(
            f"{_are(len(short))} too short, {_such(short)}{keys[i]} ({duration[i]:.3g} s)"
            + _told(advice(duration, rate, short, clip))
        )
    if len(slow):
        i = int(slow[np.argmin(rate[slow])])
        lines.append(
            f"{_are(len(slow))} too slow, the pictures further apart than {1 / clip.fps:.3g} s, {_such(slow)}{keys[i]} "
            f"(one in {1 / rate[i]:.3g} s)" + _told(advice(duration, rate, slow, clip))
        )
    holes = np.flatnonzero((slots > 0) & (gaps * clip.fps > 1 + 1e-3))
    if len(holes):
        i = int(holes[np.argmax(gaps[holes])])
        some = f"{len(holes):,} {'has' if len(holes) == 1 else 'have'} gaps longer than {1 / clip.fps:.3g} s"
        said = f"{_such(holes)}{keys[i]} ({gaps[i]:.3g} s without a picture)"
        lines.append(f"{some}, {said}: clips that fall into them are refused, and replaced by others")
    return lines


def _facts(pieces: Iterable[Index]) -> tuple[np.ndarray, np.ndarray, np.ndarray, "_Keys"]:
    """Durations, rates and longest gaps (0: as even as can be, or not known) of the usable videos, and their keys."""
    held = [piece.usable() for piece in pieces]

    def column(name: str) -> np.ndarray:
        there = (p.column(name) if name in p.table.column_names else np.full(len(p), np.nan) for p in held)
        return np.concatenate([np.zeros(0), *(np.asarray(values, np.float64) for values in there)])

    return column("duration_s"), column("rate"), np.nan_to_num(column("largest_gap_s")), _Keys(held)


class _Keys:
    """Keys by row over several indexes, without a list of all."""

    def __init__(self, pieces: Sequence[Index]) -> None:
        self._pieces = pieces

    def __getitem__(self, row: int) -> str:
        for piece in self._pieces:
            if row < len(piece):
                return str(piece.table["key"][row].as_py())
            row -= len(piece)
        raise IndexError(row)


def _told(found: str) -> str:
    return f": {found}" if found else f": of no use for clips of {LEAST_FRAMES} frames or more"


def _videos(count: int) -> str:
    return f"{count:,} video{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return f"{count:,} {'is' if count == 1 else 'are'}"


def _such(rows: np.ndarray) -> str:
    return "" if len(rows) == 1 else "for example "
