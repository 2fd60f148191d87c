"""One configuration of S3 for lawm's own code and for what Ray Train writes through, on servers that check it."""

import datetime
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pyarrow import fs

from benchmarks._servers import KEY, SECRET, FaultProxy, rclone
from jobs.__main__ import main as lawm
from lawm import s3, storage
from lawm.cluster.filesystem import Objects, arrow_filesystem
from lawm.storage import NotFoundError, StorageError

DEAD = "http://127.0.0.1:9"  # nothing listens there: data must not go there, nor be expected there


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("configured")
    for bucket in ("bucket", "forest"):
        (folder / bucket).mkdir()
    with rclone(folder) as url:
        yield url, folder / "bucket"


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which nothing is said of S3; the AWS configuration file that is read."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.upper() in s3._ALSO[1:]:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path / "config"


def profile(clean: Path, text: str, name: str = "default") -> None:
    clean.write_text(
        f"[{name}]\nregion = eu-west-1\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n{text}"
    )


def both_write_to(bucket: Path) -> None:
    """Through lawm.storage and through Ray's interface, and both read what the other wrote."""
    storage.write_bytes("s3://bucket/ours", b"of lawm")
    system, path = arrow_filesystem("s3://bucket/run")
    with system.open_output_stream(f"{path}/theirs") as file:
        file.write(b"of Ray")
    assert (bucket / "ours").read_bytes() == b"of lawm" and (bucket / "run/theirs").read_bytes() == b"of Ray"
    assert storage.read_bytes("s3://bucket/run/theirs") == b"of Ray"
    with system.open_input_file("bucket/ours") as file:
        assert file.read() == b"of lawm"
    for name in ("ours", "run/theirs"):
        (bucket / name).unlink()


@pytest.mark.parametrize(
    "said",
    [
        "endpoint_url = {url}/",
        "services = mine\n[services mine]\ns3 =\n    endpoint_url = {url}",
        "endpoint_url = http://127.0.0.1:9\nservices = mine\n[services mine]\ns3 =\n    endpoint_url = {url}",
    ],
)
def test_a_profile_names_the_server(
    said: str, clean: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "far")
    profile(clean, said.format(url=server[0]), "profile far")
    both_write_to(server[1])
    assert s3.region() == "eu-west-1"
    # The environment goes before the profile, the variable of S3 before that of all services.
    monkeypatch.setenv("AWS_ENDPOINT_URL", DEAD)
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with pytest.raises(StorageError, match="cannot reach S3 at " + DEAD):
        arrow_filesystem("s3://bucket/run")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server[0])
    both_write_to(server[1])


def test_another_server_is_not_written_to(
    clean: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose environment names another server than the driver's, or none."""
    profile(clean, f"endpoint_url = {server[0]}")
    system, path = arrow_filesystem("s3://bucket/run")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", DEAD)
    with pytest.raises(StorageError, match=f"endpoint is {DEAD}, the run's is {server[0]}"):
        system.open_output_stream(f"{path}/theirs")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert s3.endpoint() is None and "amazonaws" in s3.client().meta.endpoint_url
    with pytest.raises(StorageError, match="endpoint is that of AWS"):
        system.get_file_info(path)


def test_a_proxy_is_gone_through(clean: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    where = urlsplit(server[0])
    proxy = FaultProxy((str(where.hostname), int(where.port or 0)))
    profile(clean, "endpoint_url = http://s3.invalid")  # a name that only the proxy could know
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    both_write_to(server[1])
    assert len(proxy.requests) >= 4 and all(b" http://s3.invalid/bucket" in r for r in proxy.requests)
    proxy.close()
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setenv("http_proxy", DEAD)
    with pytest.raises(StorageError, match=r"cannot reach S3 at http://s3\.invalid.*proxy"):
        storage.read_bytes("s3://bucket/x")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that no authority has signed, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a private authority")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(made.public_bytes(pem))
    form, open_key = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, open_key))
    return folder / "ca.pem", folder / "key.pem"


def test_a_private_authority_is_believed_where_it_is_named(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, key = certificate(tmp_path)
    (tmp_path / "store/bucket").mkdir(parents=True)
    with rclone(tmp_path / "store", "--cert", str(ca), "--key", str(key)) as url:
        assert url.startswith("https://")
        monkeypatch.setattr(s3, "ATTEMPTS", 1)
        profile(clean, f"endpoint_url = {url}")
        with pytest.raises(StorageError, match=r"cannot reach S3 at https://.*name that: AWS_CA_BUNDLE=FILE"):
            storage.read_bytes("s3://bucket/x")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(ca))
        both_write_to(tmp_path / "store/bucket")
        monkeypatch.delenv("AWS_CA_BUNDLE")
        profile(clean, f"endpoint_url = {url}\nca_bundle = {ca}")
        s3._connect.cache_clear()
        both_write_to(tmp_path / "store/bucket")


def test_a_public_bucket_needs_no_keys(
    clean: Path, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    (tmp_path / "store/bucket").mkdir(parents=True)
    with rclone(tmp_path / "store", signed=False) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        both_write_to(tmp_path / "store/bucket")
        assert "no S3 credentials were found" in capfd.readouterr().err
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "1")
        both_write_to(tmp_path / "store/bucket")
        assert capfd.readouterr().err == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server[0])  # where keys are asked for
    for act in (storage.read_bytes, storage.size_of, arrow_filesystem, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(StorageError, match=r"not signed\. Set AWS_ACCESS_KEY_ID"):
            act("s3://bucket/key")


@pytest.mark.parametrize(
    ("key", "secret", "said"),
    [(KEY, "another", "SignatureDoesNotMatch.*secret"), ("somebody", SECRET, "InvalidAccessKeyId.*no such AWS_ACCESS")],
)
def test_a_wrong_secret_is_called_one(
    key: str, secret: str, said: str, clean: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by requests whose refusal has no body (HEAD), for objects that are there and that are not."""
    (server[1] / "there").write_bytes(b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server[0])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    acts = [storage.read_bytes, storage.size_of, storage.exists, storage.check_folder, storage.delete]
    acts += [storage.open_file, lambda uri: storage.write_bytes(uri, b""), lambda uri: list(storage.list_files(uri))]
    for act in [*acts, arrow_filesystem]:
        for name in ("there", "nothing"):
            with pytest.raises(StorageError, match=f"the credentials were refused.*{said}") as caught:
                act(f"s3://bucket/{name}")
            assert "\n" not in str(caught.value) and not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ENDPOINT_URL_S3", "localhost:9000", r"AWS_ENDPOINT_URL_S3 = localhost:9000: not the URL of a server"),
        ("AWS_ENDPOINT_URL", "minio.example", r"Expected http://HOST:PORT"),
        ("AWS_ENDPOINT_URL_S3", "http://host:port", r"Expected http://HOST:PORT"),
        ("AWS_PROFILE", "nobody", r"the AWS configuration cannot be used: .*nobody"),
        ("AWS_MAX_ATTEMPTS", "many", r"S3 configuration cannot be used: .*many"),
        ("AWS_CA_BUNDLE", "/nowhere/ca.pem", r"/nowhere/ca\.pem"),
        ("LAWM_S3_READ_TIMEOUT", "soon", r"LAWM_S3_READ_TIMEOUT: expected seconds"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(
    name: str, value: str, said: str, clean: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(clean, f"endpoint_url = {server[0] if name != 'AWS_CA_BUNDLE' else server[0].replace('http', 'https')}")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setenv(name, value)
    for act in (storage.read_bytes, arrow_filesystem):
        with pytest.raises(StorageError, match=said) as caught:
            act("s3://bucket/key")
        assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there(clean: Path, server: tuple[str, Path]) -> None:
    profile(clean, f"endpoint_url = {server[0]}")
    for act in (storage.check_folder, arrow_filesystem, storage.read_bytes):
        with pytest.raises(NotFoundError, match="there is no bucket 'nobucket' at http"):
            act("s3://nobucket/run")


@pytest.mark.parametrize(
    ("job", "asked"),
    [
        ("train", ["--index", "x.parquet", "--out", "s3://nobucket/run"]),
        ("encode", ["--index", "x.parquet", "--out", "s3://nobucket/cache"]),
        ("prepare", ["x.parquet", "--out", "s3://nobucket/shards"]),
        ("index", ["{folder}", "--out", "s3://nobucket/i.parquet"]),
        ("inspect", ["x.parquet", "--out", "s3://nobucket/i.html"]),
        ("plan", ["--checkpoint", "x", "--controller", "y", "--out", "s3://nobucket/plan"]),
        ("report", ["--checkpoint", "x", "--out", "s3://nobucket/report.html"]),
        ("tune", ["x.yaml", "--out", "s3://nobucket/tune"]),
        ("simulate", ["--out", "s3://nobucket/episodes", "--episodes", "2"]),
    ],
)
def test_every_job_says_so_before_it_begins(
    job: str, asked: list[str], clean: Path, server: tuple[str, Path], capsys
) -> None:
    profile(clean, f"endpoint_url = {server[0]}")
    (clean.parent / "videos").mkdir()
    (clean.parent / "videos/a.mp4").write_bytes(b"not looked at")
    assert lawm([job, *(part.format(folder=clean.parent / "videos") for part in asked)]) == 2
    said = capsys.readouterr().err
    assert "there is no bucket 'nobucket' at http" in said and said.count("\n") == 1


def test_a_server_that_is_slow_is_waited_for_by_both(
    clean: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow's own client gives up after three seconds."""
    where = urlsplit(server[0])
    proxy = FaultProxy((str(where.hostname), int(where.port or 0)), delay_s=3.5)
    profile(clean, f"endpoint_url = {proxy.url}")
    system = fs.PyFileSystem(Objects(proxy.url))
    with system.open_output_stream("bucket/slow") as file:
        file.write(b"x")
    assert (server[1] / "slow").read_bytes() == b"x"
    monkeypatch.setenv("LAWM_S3_READ_TIMEOUT", "1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with (
        pytest.raises(StorageError, match=r"cannot reach S3.*timeout"),
        system.open_output_stream("bucket/slow") as out,
    ):
        out.write(b"x")
    proxy.close()


def test_what_pyarrow_and_ray_ask_of_a_filesystem(clean: Path, server: tuple[str, Path]) -> None:
    """Held against pyarrow's own file system over the same folder."""
    profile(clean, f"endpoint_url = {server[0]}")
    system, path = arrow_filesystem("s3://forest/tree/")
    local = fs.SubTreeFileSystem(str(server[1].parent), fs.LocalFileSystem())
    system.create_dir(f"{path}/a/b")
    for name, data in (("a/b/one", b"1" * 5), ("a/two", b""), ("three", b"3"), ("a/b/c/four", b"4")):
        with system.open_output_stream(f"{path}/{name}") as file:
            file.write(data)

    def seen(system: fs.FileSystem, base: str, recursive: bool) -> list[tuple[str, fs.FileType, int | None]]:
        found = system.get_file_info(fs.FileSelector(base, recursive=recursive))
        return sorted((one.path, one.type, one.size) for one in found)

    for base in (path, f"{path}/a", "forest"):
        for recursive in (False, True):
            assert seen(system, base, recursive) == seen(local, base, recursive), (base, recursive)
    names = [path, f"{path}/a/two", f"{path}/a/b/one", f"{path}/nothing", "forest", "nobucket", f"{path}/a/b"]
    for ours, theirs in zip(system.get_file_info(names), local.get_file_info(names), strict=True):
        assert (ours.path, ours.type, ours.size) == (theirs.path, theirs.type, theirs.size)
    with pytest.raises(FileNotFoundError):
        system.get_file_info(fs.FileSelector(f"{path}/nothing"))
    assert system.get_file_info(fs.FileSelector(f"{path}/nothing", allow_not_found=True)) == []
    for act in (system.open_input_file, system.open_input_stream, system.delete_file):
        with pytest.raises(FileNotFoundError):
            act(f"{path}/nothing")
    assert system.get_file_info(fs.FileSelector("nobucket", allow_not_found=True)) == []
    for act in (system.copy_file, system.move):
        for missing in (f"{path}/nothing", "nobucket/nothing"):
            with pytest.raises(FileNotFoundError):
                act(missing, f"{path}/copy")
    system.copy_file(f"{path}/a/b/one", f"{path}/copy")
    system.move(f"{path}/a/b", f"{path}/moved")
    with system.open_output_stream(f"{path}/moved/empty"):
        pass
    system.move(f"{path}/moved", f"{path}/moving")
    system.move(f"{path}/moving", f"{path}/moved")
    assert local.open_input_file(f"{path}/copy").read() == b"1" * 5
    assert [p for p, t, _ in seen(system, path, True) if t == fs.FileType.File] == [
        f"{path}/{name}" for name in ("a/two", "copy", "moved/c/four", "moved/empty", "moved/one", "three")
    ]
    system.delete_dir(f"{path}/moved")
    system.delete_file(f"{path}/three")
    assert system.get_file_info(f"{path}/moved").type == fs.FileType.NotFound
    again, _ = arrow_filesystem("s3://forest/tree/a")
    assert again == system and (again != system) is False  # one run, one file system, whatever folder was asked for
    import pickle

    assert pickle.loads(pickle.dumps(system)) == system


def test_no_home_is_known(tmp_path: Path) -> None:
    """As under an unknown user id; `~` is then no folder of that name."""
    script = "try: print(storage.absolute('~/x'))\nexcept storage.StorageError as e: print(e)"
    alone = "os.setgid(54321); os.setuid(54321); os.environ.pop('HOME', None)"
    wrap = f"import os\nfrom lawm import storage\n{alone}\n{script}"
    if os.getuid() != 0:
        pytest.skip("needs root to become an unknown user")
    done = subprocess.run([sys.executable, "-c", wrap], capture_output=True, text=True)
    assert "no home folder is known here" in done.stdout, done.stderr
