"""The one place that knows what a URI is: a local path, or `s3://bucket/key`.

S3 goes through the one client of `lawm.s3`, which says how it is configured. What throttling, resets and time-outs
break is tried again. Whatever the user can put right is raised as `StorageError`, one line that names the URI; a file
that is not there as `NotFoundError`.
"""

import errno
import hashlib
import io
import itertools
import os
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple, cast
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from lawm import s3
from lawm.s3 import S3, StorageError, bucket_key
from lawm.s3 import NotFoundError as NotFoundError

_FILE = "file://"
_TEMPORARY = re.compile(r"\..+\.\d+\.\d+\.tmp", re.DOTALL)
"""The names of what `atomic_file` writes to."""
_READ_AHEAD = 1 << 20
"""Bytes fetched by one ranged request of a buffered S3 file, at least."""
_RANGES_HELD = 4
"""Such ranges that an open S3 file keeps."""
_WHOLE = 8 << 20
"""Up to this size a video is fetched by one request."""
_ONE_PUT = 64 << 20
"""Larger objects are uploaded in parts (still all or nothing)."""


class ReplacedError(StorageError):
    """An object is no longer the one that it was."""


def tells_of_one(error: StorageError, uri: str) -> bool:
    """Whether what went wrong at `uri` is a matter of that file alone (missing, no right to it, archived), and not of
    an S3 that cannot be reached."""
    return isinstance(error, (NotFoundError, s3.RefusedError)) or not is_s3(uri)


# ---------------------------------------------------------------- names
def is_s3(uri: str) -> bool:
    return uri.startswith(S3)


def absolute(uri: str) -> str:
    """`uri` with a local path made absolute (links are kept as they are); raises StorageError for other schemes."""
    if is_s3(uri):
        bucket_key(uri)
        return uri
    return _sayable(local_path(uri))


def local_path(uri: str) -> str:
    """The absolute path that the system knows a local `uri` by; bytes that are not UTF-8 are escaped as Python does."""
    path = _local(uri)
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise StorageError(f"{uri}: the working folder is gone. Go into another, or give a whole path") from None


def name_below(uri: str, folder: str) -> str:
    """What a listing of `folder` found, as a name relative to it that any table can hold: bytes of a local name that
    are not UTF-8 are spelt out (`\\xe9`). Its own name, where it is `folder` itself."""
    if not is_s3(uri):
        uri, folder = _local(uri), os.path.join(local_path(folder), "")
    name = uri.removeprefix(folder) if uri.startswith(folder) else last_part(uri)
    return spelt(name)


def spelt(name: str) -> str:
    """A name as the system or a tar gives it, with bytes that are not UTF-8 spelt out."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` appended, separated by single slashes."""
    if uri.startswith(_FILE):
        parts = tuple(map(quote, parts))
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def last_part(uri: str) -> str:
    """The last part of a URI: the name of a file, an object or a folder."""
    return uri.rstrip("/").rpartition("/")[2]


def _local(uri: str) -> str:
    if uri.startswith(_FILE):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix(_FILE)))
    scheme, separator, _ = uri.partition("://")
    if separator and scheme.isalnum():
        raise StorageError(f"{uri}: scheme {scheme!r} is not supported. Use a local path or s3://bucket/key")
    if not uri:
        raise StorageError("an empty path was given. Use a local path or s3://bucket/key")
    if uri.split("/", 1)[0] == "~" and os.path.expanduser("~") == "~":
        raise StorageError(f"{uri}: no home folder is known here. Set HOME, or write the path out")
    return os.path.expanduser(uri)


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


# ---------------------------------------------------------------- S3
def _head(uri: str) -> tuple[int, str]:
    """Size and ETag of an object. A HEAD has no body that tells a missing key from a missing bucket: ask for both."""
    bucket, key = bucket_key(uri)
    try:
        with s3.errors(uri):
            answer = s3.client().head_object(Bucket=bucket, Key=key)
            return int(answer["ContentLength"]), str(answer.get("ETag", ""))
    except NotFoundError:
        _require_bucket(uri)
        raise


def _require_bucket(uri: str) -> None:
    bucket, _ = bucket_key(uri)
    try:
        with s3.errors(uri):
            s3.client().head_bucket(Bucket=bucket)
    except NotFoundError:
        raise s3.no_bucket(uri) from None


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
    bucket, key = bucket_key(uri)
    whole = offset == 0 and size is None
    span = {} if whole else {"Range": f"bytes={offset}-{'' if size is None else offset + size - 1}"}
    with s3.errors(uri):
        from botocore import exceptions as boto

        # boto3 tries a request again, but not a body that breaks off.
        broken = (boto.ResponseStreamingError, boto.IncompleteReadError, boto.ReadTimeoutError, boto.HTTPClientError)
        for attempt in itertools.count(1):
            try:
                answer = s3.client().get_object(Bucket=bucket, Key=key, **span)
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
                if attempt >= s3.ATTEMPTS:
                    raise
                time.sleep(min(0.25 * 2 ** (attempt - 1), 8.0) * random.uniform(0.5, 1.0))
    span_said = str(answer.get("ContentRange", ""))
    total = int(span_said.rpartition("/")[2]) if span_said.rpartition("/")[2].isdigit() else None
    if not whole and not span_said and (offset > 0 or len(data) > (size or 0)):
        # Some services answer a range with status 200; some of those send the whole object.
        total = _head(uri)[0]
        if len(data) == total:
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
            os.scandir(_local(uri)).close()  # a folder that may not be read says so first
            raise IsADirectoryError
        return os.stat(_local(uri)).st_size


def exists(uri: str) -> bool:
    """Whether there is a file, an object, a folder, or an object below the prefix `uri`."""
    if not is_s3(uri):
        with _local_errors(uri):
            return os.path.exists(_local(uri))
    bucket, key = bucket_key(uri)
    try:
        with s3.errors(uri):
            if key and not key.endswith("/"):
                with suppress(NotFoundError), s3.errors(uri):
                    s3.client().head_object(Bucket=bucket, Key=key)
                    return True
                key += "/"
            return bool(s3.client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents"))
    except NotFoundError:
        return False


def check_folder(uri: str) -> None:
    """Raises StorageError where no folder `uri` can be written to: on S3, where its bucket is not there or not to be
    reached with these keys; nothing is written."""
    if is_s3(uri):
        s3.check_bucket(uri)
        return
    folder = absolute(uri)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{uri}: {folder} is no folder that can be written to. Choose another place")


def list_files(uri: str, suffixes: Sequence[str] | None = None, troubles: bool = False) -> Iterator[tuple[str, int]]:
    """Every (uri, size) below a folder or prefix, in a fixed order; a file lists itself, whatever its suffix.

    `suffixes` (lower case, with the dot) filters without regard to case. A local folder is walked through
    links, each real folder once; names that begin with a dot are left out. `s3://bucket/part*` lists every
    object whose key starts with `part`. Raises NotFoundError for a source that does not exist; StorageError for a
    folder that may not be read. `troubles`: such folders are listed instead, with a slash at the end and no size, and
    so are links that lead nowhere, what is neither file nor folder, and folders that are named as a file: whoever opens
    them learns why.
    """
    wanted = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
    if not is_s3(uri):
        yield from _list_local(_local(uri), wanted, troubles)
        return
    for name, size in _list_s3(uri):
        if wanted is None or name == uri or name.lower().endswith(wanted):
            yield name, size


def _list_local(root: str, wanted: tuple[str, ...] | None, troubles: bool) -> Iterator[tuple[str, int]]:
    with _local_errors(_sayable(root)):
        status = os.stat(root)
    if not os.path.isdir(root):
        yield _sayable(root), status.st_size
        return
    seen: set[str] = set()

    def walk(folder: str) -> Iterator[tuple[str, int]]:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        try:
            with _local_errors(_sayable(folder)), os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except StorageError as error:
            if troubles and folder != root:
                yield f"{_sayable(folder)}/", 0
            elif folder == root or not isinstance(error, NotFoundError):  # else it went away meanwhile
                raise
            return
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            named = wanted is None or entry.name.lower().endswith(wanted)
            kind, size = _look_at(entry)
            if kind == "folder":
                found = False
                for each in walk(entry.path):
                    found = True
                    yield each
                if troubles and named and wanted is not None and not found:
                    yield f"{_sayable(entry.path)}/", 0
            elif named and (kind == "file" or troubles):
                yield _sayable(entry.path), size

    yield from walk(root)


def _look_at(entry: "os.DirEntry[str]") -> tuple[Literal["file", "folder", "neither"], int]:
    """What an entry of a folder is, through links, and its size."""
    with suppress(OSError):  # a link that leads nowhere or in a circle, no right to look, or gone meanwhile
        if entry.is_dir():
            return "folder", 0
        if entry.is_file():
            return "file", entry.stat().st_size
    return "neither", 0


def _sayable(path: str) -> str:
    """A path that a table can hold and `_local` reads back: where it is not UTF-8, as a file:// URI."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _FILE + quote_from_bytes(os.fsencode(path))
    return path


def _list_s3(uri: str) -> Iterator[tuple[str, int]]:
    bucket, key = bucket_key(uri)
    if key and not key.endswith(("/", "*")):
        with suppress(NotFoundError), s3.errors(uri):
            yield uri, int(s3.client().head_object(Bucket=bucket, Key=key)["ContentLength"])
            return
        key += "/"
    any_found = False
    for name, size in _keys(uri, bucket, key.removesuffix("*")):
        if not name.endswith("/"):  # folder markers
            any_found = True
            yield f"{S3}{bucket}/{name}", size
    if not any_found:
        raise NotFoundError(f"{uri}: there is nothing under this prefix{s3.at()}")


def _keys(uri: str, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    """(key, size) of all objects with that prefix, folder markers too."""
    with s3.errors(uri):
        for page in s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                yield str(item["Key"]), int(item["Size"])


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


def sweep(uri: str) -> None:
    """Removes what `atomic_file` has left in a local folder (not below it) where its process was killed."""
    if is_s3(uri) or not os.path.isdir(_local(uri)):
        return
    for path in Path(_local(uri)).glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            with _local_errors(uri):
                path.unlink(missing_ok=True)


def _upload(uri: str, file: IO[bytes]) -> None:
    bucket, key = bucket_key(uri)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    with s3.errors(uri):
        if size <= _ONE_PUT:
            s3.client().put_object(Bucket=bucket, Key=key, Body=file.read())
        else:
            s3.client().upload_fileobj(file, bucket, key)


def delete(uri: str) -> None:
    """Removes a file, or a folder or prefix with all that is below it; what is not there is fine."""
    if is_s3(uri):
        bucket, key = bucket_key(uri)
        if not key.strip("/"):
            raise StorageError(f"{uri}: refused to delete a whole bucket")
        names = []
        with suppress(NotFoundError), s3.errors(uri):
            if not key.endswith("/"):
                # Servers over a file system fail when they are to delete a folder as an object.
                s3.client().head_object(Bucket=bucket, Key=key)
                names.append(key)
        with suppress(NotFoundError):
            below = [name for name, _ in _keys(uri, bucket, key.rstrip("/") + "/")]
            # Markers last, the innermost first: servers over a file system keep a folder that is not empty.
            names += [name for name in below if not name.endswith("/")]
            names += [name for name in reversed(below) if name.endswith("/")]
        with s3.errors(uri):
            for name in names:
                s3.client().delete_object(Bucket=bucket, Key=name)
        return
    path = os.path.abspath(_local(uri))
    if path == os.path.dirname(path):
        raise StorageError(f"{uri}: refused to delete the root folder")
    with _local_errors(uri):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
