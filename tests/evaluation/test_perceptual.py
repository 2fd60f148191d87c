"""PSNR and SSIM beside scikit-image's, perceptual networks under their own names, figures in pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from known_models import Adds, Difference, batch_of, built, clips_for, fresh, videos

from lawm.evaluation import Figure, Kept, Missing, PerClip, Subject, capacity, cycle, leakage, suite_says
from lawm.evaluation.perceptual import HALF_A_LEVEL, compared, psnr, ssim
from lawm.evaluation.values_file import values_from_bytes, values_to_bytes
from lawm.training.perceptual import load_st_lpips


def noisy_pairs(count: int = 6, side: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    scale = torch.logspace(-2.5, -0.5, count)[:, None, None, None]
    return (frames + scale * torch.randn(frames.shape, generator=generator)).clamp(0, 1), frames


def test_psnr_and_ssim_are_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pictures, frames = noisy_pairs()
    for picture, frame, ours, similar in zip(
        pictures.numpy(), frames.numpy(), psnr(pictures, frames), ssim(pictures, frames), strict=True
    ):
        assert float(ours) == pytest.approx(metrics.peak_signal_noise_ratio(frame, picture, data_range=1.0), abs=1e-3)
        # Its mean leaves out the windows that stick out of the picture, as Wang et al. do.
        settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        theirs = metrics.structural_similarity(frame, picture, channel_axis=0, data_range=1.0, **settings)
        assert float(similar) == pytest.approx(theirs, abs=1e-4)


def test_known_distances() -> None:
    frames = torch.full((2, 3, 16, 16), 0.5)
    assert psnr(frames + 0.1, frames).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    best = -10 * np.log10(HALF_A_LEVEL)
    assert psnr(frames, frames).tolist() == pytest.approx([best, best]) and best == pytest.approx(58.92, abs=0.01)
    assert ssim(frames, frames).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="window is 11"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    clips = torch.rand(3, 4, 3, 16, 16)
    found = compared(clips, clips, np.array(["a", "b", "c"], dtype=object))
    assert found.pixels_l1.tolist() == [0, 0, 0]
    assert isinstance(found.lpips, Missing) and "at least 64 pixels" in found.lpips.reason


def test_nothing_is_called_lpips_that_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the published backbone there is no LPIPS, and no download is begun in the midst of an evaluation."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    clips = torch.rand(1, 1, 3, 64, 64)
    found = compared(clips, clips, np.array(["a"], dtype=object))
    assert isinstance(found.lpips, Missing) and f"in {tmp_path}" in found.lpips.reason
    try:
        load_st_lpips()
    except Exception:
        assert isinstance(found.st_lpips, Missing) and "lawm[perceptual]" in found.st_lpips.reason
    else:
        assert not isinstance(found.st_lpips, Missing) and found.st_lpips.tolist() == pytest.approx([0.0], abs=1e-6)


def said(evaluation: Any, values: PerClip) -> dict[str, Figure[Any]]:
    return {f.name: f for f in (*evaluation.figures, *evaluation.more(values, ()))}


def value(evaluation: Any, values: PerClip, name: str) -> float:
    figure = said(evaluation, values)[name]
    return figure.statistic(*(np.asarray(a, float) for a in figure.of(values)))


def test_an_oracle_in_pixels_and_one_that_is_a_shade_off() -> None:
    """Its states are pictures: a bias of the states is one of the pixels."""
    exact = built(Adds, Difference())
    clips = clips_for(exact)
    at = capacity.measure(Subject(exact), clips)
    top = -10 * np.log10(HALF_A_LEVEL)
    for name in ("one_step_psnr", "unrolled_psnr", "decoded_truth_psnr"):
        assert value(capacity.EVALUATION, at, name) == pytest.approx(top, abs=1e-3)
    assert said(capacity.EVALUATION, at)["one_step_psnr"].better == "higher"
    off = built(Adds, Difference(), bias=0.02)
    at = capacity.measure(Subject(off, deterministic=off), clips_for(off))
    assert value(capacity.EVALUATION, at, "one_step_pixels_l1") > 0.003
    assert value(capacity.EVALUATION, at, "unrolled_pixels_l1") > value(capacity.EVALUATION, at, "one_step_pixels_l1")
    assert value(capacity.EVALUATION, at, "unrolled_vs_deterministic_psnr") == pytest.approx(0)
    assert value(capacity.EVALUATION, at, "unrolled_vs_deterministic_pixels_l1") == pytest.approx(1)
    around = cycle.measure(Subject(off), clips_for(off))
    # z' has the bias once more: twice the error, less what the pictures' range cuts off.
    assert 1.6 < value(cycle.EVALUATION, around, "cycle_ratio_pixels_l1") <= 2.01
    cut = leakage.measure(Subject(exact), clips, Missing("no code"))
    assert value(leakage.EVALUATION, cut, "at_cut_psnr") == pytest.approx(top, abs=1e-3)  # differences carry all
    still = fresh("noisy")
    cut = leakage.measure(Subject(still), clips_for(still), Missing("no code"))
    assert value(leakage.EVALUATION, cut, "leakage_ratio_pixels_l1") > 1.5
    assert value(leakage.EVALUATION, cut, "leakage_ratio_psnr") < -1


def test_what_is_missing_is_said_once() -> None:
    flat = fresh("noisy", encoder__normalize_states="layer_norm")
    at = capacity.measure(Subject(flat), clips_for(flat))
    extra = [name for name in said(capacity.EVALUATION, at) if "pixels" in name or "psnr" in name]
    assert extra == ["capacity_in_pixels"]
    model = fresh("noisy")
    at = capacity.measure(Subject(model), clips_for(model))  # no twin, pictures of 16 pixels
    names = list(said(capacity.EVALUATION, at))
    assert "unrolled_vs_deterministic_in_pixels" in names and "capacity_lpips" in names and "one_step_ssim" in names


def test_values_of_pictures_are_kept(tmp_path: Path) -> None:
    model = fresh("noisy")
    at = capacity.measure(Subject(model), clips_for(model))
    kept = Kept("capacity", "d", 3, tuple(videos(len(batch_of()))), at)
    again = values_from_bytes(values_to_bytes(kept), "f", suite_says()).values
    assert isinstance(again, capacity.Capacity) and not isinstance(again.pictures, Missing)
    assert not isinstance(at.pictures, Missing)
    np.testing.assert_array_equal(again.pictures.psnr, at.pictures.psnr)
    assert again.pictures.lpips == at.pictures.lpips and again.deterministic_pictures == at.deterministic_pictures
    some = again.at(np.array([3, 1]))
    assert not isinstance(some.pictures, Missing) and some.pictures.psnr.tolist() == at.pictures.psnr[[3, 1]].tolist()
