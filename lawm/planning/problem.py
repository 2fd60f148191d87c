"""What is planned: the space of actions in the labels' units and in the search's, and what a sequence costs.

Legend: E episodes, S candidates, B = E * S, H horizon, T states given, N tokens, D state width, A action width.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from lawm.config import Amount, LawmError, PlanConfig
from lawm.data import UNKNOWN, Dimension, Shown
from lawm.planning.steering import Steering, follow
from lawm.training import LatentActionObjective


def in_units(dimensions: tuple[Dimension, ...], unit: str | None) -> tuple[Dimension, ...]:
    """The dimensions with `unit` where translations do not say theirs."""
    if unit is None:
        return dimensions
    return tuple(
        dataclasses.replace(d, unit=unit) if d.kind == "translation" and d.unit == UNKNOWN else d for d in dimensions
    )


def amounts(amount: Amount, dimensions: tuple[Dimension, ...], otherwise_A: np.ndarray, field: str) -> np.ndarray:
    """An Amount in the labels' units, [A]; `otherwise_A` (in these units) for dimensions that it leaves out. Raises
    LawmError for a list of another length, and for a name that no dimension has."""
    factors = np.array([d.si[1] for d in dimensions])
    if isinstance(amount, dict):
        known = {d.name for d in dimensions} | {"translation", "rotation", "gripper", "other"}
        if not amount.keys() <= known:
            odd = sorted(amount.keys() - known)[0]
            raise LawmError(f"{field}: {odd!r} is neither a kind nor one of {', '.join(d.name for d in dimensions)}")
        given = [amount.get(d.name, amount.get(d.kind)) for d in dimensions]
        return np.array([o if g is None else g / f for g, f, o in zip(given, factors, otherwise_A, strict=True)])
    values = (
        np.broadcast_to(np.asarray(amount, np.float64), len(dimensions)) if isinstance(amount, int | float) else amount
    )
    if len(values) != len(dimensions):
        raise LawmError(f"{field} has {len(values)} numbers; the actions have {len(dimensions)}")
    return np.asarray(values, np.float64) / factors


@dataclasses.dataclass(frozen=True)
class ActionSpace:
    """Where the search begins and where it may go, [A] each, in the labels' units; `scale` and `centre` make the
    search's standardised numbers of them. `low`, `high`: infinite where nothing limits. `metres`: of one unit of each
    translation (its SI unit), 0 for the rest."""

    centre: Tensor
    scale: Tensor
    start: Tensor
    std: Tensor
    floor: Tensor
    low: Tensor
    high: Tensor
    metres: Tensor
    step_norm: float | None = None
    at_end: Tensor | None = None
    """Of a straight line, which numbers are of its last step alone, bool [A]."""

    def steps_of(self, numbers: Tensor, horizon: int) -> Tensor:
        """Searched numbers [..., 1 or H, A] -> those of every step, [..., H, A]."""
        if self.at_end is None:
            return numbers
        every = numbers.repeat_interleave(horizon, dim=-2)
        later = torch.arange(horizon, device=numbers.device)[:, None] < horizon - 1
        return every.masked_fill(self.at_end & later, 0.0)

    def kept_within(self, actions: Tensor) -> Tensor:
        """The actions [..., A], moved to the nearest ones that may be taken."""
        actions = actions.clamp(self.low, self.high)
        if self.step_norm is None:
            return actions
        norm = (actions * self.metres).norm(dim=-1, keepdim=True)
        shorter = (self.step_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
        return torch.where(self.metres > 0, actions * shorter, actions)


def action_space(
    config: PlanConfig, dimensions: tuple[Dimension, ...], centre_A: Tensor, scale_A: Tensor, shown: Shown | None
) -> ActionSpace:
    """The space of a protocol (`preset` applied), for actions of these dimensions; `centre_A` and `scale_A` are the
    mean and standard deviation that the controller was trained with. `shown` None: nothing is known of the labels, and
    what they would limit is unlimited. Raises LawmError for Amounts that do not fit the dimensions."""
    centre, scale = (t.detach().cpu().double().numpy() for t in (centre_A, scale_A))
    width = len(scale)
    if len(dimensions) != width:
        raise LawmError(f"labels with {len(dimensions)} numbers an action, and a controller for {width}")
    start, std, floor = centre.copy(), config.initial_std * scale, 1e-3 * scale
    if config.std is not None:
        std = amounts(config.std, dimensions, np.full(width, np.nan), "plan.std")
        start = np.where(np.isnan(std), centre, 0.0)
        std = np.where(np.isnan(std), config.initial_std * scale, std)
    if config.start is not None:
        start = amounts(config.start, dimensions, start, "plan.start")
    if config.std_floor is not None:
        floor = amounts(config.std_floor, dimensions, floor, "plan.std_floor")
    low, high = np.full(width, -np.inf), np.full(width, np.inf)
    if shown is not None and config.action_limit != "none":
        low, high = shown.low_A.copy(), shown.high_A.copy()
    if config.action_limit is not None and config.action_limit != "none":
        most = amounts(config.action_limit, dimensions, np.full(width, np.nan), "plan.action_limit")
        low, high = np.where(np.isnan(most), low, -most), np.where(np.isnan(most), high, most)
    if config.searched is not None:
        still = np.array([d.kind not in config.searched for d in dimensions])
        if still.all():
            raise LawmError(f"plan.searched = {', '.join(config.searched)}: the labels have no dimension of that kind")
        start, low, high = (np.where(still, 0.0, values) for values in (start, low, high))
    metres = np.array([d.si[1] if d.kind == "translation" else 0.0 for d in dimensions])

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=scale_A.dtype, device=scale_A.device)

    ends = tensor(start), tensor(std), tensor(floor), tensor(low), tensor(high), tensor(metres)
    turns = torch.tensor([d.kind == "rotation" for d in dimensions], device=scale_A.device)
    return ActionSpace(centre_A, scale_A, *ends, config.step_norm, turns if config.straight else None)


SEEN_REACH = 3.0
"""Standard deviations of the latents that were seen, which a search over latents keeps within."""


def latent_space(config: PlanConfig, mean_Z: Tensor, std_Z: Tensor) -> ActionSpace:
    """The space of latents (`plan.over=latents`), or of the noise that a prior makes latents of (zeros and ones)."""
    if config.over == "latents" and config.latent_draws == "standard":
        mean_Z, std_Z = torch.zeros_like(mean_Z), torch.ones_like(std_Z)
    none = torch.full_like(mean_Z, torch.inf)
    seen = config.latent_draws == "seen" or config.over == "prior"
    reach = SEEN_REACH * std_Z if seen else none
    wide, still = config.initial_std * std_Z, torch.zeros_like(mean_Z)
    return ActionSpace(mean_Z, std_Z, mean_Z, wide, 1e-3 * std_Z, mean_Z - reach, mean_Z + reach, still)


def outside(actions_HA: np.ndarray, shown: Shown) -> np.ndarray:
    """Which dimensions [A] of a plan leave what the labels show (by more than rounding)."""
    room = 1e-4 * (shown.high_A - shown.low_A) + 1e-6
    actions = np.asarray(actions_HA, np.float64)
    return ((actions < shown.low_A - room) | (actions > shown.high_A + room)).any(axis=0)


def goal_cost(predicted_BND: Tensor, goal_BND: Tensor, kind: str) -> Tensor:
    """Distance of each predicted last state to the goal, [B]."""
    if kind == "cosine":
        return 1 - torch.cosine_similarity(predicted_BND.flatten(1), goal_BND.flatten(1), dim=-1)
    difference = (predicted_BND - goal_BND).flatten(1)
    if kind == "l1":
        return difference.abs().mean(dim=1)
    return difference.norm(dim=1) if kind == "l2" else difference.square().mean(dim=1)


def rollout_cost(
    model: LatentActionObjective,
    steering: Steering,
    start_ETND: Tensor,
    goal_END: Tensor,
    numbers_BHA: Tensor,
    kind: str,
) -> Tensor:
    """Cost [E * S] of each sequence of numbers from its start, S sequences for each of E starts (in the batch one after
    another) and goals, as `follow` unrolls them."""
    last = follow(model, steering, start_ETND, numbers_BHA, every=False).last_BND
    each = len(numbers_BHA) // len(start_ETND)
    return goal_cost(last.float(), goal_END.float().repeat_interleave(each, dim=0), kind)
