"""Imports that a cancelled task does not cut in two: a module of tasks that may be cancelled imports this one first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT, by which Ray cancels a task, waits until the block is done.

    A package whose import is interrupted is forgotten, its modules are not; imported again it lacks them ("module 'av'
    has no attribute 'error'"), and every later task of that process fails.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def wait(number: int, frame: Any) -> None:
        came.append(number)

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


with uninterrupted():
    import av  # noqa: F401
    import pydantic  # noqa: F401
