"""Tables as CSV, Markdown and LaTeX: nothing in a cell is taken for more than text."""

import csv
import io
import re

from lawm.report import Table, to_csv, to_latex, to_markdown
from lawm.report.sections import Estimate

NASTY = r"a_b & 100 % of $x$ \input{/etc/passwd} #1 {~^} [c] | *d* <b>"
TABLE = Table(
    "T_1", ["Measure", "Value [95 %]", "n"],
    [["↓ one_step", Estimate(0.123456789, 0.1, 0.2), 1200], [NASTY, Estimate(2.0, None, None), 3], ["[x]", None, 4]],
    frozenset({0}), "Data: a & b.",
)  # fmt: skip


def test_csv_keeps_every_digit() -> None:
    header, first, second, third = csv.reader(io.StringIO(to_csv(TABLE)))
    assert header == ["Measure", "Value [95 %]", "Value [95 %] low", "Value [95 %] high", "n"]
    assert first == ["↓ one_step", "0.123456789", "0.1", "0.2", "1200"]
    assert second == [NASTY, "2.0", "", "", "3"] and third == ["[x]", "", "", "", "4"]


def test_markdown_has_a_cell_for_each() -> None:
    lines = to_markdown(TABLE).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert lines[0] == r"### T\_1" and len(rows) == 5
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)  # three cells each
    assert rows[2].startswith(r"| · ↓ one\_step | 0.123 [0.100, 0.200] |") and r"\<b\>" in rows[3]
    assert rows[1] == "| --- | ---: | ---: |" and lines[-1] == "Data: a & b."


def commands(latex: str) -> set[str]:
    return set(re.findall(r"\\([A-Za-z]+)", latex))


def test_latex_has_no_commands_but_its_own() -> None:
    latex = to_latex(TABLE)
    own = {"begin", "end", "centering", "toprule", "midrule", "bottomrule", "caption", "downarrow", "cdot"}
    # What spells out the nasty characters, and what surrounds them.
    assert commands(latex) == own | {"textbackslash", "textasciitilde", "textasciicircum"}
    assert latex.isascii() and "input{" not in latex and r"\$x\$" in latex and r"100 \%" in latex
    body = latex.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 3 and all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in body)
    assert body[2].startswith("{}[x]")  # after a line's end a bracket would be taken for its height
    assert r"\caption{T\_1. Data: a \& b.}" in latex


def test_latex_is_balanced() -> None:
    latex = to_latex(TABLE)
    bare = re.sub(r"\\[{}]", "", latex)
    assert bare.count("{") == bare.count("}") and latex.count("$") - latex.count(r"\$") == 4
    assert latex.count(r"\begin{") == latex.count(r"\end{") == 2
