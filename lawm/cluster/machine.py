"""What this machine lets a local Ray have: cores, memory, a folder for its files, a Python that it can start."""

import fcntl
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lawm
from lawm.config import LawmError

MIB = 2**20
LOCAL_CPUS = 4
"""Least number of logical CPUs of a local Ray. Controllers, the driver of a trial and decode tasks each
hold one, so that with the two of a small machine they would wait for each other for ever."""
LOCAL_STORE_BYTES = 2 * 2**30
SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket. Ray puts `session_<time>_<pid>/sockets/plasma_store` below its temp dir."""
SOCKET_TAIL = len("/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store.9999999")


# ---------------------------------------------------------------- cores and memory
def cores() -> int:
    """Cores that this process may use: of the machine, its affinity mask, its control group and its SLURM task."""
    found = [float(os.cpu_count() or 1)]
    with suppress(AttributeError, OSError):  # no such call on macOS
        found.append(float(len(os.sched_getaffinity(0))))
    for quota, period in _limits("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"):
        found.append(quota / period)
    with suppress(ValueError):
        found.append(float(os.environ.get("SLURM_CPUS_PER_TASK", "")))
    return max(1, int(min(one for one in found if one > 0)))


def memory_bytes() -> int:
    """Memory that this process may use: of the machine, or of its control group."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min([there, *(limit for limit, _ in _limits("memory.max", "memory/memory.limit_in_bytes"))]))


CGROUPS = Path("/sys/fs/cgroup")


def _limits(second: str, first: str, period: str = "") -> Iterator[tuple[int, int]]:
    """(limit, period or 1) of this process's control group and all above it, by the file's name in version 2 or 1."""
    group = ""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            group = line.partition("::")[2] if line.startswith("0::") else group
    inner = Path(group.strip("/"))
    for folder in (CGROUPS / inner, *(CGROUPS / above for above in inner.parents)):
        with suppress(OSError, ValueError, IndexError):
            said = (folder / second).read_text().split()
            if said[0] != "max":
                yield int(said[0]), int(said[1]) if len(said) > 1 else 1
    with suppress(OSError, ValueError):
        limit = int((CGROUPS / first).read_text())
        if limit > 0:  # -1: none
            yield limit, int((CGROUPS / period).read_text()) if period else 1


def store_bytes(folder: Path) -> int:
    """30 % of the memory, at most 2 GiB, and what /dev/shm has room for unless that is next to nothing."""
    size = min(int(0.3 * memory_bytes()), LOCAL_STORE_BYTES)
    try:
        free = shutil.disk_usage("/dev/shm").free
        if free < 256 * MIB:  # a container's default: Ray then maps files of its temp dir instead
            free = shutil.disk_usage(folder).free // 2
    except OSError:
        return size
    return max(100 * MIB, min(size, int(0.8 * free)))


# ---------------------------------------------------------------- folders
def temp_dir() -> tuple[Path, Any]:
    """(A new folder that is short enough for Ray's sockets, an open file that holds a lock in it).

    Folders of runs that were killed are recognised by their free lock, and removed. Raises LawmError.
    """
    wanted = [os.environ.get("TMPDIR", ""), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    with suppress(OSError):  # where no folder at all can be written to, nor the working folder
        wanted.insert(0, tempfile.gettempdir())
    for parent in dict.fromkeys(wanted):
        if not os.path.isabs(parent) or len(parent) + len("/lawm-xxxxxxxx") + SOCKET_TAIL > SOCKET_PATH_BYTES:
            continue
        if shlex.quote(parent) != parent:  # Ray starts its workers by a shell
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix="lawm-", dir=parent))
        except OSError:
            continue
        lock = open(folder / "lock", "w")  # noqa: SIM115 (held as long as the session)
        fcntl.flock(lock, fcntl.LOCK_EX)
        for other in Path(parent).glob("lawm-*/lock"):
            if other.parent != folder:
                _remove_if_dead(other)
        return folder, lock
    raise LawmError(
        f"no folder for Ray's temporary files: none of {', '.join(dict.fromkeys(w for w in wanted if w))} is writable, "
        "short enough for Unix sockets and free of spaces and the like. Set TMPDIR to a folder of at most 20 characters"
    )


def _remove_if_dead(lock: Path) -> None:
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A younger one may belong to a process that has made it and not locked it yet.
            if time.time() - lock.stat().st_mtime > 60:
                shutil.rmtree(lock.parent, ignore_errors=True)
    except OSError:
        pass


@contextmanager
def beside_the_code() -> Iterator[None]:
    """Runs the block in the folder that holds lawm: Ray gives the working folder to its workers, to import from, and
    in the user's own an `av.py` or a `queue.py` would be taken for the module of that name. It may be gone, too."""
    try:
        back = os.open(".", os.O_RDONLY)
    except OSError:
        back = -1
    os.chdir(Path(lawm.__file__).parents[1])
    try:
        yield
    finally:
        if back >= 0:
            with suppress(OSError):  # one that may be listed, and not gone into
                os.fchdir(back)
            os.close(back)


@contextmanager
def plain_python(folder: Path) -> Iterator[None]:
    """Runs the block with a `sys.executable` that a shell reads as it is, by a link in `folder` where the environment's
    own path has a space or the like: Ray 2.60 hands it to a shell unquoted, and its workers then never start."""
    real = sys.executable
    if shlex.quote(real) == real:
        yield
        return
    link = folder / "env"
    inside = os.path.relpath(real, sys.prefix)
    if inside.startswith("..") or shlex.quote(inside) != inside:
        raise LawmError(f"{real}: Ray cannot start a Python whose path has such characters. Install it elsewhere")
    link.symlink_to(sys.prefix, target_is_directory=True)
    sys.executable = str(link / inside)
    try:
        yield
    finally:
        sys.executable = real
