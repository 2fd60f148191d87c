"""Who is paired with whom in cuts, cycles and shuffles: clips of two different videos, always.

A partner from the same video is nearly the same clip: its latents fit, and a control that uses them controls nothing.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

ONE_VIDEO = "all clips are of one video, and partners come from other videos; measure on more videos"


def derange(groups: Sequence[str], seed: int) -> np.ndarray | None:
    """For each clip the index of a partner from another group (video), int64 [n]; None where there is one group.

    A permutation, unless one group has more than half of the clips: then partners are drawn from the other groups.
    """
    n, generator = len(groups), np.random.default_rng(seed)
    counts = Counter(groups)
    if len(counts) < 2:
        return None
    most = max(counts.values())
    if 2 * most > n:
        names = np.asarray(groups, dtype=object)
        return np.array([generator.choice(np.flatnonzero(names != group)) for group in groups], dtype=np.int64)
    # Groups side by side, in an order of the seed's; a step as long as the largest group leads out of every group.
    places = {group: place for place, group in enumerate(generator.permutation(sorted(counts)))}
    shuffled = generator.permutation(n)
    order = np.array(sorted(shuffled, key=lambda i: places[groups[i]]), dtype=np.int64)
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, most)
    return partner


def deal(groups: Sequence[str], batch: int) -> list[list[int]]:
    """The clips 0 .. n-1 in units of at most about `batch`, each video's spread evenly over the units, so that each
    clip of a unit finds a partner in it.

    Clips of a video that has nearly all of them are left out where the others do not suffice for every unit; with one
    video alone the units are of that video.
    """
    counts = Counter(groups)
    # Largest first, so that what is left over of each goes round from unit to unit.
    order = sorted(range(len(groups)), key=lambda i: (-counts[groups[i]], groups[i], i))
    largest = counts.most_common(1)[0][1]
    others = len(groups) - largest
    if others:
        order = order[max(0, len(groups) - batch * others) :]
    units = max(1, min(-(-len(order) // batch), len(order) // 2))
    return [sorted(order[u::units]) for u in range(units)]
