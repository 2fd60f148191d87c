"""A LeRobot v3 data set with more features: its tables written anew, its videos linked (or copied) as they are.

Legend: N frames of an episode.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm import storage
from lawm.config import LawmError
from lawm.parquet import parquet_errors, read_parquet

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Feature:
    """One number, or `width` of them, at every frame."""

    dtype: str
    width: int

    @property
    def about(self) -> dict[str, Any]:
        """As meta/info.json says it."""
        return {"dtype": self.dtype, "shape": [self.width], "names": None}

    def column(self, values: np.ndarray) -> pa.Array:
        """[N, width] as LeRobot's tables hold it."""
        flat = pa.array(np.ascontiguousarray(values, np.dtype(self.dtype)).ravel())
        return flat if self.width == 1 else pa.FixedSizeListArray.from_arrays(flat, self.width)

    @property
    def hugging(self) -> dict[str, Any]:
        value = {"dtype": self.dtype, "_type": "Value"}
        return value if self.width == 1 else {"feature": value, "length": self.width, "_type": "Sequence"}


Values = Callable[[int, int], Mapping[str, np.ndarray]]
"""(episode, N) -> [N, width] of every new feature."""


def check_room(source: str, out: str, features: Mapping[str, Feature]) -> None:
    """Raises LawmError where `source` is no LeRobot v3 data set on this machine, has a feature of such a name, or `out`
    is the same, within it, not empty or not to be written to."""
    from lawm.data.datasets.lerobot import read_lerobot_info  # PyAV, which those who only write do not need

    if storage.is_s3(source) or storage.is_s3(out):
        raise LawmError(
            f"{source if storage.is_s3(source) else out}: LeRobot data sets are written from and to folders"
        )
    taken = [name for name in features if name in read_lerobot_info(source)["features"]]
    if taken:
        raise LawmError(f"{source}: has a feature {taken[0]} already; give another name with --feature")
    a, b = Path(storage.local_path(source)).resolve(), Path(storage.local_path(out)).resolve()
    if b == a or a in b.parents or b in a.parents:
        raise LawmError(f"{out}: is the data set {source}, or one is within the other; choose another place")
    if b.exists() and (not b.is_dir() or any(b.iterdir())):
        raise LawmError(f"{out}: is there already; choose another place, or remove it")
    storage.check_folder(out)


def add_features(source: str, out: str, features: Mapping[str, Feature], values: Values) -> None:
    """Writes the data set `source` with more features to the folder `out`, which appears whole or not at all. Raises
    LawmError as `check_room`, and for tables that cannot be read."""
    check_room(source, out, features)
    here, target = Path(storage.local_path(source)).resolve(), Path(storage.local_path(out))
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    own = ("data", "meta/episodes", "meta/info.json", "meta/stats.json")
    try:
        for path in sorted(p for p in here.rglob("*") if p.is_file()):
            name = path.relative_to(here).as_posix()
            if not name.startswith((*(f"{folder}/" for folder in own[:2]), *own[2:], ".")):
                _link(path, partial / name)
        stats: dict[int, dict[str, dict[str, list[float]]]] = {}
        for path in sorted((here / "data").rglob("*.parquet")):
            table = _with_columns(_read(path), features, values, stats)
            _write(table, partial / path.relative_to(here))
        for path in sorted((here / "meta/episodes").rglob("*.parquet")):
            _write(_with_stats(_read(path), features, stats), partial / path.relative_to(here))
        if (here / "meta/stats.json").exists():
            whole = json.loads((here / "meta/stats.json").read_text())
            whole |= {name: together([of[name] for of in stats.values()]) for name in features}
            (partial / "meta/stats.json").write_text(json.dumps(whole, indent=4))
        info = json.loads((here / "meta/info.json").read_text())
        info["features"] |= {name: feature.about for name, feature in features.items()}
        (partial / "meta/info.json").write_text(json.dumps(info, indent=4))
        if target.exists():
            target.rmdir()
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to)
    except OSError:  # another file system
        shutil.copyfile(path, to)


def _read(path: Path) -> pa.Table:
    with path.open("rb") as file, parquet_errors(str(path)):
        return read_parquet(file)


def _write(table: pa.Table, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, to)


def _with_columns(
    table: pa.Table, features: Mapping[str, Feature], values: Values, stats: dict[int, dict[str, Any]]
) -> pa.Table:
    episode, frame = (np.asarray(table[name]) for name in ("episode_index", "frame_index"))
    found = {name: np.zeros((len(table), f.width), np.dtype(f.dtype)) for name, f in features.items()}
    for number in np.unique(episode):
        rows = np.flatnonzero(episode == number)
        given = values(int(number), int(frame[rows].max()) + 1)
        for name in features:
            found[name][rows] = given[name][frame[rows]]
        stats[int(number)] = {name: statistics(found[name][rows]) for name in features}
    said = dict(table.schema.metadata or {})
    for name, feature in features.items():
        table = table.append_column(name, feature.column(found[name]))
    if b"huggingface" in said:
        hugging = json.loads(said[b"huggingface"])
        hugging["info"]["features"] |= {name: feature.hugging for name, feature in features.items()}
        said[b"huggingface"] = json.dumps(hugging).encode()
    return table.replace_schema_metadata(said)


def statistics(values: np.ndarray) -> dict[str, list[float]]:
    x = values.astype(np.float64)
    found = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    found |= {f"q{round(100 * q):02d}": np.quantile(x, q, axis=0) for q in QUANTILES}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(x)]}


def _with_stats(table: pa.Table, features: Mapping[str, Feature], stats: dict[int, dict[str, Any]]) -> pa.Table:
    numbers = table["episode_index"].to_pylist()
    for name in features:
        for each in next(iter(stats.values()))[name]:
            kind = pa.list_(pa.int64() if each == "count" else pa.float64())
            cells = [stats[n][name][each] if n in stats else None for n in numbers]
            table = table.append_column(f"stats/{name}/{each}", pa.array(cells, kind))
    return table


def together(parts: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Of all episodes: exact but for quantiles, which are weighted means, as LeRobot has them."""
    count = np.array([part["count"][0] for part in parts], np.float64)[:, None]
    of = {name: np.array([part[name] for part in parts], np.float64) for name in parts[0]}
    found = {name: (of[name] * count).sum(0) / count.sum() for name in of if name == "mean" or name[0] == "q"}
    variance = ((of["std"] ** 2 + (of["mean"] - found["mean"]) ** 2) * count).sum(0) / count.sum()
    found |= {"min": of["min"].min(0), "max": of["max"].max(0), "std": np.sqrt(variance)}
    return {name: value.tolist() for name, value in found.items()} | {"count": [int(count.sum())]}
