"""Where a run stands in its clips: the next batch, how long it was waited for, and what has been consumed."""

import time
from collections.abc import Callable, Iterator

from lawm.data import Cursor
from lawm.training.batches import ClipBatch
from lawm.training.ranks import from_all_ranks

Batches = Callable[[Cursor], Iterator[ClipBatch]]
"""This rank's batches from a cursor on."""


class Loader:
    """The clips of a run from `cursor` on, a batch of this rank's at a time. Its state is the cursor over all ranks."""

    def __init__(self, batches: Batches, cursor: Cursor) -> None:
        self._stream = batches(cursor)
        self._cursor = cursor
        self._since: list[int] = []
        self.waited = 0.0
        """Seconds that the last batch was waited for."""

    def next(self) -> ClipBatch:
        began = time.perf_counter()
        batch = next(self._stream)
        self.waited = time.perf_counter() - began
        self._since += [*batch.positions_B.tolist(), *batch.refused]
        return batch

    def cursor(self) -> Cursor:
        """What all ranks have consumed, refused clips too. Called on every rank."""
        self._cursor = self._cursor.add(p for part in from_all_ranks(self._since) for p in part)
        self._since = []
        return self._cursor
