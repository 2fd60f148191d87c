"""From what was measured of an experiment's models to its table, with the published numbers beside, and its figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lawm.evaluation import Omission, Result
from lawm.report import Cell, Curves, Estimate, PointGroup, Points, Section, Series, Table, Text
from lawm.reproduction.experiments import Column, Experiment, Variant

METRICS = (("lpips", "LPIPS"), ("st_lpips", "ST-LPIPS"), ("pixels_l1", "pixel L1"))
"""Suffixes of figures in pixels, the one nearest to what the paper prints first."""


@dataclass(frozen=True)
class Model:
    """What was measured of a variant trained with a seed; `step`: of that checkpoint."""

    variant: Variant
    seed: int
    step: int
    results: tuple[Result, ...]
    omitted: tuple[Omission, ...] = ()

    def figure(self, name: str) -> Result | None:
        return next((one for one in self.results if one.name == name), None)


def over_seeds(models: Sequence[Model], name: str) -> Estimate | None:
    """A figure of the same variant: of one seed with its interval over videos, of several their mean with the lowest
    and the highest."""
    found = [one for model in models if (one := model.figure(name)) is not None]
    if not found:
        return None
    if len(found) == 1:
        return Estimate(found[0].value, found[0].low, found[0].high)
    values = [one.value for one in found]
    return Estimate(float(np.mean(values)), min(values), max(values))


def newest(models: Sequence[Model]) -> list[Model]:
    """Of each variant and seed the one of the last step."""
    last: dict[tuple[tuple[str, str], int], Model] = {}
    for model in models:
        key = model.variant.key, model.seed
        if key not in last or model.step >= last[key].step:
            last[key] = model
    return list(last.values())


def pixel_columns(experiment: Experiment, models: Sequence[Model]) -> list[tuple[Column, str, str]]:
    """(column, name of its figure in pixels, metric in words) where decoders gave such figures."""
    names = {one.name for model in models for one in model.results}
    found = []
    for suffix, words in METRICS:
        found = [(c, f"{c.pixels}_{suffix}", words) for c in experiment.columns if f"{c.pixels}_{suffix}" in names]
        if found:
            break
    return found


def experiment_table(experiment: Experiment, models: Sequence[Model]) -> Table:
    """A row for each variant: its figures, in states and with decoders in pixels, then what was published."""
    models = newest(models)
    variants = list({model.variant.key: model.variant for model in models}.values())
    pixels = pixel_columns(experiment, models)
    keys = [c for c in experiment.columns if c.key and any(c.key in row for row in experiment.published.values())]
    others = sorted({key for row in experiment.published.values() for key in row} - {c.key for c in keys})
    columns = ["Latents", "Capacity", "Setting", *(c.title for c in experiment.columns)]
    columns += [f"{column.title}, {words}" for column, _, words in pixels]
    columns += [f"published {c.title}" for c in keys] + [f"published {key}" for key in others]
    rows: list[list[Cell]] = []
    for variant in variants:
        own = [model for model in models if model.variant.key == variant.key]
        said = experiment.published.get(variant.key, {})
        cells: list[Cell] = [variant.latents, variant.capacity, variant.said]
        cells += [over_seeds(own, column.name) for column in experiment.columns]
        cells += [over_seeds(own, name) for _, name, _ in pixels]
        cells += [said.get(column.key) for column in keys] + [said.get(key) for key in others]
        rows.append(cells)
    return Table(f"{experiment.title}: {experiment.source}", columns, rows, caption=caption(experiment, models))


def caption(experiment: Experiment, models: Sequence[Model]) -> str:
    """What the values are, on which data, and how they differ from what was published."""
    seeds = len({model.seed for model in models})
    spread = f"Means of {seeds} seeds [lowest, highest]." if seeds > 1 else "One seed, 95 % intervals over videos."
    data = sorted({one.dataset for model in models for one in model.results if one.dataset})
    steps = sorted({model.step for model in models})
    trained = f"Trained for {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "") + " steps."
    return " ".join([spread, f"Data: {'; '.join(data) or 'none'}.", trained, experiment.differs, *experiment.absent])


def missing_section(experiment: Experiment, models: Sequence[Model]) -> list[Section]:
    """Which columns have no value, and why."""
    lines = []
    for column in experiment.columns:
        without = [model for model in newest(models) if model.figure(column.name) is None]
        if not without:
            continue
        reasons = {one.reason for model in without for one in model.omitted if _tells(one.name, column.name)}
        why = "; ".join(sorted(reasons)) or "not measured"
        lines.append(f"{column.title}: no value of {len(without)} of {len(newest(models))} models ({why}).")
    return [Text("What is missing", "\n\n".join(lines))] if lines else []


def _tells(omitted: str, figure: str) -> bool:
    """Whether an omission of an evaluation, or a figure, is about this figure."""
    words = {"control": "controller", "planning": "planning", "capacity": "error", "leakage": "leakage"}
    return omitted == figure or words.get(omitted, omitted) in figure


def figure_sections(experiment: Experiment, models: Sequence[Model]) -> list[Section]:
    """The experiment's figures: over the steps of training, over another figure, or over the variants' x."""
    if experiment.over_steps:
        return [_over_steps(experiment, models, name) for name in experiment.curves]
    models = newest(models)
    measured_x = any(model.figure(experiment.x_label) for model in models)
    sections = (_over(experiment, models, name, measured_x) for name in experiment.curves if name != experiment.x_label)
    return [one for one in sections if one is not None]


def _over_steps(experiment: Experiment, models: Sequence[Model], name: str) -> Curves:
    series = []
    for variant in {model.variant.key: model.variant for model in models}.values():
        own = [model for model in models if model.variant.key == variant.key]
        steps = sorted({model.step for model in own})
        at = [over_seeds([model for model in own if model.step == step], name) for step in steps]
        known = [(step, one) for step, one in zip(steps, at, strict=True) if one is not None]
        bands = [[nan_if_none(end) for end in ends] for ends in zip(*((e.low, e.high) for _, e in known), strict=True)]
        low, high = bands if known else ([], [])
        values = [one.value for _, one in known]
        series.append(Series(variant.capacity, [float(step) for step, _ in known], values, low, high))
    return Curves(f"{experiment.title}: {name}", series, experiment.x_label, name)


def nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


def _over(experiment: Experiment, models: Sequence[Model], name: str, measured_x: bool) -> Points | None:
    groups: dict[str, list[tuple[Estimate, Estimate, str]]] = {}
    for variant in {model.variant.key: model.variant for model in models}.values():
        own = [model for model in models if model.variant.key == variant.key]
        place = Estimate(variant.x, None, None) if variant.x is not None else None
        x, y = over_seeds(own, experiment.x_label) if measured_x else place, over_seeds(own, name)
        if x is not None and y is not None:
            axis = variant.capacity.partition(":")[0] if ":" in variant.capacity else ""
            group = f"{variant.latents}, {axis}" if axis else variant.latents
            groups.setdefault(group, []).append((x, y, variant.said if not axis else variant.capacity))
    if not groups:
        return None
    drawn = []
    for group, points in groups.items():
        points.sort(key=lambda one: one[0].value)
        if not measured_x:  # what the x of each group is differs: places in order
            points = [(Estimate(float(i), None, None), y, label) for i, (_, y, label) in enumerate(points)]
        drawn.append(PointGroup(group, *map(list, zip(*points, strict=True))))  # type: ignore[arg-type]
    label = experiment.x_label if measured_x else f"{experiment.x_label}, in order"
    return Points(f"{experiment.title}: {name}", drawn, label, name)
