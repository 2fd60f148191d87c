"""What is measured, and on which clips: the model and its company, and a unit of clips whose states are encoded once.

Legend: B clips, T states, N tokens, D state width, Z latent width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from lawm.evaluation.partners import ONE_VIDEO, derange
from lawm.evaluation.results import Figure, Missing, PerClip
from lawm.model import Langevin, LatentActions, PixelStates
from lawm.training import ClipBatch, ControllerObjective, DecoderObjective, LatentActionObjective, decode_states

NO_LATENTS = Missing("a deterministic model has no latent actions")
SHUFFLES = Missing(ONE_VIDEO)
NO_FRAMES = Missing("pictures are needed, and the cache holds states: give the videos' --index as well")
NO_INVERSE = Missing("encoder.normalize_states = layer_norm cannot be undone: give a decoder (--decoder URI)")


def given(what: str, option: str) -> Missing:
    """What the user did not give, and how to."""
    return Missing(f"no {what} was given ({option} URI)")


NO_DECODER = Missing(
    f"{given('decoder', '--decoder').reason}; train one with lawm decoder --checkpoint RUN, and it is found there"
)


def twin(what: str, option: str, kind: str) -> Missing:
    """The same of a model of equal data and steps, and how to train one."""
    return Missing(
        f"no {what} was given ({option} URI); train one as the model was, with --set model.bottleneck.kind={kind} "
        f"--out RUN-{option.removeprefix('--')}, and it is found there"
    )


@dataclass(frozen=True)
class Subject:
    """The model that is measured, what it is set beside, and the settings of the measurement."""

    model: LatentActionObjective
    deterministic: LatentActionObjective | Missing = field(
        default_factory=lambda: twin("deterministic twin", "--deterministic", "deterministic")
    )
    unconstrained: LatentActionObjective | Missing = field(
        default_factory=lambda: twin("unconstrained model", "--unconstrained", "none")
    )
    controller: ControllerObjective | Missing = field(default_factory=lambda: given("controller", "--controller"))
    decoder: DecoderObjective | Missing = field(default_factory=lambda: NO_DECODER)
    context: int = 1
    """States given before an unrolled prediction starts."""
    cycle_seconds: float = 2.0
    """How long cycles are rolled out (as far as the clips go)."""
    cut_positions: Literal["all", "middle"] = "all"
    """Where clips are cut to measure leakage: before every state that has one before it, or before the middle one."""
    langevin: Langevin = field(default_factory=Langevin)
    """How sparse latents are drawn."""
    fps: float = 4.0
    seed: int = 0

    def in_model_units(self, other: LatentActionObjective, states: Tensor) -> Tensor:
        """Normalised states of another model in the normalised states of `model`: errors are compared there."""
        kinds = (self.model.state_norm.kind, other.state_norm.kind)
        return self.model.state_norm(other.state_norm.inverse(states)) if "channel" in kinds else states

    def pixels(self, states_BTND: Tensor) -> Tensor | Missing:
        """Normalised states of the model -> all their frames, [B, F, 3, S, S] in [0, 1].

        By the decoder, which sees the states before each: give the context before what is predicted. States of the
        pixels encoder are pictures as they are, and need none.
        """
        if isinstance(self.decoder, DecoderObjective):
            return decode_states(self.model, self.decoder.decoder, states_BTND)
        if isinstance(self.model.encoder, PixelStates):
            layer_norm = self.model.state_norm.kind == "layer_norm"
            return NO_INVERSE if layer_norm else decode_states(self.model, None, states_BTND)
        return self.decoder


class Clips:
    """A unit of clips: the batch, the video (or episode) of each, and their states, encoded once for everything."""

    def __init__(
        self,
        model: LatentActionObjective,
        batch: ClipBatch,
        groups: Sequence[str],
        seed: int = 0,
        other: "Clips | None" = None,
    ) -> None:
        """`other`: clips of another data set, where scene cuts across data sets are measured."""
        raw = batch.states_BTND
        if raw is None:
            assert batch.frames_BFCHW is not None
            raw = model.encode(batch.frames_BFCHW)
        self.model, self.seed, self.other = model, seed, other
        self.batch = replace(batch, states_BTND=raw)
        self.groups = np.asarray(groups, dtype=object)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def states(self) -> Tensor:
        """Normalised states of the model, [B, T, N, D]."""
        return self.model.states(self.batch)

    @cached_property
    def frames(self) -> Tensor | Missing:
        """The true frames, [B, F, 3, S, S] in [0, 1]; of states of the pixels encoder their inverse."""
        if self.batch.frames_BFCHW is not None:
            return self.batch.frames_BFCHW.float() / 255
        if isinstance(self.model.encoder, PixelStates):
            raw = self.batch.states_BTND
            assert raw is not None
            return decode_states(self.model, None, self.model.state_norm(raw))
        return NO_FRAMES

    @cached_property
    def _latents(self) -> LatentActions:
        return self.model.infer(self.states, self.batch.actions_BTA)

    @property
    def z(self) -> Tensor | None:
        """The model's latents, [B, T-1, Z]; None where it has none."""
        return self._latents.z_BTZ

    @property
    def rate(self) -> Tensor | None:
        """Nats a transition of each clip, [B]; None where the bottleneck has no rate."""
        return self._latents.rate_B

    @property
    def spread(self) -> Tensor | None:
        """Standard deviations of the latents' posteriors, [B, T-1, Z]; None where they have none."""
        return self._latents.spread_BTZ

    @property
    def actions(self) -> Tensor:
        """The true actions, float [B, T-1, A]."""
        assert self.batch.actions_BTA is not None
        return self.batch.actions_BTA.float()

    def partners(self, turn: int = 0) -> Tensor | None:
        """A clip of another video for each, [B]; another choice for each `turn`. None where there is one video."""
        found = derange(list(self.groups), self.seed * 31 + turn)
        return None if found is None else torch.from_numpy(found).to(self.states.device)


def no_latents(subject: Subject) -> str:
    """Why a subject without latent actions has nothing to measure."""
    return NO_LATENTS.reason if subject.model.latent_action.kind == "deterministic" else ""


def per_clip_error(predicted: Tensor, target: Tensor) -> np.ndarray:
    """Mean |difference| of each clip, float64 [B]."""
    return (predicted.float() - target.float()).abs().flatten(1).mean(1).double().cpu().numpy()


def to_numpy(x: Tensor) -> np.ndarray:
    """As float64 on the CPU."""
    return x.double().cpu().numpy()


def other_states(model: LatentActionObjective, clips: Clips) -> tuple[Tensor, Any]:
    """(normalised states, latents) of another model of the same encoder, from the states that are there."""
    states = model.states(clips.batch)
    return states, model.infer(states, clips.batch.actions_BTA).z_BTZ


T = TypeVar("T", bound=PerClip)


@dataclass(frozen=True)
class Fit:
    """What an evaluation fits on clips of *other* videos than those that it measures: `collect` on each unit of them,
    then `make` once of all that was collected, with a seed."""

    collect: Callable[[Subject, Clips], PerClip]
    make: Callable[[Sequence[Any], int], Any]
    clips: int | None = None
    """How many clips suffice; None: as many as are measured."""
    required: bool = True
    """Without it nothing is measured; else `measure` is given the Missing."""


@dataclass(frozen=True)
class Evaluation(Generic[T]):
    """One evaluation: `measure(subject, clips, fitted)` gives the values of a unit of clips, `figures` what all of them
    say.

    `pool(values, seed)`: what is made of the values of all units together before there are figures (fits that are
    cross-validated over videos); raises LawmError where nothing can be.
    `labelled`: its clips need true actions. `lacks(subject)`: why this subject has nothing to measure, or "".
    `more(values, names)`: further figures, which depend on the data (`names` of the actions' dimensions);
    `note(values, names)`: what is to be said of all of them.
    """

    name: str
    measure: Callable[[Subject, Clips, Any], PerClip]
    figures: tuple[Figure[T], ...]
    labelled: bool = False
    lacks: Callable[[Subject], str] = lambda subject: ""
    fit: Fit | None = None
    pool: Callable[[Any, int], T] | None = None
    more: Callable[[T, Sequence[str]], tuple[Figure[T], ...]] = lambda values, names: ()
    note: Callable[[T, Sequence[str]], str] = lambda values, names: ""
