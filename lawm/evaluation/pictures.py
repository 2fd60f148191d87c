"""Pictures of predicted against true frames, and of one clip's actions on another (spec section 6.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.control import rollout_actions
from lawm.evaluation.partners import derange
from lawm.model import Decoder
from lawm.training import ClipBatch, ControllerObjective, LatentActionObjective, decode_states


@dataclass(frozen=True)
class PictureRow:
    """One row of frames uint8 [T, S, S, 3] and what they are."""

    label: str
    frames: np.ndarray


def to_images(frames_TCHW: Tensor) -> np.ndarray:
    """[0, 1] floats [T, 3, S, S] -> uint8 [T, S, S, 3]."""
    return (frames_TCHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def prediction_rows(
    model: LatentActionObjective,
    decoder: Decoder | None,
    batch: ClipBatch,
    groups: Sequence[str],
    clips: int,
    controller: ControllerObjective | None = None,
) -> list[PictureRow]:
    """For each of the first clips: all true frames, the decoder's ceiling, rollouts from the first state.

    Rollouts: with the IDM's latents, with the controller's (labelled clips), with another video's latents (where
    `groups`, the video of each clip, are several).
    """
    assert batch.frames_BFCHW is not None and len(batch) == len(groups)
    states = model.states(batch)
    z = model.infer(states, batch.actions_BTA).z_BTZ
    steps = states.shape[1] - 1

    def picture(rolled: Tensor) -> Tensor:
        return decode_states(model, decoder, torch.cat([states[:, :1], rolled], dim=1))

    found = {
        "decoded true states": decode_states(model, decoder, states),
        "rollout, inferred latents": picture(model.world_model.rollout(states[:, :1], z, steps)),
    }
    if controller is not None and batch.actions_BTA is not None:
        found["rollout, true actions"] = picture(
            rollout_actions(model, controller, states[:, :1], batch.actions_BTA.float())
        )
    partner = derange(groups, 0)
    if z is not None and partner is not None:
        rolled = model.world_model.rollout(states[:, :1], z[torch.from_numpy(partner)], steps)
        found["rollout, another video's latents"] = picture(rolled)
    rows = []
    for i in range(min(clips, len(batch))):
        rows.append(PictureRow("true frames", to_images(batch.frames_BFCHW[i].float() / 255)))
        rows += [PictureRow(label, to_images(frames[i].float())) for label, frames in found.items()]
    return rows
