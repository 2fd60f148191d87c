"""Probes: is the latent a function of the true action, a linear one or any? R^2 on labelled clips.

Cross-validated over the measured videos: each fold's clips are scored by probes that were fitted on the other folds'
videos. So no action that a probe is scored on, and none of its video, was fitted on; latents of fitted and of scored
clips are alike (those of the videos that the model itself was trained on need not be, and a probe fitted there would
be scored on others); and no second side of a split is needed. The control's actions are those of another video. Action
dimensions that do not vary are left out, and named. Protocol: spec section 6.6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lawm.config import LawmError
from lawm.evaluation.partners import derange
from lawm.evaluation.results import Figure, Missing, PerClip, Values
from lawm.evaluation.subject import Clips, Evaluation, Subject, no_latents, to_numpy
from lawm.model import MLP

OUTER_FOLDS = 5
"""Parts of the videos; the clips of each are scored by what is fitted on the others."""
FOLDS = 4
"""Networks of an MLP probe: each is stopped on a part of the fitting videos of its own, and their mean predicts."""

ONE = (
    "probes are cross-validated over videos, and all clips are of one; measure on more (three at least, better dozens)"
)
LR = 5e-3
PATIENCE = 50
"""Steps without a better network until it is stopped."""


@dataclass(frozen=True)
class Probed(PerClip):
    """Latents and true actions of clips: z [B, T, Z], a [B, T, A]."""

    z: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Probes(PerClip):
    """True actions [B, T, A], another video's, and what the probes make of the latents; `varies` [B, A]: whether a
    dimension varied where the probes were fitted (the same in each row)."""

    truth: np.ndarray
    shuffled: Values
    linear: np.ndarray
    mlp: Values
    varies: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Dimensions that vary, here and where the probes were fitted."""
        return np.flatnonzero(varying(self.truth) & self.varies.astype(bool).all(axis=0))


@dataclass(frozen=True)
class Fitted:
    """Both probes, latents [..., Z] -> actions [..., A], and which dimensions varied, [A]."""

    linear: Callable[[np.ndarray], np.ndarray]
    mlp: "Callable[[np.ndarray], np.ndarray] | Missing"
    varies: np.ndarray


def varying(actions: np.ndarray) -> np.ndarray:
    """Which dimensions of actions [..., A] vary: by more than rounding, [A]."""
    flat = actions.reshape(-1, actions.shape[-1])
    return flat.std(axis=0) > 1e-6 * np.maximum(np.abs(flat).max(axis=0), 1e-30)


def r_squared_each(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 - residual over total variance of each dimension, [A]; not a number where it does not vary."""
    p, t = predicted.reshape(-1, truth.shape[-1]), truth.reshape(-1, truth.shape[-1])
    total = np.where(varying(t), ((t - t.mean(0)) ** 2).sum(0), np.nan)
    return 1 - ((t - p) ** 2).sum(0) / total


def r_squared(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the dimensions that vary; not a number if none does."""
    each = r_squared_each(predicted, truth)
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")


# ---------------------------------------------------------------- fitting
def folds_of(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each clip, int64 [B]: its video's; as many folds as asked for, or as there are videos."""
    videos, which = np.unique(groups.astype(str), return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(videos))
    return place[which] % min(folds, len(videos))


def ridge(fit: Probed, strength: float = 1e-2) -> Callable[[np.ndarray], np.ndarray]:
    """A linear map with an intercept; the penalty is relative to the latents' variance."""
    z, a = fit.z.reshape(-1, fit.z.shape[-1]), fit.actions.reshape(-1, fit.actions.shape[-1])
    mean, std = z.mean(0), z.std(0) + 1e-8
    x = np.concatenate([(z - mean) / std, np.ones((len(z), 1))], axis=1)
    penalty = strength * len(z) * np.eye(x.shape[1])
    penalty[-1, -1] = 0
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ a)
    return Linear(mean, std, weights)


@dataclass(frozen=True)
class Linear:
    """(z - mean) / std @ weights, the last row of which is the intercept."""

    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        flat = (latents.reshape(-1, latents.shape[-1]) - self.mean) / self.std
        out = np.concatenate([flat, np.ones((len(flat), 1))], axis=1) @ self.weights
        return out.reshape(*latents.shape[:-1], self.weights.shape[1])


@dataclass(frozen=True)
class Networks:
    """The mean of several networks, in standardised latents and actions."""

    nets: tuple[torch.nn.Module, ...]
    z: tuple[np.ndarray, np.ndarray]
    actions: tuple[np.ndarray, np.ndarray]

    @torch.no_grad()
    def __call__(self, latents: np.ndarray) -> np.ndarray:
        x = torch.from_numpy((latents - self.z[0]) / self.z[1]).float()
        out = torch.stack([net(x) for net in self.nets]).mean(dim=0).double().numpy()
        return out * self.actions[1] + self.actions[0]


def mlp_probe(fit: Probed, seed: int, steps: int = 250) -> Networks | Missing:
    """MLPs of two hidden layers of 128, each kept as it was when the fitting videos that it does not see were predicted
    best: latents are many and clips few, and a fixed number of steps learns the clips by heart."""
    if len(np.unique(fit.groups.astype(str))) < 2:
        return Missing(
            "the MLP probe is stopped on fitting videos that it does not see, and there is one alone; measure more "
            "videos"
        )
    z, a = fit.z.reshape(-1, fit.z.shape[-1]), fit.actions.reshape(-1, fit.actions.shape[-1])
    scales = [(x.mean(0), x.std(0) + 1e-8) for x in (z, a)]
    x, y = (torch.from_numpy((v - m) / s).float() for v, (m, s) in zip((z, a), scales, strict=True))
    folds = np.repeat(folds_of(fit.groups, FOLDS, seed), fit.z.shape[1])
    nets = []
    for fold in range(folds.max() + 1):
        held = torch.from_numpy(folds == fold)
        nets.append(stopped(x[~held], y[~held], x[held], y[held], seed * FOLDS + fold, steps))
    return Networks(tuple(nets), *scales)


def stopped(
    x: torch.Tensor, y: torch.Tensor, x_held: torch.Tensor, y_held: torch.Tensor, seed: int, steps: int
) -> torch.nn.Module:
    """A network as it was at its best on the held-out part; at the start it predicts the mean."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(x.shape[1], 128, y.shape[1], 3)
        with torch.no_grad():
            for parameter in list(net.children())[-1].parameters():
                parameter.zero_()
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=1e-2)
        at, best, kept = 0, float("inf"), {}
        with torch.enable_grad():
            for step in range(steps + 1):
                if step % 5 == 0:
                    with torch.no_grad():
                        error = float(F.mse_loss(net(x_held), y_held))
                    if step - at > PATIENCE:
                        break
                    if error < best:
                        at, best, kept = step, error, {k: v.clone() for k, v in net.state_dict().items()}
                optimizer.zero_grad()
                noise = 0.1 * torch.randn_like(x)  # of the latents' own spread: directions without signal stay flat
                F.mse_loss(net(x + noise), y).backward()
                optimizer.step()
    net.load_state_dict(kept)
    return net.eval().requires_grad_(False)


def fit_probes(fit: Probed, seed: int) -> Fitted:
    """Both probes, of clips of other videos than they will be scored on."""
    return Fitted(ridge(fit), mlp_probe(fit, seed), varying(fit.actions))


# ---------------------------------------------------------------- measuring
@torch.no_grad()
def collect(subject: Subject, clips: Clips, fitted: None = None) -> Probed:
    """Latents and true actions of a unit of labelled clips."""
    assert clips.z is not None
    return Probed(clips.groups, to_numpy(clips.z), to_numpy(clips.actions))


def cross_validated(found: Probed, seed: int) -> Probes:
    """What probes make of the latents of each fold, fitted on the clips of the others; as many entries as clips. Raises
    LawmError where all are of one video."""
    folds, partner = folds_of(found.groups, OUTER_FOLDS, seed), derange(list(found.groups), seed)
    if partner is None:
        raise LawmError(ONE)
    parts, places = [], []
    for fold in range(folds.max() + 1):
        held = np.flatnonzero(folds == fold)
        fitted, scored = fit_probes(found.at(folds != fold), seed), found.at(held)
        parts.append(
            Probes(
                scored.groups,
                truth=scored.actions,
                shuffled=found.actions[partner[held]],
                linear=fitted.linear(scored.z),
                mlp=fitted.mlp if isinstance(fitted.mlp, Missing) else fitted.mlp(scored.z),
                varies=np.tile(fitted.varies, (len(held), 1)),
            )
        )
        places.append(held)
    return Probes.join(parts).at(np.argsort(np.concatenate(places)))


def _pair(probe: str, truth: str = "truth", dimension: int | None = None) -> Callable[[Probes], tuple[Values, ...]]:
    """Predicted and true actions, of the dimensions that vary or of one."""

    def of(values: Probes) -> tuple[Values, ...]:
        kept = values.kept if dimension is None else np.array([dimension])
        if not len(kept):
            return (Missing("no dimension of the actions varies over these clips: there is nothing to tell from them"),)
        pair: tuple[Values, ...] = getattr(values, probe), getattr(values, truth)
        return tuple(x if isinstance(x, Missing) else x[..., kept] for x in pair)

    return of


MEANING = "0: as good as guessing the mean action; 1: the latent tells the action"


def _figures(suffix: str = "", dimension: int | None = None) -> tuple[Figure[Probes], ...]:
    return tuple(
        Figure(
            f"probe_r2_{probe}{suffix}", _pair(probe, dimension=dimension), r_squared, "R^2", "higher", MEANING,
            checked_by="" if suffix else f"probe_r2_{probe}_shuffled", positive=False,
        )
        for probe in ("linear", "mlp")
    )  # fmt: skip


FIGURES: tuple[Figure[Probes], ...] = (
    *_figures(),
    *(
        Figure(
            f"probe_r2_{probe}_shuffled", _pair(probe, "shuffled"), r_squared, "R^2",
            control="another video's actions", positive=False,
        )
        for probe in ("linear", "mlp")
    ),
)  # fmt: skip


def per_dimension(values: Probes, names: Sequence[str]) -> tuple[Figure[Probes], ...]:
    """R^2 of each dimension that varies, where there are several."""
    kept = values.kept
    return tuple(figure for d in kept for figure in _figures(f"[{names[d]}]", int(d))) if len(kept) > 1 else ()


def left_out(values: Probes, names: Sequence[str]) -> str:
    """The dimensions that do not vary, by name."""
    still = [names[d] for d in range(values.truth.shape[-1]) if d not in set(values.kept)]
    return f"without {', '.join(still)}, which {'does' if len(still) == 1 else 'do'} not vary" if still else ""


EVALUATION = Evaluation(
    "probes",
    collect,
    FIGURES,
    labelled=True,
    lacks=no_latents,
    pool=cross_validated,
    more=per_dimension,
    note=left_out,
)
