"""The transformer block: causality by perturbation, rotary positions, AdaLN-zero, the cache, patches."""

import pytest
import torch
from torch import nn

from lawm.config import ConfigError
from lawm.model import Block, unpatchify
from lawm.model.layers import (
    SMALL_STATE,
    Attention,
    KeysValues,
    apply_rope,
    attend,
    grid_positions,
    modulate,
    patchify,
    per_state,
    rope_tables,
)


def test_positions_are_row_major_squares_or_lines() -> None:
    assert grid_positions(2, 4, start=3).tolist() == [
        [3, 0, 0],
        [3, 0, 1],
        [3, 1, 0],
        [3, 1, 1],
        [4, 0, 0],
        [4, 0, 1],
        [4, 1, 0],
        [4, 1, 1],
    ]
    assert grid_positions(1, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]


def test_rope_has_the_papers_split_and_frequencies() -> None:
    """64 dims: 20 time, 20 row, 20 column, 4 not rotated; theta_i = 10000^(-i/10)."""
    cos, sin = rope_tables(torch.tensor([[2.0, 3.0, 5.0]]), 64)
    for axis, value in enumerate((2.0, 3.0, 5.0)):
        for i in range(10):
            angle = torch.tensor(value * 10000 ** (-i / 10))
            for k in (20 * axis + 2 * i, 20 * axis + 2 * i + 1):
                assert cos[0, k] == pytest.approx(float(angle.cos()), abs=1e-5)
                assert sin[0, k] == pytest.approx(float(angle.sin()), abs=1e-5)
    assert (cos[0, 60:] == 1).all() and (sin[0, 60:] == 0).all()


@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_rope_keeps_norms_and_depends_on_differences_alone(head_dim: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, head_dim), torch.randn(1, 1, 1, head_dim)

    def product(at: list[float], to: list[float]) -> float:
        a = apply_rope(q, rope_tables(torch.tensor([at]), head_dim))
        b = apply_rope(k, rope_tables(torch.tensor([to]), head_dim))
        assert a.norm().item() == pytest.approx(q.norm().item(), rel=1e-5)
        return float((a * b).sum())

    base = product([1, 2, 3], [4, 1, 0])
    assert product([6, 4, 8], [9, 3, 5]) == pytest.approx(base, rel=1e-4, abs=1e-4)
    for axis in range(3):
        to = [4.0, 1.0, 0.0]
        to[axis] += 1
        assert product([1, 2, 3], to) != pytest.approx(base, rel=1e-3)


def stack(conditioned: bool) -> nn.ModuleList:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(24, 2, conditioned=conditioned) for _ in range(2))
    for parameter in blocks.parameters():  # away from AdaLN-zero's identity
        nn.init.normal_(parameter, std=0.2)
    return blocks


def run(blocks: nn.ModuleList, x: torch.Tensor, z: torch.Tensor | None, steps: int, tokens: int) -> torch.Tensor:
    rope = rope_tables(grid_positions(steps, tokens), 12)
    for block in blocks:
        x = block(x, rope, tokens, z)
    return x.unflatten(1, (steps, tokens))


@pytest.mark.parametrize("tokens", [4, SMALL_STATE + 4])  # one masked call; a call a state
def test_attention_is_softmax_over_what_may_be_seen(tokens: int) -> None:
    """Against the formula with an explicit mask, with states that a cache already holds and without."""
    torch.manual_seed(0)
    steps, d = 3, 8
    q, k, v = torch.randn(3, 2, 2, steps * tokens, d)
    time = torch.arange(steps * tokens) // tokens
    scores = (q @ k.transpose(-1, -2) / d**0.5).masked_fill(time[:, None] < time[None], -torch.inf)
    expected = scores.softmax(-1) @ v
    for known in range(steps):
        found = attend(q[:, :, known * tokens :], k, v, tokens)
        torch.testing.assert_close(found, expected[:, :, known * tokens :], rtol=1e-5, atol=1e-5)
    everything = (q @ k.transpose(-1, -2) / d**0.5).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, None), everything, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [4, SMALL_STATE + 4])
@pytest.mark.parametrize("conditioned", [False, True])
def test_no_state_sees_a_later_one(conditioned: bool, tokens: int) -> None:
    blocks = stack(conditioned)
    x, z = torch.randn(2, 5 * tokens, 24), torch.randn(2, 5, 24) if conditioned else None
    out = run(blocks, x, z, 5, tokens)
    for t in range(5):
        other = x.unflatten(1, (5, tokens)).clone()
        other[:, t, 3] += torch.randn(24)  # not a constant: LayerNorm would take that out
        moved = run(blocks, other.flatten(1, 2), z, 5, tokens)
        assert torch.equal(moved[:, :t], out[:, :t])  # bit-identical
        # All of its own state (also the tokens before it) and all later ones do see it.
        assert ((moved - out)[:, t:].abs().amax(-1) > 0).all()
        if z is not None:
            late = z.clone()
            late[:, t] += 1.0
            moved = run(blocks, x, late, 5, tokens)
            assert torch.equal(moved[:, :t], out[:, :t]) and not torch.equal(moved[:, t], out[:, t])


@pytest.mark.parametrize("n", [4, SMALL_STATE + 4])
def test_keys_and_values_that_are_kept_give_what_the_whole_sequence_gives(n: int) -> None:
    blocks = stack(True)
    x, z = torch.randn(2, 4 * n, 24), torch.randn(2, 4, 24)
    whole = run(blocks, x, z, 4, n)
    past = [KeysValues.empty((2, 2, 4 * n, 12), blocks[0].attention.q.weight) for _ in blocks]
    parts = []
    for start, stop in ((0, 1), (1, 3), (3, 4)):
        part, steps = x.unflatten(1, (4, n))[:, start:stop].flatten(1, 2), stop - start
        for block, own in zip(blocks, past, strict=True):
            part = block(part, rope_tables(grid_positions(steps, n, start), 12), n, z[:, start:stop], own)
        parts.append(part.unflatten(1, (steps, n)))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


def test_a_conditioned_block_starts_as_the_identity_and_learns_its_condition() -> None:
    torch.manual_seed(0)
    block = Block(24, 2, conditioned=True)
    x, z = torch.randn(2, 8, 24), torch.randn(2, 2, 24)
    assert torch.equal(block(x, condition_BTC=z), x)
    block(x, condition_BTC=z).square().sum().backward()
    assert block.modulation is not None and block.modulation.weight.grad.abs().sum() > 0
    assert not any(name.startswith("norm") for name, _ in block.named_parameters())  # affine-free


def test_modulation_is_per_state() -> None:
    x = torch.ones(1, 6, 2)
    shift, scale = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    assert modulate(x, shift, scale)[0].tolist() == [[2, 4]] * 3 + [[6, 8]] * 3
    assert per_state(x, shift)[0].tolist() == [[1, 2]] * 3 + [[3, 4]] * 3


def test_cross_attention_reads_the_memory_alone() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2)
    query, memory = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    out = attention(query, memory=memory)
    assert out.shape == (1, 3, 8)
    torch.testing.assert_close(attention(query[:, 1:2], memory=memory), out[:, 1:2])
    torch.testing.assert_close(attention(query, memory=memory.flip(1)), out)


@pytest.mark.parametrize(("width", "heads"), [(10, 3), (6, 2)])
def test_a_width_that_heads_do_not_share_evenly_is_one_line(width: int, heads: int) -> None:
    with pytest.raises(ConfigError, match=f"width = {width} with heads = {heads}"):
        Attention(width, heads)


def test_patches_are_invertible_and_row_major() -> None:
    frames = torch.randn(2, 3, 3, 8, 8)
    patches = patchify(frames, 4)
    assert patches.shape == (2, 3, 4, 48)
    assert torch.equal(patches[1, 2, 1].view(3, 4, 4), frames[1, 2, :, :4, 4:])
    assert torch.equal(unpatchify(patches), frames)
