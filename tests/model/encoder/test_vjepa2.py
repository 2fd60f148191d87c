"""V-JEPA 2: parity with transformers' model, both weight layouts, 2.1's positions, causality, strict loading."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model

from lawm.config import ClipSpec, LawmError, VJepa2Encoder
from lawm.model import load_encoder
from lawm.model.encoder.vjepa2 import VJEPA2_SIZES, VJepa2States

WIDTH, DEPTH, HEADS, HIDDEN = VJEPA2_SIZES["tiny"]
CLIP = ClipSpec(frames=6, size=48)
SIDE = 48 // 16


def frames(seed: int = 0, size: int = 48) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 6, 3, size, size), dtype=torch.uint8, generator=made)


def encoder(**fields: Any) -> VJepa2States:
    found = load_encoder(VJepa2Encoder(size="tiny", **({"weights": "random"} | fields)), CLIP)
    assert isinstance(found, VJepa2States)
    return found


@pytest.fixture(scope="module")
def hugging_face() -> VJEPA2Model:
    """A small random model; every weight is away from its initial 0 or 1."""
    torch.manual_seed(1)
    model = VJEPA2Model(
        VJEPA2Config(
            crop_size=48, frames_per_clip=6, hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=DEPTH,
            mlp_ratio=HIDDEN / WIDTH, pred_hidden_size=48, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        )
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    return model.eval()


def official(model: VJEPA2Model, version: str = "2.0") -> dict[str, Tensor]:
    """The same weights under the names of an official checkpoint."""
    found = {k.removeprefix("encoder."): v for k, v in model.state_dict().items() if k.startswith("encoder.")}
    out = {}
    for name, tensor in found.items():
        new = name.replace("embeddings.patch_embeddings", "patch_embed").replace("layer.", "blocks.")
        new = new.replace("attention.proj", "attn.proj").replace("layernorm.", "norm.")
        if ".query." in name:
            parts = [found[name.replace("query", part)] for part in ("query", "key", "value")]
            out[new.replace("attention.query", "attn.qkv")] = torch.cat(parts)
        elif ".key." not in name and ".value." not in name:
            out[new] = tensor.clone()
    if version == "2.0":
        out["pos_embed"] = torch.zeros(1, 3 * SIDE**2, WIDTH)
    else:
        last = {k: out.pop(f"norm.{k}") for k in ("weight", "bias")}
        for i in range(4):
            for k, v in last.items():
                out[f"norms_block.{i}.{k}"] = v if i == 3 else torch.zeros_like(v)
        out["video_mod_embed"] = torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(2))
        out["img_mod_embed"] = torch.zeros(1, 1, WIDTH)
        out["patch_embed_img.proj.weight"] = torch.zeros(WIDTH, 3, 1, 16, 16)
        out["patch_embed_img.proj.bias"] = torch.zeros(WIDTH)
    return {f"module.backbone.{k}": v for k, v in out.items()}


def write_official(path: Path, model: VJEPA2Model, **branches: float) -> Path:
    """An official checkpoint; each branch's weights are those of `model` times a factor."""
    held: dict[str, Any] = {b: {k: v * by for k, v in official(model).items()} for b, by in branches.items()}
    torch.save(held | {"epoch": 3, "predictor": {"module.mask": torch.zeros(2)}}, path)
    return path


def write_hugging_face(path: Path, model: VJEPA2Model) -> Path:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("layout", ["hugging_face", "official"])
def test_states_equal_those_of_transformers(tmp_path: Path, hugging_face: VJEPA2Model, layout: str) -> None:
    path = tmp_path / ("w.safetensors" if layout == "hugging_face" else "w.pt")
    if layout == "official":
        write_official(path, hugging_face, target_encoder=1.0, encoder=0.5)
    else:
        write_hugging_face(path, hugging_face)
    ours = encoder(weights=str(path))
    given = ours.normalized(frames())
    with torch.no_grad():
        expected = hugging_face(pixel_values_videos=given, skip_predictor=True).last_hidden_state
        found = ours.transform(ours.tubelets(given), causal=False)
    assert found.shape == (2, 3, SIDE**2, WIDTH) and expected.std() > 0.1
    torch.testing.assert_close(found.flatten(1, 2), expected, rtol=0, atol=1e-5)
    # Not by accident: 2.1's rotation gives something else.
    modern = encoder(weights="random", version="2.1")
    modern.load_state_dict(ours.state_dict(), strict=False)
    with torch.no_grad():
        other = modern.transform(modern.tubelets(given), causal=False)
    assert (other.flatten(1, 2) - expected).abs().max() > 1e-2


def test_the_branch_is_chosen_by_name(tmp_path: Path, hugging_face: VJEPA2Model) -> None:
    path = write_official(tmp_path / "w.pt", hugging_face, target_encoder=1.0, encoder=0.5)
    target, online = encoder(weights=str(path)), encoder(weights=str(path), branch="encoder")
    torch.testing.assert_close(online.embed.weight * 2, target.embed.weight)
    with pytest.raises(LawmError, match=r"holds target_encoder, encoder, predictor, not 'ema_encoder'; set encoder.br"):
        encoder(weights=str(path), branch="ema_encoder")


def reference_2_1(weights: dict[str, Tensor], given: Tensor) -> Tensor:
    """V-JEPA 2.1 written out: a rotation matrix for each token, softmax attention, one head at a time."""
    w = {k.removeprefix("module.backbone."): v.double() for k, v in weights.items()}
    x = F.conv3d(given.double().transpose(1, 2), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], (2, 16, 16))
    side, steps = x.shape[-1], x.shape[2]
    x = x.flatten(2).transpose(1, 2) + w["video_mod_embed"]
    d = WIDTH // HEADS
    third = 2 * ((d // 3) // 2)
    turns = []
    for t in range(steps):
        for row in range(side):
            for column in range(side):
                turn = torch.eye(d, dtype=torch.float64)
                for axis, place in enumerate((t, row * 15 / (side - 1), column * 15 / (side - 1))):
                    for i in range(third // 2):
                        a = place * 10000 ** (-i / (third / 2))
                        k = axis * third + 2 * i
                        turn[k : k + 2, k : k + 2] = torch.tensor(
                            [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64
                        )
                turns.append(turn)
    turned = torch.stack(turns)
    for i in range(DEPTH):
        p = f"blocks.{i}."
        y = F.layer_norm(x, (WIDTH,), w[p + "norm1.weight"], w[p + "norm1.bias"], 1e-6)
        q, k, v = (y @ w[p + "attn.qkv.weight"].T + w[p + "attn.qkv.bias"]).chunk(3, -1)
        heads = []
        for h in range(HEADS):
            part = slice(h * d, (h + 1) * d)
            qh, kh = (torch.einsum("lij,blj->bli", turned, u[..., part]) for u in (q, k))
            heads.append((qh @ kh.transpose(1, 2) / d**0.5).softmax(-1) @ v[..., part])
        x = x + torch.cat(heads, -1) @ w[p + "attn.proj.weight"].T + w[p + "attn.proj.bias"]
        y = F.layer_norm(x, (WIDTH,), w[p + "norm2.weight"], w[p + "norm2.bias"], 1e-6)
        y = F.gelu(y @ w[p + "mlp.fc1.weight"].T + w[p + "mlp.fc1.bias"])
        x = x + y @ w[p + "mlp.fc2.weight"].T + w[p + "mlp.fc2.bias"]
    return F.layer_norm(x, (WIDTH,), w["norms_block.3.weight"], w["norms_block.3.bias"], 1e-6)


def test_version_2_1_equals_its_definition(tmp_path: Path, hugging_face: VJEPA2Model) -> None:
    weights = official(hugging_face, "2.1")
    torch.save({"ema_encoder": weights}, tmp_path / "w.pt")
    ours = encoder(version="2.1", branch="ema_encoder", weights=str(tmp_path / "w.pt"))
    given = ours.normalized(frames())
    with torch.no_grad():
        found = ours.transform(ours.tubelets(given), causal=False)
    torch.testing.assert_close(found.flatten(1, 2).double(), reference_2_1(weights, given), rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize(("causality", "states"), [("block_causal", 3), ("frame_pairs", 3), ("duplicate", 6)])
def test_no_state_sees_a_later_frame(causality: str, states: int, version: str) -> None:
    ours = encoder(causality=causality, version=version)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    out = ours(frames())
    assert out.shape == (2, states, SIDE**2, WIDTH) and not out.requires_grad
    per_state = 6 // states
    assert ours.frames_per_state == per_state
    for t in range(states):
        other = frames()
        other[:, t * per_state :] = frames(seed=5)[:, t * per_state :]
        moved = ours(other)
        assert torch.equal(moved[:, :t], out[:, :t])  # bit-identical
        assert ((moved - out)[:, t].abs().amax(-1) > 0).all()
    if causality != "block_causal":  # a state does not see earlier frames either
        other = frames(seed=5)
        other[:, -per_state:] = frames()[:, -per_state:]
        assert torch.equal(ours(other)[:, -1], out[:, -1])
    else:
        other = frames()
        other[:, 0] = frames(seed=5)[:, 0]
        assert ((ours(other) - out)[:, -1].abs().amax(-1) > 0).all()


def test_tubelets_and_positions_are_those_of_any_size(hugging_face: VJEPA2Model, tmp_path: Path) -> None:
    """Another image side than the weights were made for: same weights, positions of the new grid."""
    path = write_hugging_face(tmp_path / "w.safetensors", hugging_face)
    config = VJepa2Encoder(size="tiny", weights=str(path))
    big = load_encoder(config, ClipSpec(frames=4, size=64))
    assert big(frames(size=64)[:, :4]).shape == (2, 2, 16, WIDTH)


@pytest.mark.parametrize(
    ("fields", "clip", "said"),
    [
        ({}, ClipSpec(frames=4, size=50), "data.clip.size = 50: V-JEPA 2 needs a multiple of 16"),
        ({}, ClipSpec(frames=5, size=48), "data.clip.frames = 5: .* set an even number, or encoder.causality=dup"),
        ({}, ClipSpec(frames=2, size=48), "data.clip.frames = 2 makes one state, and a transition needs two"),
        ({"weights": "pretrained"}, CLIP, "V-JEPA 2.0 was released as L, H, g; choose one"),
        ({"weights": "nowhere.pt"}, CLIP, "encoder.weights: no file nowhere.pt"),
    ],
)
def test_what_does_not_fit_is_one_line(fields: dict[str, Any], clip: ClipSpec, said: str) -> None:
    with pytest.raises(LawmError, match=said) as caught:
        load_encoder(VJepa2Encoder(size="tiny", **({"weights": "random"} | fields)), clip)
    assert "\n" not in str(caught.value)


def test_weights_of_another_size_and_damaged_files_are_named(tmp_path: Path, hugging_face: VJEPA2Model) -> None:
    held = hugging_face.state_dict()
    lacking = {k: v.contiguous() for k, v in held.items() if k != "encoder.layer.1.attention.value.weight"}
    save_file(lacking | {"encoder.extra": torch.zeros(1)}, tmp_path / "lacking.safetensors")
    with pytest.raises(LawmError, match=r"1 missing \(blocks.1.attention.kv.weight\); 1 unexpected \(extra\)"):
        encoder(weights=str(tmp_path / "lacking.safetensors"))
    whole = write_hugging_face(tmp_path / "w.safetensors", hugging_face)
    with pytest.raises(LawmError, match=r"of another shape \(blocks.0.attention.kv.bias \(160,\) instead of \(1536,\)"):
        load_encoder(VJepa2Encoder(size="B", weights=str(whole)), CLIP)
    whole.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(LawmError, match="not a readable weights file"):
        encoder(weights=str(whole))


def test_what_changes_the_states_changes_the_fingerprint() -> None:
    """A state cache and a baseline are recognised by it."""
    kinds = [(c, v) for c in ("block_causal", "frame_pairs", "duplicate") for v in ("2.0", "2.1")]
    assert len({encoder(causality=c, version=v).fingerprint() for c, v in kinds}) == len(kinds)
    assert encoder().fingerprint() == encoder().fingerprint()


@pytest.mark.parametrize(
    "held",
    [
        {1: torch.zeros(2)},
        {"target_encoder": {1: torch.zeros(2)}},
        {1: {"a": torch.zeros(2)}},
        {"patch_embed.proj.weight": torch.tensor(3.0)},
        {"blocks.0.attn.qkv.weight": torch.tensor(3.0)},
        {"norms_block.x.weight": torch.zeros(2)},
        {
            "encoder.layer.0.attention.key.weight": torch.zeros(2, 2),
            "encoder.layer.0.attention.value.weight": torch.zeros(2),
        },
    ],
)
@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_files_of_nonsense_are_one_line(tmp_path: Path, held: dict[Any, Any], version: str) -> None:
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(LawmError) as caught:
        encoder(weights=str(tmp_path / "w.pt"), version=version)
    assert "w.pt" in str(caught.value)


def test_released_sizes_have_their_published_parameter_counts() -> None:
    """V-JEPA 2, table 1: 300 M, 600 M, 1 B; built without memory."""
    for size, millions in (("L", 304), ("H", 632), ("g", 1012)):
        with torch.device("meta"):
            model = VJepa2States(VJepa2Encoder(size=size, weights="random"), ClipSpec(frames=16, size=256))  # type: ignore[arg-type]
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_weights_that_no_network_should_have_are_refused(tmp_path: Path, hugging_face: VJEPA2Model) -> None:
    whole = write_hugging_face(tmp_path / "w.safetensors", hugging_face)
    (tmp_path / "renamed.pt").write_bytes(whole.read_bytes())
    encoder(weights=str(tmp_path / "renamed.pt"))  # what it is, not how it is called
    held = {k: v.contiguous() for k, v in hugging_face.state_dict().items()}
    name = "encoder.layer.1.mlp.fc1.weight"
    save_file(held | {name: held[name] * float("nan")}, tmp_path / "nan.safetensors")
    with pytest.raises(LawmError, match=r"fc1.weight holds values that are not finite"):
        encoder(weights=str(tmp_path / "nan.safetensors"))
    save_file(held | {name: held[name].to(torch.int8)}, tmp_path / "int.safetensors")
    with pytest.raises(LawmError, match=r"fc1.weight is torch.int8; floating point was expected"):
        encoder(weights=str(tmp_path / "int.safetensors"))
    with pytest.raises(LawmError, match=r"holds V-JEPA 2.0's weights; set encoder.version=2.0"):
        encoder(weights=str(whole), version="2.1")
