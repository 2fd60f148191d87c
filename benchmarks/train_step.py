"""A training step of the latent action model: clips/s, its share of the device's matmul peak, where the time goes,
peak memory, the largest batch that fits, and the same step with plain attention (full mask, explicit softmax).

On a GPU the paper's setting (V-JEPA 2-L frozen, ViT-L world model, 16 frames at 256), bfloat16; on a CPU a small
one, and how the step grows with frames, tokens, depth and batch. No Ray, no weights, no videos.

    python -m benchmarks.train_step [--quick] [--batch N] [--compile] [--checkpoint-activations]
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import lawm.model.layers
from benchmarks._common import finish, machine, parser, spread
from benchmarks.rollout import seconds
from lawm.config import ClipSpec, Config, Noisy, TransformerIDM, VJepa2Encoder, WorldModelConfig
from lawm.recipes import recipe
from lawm.training import ClipBatch, LatentActionObjective, Trainer, autocast, pick_device

PAPERS_RATE = 11.1
"""Clips/s per H100 of the paper's own run: 1024 x 30,000 clips in 12 hours on 64 GPUs."""


def setting(device: torch.device, quick: bool) -> Config:
    paper = recipe("paper_noisy")
    if device.type == "cuda":
        return paper.model_copy(update={"encoder": VJepa2Encoder(size="L", weights="random")})
    return small(frames=8, size=64 if quick else 96, depth=4)


def small(frames: int, size: int, depth: int) -> Config:
    """The same parts at a size that a CPU can step."""
    paper = recipe("paper_noisy")
    model = paper.model.model_copy(
        update={
            "idm": TransformerIDM(width=96, depth=1, heads=3),
            "bottleneck": Noisy(),
            "world_model": WorldModelConfig(width=96, depth=depth, heads=3),
        }
    )
    data = paper.data.model_copy(update={"clip": ClipSpec(frames=frames, size=size)})
    encoder = VJepa2Encoder(size="tiny", weights="random")
    return paper.model_copy(update={"encoder": encoder, "model": model, "data": data})


def batch_of(config: Config, size: int) -> ClipBatch:
    clip = config.data.clip
    frames = torch.randint(0, 256, (size, clip.frames, 3, clip.size, clip.size), dtype=torch.uint8)
    return ClipBatch(frames, None, None, torch.arange(size))


def new_trainer(config: Config) -> Trainer:
    torch.manual_seed(0)
    return Trainer(LatentActionObjective(config), config)


def flops_per_clip(config: Config) -> float:
    """Multiply-adds counted as two: encoder forward, and what is trained forward and backward."""
    world = config.model.world_model.model_copy(update={"activation_checkpointing": False})
    config = config.model_copy(update={"model": config.model.model_copy(update={"world_model": world})})
    with torch.device("meta"):
        objective = LatentActionObjective(config)
        clip = config.data.clip
        frames = torch.empty(1, clip.frames, 3, clip.size, clip.size, dtype=torch.uint8)
        batch = ClipBatch(frames, None, None, torch.zeros(1, dtype=torch.int64))
        with FlopCounterMode(display=False) as counter:
            objective.train()(batch).total.backward()
    return float(counter.get_total_flops())


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of a large square matmul, in bfloat16 on a GPU and float32 on a CPU: the best of several."""
    gpu = device.type == "cuda"
    n = 8192 if gpu else 1536
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16 if gpu else torch.float32) for _ in range(2))
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(8))


def plain_attend(q: Tensor, k: Tensor, v: Tensor, tokens: int | None) -> Tensor:
    """The reference: all scores, a full mask, softmax."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if tokens is not None:
        time_k = torch.arange(k.shape[2], device=q.device) // tokens
        scores = scores.masked_fill(time_k[k.shape[2] - q.shape[2] :, None] < time_k[None], float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


@contextmanager
def plain_reference() -> Iterator[None]:
    """Every block's attention replaced by the reference."""
    own = lawm.model.layers.attend
    lawm.model.layers.attend = plain_attend
    try:
        yield
    finally:
        lawm.model.layers.attend = own


def step_times(trainer: Trainer, batch: ClipBatch, count: int) -> list[float]:
    trainer.step(0, batch)
    return [seconds(lambda i=i: trainer.step(i, batch), trainer.device) for i in range(1, count + 1)]


def parts(trainer: Trainer, batch: ClipBatch, count: int) -> dict[str, float]:
    """Median seconds of each part of a step; they add up to a little more than a step, for the waits between."""
    objective, device = trainer.objective, trainer.device
    assert isinstance(objective, LatentActionObjective)
    batch = batch.to(device)
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        out: list[Any] = []
        with autocast(device, trainer.loop.precision):
            taken.setdefault(name, []).append(seconds(lambda: out.append(work()), device))
        return out[0]

    for step in range(count):
        states = timed("encoder", lambda: objective.states(batch))
        latents = timed("inverse dynamics", lambda s=states: objective.infer(s))
        predicted = timed("world model", lambda s=states, z=latents.z_BTZ: objective.world_model(s[:, :-1], z))
        loss = timed("loss", lambda s=states, p=predicted, a=latents: (p.float() - s[:, 1:]).abs().mean() + a.penalty)
        trainer.optimizer.zero_grad()
        timed("backward", loss.backward)
        timed("optimizer", lambda i=step: (trainer.optimizer.clip_gradients(), trainer.optimizer.step(i)))
    return {name: spread(found)["median"] for name, found in taken.items()}


def largest_batch(config: Config) -> int:
    """The largest power of two that a GPU steps without running out of memory."""
    fits, size = 0, 4
    while size <= 512:
        try:
            trainer = new_trainer(config)
            trainer.step(0, batch_of(config, size))
            fits = size
        except torch.OutOfMemoryError:
            break
        finally:
            trainer = None  # type: ignore[assignment]
            torch.cuda.empty_cache()
        size *= 2
    return fits


def growth(count: int) -> dict[str, list[list[float]]]:
    """[value, step seconds] along each axis of a small setting, the others held."""
    axes: dict[str, list[tuple[int, Config, int]]] = {
        "frames": [(f, small(f, 64, 2), 2) for f in (4, 8, 16)],
        "tokens": [((s // 16) ** 2, small(8, s, 2), 2) for s in (48, 64, 96)],
        "depth": [(d, small(8, 64, d), 2) for d in (1, 2, 4)],
        "batch": [(b, small(8, 64, 2), b) for b in (1, 2, 4)],
    }
    return {
        axis: [
            [value, spread(step_times(new_trainer(config), batch_of(config, size), count))["median"]]
            for value, config, size in points
        ]
        for axis, points in axes.items()
    }


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument(
        "--batch", type=int, default=0, metavar="N", help="clips a step (default: 16 on a GPU, 4 on a CPU)"
    )
    made.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    made.add_argument("--checkpoint-activations", action="store_true")
    args = made.parse_args(argv)
    device = pick_device()
    gpu = device.type == "cuda"
    config = setting(device, args.quick)
    world = config.model.world_model.model_copy(update={"activation_checkpointing": args.checkpoint_activations})
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"world_model": world}),
            "train": config.train.model_copy(update={"compile": args.compile}),
        }
    )
    size = args.batch or (16 if gpu else 4)
    count = 5 if args.quick else 20
    batch = batch_of(config, size)
    peak, per_clip = matmul_peak(device), flops_per_clip(config)
    own, reference = [], []
    for _ in range(2 if args.quick else 3):  # in turns, so that a slow minute meets both
        trainer = new_trainer(config)
        own += step_times(trainer, batch, count)
        trainer = new_trainer(config.model_copy(update={"train": config.train.model_copy(update={"compile": False})}))
        with plain_reference():
            reference += step_times(trainer, batch, max(count // 2, 3))
    step = spread(own)
    del trainer
    if gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    where = parts(new_trainer(config), batch, count)
    figures: dict[str, Any] = {
        "clips_per_second": round(size / step["median"], 3),
        "matmul_peak_share": round(per_clip * size / step["median"] / peak, 4),
        "vs_plain_reference": round(spread(reference)["median"] / step["median"], 3),
        "step_seconds": step,
        "plain_reference_seconds": spread(reference),
        "parts_seconds": where,
        "matmul_peak_tflops": round(peak / 1e12, 3),
        "model_tflop_per_clip": round(per_clip / 1e12, 4),
        "batch": size,
        "clip": config.data.clip.model_dump(),
        "encoder": config.encoder.model_dump(),
        "world_model": world.model_dump(),
        "compiled": args.compile,
    }
    if gpu:
        figures["times_the_papers_rate"] = round(figures["clips_per_second"] / PAPERS_RATE, 2)
        figures["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        gc.collect()
        torch.cuda.empty_cache()
        figures["largest_batch"] = largest_batch(config)
    elif not args.quick:
        figures["growth"] = growth(5)
    for name, taken in where.items():
        print(f"{name:18s} {taken * 1000:9.2f} ms  {taken / sum(where.values()):6.1%}")
    finish("train_step", figures, ("lawm", "torch"), machine())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
