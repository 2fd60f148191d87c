"""Cycle consistency: does a latent action mean the same on another video?

z from A; roll B's context out under z; infer z' from that rollout; roll A's context out under z'.
The ratio is the error against A with z' over the error with z. z' is truly re-inferred from the
predicted states. An untrained model scores 1, hence the control: latents re-inferred for another clip.
Over 2 s, as in table 2, or the whole clip where that is shorter (which is said).
Protocol: spec section 6.3; Garrido et al. 2026, table 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lawm.evaluation.perceptual import Pictured, Shown, picture_figures, pictured
from lawm.evaluation.results import Figure, Missing, PerClip, Values, ratio_figure
from lawm.evaluation.subject import SHUFFLES, Clips, Evaluation, Subject, no_latents, per_clip_error


@dataclass(frozen=True)
class Cycle(PerClip):
    """Mean |error| against A, [B] each: with z, with z' (through B), with another video's z', with zeros;
    seconds that were rolled out, and that were asked for."""

    original: Values
    transfer: Values
    shuffled: Values
    zero: Values
    seconds: Values
    asked: np.ndarray
    original_pictures: Pictured | Missing
    transfer_pictures: Pictured | Missing


FIGURES: tuple[Figure[Cycle], ...] = (
    ratio_figure(
        "cycle_ratio", lambda v: (v.transfer, v.original), better="lower",
        one="1.0: the action survives the way through another video, or the latents are not used",
        checked_by="cycle_shuffled_vs_transfer",
    ),
    ratio_figure(
        "cycle_shuffled_vs_transfer", lambda v: (v.shuffled, v.transfer), better="higher",
        one="1.0: another video's latents do as well, and the cycle says nothing",
    ),
    Figure("cycle_original_error", lambda v: (v.original,), better="lower"),
    Figure("cycle_transfer_error", lambda v: (v.transfer,), better="lower"),
    ratio_figure("cycle_shuffled_ratio", lambda v: (v.shuffled, v.original), control="shuffled latents"),
    ratio_figure("cycle_zero_ratio", lambda v: (v.zero, v.original), control="zero latents"),
)  # fmt: skip
SHOWN: tuple[Shown[Cycle], ...] = (
    Shown(
        "cycle_ratio", lambda v: v.transfer_pictures, lambda v: v.original_pictures, "lower",
        "the action survives the way through another video, or the latents are not used",
    ),
    Shown("cycle_original", lambda v: v.original_pictures),
    Shown("cycle_transfer", lambda v: v.transfer_pictures),
)  # fmt: skip


def in_pixels(values: Cycle, names: Sequence[str]) -> tuple[Figure[Cycle], ...]:
    """The figures of pictures."""
    return picture_figures("cycle", SHOWN, values)


@torch.no_grad()
def measure(subject: Subject, clips: Clips, fitted: None = None) -> Cycle:
    """Per-clip errors of a unit against A."""
    model, context, whole = subject.model, subject.context, clips.states

    asked = np.full(len(clips), subject.cycle_seconds)
    partner, other = clips.partners(), clips.partners(1)
    if partner is None or other is None:
        one_video = dict.fromkeys(("original", "transfer", "shuffled", "zero", "seconds"), SHUFFLES)
        return Cycle(clips.groups, asked=asked, original_pictures=SHUFFLES, transfer_pictures=SHUFFLES, **one_video)
    each = model.frames_per_state / subject.fps  # seconds a state
    steps = min(whole.shape[1] - context, max(1, round(subject.cycle_seconds / each)))
    states = whole[:, : context + steps]
    z = clips.z
    assert z is not None
    z = z[:, : context + steps - 1]
    # The transitions within a context are known, and keep that context's own latents: only what is rolled is exchanged.
    own, rolled = z[:, : context - 1], z[:, context - 1 :]
    start_a, start_b = states[:, :context], states[partner][:, :context]
    on_b = model.world_model.rollout(start_b, torch.cat([own[partner], rolled], dim=1), steps)
    inferred = model.infer(torch.cat([start_b, on_b], dim=1)).z_BTZ
    assert inferred is not None
    again = inferred[:, context - 1 :]

    def on_a(latents: torch.Tensor) -> torch.Tensor:
        return model.world_model.rollout(start_a, torch.cat([own, latents], dim=1), steps)

    def against_a(rollout: torch.Tensor) -> np.ndarray:
        return per_clip_error(rollout, states[:, context:])

    def shown(rollout: torch.Tensor) -> Pictured | Missing:
        return pictured(subject, clips, torch.cat([start_a, rollout], dim=1), context)

    original, transfer = on_a(rolled), on_a(again)
    return Cycle(
        clips.groups,
        original=against_a(original),
        transfer=against_a(transfer),
        shuffled=against_a(on_a(again[other])),
        zero=against_a(on_a(torch.zeros_like(rolled))),
        seconds=np.full(len(clips), steps * each),
        asked=asked,
        original_pictures=shown(original),
        transfer_pictures=shown(transfer),
    )


def lacks(subject: Subject) -> str:
    """Latents that are given, and not inferred, have no cycle."""
    given = subject.model.latent_action.kind == "true_actions"
    return "latents that are true actions are not inferred again" if given else no_latents(subject)


def note(values: Cycle, names: Sequence[str]) -> str:
    """How long was rolled out, where clips are too short for what was asked."""
    if isinstance(values.seconds, Missing) or not (values.seconds < values.asked).any():
        return ""
    return f"over {values.seconds[0]:g} s, the whole clip (table 2: 2 s)"


EVALUATION = Evaluation("cycle", measure, FIGURES, lacks=lacks, more=in_pixels, note=note)
