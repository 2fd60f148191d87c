"""What is the same for all kinds: widths, what a collapse looks like, ranks of latents."""

import pytest
import torch
from small_runs import no_states, tiny_kind

from lawm.model import collapse_warning, effective_rank
from lawm.model.latent_action.model import build_bottleneck


def test_no_bottleneck_passes_codes_and_every_kind_names_its_code_width() -> None:
    codes = torch.randn(2, 3, 6)
    out = build_bottleneck(tiny_kind("none").model.bottleneck, 6, 4)(codes, no_states(2, 4))
    assert torch.equal(out.z_BTZ, codes) and float(out.penalty) == 0
    for kind, width in (("sparse", 6), ("noisy", 12), ("adaptive", 12), ("discrete", 6), ("none", 6)):
        assert build_bottleneck(tiny_kind(kind).model.bottleneck, 6, 4).code_width == width
    for kind in ("deterministic", "true_actions"):
        with pytest.raises(TypeError, match=kind):
            build_bottleneck(tiny_kind(kind).model.bottleneck, 6, 4)


def test_collapsed_latents_are_said_with_the_remedy() -> None:
    """On figures that training logs: a codebook of which one code is used, and latents that do carry something."""
    assert collapse_warning({}) == ""
    assert "lambda_l1" in collapse_warning({"vcm_variance": 0.9, "effective_rank": 1.0})
    assert collapse_warning({"perplexity": 2.0, "effective_rank": 1.0}) == ""  # two codes lie on a line
    assert "beta" in collapse_warning({"kl_nats": 0.01, "effective_rank": 30.0})
    assert collapse_warning({"kl_nats": 40.0, "effective_rank": 26.9}) == ""
    alike = tiny_kind("discrete")
    bottleneck = build_bottleneck(alike.model.bottleneck, alike.model.latent_dim, 4)
    metrics = bottleneck(torch.ones(2, 3, alike.model.latent_dim), no_states(2, 4)).metrics
    assert "reset_after" in collapse_warning({k: float(v) for k, v in metrics.items()})


def test_effective_rank() -> None:
    torch.manual_seed(0)
    assert effective_rank(torch.randn(5000, 6)) == pytest.approx(6, abs=0.05)
    assert effective_rank(torch.randn(500, 2) @ torch.randn(2, 6)) <= 2.01
    assert effective_rank(torch.ones(50, 6)) == 0
