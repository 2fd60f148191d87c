"""What Ray Train and Tune write through: pyarrow's interface over lawm's storage, so that there is one S3 client."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import pyarrow as pa
from pyarrow import fs

from lawm import s3, storage
from lawm.s3 import S3, NotFoundError, StorageError, bucket_key


def arrow_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """(filesystem, path in it) for pyarrow. Raises StorageError where the bucket is not there or cannot be reached."""
    if not storage.is_s3(uri):
        return fs.LocalFileSystem(), storage.absolute(uri)
    storage.check_folder(uri)
    return fs.PyFileSystem(Objects(s3.endpoint())), uri.removeprefix(S3).rstrip("/")


class Objects(fs.FileSystemHandler):
    """The objects of a server, by `bucket/key`. Folders are what keys have before a slash; none are made.

    `endpoint` is where it was made: in a process that would talk to another server, it refuses to work. Two of one
    server are equal, which Ray Train asks of a checkpoint's and its run's.
    """

    def __init__(self, endpoint: str | None) -> None:
        self.endpoint = endpoint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objects) and self.endpoint == other.endpoint

    def __ne__(self, other: object) -> bool:  # pyarrow asks for each of the two
        return not self == other

    def __hash__(self) -> int:
        return hash(self.endpoint)

    def get_type_name(self) -> str:
        return "lawm+s3"

    def normalize_path(self, path: str) -> str:
        return path

    def uri(self, path: str) -> str:
        """s3://path. Raises StorageError where this process has another endpoint."""
        if s3.endpoint() != self.endpoint:
            raise StorageError(
                f"{S3}{path}: this node's S3 endpoint is {s3.endpoint() or 'that of AWS'}, the run's is "
                f"{self.endpoint or 'that of AWS'}. Set the same AWS_ENDPOINT_URL_S3 on every node"
            )
        return S3 + path.strip("/")

    # ---------------------------------------------------------------- what is there
    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> fs.FileInfo:
        uri = self.uri(path)
        bucket, key = bucket_key(uri)
        try:
            with s3.errors(uri):
                if key:
                    found = s3.client().head_object(Bucket=bucket, Key=key)
                    size = int(found["ContentLength"])
                    return fs.FileInfo(path, fs.FileType.File, size=size, mtime=found["LastModified"])
        except NotFoundError:
            pass
        there = storage.exists(uri + "/") if key else _bucket_exists(uri)
        return fs.FileInfo(path, fs.FileType.Directory if there else fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        base = selector.base_dir.strip("/")
        found = list(self._below(base, selector.recursive))
        if not found and not selector.allow_not_found and self._info(base).type == fs.FileType.NotFound:
            raise FileNotFoundError(base)
        return found

    def _below(self, base: str, recursive: bool) -> Iterator[fs.FileInfo]:
        bucket, key = bucket_key(self.uri(base))
        prefix = f"{key}/" if key else ""
        pages = s3.client().get_paginator("list_objects_v2")
        folders: set[str] = set()
        with suppress(NotFoundError), s3.errors(self.uri(base)):  # no such bucket
            asked = {"Bucket": bucket, "Prefix": prefix} | ({} if recursive else {"Delimiter": "/"})
            for page in pages.paginate(**asked):
                folders.update(one["Prefix"].rstrip("/") for one in page.get("CommonPrefixes", ()))
                for one in page.get("Contents", ()):
                    name = str(one["Key"])
                    inner = name.removeprefix(prefix).split("/")[:-1]
                    folders.update(prefix + "/".join(inner[: i + 1]) for i in range(len(inner)))
                    if not name.endswith("/"):  # folder markers
                        told = {"size": int(one["Size"]), "mtime": one["LastModified"]}
                        yield fs.FileInfo(f"{bucket}/{name}", fs.FileType.File, **told)
        for folder in sorted(folders):
            yield fs.FileInfo(f"{bucket}/{folder}", fs.FileType.Directory)

    # ---------------------------------------------------------------- changing it
    def create_dir(self, path: str, recursive: bool) -> None:
        self.uri(path)  # some services make files of empty objects for folders, in which nothing can then be put

    def delete_dir(self, path: str) -> None:
        storage.delete(self.uri(path) + "/")

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        if not missing_dir_ok and self._info(path).type == fs.FileType.NotFound:
            raise FileNotFoundError(path)
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        raise StorageError("a whole store is not to be emptied")

    def delete_file(self, path: str) -> None:
        if self._info(path).type != fs.FileType.File:
            raise FileNotFoundError(path)
        bucket, key = bucket_key(self.uri(path))
        with s3.errors(self.uri(path)):
            s3.client().delete_object(Bucket=bucket, Key=key)

    def move(self, src: str, dest: str) -> None:
        if self._info(src).type == fs.FileType.File:
            found = [src]
        else:
            found = [f.path for f in self._below(src, True) if f.type == fs.FileType.File]
        if not found:
            raise FileNotFoundError(src)
        for path in found:
            self.copy_file(path, dest + path.removeprefix(src))
        storage.delete(self.uri(src))

    def copy_file(self, src: str, dest: str) -> None:
        (from_bucket, from_key), (bucket, key) = bucket_key(self.uri(src)), bucket_key(self.uri(dest))
        try:
            with s3.errors(self.uri(src)):
                s3.client().copy({"Bucket": from_bucket, "Key": from_key}, bucket, key)
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from None

    # ---------------------------------------------------------------- bytes
    def open_input_stream(self, path: str) -> pa.PythonFile:
        try:
            return pa.PythonFile(storage.open_file(self.uri(path)), mode="r")
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from None

    def open_input_file(self, path: str) -> pa.PythonFile:
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        return pa.PythonFile(cast(Any, _Upload(self.uri(path))), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        raise StorageError(f"{S3}{path}: S3 cannot append to an object")


class _Upload:
    """A file to write, which becomes the object when it is closed."""

    def __init__(self, uri: str) -> None:
        self.uri, self.closed = uri, False
        self._file = tempfile.SpooledTemporaryFile(max_size=8 << 20)  # noqa: SIM115 (closed by close)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(bytes(data))

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with self._file as file:
                file.seek(0)
                with storage.atomic_file(self.uri) as out:
                    while piece := file.read(8 << 20):
                        out.write(piece)


def _bucket_exists(uri: str) -> bool:
    try:
        s3.check_bucket(uri)
    except NotFoundError:
        return False
    return True
