"""RECON, in NWM's layout and in its own HDF5: pictures that lie one by one, and where the robot was."""

import hashlib
import io
import json
import pickle
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lawm import storage
from lawm.config import LawmError
from lawm.data.datasets.common import (
    FRAMES_OFF,
    Batch,
    ReadSpec,
    Recording,
    array,
    in_batches,
    limited,
    need_h5py,
    one_line,
    open_hdf5,
    refusal,
    refuse_options,
)
from lawm.data.dimensions import PLANAR, Meaning
from lawm.data.labels import VideoLabels
from lawm.data.listing import add_member, expand
from lawm.video import VideoRef

RECON_RATE = 4.0
"""RECON was published at 4 pictures a second (Shah et al. 2021), and NWM keeps that."""


def choices(source: str, spec: ReadSpec) -> ReadSpec:
    refuse_options(spec, "action", "state", "cameras")
    if spec.kind == "recon-hdf5":
        need_h5py()
    if spec.actions not in (None, "planar_delta", "state_delta"):
        raise LawmError(f"--actions {spec.actions}: RECON's labels are positions; expected planar_delta or state_delta")
    rate = RECON_RATE if spec.rate is None else spec.rate
    if not 0.1 <= rate <= 240:
        raise LawmError(f"--rate {rate:g}: expected pictures a second")
    return ReadSpec(spec.kind, (), spec.actions or "planar_delta", rate=rate, limit=spec.limit)


def meaning(source: str, spec: ReadSpec) -> Meaning:
    """Odometry in metres and radians, in NWM's layout as in RECON's own."""
    return Meaning(states=PLANAR)


def batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    root = storage.absolute(source).rstrip("/")
    if spec.kind == "recon-hdf5":
        found = list(storage.list_files(root, (".hdf5", ".h5"), troubles=True))
        if not found:
            raise LawmError(f"{source}: no .hdf5 below it; expected RECON's recon_release/*.hdf5")
        items = ((posixpath.splitext(storage.name_below(uri, root))[0], uri, size, None) for uri, size in found)
        yield from in_batches(limited(items, spec.limit))
        return
    pictures: defaultdict[str, list[str]] = defaultdict(list)
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    tables = False
    folders: dict[str, None] = {}
    for uri, size in storage.list_files(root, (".pkl", ".jpg", ".jpeg"), troubles=True):
        folder, name = posixpath.split(uri.rstrip("/"))
        stem = posixpath.splitext(name)[0]
        if uri.endswith("/") and not name.lower().endswith((".pkl", ".jpg", ".jpeg")):
            folders[uri] = None  # may not be read: reading it says so
        elif name == "traj_data.pkl":
            tables = True
            folders[folder] = None
        elif stem.isdecimal() and stem.isascii():
            pictures[folder].append(name)
            sizes[folder].append(size)
            folders[folder] = None
    if not tables:
        raise LawmError(f"{source}: no traj_data.pkl below it; expected <trajectory>/<i>.jpg and traj_data.pkl")
    trajectories = ((storage.name_below(t, root), t, sizes[t], pictures[t]) for t in folders)
    yield from in_batches(limited(trajectories, spec.limit))


Item = tuple[str, str, np.ndarray | None, list[str] | None, str | None]
"""Name, place, states, pictures (None: inside the HDF5), and why there are no states."""


def read(batch: Batch, spec: ReadSpec, out: str) -> list[Recording]:
    """Writes `out`/recon-<number>-<hash>.tar, unless it is there. The hash is of names, positions and sizes of
    pictures, so that what has changed is read anew; so is a shard in which something was refused."""
    digest = hashlib.blake2b(repr(spec.rate).encode(), digest_size=6)
    items: list[Item] = []
    for name, where, size, pictures in batch.what:
        states, names, reason = None, None, None
        try:
            if pictures is None:
                states = _hdf5_states(where)
            else:
                states, names = _folder_states(where), _in_order(where, pictures)
            digest.update(states.tobytes())
        except LawmError as error:
            reason = refusal(error, where)
        digest.update(json.dumps([name, size, reason]).encode("utf-8", "replace"))
        items.append((name, where, states, names, reason))
    uri = storage.join(out, f"recon-{batch.number:06d}-{digest.hexdigest()}.tar")
    kept = _shard(uri) if storage.exists(uri) else None
    if kept is None or any(recording.reason for recording in kept):
        _write_shard(uri, items, float(spec.rate or RECON_RATE))
        kept = _shard(uri)
    if kept is None:
        raise LawmError(f"{uri}: cannot be read back; remove it and run the same command again")
    return kept


def _write_shard(uri: str, items: list[Item], rate: float) -> None:
    with storage.atomic_file(uri) as sink, tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for place, (name, where, states, names, reason) in enumerate(items):
            info: dict[str, Any] = {"name": name, "rate_hz": rate}
            try:
                if states is None:
                    info["reason"] = reason
                else:
                    states, frames = _together(states, _hdf5_pictures(where) if names is None else names, where)
                    add_member(tar, f"{place:06d}.mp4", motion_jpeg(frames, rate))
                    info["states"] = states.tolist()
            except LawmError as error:
                info["reason"] = refusal(error, where)
            add_member(tar, f"{place:06d}.json", json.dumps(info).encode())


def _shard(uri: str) -> list[Recording] | None:
    """What a finished shard holds, from its members; None where it is damaged."""
    recordings = []
    try:
        whole = VideoRef(uri, 0, storage.size_of(uri), "shard.tar")
        videos = {ref.key.rpartition("/")[2]: ref for ref in expand(whole)}
        with storage.open_file(uri) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.name.endswith(".json"):
                    continue
                info = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                if "reason" in info:
                    recordings.append(Recording(VideoRef(uri, 0, 0, info["name"]), reason=info["reason"]))
                    continue
                ref = videos[member.name.replace(".json", ".mp4")]
                states = np.asarray(info["states"], np.float32)
                labels = VideoLabels(info["name"], info["rate_hz"], np.zeros((0, 1), np.float32), states)
                recordings.append(Recording(VideoRef(uri, ref.offset, ref.size, info["name"]), labels))
    except (tarfile.TarError, ValueError, KeyError):
        return None
    return recordings


def _folder_states(folder: str) -> np.ndarray:
    """NWM's (and GNM's) layout: positions in metres [T, 2] and yaw [T] in traj_data.pkl."""
    table = plain_pickle(storage.read_bytes(storage.join(folder, "traj_data.pkl")), folder)
    if not isinstance(table, dict) or not {"position", "yaw"} <= table.keys():
        raise LawmError(f"{folder}/traj_data.pkl: expected a dict with position and yaw")
    return _planar(table["position"], table["yaw"], folder)


def _in_order(folder: str, pictures: list[str]) -> list[str]:
    """The pictures 0.jpg, 1.jpg, ... beside it. Raises LawmError: one is missing, two have the same number."""
    numbered: dict[int, str] = {}
    for name in sorted(pictures):
        number = int(posixpath.splitext(name)[0])
        if number in numbered:
            raise LawmError(f"{folder}: {numbered[number]} and {name} are both picture {number}")
        numbered[number] = name
    if absent := [i for i in range(len(numbered)) if i not in numbered]:
        raise LawmError(f"{folder}: picture {absent[0]} of {len(numbered)} is missing")
    return [storage.join(folder, numbered[i]) for i in range(len(numbered))]


def _hdf5_states(uri: str) -> np.ndarray:
    """RECON's own files: jackal/position [T, 3] and jackal/yaw [T]."""
    with open_hdf5(uri) as file:
        return _planar(array(file, uri, "jackal/position", 2), array(file, uri, "jackal/yaw"), uri)


def _hdf5_pictures(uri: str) -> list[bytes]:
    """JPEGs in images/rgb_left."""
    with open_hdf5(uri) as file:
        try:
            return [bytes(np.asarray(picture).tobytes()) for picture in file["images/rgb_left"][()]]
        except (KeyError, OSError, TypeError, ValueError, RuntimeError) as error:
            raise LawmError(f"{uri}: no readable images/rgb_left ({one_line(error, 80)})") from None


def _planar(position: Any, yaw: Any, where: str) -> np.ndarray:
    try:
        places, turns = np.asarray(position, np.float64), np.asarray(yaw, np.float64).reshape(-1)
    except (TypeError, ValueError):
        places, turns = np.zeros(0), np.zeros(0)
    if places.ndim != 2 or places.shape[1] < 2 or len(turns) != len(places) or not len(turns):
        raise LawmError(f"{where}: positions {places.shape} and yaw {turns.shape}; expected T x 2 (or 3) and T")
    states = np.concatenate([places[:, :2], turns[:, None]], axis=1)
    if not np.isfinite(states).all():
        raise LawmError(f"{where}: positions or yaw are not finite")
    return states.astype(np.float32)


def _together(states: np.ndarray, frames: Sequence[str | bytes], where: str) -> tuple[np.ndarray, list[bytes]]:
    """As many states as pictures, where they differ by one at most."""
    if abs(len(states) - len(frames)) > FRAMES_OFF:
        raise LawmError(f"{where}: {len(frames)} pictures and {len(states)} positions; they cannot be matched")
    count = min(len(states), len(frames))
    return states[:count], [storage.read_bytes(f) if isinstance(f, str) else f for f in frames[:count]]


class _Numbers(pickle.Unpickler):
    """Unpickles numpy arrays and plain values, and nothing that could run code."""

    ALLOWED = frozenset(
        {
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how protocol 2 holds bytes
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor a number")
        return super().find_class(module, name)


def plain_pickle(data: bytes, folder: str) -> Any:
    try:
        return _Numbers(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise LawmError(f"{folder}/traj_data.pkl: refused or damaged ({one_line(error, 120)})") from None


def motion_jpeg(frames: Sequence[bytes], rate_hz: float) -> bytes:
    """JPEGs as a video of `rate_hz` pictures a second, byte for byte: nothing is encoded anew. Raises LawmError for
    what is no JPEG, for pictures of different sizes, and for fewer than two."""
    import av
    import av.error

    if len(frames) < 2:
        raise LawmError(f"{len(frames)} pictures; expected two or more")
    sizes = {_jpeg_size(data, i) for i, data in enumerate(frames)}
    if len(sizes) > 1:
        raise LawmError(f"pictures of different sizes, {sorted(sizes)[:3]}")
    sink = io.BytesIO()
    rate = Fraction(rate_hz).limit_denominator(1001)
    try:
        with av.open(sink, "w", format="mp4") as container:
            stream = container.add_stream("mjpeg", rate=rate)
            stream.width, stream.height = sizes.pop()
            stream.pix_fmt = "yuvj420p"
            stream.time_base = 1 / rate
            for i, data in enumerate(frames):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, 1 / rate
                packet.pts = packet.dts = i
                packet.duration = 1
                packet.is_keyframe = True
                container.mux(packet)
    except av.error.FFmpegError as error:
        raise LawmError(f"the pictures make no video ({error.strerror})") from None
    return sink.getvalue()


def _jpeg_size(data: bytes, number: int) -> tuple[int, int]:
    """Width and height by the JPEG's own header."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            high, wide = (int.from_bytes(data[at + n : at + n + 2], "big") for n in (5, 7))
            if not high or not wide:
                break
            return wide, high
        at += 2 if kind == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise LawmError(f"picture {number} is no JPEG")
