"""Work spread over actors that hold models: each piece goes to the next free one, and to another if its actor dies."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors

from lawm.cluster.session import TRAIN, in_short, label_selector, say
from lawm.config import ClusterConfig, LawmError

MAX_TRIES = 3
"""Tries of one piece of work, over actors that die, before the run stops."""

DEATHS = (ray_errors.RayActorError, ray_errors.WorkerCrashedError, ray_errors.OutOfMemoryError)


class Actors:
    """A pool of actors of one class, each with a CPU and a training worker's share of GPUs; free them with `close`."""

    def __init__(self, kind: type, arguments: tuple[Any, ...], count: int, cluster: ClusterConfig) -> None:
        # A dead actor comes back. Without task retries Ray would refuse calls until it has; so they wait for it.
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": MAX_TRIES, "max_task_retries": -1}
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

        A piece whose actor died goes to another one, where one lives; that actor gets work again once Ray has started
        it anew. Raises LawmError for a piece whose actors died MAX_TRIES times, and where no actor is left."""
        waiting = list(range(len(pieces)))
        died: dict[int, list[Any]] = {number: [] for number in waiting}
        idle, living = list(self.actors), set(self.actors)
        running: dict[Any, tuple[Any, int | None]] = {}
        """Of each call its actor, and its piece; None: the actor is waited for."""
        last = ""

        def give() -> None:
            for actor in list(idle):
                number = next((n for n in waiting if actor not in died[n] or living <= set(died[n])), None)
                if number is not None:
                    idle.remove(actor)
                    waiting.remove(number)
                    call = getattr(actor, method).options(max_task_retries=0)  # the tries are counted here
                    running[call.remote(pieces[number], *more)] = (actor, number)

        give()
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            actor, number = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except DEATHS as error:
                last = _why(error)
                if number is None:
                    living.discard(actor)
                    say(f"an actor is not started again ({last}): {len(living)} of {len(self.actors)} are left")
                else:
                    self._again(what, number, died[number], actor, error)
                    waiting.append(number)
                    running[actor.__ray_ready__.remote()] = (actor, None)
            else:
                idle.append(actor)
                if number is not None:
                    keep(number, result)
            give()
        if waiting:
            raise LawmError(f"{what} {waiting[0]}: not done, as every actor has died for good ({last})")

    def _again(self, what: str, number: int, died: list[Any], actor: Any, error: Exception) -> None:
        """Notes that the actor died with that piece. Raises LawmError where too many did."""
        died.append(actor)
        if len(died) >= MAX_TRIES:
            raise LawmError(f"{what} {number}: its actor died {MAX_TRIES} times, at last: {_why(error)}") from error
        say(f"the actor of {what} {number} died ({_why(error)}): it is done again by another")

    def close(self) -> None:
        """Ends the actors."""
        for actor in self.actors:
            ray.kill(actor)

    def __enter__(self) -> "Actors":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _why(error: BaseException) -> str:
    """Why an actor died, in one line; of one that could not be made, what its `__init__` raised."""
    if getattr(error, "actor_init_failed", False):
        return str(error).strip().splitlines()[-1].strip()
    return in_short(error)
