"""Held-out clips on which checkpoints are compared: the same ones for any number of ranks, each reading its share.

No step of it depends on what a rank could read: a rank without a clip adds nothing, and all ranks get the same figure.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from lawm.config import LawmError
from lawm.data import BadClip, Reader, Sample
from lawm.training.batches import ClipBatch, collate
from lawm.training.objective import Objective
from lawm.training.ranks import autocast, from_all_ranks, pick_device, rank_and_world

VALIDATION_CLIPS = 64


@dataclass(frozen=True)
class Validation:
    """This rank's held-out batches (maybe none), and the clips that all ranks have, and could not read."""

    batches: list[ClipBatch]
    clips: int
    refused: int


def held_out_clips(reader: Reader | None, size: int) -> Validation | None:
    """The first VALIDATION_CLIPS clips of the validation split, in batches of `size`; rank r reads every world-th.
    None where nothing is held out, or no clip fits what is. Called on every rank.

    Clips that cannot be read are left out and counted. Raises LawmError, on all ranks, where none can be read.
    """
    rank, world = rank_and_world()
    mine = [] if reader is None else range(rank, min(VALIDATION_CLIPS, len(reader.plan)), world)
    found = [reader.try_sample(p) for p in mine] if reader is not None else []
    good = [clip for clip in found if isinstance(clip, Sample)]
    bad = [clip.message for clip in found if isinstance(clip, BadClip)]
    everywhere = from_all_ranks((len(good), bad))
    clips, refused = sum(n for n, _ in everywhere), [message for _, said in everywhere for message in said]
    if clips == 0 and not refused:
        return None
    if clips == 0:
        raise LawmError(f"none of the {len(refused)} held-out clips can be read; the first: {refused[0]}")
    batches = [collate(good[i : i + size]) for i in range(0, len(good), size)]
    return Validation(batches, clips, len(refused))


@torch.no_grad()
def validate(objective: Objective, batches: list[ClipBatch], device: torch.device, precision: str) -> dict[str, float]:
    """Mean prediction loss over the held-out clips of all ranks, in eval mode: {"val_prediction": ...}. Called on
    every rank, with what it has."""
    objective.eval()
    total, clips = 0.0, 0
    for batch in batches:
        with autocast(device, precision):
            terms = objective(batch.to(device))
        total += float(terms.prediction) * len(batch)
        clips += len(batch)
    objective.train()
    if rank_and_world()[1] > 1:
        where = pick_device() if dist.get_backend() == "nccl" else "cpu"
        sums = torch.tensor([total, clips], dtype=torch.float64, device=where)
        dist.all_reduce(sums)
        total, clips = float(sums[0]), int(sums[1])
    return {"val_prediction": total / clips}
