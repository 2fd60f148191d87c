"""The encoder of a config."""

from pathlib import Path

import torch

from lawm.config import ClipSpec, EncoderConfig, PixelsEncoder, TimmEncoder, VJepa2Encoder
from lawm.model.encoder.backbone import TimmStates
from lawm.model.encoder.base import Encoder
from lawm.model.encoder.pixels import PixelStates
from lawm.model.encoder.vjepa2 import VJepa2States
from lawm.model.encoder.vjepa2_weights import download_vjepa2, load_vjepa2


def load_encoder(config: EncoderConfig, clip: ClipSpec) -> Encoder:
    """The frozen encoder of that config for clips of that size."""
    match config:
        case PixelsEncoder():
            encoder: Encoder = PixelStates(config, clip)
        case TimmEncoder():
            encoder = TimmStates(config, clip)
        case VJepa2Encoder():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # `random` weights are the same everywhere
                encoder = VJepa2States(config, clip)
            if config.weights != "random":
                local = config.weights != "pretrained"
                load_vjepa2(encoder, Path(config.weights) if local else download_vjepa2(config))
    return encoder.requires_grad_(False).eval()
