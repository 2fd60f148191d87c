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


@torch.no_grad()
def measure(subject: Subject, clips: Clips, fitted: None = None) -> Cycle:
    """Per-clip errors of a unit against A."""
    model, context, whole = subject.model, subject.context, clips.states

    asked = np.full(len(clips), subject.cycle_seconds)
    partner, other = clips.partners(), clips.partners(1)
    if partner is None or other is None:
        none = SHUFFLES
        return Cycle(clips.groups, original=none, transfer=none, shuffled=none, zero=none, seconds=none, asked=asked)
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

    def against_a(latents: torch.Tensor) -> np.ndarray:
        rollout = model.world_model.rollout(start_a, torch.cat([own, latents], dim=1), steps)
        return per_clip_error(rollout, states[:, context:])

    return Cycle(
        clips.groups,
        original=against_a(rolled),
        transfer=against_a(again),
        shuffled=against_a(again[other]),
        zero=against_a(torch.zeros_like(rolled)),
        seconds=np.full(len(clips), steps * each),
        asked=asked,
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


EVALUATION = Evaluation("cycle", measure, FIGURES, lacks=lacks, note=note)
