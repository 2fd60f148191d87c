"""Small data sets in the true layouts of those that are given out, with frames that say which they are."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_videos import picture, write_video
from PIL import Image

CAMERAS = ("exterior_1_left", "exterior_2_left", "wrist_left")
LENGTHS = (40, 23, 61)
"""Steps of the LeRobot data set's episodes, at 15 a second."""


def poses(steps: int, seed: int) -> np.ndarray:
    """A robot that wanders: xyz (metres), Euler angles (radians), gripper (0 to 1), float64 [steps, 7]."""
    generator = np.random.default_rng(seed)
    walk = np.cumsum(generator.normal(0, 0.02, (steps, 7)), axis=0)
    walk[:, 3:6] += [3.1, -0.2, 0.5]  # near the cut of the angle, as DROID's grippers that point down are
    walk[:, 3] = (walk[:, 3] + np.pi) % (2 * np.pi) - np.pi
    walk[:, 6] = np.clip(0.5 + walk[:, 6], 0, 1)
    return walk


def joined(path: Path, lengths: tuple[int, ...], rate: int, codec: str, first: int) -> list[tuple[float, float]]:
    """One mp4 of episodes put one after another without encoding anew, as LeRobot does; their (from, to) seconds.
    Frame i of episode e shows the number first + 256 e + i."""
    spans, at = [], 0
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"crf": "30", "g": "2"} | ({"preset": "12"} if codec == "libsvtav1" else {"preset": "veryfast"})
    with av.open(str(path), "w") as whole:
        out = None
        for e, length in enumerate(lengths):
            sink = io.BytesIO()
            with av.open(sink, "w", format="mp4") as container:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
                for i in range(length):
                    image = picture(first + 256 * e + i, 160, 120)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(stream.encode())
            sink.seek(0)
            with av.open(sink, "r") as container:
                stream = container.streams.video[0]
                if out is None and codec == "libx264":
                    out = whole.add_stream_from_template(stream)
                elif out is None:  # PyAV makes no template of what another library decodes
                    out = whole.add_stream(codec, rate=rate, options=options)
                    out.width, out.height, out.pix_fmt = 160, 120, "yuv420p"
                step = round(1 / rate / stream.time_base)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts += at * step
                        packet.dts += at * step
                        packet.stream = out
                        whole.mux(packet)
            spans.append((at / rate, (at + length) / rate))
            at += length
    return spans


def lerobot(root: Path, droid: bool = True, codec: str = "libx264", version: str = "v3.0") -> dict[int, np.ndarray]:
    """LeRobot v3: two episodes in the first files, the third in the second. Returns the poses by episode."""
    cameras = CAMERAS if droid else ("front",)
    names = {camera: f"observation.images.{camera}" for camera in cameras}
    number = {"dtype": "float32", "names": None}
    columns: dict[str, int] = {"observation.state": 8, "action": 7}
    if droid:
        columns |= {"observation.state.cartesian_position": 6, "observation.state.gripper_position": 1}
    features: dict[str, Any] = {name: number | {"shape": [width]} for name, width in columns.items()}
    features |= {name: {"dtype": "video", "shape": [120, 160, 3], "names": None} for name in names.values()}
    features |= {name: {"dtype": "int64", "shape": [1]} for name in ("episode_index", "frame_index", "index")}
    info = {
        "codebase_version": version, "robot_type": "Franka", "total_episodes": 3, "total_frames": sum(LENGTHS),
        "chunks_size": 1000, "fps": 15, "splits": {"train": "0:3"}, "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    truth = {e: poses(length, e) for e, length in enumerate(LENGTHS)}
    rows: list[dict[str, Any]] = []
    first = 0
    for file, episodes in enumerate(((0, 1), (2,))):
        spans = {}
        for c, (camera, name) in enumerate(names.items()):
            where = root / f"videos/{name}/chunk-000/file-{file:03d}.mp4"
            spans[camera] = joined(where, tuple(LENGTHS[e] for e in episodes), 15, codec, 4096 * c + 256 * episodes[0])
        table: dict[str, list[Any]] = {name: [] for name in (*columns, "episode_index", "frame_index", "index")}
        for place, e in enumerate(episodes):
            length, pose = LENGTHS[e], truth[e].astype(np.float32)
            values = {
                "observation.state": np.concatenate([pose, np.full((length, 1), e)], axis=1),
                "action": pose * 10,
                "observation.state.cartesian_position": pose[:, :6],
                "observation.state.gripper_position": pose[:, 6],  # of shape [1], stored as plain numbers
            }
            for name in columns:
                table[name] += values[name].astype(np.float32).tolist()
            table["episode_index"] += [e] * length
            table["frame_index"] += list(range(length))
            table["index"] += list(range(first, first + length))
            row = {
                "episode_index": e, "tasks": ["pick"], "length": length, "data/chunk_index": 0, "data/file_index": file,
                "dataset_from_index": first, "dataset_to_index": first + length,
            }  # fmt: skip
            for camera, name in names.items():
                begin, end = spans[camera][place]
                row |= {f"videos/{name}/chunk_index": 0, f"videos/{name}/file_index": file}
                row |= {f"videos/{name}/from_timestamp": begin, f"videos/{name}/to_timestamp": end}
            rows.append(row)
            first += length
        (root / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), root / f"data/chunk-000/file-{file:03d}.parquet")
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    return truth


def droid_raw(
    folder: Path, steps: int, frames: int, seed: int = 0, hz: float = 15.0, claimed: int = 60, clock: str = "control"
) -> np.ndarray:
    """One episode of DROID raw; its mp4 claims `claimed` frames a second. Returns the poses."""
    videos = folder / "recordings/MP4"
    videos.mkdir(parents=True)
    serials = {"wrist": "13000001", "ext1": "22000002", "ext2": "24000003"}
    for n, serial in enumerate(serials.values()):
        write_video(videos / f"{serial}.mp4", frames, rate=claimed, gop=12)
        if n:
            (videos / f"{serial}-stereo.mp4").write_bytes(b"not to be looked at")
    pose = poses(steps, seed)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        robot = file.create_group("observation/robot_state")
        robot["cartesian_position"], robot["gripper_position"] = pose[:, :6], pose[:, 6]
        jitter = np.random.default_rng(seed).normal(0, 1.0, steps)
        stamps = 1_690_000_000_000 + np.arange(steps) * 1000 / hz + jitter
        name = "control/step_start" if clock == "control" else "robot_state/read_start"
        if clock != "none":
            file[f"observation/timestamp/{name}"] = stamps.astype(np.int64)
    inside = "success/2023-07-07/Fri_Jul__7_09:42:23_2023/recordings/MP4"
    about = {f"{camera}_mp4_path": f"{inside}/{serial}.mp4" for camera, serial in serials.items()}
    about |= {"left_mp4_path": about["ext2_mp4_path"], "trajectory_length": steps, "success": True}  # type: ignore[dict-item]
    (folder / f"metadata_LAB+{seed}.json").write_text(json.dumps(about))
    return pose


def walk(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in metres, float64 [steps, 2], and yaw, of a robot that drives."""
    generator = np.random.default_rng(seed)
    yaw = (np.cumsum(generator.normal(0, 0.4, steps)) + 3 + np.pi) % (2 * np.pi) - np.pi
    steps_xy = 0.25 * np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    return np.cumsum(steps_xy, axis=0), yaw


def jpeg(number: int, width: int = 160, height: int = 120) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture(number, width, height)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def recon_folder(folder: Path, pictures: int, steps: int, seed: int = 0, protocol: int = 4) -> np.ndarray:
    """A trajectory as NWM and GNM lay it out. Returns x, y, yaw."""
    folder.mkdir(parents=True)
    position, yaw = walk(steps, seed)
    for i in range(pictures):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    (folder / "traj_data.pkl").write_bytes(pickle.dumps({"position": position, "yaw": yaw}, protocol))
    return np.concatenate([position, yaw[:, None]], axis=1)


def recon_hdf5(path: Path, steps: int, seed: int = 0) -> np.ndarray:
    """A trajectory as RECON was published. Returns x, y, yaw."""
    path.parent.mkdir(parents=True, exist_ok=True)
    position, yaw = walk(steps, seed)
    with h5py.File(path, "w") as file:
        file["jackal/position"] = np.concatenate([position, np.zeros((steps, 1))], axis=1)
        file["jackal/yaw"] = yaw
        pictures = file.create_dataset("images/rgb_left", (steps,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(steps):
            pictures[i] = np.frombuffer(jpeg(i), np.uint8)
    return np.concatenate([position, yaw[:, None]], axis=1)


def ssv2(root: Path) -> None:
    """Something-Something-v2: a folder of webm, and JSON lists as they are given out."""
    (root / "20bn-something-something-v2").mkdir(parents=True)
    for number in (1, 2, 3, 78687):
        form = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime", "b": "200k"}}
        write_video(root / f"20bn-something-something-v2/{number}.webm", 36, rate=12, **form)  # type: ignore[arg-type]
    (root / "labels").mkdir()
    entry = {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}
    (root / "labels/train.json").write_text(json.dumps([entry, entry | {"id": "1"}]))
    (root / "labels/validation.json").write_text(json.dumps([entry | {"id": "2", "template": "Moving [something] up"}]))
    (root / "labels/test.json").write_text(json.dumps([{"id": "3"}]))
    (root / "labels/labels.json").write_text(json.dumps({"Holding something": "0"}))


def kinetics(root: Path, flat: bool) -> None:
    names = {"abseiling": "abc_-12_DEF_000001_000011", "zumba": "xyz12345678_000010_000020"}
    for label, name in names.items():
        at = root / "train" / ("" if flat else label)
        at.mkdir(parents=True, exist_ok=True)
        write_video(at / f"{name}.mp4", 60, rate=30)
    if flat:
        (root / "annotations").mkdir()
        (root / "annotations/train.csv").write_text(
            "label,youtube_id,time_start,time_end,split\nabseiling,abc_-12_DEF,1,11,train\n"
            "zumba,xyz12345678,10,20,train\nyoga,never_there,0,10,train\nodd,a,1.2.3,nan,train\nodd,b,,nan,\n"
        )
