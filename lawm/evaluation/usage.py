"""What latents make of the room that they have: how many numbers a transition uses, nats of each, codes of a codebook.

Legend: B clips, T states, K code width, Z latent width, M transitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lawm.evaluation.results import Missing
from lawm.evaluation.subject import NO_LATENTS, Clips
from lawm.model import effective_rank
from lawm.training import LatentActionObjective

ACTIVE = 0.1
"""Share of a transition's largest |z| from which another number of it counts as in use."""


@dataclass(frozen=True)
class LatentUsage:
    """Of M transitions of `videos` videos.

    `active_M`: how many numbers of each latent are in use (|z| at least a tenth of its largest); `spread_Z`: standard
    deviation of each number; `rank`: effective rank (Roy & Vetterli 2007), at most Z; `kl_Z`: mean nats of each number
    against the prior, where the bottleneck has one; `counts_K`: how often each code was taken, where there are any.
    """

    kind: str
    videos: int
    active_M: np.ndarray
    spread_Z: np.ndarray
    rank: float
    kl_Z: np.ndarray | Missing
    counts_K: np.ndarray | Missing

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the codes taken: as if that many were in equal use. NaN without a codebook."""
        if isinstance(self.counts_K, Missing):
            return float("nan")
        share = self.counts_K[self.counts_K > 0] / self.counts_K.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


@torch.no_grad()
def latent_usage(model: LatentActionObjective, units: Sequence[Clips]) -> LatentUsage | Missing:
    """How the model's latents of these clips are used; Missing where it has none."""
    action = model.latent_action
    if action.kind == "deterministic":
        return NO_LATENTS
    if action.idm is None or action.bottleneck is None:
        return Missing("latents that are true actions are not limited")
    z, kl, taken = [], [], []
    for clips in units:
        assert clips.z is not None
        codes = action.idm(clips.states)
        z.append(clips.z.float().flatten(0, 1))
        if (nats := action.bottleneck.kl_of_numbers(codes)) is not None:
            kl.append(nats.flatten(0, 1))
        if (used := action.bottleneck.codes_taken(codes)) is not None:
            taken.append(used.flatten())
    z_MZ = torch.cat(z).cpu()
    size = z_MZ.abs()
    active = (size >= ACTIVE * size.amax(dim=1, keepdim=True)) & (size > 0)
    counts: np.ndarray | Missing = Missing("the bottleneck has no codebook")
    if taken:
        counts = torch.bincount(torch.cat(taken), minlength=action.bottleneck.codebook_size).cpu().numpy()
    return LatentUsage(
        action.kind,
        len({group for clips in units for group in clips.groups}),
        active_M=active.sum(dim=1).numpy(),
        spread_Z=z_MZ.double().std(dim=0, correction=0).numpy(),
        rank=effective_rank(z_MZ),
        kl_Z=torch.cat(kl).double().mean(dim=0).cpu().numpy() if kl else Missing("the bottleneck has no prior"),
        counts_K=counts,
    )
