"""Leakage: does the latent carry the next frame? Error at an artificial scene cut, beside the error without it.

Clips A and B of two videos: frames of A up to a tubelet boundary c, then B from c, at every boundary
(`evaluate.cut_positions`); where an encoder looks back in time, each of these clips is encoded anew, up to the state
after the cut. A is of another video of the same data, and, where one is given, of another data set (`across`);
the frame that is predicted is always B's, and every measured clip is B once.
The ratio of the two errors is about 1 where the latent carries the frame. Alone it proves little (an untrained model
scores above 3). The leakage score is 1 - E_cut / E_cut of the deterministic twin, the share of a cut that the latent
carries: 0 cannot leak, 1 copies. Beside it, from the same clips, the same share of uncut transitions (what the latent
explains of real motion) and of a code that copies: the best linear code of the latent's width (principal components),
fitted on other videos. A bottleneck as wide as the state has the score 1 by construction.
Protocol: spec section 6.2; Garrido et al. 2026, table 1; Yang 2026, equation 7.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.intervals import share_explained
from lawm.evaluation.perceptual import Pictured, Shown, compared, picture_figures
from lawm.evaluation.results import Figure, Missing, PerClip, Values, ratio_figure
from lawm.evaluation.subject import SHUFFLES, Clips, Evaluation, Fit, Subject, other_states, per_clip_error
from lawm.training import ClipBatch, LatentActionObjective

FIT_CLIPS = 64
"""Clips of other videos that the copying code is fitted on."""
FIT_STATES = 512
"""States of them, at most: beyond that the code hardly changes, and they are held in memory at once."""
NO_OTHER = Missing("no other data set was given to cut over from")


@dataclass(frozen=True)
class Leakage(PerClip):
    """Mean |error| of the state after each cut, [B, P] each, in the model's normalised states; `uncut`: of the same
    state of the clip B as it is; `across`: where the frames before the cut are of another data set. `cuts`: the states
    before which is cut (the same in each row)."""

    cuts: np.ndarray
    cut: Values
    uncut: Values
    copy_cut: Values
    copy_uncut: Values
    deterministic_cut: Values
    deterministic_uncut: Values
    code_cut: Values
    code_uncut: Values
    across_cut: Values
    across_copy_cut: Values
    across_deterministic_cut: Values
    cut_pictures: Pictured | Missing
    uncut_pictures: Pictured | Missing


Pair = tuple[Values, ...]
Take = Callable[[Leakage], Pair]


def at(of: Take, place: int | None) -> Take:
    """The values of all cuts, or of one."""
    if place is None:
        return of
    return lambda v: tuple(x if isinstance(x, Missing) else x[:, place] for x in of(v))


LEAKS = "0: cannot leak; 1: copies the next frame"


def score(name: str, of: Take, suffix: str = "", place: int | None = None, **more: Any) -> Figure[Leakage]:
    """1 - E_cut / E_cut of the deterministic twin."""
    said: dict[str, Any] = {"one": LEAKS, "needs": "deterministic", "positive": False} | more
    return Figure(f"{name}{suffix}", at(of, place), share_explained, "share", **said)


def main_figures(suffix: str = "", place: int | None = None) -> tuple[Figure[Leakage], Figure[Leakage]]:
    """The score and the ratio, over all cuts or at one."""
    return (
        score(
            "leakage_score", lambda v: (v.cut, v.deterministic_cut), suffix, place, better="lower",
            checked_by="" if suffix else "motion_explained",
        ),
        ratio_figure(
            f"leakage_ratio{suffix}", at(lambda v: (v.cut, v.uncut), place), better="higher",
            one="1.0: the latents carry the frame (untrained models score above 3)",
            checked_by=f"leakage_score{suffix}",
        ),
    )  # fmt: skip


FIGURES: tuple[Figure[Leakage], ...] = (
    *main_figures(),
    Figure(
        "motion_explained", lambda v: (v.uncut, v.deterministic_uncut), share_explained, "share", "higher",
        "0: the latents explain nothing of real motion; 1: all of it", needs="deterministic", positive=False,
    ),
    Figure("error_at_cut", lambda v: (v.cut,)),
    Figure("error_without_cut", lambda v: (v.uncut,), better="lower"),
    score(
        "leakage_score_copying_code", lambda v: (v.code_cut, v.deterministic_cut),
        control="a linear code that copies, of the latent's width",
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
    score(
        "leakage_score_across", lambda v: (v.across_cut, v.across_deterministic_cut), better="lower",
        needs="another data set",
    ),
    ratio_figure(
        "leakage_ratio_across", lambda v: (v.across_cut, v.uncut), better="higher",
        one="1.0: the latents carry the frame (untrained models score above 3)", needs="another data set",
    ),
    ratio_figure(
        "leakage_ratio_across_copy_last", lambda v: (v.across_copy_cut, v.copy_uncut), control="copy last state",
        needs="another data set",
    ),
)  # fmt: skip


SHOWN: tuple[Shown[Leakage], ...] = (
    Shown(
        "leakage_ratio", lambda v: v.cut_pictures, lambda v: v.uncut_pictures, "higher", "the latents carry the frame"
    ),
    Shown("at_cut", lambda v: v.cut_pictures),
    Shown("without_cut", lambda v: v.uncut_pictures),
)


def at_each_cut(values: Leakage, names: Sequence[str]) -> tuple[Figure[Leakage], ...]:
    """Score and ratio at each cut, where there are several."""
    cuts = values.cuts[0]
    each = (main_figures(f"[cut at state {cut}]", place) for place, cut in enumerate(cuts))
    return tuple(figure for both in each for figure in both) if len(cuts) > 1 else ()


def more_figures(values: Leakage, names: Sequence[str]) -> tuple[Figure[Leakage], ...]:
    """Those of each cut, and those of pictures (table 1)."""
    return (*at_each_cut(values, names), *picture_figures("leakage", SHOWN, values))


def note(values: Leakage, names: Sequence[str]) -> str:
    """Where clips were cut."""
    cuts = values.cuts[0]
    return f"mean over {len(cuts)} cuts of each clip" if len(cuts) > 1 else f"cut at state {cuts[0]}"


# ---------------------------------------------------------------- measuring
def cut_states(positions: str, states: int) -> list[int]:
    """The states before which clips of so many are cut: all that have one before them, or the middle one."""
    return list(range(1, states)) if positions == "all" else [states // 2]


def stitch(model: LatentActionObjective, clips: Clips, partner: Tensor) -> tuple[Tensor, int]:
    """Raw states of each clip A cut over to its partner B in the middle, and the cut c (a state): for pictures."""
    tubelet, frames, raw = model.frames_per_state, clips.batch.frames_BFCHW, clips.batch.states_BTND
    assert raw is not None
    cut = raw.shape[1] // 2
    if frames is None or not model.encoder.looks_back:
        return torch.cat([raw[:, :cut], raw[partner, cut:]], dim=1), cut
    return model.encode(torch.cat([frames[:, : cut * tubelet], frames[partner, cut * tubelet :]], dim=1)), cut


def taken(batch: ClipBatch, which: Tensor) -> ClipBatch:
    """Those clips of a batch; a clip may be taken several times."""

    def of(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[which.to(x.device)]

    frames, states, actions = of(batch.frames_BFCHW), of(batch.states_BTND), of(batch.actions_BTA)
    return ClipBatch(frames, states, actions, batch.positions_B[which.to(batch.positions_B.device)])


def after_cut(model: LatentActionObjective, before: ClipBatch, clips: Clips, cut: int) -> Tensor:
    """The raw state [B, N, D] after a cut from each clip `before` over to each of `clips`.

    Of an encoder that does not look back it is the state of the clip as it is, made already."""
    own = clips.batch
    assert own.states_BTND is not None
    if not model.encoder.looks_back:
        return own.states_BTND[:, cut]
    assert before.frames_BFCHW is not None and own.frames_BFCHW is not None  # a cache of such states is refused
    edge, end = cut * model.frames_per_state, (cut + 1) * model.frames_per_state
    return model.encode(torch.cat([before.frames_BFCHW[:, :edge], own.frames_BFCHW[:, edge:end]], dim=1))[:, -1]


def predicted_after(
    subject: Subject, one: LatentActionObjective, before: ClipBatch, after: Sequence[Tensor], cuts: Sequence[int]
) -> list[Tensor]:
    """What a model makes of each state after a cut, [B, N, D] in the subject's units: it sees the past of `before`,
    and its latents the way from there to what comes `after`."""
    assert before.states_BTND is not None
    past, found = one.state_norm(before.states_BTND), []
    for cut, raw in zip(cuts, after, strict=True):
        states = torch.cat([past[:, :cut], one.state_norm(raw)[:, None]], dim=1)
        z = one.infer(states, None if before.actions_BTA is None else before.actions_BTA[:, :cut]).z_BTZ
        found.append(subject.in_model_units(one, one.world_model(states[:, :-1], z)[:, -1]))
    return found


def predicted_uncut(subject: Subject, one: LatentActionObjective, clips: Clips, cuts: Sequence[int]) -> list[Tensor]:
    """What a model makes of the same states of the clips as they are."""
    states, z = (clips.states, clips.z) if one is subject.model else other_states(one, clips)
    predicted = subject.in_model_units(one, one.world_model(states[:, :-1], z))
    return [predicted[:, cut - 1] for cut in cuts]


def errors(predicted: Sequence[Tensor], wanted: Sequence[Tensor]) -> np.ndarray:
    """[B, P]."""
    return np.stack([per_clip_error(p, w) for p, w in zip(predicted, wanted, strict=True)], axis=1)


@dataclass(frozen=True)
class AtCuts:
    """Errors [B, P] after cuts from one batch over to the clips, of the model, of copying and of the twin; and the
    normalised states there, P of [B, N, D]."""

    own: np.ndarray
    copy: np.ndarray
    deterministic: Values
    wanted: list[Tensor]
    pictures: Pictured | Missing


def at_cuts(subject: Subject, before: ClipBatch, clips: Clips, cuts: Sequence[int]) -> AtCuts:
    """Cuts from each clip of `before` over to each of `clips`."""
    model, twin = subject.model, subject.deterministic
    assert before.states_BTND is not None
    after = [after_cut(model, before, clips, cut) for cut in cuts]
    wanted, past = [model.state_norm(raw) for raw in after], model.state_norm(before.states_BTND)

    def of(one: LatentActionObjective) -> np.ndarray:
        return errors(predicted_after(subject, one, before, after, cuts), wanted)

    own = predicted_after(subject, model, before, after, cuts)
    copied = errors([past[:, cut - 1] for cut in cuts], wanted)
    drawn = pictures_at(subject, clips, past, own, cuts)
    return AtCuts(errors(own, wanted), copied, twin if isinstance(twin, Missing) else of(twin), wanted, drawn)


def pictures_at(
    subject: Subject, clips: Clips, past_BTND: Tensor, predicted: Sequence[Tensor], cuts: Sequence[int]
) -> Pictured | Missing:
    """Pictures of the states predicted after each cut, whose past the decoder sees too, beside the clips' true
    frames."""
    frames, each = clips.frames, subject.model.frames_per_state
    drawn = []
    for cut, state in zip(cuts, predicted, strict=True):
        made = subject.pixels(torch.cat([past_BTND[:, :cut], state[:, None]], dim=1))
        if isinstance(made, Missing):
            return made
        if isinstance(frames, Missing):
            return frames
        drawn.append(made[:, -each:])
    assert isinstance(frames, Tensor)
    true = [frames[:, cut * each : (cut + 1) * each] for cut in cuts]
    return compared(torch.cat(drawn, dim=1), torch.cat(true, dim=1), clips.groups)


@torch.no_grad()
def measure(subject: Subject, clips: Clips, code: "CopyingCode | Missing") -> Leakage:
    """Errors at the cuts and at the same places of the uncut clips, one entry for each clip B, whose frames are
    predicted: both errors have the same target, up to what the encoder makes of the changed past, and are filed under
    B's video (filed under A's, clips of one B would be drawn apart, and intervals be too narrow)."""
    states = clips.states
    cuts, partner, twin = cut_states(subject.cut_positions, states.shape[1]), clips.partners(), subject.deterministic
    uncut = [states[:, cut] for cut in cuts]

    def coded(wanted: Sequence[Tensor]) -> Values:
        return code if isinstance(code, Missing) else errors([code(state) for state in wanted], wanted)

    def without(one: LatentActionObjective | Missing) -> Values:
        return one if isinstance(one, Missing) else errors(predicted_uncut(subject, one, clips, cuts), uncut)

    own = predicted_uncut(subject, subject.model, clips, cuts)
    within = None if partner is None else at_cuts(subject, taken(clips.batch, partner), clips, cuts)
    across = None
    if clips.other is not None:
        round_and_round = torch.arange(len(clips)) % len(clips.other)
        across = at_cuts(subject, taken(clips.other.batch, round_and_round), clips, cuts)
    return Leakage(
        clips.groups,
        cuts=np.tile(cuts, (len(clips), 1)),
        cut=SHUFFLES if within is None else within.own,
        uncut=errors(own, uncut),
        copy_cut=SHUFFLES if within is None else within.copy,
        copy_uncut=errors([states[:, cut - 1] for cut in cuts], uncut),
        deterministic_cut=SHUFFLES if within is None else within.deterministic,
        deterministic_uncut=without(twin),
        code_cut=SHUFFLES if within is None else coded(within.wanted),
        code_uncut=coded(uncut),
        across_cut=NO_OTHER if across is None else across.own,
        across_copy_cut=NO_OTHER if across is None else across.copy,
        across_deterministic_cut=NO_OTHER if across is None else across.deterministic,
        cut_pictures=SHUFFLES if within is None else within.pictures,
        uncut_pictures=pictures_at(subject, clips, states, own, cuts),
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


EVALUATION = Evaluation(
    "leakage", measure, FIGURES, fit=Fit(collect, fit_code, FIT_CLIPS, required=False), more=more_figures, note=note
)
