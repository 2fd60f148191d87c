"""Worlds whose right latent, map of change, cycle and probe are known: a grid of 8 x 8 cells, a cell a token.

A dot moves by the action; a camera pans by it over a textured ground; beside the dot a distractor moves at random. The
models are made by hand: they find a cell by its brightness, and move it, or turn the whole grid.
"""

from typing import Any

import numpy as np
import torch
from small_runs import new_objective, tiny_kind
from torch import Tensor, nn

from lawm.evaluation import Clips
from lawm.model import WorldModel
from lawm.training import ClipBatch, LatentActionObjective

CELLS, SIDE, FRAMES = 8, 4, 5
CONFIG = tiny_kind(
    "none", data__clip__size=CELLS * SIDE, data__clip__frames=FRAMES, encoder__patch=SIDE,
    encoder__normalize_states="off", model__latent_dim=2,
)  # fmt: skip
STEPS = np.array([[y, x] for y in (-2, -1, 0, 1, 2) for x in (-2, -1, 0, 1, 2) if (y, x) != (0, 0)])


def world(kind: str, clips: int, seed: int = 0) -> ClipBatch:
    """`dot`, `pan` (the camera over a textured ground) or `distractor`: clips with their true actions, cells a step."""
    rng = np.random.default_rng(seed)
    cells = np.zeros((clips, FRAMES, CELLS, CELLS))
    actions = STEPS[rng.integers(len(STEPS), size=(clips, FRAMES - 1))]
    for b in range(clips):
        ground = rng.uniform(0.1, 0.5, (CELLS, CELLS)) if kind == "pan" else np.full((CELLS, CELLS), 0.1)
        dot, other = rng.permutation(CELLS * CELLS)[:2]
        at, beside = np.array(divmod(dot, CELLS)), np.array(divmod(other, CELLS))
        if kind == "pan":
            ground[tuple(at)] = 1.0
        for f in range(FRAMES):
            if f and kind == "pan":
                ground = np.roll(ground, actions[b, f - 1], axis=(0, 1))
            elif f:
                at = (at + actions[b, f - 1]) % CELLS
                beside = (beside + STEPS[rng.integers(len(STEPS))]) % CELLS
                while kind == "distractor" and (beside == at).all():
                    beside = (beside + STEPS[rng.integers(len(STEPS))]) % CELLS
            shown = ground.copy()
            if kind == "distractor":
                shown[tuple(beside)] = 0.6
            if kind != "pan":
                shown[tuple(at)] = 1.0
            cells[b, f] = shown
    pixels = np.kron(cells, np.ones((SIDE, SIDE)))
    frames = np.repeat((255 * pixels).round().astype(np.uint8)[:, :, None], 3, axis=2)
    return ClipBatch(torch.from_numpy(frames), None, torch.from_numpy(actions).float(), torch.arange(clips))


def place(states_BND: Tensor, rank: int) -> Tensor:
    """Row and column of the cell that is the `rank`-th brightest, [B, 2]."""
    index = states_BND.mean(dim=-1).argsort(dim=-1, descending=True)[:, rank]
    return torch.stack([index // CELLS, index % CELLS], dim=-1)


class Sees(nn.Module):
    """The displacement of the `rank`-th brightest cell, the shorter way round."""

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, states_BTND: Tensor) -> Tensor:
        b, t = states_BTND.shape[:2]
        at = place(states_BTND.flatten(0, 1), self.rank).view(b, t, 2)
        return ((at[:, 1:] - at[:, :-1] + CELLS // 2) % CELLS - CELLS // 2).float()


class Pans(WorldModel):
    """The whole grid is turned by z."""

    def moved(self, state_KND: Tensor, by_K2: Tensor) -> Tensor:
        cell = torch.arange(CELLS * CELLS)
        y, x = (cell // CELLS - by_K2[:, :1]) % CELLS, (cell % CELLS - by_K2[:, 1:]) % CELLS
        return state_KND.gather(1, (y * CELLS + x)[..., None].expand_as(state_KND))

    def forward(self, states_BTND: Tensor, z_BTZ: Tensor | None, past: Any = None) -> Tensor:
        assert z_BTZ is not None
        return self.moved(states_BTND.flatten(0, 1), z_BTZ.flatten(0, 1).round().long()).view_as(states_BTND)

    def rollout(self, context_BTND: Tensor, z_BTZ: Tensor | None, steps: int, candidates: int = 1) -> Tensor:
        assert z_BTZ is not None
        last, found = context_BTND[:, -1:], []
        for step in range(steps):
            at = context_BTND.shape[1] - 1 + step
            last = self.forward(last, z_BTZ[:, at : at + 1])
            found.append(last)
        return torch.cat(found, dim=1)


class Moves(Pans):
    """The `rank`-th brightest cell is moved by z; where it was the ground is seen."""

    rank = 0

    def moved(self, state_KND: Tensor, by_K2: Tensor) -> Tensor:
        at, each = place(state_KND, self.rank), torch.arange(len(state_KND))
        old, new = (v[:, 0] * CELLS + v[:, 1] for v in (at, (at + by_K2) % CELLS))
        out = state_KND.clone()
        out[each, old] = state_KND[each, state_KND.mean(dim=-1).argmin(dim=-1)]
        out[each, new] = state_KND[each, old]
        return out


class FollowsDistractor(Moves):
    rank = 1


def made_model(physics: type[Pans], rank: int = 0) -> LatentActionObjective:
    objective = new_objective(CONFIG)
    width, tokens = objective.encoder.state_width, objective.encoder.tokens
    assert tokens == CELLS * CELLS
    objective.world_model = physics(CONFIG.model.world_model, width, 2)
    objective.latent_action.idm = Sees(rank)
    return objective.eval()


def clips_of(model: LatentActionObjective, kind: str, count: int = 24, seed: int = 0) -> Clips:
    return Clips(model, world(kind, count, seed), [f"{i // 2}.mp4" for i in range(count)], seed)
