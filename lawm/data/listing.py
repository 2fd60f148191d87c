"""What videos there are in files, folders, tars and S3 prefixes, each with a key of its own."""

import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from lawm import storage
from lawm.config import LawmError
from lawm.video import TAR_SUFFIXES, VideoRef

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg",
    ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".3gp", ".ogv",
)  # fmt: skip


_DAMAGED = (tarfile.TarError, ValueError, OverflowError)
"""What tarfile raises over headers that are damaged."""


def list_files(sources: Sequence[str]) -> Iterator[VideoRef]:
    """Every video file and every tar (as one ref, see `expand`) in files, folders and S3 prefixes, in order.

    The key is the path relative to the source, so that a moved data set keeps its keys. Nothing is
    opened: folders that may not be read, and what else is no file, are listed for `probe` to say why. Raises
    NotFoundError for a source that does not exist.
    """
    for source in sources:
        root = storage.absolute(source)
        folder = root[: root.rfind("/") + 1] if storage.is_s3(root) and root.endswith("*") else root.rstrip("/") + "/"
        for uri, size in storage.list_files(root, VIDEO_SUFFIXES + TAR_SUFFIXES, troubles=True):
            yield VideoRef(uri, 0, size, storage.name_below(uri, folder))


def expand(ref: VideoRef) -> Iterator[VideoRef]:
    """The videos of a tar (`<tar's key without .tar>/<member>`), read header by header; any other ref as it is.

    Folders, links, sparse members and other suffixes are left out; a member that occurs twice gets `#2`.
    A tar that is compressed, no tar, or not to be read is yielded as it is, for `probe` to refuse with a reason; if one
    breaks off in the middle, the rest is yielded as a last entry, for the same purpose. Raises StorageError where S3
    cannot be reached.
    """
    if not ref.is_tar:
        yield ref
        return
    stem = ref.key[: -len(".tar")]
    seen: Counter[str] = Counter()
    with ExitStack() as stack:
        try:
            file = stack.enter_context(storage.open_file(ref.source))
            # Not "r": that would unpack compressed tars, whose members have no offset.
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        except (storage.StorageError, *_DAMAGED) as error:
            if isinstance(error, storage.StorageError) and not storage.tells_of_one(error, ref.source):
                raise
            yield ref
            return
        member: tarfile.TarInfo | None = None
        while True:
            try:
                member = tar.next()
            except _DAMAGED:
                break
            if member is None:
                break
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has read
            if member.isreg() and not member.issparse() and member.name.lower().endswith(VIDEO_SUFFIXES):
                name = f"{stem}/{storage.spelt(member.name).removeprefix('./').lstrip('/')}"
                seen[name] += 1
                key = name if seen[name] == 1 else f"{name}#{seen[name]}"
                yield VideoRef(ref.source, member.offset_data, member.size, key)
        end = int(tar.offset)
        if member is None:
            # tarfile takes a damaged header for the end; a true end is a block of zeros, or the file's.
            file.seek(end)
            if not file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                return
        yield VideoRef(ref.source, end, max(0, ref.size - end), f"{stem}/(unreadable from byte {end} on)")


def list_videos(sources: Sequence[str]) -> Iterator[VideoRef]:
    """Every video in files, folders, tars and S3 prefixes, in a fixed order, each with a key of its own.

    Raises NotFoundError, StorageError.
    """
    return unique_keys(ref for file in list_files(sources) for ref in expand(file))


def unique_keys(refs: Iterable[VideoRef]) -> Iterator[VideoRef]:
    """The refs in order; a key that an earlier one has already used gets `#2`, `#3`, ..."""
    used: dict[int, int] = {}

    def short(key: str) -> int:
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")

    for ref in refs:
        plain = short(ref.key)
        used[plain] = used.get(plain, 0) + 1
        if used[plain] > 1:
            while short(f"{ref.key}#{used[plain]}") in used:
                used[plain] += 1
            ref = replace(ref, key=f"{ref.key}#{used[plain]}")
            used[short(ref.key)] = 1
        yield ref


def group_pattern(text: str) -> re.Pattern[str]:
    """Raises LawmError where it is no regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise LawmError(f"--group {text}: not a regular expression ({error})") from None


def grouped(refs: Iterable[VideoRef], pattern: re.Pattern[str]) -> Iterator[VideoRef]:
    """The refs in order, each with the group that its key names: the pattern's first (...), or all that it matches;
    a key that it does not match, or of which it takes nothing, stands alone."""
    for ref in refs:
        match = pattern.search(ref.key)
        found = (match[1] if pattern.groups else match[0]) if match else None
        yield replace(ref, group=found or None)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to an open tar, with no time and no owner: the same files give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
