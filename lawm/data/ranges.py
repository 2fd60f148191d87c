"""Where actions have been: what the labels of a training split show. Legend: A action width."""

import dataclasses

import numpy as np

from lawm.config import LawmError
from lawm.data.clips import ClipReader


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the training split shows of each dimension of its clips' actions, in the labels' units: mean, `low` and
    `high` (its percentiles), over so many transitions."""

    mean_A: np.ndarray
    low_A: np.ndarray
    high_A: np.ndarray
    transitions: int


def shown_by(reader: ClipReader, percentiles: tuple[float, float]) -> Shown:
    """The Shown of every video that the reader draws clips from, at the clips' rate. Only labels are read. Raises
    LawmError where there is no action."""
    labels, clip, (slots, _) = reader.labels, reader.config.data.clip, reader.plan.held
    assert labels is not None
    each, keys = clip.frames if clip.placement == "aligned" else 1, reader.index.table.column("key")
    found = [
        labels.whole(keys[int(row)].as_py(), clip, (int(slots[row]) - 1) * each + clip.frames)
        for row in np.flatnonzero(slots > 0)
    ]
    if not sum(map(len, found)):
        raise LawmError(f"{reader.config.data.labels} has no action for the clips of the training split")
    actions = np.concatenate(found)
    low, high = np.percentile(actions, percentiles, axis=0)
    return Shown(actions.mean(axis=0, dtype=np.float64), low.astype(np.float64), high.astype(np.float64), len(actions))
