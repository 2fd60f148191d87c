"""Units of an evaluation that are done, kept until the whole is: an evaluation that was killed goes on where it was.

A unit is known by everything that its values hang on (checkpoints, data, settings, its clips), so that nothing of
another evaluation is taken for it. Values lie as Parquet, the rest as JSON, which is written last.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lawm import __version__, storage
from lawm.config import Config, LawmError
from lawm.data import Split
from lawm.evaluation import Kept, Missing, PerClip, units_say, values_from_bytes, values_to_bytes
from lawm.training import CHILDREN, read_about

FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """Plan positions of a split, to be measured by these evaluations, or (`fits`) collected for what they fit."""

    split: Split
    labelled: bool
    number: int
    positions: tuple[int, ...]
    which: tuple[str, ...]
    several: bool
    """Whether its clips are of several videos."""
    fits: bool = False


@dataclass(frozen=True)
class Found:
    """Values of a unit by evaluation, the clips that were refused, and those that were not (`key@seconds`)."""

    values: dict[str, PerClip | Missing]
    refused: list[str] = field(default_factory=list)
    clips: tuple[str, ...] = ()


def said_of_all(config: Config, checkpoints: Iterable[str], plans: Iterable[str]) -> dict[str, Any]:
    """What all units of an evaluation hang on: `plans` are fingerprints of the clips that there are."""
    labels = config.data.labels
    return {
        "format": (FORMAT, __version__),
        "config": config.model_dump(mode="json", exclude={"cluster", "plan", "optimizer", *CHILDREN}),
        "checkpoints": [read_about(uri)["fingerprint"] for uri in checkpoints],
        "plans": sorted(plans),
        "labels": hashlib.sha256(storage.read_bytes(labels)).hexdigest() if labels else None,
    }


class Parts:
    """The kept units of one evaluation in a folder; of none where the folder is None."""

    def __init__(self, folder: str | None, about: Callable[[], dict[str, Any]]) -> None:
        self.folder = folder
        self.about = "" if folder is None else json.dumps(about(), sort_keys=True)

    def _where(self, unit: Unit) -> str:
        said = self.about + json.dumps(dataclasses.asdict(unit), sort_keys=True)
        assert self.folder is not None
        return storage.join(self.folder, hashlib.sha256(said.encode()).hexdigest()[:24])

    def keep(self, unit: Unit, found: Found) -> None:
        """Writes what a unit found. Raises StorageError."""
        if self.folder is None:
            return
        where, missing, values = self._where(unit), {}, []
        for name, value in found.values.items():
            if isinstance(value, Missing):
                missing[name] = value.reason
                continue
            values.append(name)
            kept = Kept(name, "", 0, tuple(map(str, range(len(value)))), value)
            storage.write_bytes(f"{where}-{name}.parquet", values_to_bytes(kept))
        about = {"values": values, "missing": missing, "refused": found.refused, "clips": list(found.clips)}
        storage.write_bytes(f"{where}.json", json.dumps(about).encode())

    def found(self, unit: Unit) -> Found | None:
        """What a unit found before; None where it is to be done (again: a part that is not whole is no part)."""
        if self.folder is None:
            return None
        where, says = self._where(unit), units_say(unit.fits)
        try:
            about = json.loads(storage.read_bytes(f"{where}.json"))
            values: dict[str, PerClip | Missing] = {name: Missing(why) for name, why in about["missing"].items()}
            for name in about["values"]:
                part = f"{where}-{name}.parquet"
                values[name] = values_from_bytes(storage.read_bytes(part), part, says).values
            ordered = {name: values[name] for name in unit.which if name in values}
            return Found(ordered, list(about["refused"]), tuple(about["clips"]))
        except (LawmError, KeyError, TypeError, ValueError):
            return None

    def done(self, units: Iterable[Unit]) -> dict[int, Found]:
        """Of units by their place in the list, what those that are done found."""
        looked = ((number, self.found(unit)) for number, unit in enumerate(units))
        return {number: found for number, found in looked if found is not None}

    def forget(self) -> None:
        """Removes what was kept: the whole is done."""
        if self.folder is not None:
            storage.delete(self.folder)
