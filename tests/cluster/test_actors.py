"""Work on a pool of actors whose processes really die."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from lawm.cluster.actors import Actors
from lawm.cluster.session import Session
from lawm.config import ClusterConfig, LawmError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def known_to_workers() -> Iterator[None]:
    """Ray's processes cannot import this file."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Worker:
    """Its process ends on a piece "die N" for the first N times, over all actors; those of the first actor made end on
    every piece. Counts in files: a process that ends takes its memory along."""

    def __init__(self, folder: str, first_is_ill: bool) -> None:
        self.folder, self.ill = Path(folder), False
        if first_is_ill:
            me = self._id()
            try:
                with open(self.folder / "ill", "x") as file:
                    file.write(me)
            except FileExistsError:
                pass
            self.ill = (self.folder / "ill").read_text() == me

    @staticmethod
    def _id() -> str:
        import ray

        return ray.get_runtime_context().get_actor_id()

    def do(self, piece: str) -> str:
        with open(self.folder / f"{piece}.log", "a") as file:
            file.write(self._id() + "\n")
        tries = len((self.folder / f"{piece}.log").read_text().splitlines())
        if self.ill or tries <= int(piece.partition(" ")[2] or 0):
            os._exit(1)
        return piece.upper()


def spread(folder: Path, pieces: list[str], count: int, first_is_ill: bool = False) -> list[Any]:
    found: dict[int, Any] = {}
    with Actors(Worker, (str(folder), first_is_ill), count, ClusterConfig()) as actors:
        actors.spread("do", pieces, found.__setitem__, what="episode")
    return [found.get(i) for i in range(len(pieces))]


def test_a_piece_whose_actor_died_is_done_by_another(
    ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spread(tmp_path, ["a", "die 1", "b"], 2) == ["A", "DIE 1", "B"]
    first, second = (tmp_path / "die 1.log").read_text().split()
    assert first != second
    assert "the actor of episode 1 died" in "".join(capsys.readouterr())


def test_an_actor_that_always_dies_does_not_end_the_run(
    ray_cluster: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It uses up its restarts, and the others do the rest."""
    pieces = [f"p{i}" for i in range(8)]
    assert spread(tmp_path, pieces, 2, first_is_ill=True) == [p.upper() for p in pieces]
    assert all(len(set((tmp_path / f"{p}.log").read_text().split())) <= 2 for p in pieces)
    assert "the actor of episode" in "".join(capsys.readouterr())


def test_an_only_actor_that_comes_back_goes_on(ray_cluster: Session, tmp_path: Path) -> None:
    assert spread(tmp_path, ["die 2", "a"], 1) == ["DIE 2", "A"]


def test_a_piece_that_ends_every_actor_is_named(ray_cluster: Session, tmp_path: Path) -> None:
    with pytest.raises(LawmError, match=r"^episode 1: its actor died 3 times"):
        spread(tmp_path, ["a", "die 9", "b"], 2)
    assert len((tmp_path / "die 9.log").read_text().split()) == 3


def test_where_no_actor_is_left_that_is_said(ray_cluster: Session, tmp_path: Path) -> None:
    with pytest.raises(LawmError, match=r"^episode \d: not done, as every actor has died for good"):
        spread(tmp_path, [f"p{i}" for i in range(8)], 1, first_is_ill=True)
