"""The scale of each number of an action over all that is trained on, and what hardly varies. Legend: A action width."""

from dataclasses import dataclass

import numpy as np

from lawm.config import LawmError
from lawm.data.clips import ClipReader, MixedReader, Reader
from lawm.data.dimensions import unnamed

LARGEST = 10.0
"""Scaled actions of the training split lie within this: what moves once in a million transitions would else be a
thousand deviations large, and the loss of its clip a million times that of another."""
CONSTANT = 1e-5
"""Of the largest value: less is what float32 leaves of a number that stays as it is."""


@dataclass(frozen=True)
class ActionScales:
    """float64 [A] each, over `count` transitions of the training split, each video weighted by its clips."""

    mean: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: int
    names: tuple[str, ...] = ()

    @property
    def constant(self) -> np.ndarray:
        """Which do not vary, bool [A]."""
        peak = np.maximum(np.abs(self.low), np.abs(self.high))
        return self.deviation <= CONSTANT * peak

    def scale(self, about_mean: bool = True) -> np.ndarray:
        """What actions are divided by, after their mean is taken off (or not): the standard deviation, but at least a
        tenth of the largest value that is divided; of what does not vary, its own size (1 for zero)."""
        peak = np.maximum(np.abs(self.low), np.abs(self.high))
        reach = np.maximum(self.high - self.mean, self.mean - self.low) if about_mean else peak
        return np.where(self.constant, np.where(peak > 0, peak, 1.0), np.maximum(self.deviation, reach / LARGEST))

    def lines(self) -> list[str]:
        """What is said of dimensions that do not vary, or hardly: one line each."""
        said = []
        scale, plain = self.scale(), self.deviation
        for i in range(len(self.mean)):
            name = f"action {i} ({self.names[i]})" if self.names else f"action {i}"
            if self.constant[i]:
                said.append(
                    f"{name} does not vary: it is {self.mean[i]:.4g} in all {self.count:,} labelled "
                    f"transitions trained on, so nothing can be learnt of it (its scale is set to {scale[i]:.4g})"
                )
            elif scale[i] > plain[i] * 1.0001:
                said.append(
                    f"{name} hardly varies: its standard deviation is {plain[i]:.4g}, and it lies between "
                    f"{self.low[i]:.4g} and {self.high[i]:.4g}; its scale is raised to {scale[i]:.4g}"
                )
        return said


def action_scales(reader: Reader) -> ActionScales:
    """One pass over the labels of every video that clips are drawn from, at the clips' rate; no video is opened.

    Raises LawmError where no source has labels, or where labels do not divide into clips.
    """
    if not isinstance(reader, MixedReader):
        return _of_source(reader)
    parts = [_of_source(own) for own in reader.readers]
    shares = reader.plan.shares / reader.plan.shares.sum()
    mean = sum(share * part.mean for share, part in zip(shares, parts, strict=True))
    square = sum(
        share * (part.deviation**2 + (part.mean - mean) ** 2) for share, part in zip(shares, parts, strict=True)
    )
    low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)
    return ActionScales(np.asarray(mean), np.sqrt(square), low, high, sum(part.count for part in parts), parts[0].names)


def _of_source(reader: ClipReader) -> ActionScales:
    labels, plan, clip = reader.labels, reader.plan, reader.config.data.clip
    if labels is None:
        raise LawmError("labelled clips are needed: set data.labels to a Parquet table of actions")
    slots, ends = plan.held
    clips = np.diff(ends, prepend=0)
    each = clip.frames if clip.placement == "aligned" else 1
    rows = np.flatnonzero(slots > 0)
    keys = reader.index.table["key"]
    width = labels.action_dim
    total, count = 0.0, 0
    mean, square = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for row in rows:
        key = keys[int(row)].as_py()
        if key not in labels:
            continue
        frames = (int(slots[row]) - 1) * each + clip.frames
        actions = labels.whole(key, clip, frames).astype(np.float64)
        if not len(actions):
            continue
        weight = float(clips[row])
        own = actions.mean(axis=0)
        share = weight / (total + weight)  # Chan et al. 1983
        square += weight * actions.var(axis=0) + weight * (1 - share) * (own - mean) ** 2
        mean += share * (own - mean)
        total += weight
        count += len(actions)
        low, high = np.minimum(low, actions.min(axis=0)), np.maximum(high, actions.max(axis=0))
    if not count:
        raise LawmError(f"{reader.config.data.labels} has no action for the clips of the training split")
    known = [d.name for d in labels.meaning.actions]
    names = () if known == [d.name for d in unnamed(width, "action")] else tuple(known)
    return ActionScales(mean, np.sqrt(square / total), low, high, count, names)
