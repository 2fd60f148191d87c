"""What the workers' board says of restarts."""

from typing import Any

import pytest

from lawm.cluster.board import Board


@pytest.fixture
def board() -> Any:
    """The actor's own class, in this process."""
    return Board.__ray_metadata__.modified_class()  # type: ignore[attr-defined]


def test_a_first_start_is_no_restart(board: Any) -> None:
    assert board.began(0) is None and board.take_restarts() == []


def test_workers_that_died_before_they_began_are_told_and_counted(board: Any) -> None:
    board.failed("worker 0: killed while it read the weights")
    board.failed("worker 1: killed too")
    told = board.began(0)
    assert (told["number"], told["step"], told["event"]) == (2, 0, "restart")
    assert told["reason"] == "worker 0: killed while it read the weights; worker 1: killed too"
    board.failed("worker 0: a node has gone")
    assert board.began(6)["number"] == 3
    assert [(one["number"], one["step"]) for one in board.take_restarts()] == [(2, 0), (3, 6)]
    assert board.take_restarts() == []


def test_a_restart_of_which_nobody_heard_why_counts_too(board: Any) -> None:
    assert board.began(0) is None
    assert (told := board.began(3))["number"] == 1 and told["reason"] == "no reason was given"
    board.failed("worker 0: out of memory")
    assert board.began(3)["number"] == 2
