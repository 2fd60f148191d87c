"""Names that people give to files: each is one video, under a key that can be written and read back."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import uuid
from pathlib import Path

import pytest
from made_videos import number_of, write_video

from lawm import storage
from lawm.config import ClipSpec, VideoLimits
from lawm.data import Index, PrepareSpec, VideoLabels, list_videos, prepare_shard, read_index, write_index, write_labels
from lawm.data.index import rows_to_table
from lawm.data.labels import read_labels
from lawm.s3 import client as s3_client
from lawm.video import decode_clip, probe, ref_of

CLIP, LIMITS = ClipSpec(frames=4, fps=4.0, size=96), VideoLimits()
NFC, NFD = (unicodedata.normalize(form, "é.mp4") for form in ("NFC", "NFD"))
NAMES = (
    "Me at the zoo [jNQXAC9IVRw].mp4", "[/bold].mp4", "take[/2].mp4", "*.mp4", "a?b.mp4", "-rf.mp4", "--out.mp4",
    "a b  c.mp4",
    "new\nline.mp4", "esc\x1b[31m.mp4", "tab\t.mp4", "100%.mp4", "%41.mp4", "a#b.mp4", "a&b=c.mp4", "quote'\".mp4",
    "back\\slash.mp4", ":smile:.mp4", "<b>&amp;.mp4", "{x}.mp4", "s3:..mp4", "~.mp4", "$HOME.mp4", "n" * 250 + ".mp4",
    "日本語.MP4", NFC, NFD, "\u202egnp.mp4",
)  # fmt: skip


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one video by many names, two of them, and a folder's, not UTF-8."""
    root = tmp_path_factory.mktemp("named")
    write_video(root / "original", 60, format="mp4")
    for name in NAMES:
        (root / name).parent.mkdir(exist_ok=True)
        os.link(root / "original", root / name)
    for name in (b"vid\xe9o.mp4", b"vid\xe8o 100%.mp4", b"d\xff/inside#1.mp4"):
        path = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.link(root / "original", path)
    return root


def test_every_name_is_indexed_written_read_back_and_decoded(named: Path, tmp_path: Path) -> None:
    rows = [probe(ref, LIMITS) for ref in list_videos([str(named)])]
    assert {row["key"]: row["reason"] for row in rows if row["reason"]} == {}
    write_index(rows_to_table(rows), str(tmp_path / "a [b].parquet"))
    index = read_index(str(tmp_path / "a [b].parquet"))
    odd = {"vid\\xe9o.mp4", "vid\\xe8o 100%.mp4", "d\\xff/inside#1.mp4"}
    assert set(index.keys()) == {*NAMES, *odd}
    write_labels([VideoLabels(key, 4.0, [[1.0]] * 8) for key in index.keys()], str(tmp_path / "l.parquet"))  # type: ignore[arg-type] # noqa: SIM118
    labels = read_labels(str(tmp_path / "l.parquet"))
    for i, key in enumerate(index.keys()):
        clip = decode_clip(index.ref(i), 0.5, CLIP, LIMITS)
        assert number_of(clip.frames_FCHW[0]) == 15 and labels.actions_for(key, 0.5, CLIP).shape == (3, 1)


def test_prepared_shards_keep_every_name(named: Path, tmp_path: Path) -> None:
    rows = [probe(ref, LIMITS) for ref in list_videos([str(named)])]
    made = prepare_shard(rows, "p", str(tmp_path), 4.0, PrepareSpec(fps=4.0, short=96), LIMITS)
    assert [(row["key"], row["reason"]) for row in made] == [(row["key"], None) for row in rows]


def test_a_source_and_an_index_in_a_folder_that_is_not_utf8(named: Path) -> None:
    folder = os.fsdecode(os.fsencode(named) + b"/d\xff")
    (ref,) = list_videos([folder])
    assert ref.key == "inside#1.mp4" and ref.source.isascii()
    uri = os.path.join(folder, "index.parquet")
    write_index(rows_to_table([probe(ref, LIMITS)]), uri)
    assert len(read_index(uri).usable()) == 1


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_members_of_tars(form: int, encoding: str, named: Path, tmp_path: Path) -> None:
    data = (named / "original").read_bytes()
    names = [
        "vidéo.mp4",
        "vidèo.mp4",
        "ok.mp4",
        "a [b].mp4",
        "./-x.mp4",
        "new\nline.mp4",
        f"{'deep/' * 30}{'n' * 80}.mp4",
    ]
    with tarfile.open(tmp_path / "a.tar", "w", format=form, encoding=encoding) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = [probe(ref, LIMITS) for ref in list_videos([str(tmp_path)])]
    write_index(rows_to_table(rows), str(tmp_path / "i.parquet"))
    index = read_index(str(tmp_path / "i.parquet"))
    # PAX holds UTF-8 whatever the machine's encoding; the others hold the bytes as they are.
    spelt = encoding == "latin-1" and form != tarfile.PAX_FORMAT
    expected = [name.replace("é", "\\xe9").replace("è", "\\xe8") if spelt else name for name in names]
    assert list(index.keys()) == [f"a/{name.removeprefix('./')}" for name in expected]
    assert all(number_of(decode_clip(ref_of(row), 1.0, CLIP, LIMITS).frames_FCHW[0]) == 30 for row in rows)


def test_what_is_no_file_is_listed_with_its_reason(named: Path, tmp_path: Path) -> None:
    os.link(named / "original", tmp_path / "good.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "again").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.mp4")
    for folder in ("folder.mp4", "bundle.mp4"):
        (tmp_path / folder).mkdir()
    os.link(named / "original", tmp_path / "bundle.mp4/inside.mp4")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "zero.tar").touch()
    (tmp_path / "notes.txt").symlink_to("nowhere")
    reasons = {row["key"]: row["reason"] for row in (probe(ref, LIMITS) for ref in list_videos([str(tmp_path)]))}
    where = str(tmp_path)
    assert reasons == {
        "good.mp4": None, "bundle.mp4/inside.mp4": None,
        "gone.mp4": "missing: there is nothing at this place",
        "loop.mp4": f"unreadable: {where}/loop.mp4: too many levels of symbolic links",
        "pipe.mp4": "empty: 0 bytes", "zero.mp4": "empty: 0 bytes", "zero.tar": "empty: 0 bytes",
        "folder.mp4/": f"unreadable: {where}/folder.mp4/: is a folder, a file was expected",
    }  # fmt: skip


def test_what_may_not_be_read_is_listed_with_its_reason(named: Path, tmp_path: Path) -> None:
    """As another user sees it: root without its right to read everything."""
    os.link(named / "original", tmp_path / "good.mp4")
    for name in ("lost+found", "listed"):
        (tmp_path / name).mkdir()
    (tmp_path / "listed/inside.mp4").write_bytes(b"x")
    for name in ("mine.mp4", "mine.tar"):
        (tmp_path / name).write_bytes(b"x")
    modes = {"lost+found": 0, "listed": 0o444, "mine.mp4": 0, "mine.tar": 0}
    prefix: list[str] = []
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root without setpriv can read everything")
        for name in modes:
            os.chown(tmp_path / name, 1000, 1000)
        prefix = [
            "setpriv",
            "--bounding-set=-dac_override,-dac_read_search",
            "--inh-caps=-dac_override,-dac_read_search",
        ]
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    code = (
        "import sys\nfrom lawm.config import VideoLimits\n"
        "from lawm.data import list_videos\nfrom lawm.video import probe\n"
        "for ref in list_videos(sys.argv[1:]): print(ref.key, '|', probe(ref, VideoLimits())['reason'])"
    )
    done = subprocess.run([*prefix, sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    for name in modes:
        (tmp_path / name).chmod(0o755)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert set(found) == {"good.mp4", "lost+found/", "listed/inside.mp4", "mine.mp4", "mine.tar"}
    assert found.pop("good.mp4") == "None"
    assert all(said.startswith("unreadable: ") and "permission denied" in said for said in found.values())


def test_twins_of_keys_stay_apart(named: Path) -> None:
    keys = [ref.key for ref in list_videos([str(named), str(named)])]
    assert len(set(keys)) == len(keys) == 2 * (len(NAMES) + 3)
    index = Index(rows_to_table([probe(ref, LIMITS) for ref in list_videos([str(named / NFC), str(named / NFD)])]))
    assert list(index.keys()) == [NFC, NFD]


# ---------------------------------------------------------------- on S3
KEYS = (
    "a b.mp4", "a+b.mp4", "a%20b.mp4", "a#b?c.mp4", "[x] *.mp4", "-x.mp4", "a&b=c;d.mp4", "日本語.mp4",
    NFC, NFD, "//double//slash.mp4", "~/$HOME.mp4", "quote'\".mp4", "\u202egnp.mp4", ".hidden.mp4", "n" * 500 + ".mp4",
)  # fmt: skip


@pytest.fixture
def bucket(s3: str) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"


def test_every_key_on_s3_is_listed_probed_and_decoded(named: Path, bucket: str) -> None:
    data = (named / "original").read_bytes()
    for key in KEYS:
        storage.write_bytes(f"{bucket}/names/{key}", data)
    refs = list(list_videos([f"{bucket}/names/"]))
    assert {ref.key for ref in refs} == set(KEYS)
    rows = [probe(ref, LIMITS) for ref in refs]
    assert {row["key"]: row["reason"] for row in rows if row["reason"]} == {}
    index = Index(rows_to_table(rows))
    assert all(number_of(decode_clip(index.ref(i), 0.5, CLIP, LIMITS).frames_FCHW[0]) == 15 for i in range(len(KEYS)))
    one = f"{bucket}/names/[x] *.mp4"  # a name, and no pattern
    assert [ref.source for ref in list_videos([one])] == [one]


def test_objects_that_are_archived_or_forbidden_are_rows_with_their_reason(named: Path, bucket: str) -> None:
    """The server is the one that has storage classes and policies of buckets."""
    data, client = (named / "original").read_bytes(), s3_client()
    name = bucket.removeprefix("s3://")
    for key, more in {
        "good.mp4": {}, "cold.mp4": {"StorageClass": "GLACIER"}, "colder.tar": {"StorageClass": "DEEP_ARCHIVE"},
        "mine.mp4": {}, "mine.tar": {},
    }.items():  # fmt: skip
        client.put_object(Bucket=name, Key=f"odd/{key}", Body=data, **more)
    client.put_object(Bucket=name, Key="odd/zero.mp4", Body=b"")
    denied = [f"arn:aws:s3:::{name}/odd/mine.{suffix}" for suffix in ("mp4", "tar")]
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": denied}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    try:
        rows = {row["key"]: row["reason"] for row in (probe(ref, LIMITS) for ref in list_videos([f"{bucket}/odd"]))}
    finally:
        client.delete_bucket_policy(Bucket=name)
    assert set(rows) == {"good.mp4", "cold.mp4", "colder.tar", "mine.mp4", "mine.tar", "zero.mp4"}
    assert rows["good.mp4"] is None and rows["zero.mp4"] == "empty: 0 bytes"
    for key, said in {"cold.mp4": "archived (GLACIER)", "colder.tar": "archived (DEEP_ARCHIVE)"}.items():
        assert str(rows[key]).startswith("unreadable: ") and said in str(rows[key])
    assert all("access denied" in str(rows[f"mine.{suffix}"]) for suffix in ("mp4", "tar"))
