"""Evaluations of a checkpoint, spread over Ray actors. Each actor reads its own clips.

A unit of work is a set of plan positions, put together so that each clip finds partners from other videos in it
whatever the number of actors. What evaluations fit (the code that copies) is fitted first, on clips of the
videos of the other side of the split.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch

from lawm.cluster.actors import Actors
from lawm.cluster.parts import Found, Parts, Unit, said_of_all
from lawm.cluster.session import TRAIN, Need, in_short, say
from lawm.config import Config, LawmError, parse_config
from lawm.data import ClipReader, EmptySplit, Index, Labels, Sample, Split
from lawm.evaluation import (
    SUITE,
    Clips,
    Evaluation,
    Kept,
    Measured,
    Missing,
    Omission,
    PerClip,
    Subject,
    data_name,
    deal,
    given,
    summarize,
)
from lawm.model import Langevin, check_state_a_frame, states_per_clip
from lawm.training import (
    autocast,
    check_actions,
    check_baseline,
    check_cache,
    check_child,
    check_free_of_the_past,
    collate,
    config_in_use,
    load_controller,
    load_decoder,
    load_model,
    pick_device,
    read_about,
)

logger = logging.getLogger(__name__)

EVALUATIONS = tuple(SUITE)
FAILED = "it failed: "
"""How the reason begins where an evaluation has a fault."""
OTHER_SIDE: dict[Split, Split | None] = {"val": "train", "train": "val", "all": None}


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    lower = "cluster.evaluate_actors=1"
    return [Need("evaluation actor", cluster.evaluate_actors, 1.0, cluster.gpus_per_worker, TRAIN, lower)]


@dataclass(frozen=True)
class Company:
    """Checkpoints: the model that is measured, and what it is set beside."""

    model: str
    deterministic: str | None = None
    unconstrained: str | None = None
    controller: str | None = None
    decoder: str | None = None
    """For figures in pixels, beside those in states."""

    @property
    def baselines(self) -> dict[str, str]:
        both = {"deterministic": self.deterministic, "unconstrained": self.unconstrained}
        return {name: uri for name, uri in both.items() if uri}

    @property
    def children(self) -> dict[str, str]:
        """What was trained on the model, by kind."""
        both = {"controller": self.controller, "decoder": self.decoder}
        return {kind: uri for kind, uri in both.items() if uri}

    @property
    def all(self) -> list[str]:
        return [self.model, *self.baselines.values(), *self.children.values()]

    def frames(self, config: Config) -> bool:
        """Whether clips are decoded although there is a cache: true pictures are needed beside those of a decoder."""
        return self.decoder is not None and config.data.index is not None


class Evaluator:
    """Holds the models; turns units into values per clip."""

    def __init__(self, config: Config, company: Company) -> None:
        if config.cluster.evaluate_actors > 1:
            torch.set_num_threads(1)
        self.config, self.company = config, company
        self.device = pick_device()
        self.readers: dict[tuple[Split, bool], ClipReader] = {}

    @cached_property
    def subject(self) -> Subject:
        """The models, loaded with the first unit: a checkpoint that cannot be loaded is that unit's error."""
        e = self.config.evaluate
        model, parent = load_model(self.company.model, config=self.config)
        others = {}
        for name, uri in self.company.baselines.items():
            others[name] = load_model(uri, model.encoder)[0].to(self.device)
            others[name].duplicate = model.duplicate
        load: dict[str, Any] = {"controller": load_controller, "decoder": load_decoder}
        more: dict[str, Any] = dict(others)
        for kind, uri in self.company.children.items():
            more[kind] = load[kind](uri, model, parent).to(self.device)
        return Subject(
            model.to(self.device),
            **more,
            context=e.context,
            cycle_seconds=e.cycle_seconds,
            cut_positions=e.cut_positions,
            langevin=Langevin(e.langevin_steps, e.langevin_step, e.langevin_noise),
            fps=self.config.data.clip.fps,
            seed=e.seed,
        )

    def clips(self, unit: Unit) -> tuple[Clips | None, list[str]]:
        """The unit's good clips (None if they leave no two videos, or clips, to pair), and what was refused."""
        key = (unit.split, unit.labelled)
        if key not in self.readers:
            frames = not unit.fits and self.company.frames(self.config)
            self.readers[key] = ClipReader(self.config, unit.split, unit.labelled, frames)
            cache = self.readers[key].cache
            if cache is not None:
                check_cache(cache, self.config, self.subject.model)
        reader = self.readers[key]
        found = [reader.try_sample(position) for position in unit.positions]
        good = [one for one in found if isinstance(one, Sample)]
        refused = [one.message for one in found if not isinstance(one, Sample)]
        groups = [one.group for one in good]
        alone = len(good) < 2 or (len(set(groups)) < 2 and unit.several)
        if alone and not unit.fits:
            return None, [*refused, *(f"{one.key}: left without a clip of another video beside it" for one in good)]
        if not good:
            return None, refused
        seed, other = self.config.evaluate.seed * 1_000_003 + unit.number, None
        if self.others is not None and not unit.fits and "leakage" in unit.which:
            beside = list(itertools.islice(good_clips(self.others, unit.number * len(unit.positions)), len(good)))
            other = Clips(self.subject.model, collate(beside).to(self.device), [one.group for one in beside])
        return Clips(self.subject.model, collate(good).to(self.device), groups, seed, other), refused

    @cached_property
    def others(self) -> ClipReader | None:
        """Clips of the data set that is cut over from, where there is one."""
        return other_clips(self.config)

    @torch.no_grad()
    def run(self, unit: Unit, fitted: dict[str, Any]) -> Found:
        """Values of every evaluation that the unit is for; `fitted`: what they fitted beforehand."""
        with autocast(self.device, self.config.train.precision):
            clips, refused = self.clips(unit)
            values = {} if clips is None else {name: self.one(SUITE[name], unit, clips, fitted) for name in unit.which}
        names = () if clips is None else tuple(f"{one.key}@{one.start_s:.6g}" for one in clips.batch.clips)
        return Found(values, refused, names)

    def one(self, evaluation: Evaluation[Any], unit: Unit, clips: Clips, fitted: dict[str, Any]) -> PerClip | Missing:
        """What one evaluation makes of the clips, or why it has nothing; one that fails costs itself alone."""
        if lacks := evaluation.lacks(self.subject):
            return Missing(lacks)
        try:
            return self.made(evaluation, unit, clips, fitted)
        except Exception as error:
            logger.exception("the evaluation %s failed on unit %d", evaluation.name, unit.number)
            return Missing(f"{FAILED}{in_short(error)}")

    def made(self, evaluation: Evaluation[Any], unit: Unit, clips: Clips, fitted: dict[str, Any]) -> PerClip | Missing:
        """What an evaluation measures on the clips, or collects of them for what it fits."""
        if evaluation.fit is None:
            return evaluation.measure(self.subject, clips, None)
        if unit.fits:
            return evaluation.fit.collect(self.subject, clips)
        ready = fitted[evaluation.name]
        if isinstance(ready, Missing) and evaluation.fit.required:
            return ready
        return evaluation.measure(self.subject, clips, ready)


def other_clips(config: Config) -> ClipReader | None:
    """The clips of `evaluate.cut_with`; None where there is none. Raises LawmError where it has none that fits."""
    if config.evaluate.cut_with is None:
        return None
    gone = {"cache": None, "labels": None, "keys": None, "mixture": ()}
    data = config.data.model_copy(update={"index": config.evaluate.cut_with, **gone})
    return ClipReader(config.model_copy(update={"data": data}), "all", False, True)


def good_clips(reader: ClipReader, first: int) -> Iterator[Sample]:
    """Its clips from a position on, round and round; raises LawmError where a whole round gives none."""
    missed = 0
    for position in itertools.count(first):
        found = reader.try_sample(position % len(reader.plan))
        missed = 0 if isinstance(found, Sample) else missed + 1
        if isinstance(found, Sample):
            yield found
        elif missed >= len(reader.plan):
            raise LawmError(f"{reader.config.data.index}: none of its clips can be read; the first: {found.message}")


# ---------------------------------------------------------------- what is to be done
@dataclass(frozen=True)
class Work:
    """Units that measure, units that are collected for fits, why others have none, and what is to be said."""

    units: list[Unit]
    fits: list[Unit]
    missing: dict[str, Missing]
    unfitted: dict[str, Missing]
    notes: list[str]
    plans: set[str]
    """Fingerprints of the plans whose positions the units name."""
    reader: ClipReader
    videos: dict[str, Index]
    labels: Labels | None

    @property
    def scene(self) -> str:
        """What moves in the pictures that no action moves, where the labels say so."""
        return "" if self.labels is None else self.labels.meaning.scene

    @property
    def names(self) -> tuple[str, ...]:
        """What the numbers of an action are called."""
        return () if self.labels is None else tuple(dimension.name for dimension in self.labels.meaning.actions)


def units_of(
    reader: ClipReader, split: Split, labelled: bool, clips: int, batch: int, which: Sequence[str], fits: bool = False
) -> tuple[list[Unit], list[str]]:
    """The plan's first clips, dealt into units; and what had to be left out."""
    clips = min(clips, len(reader.plan))
    rows = reader.plan.rows(np.arange(clips))
    groups = [reader.index.group(int(video)) for video in rows.video]
    dealt = deal(groups, batch)
    several = len(set(groups)) > 1
    used = sum(map(len, dealt))
    said = f"{clips - used} of {clips} clips left out: they are of one video, and the others have too few to pair"
    units = [Unit(split, labelled, i, tuple(part), tuple(which), several, fits) for i, part in enumerate(dealt)]
    return units, [said] if used < clips else []


def plan_work(config: Config, company: Company, which: Sequence[str]) -> Work:
    """What is to be read and measured. Raises LawmError where nothing can be."""
    e, split = config.evaluate, config.evaluate.split
    trained = parse_config(read_about(company.model)["config"], company.model)
    always = trained.model.bottleneck.kind == "true_actions"
    frames = company.frames(config)
    plain = ClipReader(config, split, always, frames)
    labelled: ClipReader | Missing = plain if always else labelled_reader(config, split, frames)
    if isinstance(labelled, ClipReader) and labelled.plan.fingerprint() == plain.plan.fingerprint():
        plain = labelled  # the same clips: read and encoded once
    if min(e.clips, len(plain.plan)) < 2:
        raise LawmError(f"{split} split: {len(plain.plan)} clip, and the controls need two; {more_clips(split)}")
    missing: dict[str, Missing] = {}
    unfitted: dict[str, Missing] = {}
    groups: dict[int, tuple[ClipReader, bool, list[str]]] = {}
    for name in which:
        wants = SUITE[name].labelled
        reader = labelled if wants else plain
        if isinstance(reader, Missing):
            missing[name] = reader
        elif min(e.clips, len(reader.plan)) < 2:
            missing[name] = Missing(f"{split} split: {len(reader.plan)} labelled clip, and the controls need two")
        else:
            groups.setdefault(id(reader), (reader, wants or reader is labelled, []))[2].append(name)
    units: list[Unit] = []
    fits: list[Unit] = []
    notes: list[str] = []
    plans: set[str] = set()
    videos: dict[str, Index] = {}
    for reader, with_actions, names in groups.values():
        own, said = units_of(reader, split, with_actions, e.clips, e.batch, names)
        units += own
        notes += said
        plans.add(reader.plan.fingerprint())
        videos |= dict.fromkeys(names, videos_of(reader, own))
    for name in (n for n in which if n not in missing and SUITE[n].fit is not None):
        other = other_side(config, split, SUITE[name].labelled or always)
        if isinstance(other, Missing):
            unfitted[name] = other
            continue
        fit = SUITE[name].fit
        assert fit is not None
        reader, side = other
        clips = min(fit.clips or e.clips, e.clips)
        own, _ = units_of(reader, side, SUITE[name].labelled or always, clips, e.batch, [name], fits=True)
        fits += own
        plans.add(reader.plan.fingerprint())
    if e.cut_with is not None and "leakage" in which:
        others = other_clips(config)
        assert others is not None
        notes.append(f"across: the frames before those cuts are of {e.cut_with}, {len(others.plan)} clips")
        plans.add(others.plan.fingerprint())
    labels = plain.labels or (None if isinstance(labelled, Missing) else labelled.labels)
    return Work(units, fits, missing, unfitted, notes, plans, plain, videos, labels)


def videos_of(reader: ClipReader, units: Sequence[Unit]) -> Index:
    """The videos that the units' clips are taken of."""
    positions = np.array([position for unit in units for position in unit.positions], dtype=np.int64)
    return reader.index.filtered(np.isin(np.arange(len(reader.index)), reader.plan.rows(positions).video))


def more_clips(split: Split) -> str:
    return "hold out more (data.val_fraction)" if split == "val" else "give more or longer videos"


def labelled_reader(config: Config, split: Split, frames: bool) -> ClipReader | Missing:
    """Labelled clips of the split, or why there are none."""
    if config.data.labels is None:
        return given("table of actions", "--labels")
    try:
        return ClipReader(config, split, True, frames)
    except EmptySplit as error:
        return Missing(str(error))


def other_side(config: Config, split: Split, labelled: bool) -> tuple[ClipReader, Split] | Missing:
    """Clips of the videos that are not measured, for what is fitted."""
    side = OTHER_SIDE[split]
    if side is None:
        return Missing("every video is measured, none is left to fit it on: measure with --set evaluate.split=val")
    try:
        return ClipReader(config, side, labelled=labelled), side
    except EmptySplit as error:
        return Missing(f"it is fitted on the {side} split's videos: {error}")


def check_asked(config: Config, company: Company, which: Sequence[str]) -> Work:
    """Raises LawmError where the checkpoints or the data cannot give what is asked for; else what there is to do."""
    unknown = sorted(set(which) - set(EVALUATIONS))
    if unknown:
        raise LawmError(f"no evaluation {', '.join(unknown)}; there are {', '.join(EVALUATIONS)}")
    check_context(config)
    trained = parse_config(read_about(company.model)["config"], company.model)
    measured = config_in_use(trained, config, company.model)
    for name, uri in company.baselines.items():
        check_baseline(measured, parse_config(read_about(uri)["config"], uri), uri, name)
    for kind, uri in company.children.items():
        check_child(uri, kind, read_about(company.model)["fingerprint"])
    if company.controller is not None:
        check_state_a_frame(config.encoder, config.data.clip)
    work = plan_work(config, company, which)
    if work.labels is not None:
        for uri in company.all:
            check_actions(uri, work.labels)
    if "leakage" in which:
        check_free_of_the_past(work.reader.cache, "leakage (leave it out with --which)")
    return work


def check_context(config: Config) -> None:
    """Raises LawmError where the context leaves no state of a clip to predict."""
    states = states_per_clip(config.encoder, config.data.clip)
    if config.evaluate.context >= states:
        raise LawmError(
            f"evaluate.context = {config.evaluate.context} leaves nothing of {states} states to predict; lower it"
        )


# ---------------------------------------------------------------- doing it
def evaluate(
    config: Config,
    company: Company,
    which: Sequence[str] = EVALUATIONS,
    dataset: str | None = None,
    parts_in: str | None = None,
) -> Measured:
    """Results of the chosen evaluations with intervals, n and controls; what could not be measured, with its reason.

    `dataset`: what the data are called; whether they are held out is found out, and said with it. `parts_in`: a folder
    in which units that are done are kept until all are, so that an evaluation that was killed goes on (which is said).
    Raises LawmError.
    """
    work = check_asked(config, company, which)
    e, step = config.evaluate, int(read_about(company.model)["step"])
    dataset = dataset or work.scene or None
    called = {id(videos): data_name(dataset, videos, company.all) for videos in work.videos.values()}
    missing = dict(work.missing)
    refused: list[str] = []
    count = max(1, min(config.cluster.evaluate_actors, len(work.units)))
    kept = Parts(parts_in, lambda: said_of_all(config, company.all, work.plans))
    with Actors(Evaluator, (config, company), count, config.cluster) as actors:
        collected = spread(actors, work.fits, kept, {})
        fits, unread = fit_all(collected, work, e.seed)
        found = spread(actors, work.units, kept, ray.put(fits))
    parts: dict[str, list[PerClip]] = {one: [] for one in which}
    clips: dict[str, list[str]] = {one: [] for one in which}
    for one in found:
        refused += one.refused
        for name, values in one.values.items():
            if isinstance(values, Missing):
                missing[name] = values
            else:
                parts[name].append(values)
                clips[name] += one.clips
    measured = Measured(notes=[*work.notes, *refusals(refused), *refusals(unread, "clips to fit on")])
    for name in which:
        place = called[id(work.videos[name])] if name in work.videos else dataset or ""
        if name in missing:
            measured.omitted.append(Omission(name, missing[name].reason, place))
        elif not parts[name]:
            measured.omitted.append(Omission(name, "no two of its clips could be read", place))
        else:
            pooled = together(SUITE[name], parts[name], e.seed)
            if isinstance(pooled, Missing):
                measured.omitted.append(Omission(name, pooled.reason, place))
                continue
            measured += said_of(SUITE[name], pooled, place, step, work.names, e.bootstrap, e.seed)
            measured.kept.append(Kept(name, place, step, tuple(clips[name]), pooled, work.names))
    kept.forget()
    return measured


def spread(actors: Actors, units: Sequence[Unit], kept: Parts, fitted: Any) -> list[Found]:
    """What every unit found, in the order of the units whichever was done first; units that were done before an
    interruption are not done again, which is said."""
    found = kept.done(units)
    if found:
        what = "units to fit on" if units[0].fits else "units"
        say(f"{len(found)} of {len(units)} {what} were measured before, and are not measured again ({kept.folder})")
    left = [number for number in range(len(units)) if number not in found]

    def keep(place: int, one: Found) -> None:
        number = left[place]
        found[number] = one
        if not any(isinstance(v, Missing) and v.reason.startswith(FAILED) for v in one.values.values()):
            kept.keep(units[number], one)

    actors.spread("run", [units[number] for number in left], keep, fitted, what="unit")
    return [found[number] for number in range(len(units))]


def fit_all(collected: Sequence[Found], work: Work, seed: int) -> tuple[dict[str, Any], list[str]]:
    """What every evaluation fits on what was collected of clips that are not measured, or why it has nothing; and the
    clips of these that were refused."""
    values: dict[str, list[Any]] = {}
    fitted: dict[str, Any] = dict(work.unfitted)
    for found in collected:
        for name, one in found.values.items():
            if isinstance(one, Missing):
                fitted[name] = one
            else:
                values.setdefault(name, []).append(one)
    for name in {unit.which[0] for unit in work.fits} - set(fitted):
        own, fit = values.get(name, []), SUITE[name].fit
        assert fit is not None
        fitted[name] = fit.make(own, seed) if own else Missing("none of the clips to fit it on can be read")
    said = [message for found in collected for message in found.refused]
    return fitted, list(dict.fromkeys(said))  # a clip that two evaluations would fit on is one clip


def together(evaluation: Evaluation[Any], parts: Sequence[PerClip], seed: int) -> PerClip | Missing:
    """The values of all units, pooled where the evaluation pools them; or why that cannot be."""
    values = type(parts[0]).join(parts)
    if evaluation.pool is None:
        return values
    try:
        return evaluation.pool(values, seed)
    except LawmError as error:
        return Missing(str(error))


def said_of(
    evaluation: Evaluation[Any],
    values: PerClip,
    dataset: str,
    step: int,
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> Measured:
    """The figures of one evaluation, from its values of all clips."""
    figures = (*evaluation.figures, *evaluation.more(values, names))
    said = evaluation.note(values, names)
    return summarize(figures, values, dataset, step, resamples, seed, said, evaluation.name)


def refusals(messages: Sequence[str], what: str = "clips") -> list[str]:
    """One line for the clips that were refused."""
    return [f"{len(messages)} {what} were refused; the first: {messages[0]}"] if messages else []
