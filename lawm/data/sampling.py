"""Which clip comes next: a seeded, resumable plan over the index.

The plan is one endless row of positions 0, 1, 2, ...: position p is clip `permutation(p % n)` of epoch
`p // n`, n clips an epoch. Any position is found on its own, without a shuffled list in memory, by a keyed
permutation of [0, n): a Feistel network, walked again where it leaves the range (Black & Rogaway 2002).
So every worker can be given any positions, and a `Cursor` says exactly which have been consumed.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Self

import numpy as np

from lawm.config import ClipSpec, LawmError
from lawm.data.index import Index

_ROUNDS = 6
LEAST_FRAMES = 4
"""Shorter clips than that are not advised: a context, and something to predict."""
SLOWEST = 0.99
"""Pictures a second that a video needs, as a share of the clip's: rates are measured from rounded times."""


class PlanRows(NamedTuple):
    """What to decode, one entry a clip: the position in the plan, the row in the index, the start in seconds
    from the video's first frame, and a seed for whatever is random about the clip (its crop)."""

    position: np.ndarray
    video: np.ndarray
    start_s: np.ndarray
    seed: np.ndarray

    def __len__(self) -> int:  # a tuple's own length would be the number of fields
        return len(self.position)


class PlanArrays(NamedTuple):
    """What a plan works out from its index: possible starts of each video (int32; 0 too short, -1 too slow, -2
    unusable), and where each video's clips end in an epoch (int64)."""

    slots: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class SamplingPlan:
    """Clips of `index`'s videos: `clips_per_video` of each an epoch (`duration`: as many as fit end to end).

    Starts lie on the 1/fps grid, spread evenly over each video, and shifted together by a jitter of each
    video's and epoch's own; or, where the clip says `aligned`, at multiples of the clip's length. Videos with a
    reason, without room for one clip (`too_short`) or with fewer frames per second than the clip has (`too_slow`)
    are left out. Raises LawmError if none remains.
    """

    index: Index
    clip: ClipSpec
    clips_per_video: int | Literal["duration"] = "duration"
    seed: int = 0
    arrays: "PlanArrays | None" = None
    """Those of an equal plan, so that many processes on a machine share them."""

    def __post_init__(self) -> None:
        if self.clips_per_video != "duration" and self.clips_per_video < 1:
            raise LawmError(f"clips_per_video = {self.clips_per_video}: expected at least 1, or duration")
        if len(self) == 0:
            raise LawmError(
                f"no clip of {self.clip.frames} frames at {self.clip.fps:g} fps ({self.clip.seconds:g} s) fits: "
                f"of {len(self.index)} videos {self.unusable} cannot be used, {self.too_short} are too short, "
                f"{self.too_slow} have too few frames per second. {self._remedy()}"
            )

    def _remedy(self) -> str:
        """What would help those that are left out for the more frequent reason."""
        if not self.too_short + self.too_slow:
            return "Give other videos"
        left_out = np.flatnonzero(self.held.slots == (0 if self.too_short >= self.too_slow else -1))
        found = advice(self.index.column("duration_s"), self.index.column("rate"), left_out, self.clip)
        return found or "Give longer videos"

    @cached_property
    def held(self) -> PlanArrays:
        """The plan's arrays, to be given to another one."""
        if self.arrays is not None:
            return self.arrays
        duration, rate = self.index.column("duration_s"), self.index.column("rate")
        slots = slots_of(duration, rate, self.clip)
        slots[~np.asarray(self.index.table["reason"].is_null())] = -2
        if self.clips_per_video == "duration":
            counts = slots if self.clip.placement == "aligned" else (slots - 1) // self.clip.frames + 1
        else:
            counts = np.full_like(slots, self.clips_per_video)
        return PlanArrays(slots, np.cumsum(np.where(slots > 0, counts, 0), dtype=np.int64))

    def __len__(self) -> int:
        """Clips per epoch."""
        return int(self.held.ends[-1]) if len(self.index) else 0

    @property
    def too_short(self) -> int:
        return int(np.sum(self.held.slots == 0))

    @property
    def too_slow(self) -> int:
        return int(np.sum(self.held.slots == -1))

    @property
    def unusable(self) -> int:
        return int(np.sum(self.held.slots == -2))

    @property
    def videos(self) -> int:
        """Videos that clips are drawn from."""
        return int(np.sum(self.held.slots > 0))

    def fingerprint(self) -> str:
        """16 hex digits: two plans with the same one give the same clips at the same positions."""
        timing = (self.clip.frames, self.clip.fps, self.clips_per_video, self.seed, self.index.fingerprint())
        said = repr(timing) + (" aligned" if self.clip.placement == "aligned" else "")
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def rows(self, positions: np.ndarray | Iterable[int]) -> PlanRows:
        """The clips at `positions` (any order, any epoch, >= 0)."""
        given = positions if isinstance(positions, np.ndarray) else list(positions)
        position = np.asarray(given, dtype=np.int64)
        if position.size and position.min() < 0:
            raise ValueError(f"positions start at 0, got {position.min()}")
        epoch, place = position // len(self), position % len(self)
        root = np.uint64(self.seed % 2**64)
        item = _permute(place, len(self), _mix(_mix(root) + epoch.astype(np.uint64)))
        slots, ends = self.held
        video = np.searchsorted(ends, item, side="right")
        began = np.where(video > 0, ends[video - 1], 0)
        count = ends[video] - began
        jitter = _unit(_mix(_mix(_mix(root ^ np.uint64(0x5EED)) + epoch.astype(np.uint64)) ^ _mix(video)))
        slot = (item - began + jitter) * slots[video] / count
        stride = self.clip.frames if self.clip.placement == "aligned" else 1
        start_s = np.minimum(np.floor(slot), slots[video] - 1) * stride / self.clip.fps
        seed = _mix(_mix(root ^ np.uint64(0xC409)) ^ _mix(position)) >> np.uint64(33)
        return PlanRows(position, video, start_s, seed.astype(np.int64))


class MixturePlan:
    """Several plans in fixed shares, as one row of positions: of every BLOCK positions, source s has its share (to
    the nearest thousandth), in an order of the block's own; its n-th position there is its own plan's n-th.

    So each source's clips come once in an epoch of its own, and a cursor over the mixture resumes all of them. An
    epoch of the mixture ends when every source has been gone through. Raises LawmError for shares that give a source
    less than one position of a block.
    """

    BLOCK = 1000

    def __init__(self, plans: Sequence[SamplingPlan], weights: Sequence[float], seed: int = 0) -> None:
        if len(plans) != len(weights) or not plans or min(weights) <= 0:
            raise LawmError(f"a mixture needs a positive weight for each of its sources, got {list(weights)}")
        self.plans, self.seed = list(plans), seed
        exact = np.array(weights, np.float64) / float(np.sum(weights)) * self.BLOCK
        shares = np.floor(exact).astype(np.int64)
        most = np.argsort(-(exact - shares), kind="stable")[: self.BLOCK - int(shares.sum())]
        shares[most] += 1
        if shares.min() < 1:
            least = int(np.argmin(shares))
            raise LawmError(f"source {least} of the mixture has less than 1 in {self.BLOCK} clips; raise its weight")
        self.shares = shares
        self._ends = np.cumsum(shares)

    def __len__(self) -> int:
        """Positions until every source's clips have all come."""
        turns = [math.ceil(len(plan) / int(share)) for plan, share in zip(self.plans, self.shares, strict=True)]
        return max(turns) * self.BLOCK

    def locate(self, positions: np.ndarray | Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """(source, position in that source's plan) of each position."""
        given = positions if isinstance(positions, np.ndarray) else list(positions)
        position = np.asarray(given, dtype=np.int64)
        if position.size and position.min() < 0:
            raise ValueError(f"positions start at 0, got {position.min()}")
        block, place = position // self.BLOCK, position % self.BLOCK
        root = _mix(np.uint64(self.seed % 2**64) ^ np.uint64(0x313))
        item = _permute(place, self.BLOCK, _mix(root + block.astype(np.uint64)))
        source = np.searchsorted(self._ends, item, side="right")
        began = self._ends[source] - self.shares[source]
        return source, block * self.shares[source] + item - began

    def fingerprint(self) -> str:
        """16 hex digits: two mixtures with the same one give the same clips at the same positions."""
        said = [plan.fingerprint() for plan in self.plans], self.shares.tolist(), self.seed
        return hashlib.blake2b(repr(said).encode(), digest_size=8).hexdigest()


def slots_of(duration_s: np.ndarray, rate: np.ndarray, clip: ClipSpec) -> np.ndarray:
    """How many starts a clip has in videos of that duration and rate, int32; 0 too short, -1 too slow, -2 unknown."""
    known = (rate > 0) & np.isfinite(duration_s)
    frames = np.where(known, grid_frames(duration_s, rate, clip.fps), 0)
    slots = frames // clip.frames if clip.placement == "aligned" else np.maximum(frames - clip.frames + 1, 0)
    slots = np.minimum(slots, np.iinfo(np.int32).max).astype(np.int32)
    slots[known & (rate < SLOWEST * clip.fps)] = -1
    slots[~known] = -2
    return slots


def advice(duration: np.ndarray, rate: np.ndarray, left_out: np.ndarray, clip: ClipSpec) -> str:
    """`--set ... fits N of M`, for the most of those left out that clips of LEAST_FRAMES or more can be made to fit;
    nothing where none can."""
    slowest = float(np.min(rate[left_out]))
    fps = clip.fps if slowest >= SLOWEST * clip.fps else _rounded_down(slowest)
    room = grid_frames(duration[left_out], rate[left_out], fps)
    room = room[room >= LEAST_FRAMES]
    if not len(room):
        return ""
    changed = clip.model_copy(update={"fps": fps, "frames": min(clip.frames, int(np.quantile(room, 0.1)))})
    fit = int(np.sum(slots_of(duration, rate, changed) > 0))
    said = [f"--set data.clip.{n}={v:g}" for n in ("fps", "frames") if (v := getattr(changed, n)) != getattr(clip, n)]
    return f"{' '.join(said)} fits {fit:,} of {len(duration):,}" if said else ""


def _rounded_down(value: float) -> float:
    """To two digits, never above."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit + 1e-9) * unit


def grid_frames(duration_s: np.ndarray, rate: np.ndarray, fps: float) -> np.ndarray:
    """Frames at times 0, 1/fps, 2/fps, ... that videos of that duration and rate hold, int64."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # The last frame stays on display for a while; a clip's last frame may fall into that time.
        end = duration_s - 1 / rate + np.minimum(0.9 / rate, 0.45 / fps)
        frames = np.floor(end * fps + 1e-6) + 1
    return np.where(np.isfinite(frames), np.maximum(frames, 0), 0).astype(np.int64)


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """splitmix64's finaliser: every bit of the input changes half of the output's. Works modulo 2^64."""
    with np.errstate(over="ignore"):
        z = np.atleast_1d(np.asarray(x)).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def _unit(x: np.ndarray) -> np.ndarray:
    """Hashes as float64 in [0, 1)."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _permute(place: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """A permutation of [0, n) for each key, applied to place int64 [...]; `key` uint64, same shape."""
    bits = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << bits) - np.uint64(1)
    out = place.astype(np.uint64)
    key = np.broadcast_to(key, out.shape)
    todo = np.ones(out.shape, dtype=bool)
    while np.any(todo):  # the square is at most 4 n wide, so few stay outside for long
        left, right, k = out[todo] >> bits, out[todo] & mask, key[todo]
        for step in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(k + np.uint64(step))) & mask)
        out[todo] = (left << bits) | right
        todo[todo] = out[todo] >= n
    return out.astype(np.int64)


@dataclass(frozen=True)
class Cursor:
    """Which positions have been consumed: all below `low`, and those in `ahead` (ascending, all above `low`)."""

    low: int = 0
    ahead: tuple[int, ...] = ()

    def add(self, positions: np.ndarray | Iterable[int]) -> "Cursor":
        """The cursor after `positions` as well; consuming one twice changes nothing."""
        consumed = set(self.ahead).union(int(p) for p in positions)
        low = self.low
        while low in consumed:
            low += 1
        return Cursor(low, tuple(sorted(p for p in consumed if p > low)))

    def __len__(self) -> int:
        """How many positions have been consumed."""
        return self.low + len(self.ahead)

    def __contains__(self, position: int) -> bool:
        return position < self.low or position in self.ahead

    def remaining(self, n: int) -> np.ndarray:
        """The next `n` positions that have not been consumed, ascending, int64 [n]."""
        candidates = np.arange(self.low, self.low + n + len(self.ahead), dtype=np.int64)
        return candidates[~np.isin(candidates, np.asarray(self.ahead, dtype=np.int64))][:n]

    def to_json(self) -> str:
        return json.dumps({"low": self.low, "ahead": self.ahead})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises LawmError if `text` is not what `to_json` writes."""
        try:
            data = json.loads(text)
            cursor = cls(int(data["low"]), tuple(int(p) for p in data["ahead"]))
            if cursor.low < 0 or list(cursor.ahead) != sorted({p for p in cursor.ahead if p > cursor.low}):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            said = "The checkpoint is damaged; resume from another one"
            raise LawmError(f"not a cursor: {str(text)[:100]!r}. {said}") from None
        return cursor
