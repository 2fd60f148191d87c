"""Something-Something-v2 and Kinetics: clips of which lists say what they show. Each file and each entry of a list is a
recording; an entry without a file, or a file that is none of theirs, has its reason."""

import csv
import io
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lawm import storage
from lawm.config import LawmError
from lawm.data.datasets.common import (
    Batch,
    ReadSpec,
    Recording,
    in_batches,
    limited,
    one_line,
    read_json,
    refusal,
    refuse_options,
)
from lawm.data.listing import list_videos
from lawm.video import VideoRef

_SPLITS = ("train", "val", "validate", "validation", "test")
_VALIDATION = {"val", "validate", "validation"}
_KINETICS = re.compile(r"([\w-]{11})(_\d{6}_\d{6})?")
"""<youtube id>_<start>_<end>; some copies leave the times out."""


def choices(source: str, spec: ReadSpec) -> ReadSpec:
    refuse_options(spec, "action", "state", "cameras", "rate", "actions")
    return spec


def as_listed(batch: Batch, spec: ReadSpec, out: str) -> list[Recording]:
    return list(batch.what)


def plain(text: str) -> str:
    """Without what UTF-8 cannot say."""
    return text.encode("utf-8", "replace").decode()


@dataclass
class _Entry:
    """What the lists say of a video, where, and whether its file has been found."""

    split: str | None
    label: str | None
    where: str
    reason: str | None = None
    found: bool = False

    def also(self, entry: "_Entry") -> None:
        """Takes in what another list says of it; where they differ, that is why it cannot be used."""
        for what in ("split", "label"):
            one, other = getattr(self, what), getattr(entry, what)
            differ = one and other and one != other and not {one, other} <= _VALIDATION
            if differ and self.reason is None:
                said = f"as {one!r} and {other!r}"[:120]
                self.reason = f"labels: {self.where} and {entry.where} both name it, {said}"
            setattr(self, what, one or other)


def _refused(key: str, uri: str, reason: str, entry: _Entry | None = None) -> Recording:
    label, split = (entry.label, entry.split) if entry else (None, None)
    return Recording(VideoRef(uri, 0, 0, key), label=label, split=split, reason=reason)


def _lists(root: str, suffix: str) -> Iterator[str]:
    """Files with that suffix; what may not be read is listed among the videos."""
    return (uri for uri, _ in storage.list_files(root, (suffix,), troubles=True) if not uri.endswith("/"))


# ---------------------------------------------------------------- Something-Something-v2
def ssv2_batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    """<anywhere>/<id>.webm, and JSON lists whose names end in train, validation and test (.json)."""
    root = storage.absolute(source).rstrip("/")
    known: dict[str, _Entry] = {}
    odd: list[Recording] = []
    lists = 0
    for uri in _lists(root, ".json"):
        match = re.search(r"(?:^|-)(train|validation|test)\.json$", posixpath.basename(uri))
        if not match:
            continue
        rows = read_json(uri)
        if not isinstance(rows, list):
            raise LawmError(f"{uri}: expected a list of videos")
        lists += 1
        for place, row in enumerate(rows):
            number, entry = _ssv2_entry(row, match[1], f"entry {place} of {posixpath.basename(uri)}")
            if number is None:
                odd.append(_refused(f"{match[1]}/({entry.where})", uri, str(entry.reason), entry))
            elif number in known:
                known[number].also(entry)
            else:
                known[number] = entry
    if not lists:
        raise LawmError(f"{source}: no list of videos in train.json, validation.json or test.json, under any prefix")

    def found() -> Iterator[Recording]:
        for ref in list_videos([root]):
            number = posixpath.splitext(posixpath.basename(ref.key))[0]
            entry = known.get(number)
            if ref.key.endswith("/"):
                yield Recording(ref)
                continue
            if entry is None:
                yield Recording(replace(ref, key=f"unlabelled/{posixpath.basename(ref.key)}"), split="unlabelled")
                continue
            entry.found = True
            key = f"{entry.split}/{posixpath.basename(ref.key)}"
            yield Recording(replace(ref, key=key), label=entry.label, split=entry.split, reason=entry.reason)
        for number, entry in known.items():
            if not entry.found:
                reason = f"missing: no video of that id, which {entry.where} names"
                yield _refused(f"{entry.split}/{number}.webm", root, reason, entry)
        yield from odd

    yield from in_batches(limited(found(), spec.limit), 4096)


def _ssv2_entry(row: Any, split: str, where: str) -> tuple[str | None, _Entry]:
    """An entry's id, and what it says; no id: why not."""
    number = row.get("id") if isinstance(row, dict) else None
    if isinstance(number, bool) or not isinstance(number, (int, str)) or not str(number).strip():
        return None, _Entry(split, None, where, f"labels: {where} has no id: {plain(str(row))[:80]}")
    said = row.get("template") or row.get("label")
    label = re.sub(r"[\[\]]", "", plain(str(said))) if said else None
    return plain(str(number)), _Entry(split, label, where)


# ---------------------------------------------------------------- Kinetics
def kinetics_batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    """<split>/<class>/<youtube id>_<start>_<end>.mp4, or flat with the CSVs of the data set beside it. Clips of one
    film belong together."""
    root = storage.absolute(source).rstrip("/")
    known: dict[str, _Entry] = {}
    odd: list[Recording] = []
    lists = 0
    for uri in _lists(root, ".csv"):
        try:
            rows = list(_csv_rows(storage.read_bytes(uri).decode("utf-8-sig", "replace")))
        except LawmError as error:
            odd.append(_refused(storage.name_below(uri, root), uri, refusal(error, uri)))
            continue
        lists += bool(rows)
        for place, row in enumerate(rows, 2):
            where = f"line {place} of {posixpath.basename(uri)}"
            name, entry = _kinetics_entry(row, where)
            if name is None:
                odd.append(_refused(f"{entry.split or 'unlabelled'}/({where})", uri, str(entry.reason), entry))
            elif name in known:
                known[name].also(entry)
            else:
                known[name] = entry
    videos = list(list_videos([root]))
    stems = [posixpath.splitext(posixpath.basename(ref.key))[0] for ref in videos]
    if not lists and not any(map(_KINETICS.fullmatch, stems)):
        raise LawmError(
            f"{source}: no video is named <youtube id>_<start>_<end>, and no CSV has a youtube_id; not Kinetics. "
            "`lawm index` takes any folder of videos"
        )

    def found() -> Iterator[Recording]:
        for ref, stem in zip(videos, stems, strict=True):
            folders = [f for f in posixpath.dirname(ref.key).split("/") if f]
            entry, match = known.get(stem), _KINETICS.fullmatch(stem)
            inside = [f for f in folders if f not in _SPLITS]
            label = (entry and entry.label) or (inside[-1] if inside else None)
            split = (entry and entry.split) or next((f for f in folders if f in _SPLITS), None)
            if entry is not None:
                entry.found = True
            reason = entry.reason if entry else None
            if entry is None and match is None and not ref.key.endswith("/"):
                reason = "labels: not named <youtube id>_<start>_<end>, and in no CSV"
            ref = replace(ref, group=match[1] if match else None)
            yield Recording(ref, label=label, split=split, reason=reason)
        for name, entry in known.items():
            if not entry.found:
                reason = f"missing: no video of that name, which {entry.where} names"
                yield _refused("/".join(filter(None, [entry.split, f"{name}.mp4"])), root, reason, entry)
        yield from odd

    yield from in_batches(limited(found(), spec.limit), 4096)


def _kinetics_entry(row: dict[str, Any], where: str) -> tuple[str | None, _Entry]:
    """The name of a row's file without its suffix, and what it says; no name: why not."""
    split, label = (plain(str(row.get(name) or "")) or None for name in ("split", "label"))
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        if not row["youtube_id"]:
            raise ValueError("no youtube_id")
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        return None, _Entry(split, label, where, f"labels: {where} cannot be read ({one_line(error, 60)})")
    return plain(f"{row['youtube_id']}_{start:06d}_{end:06d}"), _Entry(split, label, where)


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    """Rows of a list of Kinetics; none of another CSV."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "youtube_id" in (reader.fieldnames or ()):
            yield from reader
    except csv.Error as error:
        raise LawmError(f"damaged ({one_line(error, 80)})") from None
