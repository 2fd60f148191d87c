"""DROID as it was recorded: a folder an episode, with mp4s and trajectory.h5."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from lawm import storage
from lawm.config import LawmError
from lawm.data.datasets.common import (
    Batch,
    ReadSpec,
    Recording,
    array,
    in_batches,
    limited,
    need_h5py,
    open_hdf5,
    read_json,
    refusal,
    refuse_options,
)
from lawm.data.dimensions import GRIPPER, POSE, Meaning
from lawm.data.labels import VideoLabels
from lawm.video import VideoRef

_DROID_CAMERAS = ("ext1", "ext2", "wrist", "left", "right")


def choices(source: str, spec: ReadSpec) -> ReadSpec:
    refuse_options(spec, "action", "state", "rate")
    need_h5py()
    for camera in spec.cameras:
        if camera not in (*_DROID_CAMERAS, "all"):
            raise LawmError(f"--camera {camera}: expected all, or some of {', '.join(_DROID_CAMERAS)}")
    if spec.actions not in (None, "pose_delta", "state_delta"):
        raise LawmError(f"--actions {spec.actions}: DROID's labels are poses; expected pose_delta or state_delta")
    cameras = ("ext1", "ext2", "wrist") if "all" in spec.cameras else tuple(dict.fromkeys(spec.cameras)) or ("ext1",)
    return ReadSpec(spec.kind, cameras, spec.actions or "pose_delta", limit=spec.limit)


def meaning(source: str, spec: ReadSpec) -> Meaning:
    """Metres, radians, and the gripper's opening: see `droid_states`."""
    return Meaning(states=(*POSE, GRIPPER))


def batches(source: str, spec: ReadSpec) -> Iterator[Batch]:
    """Only episodes with a metadata_*.json are whole: DROID's own rule. The others are refused by name."""
    root = storage.absolute(source).rstrip("/")
    metadata: defaultdict[str, list[str]] = defaultdict(list)
    videos: defaultdict[str, dict[str, int]] = defaultdict(dict)
    folders: dict[str, None] = {}
    closed: list[str] = []
    for uri, size in storage.list_files(root, (".json", ".mp4", ".h5"), troubles=True):
        folder, name = posixpath.split(uri)
        if uri.endswith("/"):
            closed.append(uri)
        elif re.fullmatch(r"metadata_.*\.json", name):
            metadata[folder].append(uri)
            folders[folder] = None
        elif name.lower() == "trajectory.h5":
            folders[folder] = None
        elif name.lower().endswith(".mp4") and folder.endswith("/recordings/MP4"):
            videos[folder.removesuffix("/recordings/MP4")][uri] = size
            folders[folder.removesuffix("/recordings/MP4")] = None
    if not metadata:
        raise LawmError(f"{source}: no metadata_*.json below it; expected <lab>/success/<date>/<episode>/ folders")
    episodes: list[dict[str, Any]] = [
        {"metadata": about, "folder": folder, "root": root, "videos": videos[folder]}
        for folder in sorted(folders)
        for about in metadata[folder] or [""]
    ]
    episodes += [{"metadata": "", "folder": folder, "root": root, "videos": None} for folder in closed]
    yield from in_batches(limited(episodes, spec.limit))


def read(batch: Batch, spec: ReadSpec, out: str) -> list[Recording]:
    return [recording for episode in batch.what for recording in _droid_episode(episode, spec)]


def _droid_episode(episode: dict[str, Any], spec: ReadSpec) -> Iterator[Recording]:
    folder = episode["folder"]
    name = storage.name_below(folder, episode["root"])
    if episode["videos"] is None:  # a folder that may not be read: its probe says so
        yield Recording(VideoRef(folder, 0, 0, name))
        return
    where = storage.join(folder, "trajectory.h5")
    try:
        if not episode["metadata"]:
            raise LawmError("no metadata_*.json, which whole episodes have")
        metadata = read_json(episode["metadata"])
        if not isinstance(metadata, dict):
            raise LawmError(f"{episode['metadata']}: expected an object")
        states, rate = droid_states(where)
        trouble = None
    except LawmError as error:
        metadata, states, rate, trouble = {}, None, None, refusal(error, folder)
    for camera in spec.cameras:
        key = f"{name}/{camera}"
        said = str(metadata.get(f"{camera}_mp4_path") or "")
        uri = storage.join(folder, "recordings/MP4", posixpath.basename(said)) if said else ""
        if trouble or uri not in episode["videos"]:
            reason = trouble or f"missing: {camera} is {said or 'not named'} in its metadata, and no video is there"
            yield Recording(VideoRef(uri or where, 0, 0, key, group=name), reason=reason)
            continue
        ref = VideoRef(uri, 0, episode["videos"][uri], key, true_rate=rate, group=name)
        yield Recording(ref, VideoLabels(key, float(rate or 0), np.zeros((0, 1), np.float32), states))


def droid_states(uri: str) -> tuple[np.ndarray, float]:
    """Cartesian position (metres, radians) and gripper, [T, 7], and the steps a second, from the clock in the file:
    the mp4s of DROID claim 60 frames a second, and were taken at 15."""
    with open_hdf5(uri) as file:
        robot = "observation/robot_state"
        pose = array(file, uri, f"{robot}/cartesian_position", 2)
        gripper = array(file, uri, f"{robot}/gripper_position")
        gripper = gripper.reshape(len(gripper), -1)
        if pose.shape[1] != 6 or len(gripper) != len(pose) or gripper.shape[1] != 1:
            raise LawmError(f"{uri}: poses {pose.shape} and gripper {gripper.shape}; expected T x 6 and T")
        clocks = ("observation/timestamp/control/step_start", "observation/timestamp/robot_state/read_start")
        stamps = next((array(file, uri, name) for name in clocks if name in file), None)
    if stamps is None:
        raise LawmError(f"{uri}: none of {' and '.join(clocks)}; without a clock the cadence is unknown")
    gaps = np.diff(stamps.ravel())
    gaps = gaps[gaps > 0]
    if not len(gaps):
        raise LawmError(f"{uri}: its clock stands still")
    unit = next((u for most, u in ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6)) if abs(stamps.ravel()[0]) < most), 1e9)
    # Stamps are whole milliseconds and jitter; a pause is no part of the cadence.
    usual = np.median(gaps)
    rate = unit / float(gaps[(gaps > usual / 2) & (gaps < usual * 1.5)].mean())
    if not 1 <= rate <= 240:
        raise LawmError(f"{uri}: {rate:g} steps a second by its clock; expected about 15")
    with np.errstate(over="ignore"):  # infinite values are refused where all labels are
        return np.concatenate([pose, gripper], axis=1).astype(np.float32), rate
