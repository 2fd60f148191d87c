"""Typed values, figures made of them, and what is said of those that are missing."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from lawm.config import LawmError
from lawm.evaluation import SUITE, Figure, Measured, Missing, Omission, PerClip, from_json, summarize, to_json
from lawm.evaluation.results import Values, ratio_figure


@dataclass(frozen=True)
class Example(PerClip):
    x: np.ndarray
    y: Values


FIGURES: tuple[Figure[Example], ...] = (
    Figure("a", lambda v: (v.x,), better="lower"),
    ratio_figure("r", lambda v: (v.x, v.y), control="c", one="1.0: nothing"),
)
VALUES = Example(
    np.array(["v", "w", "w", "u"], object), np.array([1.0, np.nan, 3.0, 8.0]), np.array([2.0, 5.0, 4.0, 6.0])
)


def test_figures_of_values_that_are_there() -> None:
    a, r = summarize(FIGURES, VALUES, "set", 7, 100, 0, "said once").results
    assert (a.name, a.value, a.n, a.videos, a.unit, a.dataset, a.step) == ("a", 4.0, 3, 3, "L1", "set", 7)
    assert (r.name, r.n, r.unit, r.control, r.one) == ("r", 3, "ratio", "c", "1.0: nothing")
    assert r.value == pytest.approx(12 / 12) and (a.better, r.better) == ("lower", "")
    assert a.note == "1 of 4 clips left out: no finite value; said once"


def test_a_value_that_is_missing_is_an_omission_with_its_reason() -> None:
    values = Example(VALUES.groups, VALUES.x, Missing("no twin was given"))
    measured = summarize(FIGURES, values, "set", 7, 100, 0)
    assert [r.name for r in measured.results] == ["a"]
    assert measured.omitted == [Omission("r", "no twin was given", "set")]
    nothing = Example(VALUES.groups, np.full(4, np.nan), VALUES.y)
    assert {o.name for o in summarize(FIGURES, nothing, "set", 7, 100, 0).omitted} == {"a", "r"}


def test_a_value_that_was_forgotten_is_an_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        Example(VALUES.groups, VALUES.x)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Example\.y is a NoneType"):
        Example(VALUES.groups, VALUES.x, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Example\.y: 3 values of 4 clips"):
        Example(VALUES.groups, VALUES.x, np.ones(3))
    misspelt: tuple[Figure[Example], ...] = (Figure("z", lambda v: (v.z,)),)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        summarize(misspelt, VALUES, "set", 7, 100, 0)


def test_units_are_joined_in_order_and_have_the_same_fields() -> None:
    none = Example(VALUES.groups, VALUES.x, Missing("no twin"))
    joined = Example.join([VALUES, VALUES])
    assert joined.groups.tolist() == [*"vwwu"] * 2 and joined.x.shape == (8,)
    assert Example.join([none, none]).y == Missing("no twin")
    with pytest.raises(ValueError, match=r"Example\.y is missing from 1 of 2 units"):
        Example.join([VALUES, none])


def test_results_go_through_a_file() -> None:
    measured = summarize(FIGURES, Example(VALUES.groups, VALUES.x, Missing("no twin")), "set", 7, 100, 0)
    measured += Measured(notes=["2 clips were refused"])
    assert from_json(json.loads(json.dumps(to_json(measured))), "f.json") == measured


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"name": "a", "value": 1.0, "low": 0.5, "high": 2.0, "n": 3}], "over clips, as an older lawm made them"),
        ({"format": 3, "results": []}, "results of format 3"),
        ({"format": 2, "results": [{"nam": 1}], "omitted": [], "notes": []}, "not a results file"),
        ([1, 2], "not a results file"),
        ("x", "not a results file"),
    ],
)
def test_other_files_are_refused_in_a_line(data: object, said: str) -> None:
    with pytest.raises(LawmError, match=said):
        from_json(data, "f.json")


def test_every_figure_says_how_to_read_it() -> None:
    """Which way is better, or that it is a control; what its landmark means, where it is a ratio or a share."""
    figures = [figure for evaluation in SUITE.values() for figure in evaluation.figures]
    names = {figure.name for figure in figures}
    assert len(names) == len(figures)
    for figure in figures:
        assert not (figure.control and figure.better), figure.name
        assert figure.control or figure.better or figure.one or figure.unit in ("nats", "L1"), figure.name
        if figure.unit in ("ratio", "share", "R^2") and not figure.control:
            assert figure.one, figure.name
        assert figure.checked_by in (*names, ""), figure.name
