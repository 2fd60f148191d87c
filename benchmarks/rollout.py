"""A planner's step, 300 candidates x 3 steps from a context of 4 states: with keys and values kept and the shared
past computed once, with the former alone, and without either.

On a GPU the paper's world model in bfloat16; on a CPU a small one. No Ray, no weights, no videos.

    python -m benchmarks.rollout [--quick] [--context 4] [--candidates 300] [--steps 3]
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import finish, machine, parser, spread
from lawm.config import WorldModelConfig
from lawm.model import WorldModel
from lawm.recipes import recipe
from lawm.training import autocast, pick_device

LATENT = 128


def setting(device: torch.device, quick: bool) -> tuple[WorldModelConfig, int, int]:
    """(world model, tokens of a state, state width)."""
    if device.type == "cuda":
        return recipe("paper_noisy").model.world_model, 256, 1024
    return WorldModelConfig(width=128, depth=3, heads=4), 16 if quick else 49, 112


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of `work`, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def uncached(model: WorldModel, context_BTND: Tensor, z_BTZ: Tensor, steps: int) -> Tensor:
    """As `WorldModel.rollout`, by predictions from the whole past at every step."""
    states = context_BTND
    for _ in range(steps):
        states = torch.cat([states, model(states, z_BTZ[:, : states.shape[1]])[:, -1:]], dim=1)
    return states[:, -steps:]


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--context", type=int, default=4)
    made.add_argument("--candidates", type=int, default=300)
    made.add_argument("--steps", type=int, default=3)
    args = made.parse_args(argv)
    device = pick_device()
    config, tokens, width = setting(device, args.quick)
    torch.manual_seed(0)
    model = WorldModel(config, width, LATENT).to(device).eval()
    for parameter in model.parameters():  # a new model ignores its latents
        torch.nn.init.normal_(parameter, std=0.02)
    context = torch.randn(1, args.context, tokens, width, device=device)
    z = torch.randn(args.candidates, args.context - 1 + args.steps, LATENT, device=device)
    z[:, : args.context - 1] = z[:1, : args.context - 1]
    repeated = context.expand(args.candidates, -1, -1, -1)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "shared": lambda: model.rollout(context, z, args.steps, candidates=args.candidates),
        "cached": lambda: model.rollout(repeated, z, args.steps),
        "plain": lambda: uncached(model, repeated, z, args.steps),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with autocast(device, "auto"):
        found = {name: way() for name, way in ways.items()}  # also warms up
        for _ in range(3 if args.quick else 7):
            for name, way in ways.items():
                times[name].append(seconds(way, device))
    difference = max(float((found[n] - found["plain"]).abs().max()) for n in ways)
    ratios = {n: [p / t for p, t in zip(times["plain"], times[n], strict=True)] for n in ("shared", "cached")}
    figures = {
        "cache_speedup": spread(ratios["shared"])["median"],
        "cache_speedup_spread": spread(ratios["shared"]),
        "cache_alone_speedup_spread": spread(ratios["cached"]),
        "seconds": {name: spread(t) for name, t in times.items()},
        "largest_difference": difference,
        "world_model": config.model_dump(),
        "tokens": tokens,
        "context": args.context,
        "candidates": args.candidates,
        "steps": args.steps,
    }
    alone = spread(ratios["cached"])["median"]
    print(f"keys and values kept, past shared: {figures['cache_speedup']}x; kept alone: {alone}x")
    finish("rollout", figures, ("lawm", "torch"), machine())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
