"""What Ray Train and Tune write through: pyarrow, signed in as `lawm.storage` is."""

from typing import Any

from pyarrow import fs

from lawm.storage import absolute, credentials, endpoint, is_s3


def arrow_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """(filesystem, path in it) for pyarrow, with the endpoint and the credentials that boto3 would use. Raises
    StorageError."""
    if not is_s3(uri):
        return fs.LocalFileSystem(), absolute(uri)
    found, region = credentials(uri)
    options: dict[str, Any] = {"region": region}
    if url := endpoint():
        scheme, _, host = url.partition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    system = fs.S3FileSystem(
        access_key=found.access_key, secret_key=found.secret_key, session_token=found.token, **options
    )
    return fs.PyFileSystem(WithoutFolders(system)), uri.removeprefix("s3://").rstrip("/")


class WithoutFolders(fs.FileSystemHandler):
    """S3 without the empty objects that pyarrow puts there for folders: some services make files of them, in which
    nothing can then be put."""

    def __init__(self, system: fs.FileSystem) -> None:
        self.system = system

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithoutFolders) and bool(self.system.equals(other.system))

    def __hash__(self) -> int:
        return hash(self.system.type_name)

    def get_type_name(self) -> str:
        return str(self.system.type_name)

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
