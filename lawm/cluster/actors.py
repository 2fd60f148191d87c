"""Work spread over actors that hold models: each piece goes to the next free one, and to another if its actor dies."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors

from lawm.cluster.session import TRAIN, in_short, label_selector, say
from lawm.config import ClusterConfig, LawmError

MAX_TRIES = 3
"""Tries of one piece of work, over actors that die, before the run stops."""


class Actors:
    """A pool of actors of one class, each with a CPU and a training worker's share of GPUs; free them with `close`."""

    def __init__(self, kind: type, arguments: tuple[Any, ...], count: int, cluster: ClusterConfig) -> None:
        # A dead actor comes back; its method is not retried by Ray, because `spread` counts the tries.
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": MAX_TRIES, "max_task_retries": 0}
        # Not in the caller's placement group: that of a trial of Tune has room for the trial's driver alone.
        options["scheduling_strategy"] = "DEFAULT"
        if cluster.gpus_per_worker:
            options["num_gpus"] = cluster.gpus_per_worker
        selector = label_selector(cluster, TRAIN)
        if selector:
            options["label_selector"] = selector
        remote: Any = ray.remote(**options)(kind)
        self.actors: list[Any] = [remote.remote(*arguments) for _ in range(count)]

    def spread(
        self,
        method: str,
        pieces: Sequence[Any],
        keep: Callable[[int, Any], None],
        *more: Any,
        what: str = "piece of work",
    ) -> None:
        """Calls `method(piece, *more)` for every piece; `keep(number, result)` gets each as it finishes.

        Raises LawmError for one whose actor died MAX_TRIES times."""
        waiting, tries = list(range(len(pieces))), [0] * len(pieces)
        running: dict[Any, tuple[Any, int]] = {}

        def give(actor: Any) -> None:
            if waiting:
                number = waiting.pop(0)
                tries[number] += 1
                running[getattr(actor, method).remote(pieces[number], *more)] = (actor, number)

        for actor in self.actors:
            give(actor)
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            actor, number = running.pop(done[0])
            try:
                keep(number, ray.get(done[0]))
            except (
                ray_errors.ActorDiedError,
                ray_errors.ActorUnavailableError,
                ray_errors.WorkerCrashedError,
            ) as error:
                if tries[number] >= MAX_TRIES:
                    said = f"{what} {number}: its actor died {MAX_TRIES} times ({type(error).__name__})"
                    raise LawmError(said) from error
                say(f"the actor of {what} {number} died ({in_short(error)}): it is done again by another")
                waiting.insert(0, number)
            give(actor)

    def close(self) -> None:
        """Ends the actors."""
        for actor in self.actors:
            ray.kill(actor)

    def __enter__(self) -> "Actors":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
