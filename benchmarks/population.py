"""What K = 1, 2, 4, 8 bottleneck coefficients cost in one run, on clips that are encoded once; in single runs 8
would cost 8.

On a GPU the paper's encoder and world model; on a CPU a small pair in about the same proportion. No Ray, no
weights, no videos: what decoding once instead of K times saves comes on top.

    python -m benchmarks.population [--quick] [--batch N]
"""

import time
from typing import Any

import torch

from benchmarks._common import finish, machine, parser, spread
from lawm.config import ClipSpec, Config, Noisy, TransformerIDM, VJepa2Encoder, WorldModelConfig
from lawm.recipes import recipe
from lawm.training import ClipBatch, LatentActionObjective, Trainer, encoded_batch, pick_device

SIZES = (1, 2, 4, 8)
BETAS = [5e-3 / 4**i for i in range(max(SIZES))]


def setting(device: torch.device, quick: bool) -> Config:
    """Encoder and world model of one width and depth, as in the paper."""
    paper = recipe("paper_noisy")
    if device.type == "cuda":
        return paper.model_copy(update={"encoder": VJepa2Encoder(size="L", weights="random")})
    model = paper.model.model_copy(
        update={
            "idm": TransformerIDM(width=80, depth=1, heads=2),
            "world_model": WorldModelConfig(width=80, depth=2, heads=2),
        }
    )
    clip = ClipSpec(frames=8, size=64 if quick else 128)
    data = paper.data.model_copy(update={"clip": clip})
    return paper.model_copy(
        update={"encoder": VJepa2Encoder(size="tiny", weights="random"), "model": model, "data": data}
    )


def members(config: Config, count: int) -> list[Trainer]:
    """Trainers that differ in beta, on one encoder."""
    found: list[Trainer] = []
    for beta in BETAS[:count]:
        own = config.model_copy(update={"model": config.model.model_copy(update={"bottleneck": Noisy(beta=beta)})})
        torch.manual_seed(0)
        encoder: Any = found[0].objective.encoder if found else None
        found.append(Trainer(LatentActionObjective(own, encoder), own))
    return found


def step_seconds(trainers: list[Trainer], batch: ClipBatch, step: int) -> float:
    """One step of all members on one batch, encoded once."""
    device = trainers[0].device
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    encoded = encoded_batch(trainers[0], batch)
    for trainer in trainers:
        trainer.step(step, encoded)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=0, metavar="N", help="clips a step (default: 8)")
    args = made.parse_args(argv)
    device = pick_device()
    config = setting(device, args.quick)
    size = args.batch or 8
    clip = config.data.clip
    frames = torch.randint(0, 256, (size, clip.frames, 3, clip.size, clip.size), dtype=torch.uint8)
    batch = ClipBatch(frames, None, None, torch.arange(size))
    times: dict[int, list[float]] = {}
    for count in SIZES:
        trainers = members(config, count)
        step_seconds(trainers, batch, 0)
        times[count] = [step_seconds(trainers, batch, i) for i in range(1, 4 if args.quick else 11)]
        del trainers
    base = spread(times[1])["median"]
    costs = {str(count): spread([t / base for t in found]) for count, found in times.items()}
    encoder_share = _encoder_share(config, batch)
    figures = {
        "cost_of_8": costs["8"]["median"],
        "cost": costs,
        "encoder_share_of_a_single_step": encoder_share,
        "batch": size,
        "clip": clip.model_dump(),
        "encoder": config.encoder.model_dump(),
        "world_model": config.model.world_model.model_dump(),
    }
    for count, cost in costs.items():
        print(f"K = {count}: {cost['median']} single steps ({cost['low']} to {cost['high']})")
    finish("population", figures, ("lawm", "torch"), machine())
    return 0


def _encoder_share(config: Config, batch: ClipBatch) -> float:
    trainer = members(config, 1)[0]
    shares = []
    for step in range(4):
        began = time.perf_counter()
        encoded_batch(trainer, batch)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        encode = time.perf_counter() - began
        shares.append(encode / step_seconds([trainer], batch, step))
    return spread(shares[1:])["median"]


if __name__ == "__main__":
    raise SystemExit(main())
