"""One-line readings of Ray's errors, and of lawm's own below them."""

from collections.abc import Iterator
from typing import Any

from ray import exceptions as ray_errors

from lawm.config import LawmError


def explain(error: BaseException) -> str | None:
    """One line for an error of Ray's that the user can put right; None for anything else, which is a bug.

    A LawmError raised in a task, an actor or a training worker is found below the errors that Ray wraps it in.
    """
    chain = list(causes(error))
    for one in chain:
        if isinstance(one, LawmError) and not isinstance(one, ray_errors.RayTaskError):
            return str(one)
    for one in chain:
        for kind, said in _REMEDIES:
            if isinstance(one, kind):
                return said.format(error=first_line(one))
        if type(one).__name__ in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"):
            return (
                f"the training workers found no room in the cluster ({first_line(one)}). "
                "Lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker by --set"
            )
    return None


_REMEDIES: list[tuple[type[BaseException], str]] = [
    (
        ray_errors.AuthenticationError,
        "the Ray cluster asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the "
        "cluster's, as `ray get-auth-token` prints it on the head node",
    ),
    (
        ray_errors.OutOfDiskError,
        "the disk that Ray spills to is full ({error}). Free space, or set TMPDIR to a larger disk",
    ),
    (ray_errors.ObjectStoreFullError, "Ray's object store is full ({error}). Lower the batch: --set train.batch=N"),
    (
        ray_errors.OutOfMemoryError,
        "a worker was stopped because its node ran out of memory ({error}). Lower the batch or the workers",
    ),
    (ray_errors.TaskUnschedulableError, "no node of the cluster can hold a task of this job ({error})"),
    (ray_errors.ActorUnschedulableError, "no node of the cluster can hold an actor of this job ({error})"),
    (ray_errors.RuntimeEnvSetupError, "a node could not set up the job's environment ({error})"),
    (
        ray_errors.LocalRayletDiedError,
        "Ray on this node has died (often: out of memory). Run the same command again to go on",
    ),
    (ray_errors.NodeDiedError, "a node of the cluster has died ({error}). Run the same command again to go on"),
]


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it wraps: causes, Ray's task causes, Train's worker and controller failures.

    Not `__context__`: what goes wrong while an error is handled is a bug of its own.
    """
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        one = queue.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        known = vars(one)
        queue += [known.get(name) for name in ("cause", "controller_failure", "health_check_failure", "_base_exc")]
        queue.append(one.__cause__)
        failures = known.get("worker_failures")
        queue += list(failures.values()) if isinstance(failures, dict) else []


def is_death(error: BaseException) -> bool:
    """Whether a process or its node has ended."""
    return isinstance(error, ray_errors.RayActorError | ray_errors.WorkerCrashedError | ray_errors.NodeDiedError)


def in_short(error: BaseException) -> str:
    """One line for any error, as `explain` has it or else its kind and its own first line."""
    said = explain(error)
    if said is None:
        inner = list(causes(error))[-1]
        line = first_line(inner)
        said = line if type(inner).__name__ in line else f"{type(inner).__name__}: {line}"
    return " ".join(said.split())


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
