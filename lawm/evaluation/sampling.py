"""Sampling: can latents be drawn that look like inferred ones?

Discrete latents are drawn from the codes in use, each as likely; noisy ones from N(0, I), and are compared with draws
from the inferred posteriors; sparse ones by Langevin dynamics of their energy. A classifier is then to tell drawn from
inferred latents (two-sample test; Lopez-Paz and Oquab 2017), cross-validated over videos: 0.5 where it cannot. Beside
it, what such latents do: how far the first predicted state is from the last true one, over how far it is under inferred
latents.
Protocol: spec section 6.5; Garrido et al. 2026, appendix B, equation 4 and figure S1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.config import LawmError
from lawm.evaluation.probes import OUTER_FOLDS, Probed, folds_of, mlp_probe
from lawm.evaluation.results import Figure, Missing, PerClip, Values, ratio_figure
from lawm.evaluation.subject import Clips, Evaluation, Subject, no_latents, per_clip_error, to_numpy


@dataclass(frozen=True)
class Drawn(PerClip):
    """Latents of clips, [B, T, Z] each: inferred (draws from the posterior where there is one), and drawn; how far the
    first predicted state is from the last true one under each, [B]."""

    inferred: np.ndarray
    drawn: np.ndarray
    moved: np.ndarray
    moved_drawn: np.ndarray


@dataclass(frozen=True)
class Sampling(PerClip):
    """The same, and the share of a clip's latents, of both, that the classifier tells for what they are, [B]."""

    inferred: np.ndarray
    drawn: np.ndarray
    moved: np.ndarray
    moved_drawn: np.ndarray
    told: Values


FIGURES: tuple[Figure[Sampling], ...] = (
    Figure(
        "sampling_score", lambda v: (v.told,), unit="accuracy", better="lower",
        one="0.5: drawn latents cannot be told from inferred ones; 1.0: always",
    ),
    ratio_figure(
        "sampling_motion", lambda v: (v.moved_drawn, v.moved),
        one="1.0: drawn latents change as much of the state as inferred ones",
    ),
)  # fmt: skip


@torch.no_grad()
def measure(subject: Subject, clips: Clips, fitted: None = None) -> Drawn:
    """Inferred and drawn latents of a unit, as many of each."""
    model, states, z, context = subject.model, clips.states, clips.z, subject.context
    assert z is not None
    generator = torch.Generator().manual_seed(clips.seed * 31 + 7)
    spread = clips.spread
    inferred = z if spread is None else z + spread * torch.randn(z.shape, generator=generator).to(z)
    bottleneck = model.latent_action.bottleneck
    assert bottleneck is not None
    drawn = bottleneck.drawn(z.shape, generator, subject.langevin).to(z)

    def moved(latents: Tensor) -> np.ndarray:
        found = model.world_model.rollout(states[:, :context], latents[:, :context], 1)[:, 0]
        return per_clip_error(found, states[:, context - 1])

    own = torch.cat([z[:, : context - 1], drawn[:, context - 1 :]], dim=1)
    return Drawn(clips.groups, to_numpy(inferred), to_numpy(drawn), moved(z), moved(own))


def told_apart(found: Drawn, seed: int) -> Sampling:
    """What a classifier, fitted on the other folds' videos, says of each fold's latents. Raises LawmError where all are
    of one video."""
    folds = folds_of(found.groups, OUTER_FOLDS, seed)
    if folds.max() < 1:
        raise LawmError("the classifier is cross-validated over videos, and all clips are of one; measure on more")
    told = np.zeros(len(found))
    same = found.inferred, found.drawn, found.moved, found.moved_drawn
    for fold in range(folds.max() + 1):
        fit, held = found.at(folds != fold), found.at(folds == fold)
        labels, groups = np.ones((*fit.inferred.shape[:2], 1)), np.concatenate([fit.groups, fit.groups])
        z = np.concatenate([fit.inferred, fit.drawn])
        classifier = mlp_probe(Probed(groups, with_squares(z), np.concatenate([labels, -labels])), seed)
        if isinstance(classifier, Missing):
            return Sampling(found.groups, *same, told=classifier)
        inferred, drawn = (np.sign(classifier(with_squares(z))[..., 0]).mean(1) for z in (held.inferred, held.drawn))
        told[folds == fold] = 0.5 + (inferred - drawn) / 4  # no answer counts as half a right one
    return Sampling(found.groups, *same, told=told)


def with_squares(z: np.ndarray) -> np.ndarray:
    """Latents [..., Z], their squares and the mean of these, [..., 2 Z + 1]: distributions of one mean differ there."""
    return np.concatenate([z, z**2, (z**2).mean(axis=-1, keepdims=True)], axis=-1)


def lacks(subject: Subject) -> str:
    """A bottleneck that names no distribution has nothing to be drawn from."""
    kind = subject.model.latent_action.kind
    if kind in ("none", "true_actions"):
        return f"latents of kind {kind} have no distribution to be drawn from"
    return no_latents(subject)


EVALUATION = Evaluation("sampling", measure, FIGURES, lacks=lacks, pool=told_apart)
