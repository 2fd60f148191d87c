"""What the ranks of a run tell each other, and where each computes; alone, a process is rank 0 of 1."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def pick_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast where the precision asks for it (`auto`: on a GPU)."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def finite_everywhere(loss: torch.Tensor) -> bool:
    """Whether the loss is finite on every rank."""
    flag = torch.isfinite(loss.detach()).float()
    if dist.is_initialized():
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def from_all_ranks(mine: T) -> list[T]:
    """What every rank gives, by rank."""
    if rank_and_world()[1] == 1:
        return [mine]
    parts = [mine] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


def mean_over_ranks(figures: dict[str, float]) -> dict[str, float]:
    """Each figure's mean over all ranks, which all have the same names."""
    world = rank_and_world()[1]
    if world == 1 or not figures:
        return figures
    names = sorted(figures)
    device = pick_device() if dist.get_backend() == "nccl" else "cpu"
    values = torch.tensor([figures[n] for n in names], device=device)
    dist.all_reduce(values)
    return dict(zip(names, (values / world).tolist(), strict=True))
