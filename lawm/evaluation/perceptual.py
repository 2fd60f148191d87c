"""How far predicted pictures are from the true frames: L1, PSNR, SSIM, LPIPS or ST-LPIPS of each clip, and figures of
them.

All are means over the frames of a clip, pixels in [0, 1]. PSNR is in dB of each frame, and is set beside another as a
difference, not as a ratio; SSIM as the ratio of 1 - SSIM, an error like the others. LPIPS (Zhang et al. 2018) needs its
VGG-16 backbone; where that cannot be had no number is called LPIPS, and ST-LPIPS (Ghildyal and Liu 2022), another
metric, is given under its own name if its package is installed.

Legend: B clips, F frames, N frames of all clips, S image side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm.config import LawmError
from lawm.evaluation.intervals import ratio
from lawm.evaluation.results import Better, Figure, Missing, PerClip, Values
from lawm.evaluation.subject import Clips, Subject, to_numpy
from lawm.training import load_lpips, load_st_lpips

AT_ONCE = 64
"""Frames that the perceptual networks are given at once: activations of more do not fit everywhere."""
HALF_A_LEVEL = (1 / 255) ** 2 / 12
"""Mean squared error of rounding to 8 bits, which the true frames have gone through: PSNR is 58.9 dB at most."""
WINDOW, SIGMA = 11, 1.5
SMALLEST = 64
"""Least side of the pictures that LPIPS and ST-LPIPS are defined for: their backbones halve it four times or more."""


# ---------------------------------------------------------------- metrics of frames
def psnr(pictures_NCHW: Tensor, frames_NCHW: Tensor) -> Tensor:
    """Peak signal to noise ratio of each frame in dB, [N], of pixels in [0, 1]; at most that of 8-bit rounding."""
    error = (pictures_NCHW - frames_NCHW).square().flatten(1).mean(1)
    return -10 * error.clamp_min(HALF_A_LEVEL).log10()


def ssim(pictures_NCHW: Tensor, frames_NCHW: Tensor) -> Tensor:
    """Structural similarity of each frame, [N]: Wang et al. 2004, equation 13, with its Gaussian window of 11 x 11
    (sigma 1.5), K1 = 0.01, K2 = 0.03, over windows that lie within the frame, mean over colours. Raises ValueError for
    frames smaller than a window."""
    if min(frames_NCHW.shape[-2:]) < WINDOW:
        raise ValueError(f"frames of {tuple(frames_NCHW.shape[-2:])} pixels; SSIM's window is {WINDOW} wide")
    offsets = torch.arange(WINDOW, device=frames_NCHW.device, dtype=torch.float64) - WINDOW // 2
    weights = (-(offsets**2) / (2 * SIGMA**2)).exp()
    line = (weights / weights.sum()).to(frames_NCHW.dtype)

    def local_mean(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1).unsqueeze(1)
        blurred = F.conv2d(F.conv2d(flat, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
        return blurred.view(*x.shape[:2], *blurred.shape[-2:])

    x, y = pictures_NCHW, frames_NCHW
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(1)


def _lpips_that_is_here() -> nn.Module:
    return load_lpips(download=False)  # not half a GB in each evaluation actor


@cache
def _network(load: Callable[[], nn.Module], device: torch.device) -> nn.Module | Missing:
    """A perceptual network, loaded once a process; or why there is none."""
    try:
        return load().to(device)
    except LawmError as error:
        return Missing(str(error))


def _judged(load: Callable[[], nn.Module], pictures_NCHW: Tensor, frames_NCHW: Tensor) -> Tensor | Missing:
    """A perceptual network's distance of each frame, [N]."""
    if min(frames_NCHW.shape[-2:]) < SMALLEST:
        return Missing(f"perceptual distances take pictures of at least {SMALLEST} pixels (data.clip.size)")
    network = _network(load, frames_NCHW.device)
    if isinstance(network, Missing):
        return network
    pairs = zip(pictures_NCHW.split(AT_ONCE), frames_NCHW.split(AT_ONCE), strict=True)
    return torch.cat([network(a * 2 - 1, b * 2 - 1).flatten(1).mean(1) for a, b in pairs])


# ---------------------------------------------------------------- of clips
@dataclass(frozen=True)
class Pictured(PerClip):
    """How far the pictures of a clip are from the true frames, mean over them; [B] each."""

    pixels_l1: np.ndarray
    psnr: np.ndarray
    ssim: Values
    lpips: Values
    st_lpips: Values


INSTEAD = Missing("LPIPS is given")


@torch.no_grad()
def compared(pictures_BFCHW: Tensor, frames_BFCHW: Tensor, groups: np.ndarray) -> Pictured:
    """Pictures beside the true frames, both in [0, 1]; `groups`: the video of each clip."""
    if pictures_BFCHW.shape != frames_BFCHW.shape:
        raise ValueError(f"pictures {tuple(pictures_BFCHW.shape)} of frames {tuple(frames_BFCHW.shape)}")
    count, device = frames_BFCHW.shape[1], frames_BFCHW.device
    with torch.autocast(device.type, enabled=False):
        pictures, frames = pictures_BFCHW.float().flatten(0, 1), frames_BFCHW.float().flatten(0, 1)

        def of_clips(values: Tensor | Missing) -> Values:
            return values if isinstance(values, Missing) else to_numpy(values.view(-1, count).mean(1))

        similar: Tensor | Missing = Missing(f"SSIM takes pictures of at least {WINDOW} pixels (data.clip.size)")
        if min(frames.shape[-2:]) >= WINDOW:
            similar = ssim(pictures, frames)
        lpips = of_clips(_judged(_lpips_that_is_here, pictures, frames))
        other: Values = INSTEAD
        if isinstance(lpips, Missing):
            other = of_clips(_judged(load_st_lpips, pictures, frames))
        return Pictured(
            groups,
            pixels_l1=to_numpy((pictures - frames).abs().view(len(groups), -1).mean(1)),
            psnr=to_numpy(psnr(pictures, frames).view(-1, count).mean(1)),
            ssim=of_clips(similar),
            lpips=lpips,
            st_lpips=other,
        )


def pictured(subject: Subject, clips: Clips, states_BTND: Tensor, since: int) -> Pictured | Missing:
    """Pictures of the clips' states as they were predicted, from state `since` on, beside the true frames; those before
    are the true states, which a decoder looks back at. Missing where there are no pictures."""
    pictures, frames = subject.pixels(states_BTND), clips.frames
    for found in (pictures, frames):
        if isinstance(found, Missing):
            return found
    assert isinstance(pictures, Tensor) and isinstance(frames, Tensor)
    first = since * subject.model.frames_per_state
    return compared(pictures[:, first:], frames[:, first : pictures.shape[1]], clips.groups)


# ---------------------------------------------------------------- figures
T = TypeVar("T", bound=PerClip)
Of = Callable[[T], Pictured | Missing]


@dataclass(frozen=True)
class Metric:
    """How a metric is read: its unit, which way is better, and what stands for it in ratios."""

    name: str
    unit: str
    better: Better


METRICS = (
    Metric("pixels_l1", "L1 of pixels", "lower"),
    Metric("psnr", "dB", "higher"),
    Metric("ssim", "SSIM", "higher"),
    Metric("lpips", "LPIPS", "lower"),
    Metric("st_lpips", "ST-LPIPS", "lower"),
)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(one.mean() - other.mean())


def ratio_of_rests(one: np.ndarray, other: np.ndarray) -> float:
    """Of similarities: the ratio of what they lack of 1."""
    return ratio(1 - one, 1 - other)


@dataclass(frozen=True)
class Shown(Generic[T]):
    """Pictures whose every metric is a figure, `NAME_METRIC`. With `over` each is set against that of other pictures:
    as a ratio of errors, or of PSNR as a difference in dB.

    `better`: which way of the ratio is better; `one`: what a ratio of 1 (or a difference of 0) means, in words.
    """

    name: str
    of: Of[T]
    over: Of[T] | None = None
    better: Better = ""
    one: str = ""
    control: str = ""
    checked_by: str = ""

    def figure(self, metric: Metric) -> Figure[T]:
        """What the metric says of these pictures."""

        def arrays(values: T) -> tuple[Values, ...]:
            found = [of(values) for of in (self.of, self.over) if of is not None]
            return tuple(one if isinstance(one, Missing) else getattr(one, metric.name) for one in found)

        name = f"{self.name}_{metric.name}"
        more: dict[str, Any] = {"control": self.control}
        if self.over is None:
            better: Better = "" if self.control else metric.better
            return Figure(name, arrays, unit=metric.unit, better=better, positive=metric.better == "lower", **more)
        more["checked_by"] = self.checked_by and f"{self.checked_by}_{metric.name}"
        if metric.unit == "dB":
            turned: dict[Better, Better] = {"lower": "higher", "higher": "lower", "": ""}
            more |= {"better": turned[self.better], "one": self.one and f"0 dB: {self.one}", "positive": False}
            return Figure(name, arrays, difference, "dB", **more)
        more |= {"better": self.better, "one": self.one and f"1.0: {self.one}"}
        return Figure(name, arrays, ratio_of_rests if metric.better == "higher" else ratio, "ratio", **more)


def picture_figures(name: str, shown: Sequence[Shown[T]], values: T) -> tuple[Figure[T], ...]:
    """The figures in pixels of an evaluation. What is missing is one figure, which says why: of all pictures, of those
    of another model, or of a metric."""
    figures: list[Figure[T]] = []
    first = shown[0].of(values)
    if isinstance(first, Missing):
        return (_lacking(f"{name}_in_pixels", first),)
    found = {metric: getattr(first, metric.name) for metric in METRICS}
    metrics = [metric for metric, value in found.items() if not isinstance(value, Missing)]
    for one in shown:
        lacks = next((x for of in (one.of, one.over) if of and isinstance(x := of(values), Missing)), None)
        if lacks is not None:
            figures.append(_lacking(f"{one.name}_in_pixels", lacks))
        else:
            figures += map(one.figure, metrics)
    missing = [(m, value) for m, value in found.items() if isinstance(value, Missing) and value != INSTEAD]
    return (*figures, *(_lacking(f"{name}_{metric.name}", value) for metric, value in missing))


def _lacking(name: str, why: Missing) -> Figure[Any]:
    return Figure(name, lambda values: (why,))
