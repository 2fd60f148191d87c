"""What is planned: the space of actions in the labels' units and in the search's, and what a sequence costs.

Legend: E episodes, S candidates, B = E * S, H horizon, T states given, N tokens, D state width, A action width.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from lawm.config import Amount, LawmError, PlanConfig
from lawm.data import UNKNOWN, ClipReader, Dimension
from lawm.training import ControllerObjective, LatentActionObjective


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the training split shows of each dimension of its clips' actions, in the labels' units: mean, `low` and
    `high` (its percentiles), over so many transitions."""

    mean_A: np.ndarray
    low_A: np.ndarray
    high_A: np.ndarray
    transitions: int


def shown_by(reader: ClipReader, percentiles: tuple[float, float]) -> Shown:
    """The Shown of every video that the reader draws clips from, at the clips' rate. Only labels are read. Raises
    LawmError where there is no action."""
    labels, clip, (slots, _) = reader.labels, reader.config.data.clip, reader.plan.held
    assert labels is not None
    each, keys = clip.frames if clip.placement == "aligned" else 1, reader.index.table.column("key")
    found = [
        labels.whole(keys[int(row)].as_py(), clip, (int(slots[row]) - 1) * each + clip.frames)
        for row in np.flatnonzero(slots > 0)
    ]
    if not sum(map(len, found)):
        raise LawmError(f"{reader.config.data.labels} has no action for the clips of the training split")
    actions = np.concatenate(found)
    low, high = np.percentile(actions, percentiles, axis=0)
    return Shown(actions.mean(axis=0, dtype=np.float64), low.astype(np.float64), high.astype(np.float64), len(actions))


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
    return ActionSpace(centre_A, scale_A, *ends, config.step_norm)


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
    controller: ControllerObjective | None,
    start_BTND: Tensor,
    goal_BND: Tensor,
    actions_BHA: Tensor,
    kind: str,
) -> Tensor:
    """Cost [E * S] of unrolling each sequence of actions (of latents, where there is no controller) from its start, S
    sequences for each of E starts (in the batch one after another) and goals. The context's own transitions, where it
    has more than one state, are inferred from it; it is computed once for all S. Gradients of the sequences go through
    where they are asked for; the rollout is then computed without the memory of keys and values."""
    candidates = len(actions_BHA) // len(start_BTND)
    last = rolled_out(model, controller, start_BTND, actions_BHA)
    return goal_cost(last.float(), goal_BND.float().repeat_interleave(candidates, dim=0), kind)


def rolled_out(
    model: LatentActionObjective, controller: ControllerObjective | None, start_BTND: Tensor, actions_BHA: Tensor
) -> Tensor:
    """The last state [E * S, N, D] that each sequence leads to."""
    candidates, steps, world_model = len(actions_BHA) // len(start_BTND), actions_BHA.shape[1], model.world_model
    with torch.no_grad():
        before = model.infer(start_BTND).z_BTZ if start_BTND.shape[1] > 1 else None

    def policy(state_BND: Tensor, i: int) -> Tensor:
        if controller is None:
            return actions_BHA[:, i]
        return controller.controller(actions_BHA[:, i, None], state_BND.unsqueeze(1))[:, 0]

    if not (torch.is_grad_enabled() and actions_BHA.requires_grad):
        with torch.no_grad():
            past = world_model.prefill(start_BTND, before, steps).repeat(candidates)
            return world_model.rollout_policy(past, policy, steps)[:, -1]
    states = start_BTND.repeat_interleave(candidates, dim=0)
    latents = [] if before is None else [before.repeat_interleave(candidates, dim=0)]
    for i in range(steps):
        latents.append(policy(states[:, -1], i).unsqueeze(1))
        following = world_model(states, torch.cat(latents, dim=1))[:, -1:]
        states = torch.cat([states, following.to(states.dtype)], dim=1)
    return states[:, -1]
