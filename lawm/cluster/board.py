"""The actor by which the workers of a run speak to each other and to the driver.

In a file of its own: its process then starts without torch and Ray Train, which take it three seconds.
"""

from typing import Any

import ray


@ray.remote(num_cpus=0)
class Board:
    """What the workers of a run tell each other and the driver: the latest figures, refused clips, and
    why the run cannot go on."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {"step": 0, "quarantined": 0}
        self.refused: list[dict[str, Any]] = []
        self.stopped = ""

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
