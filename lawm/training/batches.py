"""Clips as batches of tensors, for plain Python; lawm/cluster/ingest.py does the same over Ray Data. Both
read clips through `ClipReader`, so the clips and their order are the same. Legend: B batch.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lawm.data import BadClip, ClipId, Cursor, Quarantine, Reader, Sample, plan_positions


@dataclass(frozen=True)
class ClipBatch:
    """What travels from ingest to the model. Either frames (uint8) or raw states (from a cache)."""

    frames_BFCHW: Tensor | None
    states_BTND: Tensor | None
    actions_BTA: Tensor | None
    positions_B: Tensor
    """Positions in the sampling plan, int64."""
    refused: tuple[int, ...] = ()
    """Positions of clips that were refused while this batch was gathered: consumed as well."""
    clips: tuple[ClipId, ...] = ()
    """All of these, for the log of clips; `collate` gives them."""
    groups: tuple[str, ...] = ()
    """What each good clip's video belongs to (episode, film, else its own key): clips of one group are not
    independent. `collate` gives them."""

    def __len__(self) -> int:
        return len(self.positions_B)

    def to(self, device: torch.device) -> "ClipBatch":
        """The batch with its tensors on `device`; positions stay where they are."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        frames, states, actions = moved(self.frames_BFCHW), moved(self.states_BTND), moved(self.actions_BTA)
        return replace(self, frames_BFCHW=frames, states_BTND=states, actions_BTA=actions)


def collate(samples: list[Sample], refused: Sequence[BadClip] = ()) -> ClipBatch:
    """Samples of one kind as a batch, with the clips that were refused meanwhile; actions only if every clip has
    them."""
    frames = states = actions = None
    if samples[0].frames is not None:
        frames = torch.from_numpy(np.stack([s.frames for s in samples if s.frames is not None]))
    else:
        states = torch.from_numpy(np.stack([s.states for s in samples if s.states is not None]))
    if all(s.actions is not None for s in samples):
        actions = torch.from_numpy(np.stack([s.actions for s in samples if s.actions is not None])).float()
    positions = torch.tensor([s.position for s in samples], dtype=torch.int64)
    read: list[tuple[Sample | BadClip, bool]] = [*((s, False) for s in samples), *((b, True) for b in refused)]
    clips = tuple(ClipId(one.position, one.key, one.start_s, bad) for one, bad in read)
    return ClipBatch(
        frames, states, actions, positions, tuple(b.position for b in refused), clips, tuple(s.group for s in samples)
    )


def local_batches(
    reader: Reader,
    batch: int,
    cursor: Cursor,
    rank: int = 0,
    world: int = 1,
    threads: int = 1,
    on_bad: Callable[[BadClip], None] | None = None,
) -> Iterator[ClipBatch]:
    """Batches of `batch` clips from the cursor on, for ever. Bad clips go to `on_bad`, later ones replace them."""
    quarantine = Quarantine(reader.config.data.max_bad_fraction, on_bad)
    positions = plan_positions(cursor, rank, world)
    good: list[Sample] = []
    refused: list[BadClip] = []
    for found in _read(reader, positions, threads):
        if quarantine.passed(found):
            good.append(found)  # type: ignore[arg-type]
        else:
            refused.append(found)  # type: ignore[arg-type]
        if len(good) == batch:
            yield collate(good, refused)
            good, refused = [], []


def _read(reader: Reader, positions: Iterator[int], threads: int) -> Iterator[Sample | BadClip]:
    """In order; videos are decoded ahead."""
    if reader.cache is not None:
        yield from map(reader.try_sample, positions)
    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(reader.try_sample, next(positions)) for _ in range(2 * threads)]
        while True:
            found = pending.pop(0).result()
            pending.append(pool.submit(reader.try_sample, next(positions)))
            yield found
