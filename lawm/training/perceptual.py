"""Networks that judge pictures as people do: LPIPS for the decoder's loss and for evaluations, ST-LPIPS beside it.

Both are given frames [N, 3, S, S] in [-1, 1] and say a distance for each, [N, 1, 1, 1]. No number is called LPIPS that
another backbone than the published one has made: the weights' own hash is asked for.
"""

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from lawm.config import LawmError

VGG = "vgg16-397923af.pth"
"""The ImageNet weights of torchvision's VGG-16; the name holds the beginning of their SHA-256."""
STALLED_S = 20.0
"""Seconds without a byte after which a download is given up."""


def load_lpips(download: bool = True) -> nn.Module:
    """LPIPS (Zhang et al. 2018) with its VGG-16 backbone, from torch's folder of weights (TORCH_HOME/hub/checkpoints)
    or from a download of 528 MB; raises LawmError where it cannot be had."""
    if not download and not (Path(torch.hub.get_dir()) / "checkpoints" / VGG).exists():
        raise LawmError(f"LPIPS needs {VGG} in {Path(torch.hub.get_dir()) / 'checkpoints'} ($TORCH_HOME/hub)")
    try:
        import lpips

        with _no_stall():
            network = lpips.LPIPS(net="vgg", verbose=False)
    except Exception as error:  # the backbone comes from a download
        raise LawmError(
            f"LPIPS needs its VGG-16 backbone, which could not be loaded ({type(error).__name__}: {error}): put {VGG} "
            "into $TORCH_HOME/hub/checkpoints (a decoder trains without, by L1 alone, with decoder.lpips=0)"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = VGG.removesuffix(".pth").rpartition("-")[2]
    if not found.startswith(wanted):
        raise LawmError(
            f"{weights}: not the published weights (SHA-256 {found[:8]}, expected {wanted}); put those there"
        )
    return network.requires_grad_(False).eval()


def load_st_lpips() -> nn.Module:
    """ST-LPIPS (Ghildyal and Liu 2022), shift-tolerant, with the AlexNet that its package brings along: another metric
    than LPIPS. Raises LawmError where the package is not installed."""
    try:
        from stlpips_pytorch import stlpips
    except ImportError as error:
        raise LawmError(f"ST-LPIPS needs its package ({error}): pip install 'lawm[perceptual]'") from error
    network: nn.Module = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    return network.requires_grad_(False).eval()


@contextmanager
def _no_stall() -> Iterator[None]:
    """Connections that this process opens meanwhile give up when they stall."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
