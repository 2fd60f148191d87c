"""What every layout shares: what is asked for, what is found, and files that may be damaged."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from lawm import storage
from lawm.config import LawmError
from lawm.data.dimensions import Meaning
from lawm.data.labels import ActionKind, VideoLabels
from lawm.video import VideoRef

Kind = Literal["lerobot", "droid", "recon", "recon-hdf5", "ssv2", "kinetics", "pusht"]
KINDS: tuple[Kind, ...] = get_args(Kind)

EPISODES_A_BATCH = 64
FRAMES_OFF = 1
"""By so many frames may a video be longer or shorter than its labels: DROID's often are, by one."""


@dataclass(frozen=True)
class ReadSpec:
    """How a data set is to be read; what is None or empty is the layout's own choice."""

    kind: Kind
    cameras: tuple[str, ...] = ()
    actions: ActionKind | None = None
    action: str | None = None
    """LeRobot: the column of the actions."""
    state: tuple[str, ...] = ()
    """LeRobot: columns that make up the state, one after another."""
    rate: float | None = None
    """RECON: pictures a second."""
    limit: int | None = None
    """Only the first so many episodes."""


@dataclass(frozen=True)
class Recording:
    """A video and what is known of it: `labels`, or (for clips without actions) what it shows and its split.
    `reason`: why it cannot be used, whatever its bytes are; `note`: what its tables had wrong and was put right."""

    ref: VideoRef
    labels: VideoLabels | None = None
    label: str | None = None
    split: str | None = None
    reason: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Batch:
    """Some episodes, to be read together: `what` is the layout's own business, and can be sent to another process."""

    number: int
    what: Any
    episodes: int


@dataclass(frozen=True)
class Layout:
    """`batches(source, spec)` lists; `read(batch, spec, out)` opens, and writes below `out` if it has to. `choices`:
    the spec with what was left open decided. `meaning(source, spec)`: what the numbers of its labels are."""

    about: str
    choices: Callable[[str, ReadSpec], ReadSpec]
    batches: Callable[[str, ReadSpec], Iterator[Batch]]
    read: Callable[[Batch, ReadSpec, str], list[Recording]]
    meaning: Callable[[str, ReadSpec], Meaning | None] = lambda source, spec: None


def in_batches(items: Iterable[Any], size: int = EPISODES_A_BATCH) -> Iterator[Batch]:
    held: list[Any] = []
    number = 0
    for item in items:
        held.append(item)
        if len(held) == size:
            yield Batch(number, held, len(held))
            held, number = [], number + 1
    if held:
        yield Batch(number, held, len(held))


def limited(items: Iterable[Any], limit: int | None) -> Iterator[Any]:
    for count, item in enumerate(items):
        if limit is not None and count >= limit:
            return
        yield item


def one_line(error: Exception, most: int) -> str:
    """The beginning of what an error says."""
    return " ".join(str(error).split())[:most]


def read_json(uri: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise LawmError(f"{uri}: not JSON ({one_line(error, 120)})") from None


def refuse_options(spec: ReadSpec, *names: str) -> None:
    for name in names:
        if getattr(spec, name):
            option = "camera" if name == "cameras" else name
            raise LawmError(f"--{option} means nothing for {spec.kind}; leave it out")


def refusal(error: LawmError, folder: str) -> str:
    """Why an episode is refused, without its folder's name. An S3 that cannot be reached says nothing about it, and
    is raised again."""
    if isinstance(error, storage.StorageError) and not storage.tells_of_one(error, str(error)):
        raise error
    return f"labels: {' '.join(str(error).replace(folder, '').strip('/: ').split())}"


def need_h5py() -> None:
    """Raises LawmError where HDF5 cannot be read."""
    try:
        import h5py  # noqa: F401
    except ModuleNotFoundError:
        raise LawmError("this layout is read with h5py: pip install 'lawm[hdf5]'") from None


@contextmanager
def open_hdf5(uri: str) -> Iterator[Any]:
    """An open HDF5 file. Raises LawmError where it is missing or damaged."""
    import h5py

    with storage.open_file(uri) as raw:
        try:
            with h5py.File(raw, "r") as file:
                yield file
        except LawmError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, MemoryError) as error:  # h5py, wherever the damage is met
            raise LawmError(f"{uri}: not HDF5, or damaged ({one_line(error, 200)})") from None


def array(file: Any, uri: str, name: str, dims: int | None = None) -> np.ndarray:
    try:
        values = np.asarray(file[name][()], np.float64)
    except (KeyError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise LawmError(f"{uri}: no readable {name} ({one_line(error, 80)})") from None
    if values.ndim != dims if dims is not None else not values.ndim:
        raise LawmError(f"{uri}: {name} has {values.ndim} dimensions; expected {dims or 'at least 1'}")
    if not values.size or not np.isfinite(values).all():
        raise LawmError(f"{uri}: {name} of shape {values.shape} has values that are not finite, or none")
    return values
