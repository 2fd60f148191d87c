"""What a report shows of a checkpoint on clips: films, pictures and the use of its latents. Models are loaded, and
clips read, once for all of it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs._run import ANEW
from lawm import storage
from lawm.config import Config, LawmError
from lawm.report import Film, Films, Pictures, Section, Text, usage_sections

if TYPE_CHECKING:
    from lawm.data import Split
    from lawm.evaluation import Clips, Episode, Subject

USAGE_CLIPS = 64
"""Clips whose latents are counted."""


@dataclass(frozen=True)
class Company:
    """Checkpoints: the model that is shown, and what is shown beside it."""

    model: str
    deterministic: str | None = None
    controller: str | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Shown:
    """A split's first clips, and the models that are shown on them; `count`: how many clips are."""

    config: Config
    subject: "Subject"
    clips: "Clips"
    split: "Split"
    count: int

    @property
    def fps(self) -> float:
        """Frames a second of what is shown."""
        return self.config.data.clip.fps

    def episodes(self) -> "list[Episode] | Text":
        """Each clip with what the models make of it; or why it cannot be shown."""
        from lawm.evaluation import Missing, prediction_episodes

        found = prediction_episodes(self.subject, self.clips, self.count)
        return _no_pictures(found.reason) if isinstance(found, Missing) else found

    def transfers(self) -> list[Section]:
        """Actions of one clip on another."""
        from lawm.evaluation import Missing, transfer_episodes

        found = transfer_episodes(self.subject, self.clips, self.count)
        if isinstance(found, Missing):
            return []
        said = (
            "The latents inferred from the source move the target; those inferred again from that rollout move the "
            "source's first state. What moves, and not what is there, should go over."
        )
        return [strips("Actions of one clip on another", found, self.fps, said)]

    def cuts(self) -> list[Section]:
        """What is predicted of a scene cut."""
        from lawm.evaluation import Missing, cut_episodes

        found = cut_episodes(self.subject, self.clips, self.count)
        if isinstance(found, Missing):
            return []
        episodes, cut = found
        said = (
            f"Each frame is predicted from the true past and the latent inferred from it and the next; the cut is at "
            f"t + {cut / self.fps:g} s. Latents that carry the frame show the new scene there as well as without a cut."
        )
        return [strips("A scene cut", episodes, self.fps, said, cut)]

    def usage(self) -> list[Section]:
        """How the latents of the split's first clips are used."""
        from lawm.data import ClipReader, EmptySplit, first_clips
        from lawm.evaluation import Clips, Missing, latent_usage
        from lawm.training import collate

        try:
            samples = first_clips(ClipReader(self.config, self.split), USAGE_CLIPS)
        except EmptySplit as error:
            return usage_sections(Missing(str(error)))
        model, size = self.subject.model, self.config.evaluate.batch
        device = next(model.world_model.parameters()).device
        units = []
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            units.append(Clips(model, collate(part).to(device), [one.group for one in part]))
        return usage_sections(latent_usage(model, units))


def open_shown(config: Config, company: Company, split: "Split", count: int) -> Shown | Text:
    """The models and the split's first clips; or why there are no pictures, and the remedy."""
    from lawm.data import ClipReader, EmptySplit, first_clips
    from lawm.evaluation import Clips, Subject
    from lawm.training import check_actions, collate, load_controller, load_decoder, load_model, pick_device

    if not config.data.index:
        return _no_pictures("they are decoded from the videos. Give their index (--index URI)")
    labelled = company.controller is not None and config.data.labels is not None
    try:
        reader = ClipReader(config, split, labelled=labelled, frames=True)
    except EmptySplit as error:
        return _no_pictures(str(error))
    if labelled and reader.labels is not None:
        check_actions(str(company.controller), reader.labels)
    device = pick_device()
    model, parent = load_model(company.model, config=config)
    more: dict[str, Any] = {}
    if labelled:
        more["controller"] = load_controller(str(company.controller), model, parent).to(device)
    if company.decoder:
        more["decoder"] = load_decoder(company.decoder, model, parent).to(device)
    if company.deterministic:
        more["deterministic"] = load_model(company.deterministic, model.encoder)[0].to(device)
        more["deterministic"].duplicate = model.duplicate
    subject = Subject(model.to(device), **more, fps=config.data.clip.fps, seed=config.evaluate.seed)
    if company.decoder is None and config.encoder.kind != "pixels":
        return _no_decoder(company.model)
    samples = first_clips(reader, max(2, 2 * count))
    clips = Clips(model, collate(samples).to(device), [sample.group for sample in samples], config.evaluate.seed)
    return Shown(config, subject, clips, split, count)


def _no_pictures(reason: str) -> Text:
    return Text("Pictures", f"No pictures: {reason}")


def _no_decoder(model: str) -> Text:
    """That a decoder is missing, or is another checkpoint's."""
    from lawm.training import run_of

    usual = f"{run_of(model)}-decoder"
    if storage.exists(usual):
        return _no_pictures(f"{usual} belongs to another checkpoint than this run's newest. {ANEW}")
    train = f"lawm decoder --checkpoint {shlex.quote(model)} --out {shlex.quote(usual)}"
    return _no_pictures(f"states become pictures by a decoder of this model. Train one: {train}")


def strips(title: str, episodes: "Sequence[Episode]", fps: float, caption: str, cut: int | None = None) -> Pictures:
    """A row of frames for each of the episodes' rows; `cut`: the first frame after a scene cut."""
    frames = max(len(row.frames) + row.first for one in episodes for row in one.rows)
    rows: list[list[Any]] = []
    labels: list[str] = []
    headings: dict[int, str] = {}
    for one in episodes:
        headings[len(rows)] = one.name
        for row in one.rows:
            rows.append([None] * row.first + list(row.frames))
            labels.append(row.label)
    columns = [f"t + {i / fps:g} s" + (" (cut)" if i == cut else "") for i in range(frames)]
    return Pictures(title, rows, labels, columns, caption=caption, headings=headings)


def films(title: str, episodes: "Sequence[Episode]", fps: float, caption: str = "") -> Films:
    """The true frames and the rollouts of each episode, side by side."""
    from lawm.evaluation import FILM_ROWS

    found = []
    for one in episodes:
        rows = [row for row in one.rows if row.label in FILM_ROWS]
        found.append(Film(one.name, [FILM_ROWS[row.label] for row in rows], [row.frames for row in rows]))
    return Films(title, found, fps, caption)


def shown_sections(
    shown: Shown | Text, title: str, caption: str, more: bool = True
) -> tuple[list[Section], "list[Episode]"]:
    """Films and pictures of what is shown (`more`: with transfers and cuts), and the episodes themselves."""
    if isinstance(shown, Text):
        return [Text(title, shown.body)], []
    episodes = shown.episodes()
    if isinstance(episodes, Text):
        return [Text(title, episodes.body)], []
    sections: list[Section] = [
        films(f"{title}: films", episodes, shown.fps, f"{shown.fps:g} frames a second, the last one held. {caption}"),
        strips(title, episodes, shown.fps, caption),
    ]
    return [*sections, *(shown.transfers() if more else []), *(shown.cuts() if more else [])], episodes


def drawn_latents(run: str) -> list[Section]:
    """A picture of the latents that `sampling` inferred and drew at a run's newest step, where it was measured."""
    from lawm.evaluation import kept_values, suite_says, tables_below
    from lawm.report import latent_map

    try:
        tables = list(tables_below([run]))
    except LawmError:
        return []
    found = [(folder, row) for folder, rows in tables for row in rows if row.figure == "sampling_score"]
    sections: list[Section] = []
    for dataset in dict.fromkeys(row.dataset for _, row in found):
        folder, row = max(((f, r) for f, r in found if r.dataset == dataset), key=lambda one: one[1].step)
        try:
            values: Any = kept_values(folder, row, suite_says()).values
        except LawmError:
            continue
        inferred, drawn = (one.reshape(-1, one.shape[-1]) for one in (values.inferred, values.drawn))
        said = f"A classifier tells {row.value:.0%} of them apart (half: it cannot)."
        sections.append(latent_map(f"Drawn and inferred latents ({dataset})", inferred, drawn, row.seed, said))
    return sections


def check_clips(clips: int) -> None:
    """Raises LawmError where no clip is to be shown."""
    if clips < 1:
        raise LawmError(f"--clips {clips}: expected at least 1")
