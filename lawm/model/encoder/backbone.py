"""timm's image backbones, frame by frame.

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from lawm.config import ClipSpec, LawmError, TimmEncoder
from lawm.model.encoder.base import Encoder
from lawm.model.encoder.weights import load_weights


class TimmStates(Encoder):
    """A timm image backbone on each frame; its patches or feature-map cells are the N tokens."""

    def __init__(self, config: TimmEncoder, clip: ClipSpec) -> None:
        import timm
        from timm.data import resolve_model_data_config

        backbone = load_timm(config, clip.size)
        data = resolve_model_data_config(backbone)
        super().__init__(data["mean"], data["std"], config.mean, config.std)
        # Depthwise convolutions run two to three times as fast in this layout, on CPUs and on GPUs.
        self.backbone = backbone.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.stage, self.name = config.stage, config.model
        self.timm_version = timm.__version__
        try:
            with torch.no_grad():
                probe = self.features(torch.zeros(1, 3, clip.size, clip.size))
        except AssertionError as error:  # timm's answer to a stage that is not there
            raise LawmError(f"encoder.stage = {config.stage} of {config.model}: {error}; choose another") from error
        self.tokens, self.state_width = probe.shape[1:]

    def features(self, images_B3SS: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, D]."""
        model: Any = self.backbone
        if self.stage is not None:
            maps = model.forward_intermediates(
                images_B3SS, indices=[self.stage], intermediates_only=True, stop_early=True, output_fmt="NCHW"
            )
            return maps[-1].flatten(2).transpose(1, 2)
        out = model.forward_features(images_B3SS)
        if out.ndim == 4:
            channels_last = out.shape[-1] == model.num_features and out.shape[1] != model.num_features
            return out.flatten(1, 2) if channels_last else out.flatten(2).transpose(1, 2)
        return out[:, getattr(model, "num_prefix_tokens", 0) :]

    def fingerprint(self) -> str:
        """As `Encoder.fingerprint`; the stage is said too where stages share a shape, as a ViT's blocks do."""
        found = super().fingerprint()
        shapes = [(f["num_chs"], f["reduction"]) for f in getattr(self.backbone, "feature_info", [])]
        if self.stage is None or (shapes and len(set(shapes)) == len(shapes)):
            return found
        return hashlib.blake2b(f"{found} stage {self.stage}".encode(), digest_size=8).hexdigest()

    def checkpoint_activations(self) -> None:
        try:
            self.backbone.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's, not torch's
        except (AssertionError, AttributeError) as error:
            raise LawmError(
                f"{self.name} has no gradient checkpointing; set fine_tune.gradient_checkpointing=false"
            ) from error

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, F, N, D]."""
        images = self.normalized(frames_BFCHW).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        # On a CPU a few images at a time stay in its cache.
        pieces = images.split(8) if images.device.type == "cpu" else (images,)
        states = torch.cat([self.features(piece) for piece in pieces])
        return states.unflatten(0, frames_BFCHW.shape[:2])


def load_timm(config: TimmEncoder, size: int) -> nn.Module:
    """The backbone with its weights. Raises LawmError naming the model, the weights and the remedy."""
    import timm

    if not timm.is_model(config.model.split(".")[0]) and not config.model.startswith("hf-hub:"):
        close = ", ".join(timm.list_models(f"*{config.model.split('.')[0].split('_')[0]}*")[:5])
        raise LawmError(f"encoder.model = {config.model!r} is not a timm model; close ones: {close or 'none'}")
    pretrained = config.weights == "pretrained"

    def create(**extra: Any) -> nn.Module:
        return timm.create_model(config.model, pretrained=pretrained, **extra)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # `random` weights are the same everywhere
        try:
            try:
                model = create(img_size=size)
            except TypeError:  # a backbone of any input size
                model = create()
        except (OSError, RuntimeError) as error:
            raise LawmError(
                f"encoder.model = {config.model!r}: weights could not be downloaded or loaded "
                f"({str(error).splitlines()[0]}); give a local file with --set encoder.weights=PATH"
            ) from error
    if config.weights not in ("pretrained", "random"):
        load_weights(model, config.weights, config.model)
    return model
