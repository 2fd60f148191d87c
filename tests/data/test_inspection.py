"""`lawm inspect` on videos of which everything is known."""

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from made_videos import LIMITS, number_of, write_video
from PIL import Image

from jobs.__main__ import main
from jobs.inspect_ import contact_sheet
from lawm.data import Index, inspection, list_videos, rows_to_table, write_index
from lawm.recipes import tiny
from lawm.video import probe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steady videos, a copy of one, one whose rate varies, one refused, and one of equal size but other bytes."""
    root = tmp_path_factory.mktemp("inspect")
    (root / "videos").mkdir()
    at = root / "videos"
    write_video(at / "a.mp4", 60, rate=30)
    write_video(at / "b.mp4", 100, rate=25)
    shutil.copy(at / "a.mp4", at / "copy of a.mp4")
    write_video(
        at / "vary.mkv", 40, times=[Fraction(n, 20) + (Fraction(1, 60) if n % 3 == 0 else 0) for n in range(40)]
    )
    (at / "bad.mp4").write_bytes(b"no video at all" * 100)
    data = bytearray((at / "b.mp4").read_bytes())
    data[-1] ^= 1
    (at / "b2.mp4").write_bytes(data)
    index = rows_to_table([probe(ref, LIMITS) for ref in list_videos([str(at)])])
    write_index(index, str(root / "index.parquet"))
    return root


@pytest.fixture(scope="module")
def index(folder: Path) -> Index:
    from lawm.data import read_index

    return read_index(str(folder / "index.parquet"))


def test_counts(index: Index) -> None:
    found = inspection.totals(index)
    assert (found["videos"], found["usable"]) == (6, 5)
    assert found["hours"] * 3600 == pytest.approx(2 + 4 + 2 + 4 + 2, abs=0.1)
    cells = inspection.counted(index)
    assert sum(int(str(row[1])) for row in cells) == 6
    assert any(str(row[0]).startswith("refused: ") and row[1] == 1 for row in cells)


def test_copies_are_found_by_their_bytes(index: Index) -> None:
    seen: list[tuple[int, int]] = []
    groups = inspection.duplicates(index, progress=lambda done, total: seen.append((done, total)))
    assert [[ref.key for ref in group] for group in groups] == [["a.mp4", "copy of a.mp4"]]
    assert seen[-1] == (4, 4)  # the pair of copies, and the pair of equal size


def test_copies_within_tars_and_on_s3(folder: Path, s3: str, tmp_path: Path) -> None:
    import tarfile

    import boto3

    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket="inspect")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder / "videos/a.mp4", "one.mp4")
        tar.add(folder / "videos/b.mp4", "two.mp4")
    client.upload_file(str(tmp_path / "x.tar"), "inspect", "x.tar")
    client.upload_file(str(folder / "videos/b.mp4"), "inspect", "y.mp4")
    found = Index(rows_to_table([probe(ref, LIMITS) for ref in list_videos(["s3://inspect"])]))
    assert [[r.key for r in g] for g in inspection.duplicates(found)] == [["x/two.mp4", "y.mp4"]]


def test_what_containers_claim_about_time(index: Index) -> None:
    timing = inspection.timing(index)
    assert timing.videos == 5 and timing.variable_rate == 1
    assert timing.examples == [("vary.mkv", 30.0, pytest.approx(20.0))] and timing.wrong_rate == 1
    rates = np.array(index.table["container_rate"].to_pylist(), np.float64)
    rates[index.table["key"].to_pylist().index("b.mp4")] = 60.0
    at = index.table.schema.get_field_index("container_rate")
    lying = Index(index.table.set_column(at, index.table.schema.field(at), [rates]))
    assert inspection.timing(lying).examples[0] == ("b.mp4", 60.0, pytest.approx(25.0))


def test_histograms_hold_every_video() -> None:
    for values in (np.array([3.0]), np.array([1.0, 1000.0, 30.0]), np.linspace(5, 6, 100), np.array([0.0, 1e6])):
        assert sum(inspection.histogram(values)[1]) == len(values)


def test_the_contact_sheet_shows_the_frames_of_those_times(index: Index, folder: Path) -> None:
    config = tiny().model_copy(deep=True)
    data = config.data.model_copy(update={"index": str(folder / "index.parquet")})
    clip = data.clip.model_copy(update={"size": 96, "frames": 3})
    config = config.model_copy(update={"data": data.model_copy(update={"clip": clip})})
    clips, refused = inspection.random_clips(config, 50, seed=1)
    sheet = contact_sheet(clips, clip)
    assert len(sheet.rows) > 5 and not refused
    checked = 0
    for row, label in zip(sheet.rows, sheet.row_labels, strict=True):
        key, _, start = label.partition("\nfrom ")
        rate = {"a.mp4": 30, "b.mp4": 25}.get(key)
        if rate is None:
            continue
        for i, frame in enumerate(row):
            assert frame is not None
            number = number_of(frame.transpose(2, 0, 1))
            assert abs(number / rate - (float(start.removesuffix(" s")) + i / clip.fps)) <= 1 / rate + 0.006
            checked += 1
    assert checked > 6


def test_the_job(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "inspect.html"
    asked = ["inspect", str(folder / "index.parquet"), "--out", str(out), "--clips", "3"]
    assert main([*asked, "--dry-run"]) == 0 and not out.exists()
    capsys.readouterr()
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "6 videos, 5 usable" in said and "1 videos are copies of another one, in 1 groups" in said
    text = out.read_text()
    assert "copy of a.mp4" in text and "data:image/png;base64" in text
    assert Image.open(tmp_path / "inspect.png").size[0] > 200
    assert main(["inspect", str(tmp_path / "none.parquet")]) == 2
    assert main(["inspect", str(folder / "videos/a.mp4")]) == 2
    assert main([*asked[:-2], "--clips", "-1"]) == 2
    assert main(["inspect", str(folder / "index.parquet"), "--out", "x.txt"]) == 2


def test_an_index_of_nothing_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"x" * 2000)
    rows = [probe(ref, LIMITS) for ref in list_videos([str(tmp_path / "bad.mp4")])]
    write_index(rows_to_table(rows), str(tmp_path / "index.parquet"))
    assert main(["inspect", str(tmp_path / "index.parquet"), "--out", str(tmp_path / "i.html")]) == 0
    assert "1 videos, 0 usable" in capsys.readouterr().out
