"""How long a run will take here: a few of its steps on its own clips, measured, and the rest counted from them.

Nothing is written and no weights are kept. What a machine cannot measure in seconds is not guessed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lawm.config import Config, LawmError
from lawm.data import Reader, Sample
from lawm.model import Decoder
from lawm.training.batches import ClipBatch, collate
from lawm.training.checkpoint import build_objective
from lawm.training.loop import Trainer
from lawm.training.objective import parameter_counts
from lawm.training.setup import model_of, settings

LARGEST_ON_CPU = 60_000_000
"""Parameters of encoder and model together, beyond which they are not even built on a machine without a GPU."""
FEW = 8
"""Clips that are read and stepped on at first, or fewer:"""
CPU_WORK = 5e11
"""Floating-point operations (6 for each parameter and token) that a tried step may take without a GPU: seconds."""
PATIENCE_S = 3.0
"""Where a step on few clips takes longer, whole batches are counted from it instead of tried."""


@dataclass(frozen=True)
class Estimate:
    """Seconds a step: training on a whole batch, and reading it in one process (None: not measured)."""

    train_s: float
    read_s: float | None
    steps: int

    def seconds(self, readers: int) -> float:
        """Of the whole run, where `readers` processes read clips while others are trained on; none: in turns."""
        read = self.read_s or 0.0
        return self.steps * (max(self.train_s, read / readers) if readers else self.train_s + read)


def measured(
    config: Config, kind: str, reader: Reader | None, parent: str | None = None, done: int = 0, world: int = 1
) -> Estimate:
    """Measured steps of a run of that kind that stands at step `done`; `world`: ranks that share its batch. Without a
    `reader`, on frames of noise (nothing is read). Raises LawmError, with the reason, where nothing can be measured."""
    if getattr(config.encoder, "weights", "") == "pretrained":
        raise LawmError("the encoder's weights would be downloaded first")
    _, loop = settings(config, kind)
    size = max(loop.batch // world, 1)
    slow = not torch.cuda.is_available()
    if slow and (count := _parameters(config, kind)) > LARGEST_ON_CPU:
        raise LawmError(f"{count / 1e6:,.0f} million parameters, and there is no GPU here")
    labels = reader.labels.action_dim if reader is not None and reader.labels is not None else None
    objective, _ = build_objective(config, kind, parent, labels)
    if reader is None and objective.reads_actions:
        raise LawmError("the videos are not indexed yet")
    tokens = config.data.clip.frames * model_of(objective).encoder.tokens
    work = 6.0 * tokens * sum(p.numel() for p in objective.parameters())
    few = min(size, FEW, max(int(CPU_WORK / work), 1)) if slow else min(size, FEW)
    if slow and work > 10 * CPU_WORK:
        raise LawmError("a step on one clip would take a minute, and there is no GPU here")
    began = time.perf_counter()
    batch = _noise(config, few) if reader is None else _read(reader, few)
    read_s = None if reader is None else (time.perf_counter() - began) / len(batch) * size
    if objective.calibrates:
        objective.calibrate(batch)
    trainer = Trainer(objective, config)

    def step(number: int, clips: ClipBatch) -> float:
        return _timed(lambda: trainer.step(number, clips), trainer.device)

    step(0, batch)  # the first allocates
    train_s = step(1, batch)
    if len(batch) < size:
        more = min(size, 2 * len(batch))
        slope = 0.0
        if train_s < PATIENCE_S:
            twice = _repeated(batch, more)
            step(2, twice)
            slope = max(step(3, twice) - train_s, 0.0) / (more - len(batch))
        # What does not grow with the batch (the optimiser) is counted once; where that is not known, with it.
        train_s = train_s + slope * (size - len(batch)) if slope else train_s * size / len(batch)
    return Estimate(train_s, read_s, max(loop.steps - done, 0))


def _parameters(config: Config, kind: str) -> int:
    """Of the latent action model with its encoder, and of a decoder; nothing is allocated."""
    count = sum(parameter_counts(config).values())
    if kind != "decoder":
        return count
    with torch.device("meta"):
        decoder = Decoder(config.decoder, config.decoder.width, 1, config.data.clip.size)
    return count + sum(p.numel() for p in decoder.parameters())


def _read(reader: Reader, count: int) -> ClipBatch:
    found = (reader.try_sample(p) for p in range(min(count, len(reader.plan))))
    good = [clip for clip in found if isinstance(clip, Sample)]
    if not good:
        raise LawmError("none of its first clips can be read")
    return collate(good)


def _noise(config: Config, count: int) -> ClipBatch:
    clip = config.data.clip
    frames = torch.randint(0, 256, (count, clip.frames, 3, clip.size, clip.size), dtype=torch.uint8)
    return ClipBatch(frames, None, None, torch.arange(count))


def _repeated(batch: ClipBatch, count: int) -> ClipBatch:
    """The batch's clips again and again, `count` in all."""
    rows = torch.arange(count) % len(batch)

    def taken(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else x[rows]

    frames, states, actions = taken(batch.frames_BFCHW), taken(batch.states_BTND), taken(batch.actions_BTA)
    return replace(
        batch, frames_BFCHW=frames, states_BTND=states, actions_BTA=actions, positions_B=batch.positions_B[rows]
    )


def _timed(work: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
