"""What Ray Train and Tune write through: pyarrow, signed in as `lawm.storage` is."""

import functools
from typing import Any

from pyarrow import fs

from lawm.storage import absolute, credentials, endpoint, is_s3


def arrow_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """(filesystem, path in it) for pyarrow, with the endpoint and the credentials that boto3 would use. Raises
    StorageError."""
    if not is_s3(uri):
        return fs.LocalFileSystem(), absolute(uri)
    credentials(uri)  # says what is missing before Ray does
    return fs.PyFileSystem(WithoutFolders(uri)), uri.removeprefix("s3://").rstrip("/")


@functools.lru_cache(maxsize=4)
def _system(access_key: str, secret_key: str, token: str | None, region: str, url: str | None) -> fs.S3FileSystem:
    options: dict[str, Any] = {"region": region}
    if url:
        scheme, _, host = url.partition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    return fs.S3FileSystem(access_key=access_key, secret_key=secret_key, session_token=token, **options)


class WithoutFolders(fs.FileSystemHandler):
    """S3 without the empty objects that pyarrow puts there for folders: some services make files of them, in which
    nothing can then be put. Signs in anew where the credentials have been renewed; holds none itself."""

    def __init__(self, uri: str) -> None:
        self.uri, self.url = uri, endpoint()

    @property
    def system(self) -> fs.S3FileSystem:
        found, region = credentials(self.uri)
        return _system(found.access_key, found.secret_key, found.token, region, self.url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithoutFolders) and (self.uri, self.url) == (other.uri, other.url)

    def __hash__(self) -> int:
        return hash((self.uri, self.url))

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return str(self.system.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return list(self.system.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return list(self.system.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        self.system.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.system.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole store is not to be emptied")

    def delete_file(self, path: str) -> None:
        self.system.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self.system.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self.system.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self.system.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self.system.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self.system.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self.system.open_append_stream(path, metadata=metadata)
