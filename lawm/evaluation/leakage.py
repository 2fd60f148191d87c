"""Leakage: does the latent carry the next frame? Error at an artificial scene cut over error without it.

Clips A and B: frames of A up to a tubelet boundary c, then B from c; the stitched clip is encoded anew.
About 1 means that the latent carries the frame. Alone it proves little (an untrained model scores above
3), hence the two controls beside it: a code that does copy the next state (the best linear code of the
latent's width, by PCA of states) and the model without latents.
Protocol: spec section 6.2; Garrido et al. 2026, table 1; Yang 2026, equation 7.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lawm.evaluation.capacity import per_clip_error
from lawm.evaluation.results import Figure, PerClip, derange
from lawm.training import ClipBatch, LatentActionObjective

FIGURES = [
    Figure("leakage_ratio", "cut", "uncut"),
    Figure("error_at_cut", "cut"),
    Figure("error_without_cut", "uncut"),
    Figure("leakage_ratio_copying_code", "pca_cut", "pca_uncut", control="a code that copies (PCA)"),
    Figure("leakage_ratio_no_latent", "det_cut", "det_uncut", control="deterministic"),
    Figure("leakage_ratio_copy_last", "copy_cut", "copy_uncut", control="copy last state"),
]


def stitch(model: LatentActionObjective, batch: ClipBatch, partner: Tensor) -> tuple[Tensor, int]:
    """Normalised states of each clip A cut over to its partner B in the middle, and the cut c (a state)."""
    tubelet = model.frames_per_state
    if batch.frames_BFCHW is None:
        assert batch.states_BTND is not None
        raw = batch.states_BTND
        cut = raw.shape[1] // 2
        return model.state_norm(torch.cat([raw[:, :cut], raw[partner, cut:]], dim=1)), cut
    frames = batch.frames_BFCHW
    cut = frames.shape[1] // tubelet // 2
    at = cut * tubelet
    stitched = torch.cat([frames[:, :at], frames[partner, at:]], dim=1)
    return model.state_norm(model.encode(stitched)), cut


@torch.no_grad()
def evaluate(
    model: LatentActionObjective,
    batch: ClipBatch,
    seed: int,
    deterministic: LatentActionObjective | None = None,
) -> PerClip:
    """Per-clip errors at the cut and at the same place of the uncut clip.

    The uncut error is B's own (the clip whose frame is predicted), so that both errors have the
    same target up to what the encoder makes of the changed past.
    """
    partner = torch.from_numpy(derange(len(batch), seed)).to(batch.positions_B.device)
    values: PerClip = {}
    for prefix, one in (("", model), ("det_", deterministic)):
        if one is None:
            continue
        uncut = one.states(batch)
        stitched, cut = stitch(one, batch, partner)
        for name, states, source in (("cut", stitched, None), ("uncut", uncut, partner)):
            z = one.infer(states, batch.actions_BTA).z_BTZ
            predicted = one.world_model(states[:, :cut], None if z is None else z[:, :cut])[:, -1]
            target, last = states[:, cut], states[:, cut - 1]
            if source is not None:
                predicted, target, last = predicted[source], target[source], last[source]
            values[prefix + name] = per_clip_error(predicted, target)
            if not prefix:
                values["copy_" + name] = per_clip_error(last, target)
        if not prefix:
            code = copying_code(uncut, model.latent_dim)
            values["pca_cut"] = per_clip_error(code(stitched[:, cut]), stitched[:, cut])
            values["pca_uncut"] = per_clip_error(code(uncut[:, cut]), uncut[:, cut])[partner.cpu().numpy()]
    return values


def copying_code(states_BTND: Tensor, width: int) -> Callable[[Tensor], Tensor]:
    """A map x -> its projection on the first `width` principal components of the states (at most half
    as many as there are states, so that it does not simply remember them)."""
    flat = states_BTND.flatten(0, 1).flatten(1).float()
    centre = flat.mean(dim=0)
    keep = max(1, min(width, len(flat) // 2))
    _, _, basis = torch.linalg.svd(flat - centre, full_matrices=False)
    basis = basis[:keep]

    def project(x: Tensor) -> Tensor:
        y = x.flatten(1).float() - centre
        return (y @ basis.T @ basis + centre).view_as(x)

    return project
