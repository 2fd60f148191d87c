"""What measured data are to the models: held out, trained on, or other data. Found out, never taken on trust.

"Held-out" is said of videos that belong to a training's data and that none of the models was trained on; and of nothing
else. A video is the same as another where the keys agree and the durations too. Cameras of an episode (a group) are one
where the durations agree, of most episodes that both data sets name: `episode_000042` is the name of one in every
LeRobot set. What was trained on is what the checkpoint names (`lawm.training`, split_facts), and where its
videos were too many to be named, what its config selects of its index now.
"""

from collections.abc import Sequence
from typing import Any

from lawm.config import LawmError, parse_config
from lawm.data import EmptySplit, Index, open_reader
from lawm.training import read_about

HELD_OUT, TRAINED_ON, OTHER = "held-out", "trained on", "other data"
SAME_SECONDS = 0.15
SAME_SET = 0.5
"""Share of the episodes named in two data sets that have to last as long in both, for the two to be one. Of different
sets a few do by chance; sets of equally long episodes all do, and are then called one."""


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
    seen: dict[str, tuple[set[str], set[str]] | None] = {}
    for uri in checkpoints:
        about = read_about(uri)
        config = parse_config(about["config"], uri)
        same = f"{config.data.model_dump_json()} {config.model.bottleneck.kind} {about['kind']} {_named(about)}"
        if same not in seen:
            seen[same] = _sides(mine, about, uri)
        found = seen[same]
        if found is None:
            return f"data of unknown standing (the videos of {uri}'s training cannot be read)"
        trained |= found[0]
        known |= found[1]
    total = len(mine.groups)
    known -= trained
    if len(trained) == total:
        return TRAINED_ON
    if trained:
        return f"{TRAINED_ON} in part ({len(trained)} of {total} videos)"
    if len(known) == total:
        return HELD_OUT
    return f"{OTHER} ({len(known)} of {total} videos held out in training)" if known else OTHER


def _named(about: dict[str, Any]) -> list[str] | None:
    """Hashes of the groups that a checkpoint names as trained on; None where it names none."""
    split = about["extra"].get("split")
    return split["trained_on"]["groups"] if isinstance(split, dict) else None


def _sides(mine: "_Videos", about: dict[str, Any], uri: str) -> tuple[set[str], set[str]] | None:
    """Groups of the measured videos that were trained on, and those that belong to the training's data at all; None
    where neither can be known."""
    config, named = parse_config(about["config"], uri), _named(about)
    trained: set[str] = set()
    known: set[str] = set()
    for side in ("train", "val"):
        try:
            reader = open_reader(config, about["kind"], side)
        except EmptySplit:
            continue
        except LawmError:  # the index has gone
            # An episode's name alone does not say of which data set it is.
            found = set() if named is None else mine.hashed(named)
            return None if named is None or found & mine.lasting.keys() else (found, found)
        for one in getattr(reader, "readers", [reader]):
            shared = mine.shared_with(one.index)
            known |= shared
            trained |= shared if side == "train" else set()
    return (trained if named is None else known & mine.hashed(named)), known


class _Videos:
    """The measured videos: which groups another index shares with them."""

    def __init__(self, videos: Index) -> None:
        self.videos = videos
        rows = zip(videos.keys(), videos.groups(), videos.column("duration_s"), strict=True)
        self.of_key = {key: (group, seconds) for key, group, seconds in rows}
        self.groups = {group for group, _ in self.of_key.values()}
        self.lasting: dict[str, list[float]] = {}
        """Of each group that has a name of its own, how long its videos last, in seconds."""
        for key, (group, seconds) in self.of_key.items():
            if group != key:
                self.lasting.setdefault(group, []).append(seconds)

    def shared_with(self, other: Index) -> set[str]:
        """Groups of the measured videos that the other index has too."""
        found: set[str] = set()
        agrees: dict[str, bool] = {}
        for key, group, seconds in zip(other.keys(), other.groups(), other.column("duration_s"), strict=True):
            mine = self.of_key.get(key)
            if group != key and group in self.lasting:
                as_long = any(not abs(one - seconds) > SAME_SECONDS for one in self.lasting[group])
                agrees[group] = agrees.get(group, False) or as_long
            elif mine is not None and not abs(mine[1] - seconds) > SAME_SECONDS:
                found.add(mine[0])
        if sum(agrees.values()) >= SAME_SET * len(agrees):
            found |= {group for group, as_long in agrees.items() if as_long}
        return found

    def hashed(self, named: Sequence[str]) -> set[str]:
        """Groups of the measured videos whose hashes are among the named ones."""
        wanted = set(named)
        pairs = zip(self.videos.groups(), self.videos.hashes(), strict=True)
        return {group for group, value in pairs if f"{int(value):016x}" in wanted}
