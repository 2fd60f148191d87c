"""What measured data are to the models: held out, trained on, or other data. Found out, never taken on trust.

"Held-out" is said of videos that belong to a training's data and that none of the models was trained on; and of nothing
else. A video is the same as another where the keys agree and the durations too, or where both belong to one group
(cameras of an episode).
"""

from collections.abc import Sequence

from lawm.config import LawmError, parse_config
from lawm.data import EmptySplit, Index, open_reader
from lawm.training import read_about

HELD_OUT, TRAINED_ON, OTHER = "held-out", "trained on", "other data"
SAME_SECONDS = 0.15


def data_name(name: str | None, videos: Index, checkpoints: Sequence[str]) -> str:
    """What results call the `videos` that were measured with these checkpoints: what they are to them, after the
    `name` that they were given."""
    said = standing(videos, checkpoints)
    return f"{name}, {said}" if name else said


def standing(videos: Index, checkpoints: Sequence[str]) -> str:
    """`held-out`, `trained on`, `other data`, or how many videos are what. Raises LawmError for a checkpoint that is
    none."""
    mine = _Videos(videos)
    trained: set[str] = set()
    known: set[str] = set()
    for uri in checkpoints:
        about = read_about(uri)
        config = parse_config(about["config"], uri)
        for side, found in (("train", trained), ("val", known)):
            try:
                reader = open_reader(config, about["kind"], side)  # type: ignore[arg-type]
            except EmptySplit:
                continue
            except LawmError:
                return f"data of unknown standing (the videos of {uri}'s training cannot be read)"
            for one in getattr(reader, "readers", [reader]):
                found |= mine.shared_with(one.index)
    total = len(mine.groups)
    known -= trained
    if len(trained) == total:
        return TRAINED_ON
    if trained:
        return f"{TRAINED_ON} in part ({len(trained)} of {total} videos)"
    if len(known) == total:
        return HELD_OUT
    return f"{OTHER} ({len(known)} of {total} videos held out in training)" if known else OTHER


class _Videos:
    """The measured videos: which groups another index shares with them."""

    def __init__(self, videos: Index) -> None:
        rows = zip(videos.keys(), videos.groups(), videos.column("duration_s"), strict=True)
        self.of_key = {key: (group, seconds) for key, group, seconds in rows}
        self.groups = {group for group, _ in self.of_key.values()}
        self.named = {group for key, (group, _) in self.of_key.items() if group != key}

    def shared_with(self, other: Index) -> set[str]:
        """Groups of the measured videos that the other index has too."""
        found = set()
        for key, group, seconds in zip(other.keys(), other.groups(), other.column("duration_s"), strict=True):
            mine = self.of_key.get(key)
            if mine is not None and not abs(mine[1] - seconds) > SAME_SECONDS:
                found.add(mine[0])
            elif group != key and group in self.named:
                found.add(group)
        return found
