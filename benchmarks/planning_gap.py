"""Why latents of nearly equal one-step error plan differently: where between action and cost the order is lost.

    python -m benchmarks.planning_gap runs/demo-seeds/noisy-0 runs/demo-seeds/sparse-0
    python -m benchmarks.planning_gap --quick RUN...      fewer episodes, no controllers trained

RUN: folders of `benchmarks.demo --seeds N --also` (or `lawm demo`), with model and controller on the same data. On
held-out PushT episodes, candidates are drawn as a planner's first iteration draws them; the simulator says where each
really leads, and its pictures what the encoder and the inverse dynamics make of it. Each model then says what each
candidate costs, by ways that share all but one part:

    encoder        the encoder's state of what really happens: what no world model could do better
    IDM            rollout under the latents inferred from what really happens: no controller
    IDM, standardised noise   the same with latents off by as much as the controller's are, in random directions
    controller     as planning does it
    snapped        the controller's latents moved to the nearest inferred in training: never off the manifold
    plain, standardised       controllers of either kind of `controller.latents`, in as many steps
    plain, long, ...          the same, trained five times as long

`order` is Spearman's correlation between cost and true displacement error over an episode's candidates, `pick` the true
error of the cheapest candidate over the candidates' mean. The last line is one JSON object.

Legend: E episodes, S candidates, H horizon, A action width, N tokens, D state width, Z latent width.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks._common import finish, parser
from jobs.demo import PUSHT, Demo
from lawm.config import Config, LawmError
from lawm.data import BadClip, ClipReader, Cursor, action_scales, shown_by
from lawm.evaluation import interval, ratio
from lawm.model import Controller, effective_rank
from lawm.planning import Episode, action_space, goal_cost, measured_dimensions, sequence_errors
from lawm.simulation import PushTSimulator, PushTSpec, encode_mp4
from lawm.training import (
    ControllerObjective,
    LatentActionObjective,
    collate,
    load_controller,
    load_model,
    local_batches,
    train,
)
from lawm.video import VideoRef, decode_clip

PACKAGES = ("lawm", "torch", "gym-pusht")
LONG = "standardised, long"


@dataclass(frozen=True)
class Trials:
    """Candidates of E held-out episodes, and what the simulator makes of them. States are the encoder's own."""

    groups: list[str]
    start_ETND: Tensor
    goal_END: Tensor
    actions_ESHA: Tensor
    missed_ES: np.ndarray
    led_ESTND: Tensor
    """The H + 1 states of what really happens under each candidate."""


def trials(config: Config, model: LatentActionObjective, episodes: int, candidates: int) -> Trials:
    """The first `episodes` held-out clips, and `candidates` sequences for each from the first iteration of a search."""
    held_out = ClipReader(config, "val", labelled=True)
    training = ClipReader(config, "train", labelled=True)
    assert held_out.labels is not None and training.labels is not None
    labels, shown = held_out.labels, shown_by(training, config.plan.percentiles)
    scales = action_scales(training)
    dimensions, measured = labels.meaning.actions, measured_dimensions(labels)
    mean, scale = (torch.as_tensor(np.asarray(v), dtype=torch.float32) for v in (scales.mean, scales.scale()))
    space = action_space(config.plan, dimensions, mean, scale, shown)
    simulator = PushTSimulator(PushTSpec())
    generator = torch.Generator().manual_seed(config.plan.seed)
    groups, starts, goals, tried, missed, led = [], [], [], [], [], []
    for position in range(len(held_out.plan)):
        sample = held_out.try_sample(position)
        if isinstance(sample, BadClip):
            continue
        true = sample.actions
        assert true is not None
        raw = collate([sample]).states_BTND
        assert raw is not None
        noise = torch.randn(candidates, *true.shape, generator=generator)
        actions = space.kept_within(space.start + space.std * noise)
        episode = Episode(labels, sample.key, sample.start_s, config.data.clip, true)
        found = sequence_errors(episode, measured, {str(i): a for i, a in enumerate(actions.numpy())})
        first, _ = labels.first_label(sample.key, sample.start_s, config.data.clip.fps)
        frames = [simulator.pictures(labels.of(sample.key), first, a) for a in actions.numpy()]
        states = model.encode(torch.from_numpy(np.stack([as_decoded(f, config) for f in frames])))
        groups.append(sample.group)
        starts.append(raw[0, :1])
        goals.append(raw[0, -1])
        tried.append(actions)
        missed.append([found[str(i)]["translation"] for i in range(candidates)])
        led.append(states)
        print(f"\r{len(groups)}/{episodes} episodes simulated", end="", flush=True)
        if len(groups) == episodes:
            break
    print()
    return Trials(
        groups, torch.stack(starts), torch.stack(goals), torch.stack(tried), np.array(missed), torch.stack(led)
    )


def as_decoded(frames_FHWC: np.ndarray, config: Config) -> np.ndarray:
    """Pictures as training clips have them, [F, 3, S, S]: through the codec and the clips' resizing."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(encode_mp4(frames_FHWC, config.data.clip.fps))
        file.flush()
        size = Path(file.name).stat().st_size
        ref = VideoRef(file.name, 0, size, "candidate")
        return decode_clip(ref, 0.0, config.data.clip, config.data.limits).frames_FCHW


class Snapped(nn.Module):
    """A controller whose latents are moved to the nearest of those inferred in training."""

    def __init__(self, controller: Controller, inferred_KZ: Tensor):
        super().__init__()
        self.controller, self.inferred = controller, inferred_KZ

    def forward(self, actions_BTA: Tensor, states_BTND: Tensor) -> Tensor:
        z = self.controller(actions_BTA, states_BTND)
        return self.inferred[torch.cdist(z.flatten(0, 1), self.inferred).argmin(dim=1)].view_as(z)


def trained(config: Config, model: LatentActionObjective, latents: str, steps: int) -> Controller:
    """A controller as `lawm controller` makes it, in this process; `latents`: plain or standardised."""
    longer = config.controller.train.model_copy(update={"steps": steps, "checkpoint_every": steps})
    own = config.controller.model_copy(update={"train": longer, "latents": latents})
    config = config.model_copy(update={"controller": own})
    reader = ClipReader(config, "train", labelled=True)
    assert reader.labels is not None
    torch.manual_seed(longer.seed)
    objective = ControllerObjective(config, model, reader.labels.action_dim)
    objective.scale_actions(action_scales(reader))
    train(objective, lambda cursor: local_batches(reader, longer.batch, cursor), config, lambda *said: None)
    return objective.eval().controller


@torch.no_grad()
def latents_of_training(config: Config, model: LatentActionObjective, clips: int) -> tuple[Tensor, Tensor, Tensor]:
    """(z [K, Z], actions [K, A], states [K, N, D]) of the transitions of labelled training clips."""
    reader = ClipReader(config, "train", labelled=True)
    batches = local_batches(reader, config.train.batch, Cursor())
    z, actions, states = [], [], []
    for batch, _ in zip(batches, range(-(-clips // config.train.batch)), strict=False):
        found = model.states(batch)
        inferred = model.infer(found, batch.actions_BTA).z_BTZ
        assert inferred is not None and batch.actions_BTA is not None
        z.append(inferred.flatten(0, 1))
        actions.append(batch.actions_BTA.float().flatten(0, 1))
        states.append(found[:, :-1].flatten(0, 1))
    return torch.cat(z), torch.cat(actions), torch.cat(states)


@dataclass(frozen=True)
class Ways:
    """What each way of judging candidates costs them, [E, S], and what is seen on the way."""

    costs: dict[str, np.ndarray]
    facts: dict[str, float]


def rollout_by(model: LatentActionObjective, controller: nn.Module, start_BTND: Tensor, actions_BHA: Tensor) -> Tensor:
    """The last predicted state [B, N, D] under real actions."""
    past = model.world_model.prefill(start_BTND, None, actions_BHA.shape[1])

    def policy(state_BND: Tensor, i: int) -> Tensor:
        return controller(actions_BHA[:, i, None], state_BND.unsqueeze(1))[:, 0]

    return model.world_model.rollout_policy(past, policy, actions_BHA.shape[1])[:, -1]


@torch.no_grad()
def judge(
    model: LatentActionObjective, controllers: dict[str, nn.Module], found: Trials, kind: str, latents: Tensor
) -> Ways:
    """Costs of all candidates by every way that the module's docstring names."""
    costs: dict[str, list[np.ndarray]] = {}
    nearest, spacing, own, apart = [], torch.cdist(latents, latents), [], []
    usual = spacing.fill_diagonal_(float("inf")).amin(dim=1).median().clamp_min(1e-6)  # 0 of codes
    generator = torch.Generator().manual_seed(0)
    world_model = model.world_model
    for e in range(len(found.groups)):
        start, goal = (model.state_norm(part.float()) for part in (found.start_ETND[e], found.goal_END[e]))
        led, actions = model.state_norm(found.led_ESTND[e].float()), found.actions_ESHA[e]
        many, goals = start.expand(len(actions), *start.shape), goal.expand(len(actions), *goal.shape)
        steps = actions.shape[1]

        last = {"encoder": led[:, -1]}
        z = model.infer(led, actions).z_BTZ
        last["IDM"] = world_model.rollout(many, z, steps)[:, -1]
        residual = controllers["controller"](actions, led[:, :-1]) - z
        shuffled = residual.flatten(0, 1)[torch.randperm(residual.shape[0] * steps, generator=generator)].view_as(z)
        last["IDM, the controller's residuals shuffled"] = world_model.rollout(many, z + shuffled, steps)[:, -1]
        for name, controller in controllers.items():
            last[name] = rollout_by(model, controller, many, actions)
        for name, state in last.items():
            costs.setdefault(name, []).append(goal_cost(state, goals, kind).numpy())
        nearest.append(torch.cdist(controllers["controller"](actions, led[:, :-1]).flatten(0, 1), latents).amin(dim=1))
        own.append(torch.cdist(z.flatten(0, 1), latents).amin(dim=1))
        apart.append(residual.flatten(0, 1))
    off = torch.cat(apart)
    facts = {
        "latents_rms": float(latents.square().mean().sqrt()),
        "effective_rank": effective_rank(latents),
        "residual_vs_variance": float(
            off.square().sum(dim=1).mean() / (latents - latents.mean(dim=0)).square().sum(dim=1).mean()
        ),
        "nearest_controller_vs_usual": float(torch.cat(nearest).median() / usual),
        "nearest_inferred_vs_usual": float(torch.cat(own).median() / usual),
    }
    return Ways({name: np.stack(rows) for name, rows in costs.items()}, facts)


def figures(ways: Ways, found: Trials, resamples: int = 1000) -> dict[str, Any]:
    """order and pick of each way, with 95 % intervals over videos."""
    out: dict[str, Any] = {}
    average = found.missed_ES.mean(axis=1)
    for name, cost in ways.costs.items():
        order = np.array([spearmanr(c, m).statistic for c, m in zip(cost, found.missed_ES, strict=True)])
        pick = np.take_along_axis(found.missed_ES, cost.argmin(axis=1)[:, None], axis=1)[:, 0]
        o = interval(lambda x: float(x.mean()), [order], found.groups, resamples)
        p = interval(ratio, [pick, average], found.groups, resamples, positive=True)
        out[name] = {
            "order": [round(v, 3) for v in (o.value, o.low, o.high)],
            "pick": [round(v, 3) for v in (p.value, p.low, p.high)],
        }
    return out


def explained(z: Tensor, actions: Tensor, states: Tensor, controller: nn.Module) -> dict[str, float]:
    """Share of the latents' variance that the controller gives, over all directions and over those that hold most."""
    with torch.no_grad():
        given = torch.cat(
            [controller(a[:, None], s[:, None])[:, 0] for a, s in zip(actions.split(64), states.split(64), strict=True)]
        )
    centred = z - z.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    error, spread = ((z - given) @ directions.T).square().mean(dim=0), (centred @ directions.T).square().mean(dim=0)
    said = {"r2_all": float(1 - error.sum() / spread.sum())}
    return said | {f"r2_first_{n}": float(1 - error[:n].sum() / spread[:n].sum()) for n in (2, 8)}


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders with model and controller")
    made.add_argument("--episodes", type=int, default=40)
    made.add_argument("--candidates", type=int, default=32)
    args = made.parse_args(argv)
    torch.set_num_threads(2)
    episodes, candidates = (6, 16) if args.quick else (args.episodes, args.candidates)
    found: Trials | None = None
    table: dict[str, Any] = {}
    for run in args.runs:
        out = run.resolve()
        model, parent = load_model(str(out / "model"))
        config = Demo(parent.config, out, 0).on(PUSHT)
        if found is None:
            found = trials(config, model, episodes, candidates)
        objective = load_controller(str(out / "controller"), model, parent)
        z, actions, states = latents_of_training(config, model, 128 if args.quick else 768)
        controllers: dict[str, nn.Module] = {"controller": objective.controller}
        controllers["snapped"] = Snapped(objective.controller, z)
        steps = config.controller.train.steps
        if not args.quick:
            for latents in ("plain", "standardised"):
                controllers[latents] = trained(config, model, latents, steps)
                controllers[f"{latents}, long"] = trained(config, model, latents, 5 * steps)
        ways = judge(model, controllers, found, config.plan.cost, z)
        facts = ways.facts | explained(z, actions, states, objective.controller)
        facts |= (
            {f"{LONG}, {k}": v for k, v in explained(z, actions, states, controllers[LONG]).items()}
            if not args.quick
            else {}
        )
        table[run.name] = {"ways": figures(ways, found), "facts": {k: round(v, 4) for k, v in facts.items()}}
        print(json.dumps({run.name: table[run.name]}, indent=1), flush=True)
    finish("planning_gap", {"runs": table, "episodes": episodes, "candidates": candidates}, PACKAGES)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except LawmError as error:
        raise SystemExit(f"benchmarks.planning_gap: {error}") from None
