"""Curves, points, bars, and a search's Pareto set, as PNG bytes; in light and dark."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lawm.report.sections import Bars, Curves, Estimate, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIGHT: dict[str, Any] = {
    "ink": "#1f2328", "muted": "#656d76", "grid": "#dfe3e8", "paper": "#ffffff",
    "lines": ("#2563c9", "#c8500a", "#0f8062", "#8a3fb0", "#a3700a", "#b3285f", "#4a6b85"),
}  # fmt: skip
_DARK: dict[str, Any] = {
    "ink": "#e6e9ed", "muted": "#9aa4af", "grid": "#343b44", "paper": "#191d22",
    "lines": ("#74a7ff", "#ff9a5c", "#4fc9a4", "#cf8ff0", "#e2b24a", "#ff7fae", "#9dbdd6"),
}  # fmt: skip
_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))  # colours come round again in another style


def _axes(theme: Mapping[str, Any], x_label: str, y_label: str, height: float = 3.4) -> "tuple[Figure, Axes]":
    """A themed figure of its own: pyplot's global state is left alone, and nothing is left open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), dpi=144, facecolor=theme["paper"], layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(theme["paper"])
    axes.grid(True, color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme["grid"])
    axes.tick_params(which="both", colors=theme["muted"], labelsize=9, length=0)
    axes.set_xlabel(x_label, color=theme["muted"], fontsize=9, parse_math=False)
    axes.set_ylabel(y_label, color=theme["muted"], fontsize=9, parse_math=False)
    return figure, axes


def _legend(axes: "Axes", handles: Sequence[Any], names: Sequence[str], theme: Mapping[str, Any]) -> None:
    # matplotlib leaves out names that begin with an underscore.
    shown = [f" {name}" if name.startswith("_") else name for name in names]
    legend = axes.legend(handles, shown, frameon=False, fontsize=9, labelcolor=theme["ink"])
    for text in legend.get_texts():
        text.set_parse_math(False)


def _png(figure: "Figure") -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", facecolor=figure.get_facecolor())
    return sink.getvalue()


def curves_plot(curves: Curves, dark: bool = False) -> bytes:
    """Curves as PNG bytes."""
    theme = _DARK if dark else _LIGHT
    figure, axes = _axes(theme, curves.x_label, curves.y_label)
    handles = []
    for i, series in enumerate(curves.series):
        colour = theme["lines"][i % len(theme["lines"])]
        style = _STYLES[1] if series.dashed else _STYLES[i // len(theme["lines"]) % len(_STYLES)]
        x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
        y = np.where(np.isfinite(y) & ((y > 0) | (not curves.log_y)), y, np.nan)
        marker = "o" if np.isfinite(y).sum() < 20 else None
        handles += axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, marker=marker, markersize=4)
        if series.low is not None and series.high is not None:
            axes.fill_between(x, series.low, series.high, color=colour, alpha=0.18, linewidth=0)
    if curves.log_y and any(np.isfinite(line.get_ydata()).any() for line in handles):
        axes.set_yscale("log")
    if handles:
        _legend(axes, handles, [series.name for series in curves.series], theme)
    return _png(figure)


def points_plot(points: Points, dark: bool = False) -> bytes:
    """Points with the intervals of both figures as PNG bytes. Those whose x or y is not finite are left out."""
    theme = _DARK if dark else _LIGHT
    figure, axes = _axes(theme, points.x_label, points.y_label, height=3.8)
    handles, names = [], []
    for i, group in enumerate(points.groups):
        colour, style = theme["lines"][i % len(theme["lines"])], "-" if group.joined else ""
        known = [j for j, (a, b) in enumerate(zip(group.x, group.y, strict=True)) if _finite(a) and _finite(b)]
        if not known:
            continue
        x, y = [group.x[j] for j in known], [group.y[j] for j in known]
        handles += axes.plot(
            [e.value for e in x], [e.value for e in y], marker="o", markersize=5, linestyle=style, linewidth=1.2,
            color=colour,
        )  # fmt: skip
        names.append(group.name)
        axes.errorbar(
            [e.value for e in x], [e.value for e in y], xerr=_reach(x), yerr=_reach(y), fmt="none", ecolor=colour,
            elinewidth=1, alpha=0.5,
        )  # fmt: skip
        place: dict[str, Any] = {
            "xytext": (5, 5),
            "textcoords": "offset points",
            "fontsize": 8,
            "color": theme["muted"],
        }
        for j in known if group.labels else ():
            at = group.x[j].value, group.y[j].value
            axes.annotate(group.labels[j], at, parse_math=False, **place)
    axes.margins(0.12)
    if len(handles) > 1:
        _legend(axes, handles, names, theme)
    return _png(figure)


def _finite(estimate: Estimate) -> bool:
    return math.isfinite(estimate.value)


def _reach(estimates: Sequence[Estimate]) -> list[list[float]]:
    """How far each interval reaches below and above its value; 0 where there is none."""
    low = [0.0 if e.low is None else max(0.0, e.value - e.low) for e in estimates]
    high = [0.0 if e.high is None else max(0.0, e.high - e.value) for e in estimates]
    return [low, high]


def bars_plot(bars: Bars, dark: bool = False) -> bytes:
    """Bars as PNG bytes; more than 200 of them as one stepped area."""
    from matplotlib.ticker import MaxNLocator

    theme = _DARK if dark else _LIGHT
    figure, axes = _axes(theme, bars.x_label, bars.y_label)
    axes.grid(False, axis="x")
    at = np.arange(len(bars.heights)) + bars.start
    heights, colour = np.asarray(bars.heights, np.float64), theme["lines"][0]
    if len(at) > 200:
        axes.fill_between(at, heights, step="mid", color=colour, linewidth=0)
    else:
        axes.bar(at, heights, width=0.85, color=colour)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    return _png(figure)


def pareto_set(x: Sequence[float], y: Sequence[float], minimize: tuple[bool, bool] = (True, True)) -> list[int]:
    """Indices of the points that no other point beats in one objective without losing in the other, by x.

    Of equal points all are kept; points with a value that is not finite are left out.
    """
    signs = [1.0 if smaller else -1.0 for smaller in minimize]
    points = [(signs[0] * a, signs[1] * b, i) for i, (a, b) in enumerate(zip(x, y, strict=True))]
    points = sorted(point for point in points if math.isfinite(point[0]) and math.isfinite(point[1]))
    kept: list[tuple[float, float, int]] = []
    for point in points:
        if not kept or point[1] < kept[-1][1] or point[:2] == kept[-1][:2]:
            kept.append(point)
    return [point[2] for point in kept]


def pareto_plot(
    x: Sequence[float],
    y: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    labels: Sequence[str] = (),
    minimize: tuple[bool, bool] = (True, True),
    dark: bool = False,
) -> bytes:
    """Two objectives of a search, a point a trial, as PNG bytes; the Pareto set is joined and carries its `labels`."""
    theme = _DARK if dark else _LIGHT
    figure, axes = _axes(theme, x_label, y_label, height=4.2)
    best = pareto_set(x, y, minimize)
    known = [i for i, (a, b) in enumerate(zip(x, y, strict=True)) if math.isfinite(a) and math.isfinite(b)]
    rest = [i for i in known if i not in set(best)]
    handles: list[Any] = []
    names: list[str] = []
    if rest:
        handles.append(axes.scatter([x[i] for i in rest], [y[i] for i in rest], s=26, color=theme["muted"], alpha=0.7))
        names.append("other trials")
    if best:
        handles += axes.plot([x[i] for i in best], [y[i] for i in best], "o-", color=theme["lines"][0], linewidth=1.5)
        names.append("Pareto set")
        place: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 8, "color": theme["ink"]}
        for i in best if labels else ():
            axes.annotate(labels[i], (x[i], y[i]), parse_math=False, **place)
    if len(known) < len(x):
        handles += axes.plot([], [], " ")
        names.append(f"{len(x) - len(known)} of {len(x)} trials gave no value for both")
    if handles:
        _legend(axes, handles, names, theme)
    return _png(figure)
