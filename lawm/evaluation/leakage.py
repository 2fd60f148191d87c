"""Leakage: does the latent carry the next frame? Error at an artificial scene cut, beside the error without it.

Clips A and B of two videos: frames of A up to a tubelet boundary c, then B from c; the stitched clip is encoded anew.
The ratio of the two errors is about 1 where the latent carries the frame. Alone it proves little (an untrained model
scores above 3). The leakage score is 1 - E_cut / E_cut of the deterministic twin, the share of a cut that the latent
carries: 0 cannot leak, 1 copies. Beside it, from the same clips, the same share of uncut transitions (what the latent
explains of real motion) and of a code that copies: the best linear code of the latent's width (principal components),
fitted on other videos. A bottleneck as wide as the state has the score 1 by construction.
Protocol: spec section 6.2; Garrido et al. 2026, table 1; Yang 2026, equation 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.intervals import share_explained
from lawm.evaluation.results import Figure, Missing, PerClip, Values, ratio_figure
from lawm.evaluation.subject import SHUFFLES, Clips, Evaluation, Fit, Subject, per_clip_error
from lawm.training import LatentActionObjective

FIT_CLIPS = 64
"""Clips of other videos that the copying code is fitted on."""
FIT_STATES = 512
"""States of them, at most: beyond that the code hardly changes, and they are held in memory at once."""


@dataclass(frozen=True)
class Leakage(PerClip):
    """Mean |error| of the state after the cut, [B] each, in the model's normalised states; `uncut`: of the same
    state of the clip that it comes from."""

    cut: Values
    uncut: Values
    copy_cut: Values
    copy_uncut: Values
    deterministic_cut: Values
    deterministic_uncut: Values
    code_cut: Values
    code_uncut: Values


LEAKS = "0: cannot leak; 1: copies the next frame"
FIGURES: tuple[Figure[Leakage], ...] = (
    Figure(
        "leakage_score", lambda v: (v.cut, v.deterministic_cut), share_explained, "share", "lower", LEAKS,
        checked_by="motion_explained", needs="deterministic", positive=False,
    ),
    Figure(
        "motion_explained", lambda v: (v.uncut, v.deterministic_uncut), share_explained, "share", "higher",
        "0: the latents explain nothing of real motion; 1: all of it", needs="deterministic", positive=False,
    ),
    ratio_figure(
        "leakage_ratio", lambda v: (v.cut, v.uncut), better="higher",
        one="1.0: the latents carry the frame (untrained models score above 3)", checked_by="leakage_score",
    ),
    Figure("error_at_cut", lambda v: (v.cut,)),
    Figure("error_without_cut", lambda v: (v.uncut,), better="lower"),
    Figure(
        "leakage_score_copying_code", lambda v: (v.code_cut, v.deterministic_cut), share_explained, "share",
        one=LEAKS, control="a linear code that copies, of the latent's width", needs="deterministic", positive=False,
    ),
    ratio_figure(
        "leakage_ratio_copying_code", lambda v: (v.code_cut, v.code_uncut),
        control="a linear code that copies, of the latent's width", needs="other videos",
    ),
    ratio_figure(
        "leakage_ratio_no_latent", lambda v: (v.deterministic_cut, v.deterministic_uncut),
        control="deterministic", needs="deterministic",
    ),
    ratio_figure("leakage_ratio_copy_last", lambda v: (v.copy_cut, v.copy_uncut), control="copy last state"),
)  # fmt: skip


def stitch(model: LatentActionObjective, clips: Clips, partner: Tensor) -> tuple[Tensor, int]:
    """Raw states of each clip A cut over to its partner B in the middle, and the cut c (a state)."""
    tubelet, frames = model.frames_per_state, clips.batch.frames_BFCHW
    if frames is None:
        raw = clips.batch.states_BTND
        assert raw is not None
        cut = raw.shape[1] // 2
        return torch.cat([raw[:, :cut], raw[partner, cut:]], dim=1), cut
    cut = frames.shape[1] // tubelet // 2
    stitched = torch.cat([frames[:, : cut * tubelet], frames[partner, cut * tubelet :]], dim=1)
    return model.encode(stitched), cut


@torch.no_grad()
def measure(subject: Subject, clips: Clips, code: "CopyingCode | Missing") -> Leakage:
    """Errors at the cut and at the same place of the uncut clip, one entry for each clip B, whose frame is predicted.

    The uncut error is B's own, so that both errors have the same target up to what the encoder makes of the changed
    past. They are B's video's too: filed under A's, clips of one B would be drawn apart, and intervals be too narrow.
    """
    model, partner = subject.model, clips.partners()
    if partner is None:
        return Leakage(clips.groups, *[SHUFFLES] * 8)
    raw, cut = stitch(model, clips, partner)
    stitched, uncut = model.state_norm(raw), clips.states
    wanted = {"cut": stitched[:, cut], "uncut": uncut[partner, cut]}

    def errors(one: LatentActionObjective) -> dict[str, np.ndarray]:
        assert clips.batch.states_BTND is not None
        found = {}
        for name, states in (("cut", one.state_norm(raw)), ("uncut", one.state_norm(clips.batch.states_BTND))):
            z = one.infer(states, clips.batch.actions_BTA).z_BTZ
            predicted = one.world_model(states[:, :cut], None if z is None else z[:, :cut])[:, -1]
            predicted = subject.in_model_units(one, predicted)
            found[name] = per_clip_error(predicted if name == "cut" else predicted[partner], wanted[name])
        return found

    own = errors(model)
    twin: dict[str, Values] = {"cut": Missing(""), "uncut": Missing("")}
    if isinstance(subject.deterministic, Missing):
        twin = dict.fromkeys(twin, subject.deterministic)
    else:
        twin = dict(errors(subject.deterministic))
    coded: dict[str, Values] = dict.fromkeys(wanted, code) if isinstance(code, Missing) else {
        name: per_clip_error(code(state), state) for name, state in wanted.items()
    }  # fmt: skip
    return Leakage(
        clips.groups[partner.cpu().numpy()],
        cut=own["cut"],
        uncut=own["uncut"],
        copy_cut=per_clip_error(stitched[:, cut - 1], wanted["cut"]),
        copy_uncut=per_clip_error(uncut[partner, cut - 1], wanted["uncut"]),
        deterministic_cut=twin["cut"],
        deterministic_uncut=twin["uncut"],
        code_cut=coded["cut"],
        code_uncut=coded["uncut"],
    )


# ---------------------------------------------------------------- the code that copies
@dataclass(frozen=True)
class States(PerClip):
    """Normalised states of other videos, [B, T, N * D] (float32), and the latent's width in each row, [B]."""

    states: np.ndarray
    width: np.ndarray


@dataclass(frozen=True)
class CopyingCode:
    """x -> its projection on `basis` [K, N * D] around `centre`: the best linear code of K numbers."""

    centre: np.ndarray
    basis: np.ndarray

    def __call__(self, states_BND: Tensor) -> Tensor:
        centre, basis = (torch.from_numpy(x).to(states_BND.device) for x in (self.centre, self.basis))
        y = states_BND.flatten(1).float() - centre
        return (y @ basis.T @ basis + centre).view_as(states_BND)


@torch.no_grad()
def collect(subject: Subject, clips: Clips) -> States:
    """Some states of each clip, FIT_STATES of FIT_CLIPS clips in all."""
    keep = max(1, FIT_STATES // FIT_CLIPS)
    states = clips.states[:, :: -(-clips.states.shape[1] // keep)].flatten(2).float().cpu().numpy()
    return States(clips.groups, states, np.full(len(clips), subject.model.latent_dim))


def fit_code(collected: Sequence[States], seed: int) -> CopyingCode:
    """The first principal components, as many as the latent has numbers, and at most half as many as there are
    states: the code would rather remember those."""
    parts = [part.states.reshape(-1, part.states.shape[-1]) for part in collected]
    flat = np.concatenate(parts)
    centre = flat.mean(axis=0)
    keep = max(1, min(int(collected[0].width[0]), len(flat) // 2))
    # By the Gram matrix: there are far fewer states than numbers in one.
    flat = flat - centre
    values, vectors = np.linalg.eigh((flat @ flat.T).astype(np.float64))
    values, vectors = values[::-1][:keep], vectors[:, ::-1][:, :keep]
    good = values > 1e-9 * max(values[0], 1e-30)
    basis = (vectors[:, good].T @ flat) / np.sqrt(values[good])[:, None]
    return CopyingCode(centre, basis.astype(np.float32))


EVALUATION = Evaluation("leakage", measure, FIGURES, fit=Fit(collect, fit_code, FIT_CLIPS, required=False))
