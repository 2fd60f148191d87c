"""The folder of a training run: what is written there, by whom, and what a resumed run keeps of it."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lawm.config import Config, LawmError
from lawm.storage import exists, is_s3, join, read_bytes, write_bytes
from lawm.training.checkpoint import (
    Checkpoint,
    RunTaken,
    check_claim,
    checkpoint_name,
    claim_run,
    drop_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from lawm.training.clip_log import drop_clips, write_clips
from lawm.training.trackers import Trackers

Report = Callable[[int, dict[str, float], Checkpoint | None], None]


class RunWriter:
    """The run folder, local or S3: `metrics.jsonl`, `quarantine.jsonl`, `config.json`, and what trackers keep in it.

    It claims the run: RunTaken is raised where a checkpoint is to be saved after another process has claimed it too.
    A resumed run drops the lines, the log of clips and the checkpoints after the step that it resumes from (a member
    of a population may be one ahead). On S3 the files are kept in memory and written before each checkpoint.
    """

    def __init__(
        self, run: str, config: Config, step: int = 0, who: str = "", tell: Callable[[str], None] | None = None
    ) -> None:
        self.run, self.step = run, step
        self.claim = claim_run(run, who)
        if step:
            drop_checkpoints(run, beyond=step)
        elif (found := newest_checkpoint(run)) is not None:
            raise LawmError(f"{found} has appeared since this run was started: run the same command again")
        self.texts: dict[str, list[str]] = {"metrics.jsonl": [], "quarantine.jsonl": []}
        for name in self.texts:
            if step and exists(join(run, name)):
                lines = read_bytes(join(run, name)).decode().splitlines()
                self.texts[name] = [line for line in lines if _step_of_line(line) <= step]
        self.refused = {json.loads(line).get("position") for line in self.texts["quarantine.jsonl"]}
        drop_clips(run, beyond=step)
        write_bytes(join(run, "config.json"), json.dumps(config.model_dump(), indent=1).encode())
        self.trackers = Trackers(run, config, step, *([tell] if tell else []))
        self.flush()

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
        self.step = step
        self._line("metrics.jsonl", {"step": step, "time": time.time(), **finite})
        self.trackers.scalars(step, finite)

    def checkpoint(self, checkpoint: Checkpoint) -> str:
        """Saves it and returns where; lines and clips first, so that no log lacks what a checkpoint has consumed."""
        uri = join(self.run, checkpoint_name(checkpoint.step))
        check_claim(self.run, self.claim)
        self.flush()
        if checkpoint.clips is not None:
            write_clips(self.run, checkpoint.step, checkpoint.clips)
        save_checkpoint(checkpoint, uri, lambda: check_claim(self.run, self.claim))
        return uri

    def quarantine(self, clip: dict[str, Any]) -> None:
        """A refused clip, under the step after the last reported one. Each once: clips are read ahead, so that a run
        that resumes may meet one again that stands there already."""
        if clip["position"] not in self.refused:
            self.refused.add(clip["position"])
            self._line("quarantine.jsonl", {"step": self.step + 1, **clip})

    def _line(self, name: str, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        self.texts[name].append(line)
        if not is_s3(self.run):
            with open(Path(self.run) / name, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def flush(self) -> None:
        for name, lines in self.texts.items():
            write_bytes(join(self.run, name), "".join(line + "\n" for line in lines).encode())
        self.trackers.flush()


@contextmanager
def to_the_end(writers: Iterable[RunWriter], last: Callable[[], None] | None = None) -> Iterator[None]:
    """Where the block ends in a LawmError, the lines that tell of it are kept too (after `last`, which may add some);
    not those of a run that another process has taken."""
    try:
        yield
    except RunTaken:
        raise
    except LawmError:
        if last is not None:
            last()
        for writer in writers:
            writer.flush()
        raise


def note_event(run: str, event: dict[str, Any]) -> None:
    """Adds a line to `run`/events.jsonl: of what happened to the run, which a resumed run keeps."""
    where = join(run, "events.jsonl")
    before = read_bytes(where) if exists(where) else b""
    write_bytes(where, before + json.dumps(event).encode() + b"\n")


def _step_of_line(line: str) -> float:
    """The step of a JSON line; infinite for the torn last line of a run that was killed while it wrote."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf


def local_report(
    writer: RunWriter, keep: int | None, progress: Callable[[int, dict[str, float]], None] | None = None
) -> Report:
    """The `report` of a run without Ray: writes scalars and checkpoints into the run folder, and keeps `keep` of
    them (None: all)."""

    def report(step: int, metrics: dict[str, float], checkpoint: Checkpoint | None) -> None:
        writer.scalars(step, metrics)
        if checkpoint is not None:
            writer.checkpoint(checkpoint)
            if keep is not None:
                prune_checkpoints(writer.run, keep)
        if progress is not None:
            progress(step, metrics)

    return report
