"""What a bottleneck takes from all ranks; without a process group, from this one alone."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums every rank's gradient for this rank's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rows_of_all_ranks(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(x_ND: Tensor) -> Tensor:
    """Rows of all ranks, [world * N, D]. DDP's averaging then gives the gradient of the global loss."""
    return _Gather.apply(x_ND) if dist.is_initialized() and dist.get_world_size() > 1 else x_ND


def sum_over_ranks(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def rows_of_all_ranks(x_ND: Tensor) -> Tensor:
    """Rows of all ranks, by rank, without gradients."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x_ND
    parts = [torch.empty_like(x_ND) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x_ND.contiguous())
    return torch.cat(parts)


def from_first_rank(x: Tensor) -> Tensor:
    """The first rank's values, on all ranks (in place)."""
    if dist.is_initialized():
        dist.broadcast(x, src=0)
    return x
