"""Pictures as values: what models make of a clip, of one clip's actions on another (spec section 6.4), and of a scene
cut (section 6.2). Drawing them is the report's.

Legend: B clips, T states, F frames, S image side, N tokens, D state width, Z latent width, A action width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.control import rollout_actions
from lawm.evaluation.results import Missing
from lawm.evaluation.subject import NO_LATENTS, SHUFFLES, Clips, Subject, other_states

TRUE, CEILING = "true frames", "decoded true states"
INFERRED, CONTROLLED, BLIND, SHUFFLED = (
    "rollout, inferred latents",
    "rollout, true actions",
    "rollout, no latents (deterministic twin)",
    "rollout, another video's latents",
)
FILM_ROWS = {TRUE: "true", INFERRED: "inferred latents", CONTROLLED: "controller", BLIND: "deterministic"}
"""The rows that are worth playing side by side, and their short names."""


@dataclass(frozen=True)
class PictureRow:
    """Frames uint8 [F, S, S, 3] and what they are; `first`: which frame of the clip the first of them is."""

    label: str
    frames: np.ndarray
    first: int = 0


@dataclass(frozen=True)
class Episode:
    """A clip (or a pair of them) and what models make of it, a row each, the true frames first.

    `z`: the latents inferred from it, float [T-1, Z]; `actions`: its true ones, float [T-1, A]; None where it has none.
    """

    name: str
    rows: tuple[PictureRow, ...]
    z: np.ndarray | None = None
    actions: np.ndarray | None = None


@torch.no_grad()
def prediction_episodes(subject: Subject, clips: Clips, count: int) -> list[Episode] | Missing:
    """For each of the first clips: true frames, the decoder's ceiling, and rollouts from the first states alone.

    Rollouts: with the IDM's latents, with the controller's (labelled clips), without latents (the deterministic
    twin's), with another video's latents (where the clips are of several videos). Missing where states cannot be drawn,
    here and below.
    """
    if lack := lacks_pictures(subject, clips):
        return lack
    model, states, z = subject.model, clips.states, clips.z
    start, steps = states[:, : subject.context], states.shape[1] - subject.context
    found = {INFERRED: model.world_model.rollout(start, z, steps)}
    if not isinstance(subject.controller, Missing) and clips.batch.actions_BTA is not None:
        found[CONTROLLED] = rollout_actions(model, subject.controller, start, clips.actions)
    if not isinstance(subject.deterministic, Missing):
        theirs, _ = other_states(subject.deterministic, clips)
        blind = subject.deterministic.world_model.rollout(theirs[:, : subject.context], None, steps)
        found[BLIND] = subject.in_model_units(subject.deterministic, blind)
    partner = clips.partners()
    if z is not None and partner is not None:
        found[SHUFFLED] = model.world_model.rollout(start, z[partner], steps)
    drawn = {CEILING: _drawn(subject, states, count)}
    drawn |= {label: _drawn(subject, torch.cat([start, x], dim=1), count) for label, x in found.items()}
    true, actions = _true(clips), clips.batch.actions_BTA
    return [
        Episode(
            _name(clips, i),
            (PictureRow(TRUE, true[i]), *(PictureRow(label, frames[i]) for label, frames in drawn.items())),
            None if z is None else z[i].float().cpu().numpy(),
            None if actions is None else actions[i].float().cpu().numpy(),
        )
        for i in range(min(count, len(clips)))
    ]


@torch.no_grad()
def transfer_episodes(subject: Subject, clips: Clips, count: int) -> list[Episode] | Missing:
    """For each of the first clips A and a clip B of another video: A, B, B's first states rolled out under A's latents,
    and A's under the latents that are inferred again from that rollout: the way of the cycle (Garrido et al. 2026,
    figures 7 and 8)."""
    model, states, z, partner = subject.model, clips.states, clips.z, clips.partners()
    if lack := lacks_pictures(subject, clips):
        return lack
    if z is None:
        return NO_LATENTS
    if partner is None:
        return SHUFFLES
    if model.latent_action.kind == "true_actions":
        return Missing("latents that are true actions are not inferred again")
    context, steps = subject.context, states.shape[1] - subject.context
    own, rolled = z[:, : context - 1], z[:, context - 1 :]
    start_a, start_b = states[:, :context], states[partner][:, :context]
    on_b = model.world_model.rollout(start_b, torch.cat([own[partner], rolled], dim=1), steps)
    again = model.infer(torch.cat([start_b, on_b], dim=1)).z_BTZ
    assert again is not None
    back = model.world_model.rollout(start_a, torch.cat([own, again[:, context - 1 :]], dim=1), steps)
    moved = _drawn(subject, torch.cat([start_b, on_b], dim=1), count)
    cycled = _drawn(subject, torch.cat([start_a, back], dim=1), count)
    true = _true(clips)
    return [
        Episode(
            f"{_name(clips, i)} → {_name(clips, int(partner[i]))}",
            (
                PictureRow("source", true[i]),
                PictureRow("target", true[int(partner[i])]),
                PictureRow("target under the source's latents", moved[i]),
                PictureRow("source under the latents inferred again", cycled[i]),
            ),
        )
        for i in range(min(count, len(clips)))
    ]


@torch.no_grad()
def cut_episodes(subject: Subject, clips: Clips, count: int) -> tuple[list[Episode], int] | Missing:
    """For each of the first clips A, cut over to a clip B of another video: B uncut, the stitched clip, and what is
    predicted of each, a step at a time from the true past; and which frame is the first after the cut. A latent that
    carries the frame shows B at the cut as well as without one."""
    model, partner = subject.model, clips.partners()
    if lack := lacks_pictures(subject, clips):
        return lack
    if partner is None:
        return SHUFFLES
    tubelet, cut = model.frames_per_state, clips.states.shape[1] // 2
    edge, partner = cut * tubelet, partner[:count]
    frames, raw = clips.batch.frames_BFCHW, clips.batch.states_BTND
    if frames is not None:
        stitched = model.encode(torch.cat([frames[:count, :edge], frames[partner, edge:]], dim=1))
    else:
        assert raw is not None  # of the pixels encoder, which looks at nothing but the frame
        stitched = torch.cat([raw[:count, :cut], raw[partner, cut:]], dim=1)

    def predicted(states: Tensor, actions: Tensor | None) -> np.ndarray:
        z = model.infer(states, actions).z_BTZ
        after = model.world_model(states[:, :-1], z)
        return _drawn(subject, torch.cat([states[:, :1], after], dim=1), count)[:, tubelet:]

    actions, true = clips.batch.actions_BTA, _true(clips)
    with_cut = predicted(model.state_norm(stitched), None if actions is None else actions[:count])
    without = predicted(clips.states[partner], None if actions is None else actions[partner])
    seen = [np.concatenate([true[i, :edge], true[int(j), edge:]]) for i, j in enumerate(partner)]
    episodes = [
        Episode(
            f"{_name(clips, i)} cut to {_name(clips, int(partner[i]))}",
            (
                PictureRow("uncut", true[int(partner[i])]),
                PictureRow("uncut, predicted", without[i], tubelet),
                PictureRow("stitched", seen[i]),
                PictureRow("stitched, predicted", with_cut[i], tubelet),
            ),
        )
        for i in range(min(count, len(clips)))
    ]
    return episodes, edge


def to_images(frames_CHW: Tensor) -> np.ndarray:
    """[0, 1] floats [..., 3, S, S] -> uint8 [..., S, S, 3]."""
    return (frames_CHW.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def lacks_pictures(subject: Subject, clips: Clips) -> Missing | None:
    """Why clips and states of the model cannot be drawn; None where they can."""
    needed = (clips.frames, subject.pixels(clips.states[:1]))
    return next((one for one in needed if isinstance(one, Missing)), None)


def _drawn(subject: Subject, states_BTND: Tensor, count: int) -> np.ndarray:
    """The first clips' states as pictures, uint8 [count, F, S, S, 3]."""
    drawn = subject.pixels(states_BTND[:count])
    assert isinstance(drawn, Tensor)
    return to_images(drawn.float())


def _true(clips: Clips) -> np.ndarray:
    """True frames of all clips, uint8 [B, F, S, S, 3]."""
    assert isinstance(clips.frames, Tensor)
    return to_images(clips.frames)


def _name(clips: Clips, i: int) -> str:
    """The clip's video and where it begins."""
    read = [clip for clip in clips.batch.clips if not clip.refused]
    return f"{read[i].key}, {read[i].start_s:.2f} s" if read else str(clips.groups[i])
