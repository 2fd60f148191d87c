"""Transfer and locality: is a latent action the same on another video, and does it act where the source moved?

z of a clip A rolls the first states of a clip B of another video out; z' is inferred from that rollout. Transfer: the
cosine of z and z', beside that with the z' of another pair. Locality: where that rollout differs from one of B in which
nothing happens, against where A changed: the correlation of both maps over the tokens, beside that with another clip's
map. Nothing happens under the latents that are inferred from a state and itself: zeros are no code of a codebook, and
nothing that a model has to take for rest. In pixels the maps are of the decoded rollouts and A's frames, in patches of
8 x 8 pixels.
Protocol: spec section 6.4; Garrido et al. 2026, figures 7 and 8.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lawm.evaluation.results import Figure, Missing, PerClip, Values
from lawm.evaluation.subject import SHUFFLES, Clips, Evaluation, Subject, no_latents, to_numpy

PATCH = 8
"""Side of the squares, in pixels, that change is averaged over."""


@dataclass(frozen=True)
class Transfer(PerClip):
    """[B] each: cosine of a clip's latents with those inferred again on B, and with those of another pair; correlation
    of the change on B with A's change and with another clip's, of tokens and of patches of pixels. Not a number where a
    map is the same everywhere."""

    cosine: Values
    cosine_other: Values
    locality: Values
    locality_other: Values
    pixels: Values
    pixels_other: Values


FIGURES: tuple[Figure[Transfer], ...] = (
    Figure(
        "transfer_cosine", lambda v: (v.cosine,), unit="cosine", better="higher",
        one="1.0: the same action is inferred on the other video", checked_by="transfer_cosine_shuffled",
        positive=False,
    ),
    Figure(
        "transfer_cosine_shuffled", lambda v: (v.cosine_other,), unit="cosine", control="another pair's latents",
        positive=False,
    ),
    Figure(
        "locality", lambda v: (v.locality,), unit="correlation", better="higher",
        one="1.0: it changes what the source changed; 0: no more than chance", checked_by="locality_shuffled",
        positive=False,
    ),
    Figure(
        "locality_shuffled", lambda v: (v.locality_other,), unit="correlation", control="another clip's change",
        positive=False,
    ),
    Figure(
        "locality_pixels", lambda v: (v.pixels,), unit="correlation", better="higher",
        one="1.0: it changes what the source changed; 0: no more than chance", checked_by="locality_pixels_shuffled",
        positive=False,
    ),
    Figure(
        "locality_pixels_shuffled", lambda v: (v.pixels_other,), unit="correlation", control="another clip's change",
        positive=False,
    ),
)  # fmt: skip


def correlation(x_BN: Tensor, y_BN: Tensor) -> np.ndarray:
    """Pearson's correlation of each row, [B]; not a number where a row is constant."""
    x, y = (v.double() - v.double().mean(dim=1, keepdim=True) for v in (x_BN, y_BN))
    below = (x.square().sum(1) * y.square().sum(1)).sqrt()
    floor = 1e-12 * (x_BN.double().square().sum(1) * y_BN.double().square().sum(1)).sqrt() + 1e-30
    return to_numpy(torch.where(below > floor, (x * y).sum(1) / below.clamp_min(1e-300), torch.nan))


def still_latents(subject: Subject, state_BND: Tensor) -> Tensor:
    """What is inferred where nothing happens, [B, Z]."""
    z = subject.model.infer(torch.stack([state_BND, state_BND], dim=1)).z_BTZ
    assert z is not None
    return z[:, 0]


def token_map(one_BTND: Tensor, other_BTND: Tensor) -> Tensor:
    """Mean |difference| of each token over time, [B, N]."""
    return (one_BTND - other_BTND).float().abs().mean(dim=(1, 3))


def patch_map(one_BFCHW: Tensor, other_BFCHW: Tensor) -> Tensor:
    """Mean |difference| of each patch of pixels over time, [B, P]."""
    change = (one_BFCHW - other_BFCHW).abs().mean(dim=(1, 2), keepdim=True)[:, 0]
    return F.avg_pool2d(change, min(PATCH, change.shape[-1])).flatten(1)


@torch.no_grad()
def measure(subject: Subject, clips: Clips, fitted: None = None) -> Transfer:
    """Values of a unit, each filed under A's video."""
    model, states, z, context = subject.model, clips.states, clips.z, subject.context
    assert z is not None
    partner, other = clips.partners(), clips.partners(1)
    if partner is None or other is None:
        names = ("cosine", "cosine_other", "locality", "locality_other", "pixels", "pixels_other")
        return Transfer(clips.groups, **dict.fromkeys(names, SHUFFLES))
    steps = states.shape[1] - context
    start, own = states[partner][:, :context], z[partner][:, : context - 1]
    rolled = z[:, context - 1 :]

    def on_b(latents: Tensor) -> Tensor:
        return model.world_model.rollout(start, torch.cat([own, latents], dim=1), steps)

    moved = on_b(rolled)
    rest = on_b(still_latents(subject, start[:, -1])[:, None].expand(-1, steps, -1))
    again = model.infer(torch.cat([start, moved], dim=1)).z_BTZ
    assert again is not None
    again = again[:, context - 1 :]
    change = token_map(moved, rest)
    source = token_map(states[:, context:], states[:, context - 1 : context])
    return Transfer(
        clips.groups,
        cosine=to_numpy(F.cosine_similarity(rolled, again, dim=-1).mean(1)),
        cosine_other=to_numpy(F.cosine_similarity(rolled, again[other], dim=-1).mean(1)),
        locality=correlation(change, source),
        locality_other=correlation(change, source[other]),
        **in_pixels(subject, clips, start, (moved, rest), other),
    )


def in_pixels(
    subject: Subject, clips: Clips, start_BTND: Tensor, rollouts: tuple[Tensor, Tensor], other: Tensor
) -> dict[str, Values]:
    """The same correlations of decoded rollouts and true frames."""
    first, frames = subject.context * subject.model.frames_per_state, clips.frames
    drawn = [subject.pixels(torch.cat([start_BTND, rollout], dim=1)) for rollout in rollouts]
    for found in (*drawn, frames):
        if isinstance(found, Missing):
            return {"pixels": found, "pixels_other": found}
    moved, rest = (one[:, first:] for one in drawn if isinstance(one, Tensor))
    assert isinstance(frames, Tensor)
    change, source = patch_map(moved, rest), patch_map(frames[:, first:], frames[:, first - 1 : first])
    return {"pixels": correlation(change, source), "pixels_other": correlation(change, source[other])}


def lacks(subject: Subject) -> str:
    """Latents that are given, and not inferred, cannot be inferred again."""
    given = subject.model.latent_action.kind == "true_actions"
    return "latents that are true actions are not inferred again" if given else no_latents(subject)


EVALUATION = Evaluation("transfer", measure, FIGURES, lacks=lacks)
