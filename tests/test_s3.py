"""S3 for real: a server that checks signatures, and a network that cuts, stalls, slows down and throttles."""

import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
from made_videos import LIMITS, number_of, write_video
from small_runs import tiny_with

from benchmarks._servers import KEY, SECRET, FaultProxy, rclone
from lawm import s3, storage
from lawm.config import ClipSpec, LawmError
from lawm.data import list_videos, rows_to_table, write_index
from lawm.storage import NotFoundError, StorageError
from lawm.training import fit_local, load_checkpoint
from lawm.video import VideoError, decode_clip, probe, ref_of

DATA = np.random.default_rng(0).bytes(3 << 20)
CLIP = ClipSpec(frames=4, fps=4.0, size=96)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with rclone(folder) as url:
        yield url, folder


@pytest.fixture
def signed(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a user of that server; the endpoint."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server[0])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return server[0]


@pytest.fixture
def proxy(signed: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    where = urlsplit(signed)
    made = FaultProxy((str(where.hostname), int(where.port or 0)))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", made.url)
    monkeypatch.setenv("LAWM_S3_READ_TIMEOUT", "1.5")
    yield made
    made.close()


def test_written_listed_read_and_deleted(signed: str) -> None:
    uri = "s3://bucket/some/where.bin"
    storage.write_bytes(uri, DATA)
    assert storage.size_of(uri) == len(DATA) and storage.exists("s3://bucket/some")
    assert storage.read_bytes(uri) == DATA and storage.read_bytes(uri, 1000, 77) == DATA[1000:1077]
    assert list(storage.list_files("s3://bucket/some")) == [(uri, len(DATA))]
    with storage.open_file(uri, 5000, 2 << 20) as file:
        file.seek(-100, 2)
        assert file.read() == DATA[5000 + (2 << 20) - 100 : 5000 + (2 << 20)]
    storage.delete("s3://bucket/some/")
    assert not storage.exists(uri)
    with pytest.raises(NotFoundError, match="no such object"):
        storage.read_bytes(uri)


def test_what_the_user_can_put_right_is_one_line(signed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes("s3://bucket/there", b"x")
    with pytest.raises(NotFoundError, match="there is no bucket 'nowhere'"):
        storage.size_of("s3://nowhere/there")
    with pytest.raises(NotFoundError, match=r"nothing under this prefix|no bucket"):
        list(storage.list_files("s3://bucket/nothing/"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    for act in (lambda: storage.read_bytes("s3://bucket/there"), lambda: storage.write_bytes("s3://bucket/x", b"")):
        with pytest.raises(StorageError, match=r"credentials were refused|access denied") as caught:
            act()
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    with pytest.raises(StorageError, match=r"credentials were refused|access denied"):
        storage.size_of("s3://bucket/there")


@pytest.mark.parametrize("fault", [("cut", 200_000), ("cut", 10), ("busy", 0), ("stall", 100_000)])
def test_a_bad_network_is_survived(proxy: FaultProxy, fault: tuple[str, int]) -> None:
    storage.write_bytes("s3://bucket/data", DATA)
    proxy.faults += [fault, fault]
    assert storage.read_bytes("s3://bucket/data", 10, 2 << 20) == DATA[10 : 10 + (2 << 20)]
    assert not proxy.faults
    proxy.faults += [fault]
    with storage.open_file("s3://bucket/data") as file:
        assert file.read() == DATA


def test_a_network_that_stays_bad_is_said_in_time(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes("s3://bucket/data", DATA)
    monkeypatch.setattr(s3, "ATTEMPTS", 3)
    proxy.faults += [("cut", 1000)] * 50
    with pytest.raises(StorageError, match=r"cannot reach S3 at http://127\.0\.0\.1") as caught:
        storage.read_bytes("s3://bucket/data")
    assert "\n" not in str(caught.value) and 40 < len(proxy.faults) < 50


def test_a_small_video_is_asked_for_once(proxy: FaultProxy, tmp_path: Path) -> None:
    """However a container is read to and fro."""
    write_video(tmp_path / "v.mp4", 150, gop=5, options={"crf": "5"})
    assert 1 << 16 < (tmp_path / "v.mp4").stat().st_size < 1 << 20
    storage.write_bytes("s3://bucket/little/v.mp4", (tmp_path / "v.mp4").read_bytes())
    (ref,) = list_videos(["s3://bucket/little"])
    before = len(proxy.requests)
    clip = decode_clip(ref, 2.0, CLIP, LIMITS)
    assert [number_of(frame) for frame in clip.frames_FCHW] == [60, 67, 75, 82]
    kinds = [request.split(b" ", 1)[0] for request in proxy.requests[before:]]
    assert kinds == [b"GET"]


def test_a_slow_network_is_waited_for(proxy: FaultProxy) -> None:
    storage.write_bytes("s3://bucket/small", DATA[:30_000])
    proxy.faults += [("slow", 10_000)]  # three seconds, twice the time-out, but never silent for long
    began = time.monotonic()
    assert storage.read_bytes("s3://bucket/small") == DATA[:30_000]
    assert time.monotonic() - began > 2


def test_uploads_are_tried_again_and_whole(proxy: FaultProxy, server: tuple[str, Path]) -> None:
    proxy.faults += [("busy", 0), ("cut", 0)]
    storage.write_bytes("s3://bucket/up", DATA)
    assert (server[1] / "bucket/up").read_bytes() == DATA


def test_connections_are_used_again(proxy: FaultProxy) -> None:
    storage.write_bytes("s3://bucket/data", DATA[:1000])
    before = proxy.connections
    for i in range(20):
        assert storage.read_bytes("s3://bucket/data", i, 10) == DATA[i : i + 10]
    assert proxy.connections - before <= 1


def test_an_object_replaced_while_it_is_read_is_said(signed: str) -> None:
    uri = "s3://bucket/changing"
    storage.write_bytes(uri, DATA * 4)  # so large that it is not read at once
    with storage.open_file(uri) as file:
        assert file.read(10) == DATA[:10]
        time.sleep(1.1)  # servers that have no hash of an object make the ETag of its time
        storage.write_bytes(uri, DATA[::-1] * 4)
        file.seek(2 << 20)
        with pytest.raises(StorageError, match="was replaced since it was indexed or opened; index again"):
            file.read(10)


def test_profiles_say_how_buckets_are_addressed(signed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[profile virtual]\ns3 =\n    addressing_style = virtual\n[profile plain]\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for profile, style in (("virtual", "virtual"), ("plain", "path")):
        monkeypatch.setenv("AWS_PROFILE", profile)
        assert s3.client().meta.config.s3["addressing_style"] == style
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("LAWM_S3_READ_TIMEOUT", "soon")
    s3._connect.cache_clear()
    with pytest.raises(StorageError, match="LAWM_S3_READ_TIMEOUT"):
        storage.exists("s3://bucket/x")
    s3._connect.cache_clear()


# ---------------------------------------------------------------- videos
@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tar")
    write_video(root / "long.mp4", 900, rate=30, gop=30, container_options={"movflags": "faststart"})
    write_video(root / "short.mp4", 90, rate=30)
    with tarfile.open(root / "videos.tar", "w") as out:
        for name in ("long.mp4", "short.mp4"):
            out.add(root / name, name)
    return root / "videos.tar"


def test_clips_straight_from_tar_members(proxy: FaultProxy, tar: Path) -> None:
    storage.write_bytes("s3://bucket/set/videos.tar", tar.read_bytes())
    refs = {ref.key: ref for ref in list_videos(["s3://bucket/set"])}
    assert list(refs) == ["videos/long.mp4", "videos/short.mp4"]
    proxy.requests.clear()
    clip = decode_clip(refs["videos/short.mp4"], 1.0, CLIP, LIMITS)
    assert [number_of(f) for f in clip.frames_FCHW] == [30, 37, 45, 52]
    gets = [r for r in proxy.requests if r.startswith(b"GET")]
    assert len(gets) == 1 and b"range: bytes=" in gets[0].lower()  # one ranged request for the whole video


def test_a_clip_in_the_middle_survives_every_fault(proxy: FaultProxy, tar: Path) -> None:
    storage.write_bytes("s3://bucket/set2/videos.tar", tar.read_bytes())
    ref = next(r for r in list_videos(["s3://bucket/set2"]) if r.key.endswith("long.mp4"))
    for fault in (("cut", 5000), ("busy", 0), ("stall", 2000)):
        proxy.faults += [fault, ("pass", 0), fault]
        clip = decode_clip(ref, 20.0, CLIP, LIMITS)
        assert [number_of(f) for f in clip.frames_FCHW] == [600, 607, 615, 622], fault
        proxy.faults.clear()


def test_a_video_that_goes_away_is_a_reason_and_a_server_that_does_is_not(
    signed: str, tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes("s3://bucket/gone.mp4", (tar.parent / "short.mp4").read_bytes())
    (ref,) = list_videos(["s3://bucket/gone.mp4"])
    assert probe(ref, LIMITS)["reason"] is None
    storage.delete("s3://bucket/gone.mp4")
    with pytest.raises(VideoError) as caught:
        decode_clip(ref, 0.0, CLIP, LIMITS)
    assert caught.value.reason == "missing"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with pytest.raises(StorageError, match="cannot reach S3"):
        decode_clip(ref, 0.0, CLIP, LIMITS)


def put_videos(make_video, count: int, folder: Path, where: str) -> str:
    """`count` videos below `where` on S3, and their index there."""
    for i in range(count):
        make_video(folder / f"{i}.mp4", seed=i)
        storage.write_bytes(f"{where}/videos/{i}.mp4", (folder / f"{i}.mp4").read_bytes())
    rows = [probe(ref, LIMITS) for ref in list_videos([f"{where}/videos"])]
    write_index(rows_to_table(rows), f"{where}/index.parquet")
    return f"{where}/index.parquet"


def test_a_run_from_s3_to_s3(signed: str, make_video, tmp_path: Path) -> None:
    """Videos, index, run folder and checkpoints on S3; resumed from there."""
    index = put_videos(make_video, 4, tmp_path, "s3://bucket/run")
    config = tiny_with(data__index=index, train__steps=4, train__checkpoint_every=2)

    class Cut(Exception):
        pass

    def cut(step: int, metrics: dict[str, float]) -> None:
        if step == 2:
            raise Cut

    with pytest.raises(Cut):
        fit_local(config, "latent_action", "s3://bucket/run/out", progress=cut)
    assert load_checkpoint("s3://bucket/run/out").step == 2
    assert load_checkpoint(fit_local(config, "latent_action", "s3://bucket/run/out")).step == 4
    assert storage.read_bytes("s3://bucket/run/out/metrics.jsonl").count(b"\n") == 2
    with pytest.raises(LawmError, match="holds a run of another config"):
        fit_local(
            tiny_with(**{"data__index": config.data.index, "train__seed": 4}), "latent_action", "s3://bucket/run/out"
        )


def test_a_run_on_s3_that_stops_has_listed_why(signed: str, make_video, tmp_path: Path) -> None:
    """Its lines are kept in memory between checkpoints; here it ends before the first of them."""
    index = put_videos(make_video, 2, tmp_path, "s3://bucket/stops")
    storage.delete("s3://bucket/stops/videos/1.mp4")
    config = tiny_with(
        data__index=index,
        data__val_fraction=0.0,
        data__max_bad_fraction=0.1,
        train__steps=200,
        train__checkpoint_every=200,
    )
    with pytest.raises(LawmError, match=r"more than data\.max_bad_fraction = 0\.1 allows"):
        fit_local(config, "latent_action", "s3://bucket/stops/out")
    lines = storage.read_bytes("s3://bucket/stops/out/quarantine.jsonl").splitlines()
    assert len(lines) >= 20 and all(b'"reason": "missing"' in line for line in lines)


def test_boto3_itself_agrees(signed: str) -> None:
    """The test servers are no toys: a plain client with the same keys reads what lawm wrote."""
    storage.write_bytes("s3://bucket/plain", b"lawm")
    client = boto3.session.Session().client("s3", endpoint_url=signed)  # the default session keeps older keys
    assert client.get_object(Bucket="bucket", Key="plain")["Body"].read() == b"lawm"


@pytest.mark.parametrize("flags", ["faststart", ""])
def test_of_a_long_video_only_what_a_clip_needs_is_fetched(flags: str, proxy: FaultProxy, tmp_path: Path) -> None:
    options = {"movflags": flags} if flags else {}
    rate = {"b": "6M", "minrate": "6M", "maxrate": "6M", "bufsize": "3M", "nal-hrd": "cbr"}  # filled up to 45 MB
    form = {"rate": 15, "width": 320, "height": 240, "gop": 15, "options": rate, "container_options": options}
    write_video(tmp_path / "v.mp4", 900, **form)  # type: ignore[arg-type]
    size = (tmp_path / "v.mp4").stat().st_size
    assert size > 30 << 20
    storage.write_bytes("s3://bucket/l/v.mp4", (tmp_path / "v.mp4").read_bytes())
    (ref,) = list_videos(["s3://bucket/l"])

    def fetched(requests: list[bytes]) -> int:
        spans = [re.search(rb"[Rr]ange: bytes=(\d+)-(\d+)", r) for r in requests if r.startswith(b"GET")]
        return sum(int(s[2]) - int(s[1]) + 1 for s in spans if s)

    before = len(proxy.requests)
    row = probe(ref, LIMITS)
    assert (row["reason"], row["frames"]) == (None, 900)
    assert 0 < fetched(proxy.requests[before:]) < 0.2 * size
    before = len(proxy.requests)
    clip = decode_clip(ref_of(row), 40.0, CLIP, LIMITS)
    assert number_of(clip.frames_FCHW[0]) == 600
    assert 0 < fetched(proxy.requests[before:]) < 0.2 * size


def test_an_object_replaced_since_it_was_indexed_is_refused(signed: str, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 150, gop=60)
    data = (tmp_path / "v.mp4").read_bytes()
    storage.write_bytes("s3://bucket/w/v.mp4", data)
    (ref,) = list_videos(["s3://bucket/w"])
    ref = ref_of(probe(ref, LIMITS))
    assert ref.version is not None
    decode_clip(ref, 0.0, CLIP, LIMITS)
    time.sleep(1.1)
    write_video(tmp_path / "v.mp4", 150, gop=61)
    other = (tmp_path / "v.mp4").read_bytes()
    other = other[: len(data)] + b"\0" * (len(data) - len(other))  # of the same size
    storage.write_bytes("s3://bucket/w/v.mp4", other)
    with pytest.raises(VideoError, match="replaced: the object is not the one that was indexed"):
        decode_clip(ref, 0.0, CLIP, LIMITS)
    assert probe(ref, LIMITS)["reason"].startswith("replaced")
