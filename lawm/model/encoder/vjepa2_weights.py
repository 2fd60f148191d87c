"""V-JEPA 2's weights: where they are, and their names in either layout."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawm.config import LawmError, VJepa2Encoder
from lawm.model.encoder.vjepa2 import VJepa2States
from lawm.model.encoder.weights import check_keys, check_tensors, read_weights

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
