"""Which videos are held out, where videos belong together or are few.

A video is held out when the hash of its group (`Index.groups`) is among the lowest `val_fraction` of all hashes: never
by order, place or company. Of few videos that rule may leave one side empty. Then, and only then, the group with the
lowest hash is held out, or the one with the highest is trained on, so that neither side is empty as long as there are
two groups; a single one is trained on. What counts are all videos that can be used and match `data.keys`, labelled or
not, long enough or not: the models of one family (latent actions, controller, decoder) hold out the same ones.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa

from lawm.data.index import Index


class Splitter:
    """Splits an index that comes in pieces. `add` each piece, then ask for `part`."""

    def __init__(self, which: Literal["train", "val", "all"], val_fraction: float) -> None:
        self._which, self._fraction = which, val_fraction
        self._chosen: list[pa.Table] = []
        self._hashes: list[np.ndarray] = []
        self._lowest: list[tuple[int, pa.Table]] = []
        self._highest: list[tuple[int, pa.Table]] = []
        self.held_out = self.trained_on = 0
        """Videos on each side by the rule alone."""

    def add(self, piece: Index) -> None:
        """Takes the next piece, of usable videos."""
        if self._which == "all" or self._fraction == 0 or not len(piece):
            self._chosen.append((piece if self._which == "all" else piece.split(self._which, 0.0)).table)
            self.trained_on += len(piece)
            return
        hashes = piece.hashes()
        below = hashes < np.uint64(math.ceil(self._fraction * 2.0**64))
        self._chosen.append(piece.filtered(below if self._which == "val" else ~below).table)
        self.held_out += int(below.sum())
        self.trained_on += int((~below).sum())
        for kept, extreme, better in ((self._lowest, np.min, int.__lt__), (self._highest, np.max, int.__gt__)):
            _keep(kept, piece, hashes, int(extreme(hashes)), better)

    @property
    def single(self) -> bool:
        """Whether all videos belong together: they are trained on, whatever their hash."""
        return bool(self._lowest) and self._lowest[0][0] == self._highest[0][0]

    @property
    def by_company(self) -> bool:
        """Whether the rule alone would leave one side empty, though there are two groups."""
        return bool(self._lowest) and not self.single and not (self.held_out and self.trained_on)

    def part(self) -> Index:
        """The videos of the side that was asked for, in order."""
        whole = pa.concat_tables(self._chosen) if self._chosen else None
        if whole is None:
            raise ValueError("no piece was added")
        if self.single and self.held_out and self._which != "all":
            whole = pa.concat_tables([table for _, table in self._lowest])
            return Index(whole if self._which == "train" else whole.slice(0, 0))
        if not self.by_company or self._which == "all":
            return Index(whole)
        moved = self._lowest if not self.held_out else self._highest
        gets = (self._which == "val") == (not self.held_out)  # the side that was empty gets the group that is moved
        if gets:
            return Index(pa.concat_tables([table for _, table in moved]))
        found = Index(whole)
        return found.filtered(found.hashes() != np.uint64(moved[0][0]))


def share_of_groups(index: Index, share: float) -> Index:
    """The videos of that share of the groups (at least one), those of the lowest hashes: a smaller share lies within a
    larger one."""
    hashes = index.hashes()
    ordered = np.unique(hashes)
    last = ordered[max(1, round(share * len(ordered))) - 1] if len(ordered) else 0
    return index.filtered(hashes <= last)


def _keep(
    kept: list[tuple[int, pa.Table]], piece: Index, hashes: np.ndarray, value: int, better: Callable[[int, int], bool]
) -> None:
    """Keeps the rows of the group with the most extreme hash so far."""
    if kept and not better(value, kept[0][0]) and value != kept[0][0]:
        return
    if kept and better(value, kept[0][0]):
        kept.clear()
    kept.append((value, piece.filtered(hashes == np.uint64(value)).table))
