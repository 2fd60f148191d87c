"""Small runs for tests: frames from a seed, a few real videos with index and labels, what two ranks compute."""

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lawm.config import Config, Discrete, LawmError, TrueActions, VideoLimits, override
from lawm.data import ActionScales, Cursor, held_out_reader, list_videos, rows_to_table, write_index
from lawm.model.latent_action.discrete import DiscreteBottleneck
from lawm.recipes import tiny
from lawm.training import ClipBatch, LatentActionObjective, RunWriter, train
from lawm.training.fine_tune import build_latent_action
from lawm.training.run_folder import local_report
from lawm.training.validation import held_out_clips

BOTTLENECKS = ("sparse", "noisy", "adaptive", "discrete", "none", "deterministic", "true_actions")


def tiny_with(**fields: Any) -> Config:
    """The tiny recipe with fields set; `__` stands for a dot, as in train__steps=4."""
    config = tiny()
    for path, value in fields.items():
        config = override(config, path.replace("__", "."), value)
    return config


def tiny_kind(kind: str, **fields: Any) -> Config:
    """The tiny recipe with that bottleneck (16 codes where it is discrete)."""
    config = tiny_with(model__bottleneck__kind=kind)
    if kind == "discrete":
        config = override(config, "model.bottleneck.codebook_size", 16)
    for path, value in fields.items():
        config = override(config, path.replace("__", "."), value)
    return config


def made_batch(positions: Any, config: Config, actions: int = 2) -> ClipBatch:
    """Clips that are a function of their position alone: a bright square that the actions move over noise."""
    frames_each, size = config.data.clip.frames, config.data.clip.size
    frames = np.zeros((len(positions), frames_each, 3, size, size), np.uint8)
    taken = np.zeros((len(positions), frames_each - 1, actions), np.float32)
    for i, position in enumerate(positions):
        generator = np.random.default_rng(int(position))
        background = generator.integers(0, 128, (3, size, size), dtype=np.uint8)
        moves = generator.integers(-4, 5, (frames_each - 1, 2))
        place = generator.integers(0, size, 2) + np.concatenate([np.zeros((1, 2), int), np.cumsum(moves, axis=0)])
        for f in range(frames_each):
            rows, columns = ((np.arange(8) + p) % size for p in place[f])
            frames[i, f] = background
            frames[i, f][:, rows[:, None], columns[None, :]] = 250
        taken[i, :, :2] = moves
    return ClipBatch(torch.from_numpy(frames), None, torch.from_numpy(taken), torch.tensor(list(positions)))


def made_batches(config: Config, rank: int = 0, world: int = 1, spoil: tuple[int, ...] = ()) -> Any:
    """An iterator factory for `train` over made clips; positions in `spoil` give actions that are not numbers."""
    each = config.train.batch // world

    def batches(cursor: Cursor):
        while True:
            mine = cursor.remaining(config.train.batch)[rank * each : (rank + 1) * each]
            cursor = cursor.add(cursor.remaining(config.train.batch))
            batch = made_batch(mine, config)
            assert batch.actions_BTA is not None
            for i, position in enumerate(mine):
                if int(position) in spoil:
                    batch.actions_BTA[i] = float("nan")
            yield batch

    return batches


def losses(run: str) -> dict[int, float]:
    """The loss of each reported step of a run."""
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})  # each step once, in order
    return {row["step"]: row["loss"] for row in rows}


def noise_frames(count: int = 4, size: int = 32) -> torch.Tensor:
    """uint8 noise [2, count, 3, size, size], always the same."""
    return torch.randint(
        0, 256, (2, count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def no_states(batch: int, steps: int) -> torch.Tensor:
    """States [batch, steps, 1, 1] of zeros, for bottlenecks that look at codes alone."""
    return torch.zeros(batch, steps, 1, 1)


def new_objective(config: Config, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    objective = build_latent_action(config)
    batch = made_batch(range(16), config)
    objective.calibrate(batch)
    if objective.reads_actions:
        objective.scale_actions(scales_of(batch))
    return objective


def scales_of(batch: ClipBatch) -> ActionScales:
    """The scales of a batch's actions, as of a training split."""
    assert batch.actions_BTA is not None
    a = batch.actions_BTA.flatten(0, 1)
    stats = (a.mean(dim=0), a.std(dim=0), a.amin(dim=0), a.amax(dim=0))
    return ActionScales(*(x.double().numpy() for x in stats), len(a))


def losses_of(
    config: Config, run: Path | None = None, resume: Any = None, batches: Any = None
) -> list[dict[str, float]]:
    """Trains on made clips; the metrics of every report."""
    seen: list[dict[str, float]] = []
    step = resume.step if resume is not None else 0
    keep = local_report(RunWriter(str(run), config, step), config.train.keep) if run else None

    def report(step: int, metrics: dict[str, float], checkpoint: Any) -> None:
        seen.append({"step": step, **metrics})
        if keep is not None:
            keep(step, metrics, checkpoint)

    train(new_objective(config), batches or made_batches(config), config, report, resume)
    return seen


# ---------------------------------------------------------------- real videos
@dataclass(frozen=True)
class SmallSet:
    """Videos of 3 s at 10 frames/s in `folder`, their index, and actions at 4 Hz for all of them."""

    folder: Path
    index: str
    labels: str
    keys: list[str]


def index_folder(folder: Path, where: Path) -> str:
    from lawm.video import probe

    rows = [probe(ref, VideoLimits()) for ref in list_videos([str(folder)])]
    write_index(rows_to_table(rows), str(where))
    return str(where)


def write_labels(keys: list[str], where: Path, seconds: float = 3.0, rate: float = 4.0) -> str:
    generator = np.random.default_rng(0)
    actions = [generator.normal(size=(int(seconds * rate), 2)).astype(np.float32).tolist() for _ in keys]
    pq.write_table(pa.table({"key": keys, "rate_hz": [rate] * len(keys), "actions": actions}), where)
    return str(where)


def write_small_set(root: Path, make_video: Any, videos: int = 12) -> SmallSet:
    keys = [f"{i:02d}.mp4" for i in range(videos)]
    for i, key in enumerate(keys):
        make_video(root / "videos" / key, seed=i)
    index = index_folder(root / "videos", root / "index.parquet")
    return SmallSet(root / "videos", index, write_labels(keys, root / "labels.parquet"), keys)


# ---------------------------------------------------------------- two ranks
def sparse_config() -> Config:
    return tiny_kind("sparse", model__bottleneck__lambda_l1=0.1, train__batch=8)


def adaptive_config() -> Config:
    return tiny_kind("adaptive", model__bottleneck__target=0.05, train__batch=8)


def fine_tuned_config(**fields: Any) -> Config:
    """The tiny recipe on a small V-JEPA 2 of random weights that learns, without drawn latents."""
    encoder = {"kind": "vjepa2", "size": "tiny", "weights": "random", "causality": "duplicate"}
    return tiny_with(**{"encoder": encoder, "model__bottleneck__kind": "none", "fine_tune__target": "ema"} | fields)


def without_noise(objective: LatentActionObjective) -> LatentActionObjective:
    """Latents as in evaluation: ranks draw noise of their own, which a single process cannot repeat."""
    objective.latent_action.eval()
    return objective


def gradients(objective: torch.nn.Module) -> dict[str, np.ndarray]:
    return {n: p.grad.numpy().copy() for n, p in objective.named_parameters() if p.grad is not None}


def rank_main(rank: int, world: int, folder: str) -> None:
    """What one of `world` processes computes; leaves `rank<r>.pt` in `folder`."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found: dict[str, Any] = {}

    for kind, config in {"sparse": sparse_config(), "adaptive": adaptive_config()}.items():
        objective = new_objective(config)
        objective = without_noise(objective) if kind == "adaptive" else objective
        batch = made_batch(range(rank * 8 // world, (rank + 1) * 8 // world), config)
        parallel = DistributedDataParallel(objective)  # has to outlive the backward pass
        terms = parallel(batch)
        terms.total.backward()
        figures = {"prediction": terms.prediction.item(), "penalty": terms.penalty.item()}
        found[kind] = {**figures, "gradients": gradients(objective)}

    config = fine_tuned_config(train__batch=8, train__steps=3, train__checkpoint_every=3, train__log_every=1)
    seen: list[dict[str, float]] = []
    objective = new_objective(config)
    train(objective, made_batches(config, rank, world), config, lambda step, m, c: seen.append(m))
    found["fine_tuned"] = {"weights": objective.kept(), "metrics": seen}

    config = tiny_kind("discrete", train__batch=8, train__steps=3, train__checkpoint_every=3, train__log_every=1)
    objective = new_objective(config)
    seen = []
    train(objective, made_batches(config, rank, world), config, lambda step, m, c: seen.append(m))
    bottleneck: Any = objective.latent_action.bottleneck
    found["discrete"] = {"codebook": bottleneck.codebook.detach(), "unused_for": bottleneck.unused_for, "metrics": seen}

    found["reseeded"] = reseeded(rank)

    config = spoiled_config()
    seen, cursors = [], []

    def report(step: int, metrics: dict[str, float], checkpoint: Any) -> None:
        seen.append(metrics)
        cursors.append(checkpoint.cursor if checkpoint else None)

    objective = new_objective(config)
    # Only a clip of rank 0 is bad, and yet both ranks have to skip the step.
    train(objective, made_batches(config, rank, world, spoil=(8,)), config, report)
    found["spoiled"] = {"metrics": seen, "cursors": cursors, "weights": objective.kept()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def validating_rank(rank: int, world: int, folder: str, indexes: dict[str, list[str]]) -> None:
    """One of `world` processes that each read held-out clips by an index of their own; leaves `val<r>.pt`."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    where, soon = f"file://{folder}/val_store", timedelta(seconds=60)  # a rank that is waited for fails the test
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world, timeout=soon)
    found: dict[str, Any] = {}
    for name, own in indexes.items():
        for kind in ("sparse", "discrete"):  # both look at all ranks' latents while training
            try:
                found[f"{name} {kind}"] = _validated(validated_config(kind, own[rank]), rank, world)
            except LawmError as error:
                found[f"{name} {kind}"] = str(error)
    torch.save(found, f"{folder}/val{rank}.pt")
    dist.destroy_process_group()


def _validated(config: Config, rank: int, world: int) -> dict[str, Any]:
    held_out = held_out_clips(held_out_reader(config, "latent_action")[0], 4)
    assert held_out is not None
    seen: list[dict[str, float]] = []
    batches = made_batches(config, rank, world)
    train(new_objective(config), batches, config, lambda step, m, c: seen.append(m), validation=held_out)
    read = [int(p) for batch in held_out.batches for p in batch.positions_B]
    return {"read": read, "clips": held_out.clips, "refused": held_out.refused, "metrics": seen}


def validated_config(kind: str, index: str) -> Config:
    loop = {"train__batch": 8, "train__steps": 2, "train__checkpoint_every": 1, "train__log_every": 1}
    return tiny_kind(kind, data__index=index, data__val_fraction=0.4, **loop)


def latents_of(rank: int, step: int = 0) -> torch.Tensor:
    """112 latents [16, 7, 8] of that rank at that step."""
    return torch.randn(16, 7, 8, generator=torch.Generator().manual_seed(1000 * step + rank))


def reseeded(rank: int) -> dict[str, Any]:
    """A new codebook of 4,096 codes after one batch of the rank's latents, and its perplexity on the next batch."""
    torch.manual_seed(rank)
    bottleneck = DiscreteBottleneck(Discrete(codebook_size=4096, reset_noise=0.0), 8)
    with torch.no_grad():
        bottleneck.codebook.fill_(100.0)[0] = 0.0  # all ranks begin with one book, whose first code alone is used
    bottleneck(latents_of(rank), no_states(16, 8))
    reset = bottleneck.after_step({})["codes_reset"]
    perplexity = float(bottleneck(latents_of(rank, step=1), no_states(16, 8)).metrics["perplexity"])
    return {"codebook": bottleneck.codebook.detach().clone(), "codes_reset": reset, "perplexity": perplexity}


def spoiled_config() -> Config:
    config = tiny_with(train__batch=8, train__steps=3, train__checkpoint_every=3, train__log_every=1)
    model = config.model.model_copy(update={"bottleneck": TrueActions()})
    return config.model_copy(update={"model": model})
