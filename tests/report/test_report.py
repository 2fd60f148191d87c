"""The report: valid HTML that holds every number, needs nothing from outside, and escapes what it is given."""

import base64
import hashlib
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lawm.evaluation import LatentUsage, Measured, Missing, Omission, Result
from lawm.recipes import demo
from lawm.report import (
    Bars,
    Curves,
    Details,
    Estimate,
    Film,
    Films,
    Headline,
    Headlines,
    Measurement,
    Pictures,
    Plot,
    PointGroup,
    Points,
    Section,
    Series,
    Table,
    Text,
    capacity_sections,
    format_number,
    machine,
    pareto_plot,
    pareto_set,
    print_headlines,
    print_sections,
    print_table,
    results_sections,
    results_table,
    summary_sections,
    usage_sections,
    write_report,
)
from lawm.report.page import render_report
from lawm.report.plots import bars_plot, curves_plot, points_plot
from lawm.report.tables import reading_table

NASTY = "<script>alert('x')</script> & \"quotes\" $\\frac{"
RESULTS = [
    Result("one-step error", 0.7262, 0.7094, 0.7411, 512, 64, "L1", "PushT, held-out", 700, better="lower"),
    Result("one-step error", 1.1301, 1.0902, 1.1703, 512, 64, "L1", "PushT, held-out", 700, control="shuffled latents"),
    Result("planning error", 67.24, 50.02, 84.31, 40, 20, "arena units", "PushT, held-out", 700),
]


class Checker(HTMLParser):
    """Follows the nesting of tags and gathers texts and attributes."""

    VOID = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack and "script" not in self.stack:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def images(self) -> list[np.ndarray]:
        """All that are PNG, which is all but films."""
        sources = [a.get("src") or a.get("srcset") or "" for tag, a in self.tags if tag in ("img", "source")]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2])))) for s in sources]


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert page.startswith("<!DOCTYPE html>") and checker.stack == []
    assert not [tag for tag, _ in checker.tags if tag in ("link", "iframe", "object", "base")]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)  # its own, and the policy lets no other run
    assert [a for tag, a in checker.tags if tag == "script"] == [{}]
    (policy,) = (a["content"] for tag, a in checker.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and policy.startswith("default-src 'none';") and policy.endswith(f"script-src 'sha256-{digest}'")
    for tag, attributes in checker.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not {"href", "action", "formaction", "data"} & set(attributes), tag
        if tag == "img":
            assert attributes.get("alt")
    assert not re.search(r"https?://|url\(|@import|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    return checker


def curves(**changed: object) -> Curves:
    steps = [0.0, 10.0, 20.0, 30.0]
    lines = [Series("noisy", steps, [1, 0.5, float("nan"), 0.2]), Series("twin", steps, [2, 1, 0.8, 0.7], dashed=True)]
    settings: dict[str, Any] = {"title": "Loss", "series": lines, "x_label": "step", "y_label": "L1"} | changed
    return Curves(**settings)


def test_a_whole_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 256, (2, 3, 20, 20, 3), dtype=np.uint8)
    sections: list[Section] = [
        Headlines(
            "Headlines",
            [
                Headline("error over deterministic", 0.781, 0.744, 0.812, n=512, videos=64, at_most=0.85),
                Headline("shuffled over error", 1.214, 1.103, 1.302, n=512, at_least=1.3, note="one seed"),
                Headline("planning error", 67.24, unit="arena units"),
            ],
        ),
        Text("About", "First paragraph.\n\nSecond paragraph."),
        results_table("Evaluation", RESULTS, "Controls are marked."),
        curves(),
        Plot("Search", pareto_plot([1, 2], [2, 1], x_label="leakage", y_label="error")),
        Pictures("Frames", [list(true), [*predicted[:2], None]], ["true", "predicted"], ["0 s", "0.25 s", "0.5 s"]),
        Details("Config", demo().model_dump()),
        Details("Machine", machine(), open=True),
    ]
    uri = str(tmp_path / "report.html")
    assert write_report(uri, "lawm demo", sections, "PushT") == uri
    page = Path(uri).read_text(encoding="utf-8")
    checker = checked(page)
    for expected in (
        "0.726 [0.709, 0.741]", "1.13 [1.09, 1.17]", "67.2 [50.0, 84.3]", "512 64",
        "Step: 700.", "arena units", "Data: PushT, held-out.",
        "0.781", "[0.744, 0.812], n = 512 of 64 videos", "reached: at most 0.85", "missed: at least 1.3", "one seed",
        "First paragraph.", "Second paragraph.", "Controls are marked.", "model.bottleneck.beta 3e-05", "python",
    ):  # fmt: skip
        assert expected in checker.text, expected
    assert [a for tag, a in checker.tags if tag == "tr" and a.get("class") == "control"] == [{"class": "control"}]
    images = checker.images()
    assert len(images) == 2 + 1 + 5  # curves in light and dark, the plot, five pictures
    for wanted, shown in zip([*true, *predicted[:2]], images[3:], strict=True):
        np.testing.assert_array_equal(shown, wanted)


def test_text_is_escaped_everywhere() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    film = Film(NASTY, [NASTY], [np.zeros((2, 8, 8, 3), np.uint8)])
    one = PointGroup(NASTY, [Estimate(1, 0.5, 1.5)], [Estimate(2, None, None)], [NASTY])
    result = Result(NASTY, 1.0, 0.5, 1.5, 3, 2, NASTY, NASTY, 1, control=NASTY, one=NASTY, note=NASTY, checked_by=NASTY)
    sections: list[Section] = [
        Headlines(NASTY, [Headline(NASTY, 1.0, unit=NASTY, note=NASTY, at_most=2)]),
        Text(NASTY, NASTY, warning=True),
        *results_sections(NASTY, Measured([result], [Omission(NASTY, NASTY, NASTY)], [NASTY])),
        curves(title=NASTY, x_label=NASTY, caption=NASTY, series=[Series(NASTY, [0, 1], [1, 2])]),
        Plot(NASTY, pareto_plot([1], [1], x_label=NASTY, y_label=NASTY, labels=[NASTY]), caption=NASTY),
        Points(NASTY, [one], NASTY, NASTY, NASTY),
        Bars(NASTY, [1.0, 2.0], NASTY, NASTY, caption=NASTY),
        Pictures(NASTY, [[image]], [NASTY], [NASTY], caption=NASTY, headings={0: NASTY}),
        Films(NASTY, [film], 4.0, NASTY),
        Details(NASTY, {NASTY: {NASTY: NASTY}}),
        Details(NASTY, NASTY),
    ]
    page = render_report(NASTY, sections, NASTY)
    assert checked(page).text.count("<script>alert('x')</script>") >= 20  # as text, never as a tag


def test_terminal_shows_the_same_numbers() -> None:
    sink = io.StringIO()
    console = Console(file=sink, width=120)
    print_table(results_table("Evaluation [bold]", RESULTS), console)
    print_headlines(Headlines("Gates", [Headline("error [red]", 0.9, 0.8, 1.0, at_most=0.85)]), console)
    said = sink.getvalue()
    for expected in (
        "0.726 [0.709, 0.741]",
        "· one-step error",
        "↓ one-step error",
        "Evaluation [bold]",
        "error [red]",
    ):
        assert expected in said, expected
    assert "at most 0.85" in said and "missed" in said


def test_headline_names_and_values_stay_whole_at_80_columns() -> None:
    sink = io.StringIO()
    names = ["error_vs_deterministic", "planning_vs_no_action", "controller_shuffled_vs_own"]
    items = [Headline(name, 0.327, 0.223, 0.481, 256, "ratio", at_most=0.5, videos=64) for name in names]
    print_headlines(Headlines("Headline figures", items), Console(file=sink, width=80))
    said = sink.getvalue()
    assert max(map(len, said.splitlines())) <= 80 and "…" not in said
    for name in names:
        (line,) = (line for line in said.splitlines() if name in line)
        assert "0.327 [0.223, 0.481]" in line
    assert said.count("reached") == 3 and said.count("at most") == 3


def test_names_stay_whole_on_a_narrow_terminal_and_no_escape_reaches_it() -> None:
    sink = io.StringIO()
    console = Console(file=sink, width=80)
    names = ["controller_shuffled_vs_own", "leakage_score_copying_code", "probe_r2_linear[x of the end effector (m)]"]
    results = [
        Result(name, -2.24e-4, -7.84e-4, 3.36e-4, 256, 41, "standardised", "d\x1b[31m", 7, one="1.0: nothing")
        for name in names
    ]
    print_sections(results_sections("runs/[red]\x1b[31mrun", Measured(results)), console)
    said = sink.getvalue()
    assert all(name in said for name in names) and "\x1b[31m" not in said and "[red]" in said
    assert max(map(len, said.splitlines())) <= 80


def test_results_say_how_to_read_them_and_what_is_not_there() -> None:
    result = Result("r", 1.02, None, None, 8, 1, "ratio", "set", 7, better="lower", one="1.0: no better", note="short")
    checked = Result("q", 1.02, 1.0, 1.1, 8, 4, "ratio", "set", 7, checked_by="r", note="short")
    missing = [Omission("a", "no twin was given"), Omission("b", "no twin was given")]
    shown = results_sections("t", Measured([result, checked], missing, ["2 clips were refused"]))
    table, absent, reading = shown[1:]
    assert isinstance(table, Table) and "r, q: short." in table.caption
    assert table.rows[0][0] == "↓ r" and table.rows[0][2:4] == [8, 1]
    assert isinstance(absent, Text)
    assert absent.body == "Not measured: a, b: no twin was given.\n\n2 clips were refused."
    assert isinstance(reading, Table) and reading == reading_table([result, checked])
    assert reading.rows == [["r", "1.0: no better"], ["q", "read it with r"]]


def test_seeds_get_a_column_only_where_they_differ() -> None:
    assert "Seed" not in results_table("t", RESULTS).columns
    table = results_table("t", [*RESULTS, Result("e", 1, 1, 1, 2, 2, "", "d", 3, seed=4)])
    assert table.columns[-3:] == ["Data", "Step", "Seed"] and [row[-1] for row in table.rows] == [0, 0, 0, 4]
    assert table.controls == {1}
    with pytest.raises(ValueError, match="row 0 has 1 cells, 2 expected"):
        Table("t", ["a", "b"], [["x"]])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.72621, "0.726"), (67.24, "67.2"), (155.4, "155"), (1234567, "1,234,567"), (12345.6, "12,346"),
        (3e-5, "3.00e-05"), (2.5e9, "2.50e+09"), (0.0, "0"), (-1.5, "-1.50"), (np.float32(0.5), "0.500"),
        (np.int64(7), "7"), (True, "yes"), (None, "-"), (float("nan"), "-"), (float("inf"), "-"),
    ],
)  # fmt: skip
def test_numbers_as_text(value: object, shown: str) -> None:
    assert format_number(value) == shown


@pytest.mark.parametrize(
    ("item", "passed"),
    [
        (Headline("a", 0.5), None),
        (Headline("a", 0.5, at_most=0.5), True),
        (Headline("a", 0.51, at_most=0.5), False),
        (Headline("a", 1.3, at_least=1.3), True),
        (Headline("a", 1.2, at_least=1.3), False),
        (Headline("a", 1.2, at_least=1.0, at_most=1.1), False),
        (Headline("a", float("nan"), at_most=0.5), False),
        (Headline("a", float("-inf"), at_most=0.5), False),
    ],
)
def test_gates(item: Headline, passed: bool | None) -> None:
    assert item.passed is passed


# ---------------------------------------------------------------- plots
def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_curves_differ_by_theme_and_data_and_leave_no_state() -> None:
    light, dark = curves_plot(curves()), curves_plot(curves(), dark=True)
    assert size(light) == size(dark) and light != dark
    means = [np.asarray(Image.open(io.BytesIO(png)).convert("L")).mean() for png in (light, dark)]
    assert means[0] > 200 and means[1] < 60
    assert curves_plot(curves(log_y=True)) != light
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("y", [[], [float("nan"), float("nan")], [0.0, -1.0]])
def test_curves_with_nothing_to_show(y: list[float]) -> None:
    assert size(curves_plot(curves(series=[Series("_empty $", list(range(len(y))), y)], log_y=True)))[0] > 100
    assert size(curves_plot(curves(series=[])))[0] > 100


def test_pareto_set() -> None:
    x, y = [3, 1, 2, 2, 4, float("nan"), 1], [1, 3, 2, 5, 4, 0, 3]
    assert pareto_set(x, y) == [1, 6, 2, 0]
    assert pareto_set(x, y, minimize=(True, False)) == [1, 6, 3]
    assert pareto_set([], []) == []
    # Against the definition, point by point.
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 12, (2, 60))
    beaten = [any(a[j] <= a[i] and b[j] <= b[i] and (a[j] < a[i] or b[j] < b[i]) for j in range(60)) for i in range(60)]
    assert sorted(pareto_set(a, b)) == [i for i in range(60) if not beaten[i]]


def test_pareto_plot_with_failed_trials() -> None:
    kind: dict[str, Any] = {"x_label": "leakage", "y_label": "error"}
    whole = pareto_plot([1, 2, 3], [3, 1, 2], labels=["a", "b", "c"], **kind)
    failed = pareto_plot([1, 2, float("nan")], [3, 1, 2], labels=["a", "b", "c"], **kind)
    assert whole != failed and size(whole) == size(failed) == size(pareto_plot([], [], **kind))


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 5), np.uint8)])
def test_pictures_of_another_form_are_a_bug(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        render_report("t", [Pictures("p", [[image]])])


def test_points_and_bars_follow_their_data() -> None:
    def drawn(*values: float) -> bytes:
        y = [Estimate(v, v - 1, v + 1) for v in values]
        return points_plot(Points("p", [PointGroup("g", [Estimate(i, None, None) for i in range(3)], y)], "x", "y"))

    nan = float("nan")
    assert size(drawn(1, 2, 3)) == size(drawn(nan, nan, nan)) and drawn(1, 2, 3) != drawn(1, 2, 4) != drawn(1, 2, nan)
    with pytest.raises(ValueError, match="1 x, 0 y"):
        PointGroup("g", [Estimate(1, None, None)], [])
    few, many = bars_plot(Bars("b", [1, 2], "x", "y")), bars_plot(Bars("b", list(range(500)), "x", "y"))
    assert size(few) == size(many) and few != many and few != bars_plot(Bars("b", [1, 3], "x", "y"), dark=True)


# ---------------------------------------------------------------- what stands first, and several runs
def test_the_summary_is_the_verdict_and_the_key_figures_of_the_first_data() -> None:
    def result(name: str, value: float, dataset: str = "held-out") -> Result:
        return Result(name, value, value, value, 8, 4, "ratio", dataset, 7, one="1.0: nothing")

    found = [result("cycle_ratio", 1.1), result("error_vs_deterministic", 0.8), result("other", 5.0)]
    first, key, second = summary_sections([*found, result("cycle_ratio", 9.0, "elsewhere")])
    assert isinstance(first, Text) and first.title == "Verdict (held-out)"
    assert isinstance(key, Headlines) and isinstance(second, Text) and second.title == "Verdict (elsewhere)"
    assert [(item.name, item.value) for item in key.items] == [("error_vs_deterministic", 0.8), ("cycle_ratio", 1.1)]
    assert summary_sections([]) == [] and len(summary_sections([result("other", 1.0)])) == 1


def measurement(run: str, group: str, **figures: float) -> Measurement:
    return Measurement(run, group, f"of {run}", {name: Estimate(value, None, None) for name, value in figures.items()})


def test_capacity_is_set_against_every_figure_that_two_runs_have() -> None:
    runs = [
        measurement("a", "noisy", error_vs_deterministic=0.8, cycle_ratio=1.2, leakage_score=0.3),
        measurement("b", "noisy", error_vs_deterministic=0.7, cycle_ratio=1.3),
        measurement("c", "sparse", error_vs_deterministic=0.9, cycle_ratio=1.1),
        measurement("d", "sparse", cycle_ratio=1.1),
    ]
    (points,) = capacity_sections(runs)
    assert isinstance(points, Points) and points.title == "Capacity against cycle_ratio"
    assert [(group.name, [e.value for e in group.x], list(group.labels)) for group in points.groups] == [
        ("noisy", [0.7, 0.8], ["of b", "of a"]),
        ("sparse", [0.9], ["of c"]),
    ]
    assert "left out: d" in points.caption and points.x_label.startswith("one-step error / deterministic")
    with_ends = [measurement(n, "noisy", error_vs_copy=1, normalized_capacity=0.5, cycle_ratio=1) for n in "ab"]
    (points,) = capacity_sections(with_ends)
    assert isinstance(points, Points) and points.x_label.startswith("capacity: 0")
    (said,) = capacity_sections(runs[:1])
    assert isinstance(said, Text) and said.body.startswith("No plots: 1 of 1 runs have a figure of capacity")


def test_the_use_of_latents_is_said_with_its_numbers() -> None:
    usage = LatentUsage(
        "discrete", 3, np.array([1, 1, 4, 2]), np.ones(4), 2.5, Missing("no prior"), np.array([3, 0, 1, 0])
    )
    active, spread, codes = usage_sections(usage)
    assert isinstance(active, Bars) and active.heights == [0, 0.5, 0.25, 0, 0.25] and "2.0 in use" in active.caption
    assert isinstance(spread, Bars) and spread.heights == [1, 1, 1, 1]
    assert isinstance(codes, Bars) and codes.heights == [0.75, 0.25] and "2 of 4 codes are taken" in codes.caption
    nats = usage_sections(LatentUsage("noisy", 3, np.array([1]), np.ones(2), 1.0, np.array([0.0, 2.5]), Missing("-")))[
        1
    ]
    assert isinstance(nats, Bars) and nats.heights == [2.5, 0.0] and "1 of 2 numbers hold more" in nats.caption
    (said,) = usage_sections(Missing("a deterministic model has no latent actions"))
    assert isinstance(said, Text) and said.body == "Not there: a deterministic model has no latent actions."
