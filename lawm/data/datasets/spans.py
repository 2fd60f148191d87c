"""Where an episode's frames lie in a file that holds many: what the table says, held against the lengths.

Episodes are put one after another, so that an episode begins at the frame whose number is the sum of the lengths of
those before it. A table's own times are sums of rounded durations, and run away by a part of a frame in an episode:
after a few, step i would be shown with frame i + 1. Where both agree, nothing is to be done. Where they differ by less
than LARGEST_DRIFT frames and the file holds exactly as many frames as its episodes have steps, the lengths are right.
All else is refused, naming both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LONGEST_FILE_S = 1e7
AGREES = 0.25
"""Frames by which a beginning may be off and the frame that is meant still be beyond doubt."""
LARGEST_DRIFT = 1.5


@dataclass(frozen=True)
class Span:
    """An episode of a file, as the table has it: seconds of the file, and steps (None: not known)."""

    owner: str
    begin_s: object
    end_s: object
    length: int | None


@dataclass(frozen=True)
class Place:
    """Where it is to be read; `reason`: why it is not; `moved`: frames by which its beginning was put right."""

    begin_s: float = 0.0
    end_s: float = 0.0
    reason: str | None = None
    moved: float = 0.0


@dataclass(frozen=True)
class InFile:
    """Frames of a whole file, and frames a second by its own clock."""

    frames: int
    rate: float


def placed(spans: Sequence[Span], fps: float, uri: str, in_file: Callable[[], InFile | None]) -> list[Place]:
    """The place of each episode of the file `uri`. `in_file` opens it, where table and lengths differ; None: it cannot
    be read."""
    known = [i for i, span in enumerate(spans) if _is_span(span)]
    begin_N, end_N = _in_frames(spans, known, fps)
    counted_N, total = _counted(spans, begin_N)
    agree = all(_agrees(spans[i], begin_N[i], end_N[i], counted_N[i]) for i in known)
    file = None if agree else in_file()
    rate = fps if file is None else file.rate
    exact = file is not None and file.frames == total
    begin_N, end_N = _in_frames(spans, known, rate)
    overlaps = _overlaps(begin_N, end_N, spans, counted_N, LARGEST_DRIFT if exact else 2 * AGREES)
    found = []
    for i, span in enumerate(spans):
        if i not in begin_N:
            found.append(Place(reason=f"labels: from {span.begin_s} s to {span.end_s} s of {uri} by meta/episodes"))
        elif i in overlaps:
            other = spans[overlaps[i]]
            said = f"{_seconds(span)} of {uri} by meta/episodes overlaps {other.owner}'s {_seconds(other)}"
            found.append(Place(reason=f"labels: {said}"))
        elif agree:
            found.append(Place(begin_N[i] / rate, end_N[i] / rate))
        else:
            found.append(_one(span, begin_N[i], end_N[i], counted_N[i] if exact else None, rate, uri))
    return found


def _one(span: Span, begin: float, end: float, counted: int | None, rate: float, uri: str) -> Place:
    """`counted`: its first frame by the lengths, where the file bears them out; else its own times are all there is."""
    length = span.length
    if length is None or (counted is not None and _agrees(span, begin, end, counted)):
        return Place(begin / rate, end / rate)  # without a length it is refused for that
    if counted is not None:
        if abs(begin - counted) < LARGEST_DRIFT:
            return Place(counted / rate, (counted + length) / rate, moved=begin - counted)
        said = f"begins at frame {begin:.2f} of {uri} by meta/episodes, and at {counted} by the lengths before it"
        return Place(reason=f"labels: {span.owner} {said}")
    if abs(begin - round(begin)) <= AGREES and abs(end - begin - length) <= 1 + AGREES:
        return Place(begin / rate, end / rate)
    said = f"frames {begin:.2f} to {end:.2f} of {uri} by meta/episodes, for {length} steps"
    return Place(reason=f"labels: {span.owner} is {said}")


def _agrees(span: Span, begin: float, end: float, counted: int | None) -> bool:
    """Whether an episode's times are those of its frames by the lengths."""
    if span.length is None or counted is None:
        return False
    return abs(begin - counted) <= AGREES and abs(end - begin - span.length) <= 2 * AGREES


Frames = dict[int, float]
"""By the number of the episode in its file, for those whose times are known."""


def _in_frames(spans: Sequence[Span], known: Sequence[int], rate: float) -> tuple[Frames, Frames]:
    """Where each begins and ends."""
    return (
        {i: float(spans[i].begin_s) * rate for i in known},  # type: ignore[arg-type]
        {i: float(spans[i].end_s) * rate for i in known},  # type: ignore[arg-type]
    )


def _counted(spans: Sequence[Span], begin_N: Frames) -> tuple[list[int | None], int | None]:
    """By the lengths of those before it, the first frame of each episode, and all frames; None where a length before
    it is not known. Episodes whose beginning is not known stand where the table has them."""
    known = list(begin_N)
    order = list(range(len(spans)))
    if any(begin_N[a] > begin_N[b] for a, b in pairwise(known)):
        if len(known) < len(spans):
            return [None] * len(spans), None
        order.sort(key=lambda i: begin_N[i])
    counted: list[int | None] = [None] * len(spans)
    running: int | None = 0
    for i in order:
        counted[i] = running
        length = spans[i].length
        running = None if running is None or length is None else running + length
    return counted, running


def _overlaps(
    begin_N: Frames, end_N: Frames, spans: Sequence[Span], counted_N: Sequence[int | None], most: float
) -> dict[int, int]:
    """Episodes that show more than `most` frames of another one -> that one. Of two that overlap, the one that the
    lengths bear out is kept."""
    found: dict[int, int] = {}
    last: int | None = None  # the one that ends last so far
    for i in sorted(begin_N, key=lambda i: begin_N[i]):
        if last is not None and end_N[last] - begin_N[i] > most:
            for one, other in ((i, last), (last, i)):
                if not _agrees(spans[one], begin_N[one], end_N[one], counted_N[one]):
                    found.setdefault(one, other)
        if last is None or end_N[i] > end_N[last]:
            last = i
    return found


def _is_span(span: Span) -> bool:
    begin, end = span.begin_s, span.end_s
    return _number(begin) and _number(end) and 0 <= begin < end < LONGEST_FILE_S  # type: ignore[operator]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(span: Span) -> str:
    return f"{span.begin_s:.3f} to {span.end_s:.3f} s"
