"""The one place that knows what a URI is: a local path, or `s3://bucket/key`.

S3 goes through boto3's own chain (environment, profiles, roles). The endpoint of another S3 service is
AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL; the addressing style is that of the profile (`s3 = addressing_style = ...`),
else by path for an endpoint of one's own. What throttling, resets and time-outs break is tried again. Whatever the user
can put right is raised as `StorageError`, one line that names the URI; a file that is not there as `NotFoundError`.
"""

import errno
import functools
import hashlib
import io
import itertools
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from lawm.config import LawmError

S3 = "s3://"
_READ_AHEAD = 1 << 20
"""Bytes fetched by one ranged request of a buffered S3 file, at least."""
_RANGES_HELD = 4
"""Such ranges that an open S3 file keeps."""
_WHOLE = 8 << 20
"""Up to this size a video is fetched by one request."""
_ATTEMPTS = 6
"""How often a request is made before it fails: with waits that double, about half a minute."""
_ONE_PUT = 64 << 20
"""Larger objects are uploaded in parts (still all or nothing)."""


class StorageError(LawmError):
    """A place that cannot be read or written, and why."""


class ReplacedError(StorageError):
    """An object is no longer the one that it was."""


class NotFoundError(StorageError):
    """No such file, folder, object or bucket."""


# ---------------------------------------------------------------- names
def is_s3(uri: str) -> bool:
    return uri.startswith(S3)


def absolute(uri: str) -> str:
    """`uri` with a local path made absolute (links are kept as they are); raises StorageError for other schemes."""
    if is_s3(uri):
        _bucket_key(uri)
        return uri
    return os.path.abspath(_local(uri))


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` appended, separated by single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def _local(uri: str) -> str:
    if uri.startswith("file://"):
        return uri.removeprefix("file://")
    scheme, separator, _ = uri.partition("://")
    if separator and scheme.isalnum():
        raise StorageError(f"{uri}: scheme {scheme!r} is not supported. Use a local path or s3://bucket/key")
    if not uri:
        raise StorageError("an empty path was given. Use a local path or s3://bucket/key")
    return os.path.expanduser(uri)


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not bucket:
        raise StorageError(f"{uri}: no bucket is named. Expected s3://bucket/key")
    return bucket, key


# ---------------------------------------------------------------- errors
@contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{uri}: no such file or folder") from None
    except FileExistsError as error:
        raise StorageError(f"{uri}: {error.filename or 'a file'} is in the way of a folder of that name") from None
    except IsADirectoryError:
        raise StorageError(f"{uri}: is a folder, a file was expected") from None
    except PermissionError:
        raise StorageError(f"{uri}: permission denied. Change its mode, or run as a user who may") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{uri}: the disk is full. Free some space, or write elsewhere") from None
        if error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EIO, errno.ESTALE):
            raise StorageError(f"{uri}: {(error.strerror or str(error)).lower()}") from None
        raise


_REFUSED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"}
_BAD_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401"}


def _no_bucket(uri: str) -> NotFoundError:
    return NotFoundError(f"{uri}: there is no bucket {_bucket_key(uri)[0]!r}{_at()}. Create it, or correct the name")


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto

    bucket, _ = _bucket_key(uri)
    try:
        yield
    except boto.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        said = str(error.response.get("Error", {}).get("Message", ""))
        if code == "NoSuchBucket":
            raise _no_bucket(uri) from None
        if code in ("NoSuchKey", "404", "NotFound"):
            raise NotFoundError(f"{uri}: no such object{_at()}") from None
        if code in _REFUSED:
            hint = f"These credentials may not do this to bucket {bucket!r}"
            raise StorageError(f"{uri}: access denied{_at()}. {hint}") from None
        if code in _BAD_KEYS:
            hint = "Renew AWS_ACCESS_KEY_ID and its secret"
            raise StorageError(f"{uri}: the credentials were refused{_at()} ({code}). {hint}") from None
        raise StorageError(f"{uri}: S3 answered {code or 'an error'}{_at()}: {said}") from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound):
        raise StorageError(
            f"{uri}: no S3 credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from None
    except boto.ParamValidationError as error:
        raise StorageError(f"{uri}: not a valid S3 name: {' '.join(str(error).split())}") from None
    except (boto.BotoCoreError, Boto3Error) as error:
        raise StorageError(f"{uri}: cannot reach S3{_at()}: {' '.join(str(error).split())}") from None


def endpoint() -> str | None:
    """The S3 endpoint that the environment sets, or None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _at() -> str:
    return f" at {endpoint()}" if endpoint() else ""


# ---------------------------------------------------------------- S3
def _client() -> Any:
    signing = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    return _client_for(os.getpid(), endpoint(), *map(os.environ.get, signing))


_client_lock = threading.Lock()


def _client_for(pid: int, url: str | None, *identity: str | None) -> Any:
    # boto3's default session is not thread-safe while it makes a client; the client itself is.
    with _client_lock:
        return _cached_client(pid, url, *identity)


@functools.lru_cache(maxsize=8)
def _cached_client(pid: int, url: str | None, *identity: str | None) -> Any:
    """One client per process (a fork must not share sockets) and per way of signing in."""
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    return session.client(
        "s3",
        endpoint_url=url,
        region_name=session.region_name or "us-east-1",
        config=Config(
            connect_timeout=10,
            read_timeout=_read_timeout(),
            retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
            max_pool_connections=32,
            # Other S3 services seldom have a host name per bucket, nor the newer checksums.
            s3={"addressing_style": _addressing_style(session, url)},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _read_timeout() -> float:
    """Seconds without a byte before a connection counts as dead (LAWM_S3_READ_TIMEOUT; 60)."""
    try:
        return float(os.environ.get("LAWM_S3_READ_TIMEOUT", "60"))
    except ValueError:
        raise StorageError("LAWM_S3_READ_TIMEOUT: expected seconds, as in 60") from None


def _addressing_style(session: Any, url: str | None) -> str:
    configured = (session._session.get_scoped_config().get("s3") or {}).get("addressing_style")
    return str(configured or ("path" if url else "auto"))


def _head(uri: str) -> tuple[int, str]:
    """Size and ETag of an object. A HEAD has no body that tells a missing key from a missing bucket: ask for both."""
    bucket, key = _bucket_key(uri)
    try:
        with _s3_errors(uri):
            answer = _client().head_object(Bucket=bucket, Key=key)
            return int(answer["ContentLength"]), str(answer.get("ETag", ""))
    except NotFoundError:
        _require_bucket(uri)
        raise


def _require_bucket(uri: str) -> None:
    bucket, _ = _bucket_key(uri)
    try:
        with _s3_errors(uri):
            _client().head_bucket(Bucket=bucket)
    except NotFoundError:
        raise _no_bucket(uri) from None


def _version(etag: str) -> int | None:
    """An ETag as 63 bits, since an index holds ten million of them; None where there is none."""
    plain = etag.removeprefix("W/").strip('"')
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big") >> 1 if plain else None


class _Body(NamedTuple):
    """An answer's bytes, the size of the whole object and its version where they are told."""

    data: bytes
    total: int | None = None
    version: int | None = None


def _get(uri: str, offset: int, size: int | None, version: int | None = None) -> _Body:
    """Bytes [offset, offset + size) of an object; shorter at its end, empty beyond it. Raises ReplacedError where the
    object no longer is the one of that `version`."""
    if size == 0:
        return _Body(b"")
    bucket, key = _bucket_key(uri)
    whole = offset == 0 and size is None
    span = {} if whole else {"Range": f"bytes={offset}-{'' if size is None else offset + size - 1}"}
    with _s3_errors(uri):
        from botocore import exceptions as boto

        # boto3 tries a request again, but not a body that breaks off.
        broken = (boto.ResponseStreamingError, boto.IncompleteReadError, boto.ReadTimeoutError, boto.HTTPClientError)
        for attempt in itertools.count(1):
            try:
                answer = _client().get_object(Bucket=bucket, Key=key, **span)
                there = _version(answer.get("ETag", ""))
                if version is not None and there not in (version, None):
                    answer["Body"].close()
                    raise ReplacedError(f"{uri}: the object was replaced since it was indexed or opened; index again")
                data = bytes(answer["Body"].read())
                break
            except boto.ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("InvalidRange", "416"):
                    return _Body(b"")
                raise
            except broken:
                if attempt >= _ATTEMPTS:
                    raise
                time.sleep(min(0.25 * 2 ** (attempt - 1), 8.0) * random.uniform(0.5, 1.0))
    # Some services answer a range with status 200; some of those send the whole object.
    span_said = str(answer.get("ContentRange", ""))
    total = int(span_said.rpartition("/")[2]) if span_said.rpartition("/")[2].isdigit() else None
    if not whole and not span_said and (size is None or len(data) > size):
        total = len(data)
        data = data[offset:] if size is None else data[offset : offset + size]
    return _Body(data, len(data) if whole else total, there)


class _Window(io.RawIOBase):
    """A seekable, read-only view of bytes [offset, offset + size) of something."""

    def __init__(self, name: str, offset: int, size: int) -> None:
        self.name = name
        self._offset, self._size, self._at = offset, size, 0

    def _fill(self, buffer: memoryview, offset: int) -> int:
        """Reads from `offset` of the whole into `buffer`; returns how many bytes."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, (0, self._at, self._size)[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        want = min(len(buffer), self._size - self._at)
        count = self._fill(memoryview(buffer)[:want], self._offset + self._at) if want > 0 else 0
        self._at += count
        return count


class _S3Window(_Window):
    """Keeps the last ranges that it has fetched: a reader of containers goes to and fro, and a BufferedReader forgets
    what it holds when it does. `total` (the object's size) and `version` are known from the first answer on, where
    they were not before."""

    def __init__(self, uri: str, offset: int, size: int, version: int | None = None, ahead: int = 0) -> None:
        super().__init__(uri, offset, size)
        self.version, self._ahead = version, ahead or _READ_AHEAD
        self.total: int | None = None
        self._held: list[tuple[int, bytes]] = []

    def _fill(self, buffer: memoryview, offset: int) -> int:
        for start, data in self._held:
            if start <= offset < start + len(data):
                break
        else:
            want = min(max(len(buffer), self._ahead), self._offset + self._size - offset)
            start, (data, total, version) = offset, _get(self.name, offset, want, self.version)
            self.version = version if self.version is None else self.version
            self.total = total if self.total is None else self.total
            if len(data) <= _WHOLE:
                self._held = [(start, data), *self._held[: _RANGES_HELD - 1]]
        found = data[offset - start : offset - start + len(buffer)]
        buffer[: len(found)] = found
        return len(found)


class _LocalWindow(_Window):
    def __init__(self, path: str, offset: int, size: int) -> None:
        super().__init__(path, offset, size)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()

    def _fill(self, buffer: memoryview, offset: int) -> int:
        return os.preadv(self._file.fileno(), [buffer], offset)

    def close(self) -> None:
        self._file.close()
        super().close()


# ---------------------------------------------------------------- reading
def read_bytes(uri: str, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes [offset, offset + size) (to the end, if size is None); fewer where the file ends.

    Raises NotFoundError, StorageError.
    """
    if is_s3(uri):
        return _get(uri, offset, size).data
    with _local_errors(uri), open(_local(uri), "rb") as file:
        file.seek(offset)
        return file.read() if size is None else file.read(size)


def open_file(uri: str, offset: int = 0, size: int | None = None) -> BinaryIO:
    """A seekable binary file over bytes [offset, offset + size) of `uri`; S3 is read in buffered ranges.

    Raises NotFoundError, StorageError.
    """
    if is_s3(uri):
        there, etag = _head(uri)
        length = max(0, there - offset)
        raw: io.RawIOBase = _S3Window(uri, offset, length if size is None else min(size, length), _version(etag))
        return cast(BinaryIO, io.BufferedReader(raw, min(_READ_AHEAD, 1 << 16)))
    path = _local(uri)
    with _local_errors(uri):
        if offset == 0 and size is None:
            return open(path, "rb")
        length = max(0, os.stat(path).st_size - offset)
        raw = _LocalWindow(path, offset, length if size is None else min(size, length))
        return cast(BinaryIO, io.BufferedReader(raw, 1 << 16))


class Part(NamedTuple):
    """A file over some bytes of an object, how many of them there are, and the object's version."""

    file: BinaryIO
    there: int
    version: int | None


def open_part(uri: str, offset: int, size: int, version: int | None = None) -> Part:
    """Bytes [offset, offset + size) of an S3 object, whose size is known: no more requests than reads, and one for
    all of it up to 8 MiB. Raises NotFoundError; ReplacedError, now or later, where it is not of that `version`;
    StorageError."""
    raw = _S3Window(uri, offset, size, version, size if size <= _WHOLE else _READ_AHEAD)
    file = io.BufferedReader(raw, 1 << 16)
    file.peek(1)
    total = _head(uri)[0] if raw.total is None else raw.total
    return Part(cast(BinaryIO, file), min(size, max(0, total - offset)), raw.version)


def size_of(uri: str) -> int:
    """Size of a file in bytes. Raises NotFoundError, StorageError."""
    if is_s3(uri):
        return _head(uri)[0]
    with _local_errors(uri):
        if os.path.isdir(_local(uri)):
            raise IsADirectoryError
        return os.stat(_local(uri)).st_size


def exists(uri: str) -> bool:
    """Whether there is a file, an object, a folder, or an object below the prefix `uri`."""
    if not is_s3(uri):
        with _local_errors(uri):
            return os.path.exists(_local(uri))
    bucket, key = _bucket_key(uri)
    try:
        with _s3_errors(uri):
            if key and not key.endswith("/"):
                with suppress(NotFoundError), _s3_errors(uri):
                    _client().head_object(Bucket=bucket, Key=key)
                    return True
                key += "/"
            return bool(_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("KeyCount", 0))
    except NotFoundError:
        return False


def check_folder(uri: str) -> None:
    """Raises StorageError where no folder `uri` can be written to; on S3, nothing is tried."""
    if is_s3(uri):
        return
    folder = os.path.abspath(_local(uri))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{uri}: {folder} is no folder that can be written to. Choose another place")


def list_files(uri: str, suffixes: Sequence[str] | None = None) -> Iterator[tuple[str, int]]:
    """Every (uri, size) below a folder or prefix, in a fixed order; a file lists itself, whatever its suffix.

    `suffixes` (lower case, with the dot) filters without regard to case. A local folder is walked through
    links, each real folder once; names that begin with a dot are left out. `s3://bucket/part*` lists every
    object whose key starts with `part`. Raises NotFoundError for a source that does not exist.
    """
    wanted = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
    found = _list_s3(uri) if is_s3(uri) else _list_local(_local(uri))
    for name, size in found:
        if wanted is None or name == uri or name.lower().endswith(wanted):
            yield name, size


def _list_local(root: str) -> Iterator[tuple[str, int]]:
    with _local_errors(root):
        status = os.stat(root)
    if not os.path.isdir(root):
        yield root, status.st_size
        return
    seen: set[str] = set()

    def walk(folder: str) -> Iterator[tuple[str, int]]:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        with _local_errors(folder), os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            with suppress(OSError, NotFoundError):  # a dangling link, or what went away meanwhile
                if entry.is_dir():
                    yield from walk(entry.path)
                elif entry.is_file():
                    yield _sayable(entry.path), entry.stat().st_size

    yield from walk(root)


def _sayable(path: str) -> str:
    """A name that is not UTF-8, which no table can hold, with its odd bytes spelt out: it will be missing."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def _list_s3(uri: str) -> Iterator[tuple[str, int]]:
    bucket, key = _bucket_key(uri)
    if key and not key.endswith(("/", "*")):
        with suppress(NotFoundError), _s3_errors(uri):
            yield uri, int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])
            return
        key += "/"
    any_found = False
    with _s3_errors(uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key.removesuffix("*")):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # folder markers
                    any_found = True
                    yield f"{S3}{bucket}/{item['Key']}", int(item["Size"])
    if not any_found:
        raise NotFoundError(f"{uri}: there is nothing under this prefix{_at()}")


def credentials(uri: str) -> tuple[Any, str]:
    """boto3's credentials of this moment (access_key, secret_key, token) and the region, for other libraries: those of
    a role are renewed in time. Raises StorageError where there are none."""
    with _s3_errors(uri):
        client = _client()
        found = client._request_signer._credentials
        if found is None:
            from botocore.exceptions import NoCredentialsError

            raise NoCredentialsError
        return found.get_frozen_credentials(), str(client.meta.region_name)


# ---------------------------------------------------------------- writing
def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file whole or not at all, folders made as needed. Raises StorageError."""
    with atomic_file(uri) as file:
        file.write(data)


@contextmanager
def atomic_file(uri: str) -> Iterator[IO[bytes]]:
    """A local binary file to write; it takes the place of `uri` when the block ends well, and vanishes when not.

    Raises StorageError (full disk, permission, S3).
    """
    if is_s3(uri):
        with _local_errors(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
            yield file
            _upload(uri, file)
        return
    path = Path(_local(uri))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with _local_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _upload(uri: str, file: IO[bytes]) -> None:
    bucket, key = _bucket_key(uri)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with _s3_errors(uri):
        if size <= _ONE_PUT:
            _client().put_object(Bucket=bucket, Key=key, Body=file.read())
        else:
            _client().upload_fileobj(file, bucket, key)


def delete(uri: str) -> None:
    """Removes a file, or a folder or prefix with all that is below it; what is not there is fine."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        if not key.strip("/"):
            raise StorageError(f"{uri}: refused to delete a whole bucket")
        names = []
        with suppress(NotFoundError), _s3_errors(uri):
            if not key.endswith("/"):
                # Servers over a file system fail when they are to delete a folder as an object.
                _client().head_object(Bucket=bucket, Key=key)
                names.append(key)
        with suppress(NotFoundError):
            names += [_bucket_key(name)[1] for name, _ in _list_s3(uri.rstrip("/") + "/")]
        with _s3_errors(uri):
            for name in names:
                _client().delete_object(Bucket=bucket, Key=name)
        return
    path = os.path.abspath(_local(uri))
    if path == os.path.dirname(path):
        raise StorageError(f"{uri}: refused to delete the root folder")
    with _local_errors(uri):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
