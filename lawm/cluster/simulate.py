"""Simulated data sets, episodes spread over Ray: each is written down as it is made, a rerun makes those missing."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lawm import storage
from lawm.cluster.actors import Actors
from lawm.config import ClusterConfig, LawmError
from lawm.data import join_episodes, written
from lawm.simulation import record, simulator_of

MANIFEST = "simulate.json"
TOGETHER = 4
"""Episodes of one call."""


class Recorder:
    """A simulator in an actor."""

    def __init__(self, world: str, spec: Any, out: str, seed: int) -> None:
        self.simulator, self.about = simulator_of(world, spec), spec.data_set(seed)
        self.out, self.seed = out, seed

    def episodes(self, numbers: Sequence[int]) -> int:
        return sum(record(self.simulator, self.about, self.out, self.seed, number) for number in numbers)


def simulate_on_ray(
    world: str,
    spec: Any,
    out: str,
    episodes: int,
    seed: int,
    actors: int,
    cluster: ClusterConfig,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes `episodes` episodes of a world as a LeRobot v3 data set to the folder `out`; how many were new. Raises
    LawmError for a folder that holds anything else, and for a simulator that cannot be had."""
    said = json.dumps({"world": world, "seed": seed, **vars(spec)}, indent=1).encode()
    where = storage.join(out, MANIFEST)
    if storage.exists(where) and storage.read_bytes(where) != said:
        raise LawmError(f"{out} holds episodes of other settings; choose another --out, or remove it")
    if not storage.exists(where) and storage.exists(out) and any(storage.list_files(out)):
        raise LawmError(f"{out} holds something else; choose another --out")
    storage.write_bytes(where, said)
    missing = sorted(set(range(episodes)) - written(out))
    done = episodes - len(missing)
    if missing:
        pieces = [missing[i : i + TOGETHER] for i in range(0, len(missing), TOGETHER)]
        with Actors(Recorder, (world, spec, out, seed), min(actors, len(pieces)), cluster) as pool:

            def keep(number: int, _: int) -> None:
                nonlocal done
                done += len(pieces[number])
                if progress is not None:
                    progress(done, episodes)

            pool.spread("episodes", pieces, keep, what="episodes")
    join_episodes(out, spec.data_set(seed), episodes)
    return len(missing)
