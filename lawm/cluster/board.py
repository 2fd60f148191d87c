"""The actor by which the workers of a run speak to each other and to the driver.

In a file of its own: its process then starts without torch and Ray Train, which take it three seconds.
"""

import time
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Board:
    """What the workers of a run tell each other and the driver: the latest figures, refused clips, why the run cannot
    go on, why it had to be started again, and what else is to be said."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {"step": 0, "quarantined": 0}
        self.refused: list[dict[str, Any]] = []
        self.stopped = ""
        self.starts = 0
        self.failures: list[str] = []
        self.ended = 0
        self.restarts: list[dict[str, Any]] = []
        self.said: list[str] = []

    def failed(self, why: str) -> None:
        """Why workers have ended before their time."""
        self.failures.append(why)
        self.ended += 1

    def began(self, step: int) -> dict[str, Any] | None:
        """The workers begin at `step`: what is to be told of it, where it is not the first time. Those that ended
        before they began, while they read the data or the weights, count too."""
        self.starts += 1
        if self.starts == 1 and not self.failures:
            return None
        self.ended += not self.failures  # started again, and nobody has heard why
        why = "; ".join(self.failures) or "no reason was given"
        told = {"step": step, "time": time.time(), "event": "restart", "number": self.ended, "reason": why}
        self.failures = []
        self.restarts.append(told)
        return told

    def take_restarts(self) -> list[dict[str, Any]]:
        """Restarts that have not been taken yet."""
        taken, self.restarts = self.restarts, []
        return taken

    def say(self, text: str) -> None:
        """A line for the driver's terminal: what workers print is not seen there."""
        self.said.append(text)

    def take_said(self) -> list[str]:
        """Lines that have not been taken yet."""
        taken, self.said = self.said, []
        return taken

    def put(self, figures: dict[str, Any]) -> None:
        self.latest |= figures

    def bad(self, record: dict[str, Any]) -> None:
        self.latest["quarantined"] += 1
        self.refused.append(record)

    def take_refused(self) -> list[dict[str, Any]]:
        """Refused clips, of all ranks, that have not been taken yet."""
        taken, self.refused = self.refused, []
        return taken

    def stop(self, why: str) -> None:
        self.stopped = why

    def why_stopped(self) -> str:
        return self.stopped

    def get(self) -> dict[str, Any]:
        return self.latest
