"""Cycle consistency: does a latent action mean the same on another video?

z from A; roll B's context out under z; infer z' from that rollout; roll A's context out under z'.
The ratio is the error against A with z' over the error with z. z' is truly re-inferred from the
predicted states. An untrained model scores 1, hence the control: latents re-inferred for another clip.
Protocol: spec section 6.3; Garrido et al. 2026, table 2.
"""

import torch

from lawm.evaluation.capacity import per_clip_error
from lawm.evaluation.results import Figure, PerClip, derange
from lawm.training import ClipBatch, LatentActionObjective

FIGURES = [
    Figure("cycle_ratio", "transfer", "original"),
    Figure("cycle_original_error", "original"),
    Figure("cycle_transfer_error", "transfer"),
    Figure("cycle_shuffled_ratio", "shuffled", "original", control="shuffled latents"),
    Figure("cycle_zero_ratio", "zero", "original", control="zero latents"),
]


@torch.no_grad()
def evaluate(model: LatentActionObjective, batch: ClipBatch, seed: int, context: int = 1) -> PerClip:
    """Per-clip errors against A: with z, with z' (through B), with another clip's z', with zeros."""
    states = model.states(batch)
    if model.latent_action.kind in ("deterministic", "true_actions"):
        return {}
    z = model.infer(states).z_BTZ
    assert z is not None
    steps = states.shape[1] - context
    partner = torch.from_numpy(derange(len(states), seed)).to(z.device)
    start_a, start_b = states[:, :context], states[partner][:, :context]
    on_b = model.world_model.rollout(start_b, z, steps)
    again = model.infer(torch.cat([start_b, on_b], dim=1)).z_BTZ
    assert again is not None
    # The context's own transitions keep the latents of A: only what was rolled out is re-inferred.
    again = torch.cat([z[:, : context - 1], again[:, context - 1 :]], dim=1)
    other = torch.from_numpy(derange(len(states), seed + 1)).to(z.device)

    def against_a(latents: torch.Tensor):
        return per_clip_error(model.world_model.rollout(start_a, latents, steps), states[:, context:])

    return {
        "original": against_a(z),
        "transfer": against_a(again),
        "shuffled": against_a(again[other]),
        "zero": against_a(torch.zeros_like(z)),
    }
