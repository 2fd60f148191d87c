"""Names on the terminal and in reports: as they are, on one line, nothing of them read as markup."""

import html
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from made_videos import write_video

from jobs import dataset as dataset_job
from jobs import index as index_job
from jobs.__main__ import main
from jobs._cli import shown
from lawm.cluster.dataset import DatasetReport
from lawm.cluster.index import IndexReport
from lawm.config import VideoLimits
from lawm.data import (
    ReadSpec,
    VideoLabels,
    group_pattern,
    grouped,
    list_videos,
    rows_to_table,
    write_index,
    write_labels,
)
from lawm.video import probe

ODD = "Me at the zoo [jNQXAC9IVRw] [bold] :smile: $x_1$ <b>&amp; 100% " + "long " * 20 + ".mp4"


def test_a_report_of_an_index_shows_names_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    index_job._print(IndexReport("/a [b].parquet", 3, 2, {"truncated": 1}, {"truncated": ODD}, 0, 1.0))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["videos              count  for example", "usable                  2"]
    assert lines[2] == f"refused: truncated      1  {ODD}" and lines[3].endswith("Index: /a [b].parquet")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert shown("a\x1b[31mb\nc\x07\u202ed") == "a\\x1b[31mb\\nc\\x07\\u202ed"
    assert shown("日本語 é e\u0301 [x]") == "日本語 é e\u0301 [x]"


def test_the_last_line_of_dataset_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "it's [a] set"
    out.mkdir()
    write_video(tmp_path / "v.mp4", 120)
    index, labels = str(out / "index.parquet"), str(out / "labels.parquet")
    write_index(rows_to_table([probe(ref, VideoLimits()) for ref in list_videos([str(tmp_path)])]), index)
    write_labels([VideoLabels("v.mp4", 4.0, np.ones((20, 2)))], labels)
    spec = ReadSpec("lerobot", ("front",), "first", "action")
    report = DatasetReport(index, labels, None, 1, 1, 0.1, {}, {}, spec, ("2 videos begin elsewhere",))
    dataset_job._print(report)
    said = capsys.readouterr().out.splitlines()
    assert "2 videos begin elsewhere" in said
    program, *arguments = shlex.split(said[-1])
    assert program == "lawm"
    assert main([*arguments, "--recipe", "tiny", "--set", "data.val_fraction=0", "--dry-run"]) == 0
    assert "trained on: 1 video" in capsys.readouterr().out


def test_inspecting_an_index_shows_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v").mkdir()
    for name in (ODD, "[red]twin.mp4"):
        write_video(tmp_path / "v" / name, 60)
    where = str(tmp_path / "i [x].parquet")
    write_index(rows_to_table([probe(ref, VideoLimits()) for ref in list_videos([str(tmp_path / "v")])]), where)
    report = str(tmp_path / "report [y].html")
    assert main(["inspect", where, "--out", report, "--recipe", "tiny", "--clips", "2"]) == 0
    assert f"report: {report}" in capsys.readouterr().out
    page = Path(report).read_text()
    assert "<b>&amp; 100%" not in page
    texts = html.unescape(re.sub(r"<[^>]*>", " ", page))
    assert "[red]twin.mp4" in texts and "<b>&amp; 100%" in texts


def test_groups_by_a_pattern() -> None:
    def groups(pattern: str, *keys: str) -> list[str | None]:
        from lawm.video import VideoRef

        return [r.group for r in grouped((VideoRef("/v", 0, 1, key) for key in keys), group_pattern(pattern))]

    assert groups("^[^/]+", "film 1/a.mp4", "film 1/b.mp4", "film 2/a.mp4") == ["film 1", "film 1", "film 2"]
    assert groups(r"(.{11})_\d+\.mp4$", "x/abcdefghijk_01.mp4", "other.mp4") == ["abcdefghijk", None]
    assert groups(r"(a)?b", "b.mp4") == [None]


def test_a_pattern_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "x", "--group", "("]) == 2
    assert "--group (: not a regular expression" in capsys.readouterr().err


def test_what_a_pattern_came_to_is_said(tmp_path: Path) -> None:
    from lawm.video import VideoRef, empty_row

    names = {"f/1.mp4": "f", "f/2.mp4": "f", "g/1.mp4": "g", "alone.mp4": None}
    rows = [empty_row(VideoRef("/v", 0, 1, key, group=group)) for key, group in names.items()]
    write_index(rows_to_table(rows), str(tmp_path / "i.parquet"))
    said = "--group ^([^/]+)/: 2 groups; 1 videos do not match and stand alone"
    assert index_job._grouped("^([^/]+)/", str(tmp_path / "i.parquet")) == said
    write_index(rows_to_table([row | {"group": None} for row in rows]), str(tmp_path / "i.parquet"))
    assert index_job._grouped("x", str(tmp_path / "i.parquet")) == (
        "--group x: 0 groups; 4 videos do not match and stand alone"
    )
