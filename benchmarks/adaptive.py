"""What a multiplier for each clip buys: adaptive latents against the static coefficient of equal average rate.

Clips of mixed complexity are made here, a third each: of nine lamps one, three or all change their brightness at
random from frame to frame. Static betas span a rate-distortion curve; each adaptive run is set beside that
curve at its own average rate. Errors are of held-out clips, with latents drawn as in training.

    python -m benchmarks.adaptive [--quick] [--seeds N]
"""

from typing import Any

import numpy as np
import torch

from benchmarks._common import finish, parser, spread
from lawm.config import (
    Adaptive,
    BottleneckConfig,
    Config,
    Noisy,
    OptimizerConfig,
    PixelsEncoder,
    TrainConfig,
    WorldModelConfig,
)
from lawm.config import TransformerIDM as Idm
from lawm.evaluation import per_clip_error
from lawm.recipes import tiny
from lawm.training import ClipBatch, LatentActionObjective, Trainer, encoded_batch

BETAS = [3e-3, 1e-3, 3e-4, 1e-4, 3e-5]
DISTORTIONS = [0.2, 0.1]
RATES = [4.0, 16.0]
FRAMES, SIZE = 5, 24
CHANGING = (1, 3, 9)
"""Lamps of nine that change, by group."""
HELD_OUT = 300


def lamps() -> np.ndarray:
    """What each of the nine lamps lights, [9, S, S]: a soft disc on a 3 x 3 grid."""
    at = (np.arange(3) + 0.5) * SIZE / 3
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    return np.stack([np.exp(-((y - r) ** 2 + (x - c) ** 2) / (SIZE / 8) ** 2) for r in at for c in at])


def clip(seed: int) -> np.ndarray:
    """uint8 [F, 3, S, S]; seed % 3 is the group."""
    generator = np.random.default_rng(seed)
    changes = np.zeros((FRAMES, 9))
    which = generator.permutation(9)[: CHANGING[seed % 3]]
    changes[1:, which] = generator.normal(0, 30, (FRAMES - 1, len(which)))
    brightness = generator.uniform(60, 140, 9) + np.cumsum(changes, axis=0)
    grey = np.einsum("fl,lyx->fyx", brightness, lamps()) + 40
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, None], 3, axis=1)


def batch_of(seeds: range) -> ClipBatch:
    frames = torch.from_numpy(np.stack([clip(s) for s in seeds]))
    return ClipBatch(frames, None, None, torch.tensor(list(seeds)))


def config_of(bottleneck: BottleneckConfig, steps: int, seed: int) -> Config:
    base = tiny()
    model = base.model.model_copy(
        update={
            "latent_dim": 16,
            "idm": Idm(width=64, depth=1, heads=2, mlp_ratio=2, join="channels"),
            "bottleneck": bottleneck,
            "world_model": WorldModelConfig(width=64, depth=2, heads=2, mlp_ratio=2),
        }
    )
    data = base.data.model_copy(update={"clip": base.data.clip.model_copy(update={"frames": FRAMES, "size": SIZE})})
    train = TrainConfig(steps=steps, batch=24, seed=seed, log_every=steps, checkpoint_every=steps)
    optimizer = OptimizerConfig(muon_lr=0.01, adamw_lr=2e-3)
    encoder = PixelsEncoder(patch=8, normalize_states="channel")
    return base.model_copy(
        update={"data": data, "encoder": encoder, "model": model, "train": train, "optimizer": optimizer}
    )


@torch.no_grad()
def measured(objective: LatentActionObjective, held_out: ClipBatch, seed: int) -> dict[str, Any]:
    """Error and rate of each held-out clip, with latents drawn as in training."""
    torch.manual_seed(seed)
    objective.train()
    states = objective.states(held_out)
    latents = objective.infer(states)
    assert latents.rate_B is not None
    error = per_clip_error(objective.world_model(states[:, :-1], latents.z_BTZ), states[:, 1:])
    rate = latents.rate_B.double().numpy()
    group = held_out.positions_B.numpy() % 3
    return {
        "rate": float(rate.mean()),
        "error": float(error.mean()),
        "error_p90": float(np.quantile(error, 0.9)),
        "error_spread": float(error.std()),
        "group_rate": [round(float(rate[group == g].mean()), 2) for g in range(3)],
        "group_error": [round(float(error[group == g].mean()), 4) for g in range(3)],
    }


def at_rate(static: list[dict[str, Any]], rate: float, name: str) -> float:
    """The static curve's `name` at that average rate, interpolated over log rate; not a number outside it (short
    runs stay outside)."""
    points = sorted((s["rate"], s[name]) for s in static)
    x = np.log([max(p[0], 1e-3) for p in points])
    return float(np.interp(np.log(max(rate, 1e-3)), x, [p[1] for p in points], left=np.nan, right=np.nan))


def run(seed: int, steps: int, bottlenecks: list[BottleneckConfig]) -> list[dict[str, Any]]:
    """Trains one model for each bottleneck, all on the same clips; what each measures."""
    trainers = []
    for bottleneck in bottlenecks:
        torch.manual_seed(seed)
        config = config_of(bottleneck, steps, seed)
        objective = LatentActionObjective(config)
        objective.calibrate(batch_of(range(HELD_OUT, 2 * HELD_OUT)))
        trainers.append(Trainer(objective, config))
    size = trainers[0].loop.batch
    first = 2 * HELD_OUT + seed * 10_000_000
    for step in range(steps):
        batch = encoded_batch(trainers[0], batch_of(range(first + step * size, first + (step + 1) * size)))
        for trainer in trainers:
            trainer.step(step, batch)
    held_out = batch_of(range(HELD_OUT))
    found = []
    for trainer, bottleneck in zip(trainers, bottlenecks, strict=True):
        assert isinstance(trainer.objective, LatentActionObjective)
        found.append({"bottleneck": bottleneck.model_dump(), **measured(trainer.objective, held_out, seed)})
        figures = found[-1]
        said = {k: v for k, v in figures["bottleneck"].items() if k in ("kind", "beta", "constraint", "target")}
        print(f"seed {seed} {said}: " + ", ".join(f"{k} {v}" for k, v in figures.items() if k != "bottleneck"))
    return found


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=3, metavar="N")
    made.add_argument("--steps", type=int, default=0, metavar="N")
    args = made.parse_args(argv)
    steps = args.steps or (30 if args.quick else 1500)
    betas = BETAS[::2] if args.quick else BETAS
    asked: list[BottleneckConfig] = [Adaptive(constraint="distortion", target=t, start=1e-3) for t in DISTORTIONS]
    asked += [Adaptive(constraint="rate", target=t, start=1e-3) for t in RATES]
    names = ("error", "error_p90", "error_spread")
    ratios: dict[str, dict[str, list[float]]] = {}
    runs = []
    for seed in range(1 if args.quick else args.seeds):
        found = run(seed, steps, [*(Noisy(beta=b) for b in betas), *asked])
        static, adaptive = found[: len(betas)], found[len(betas) :]
        for figures in adaptive:
            own = figures["bottleneck"]
            key = f"{own['constraint']} {own['target']:g}"
            for name in names:
                ratio = figures[name] / at_rate(static, figures["rate"], name)
                if np.isfinite(ratio):
                    ratios.setdefault(key, {}).setdefault(name, []).append(ratio)
        runs += [{"seed": seed, **f} for f in found]
    over = {key: {name: spread(values) for name, values in found.items()} for key, found in ratios.items()}
    print("\nadaptive over the static coefficient of equal average rate:")
    for key, row in over.items():
        print(f"  {key}: " + ", ".join(f"{n} {v['median']} [{v['low']}, {v['high']}]" for n, v in row.items()))
    finish(
        "adaptive",
        {"adaptive_vs_static": over, "lamps_changing": CHANGING, "steps": steps, "runs": runs},
        ("lawm", "torch"),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
