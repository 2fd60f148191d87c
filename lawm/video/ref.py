"""Where a video lies, and the row of an index that says what is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Compressed tars are listed too, as one entry each, so that the index can say why they are of no use."""


@dataclass(frozen=True)
class VideoRef:
    """Bytes [offset, offset + size) of `source` hold one video, known everywhere as `key`."""

    source: str
    offset: int
    size: int
    key: str
    begin_s: float | None = None
    """The video is what the file shows from here on (seconds by the container's own clock), for files that hold many
    episodes."""
    end_s: float | None = None
    """... until here, exclusively."""
    true_rate: float | None = None
    """Frames per second of physical time, where it is known that the container's clock runs at another pace."""
    version: int | None = None
    """Of an S3 object, a hash of its ETag when it was probed; None: any will do."""
    group: str | None = None
    """What the video belongs to, where it does not stand alone: the episode of a camera, the film of a cut."""

    def __str__(self) -> str:
        return f"{self.source}:{self.key}" if self.offset or self.begin_s is not None else self.source

    @property
    def place(self) -> tuple[Any, ...]:
        """Where the bytes are, without key and group, as JSON can hold it."""
        return (self.source, self.offset, self.size, self.begin_s, self.end_s, self.true_rate, self.version)

    @staticmethod
    def at(place: Sequence[Any], key: str) -> "VideoRef":
        """The ref with that `place`."""
        source, offset, size, begin_s, end_s, true_rate, version = place
        return VideoRef(source, offset, size, key, begin_s, end_s, true_rate, version)

    @property
    def is_tar(self) -> bool:
        return self.offset == 0 and self.source.lower().endswith(TAR_SUFFIXES)


FACTS = (
    "container", "codec", "width", "height", "rate", "container_rate", "variable_rate", "frames",
    "start_s", "duration_s", "keyframes_s", "reason", "largest_gap_s",
)  # fmt: skip
"""What an index says of a video besides where it lies."""


def empty_row(ref: VideoRef, reason: str | None = None) -> dict[str, Any]:
    """An index row of which only the place (and the reason) is known."""
    row: dict[str, Any] = dict.fromkeys(FACTS)
    return row | {name: getattr(ref, name) for name in REF_COLUMNS} | {"reason": reason}


REF_COLUMNS = tuple(field.name for field in fields(VideoRef))


def ref_of(row: dict[str, Any]) -> VideoRef:
    """Where the video of an index row lies."""
    return VideoRef(**{name: row.get(name) for name in REF_COLUMNS})  # type: ignore[arg-type]
