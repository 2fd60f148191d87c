"""A codebook re-seeded from the latents of all ranks, against one re-seeded from the first rank's alone: how many codes
serve the next batch (perplexity over all ranks). Ranks are processes on this machine (gloo). No Ray, no videos.

    python -m benchmarks.codebook [--quick] [--ranks 16] [--codes 4096] [--latents 112]
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks._common import finish, machine, parser
from lawm.config import Discrete, override
from lawm.model import LatentActionModel
from lawm.recipes import tiny

WIDTH = 16
"""Of a latent. Re-seeded without noise: copies of one latent count as one code."""


def latents(rank: int, step: int, count: int) -> torch.Tensor:
    """[count, 1, WIDTH] of that rank at that step."""
    generator = torch.Generator().manual_seed(step * 1_000_003 + rank)
    return torch.randn(count, 1, WIDTH, generator=generator)


def new_bottleneck(codes: int) -> torch.nn.Module:
    """A discrete bottleneck of which all codes lie far away, the same on every rank."""
    config = override(tiny(), "model.latent_dim", WIDTH).model
    model = LatentActionModel(
        config.model_copy(update={"bottleneck": Discrete(codebook_size=codes, reset_noise=0.0)}), 1
    )
    assert model.bottleneck is not None
    with torch.no_grad():
        next(model.bottleneck.parameters()).fill_(100.0)
    return model.bottleneck


def main_of_rank(rank: int, args: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    states = torch.zeros(args.latents, 2, 1, 1)
    own, shared = new_bottleneck(args.codes), new_bottleneck(args.codes)
    if rank == 0:  # no process group yet: from this rank's latents alone
        own(latents(0, 0, args.latents), states)
        own.after_step({})  # type: ignore[operator]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=args.ranks)
    book = next(own.parameters()).data
    dist.broadcast(book, src=0)
    shared(latents(rank, 0, args.latents), states)
    shared.after_step({})  # type: ignore[operator]
    after = latents(rank, 1, args.latents)
    found = [float(one.eval()(after, states).metrics["perplexity"]) for one in (own, shared)]
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--ranks", type=int)
    made.add_argument("--codes", type=int, default=4096)
    made.add_argument("--latents", type=int, default=112, help="of one rank")
    args = made.parse_args(argv)
    args.ranks = args.ranks or (4 if args.quick else 16)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(main_of_rank, (args, folder), args.ranks, start_method="fork")
        own, shared = torch.load(Path(folder) / "found.pt")
    print(f"perplexity of {args.codes} codes: {own:.0f} re-seeded by one rank, {shared:.0f} by {args.ranks}")
    figures = {"perplexity_one_rank": own, "perplexity_all_ranks": shared, **vars(args)}
    finish("codebook", figures, ("lawm", "torch"), machine())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
