"""What limits do for a planner whose model is not to be believed where it has never been: navigation, held out.

    python -m benchmarks.limits            five worlds; --quick: two

A robot drives among landmarks; what it sees of them is noisy, as pictures are. A small network learns the next view
from view and step (forward, left, turn), from few paths whose turns end at 0.9 rad. lawm's CEM then plans from a
held-out path's first view to its last, without limits and within the 0.5 and 99.5 percentiles of the steps in training,
beside no action and the mean action. Errors are delta_xyz: steps composed in SE(2), metres. The last line is one JSON
object.

Legend: P paths, H horizon, M landmarks, E episodes, S candidates, V width of a view.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._common import finish, parser, spread
from lawm.config import PlanConfig
from lawm.data import PLANAR, Shown
from lawm.planning import action_space, cem, errors, moved_by_actions

HORIZON, LANDMARKS, NOISE, MOST_TURN = 4, 8, 0.45, 0.9
PATHS, EPISODES, STEPS, WIDTH = 300, 40, 150, 32


@dataclass(frozen=True)
class Paths:
    """Poses [P, H + 1, 3] (metres, radians), steps [P, H, 3] as seen from where they begin, and noisy views
    [P, H + 1, V]."""

    poses: np.ndarray
    steps: np.ndarray
    views: Tensor


def drive(count: int, landmarks_M2: np.ndarray, rng: np.random.Generator) -> Paths:
    """Paths from random poses: up to 0.25 m ahead and a turn of at most 0.9 rad a step."""
    pose = np.concatenate([rng.uniform(-3, 3, (count, 2)), rng.uniform(-np.pi, np.pi, (count, 1))], axis=1)
    poses, steps = [pose], []
    for _ in range(HORIZON):
        turn = np.clip(rng.normal(0, 0.3, count), -MOST_TURN, MOST_TURN)
        step = np.stack([rng.uniform(0, 0.25, count), rng.normal(0, 0.02, count), turn], axis=1)
        cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
        ahead = [cos * step[:, 0] - sin * step[:, 1], sin * step[:, 0] + cos * step[:, 1], step[:, 2]]
        pose = pose + np.stack(ahead, axis=1)
        poses.append(pose)
        steps.append(step)
    at = np.stack(poses, axis=1)
    away = landmarks_M2 - at[..., None, :2]
    bearing = np.arctan2(away[..., 1], away[..., 0]) - at[..., None, 2]
    near = 1 / (1 + np.hypot(away[..., 0], away[..., 1]))
    views = np.concatenate([np.cos(bearing), np.sin(bearing), near], axis=-1)
    noisy = views + rng.normal(0, NOISE, views.shape)
    return Paths(at, np.stack(steps, axis=1), torch.from_numpy(noisy).float())


class NextView(nn.Module):
    """(view, standardised step) -> next view."""

    def __init__(self, steps_N3: Tensor) -> None:
        super().__init__()
        self.mean, self.std = steps_N3.mean(dim=0), steps_N3.std(dim=0)
        wide = 3 * LANDMARKS
        self.net = nn.Sequential(
            nn.Linear(wide + 3, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, wide)
        )

    def rollout(self, view: Tensor, steps: Tensor) -> list[Tensor]:
        """Views after each of the steps [..., H, 3]."""
        found = []
        for step in steps.unbind(dim=-2):
            view = view + self.net(torch.cat([view, (step - self.mean) / self.std], dim=-1))
            found.append(view)
        return found


def trained(paths: Paths, seed: int) -> NextView:
    """By the mean absolute error of rollouts over whole paths."""
    torch.manual_seed(seed)
    steps = torch.from_numpy(paths.steps).float()
    model = NextView(steps.flatten(0, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(STEPS):
        pick = torch.randint(0, len(steps), (256,))
        predicted = model.rollout(paths.views[pick, 0], steps[pick])
        loss = (torch.stack(predicted, dim=1) - paths.views[pick, 1:]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def compare(seed: int) -> dict[str, float]:
    """Mean errors (metres) over held-out paths of plans without and within limits, no action and the mean action; the
    predicted cost of the plans over that of the true actions; the furthest turn (radians)."""
    rng = np.random.default_rng(seed)
    landmarks = rng.uniform(-6, 6, (LANDMARKS, 2))
    paths, held_out = drive(PATHS, landmarks, rng), drive(EPISODES, landmarks, rng)
    model = trained(paths, seed)
    every = paths.steps.reshape(-1, 3)
    shown = Shown(every.mean(axis=0), *np.percentile(every, (0.5, 99.5), axis=0), len(every))

    def cost(steps_ESH3: Tensor) -> Tensor:
        start = held_out.views[:, None, 0].expand(-1, steps_ESH3.shape[1], -1)
        return (model.rollout(start, steps_ESH3)[-1] - held_out.views[:, None, -1]).norm(dim=-1)

    def missed(steps_EH3: np.ndarray) -> float:
        pairs = zip(steps_EH3, held_out.steps, strict=True)
        moved = [[moved_by_actions("planar_delta", PLANAR, steps) for steps in pair] for pair in pairs]
        return float(np.mean([errors(planned, true)["translation"] for planned, true in moved]))

    with torch.no_grad():
        true_cost = cost(torch.from_numpy(held_out.steps).float()[:, None]).mean()
        figures = {
            "no_action": missed(np.zeros_like(held_out.steps)),
            "mean_action": missed(np.broadcast_to(shown.mean_A, held_out.steps.shape)),
        }
        for name, limit in (("without", "none"), ("within", None)):
            config = PlanConfig(preset="custom", horizon=HORIZON, action_limit=limit)  # type: ignore[arg-type]
            space = action_space(config, PLANAR, model.mean, model.std, shown)
            found, least = cem(cost, space, config, [torch.Generator().manual_seed(e) for e in range(EPISODES)])
            figures |= {
                name: missed(found.numpy()),
                f"{name}_cost_vs_true_actions": float(least.mean() / true_cost),
                f"{name}_furthest_turn": float(found[..., 2].abs().max()),
            }
    return figures


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=5, metavar="N", help="worlds (default: 5)")
    args = made.parse_args(argv)
    rows = [compare(seed) for seed in range(2 if args.quick else args.seeds)]
    ratios = {
        f"{name}_limits_vs_{other}": spread([row[name] / row[other] for row in rows])
        for name in ("without", "within")
        for other in ("no_action", "mean_action")
    }
    figures: dict[str, Any] = {name: spread([row[name] for row in rows]) for name in rows[0]} | ratios
    for name, value in figures.items():
        print(f"{name:36s} {value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
    finish("limits", {"seeds": len(rows), **figures}, ("lawm", "torch"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
