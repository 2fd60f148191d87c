"""Controllability: how much worse a rollout gets under another clip's latents, after 1, 2 and 4 s.

A world model that does not heed its latents has ratio 1 and difference 0 dB. The latents are those of a clip of another
video, from the same first states; horizons that the clips do not reach are left out, and where they reach none their
end is measured, and said.
Protocol: spec section 6.6; Bruce et al. 2024 (Genie), section 3: the difference of PSNR between rollouts under inferred
and under random latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.perceptual import difference, psnr
from lawm.evaluation.results import Figure, Missing, PerClip, Values, ratio_figure
from lawm.evaluation.subject import SHUFFLES, Clips, Evaluation, Subject, no_latents, per_clip_error, to_numpy

HORIZONS_S = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Controllability(PerClip):
    """Mean |error| of the normalised state, and PSNR of its frames, at each of K horizons under the clip's own latents
    and another's; the horizons in seconds (the same in each row), [B, K] each."""

    seconds: np.ndarray
    own: np.ndarray
    other: Values
    own_psnr: Values
    other_psnr: Values


def reached(steps: int, each_s: float) -> list[int]:
    """How many states each horizon is, of those that `steps` states reach; their end where they reach none."""
    found = [round(s / each_s) for s in HORIZONS_S if 1 <= round(s / each_s) <= steps]
    return list(dict.fromkeys(found)) or [steps]


@torch.no_grad()
def measure(subject: Subject, clips: Clips, fitted: None = None) -> Controllability:
    """Errors of a unit, one entry a clip; both rollouts are held against the same true clip."""
    model, states, z, context = subject.model, clips.states, clips.z, subject.context
    assert z is not None
    each = model.frames_per_state / subject.fps
    at = reached(states.shape[1] - context, each)
    steps, start, partner = max(at), states[:, :context], clips.partners()
    seconds = np.tile([n * each for n in at], (len(clips), 1))

    def rolled(rest: Tensor) -> Tensor:
        return model.world_model.rollout(start, torch.cat([z[:, : context - 1], rest], dim=1), steps)

    def errors(rollout: Tensor) -> np.ndarray:
        return np.stack([per_clip_error(rollout[:, n - 1], states[:, context + n - 1]) for n in at], axis=1)

    def shown(rollout: Tensor) -> Values:
        pictures, frames = subject.pixels(torch.cat([start, rollout], dim=1)), clips.frames
        for found in (pictures, frames):
            if isinstance(found, Missing):
                return found
        assert isinstance(pictures, Tensor) and isinstance(frames, Tensor)
        size = model.frames_per_state
        ends = [slice((context + n - 1) * size, (context + n) * size) for n in at]
        found_BK = [
            psnr(pictures[:, end].flatten(0, 1), frames[:, end].flatten(0, 1)).view(len(clips), -1).mean(1)
            for end in ends
        ]
        return to_numpy(torch.stack(found_BK, dim=1))

    own = rolled(z[:, context - 1 : context - 1 + steps])
    other = None if partner is None else rolled(z[partner][:, context - 1 : context - 1 + steps])
    return Controllability(
        clips.groups,
        seconds=seconds,
        own=errors(own),
        other=SHUFFLES if other is None else errors(other),
        own_psnr=shown(own),
        other_psnr=SHUFFLES if other is None else shown(other),
    )


def at_horizons(values: Controllability, names: Sequence[str]) -> tuple[Figure[Controllability], ...]:
    """The figures of each horizon."""

    def column(field: str, k: int) -> Callable[[Controllability], Values]:
        def of(v: Controllability) -> Values:
            found: Values = getattr(v, field)
            return found if isinstance(found, Missing) else found[:, k]

        return of

    def both(one: str, two: str, k: int) -> Callable[[Controllability], tuple[Values, ...]]:
        first, second = column(one, k), column(two, k)
        return lambda v: (first(v), second(v))

    figures: list[Figure[Controllability]] = []
    for k, seconds in enumerate(values.seconds[0]):
        name = f"controllability_{seconds:g}s"
        figures.append(
            ratio_figure(name, both("other", "own", k), better="higher", one="1.0: the latents are not heeded")
        )
        figures.append(
            Figure(
                f"{name}_psnr", both("own_psnr", "other_psnr", k), difference, "dB", "higher",
                "0 dB: the latents are not heeded", positive=False,
            )
        )  # fmt: skip
    return tuple(figures)


def note(values: Controllability, names: Sequence[str]) -> str:
    """What of 1, 2 and 4 s the clips do not reach."""
    reach = values.seconds[0]
    missed = [f"{s:g}" for s in HORIZONS_S if s > reach.max() + 1e-9]
    return f"the clips do not reach {', '.join(missed)} s" if missed else ""


EVALUATION = Evaluation("controllability", measure, (), lacks=no_latents, more=at_horizons, note=note)
