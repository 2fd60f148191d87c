"""Listing of folders, tars and buckets, and the index table."""

import io
import random
import tarfile
import uuid
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_videos import LIMITS, number_of, ref_to, write_video

from benchmarks import index_growth
from lawm import storage
from lawm.config import ClipSpec, LawmError
from lawm.data import INDEX_SCHEMA, Index, expand, list_files, list_videos, read_index, rows_to_table, write_index
from lawm.recipes import recipe
from lawm.s3 import client as s3_client
from lawm.video import VideoRef, decode_clip, empty_row, probe

SPEC = ClipSpec(frames=4, fps=4.0, size=64)


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("shards") / "v.mp4"
    write_video(path, 40)
    return path.read_bytes()


@pytest.fixture
def bucket(s3: str) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=name)
    return f"s3://{name}"


def webdataset(path: Path, mp4: bytes, count: int = 3) -> None:
    with tarfile.open(path, "w") as tar:
        for n in range(count):
            add(tar, f"{n:06d}.mp4", mp4)
            add(tar, f"{n:06d}.json", b'{"caption": "none"}')


def check_decodes(ref: VideoRef) -> None:
    clip = decode_clip(ref, 0.25, SPEC, LIMITS)
    assert [number_of(f) for f in clip.frames_FCHW] == [7, 15, 22, 30]


def test_a_folder_of_files_and_tars(tmp_path: Path, mp4: bytes) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.MP4").write_bytes(mp4)
    (tmp_path / "a.webm").write_bytes(mp4)
    (tmp_path / "notes.txt").write_text("no video")
    webdataset(tmp_path / "sub" / "shard-000000.tar", mp4)
    refs = list(list_videos([str(tmp_path)]))
    assert [ref.key for ref in refs] == [
        "a.webm", "sub/b.MP4",
        "sub/shard-000000/000000.mp4", "sub/shard-000000/000001.mp4", "sub/shard-000000/000002.mp4",
    ]  # fmt: skip
    for ref in refs:
        assert storage.read_bytes(ref.source, ref.offset, ref.size) == mp4
        check_decodes(ref)
    assert next(list_videos([str(tmp_path / "sub/shard-000000.tar")])).key == "shard-000000/000000.mp4"
    assert [ref.key for ref in list_videos([str(tmp_path / "a.webm")])] == ["a.webm"]


def test_keys_do_not_depend_on_where_the_folder_is(tmp_path: Path, mp4: bytes) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").write_bytes(mp4)
    here, there = (list(list_videos([str(tmp_path / folder)])) for folder in ("here", "there/"))
    assert [ref.key for ref in here] == [ref.key for ref in there] == ["v.mp4"]
    both = [ref.key for ref in list_videos([str(tmp_path / "here"), str(tmp_path / "there")])]
    assert both == ["v.mp4", "v.mp4#2"]


def test_relative_sources_are_stored_absolute(tmp_path: Path, mp4: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.mp4").write_bytes(mp4)
    monkeypatch.chdir(tmp_path)
    for source in (".", "v.mp4"):
        (ref,) = list_videos([source])
        assert (ref.source, ref.key) == (str(tmp_path / "v.mp4"), "v.mp4")


def test_odd_members(tmp_path: Path, mp4: bytes) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "./dot.mp4", mp4)
        add(tar, "../../etc/passwd.mp4", mp4)
        add(tar, "/abs.mp4", mp4)
        add(tar, "same.mp4", mp4)
        add(tar, "same.mp4", mp4[:-1])
        add(tar, "n" * 150 + "é.mp4", mp4)  # a long name needs an extended header
        add(tar, "folder.mp4", b"", type=tarfile.DIRTYPE)
        add(tar, "link.mp4", b"", type=tarfile.SYMTYPE, linkname="same.mp4")
        add(tar, "hard.mp4", b"", type=tarfile.LNKTYPE, linkname="same.mp4")
        add(tar, "fifo.mp4", b"", type=tarfile.FIFOTYPE)
        add(tar, "none.mp4", b"")
    refs = {ref.key: ref for ref in list_videos([str(path)])}
    assert list(refs) == [
        "s/dot.mp4", "s/../../etc/passwd.mp4", "s/abs.mp4", "s/same.mp4", "s/same.mp4#2",
        "s/" + "n" * 150 + "é.mp4", "s/none.mp4",
    ]  # fmt: skip
    check_decodes(refs["s/../../etc/passwd.mp4"])
    assert refs["s/same.mp4#2"].size == refs["s/same.mp4"].size - 1
    assert probe(refs["s/none.mp4"], LIMITS)["reason"].startswith("empty")
    assert [p.name for p in tmp_path.iterdir()] == ["s.tar"]  # nothing was unpacked


def test_gnu_sparse_members_are_left_out(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("hole.mp4").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(1024))
    assert list(list_videos([str(tmp_path / "s.tar")])) == []


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_compressed_tars_are_refused_with_a_reason(suffix: str, tmp_path: Path, mp4: bytes) -> None:
    path = tmp_path / f"s.{suffix}"
    mode = {"tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[suffix]
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        add(tar, "v.mp4", mp4)
    webdataset(tmp_path / "good.tar", mp4, 1)
    refs = list(list_videos([str(tmp_path)]))
    assert [ref.key for ref in refs] == ["good/000000.mp4", f"s.{suffix}"]
    assert probe(refs[1], LIMITS)["reason"].startswith("tar: compressed")


def test_a_compressed_tar_that_hides_its_suffix(tmp_path: Path, mp4: bytes) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        add(tar, "v.mp4", mp4)
    (ref,) = list_videos([str(tmp_path)])
    assert probe(ref, LIMITS)["reason"].startswith("tar: ")


def test_damaged_tars_are_read_as_far_as_they_go(tmp_path: Path, mp4: bytes) -> None:
    whole = tmp_path / "whole.tar"
    webdataset(whole, mp4)
    data = whole.read_bytes()
    refs = list(list_videos([str(whole)]))
    # A header in the middle overwritten: what follows is reported, not hidden.
    second = refs[1].offset - 512
    (tmp_path / "bad.tar").write_bytes(data[:second] + random.Random(0).randbytes(512) + data[second + 512 :])
    bad = list(list_videos([str(tmp_path / "bad.tar")]))
    assert [ref.key for ref in bad] == ["bad/000000.mp4", f"bad/(unreadable from byte {second} on)"]
    assert probe(bad[1], LIMITS)["reason"].startswith("not_video")
    # Cut off inside the last video's data.
    (tmp_path / "cut.tar").write_bytes(data[: refs[2].offset + 1000])
    cut = list(list_videos([str(tmp_path / "cut.tar")]))
    assert [ref.key for ref in cut][:3] == [f"cut/00000{n}.mp4" for n in range(3)]
    assert probe(cut[1], LIMITS)["reason"] is None
    assert probe(cut[2], LIMITS)["reason"].startswith("truncated: 1000 of ")
    (tmp_path / "none.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"hello" * 1000)
    for name, reason in (("none.tar", "empty: 0 bytes"), ("text.tar", "tar: ")):
        (ref,) = list_videos([str(tmp_path / name)])
        assert probe(ref, LIMITS)["reason"].startswith(reason)


def test_noise_in_tars_never_crashes(tmp_path: Path, mp4: bytes) -> None:
    webdataset(tmp_path / "s.tar", mp4)
    data = (tmp_path / "s.tar").read_bytes()
    headers = [0, *(ref.offset - 512 for ref in list_videos([str(tmp_path / "s.tar")]))]
    for seed in range(40):
        rng = random.Random(seed)
        bad = bytearray(data)
        for _ in range(4):
            bad[rng.choice(headers) + rng.randrange(512)] = rng.randrange(256)
        (tmp_path / "s.tar").write_bytes(bytes(bad))
        for ref in list_videos([str(tmp_path / "s.tar")]):
            assert ref.offset >= 0
            assert ref.size >= 0


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(storage.NotFoundError, match="nowhere"):
        list(list_videos([str(tmp_path / "nowhere")]))


def test_s3_prefix_of_files_and_tars(bucket: str, tmp_path: Path, mp4: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset(tmp_path / "shard.tar", mp4, 40)
    storage.write_bytes(f"{bucket}/data/v.mp4", mp4)
    storage.write_bytes(f"{bucket}/data/shard.tar", (tmp_path / "shard.tar").read_bytes())
    client = s3_client()
    read = [0]
    real = client.get_object

    def count(**arguments: object) -> object:
        answer = real(**arguments)
        read[0] += answer["ContentLength"]
        return answer

    monkeypatch.setattr(client, "get_object", count)
    monkeypatch.setattr(storage, "_READ_AHEAD", 4096)
    refs = list(list_videos([f"{bucket}/data"]))
    assert [ref.key for ref in refs] == [f"shard/{n:06d}.mp4" for n in range(40)] + ["v.mp4"]
    assert read[0] < 0.7 * 40 * len(mp4)  # the headers, not the videos
    row = probe(refs[7], LIMITS)
    assert (row["reason"], row["frames"], row["source"]) == (None, 40, f"{bucket}/data/shard.tar")
    check_decodes(refs[7])
    check_decodes(refs[40])
    assert probe(VideoRef(f"{bucket}/none.mp4", 0, 9, "n"), LIMITS)["reason"].startswith("missing")


def test_list_files_leaves_tars_shut(tmp_path: Path, mp4: bytes) -> None:
    webdataset(tmp_path / "s.tar", mp4)
    (ref,) = list_files([str(tmp_path)])
    assert ref.is_tar
    assert len(list(expand(ref))) == 3


# ---------------------------------------------------------------- the index
def table_of(count: int) -> pa.Table:
    rows = []
    for n in range(count):
        row = empty_row(VideoRef(f"/data/{n}.mp4", 0, 100 + n, f"{n}.mp4"), "corrupt: why" if n % 10 == 9 else None)
        rows.append(row | {"duration_s": 5.0 + n, "rate": 30.0, "keyframes_s": [0.0, 1.5]})
    return rows_to_table(rows)


def test_index_is_written_and_read(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "index.parquet")
    write_index(iter([table_of(7), table_of(5)]), uri)
    index = read_index(uri)
    assert len(index) == 12
    assert index.table.schema.equals(INDEX_SCHEMA)
    assert index.ref(3) == VideoRef("/data/3.mp4", 0, 103, "3.mp4")
    write_index(index, uri)
    assert read_index(uri).table.equals(index.table)
    assert read_index(uri).fingerprint() == index.fingerprint()


def test_index_on_s3(bucket: str) -> None:
    write_index(table_of(3), f"{bucket}/runs/index.parquet")
    assert len(read_index(f"{bucket}/runs/index.parquet")) == 3


def test_a_failed_write_leaves_no_index(tmp_path: Path) -> None:
    def tables():  # type: ignore[no-untyped-def]
        yield table_of(3)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_index(tables(), str(tmp_path / "index.parquet"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(LawmError, match="not a Parquet file"):
        read_index(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(LawmError, match="lacks the columns source, offset"):
        read_index(str(tmp_path / "b.parquet"))
    with pytest.raises(LawmError, match="no such file"):
        read_index(str(tmp_path / "c.parquet"))


def test_usable_and_reasons() -> None:
    index = Index(table_of(100))
    assert len(index.usable()) == 90
    assert index.reasons() == {"corrupt": 10}
    assert index.usable().reasons() == {}


def test_split_is_by_key_alone() -> None:
    index = Index(table_of(2000))
    train, val = index.split("train", 0.1), index.split("val", 0.1)
    keys = [set(part.table["key"].to_pylist()) for part in (train, val)]
    assert len(keys[0]) + len(keys[1]) == 2000
    assert not keys[0] & keys[1]
    assert 140 < len(val) < 260
    shuffled = Index(index.table.take(np.random.default_rng(0).permutation(2000)[:500]))
    assert set(shuffled.split("val", 0.1).table["key"].to_pylist()) <= keys[1]
    assert len(index.split("val", 0.0)) == 0
    assert set(index.split("val", 0.05).table["key"].to_pylist()) <= keys[1]


def test_fingerprint_sees_order_and_content_and_not_place() -> None:
    table = table_of(5)
    index = Index(table)
    moved = Index(table.set_column(1, INDEX_SCHEMA.field("source"), pa.array(["s3://b/x.tar"] * 5)))
    assert moved.fingerprint() == index.fingerprint()
    assert Index(table.take([1, 0, 2, 3, 4])).fingerprint() != index.fingerprint()
    assert Index(table_of(4)).fingerprint() != index.fingerprint()
    assert Index(pa.concat_tables([table.slice(0, 2), table.slice(2)])).fingerprint() == index.fingerprint()


def test_probe_rows_make_an_index(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 40)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    table = rows_to_table([probe(ref, LIMITS) for ref in list_videos([str(tmp_path)])])
    index = Index(table)
    assert index.reasons() == {"not_video": 1}
    assert index.usable().ref(0) == ref_to(tmp_path / "v.mp4")


def test_the_growth_benchmark_measures_indexes_of_today(tmp_path: Path) -> None:
    """Its made-up rows have every column, and its reader opens them; with a version, as on S3."""
    path = index_growth.made(tmp_path, 1500)
    index = read_index(str(path))
    assert len(index) == 1500 and index.table["version"].null_count == 0
    found = index_growth.opened(path)
    assert found["videos"] == len(index.usable().split("train", recipe("paper_noisy").data.val_fraction))
    assert found["first"].startswith("s3://videos/crawl/")
