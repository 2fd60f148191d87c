"""Planning episodes over Ray actors: each finished episode is one row, a rerun skips finished ones."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lawm.cluster.actors import Actors
from lawm.cluster.session import TRAIN, Need
from lawm.config import Config, LawmError
from lawm.data import BadClip, ClipReader, Shown, Split, shown_by
from lawm.evaluation import Measured, data_name
from lawm.model import check_state_a_frame
from lawm.planning import (
    Episodes,
    Task,
    Used,
    check_units,
    episode_config,
    episode_values,
    in_units,
    remarks,
    summarize_episodes,
)
from lawm.report import Film, film_bytes
from lawm.simulation import check_world
from lawm.storage import exists, is_s3, join, read_bytes, write_bytes
from lawm.training import check_actions, check_free_of_the_past, read_about

ON_A_GPU = 8
"""Episodes of one call where `plan.batch` does not say."""


def needs(config: Config) -> list[Need]:
    cluster = config.cluster
    return [Need("planning actor", cluster.plan_actors, 1.0, cluster.gpus_per_worker, TRAIN, "cluster.plan_actors=1")]


class PlanningActor:
    """`Episodes` in an actor."""

    def __init__(self, config: Config, used: Used, shown: Shown) -> None:
        if config.cluster.plan_actors > 1:
            torch.set_num_threads(1)
        self.episodes = Episodes(config, used, shown)

    def run(self, tasks: Sequence[Task]) -> list[dict[str, Any] | BadClip]:
        return self.episodes.run(tasks)


FREE = ("episodes", "batch", "chunk", "films")
"""Fields of `plan` that change no episode."""


def identity(config: Config, used: Used) -> dict[str, Any]:
    """What rows must share to be of one experiment."""
    said: dict[str, Any] = {k: v for k, v in config.plan.model_dump(mode="json").items() if k not in FREE}
    said |= {name: read_about(uri)["fingerprint"] for name, uri in used.given.items()}
    clips = episode_config(config)
    splits: tuple[Split, Split] = ("val", "train")
    for split in splits:
        said[f"{split}_clips"] = ClipReader(clips, split, labelled=True).plan.fingerprint()
    said["labels"] = hashlib.blake2b(read_bytes(config.data.labels or ""), digest_size=8).hexdigest()
    return said


def label_ranges(config: Config) -> dict[str, list[float]]:
    """Dimension of the actions -> the training split's percentiles that plans keep to, in the labels' units."""
    reader = ClipReader(episode_config(config), "train", labelled=True)
    assert reader.labels is not None
    shown = shown_by(reader, config.plan.percentiles)
    ends = zip(reader.labels.meaning.actions, shown.low_A.tolist(), shown.high_A.tolist(), strict=True)
    return {d.name: [low, high] for d, low, high in ends}


def labelled_clips(config: Config, used: Used) -> int:
    """Held-out labelled clips as long as an episode. Raises LawmError where they are fewer than the episodes, or where
    their actions are not those that the checkpoints take."""
    total = config.plan.episodes
    check_state_a_frame(config.encoder, config.data.clip)
    reader = ClipReader(episode_config(config), "val", labelled=True)
    check_free_of_the_past(reader.cache, "planning")
    held_out = len(reader.plan)
    assert reader.labels is not None
    for name, uri in used.given.items():
        kind = read_about(uri)["kind"]
        if kind != ("latent_action" if name == "model" else name):
            raise LawmError(f"{uri} holds a {kind}, not a {name}")
        check_actions(uri, reader.labels)
    if used.controller is None and read_about(used.model)["config"]["model"]["bottleneck"]["kind"] != "true_actions":
        raise LawmError(f"{used.model} was trained without actions: give --controller, which lawm controller trains")
    if config.plan.preset == "swm-pusht" or config.plan.goal_after_s is not None:
        check_world(reader.labels.meaning.simulator)
    check_units(config.plan.preset, in_units(reader.labels.meaning.actions, config.plan.unit))
    if held_out < total:
        raise LawmError(
            f"plan.episodes = {total}, and the held-out labelled videos hold {held_out} clips of "
            f"{reader.config.data.clip.frames} frames; lower plan.episodes or raise data.val_fraction"
        )
    return held_out


def dataset_name(config: Config, name: str | None, checkpoints: Sequence[str]) -> str:
    """What the results call the episodes' videos: held out from these checkpoints' training, or whatever they are."""
    reader = ClipReader(episode_config(config), "val", labelled=True)
    assert reader.labels is not None
    return data_name(name or reader.labels.meaning.scene or None, reader.index, checkpoints)


def measured_plans(config: Config, rows: list[dict[str, Any]], dataset: str, step: int) -> Measured:
    """The figures of planned episodes, what has to be said beside them, and the values of each."""
    e = config.evaluate
    results = summarize_episodes(rows, dataset, step, e.bootstrap, e.seed)
    notes = remarks(rows, label_ranges(config), config.plan.percentiles)
    return Measured(results, notes=notes, kept=[episode_values(rows, dataset, step)])


def every_episode(
    total: int, clips: int, rows: Mapping[int, Mapping[str, Any]], run: Callable[[Sequence[Task]], dict[int, str]]
) -> None:
    """Runs all episodes that have no row yet; `run` returns those whose clips cannot be read, and why.

    Such an episode gets the next clip that no other has, of those beyond the number of episodes, in the order of the
    episodes: whatever the number of actors, and however often planning was interrupted. Raises LawmError, once all
    others are planned, where none is left.
    """
    taken = {int(row.get("position", e)): e for e, row in rows.items() if e < total}
    todo, refused = [], {}
    for e in (e for e in range(total) if e not in rows):
        if e in taken:  # with fewer episodes than now it was to spare
            refused[e] = f"its clip is episode {taken[e]}'s"
        else:
            todo.append(Task(e, e))
    spare = (p for p in range(total, clips) if p not in taken)
    without: dict[int, str] = {}
    while todo or refused:
        refused |= run(todo)
        todo = []
        for e in sorted(refused):
            position = next(spare, None)
            if position is None:
                without[e] = refused[e]
            else:
                todo.append(Task(e, position, refused[e]))
        refused = {}
    if without:
        first = min(without)
        raise LawmError(
            f"{len(without)} of {total} episodes have no clip, for theirs cannot be read and no other held-out "
            f"labelled one is left; the first, episode {first}: {without[first]}. "
            f"Set plan.episodes={total - len(without)}"
        )


def plan_episodes(
    config: Config, used: Used, out: str, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Rows of all `plan.episodes`, written to `out`/episodes.jsonl as they finish, those there are kept; and at the end
    to `out`/episodes.parquet, one row an episode.

    An actor that dies loses nothing: its episodes go to another one, with the same seeds. An episode that fails is a
    row with the reason, and is tried again by a rerun. Raises LawmError.
    """
    total = config.plan.episodes
    clips = labelled_clips(config, used)
    where, about = join(out, "episodes.jsonl"), join(out, "episodes.json")
    shown = shown_by(ClipReader(episode_config(config), "train", labelled=True), config.plan.percentiles)
    said = json.dumps(identity(config, used), indent=1).encode()
    rows: dict[int, dict[str, Any]] = {}
    if exists(where):
        if not exists(about) or read_bytes(about) != said:
            raise LawmError(f"{out} holds episodes of another model or plan; choose another --out, or remove it")
        for line in read_bytes(where).decode().splitlines():
            with suppress(
                ValueError, KeyError, TypeError
            ):  # the torn last line of a run that was killed while it wrote
                row = json.loads(line)
                if not row.get("failed"):
                    rows[row["episode"]] = row
        write_bytes(where, _lines(rows))
    write_bytes(about, said)
    todo = [e for e in range(total) if e not in rows]

    def keep(row: dict[str, Any]) -> None:
        film = row.pop("film", None)
        if film is not None:
            write_film(join(out, "films"), row["episode"], film, config.data.clip.fps)
        rows[row["episode"]] = row
        if is_s3(where) or len(rows) == 1:
            write_bytes(where, _lines(rows))
        else:
            with open(where, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if progress is not None:
            progress(len(rows), total)

    if todo:
        count = min(config.cluster.plan_actors, len(todo))
        together = config.plan.batch or (ON_A_GPU if config.cluster.gpus_per_worker else 1)
        together = max(1, min(together, -(-len(todo) // count)))
        with Actors(PlanningActor, (config, used, shown), count, config.cluster) as actors:

            def run(tasks: Sequence[Task]) -> dict[int, str]:
                refused: dict[int, str] = {}
                pieces = [tasks[i : i + together] for i in range(0, len(tasks), together)]

                def each(number: int, found: list[dict[str, Any] | BadClip]) -> None:
                    for task, one in zip(pieces[number], found, strict=True):
                        if isinstance(one, BadClip):
                            refused[task.episode] = one.message
                        else:
                            keep(one)

                actors.spread("run", pieces, each, what="episodes" if together > 1 else "episode")
                return refused

            try:
                every_episode(total, clips, rows, run)
            finally:
                write_bytes(where, _lines(rows))  # in order, now that all are there
    found = [rows[e] for e in sorted(rows) if e < total]
    write_bytes(join(out, "episodes.parquet"), as_parquet(found))
    return found


def write_film(folder: str, episode: int, film: Mapping[str, np.ndarray], fps: float) -> None:
    """The pictures of each name [F, H, W, 3] side by side, as one video; the shorter ones stand still at their end."""
    longest = max(map(len, film.values()))
    frames = [np.concatenate([one, one[-1:].repeat(longest - len(one), axis=0)]) for one in film.values()]
    media, content = film_bytes(Film("plan", tuple(film), frames), fps)
    write_bytes(join(folder, f"episode_{episode:05d}.{media.rpartition('/')[2]}"), content)


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One row an episode; nested values (errors by kind, plans) as JSON."""

    def plain(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict | list) else value

    names = list(dict.fromkeys(name for row in rows for name in row if name != "film"))
    columns = {name: [plain(row.get(name)) for row in rows] for name in names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _lines(rows: dict[int, dict[str, Any]]) -> bytes:
    return "".join(json.dumps(rows[e]) + "\n" for e in sorted(rows)).encode()
