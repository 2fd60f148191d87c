"""Local paths and s3:// behave alike, and what a user can put right is one line that says so."""

import errno
import io
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest

from lawm import storage
from lawm.cluster.filesystem import arrow_filesystem
from lawm.config import LawmError
from lawm.s3 import client as s3_client
from lawm.storage import NotFoundError, StorageError

DATA = bytes(range(256)) * 40


@pytest.fixture
def bucket(s3: str) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, or the root of an empty bucket."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def one_line(caught: "pytest.ExceptionInfo[BaseException]") -> str:
    assert isinstance(caught.value, LawmError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_written_is_read_whole_and_in_parts(root: str) -> None:
    uri = storage.join(root, "a/b", "/c.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, DATA)
    assert storage.exists(uri)
    assert storage.exists(storage.join(root, "a"))
    assert storage.size_of(uri) == len(DATA)
    assert storage.read_bytes(uri) == DATA
    assert storage.read_bytes(uri, 100, 50) == DATA[100:150]
    assert storage.read_bytes(uri, 10_000) == DATA[10_000:]
    assert storage.read_bytes(uri, len(DATA) - 5, 50) == DATA[-5:]
    assert storage.read_bytes(uri, len(DATA) + 5, 50) == b""
    assert storage.read_bytes(uri, 5, 0) == b""
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""
    assert storage.size_of(uri) == 0


@pytest.mark.parametrize(("offset", "size"), [(0, None), (300, 5000), (300, None), (10_000, 99_999), (20_000, 5)])
def test_open_file_is_a_window(root: str, offset: int, size: int | None) -> None:
    uri = storage.join(root, "c.bin")
    storage.write_bytes(uri, DATA)
    window = DATA[offset:] if size is None else DATA[offset : offset + size]
    with storage.open_file(uri, offset, size) as file:
        reference = io.BytesIO(window)
        moves = ((0, 0, 10), (7, 0, 3), (-20, 2, 50), (5, 1, 1), (0, 0, -1), (10**6, 0, 4), (3, 0, 700))
        for seek, whence, count in moves:
            if whence != 2 or len(window) >= 20:
                assert file.seek(seek, whence) == reference.seek(seek, whence)
            assert file.read(count) == reference.read(count)
            assert file.tell() == reference.tell()


def test_ranges_of_services_that_answer_with_everything(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(bucket, "c.bin")
    storage.write_bytes(uri, DATA)
    client = s3_client()
    real = client.get_object

    def deaf(**arguments: Any) -> Any:
        arguments.pop("Range", None)
        return real(**arguments)

    monkeypatch.setattr(client, "get_object", deaf)
    assert storage.read_bytes(uri, 100, 50) == DATA[100:150]
    assert storage.read_bytes(uri, 10_000) == DATA[10_000:]
    assert storage.read_bytes(uri, 100, len(DATA)) == DATA[100:]
    assert storage.read_bytes(uri, 0, 50) == DATA[:50]
    assert storage.read_bytes(uri, len(DATA) + 5, 2 * len(DATA)) == b""


def test_ranges_of_services_that_do_not_say_which(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right bytes, without Content-Range."""
    uri = storage.join(bucket, "c.bin")
    storage.write_bytes(uri, DATA)
    client = s3_client()
    real = client.get_object
    monkeypatch.setattr(client, "get_object", lambda **a: {k: v for k, v in real(**a).items() if k != "ContentRange"})
    assert storage.read_bytes(uri, 100, 50) == DATA[100:150]
    assert storage.read_bytes(uri, 10_000) == DATA[10_000:]
    assert storage.read_bytes(uri, 100, len(DATA)) == DATA[100:]


def test_folder_markers_are_deleted_with_their_folder(bucket: str) -> None:
    client = boto3.client("s3", endpoint_url=s3_client().meta.endpoint_url)
    name = bucket.removeprefix("s3://")
    for key in ("f/", "f/g/", "f/g/1", "h/", "i"):
        client.put_object(Bucket=name, Key=key, Body=b"")
    storage.delete(f"{bucket}/f")
    arrow_filesystem(bucket)[0].delete_dir(f"{name}/h")
    assert [item["Key"] for item in client.list_objects_v2(Bucket=name)["Contents"]] == ["i"]


def test_listings_without_a_count(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services that know the first version of listings alone do not count."""
    storage.write_bytes(f"{bucket}/a/b", b"x")
    client = s3_client()
    real = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **a: {k: v for k, v in real(**a).items() if k != "KeyCount"})
    assert storage.exists(f"{bucket}/a") and not storage.exists(f"{bucket}/b")


def test_one_request_reads_ahead(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(bucket, "c.bin")
    storage.write_bytes(uri, DATA)
    client = s3_client()
    asked: list[str] = []
    real = client.get_object
    monkeypatch.setattr(client, "get_object", lambda **a: asked.append(a["Range"]) or real(**a))
    with storage.open_file(uri) as file:
        assert b"".join(file.read(512) for _ in range(20)) == DATA
    assert len(asked) <= 2


def test_list_files(root: str) -> None:
    for name in ("b.mp4", "a/2.MP4", "a/1.mp4", "a/x.json", "c/deep/er/z.tar"):
        storage.write_bytes(storage.join(root, name), name.encode())
    found = list(storage.list_files(root))
    assert [uri.removeprefix(root + "/") for uri, _ in sorted(found)] == [
        "a/1.mp4", "a/2.MP4", "a/x.json", "b.mp4", "c/deep/er/z.tar",
    ]  # fmt: skip
    assert found == list(storage.list_files(root))
    assert dict(found)[storage.join(root, "a/x.json")] == len("a/x.json")
    videos = [uri.removeprefix(root + "/") for uri, _ in storage.list_files(root, (".mp4",))]
    assert sorted(videos) == ["a/1.mp4", "a/2.MP4", "b.mp4"]
    single = storage.join(root, "a/x.json")
    assert list(storage.list_files(single, (".mp4",))) == [(single, 8)]
    with pytest.raises(NotFoundError, match="nowhere"):
        list(storage.list_files(storage.join(root, "nowhere")))


def test_a_prefix_is_a_folder_unless_it_ends_in_a_star(bucket: str) -> None:
    for name in ("train/1.tar", "train-2/2.tar", "train-3.tar"):
        storage.write_bytes(f"{bucket}/{name}", b"x")
    assert [uri for uri, _ in storage.list_files(f"{bucket}/train")] == [f"{bucket}/train/1.tar"]
    assert len(list(storage.list_files(f"{bucket}/train-*"))) == 2
    assert not storage.exists(f"{bucket}/trai")


def test_list_files_goes_through_links_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "v.mp4").write_bytes(b"1")
    (tmp_path / "real" / ".hidden.mp4").write_bytes(b"1")
    (tmp_path / "real" / "up").symlink_to(tmp_path, target_is_directory=True)  # a loop
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing")
    assert [Path(uri).name for uri, _ in storage.list_files(str(tmp_path))] == ["v.mp4"]


def test_a_failed_write_leaves_what_was_there(root: str) -> None:
    uri = storage.join(root, "c.bin")
    storage.write_bytes(uri, b"old")
    with pytest.raises(RuntimeError), storage.atomic_file(uri) as file:
        file.write(b"half")
        raise RuntimeError
    assert storage.read_bytes(uri) == b"old"
    assert [name for name, _ in storage.list_files(root)] == [uri]
    if not storage.is_s3(root):
        assert os.listdir(root) == ["c.bin"]


def test_delete(root: str) -> None:
    for name in ("f/1", "f/g/2", "fg", "other"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.delete(storage.join(root, "f"))
    storage.delete(storage.join(root, "other"))
    storage.delete(storage.join(root, "never"))
    assert [uri for uri, _ in storage.list_files(root)] == [storage.join(root, "fg")]
    with pytest.raises(StorageError, match="refused"):
        storage.delete("/" if not storage.is_s3(root) else root)


def test_arrow_reads_what_storage_wrote(root: str) -> None:
    import pyarrow as pa

    table = pa.table({"a": [1, 2, 3]})
    with storage.atomic_file(storage.join(root, "t.parquet")) as file:
        pq.write_table(table, file)
    system, path = arrow_filesystem(storage.join(root, "t.parquet"))
    assert pq.read_table(path, filesystem=system).equals(table)


def test_large_objects_go_in_parts(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_ONE_PUT", 1000)
    storage.write_bytes(f"{bucket}/big", DATA)
    assert storage.read_bytes(f"{bucket}/big") == DATA


# ---------------------------------------------------------------- errors
def test_what_is_not_there(root: str) -> None:
    for act in (storage.read_bytes, storage.size_of, storage.open_file):
        with pytest.raises(NotFoundError, match=r"nowhere\.bin: no such") as caught:
            act(storage.join(root, "nowhere.bin"))
        one_line(caught)


def test_no_such_bucket(s3: str) -> None:
    uri = "s3://not-a-bucket/key"
    for act in (storage.read_bytes, storage.size_of, lambda u: list(storage.list_files(u))):
        with pytest.raises(NotFoundError, match="no bucket 'not-a-bucket' at http"):
            act(uri)
    with pytest.raises(NotFoundError, match="no bucket"):
        storage.write_bytes(uri, b"x")
    assert not storage.exists(uri)
    with pytest.raises(StorageError, match="not a valid S3 name"):
        storage.read_bytes("s3://Not_A_Bucket!/key")
    with pytest.raises(StorageError, match="no bucket is named"):
        storage.read_bytes("s3:///key")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("AccessDenied", 403, "access denied"),
        ("403", 403, "access denied"),
        ("InvalidAccessKeyId", 403, "credentials were refused"),
        ("SignatureDoesNotMatch", 403, "credentials were refused"),
        ("SlowDown", 503, "SlowDown"),
    ],
)
def test_refusals(code: str, status: int, said: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of a service that refuses, as botocore raises them (moto accepts any key)."""
    from botocore.exceptions import ClientError

    def refuse(**_: Any) -> None:
        answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(answer, "GetObject")  # type: ignore[arg-type]

    monkeypatch.setattr(s3_client(), "get_object", refuse)
    with pytest.raises(StorageError, match=said) as caught:
        storage.read_bytes(f"{bucket}/key")
    assert f"{bucket}/key" in one_line(caught)


def test_nothing_listens(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot reach S3 at http://127\.0\.0\.1:9") as caught:
        storage.read_bytes("s3://b/key")
    one_line(caught)


def test_other_schemes_and_kinds(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="scheme 'gs' is not supported"):
        storage.read_bytes("gs://bucket/key")
    with pytest.raises(StorageError, match="empty path"):
        storage.read_bytes("")
    with pytest.raises(StorageError, match="is a folder"):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(StorageError, match="is a folder"):
        storage.size_of(str(tmp_path))
    (tmp_path / "file").write_bytes(b"x")
    for below in ("below", "further/below"):
        with pytest.raises(StorageError, match=r"in the way|no such"):
            storage.write_bytes(str(tmp_path / "file" / below), b"x")
    assert storage.read_bytes(f"file://{tmp_path}/file") == b"x"
    assert storage.absolute("a.mp4") == str(Path.cwd() / "a.mp4")


def test_disk_full(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    with (
        pytest.raises(StorageError, match="the disk is full") as caught,
        storage._local_errors("out.bin"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    one_line(caught)
    with pytest.raises(StorageError, match="the disk is full"), storage.atomic_file(str(tmp_path / "c.bin")) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_goes_away_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    """As a checkpoint does that is pruned while another process looks for the newest one."""
    for name in ("a", "b", "c"):
        storage.write_bytes(str(tmp_path / name / "x"), b"1")
    listing = storage.list_files(str(tmp_path))
    found = [next(listing)]
    shutil.rmtree(tmp_path / "b")
    assert [Path(uri).parent.name for uri, _ in [*found, *listing]] == ["a", "c"]


def test_what_killed_writers_leave_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom lawm import storage\n"
        "with storage.atomic_file(sys.argv[1]) as f: f.write(b'x'); f.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.tar")])
    (tmp_path / ".own.tmp").touch()
    assert len(list(tmp_path.iterdir())) == 2
    storage.sweep(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".own.tmp"]
    storage.sweep(str(tmp_path / "none"))
